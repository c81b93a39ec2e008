//! Subresources that act on an object instead of changing a part of it: `pods/binding` and `pods/eviction`.

mod binding;
mod eviction;

use super::pipeline::{Call, Pipeline, Virtuals};
use crate::store::{CommitError, Object};
use coxswain_api::{Status, Value, json};
use std::sync::Arc;

/// The creates that this module serves, as the pipeline takes them.
pub fn virtuals() -> Virtuals {
    let mut all = Virtuals::new();
    all.insert(("", "pods", "binding"), Arc::new(binding::Bindings));
    all.insert(("", "bindings", ""), Arc::new(binding::Bindings));
    all.insert(("", "pods", "eviction"), Arc::new(eviction::Evictions));
    all
}

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

impl Pipeline {
    /// Changes a stored object directly, below admission and strategy, until the change can be committed.
    /// `change` is asked again for every newer state.
    async fn change_stored(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
        dry_run: bool,
        change: impl Fn(&mut Value) -> Result<(), Status>,
    ) -> Result<Arc<Object>, Status> {
        let store = self.resources.store(group, resource).ok_or_else(Status::page_not_found)?;
        let mut current = store.get(namespace, name).await?;
        for _ in 0..super::pipeline::ATTEMPTS_MAX {
            let Some(object) = current else { return Err(Status::not_found(group, resource, name)) };
            let mut tree = object.to_tree();
            change(&mut tree)?;
            coxswain_api::codec::canonicalize(&mut tree, &store.hub.schema);
            if dry_run {
                return Ok(object);
            }
            match store.update(&object, &tree, store.strategy.ttl(&tree)).await {
                Ok(stored) => {
                    store.remember(&stored, tree);
                    return Ok(stored);
                }
                Err(CommitError::Conflict(now)) => current = now,
                Err(CommitError::Refused(status)) => return Err(status),
            }
        }
        Err(Status::modified(group, resource, name))
    }
}

/// Sets a condition of a pod; its transition time moves if its status does (upstream: `UpdatePodCondition`).
fn set_condition(object: &mut Value, mut condition: Value, now: jiff::Timestamp) {
    let status = &mut object["status"];
    if !status.is_object() {
        *status = json!({});
    }
    let list = &mut status["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    condition["lastTransitionTime"] = coxswain_api::time::format_seconds(now).into();
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(present) => {
            if present["status"] == condition["status"] {
                condition["lastTransitionTime"] = present["lastTransitionTime"].clone();
            }
            *present = condition;
        }
        None => list.push(condition),
    }
}

/// Whether the call or the given options ask for a dry run.
fn is_dry_run(call: &Call, delete_options: Option<&Value>) -> bool {
    let in_options = delete_options.and_then(|o| o.get("dryRun")).and_then(Value::as_array);
    call.query.first("dryRun").is_some() || in_options.is_some_and(|l| !l.is_empty())
}
