//! Nothing is created beyond a namespace's quota (upstream: `admission/plugin/resourcequota`).
//!
//! A write is charged before it is stored: the quota's status is raised at the revision it was read at, so that two
//! writes never share the same room. A write that fails afterwards has been charged too much, which the quota controller
//! mends.

mod evaluator;

use super::pod_resources::{Amounts, add, amounts};
use super::{Attributes, Operation, Plugin};
use crate::authentication::MASTERS;
use crate::objects::Objects;
use crate::request::User;
use async_trait::async_trait;
use coxswain_api::quantity::Quantity;
use coxswain_api::{Status, Value};
use serde_json::{Map, json};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// How often a charge is tried when the quota changes in between.
const ATTEMPTS_MAX: usize = 8;

type Gate = tokio::sync::Mutex<()>;

pub struct ResourceQuota {
    objects: Arc<dyn Objects>,
    /// One write at a time charges the quotas of a namespace; without it, concurrent writes would only conflict.
    gates: parking_lot::Mutex<HashMap<String, Weak<Gate>>>,
}

impl ResourceQuota {
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects, gates: Default::default() }
    }

    fn gate(&self, namespace: &str) -> Arc<Gate> {
        let mut gates = self.gates.lock();
        if let Some(gate) = gates.get(namespace).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Gate::default());
        gates.insert(namespace.to_owned(), Arc::downgrade(&gate));
        gate
    }

    /// The quotas as they are stored now; their names as the cache knows them.
    async fn quotas(&self, namespace: &str) -> Result<Vec<Arc<Value>>, Status> {
        let mut quotas = Vec::new();
        for known in self.objects.list("", "resourcequotas", Some(namespace)) {
            let name = known["metadata"]["name"].as_str().unwrap_or_default();
            quotas.extend(self.objects.get_consistent("", "resourcequotas", namespace, name).await?);
        }
        Ok(quotas)
    }

    /// Stores the new usage; false if the quota changed in between.
    async fn charge(&self, quota: &Value, used: &Amounts) -> Result<bool, Status> {
        let mut quota = quota.clone();
        let used: Map<String, Value> = used.iter().map(|(k, q)| (k.clone(), json!(q.to_string()))).collect();
        quota["status"]["used"] = Value::Object(used);
        let text = |key: &str| quota["metadata"][key].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{}/resourcequotas/{}/status", text("namespace"), text("name"));
        quota["apiVersion"] = json!("v1");
        quota["kind"] = json!("ResourceQuota");
        let request = http::Request::put(path)
            .header("content-type", "application/json")
            .header("user-agent", "kube-apiserver")
            .body(bytes::Bytes::from(quota.to_string()))
            .map_err(Status::internal)?;
        let server = User { name: "system:apiserver".into(), groups: vec![MASTERS.into()], ..User::default() };
        let response = self.objects.request(&server, request).await;
        match response.status().as_u16() {
            200..300 => Ok(true),
            404 | 409 => Ok(false),
            _ => {
                Err(serde_json::from_slice(response.body())
                    .unwrap_or_else(|_| Status::internal("charging a quota failed")))
            }
        }
    }

    async fn check(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        let namespace = attributes.namespace;
        if self.objects.list("", "resourcequotas", Some(namespace)).is_empty() {
            return Ok(());
        }
        let gate = self.gate(namespace);
        let _turn = gate.lock().await;
        'attempts: for _ in 0..ATTEMPTS_MAX {
            let quotas = self.quotas(namespace).await?;
            let charges = charges(attributes, &quotas)?;
            if attributes.ctx.dry_run {
                return Ok(());
            }
            for (quota, used) in charges {
                if !self.charge(quota, &used).await? {
                    continue 'attempts;
                }
            }
            return Ok(());
        }
        Err(Status::internal("resource quota evaluation timed out"))
    }
}

#[async_trait]
impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        let ignored = attributes.namespace.is_empty()
            || !attributes.resource.namespaced
            || attributes.resource.storage_version_hash.is_empty()
            || attributes.plural() == "events"
            || !evaluator::handles(attributes);
        if ignored { Ok(()) } else { self.check(attributes).await }
    }
}

/// Which quotas the write has to be charged to, with the usage that results; refuses what does not fit.
fn charges<'q>(attributes: &Attributes<'_>, quotas: &'q [Arc<Value>]) -> Result<Vec<(&'q Value, Amounts)>, Status> {
    let Some(object) = attributes.new_object() else { return Ok(Vec::new()) };
    let mut interesting = Vec::new();
    for quota in quotas {
        let name = quota["metadata"]["name"].as_str().unwrap_or_default();
        let hard = amounts(&quota["status"]["hard"]);
        let restricted: Vec<&str> =
            hard.keys().map(String::as_str).filter(|r| evaluator::counts(attributes, r)).collect();
        if restricted.is_empty() || !evaluator::in_scope(attributes, quota, object) {
            continue;
        }
        if let Some(why) = evaluator::unmet(attributes, &restricted, object) {
            return Err(attributes.forbidden(format!("failed quota: {name}: {why}")));
        }
        let used = amounts(&quota["status"]["used"]);
        let unknown: Vec<&str> = restricted.iter().copied().filter(|r| !used.contains_key(*r)).collect();
        if !unknown.is_empty() {
            let why = format!("status unknown for quota: {name}, resources: {}", restricted.join(","));
            return Err(attributes.forbidden(why));
        }
        interesting.push((quota, name, hard, used));
    }
    if interesting.is_empty() {
        return Ok(Vec::new());
    }
    let usage = evaluator::usage(attributes, object);
    let negative: Vec<&str> = usage.iter().filter(|(_, q)| q.sign() < 0).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        let why = format!("quota usage is negative for resource(s): {}", negative.join(","));
        return Err(attributes.forbidden(why));
    }
    let before = attributes.old.filter(|_| attributes.operation == Operation::Update);
    let mut charges = Vec::new();
    for (quota, name, hard, used) in interesting {
        let mut delta = usage.clone();
        if let Some(old) = before.filter(|old| evaluator::in_scope(attributes, quota, old)) {
            let spent = evaluator::usage(attributes, old);
            for (resource, amount) in &mut delta {
                if let Some(spent) = spent.get(resource) {
                    amount.sub(spent);
                }
                if amount.sign() < 0 {
                    *amount = Quantity::default();
                }
            }
        }
        delta.retain(|resource, amount| !amount.is_zero() && hard.contains_key(resource));
        if delta.is_empty() {
            continue;
        }
        let mut total = used.clone();
        add(&mut total, &delta);
        let exceeded: Vec<&String> = delta.keys().filter(|r| total[*r] > hard[*r]).collect();
        if !exceeded.is_empty() {
            let show = |list: &Amounts| {
                let parts: Vec<String> =
                    exceeded.iter().map(|r| format!("{r}={}", list.get(*r).cloned().unwrap_or_default())).collect();
                parts.join(",")
            };
            return Err(attributes.forbidden(format!(
                "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                show(&delta),
                show(&used),
                show(&hard)
            )));
        }
        charges.push((&**quota, total));
    }
    Ok(charges)
}
