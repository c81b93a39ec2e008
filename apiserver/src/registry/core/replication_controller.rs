//! ReplicationController (upstream: `pkg/registry/core/replicationcontroller`, `ValidateReplicationController`).

use super::pod_spec;
use crate::registry::gated::{self, Fields};
use crate::registry::resource::{MetadataChecks, Propagation, Resource};
use crate::registry::{checks, metadata, workload};
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::selector::Selector;

pub struct ReplicationControllers;

impl Resource for ReplicationControllers {
    fn set_defaults(&self, object: &mut Value) {
        let spec = workload::map_at(object, "spec");
        workload::default_absent(spec, "replicas", 1);
        if !spec.get("template").is_some_and(Value::is_object) {
            return;
        }
        workload::default_template(spec);
        // Selector and labels are those of the pods, if not given.
        let labels = spec.pointer("/template/metadata/labels").cloned();
        let Some(labels) = labels.filter(|l| l.as_object().is_some_and(|l| !l.is_empty())) else { return };
        let empty = |v: Option<&Value>| v.and_then(Value::as_object).is_none_or(|m| m.is_empty());
        if empty(spec.get("selector")) {
            spec["selector"] = labels.clone();
        }
        let metadata = workload::map_at(object, "metadata");
        if empty(metadata.get("labels")) {
            metadata["labels"] = labels;
        }
    }

    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec/template/spec", gated::POD_SPEC)]
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validate_spec(object, None)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" {
            let mut errors = ErrorList::new();
            workload::replica_status(&View::root(object).child("status"), &mut errors);
            return errors;
        }
        // Everything is checked as of a new object, and then as a change.
        let spec = validate_spec(object, Some(old));
        let mut errors = metadata::validate_for(self, object, true);
        errors.extend(spec.iter().cloned());
        errors.extend(metadata::validate_update(object, old));
        errors.extend(spec);
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        workload::warnings(object, old, true)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn default_propagation(&self, _object: &Value) -> Propagation {
        Propagation::Orphan
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.replicas", View::root(object).child("status").child("replicas").i64().to_string())]
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: subresource == "status", whole: false, whole_first: false }
    }
}

fn validate_spec(object: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = View::root(object).child("spec");
    checks::nonnegative(&spec.child("minReadySeconds"), &mut errors);
    let (selector, template) = (spec.child("selector"), spec.child("template"));
    if selector.is_empty() {
        errors.push(Error::required(selector.path(), ""));
    }
    checks::nonnegative(&spec.child("replicas"), &mut errors);
    if !template.exists() {
        errors.push(Error::required(template.path(), ""));
        return errors;
    }
    workload::matches_template(&Selector::from_map(selector.value()), &template, &mut errors);
    pod_spec::validate_template(&template, &workload::options_of(old), &mut errors);
    workload::runs_forever(&template, "ReplicationController", &mut errors);
    errors
}
