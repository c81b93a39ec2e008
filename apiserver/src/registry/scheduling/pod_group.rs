//! PodGroup: pods that are scheduled by a policy of their own (upstream: `pkg/registry/scheduling/podgroup`).

use super::group::{self, Gates, Kind, long_name, short_name};
use crate::registry::declarative::Field;
use crate::registry::defaults::set_default;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::registry::{checks, metadata};
use crate::request::Context;
use coxswain_api::field::{ErrorList, View};
use coxswain_api::{Value, json};

pub struct PodGroups;

impl Resource for PodGroups {
    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec") {
            group::drop_disabled(spec, None, Gates::of_process());
        }
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, subresource: &str) {
        let gates = Gates::of_process();
        if subresource.is_empty() {
            if let Some(spec) = object.get_mut("spec") {
                group::drop_disabled(spec, old.get("spec"), gates);
            }
        } else if !gates.claims
            && View::root(old).child("spec").child("resourceClaims").is_empty()
            && let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
        {
            status.remove("resourceClaimStatuses");
        }
    }

    /// Where its gate is shut, the mode is dropped, and the default is what is read of it.
    fn canonicalize(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec") {
            set_default(spec, "disruptionMode", || json!("Pod"));
        }
    }

    fn reset_for_status(&self, object: &mut Value, old: &Value) {
        metadata::reset_for_status(object, old);
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        check(object, None, Gates::of_process(), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        if subresource == "status" {
            let root = View::root(object);
            let status = root.child("status");
            checks::conditions(&status.child("conditions"), &mut errors);
            for claim in status.child("resourceClaimStatuses").items() {
                group::names_a_claim(&claim, &root.child("spec"), &mut errors);
            }
        }
        check(object, Some(old), Gates::of_process(), &mut errors);
        errors
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }

    /// Upstream lets writers of the object own its status.
    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        Some(if subresource.is_empty() { &[] } else { &["metadata", "spec"] })
    }
}

fn check(object: &Value, old: Option<&Value>, gates: Gates, errors: &mut ErrorList) {
    let root = Field::root(object, old);
    if let Some(spec) = root.changed_child("spec") {
        if let Some(template) = spec.changed_child("podGroupTemplateRef")
            && template.immutable(errors)
            && template.exists()
        {
            template.union(&["workload"], errors);
            if let Some(workload) = template.changed_child("workload").filter(Field::exists) {
                workload.child("workloadName").required_text(long_name, errors);
                workload.child("podGroupTemplateName").required_text(short_name, errors);
            }
        }
        group::check(&spec, Kind::Group, gates, errors);
    }
    if let Some(status) = root.changed_child("status")
        && let Some(statuses) = status.changed_child("resourceClaimStatuses")
    {
        group::check_claim_statuses(&statuses, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_does_not_change_after_it_is_made() {
        let open = Gates { topology: true, claims: true, preemption: true };
        let errors_of = |object: &Value, old: Option<&Value>| -> Vec<String> {
            let mut errors = ErrorList::new();
            check(object, old, open, &mut errors);
            errors.iter().map(ToString::to_string).collect()
        };
        let old = json!({"spec": {"schedulingPolicy": {"gang": {"minCount": 2}}, "disruptionMode": "Pod"}});
        assert_eq!(errors_of(&old, None), [""; 0]);
        let new = json!({"spec": {"schedulingPolicy": {"gang": {"minCount": 3}}, "podGroupTemplateRef": {}}});
        assert_eq!(
            errors_of(&new, Some(&old)),
            [
                "spec.podGroupTemplateRef: Invalid value: null: field is immutable",
                "spec.schedulingPolicy: Invalid value: null: field is immutable",
                "spec.disruptionMode: Required value",
                "spec.disruptionMode: Invalid value: null: field is immutable",
            ]
        );
        assert_eq!(
            errors_of(&new, None),
            [
                "spec.podGroupTemplateRef: Invalid value: \"\": must specify one of: `workload`",
                "spec.disruptionMode: Required value",
            ]
        );
    }
}
