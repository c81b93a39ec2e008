//! `pods/binding`: the scheduler gives a pod its node (upstream: `BindingREST` of `pkg/registry/core/pod/storage`).

use super::{is_dry_run, set_condition, success};
use crate::admission::Operation;
use crate::registry::metadata;
use crate::registry::pipeline::{Call, Pipeline};
use crate::registry::resource::Virtual;
use crate::registry::update::shown_key;
use async_trait::async_trait;
use coxswain_api::field::{Error, View, go_quote};
use coxswain_api::{Status, Value, json};

pub(super) struct Bindings;

#[async_trait]
impl Virtual for Bindings {
    async fn create(&self, pipeline: &Pipeline, call: &Call, name: &str, mut binding: Value) -> Result<Value, Status> {
        if metadata::text(&binding, "name") != name {
            return Err(Status::bad_request("name in URL does not match name in Binding object"));
        }
        let errors: Vec<Error> = validate(&binding);
        if !errors.is_empty() {
            let texts: Vec<String> = errors.iter().map(Error::to_string).collect();
            let list = if texts.len() == 1 { texts[0].clone() } else { format!("[{}]", texts.join(", ")) };
            return Err(Status::new(500, "", list));
        }
        if name.is_empty() {
            return Err(Status::bad_request("Name parameter required."));
        }
        let options = json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"});
        pipeline.validate_admission(call, Operation::Create, &options, name, Some(&mut binding), None).await?;
        let conflict = |why: &str| Status::conflict("", "pods/binding", name, why);
        let target = binding.pointer("/target/name").and_then(Value::as_str).unwrap_or_default();
        let bind = |pod: &mut Value| {
            for (field, what) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
                let (wanted, present) = (metadata::text(&binding, field), metadata::text(pod, field));
                if !wanted.is_empty() && wanted != present {
                    let key = pipeline.resources.store("", "pods").map(|store| shown_key(&store, call, name));
                    let key = key.unwrap_or_default();
                    return Err(Status::conflict(
                        "",
                        "pods",
                        name,
                        &format!(
                            "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: \
                         Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {present}"
                        ),
                    ));
                }
            }
            if metadata::is_deleting(pod) {
                return Err(conflict(&format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            let spec = View::root(pod).child("spec");
            let node = spec.child("nodeName").str();
            if !node.is_empty() {
                return Err(conflict(&format!("pod {name} is already assigned to node {}", go_quote(node))));
            }
            if !spec.child("schedulingGates").is_empty() {
                return Err(conflict(&format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            pod["spec"]["nodeName"] = target.into();
            // Where it would have liked to run is no longer of interest.
            if let Some(status) = pod["status"].as_object_mut() {
                status.remove("nominatedNodeName");
            }
            for field in ["annotations", "labels"] {
                let given = binding.pointer(&format!("/metadata/{field}")).and_then(Value::as_object);
                for (key, value) in given.into_iter().flatten() {
                    let map = metadata::of_mut(pod).entry(field).or_insert_with(|| json!({}));
                    if map.is_object() {
                        map[key] = value.clone();
                    }
                }
            }
            set_condition(pod, json!({"type": "PodScheduled", "status": "True"}), call.ctx.now);
            Ok(())
        };
        let dry_run = is_dry_run(call, None);
        pipeline.change_stored("", "pods", call.namespace(), name, dry_run, bind).await?;
        Ok(success())
    }
}

fn validate(binding: &Value) -> Vec<Error> {
    let target = View::root(binding).child("target");
    let (kind, name) = (target.child("kind"), target.child("name"));
    let mut errors = Vec::new();
    if !matches!(kind.str(), "" | "Node") {
        errors.push(Error::not_supported(kind.path(), kind.str(), &["Node", "<empty>"]));
    }
    if name.is_empty() {
        errors.push(Error::required(name.path(), ""));
    }
    errors
}
