//! Conditions that the server itself keeps: whether a flow schema's priority level exists, and whether an API service can be
//! reached (upstream: the config consumer of API Priority and Fairness, and the availability controllers of
//! `kube-aggregator`).
//!
//! One task looks again whenever one of the resources changed on which a condition depends.

use super::api_services;
use super::bootstrap::send;
use crate::front::Front;
use crate::objects::Objects;
use crate::registry::apiextensions::definition::set_condition;
use crate::store::Store;
use coxswain_api::field::go_quote;
use coxswain_api::{Value, json, time};
use coxswain_storage::Revision;
use std::sync::Arc;
use std::time::Duration;

const FLOW: &str = "flowcontrol.apiserver.k8s.io";
const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
/// Changes come in bursts; they are looked at together.
const GATHER: Duration = Duration::from_millis(100);
/// How soon the registration of what is built in is tried again.
const RETRY: Duration = Duration::from_millis(500);

pub async fn run(front: Arc<Front>, objects: Arc<dyn Objects>) {
    let store = |group: &str, plural: &str| front.store(group, plural);
    let (Some(schemas), Some(levels), Some(api_services), Some(services), Some(definitions)) = (
        store(FLOW, "flowschemas"),
        store(FLOW, "prioritylevelconfigurations"),
        store("apiregistration.k8s.io", "apiservices"),
        store("", "services"),
        store("apiextensions.k8s.io", "customresourcedefinitions"),
    ) else {
        return;
    };
    while let Err(why) = api_services::register_builtin(&*objects, &front.resources.index(), &api_services).await {
        tracing::warn!(%why, "built-in API services could not be registered");
        tokio::time::sleep(RETRY).await;
    }
    let mut progress = schemas.feed().subscribe();
    let mut seen = [Revision(0); 5];
    let mut defined = api_services::Defined::default();
    loop {
        let now = [&schemas, &levels, &api_services, &services, &definitions].map(|s| s.cache().changed());
        if now != seen {
            let flows =
                async { if now[..2] != seen[..2] { dangling(&*objects, &schemas, &levels).await } else { Ok(()) } };
            let apis = async {
                if now[2] != seen[2] || now[4] != seen[4] {
                    defined.register(&*objects, &definitions, &api_services).await?;
                }
                if now[2..4] != seen[2..4] { available(&*objects, &api_services, &services).await } else { Ok(()) }
            };
            let (flows, apis) = tokio::join!(flows, apis);
            match flows.and(apis) {
                Ok(()) => seen = now,
                Err(why) => tracing::warn!(%why, "conditions could not be brought up to date"),
            }
            tokio::time::sleep(GATHER).await;
            continue;
        }
        if progress.changed().await.is_err() {
            return;
        }
    }
}

pub(super) fn all(store: &Store) -> Vec<Arc<Value>> {
    store.cache().snapshot(store.feed().progress()).objects.values().map(|o| o.tree()).collect()
}

fn condition_of<'a>(object: &'a Value, kind: &str) -> [&'a str; 3] {
    let list = object.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let found = list.into_iter().find(|c| c["type"] == kind);
    ["status", "reason", "message"].map(|f| found.and_then(|c| c[f].as_str()).unwrap_or_default())
}

/// A flow schema dangles if its priority level does not exist.
async fn dangling(objects: &dyn Objects, schemas: &Store, levels: &Store) -> Result<(), String> {
    for schema in all(schemas) {
        let level = schema.pointer("/spec/priorityLevelConfiguration/name").and_then(Value::as_str).unwrap_or_default();
        let exists = levels.get_cached("", level).is_some();
        let named =
            format!("This FlowSchema references the PriorityLevelConfiguration object named {}", go_quote(level));
        let (status, reason, message) = if exists {
            ("False", "Found", format!("{named} and it exists"))
        } else {
            ("True", "NotFound", format!("{named} but there is no such object"))
        };
        if condition_of(&schema, "Dangling") == [status, reason, &message] {
            continue;
        }
        let name = schema["metadata"]["name"].as_str().unwrap_or_default();
        let body = json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": name},
            "status": {"conditions": [{
                "type": "Dangling", "status": status, "reason": reason, "message": message,
                "lastTransitionTime": time::format_seconds(jiff::Timestamp::now()),
            }]},
        });
        let path = format!(
            "/apis/{FLOW}/v1/flowschemas/{name}/status?fieldManager=api-priority-and-fairness-config-consumer-v1&force=true"
        );
        // A schema that is gone meanwhile needs no condition; apply would create it, were the status no subresource.
        match send(objects, "APPLY", &path, Some(&body)).await? {
            (200 | 201 | 404 | 409, _) => {}
            (code, answer) => return Err(format!("{path}: {code} {}", answer["message"])),
        }
    }
    Ok(())
}

/// An API served here is always available, one of another server only if its service exists.
async fn available(objects: &dyn Objects, api_services: &Store, services: &Store) -> Result<(), String> {
    for api in all(api_services) {
        let service = api.pointer("/spec/service").filter(|s| !s.is_null());
        let text = |field: &str| service.and_then(|s| s[field].as_str()).unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let (status, reason, message) = match service {
            None => ("True", "Local", "Local APIServices are always available".to_owned()),
            Some(_) if services.get_cached(namespace, name).is_none() => {
                ("False", "ServiceNotFound", format!("service/{name} in {} is not present", go_quote(namespace)))
            }
            // Requests are not passed on to other servers.
            Some(_) => {
                ("False", "FailedDiscoveryCheck", "aggregation of other API servers is not supported".to_owned())
            }
        };
        if condition_of(&api, "Available") == [status, reason, &message] {
            continue;
        }
        let mut changed = Value::clone(&api);
        if changed.get("status").is_none_or(Value::is_null) {
            changed["status"] = json!({});
        }
        let now = time::format_seconds(jiff::Timestamp::now());
        set_condition(&mut changed["status"], "Available", status, reason, &message, &now);
        let path = format!("{SERVICES}/{}/status", api["metadata"]["name"].as_str().unwrap_or_default());
        match send(objects, "PUT", &path, Some(&changed)).await? {
            (200 | 404 | 409, _) => {}
            (code, answer) => return Err(format!("{path}: {code} {}", answer["message"])),
        }
    }
    Ok(())
}
