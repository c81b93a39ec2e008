//! Brings a pod's status to the API, and removes the object when the pod has ended (upstream: `kubelet/status/status_manager.go`).
//!
//! One task a pod. Only the latest status counts: while a patch is under way newer ones replace each other.

use crate::kubelet::{Kubelet, PodHandle};
use crate::pod::{self, PodExt};
use crate::static_pods;
use crate::status::OWNED_CONDITIONS;
use coxswain_client::backoff::Backoff;
use coxswain_client::errors;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

pub async fn run(kubelet: Arc<Kubelet>, handle: Arc<PodHandle>) {
    let mut statuses = handle.status_changes();
    let mut deletable = handle.may_be_deleted.subscribe();
    let mut termination = handle.termination();
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    let api: Api<Pod> = Api::namespaced(kubelet.client.clone(), handle.pod().namespace());
    // A status that was published before this task began counts as news.
    statuses.mark_changed();
    loop {
        let delete = *deletable.borrow_and_update();
        let status = statuses.borrow_and_update().clone();
        if termination.borrow_and_update().removed {
            return;
        }
        let brought = if pod::is_static(&handle.pod()) {
            static_pods::show(&kubelet, &handle, &status).await
        } else {
            bring(&api, &handle, &status, delete).await
        };
        match brought {
            Ok(()) => backoff.reset(),
            // The object is gone, or another one has its name: there is nobody to tell. The informer will say so soon.
            Err(e) if errors::is_not_found(&e) || errors::is_conflict(&e) => backoff.reset(),
            Err(error) => {
                tracing::debug!(pod = handle.pod().name(), %error, "a status could not be brought to the API server");
                tokio::time::sleep(backoff.step()).await;
                continue;
            }
        }
        tokio::select! {
            result = statuses.changed() => if result.is_err() { return },
            result = deletable.changed() => if result.is_err() { return },
            result = termination.changed() => if result.is_err() { return },
        }
    }
}

async fn bring(api: &Api<Pod>, handle: &PodHandle, status: &PodStatus, delete: bool) -> Result<(), kube::Error> {
    let pod = handle.pod();
    if status.phase.is_some()
        && let Some(patch) = patch(pod.uid(), pod.status(), status)
    {
        let answer = api.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(patch)).await?;
        handle.update(Arc::new(answer));
    }
    if delete && handle.pod().metadata.deletion_timestamp.is_some() {
        let uid = Some(pod.uid().to_string());
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..Default::default()
        };
        api.delete(pod.name(), &parameters).await?;
    }
    Ok(())
}

/// The strategic merge patch from one status to another; `None` if they are the same.
pub(crate) fn patch(uid: &str, from: &PodStatus, to: &PodStatus) -> Option<Value> {
    let (Ok(Value::Object(from)), Ok(Value::Object(mut to))) = (serde_json::to_value(from), serde_json::to_value(to))
    else {
        return None;
    };
    let conditions = conditions(from.get("conditions"), to.remove("conditions"));
    let mut changes = Map::new();
    for (name, value) in &to {
        if from.get(name) == Some(value) {
            continue;
        }
        let replace = matches!(name.as_str(), "podIPs" | "hostIPs") && from.contains_key(name);
        // Lists that are merged by key would otherwise keep the addresses of before.
        let value = match value {
            Value::Array(items) if replace => {
                Value::Array(std::iter::once(json!({"$patch": "replace"})).chain(items.iter().cloned()).collect())
            }
            Value::Object(_) if from.contains_key(name) => with_replace(value),
            other => other.clone(),
        };
        changes.insert(name.clone(), value);
    }
    for name in from.keys() {
        // What others own in a status is not ours to take away.
        let foreign = matches!(
            name.as_str(),
            "conditions"
                | "nominatedNodeName"
                | "resourceClaimStatuses"
                | "extendedResourceClaimStatus"
                | "nodeAllocatableResourceClaimStatuses"
        );
        if !to.contains_key(name) && !foreign {
            changes.insert(name.clone(), Value::Null);
        }
    }
    if !conditions.is_empty() {
        changes.insert("conditions".into(), Value::Array(conditions));
    }
    (!changes.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changes}))
}

fn with_replace(value: &Value) -> Value {
    let mut value = value.clone();
    if let Value::Object(map) = &mut value {
        map.insert("$patch".into(), json!("replace"));
    }
    value
}

/// Conditions are merged by type: only those that changed are sent, and those of ours that no longer hold are deleted.
fn conditions(from: Option<&Value>, to: Option<Value>) -> Vec<Value> {
    let list = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    let (from, to) = (list(from), list(to.as_ref()));
    let same_type = |a: &Value, b: &Value| a["type"] == b["type"];
    let mut changes = Vec::new();
    for condition in &to {
        let before = from.iter().find(|c| same_type(c, condition));
        if before == Some(condition) {
            continue;
        }
        let mut change = condition.clone();
        for name in before.and_then(Value::as_object).into_iter().flat_map(Map::keys) {
            if change.get(name).is_none() {
                change[name.as_str()] = Value::Null;
            }
        }
        changes.push(change);
    }
    for condition in &from {
        let ours = condition["type"].as_str().is_some_and(|t| OWNED_CONDITIONS.contains(&t));
        if ours && !to.iter().any(|c| same_type(c, condition)) {
            changes.push(json!({"$patch": "delete", "type": condition["type"]}));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_hold_only_what_changed() {
        let status = |v: Value| -> PodStatus { serde_json::from_value(v).unwrap() };
        let from = status(json!({"phase": "Pending", "reason": "x", "nominatedNodeName": "n", "podIPs": [{"ip": "1"}],
            "conditions": [{"type": "Ready", "status": "False", "message": "m"}, {"type": "PodResizePending", "status": "True"}, {"type": "a.com/b", "status": "True"}]}));
        let to = status(json!({"phase": "Running", "podIPs": [{"ip": "2"}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "a.com/b", "status": "True"}]}));
        assert_eq!(
            patch("u", &from, &to).unwrap(),
            json!({"metadata": {"uid": "u"}, "status": {
            "phase": "Running", "reason": null, "podIPs": [{"$patch": "replace"}, {"ip": "2"}],
            "conditions": [{"type": "Ready", "status": "True", "message": null}, {"$patch": "delete", "type": "PodResizePending"}]}})
        );
        assert!(patch("u", &to, &to).is_none());
    }
}
