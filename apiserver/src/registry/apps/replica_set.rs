//! ReplicaSet (upstream: `pkg/registry/apps/replicaset`, `ValidateReplicaSet`).

use crate::registry::core::pod_spec::Options;
use crate::registry::gated::{self, Fields};
use crate::registry::resource::Resource;
use crate::registry::workload;
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{ErrorList, View};

pub struct ReplicaSets;

impl Resource for ReplicaSets {
    fn set_defaults(&self, object: &mut Value) {
        let spec = workload::map_at(object, "spec");
        workload::default_absent(spec, "replicas", 1);
        workload::default_template(spec);
    }

    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec/template/spec", gated::POD_SPEC), ("/status", gated::REPLICAS_STATUS)]
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        validate_spec(&View::root(object).child("spec"), &workload::options_of(None), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        let new = View::root(object);
        if subresource == "status" {
            let status = new.child("status");
            workload::replica_status(&status, &mut errors);
            workload::nonnegative(&status, &["terminatingReplicas"], &mut errors);
        } else {
            validate_spec(&new.child("spec"), &workload::options_of(Some(old)), &mut errors);
            workload::selector_immutable(&new, &View::root(old), &mut errors);
        }
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        workload::warnings(object, old, true)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.replicas", View::root(object).child("status").child("replicas").i64().to_string())]
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        // The field can be read by selectors but has no label that a request could name.
        &[]
    }
}

fn validate_spec(spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    workload::nonnegative(spec, &["replicas", "minReadySeconds"], errors);
    workload::selector_and_template(spec, options, errors);
}
