//! Workload: which groups of pods something consists of (upstream: `pkg/registry/scheduling/workload`).

use super::group::{self, Gates, Kind, long_name, short_name};
use crate::registry::declarative::Field;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList};
use coxswain_api::names;

const TEMPLATES_MAX: usize = 8;

pub struct Workloads;

impl Resource for Workloads {
    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        drop_disabled(object, None, Gates::of_process());
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, _subresource: &str) {
        drop_disabled(object, Some(old), Gates::of_process());
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        check(object, None, Gates::of_process())
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        check(object, Some(old), Gates::of_process())
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }
}

fn drop_disabled(object: &mut Value, old: Option<&Value>, gates: Gates) {
    const TEMPLATES: &str = "/spec/podGroupTemplates";
    let before = old.and_then(|old| old.pointer(TEMPLATES)).and_then(Value::as_array);
    let templates = object.pointer_mut(TEMPLATES).and_then(Value::as_array_mut);
    for (i, template) in templates.into_iter().flatten().enumerate() {
        group::drop_disabled(template, before.and_then(|list| list.get(i)), gates);
    }
}

fn check(object: &Value, old: Option<&Value>, gates: Gates) -> ErrorList {
    let mut errors = ErrorList::new();
    let Some(spec) = Field::root(object, old).changed_child("spec") else { return errors };
    if let Some(controller) = spec.changed_child("controllerRef")
        && controller.immutable(&mut errors)
        && controller.exists()
    {
        let group = controller.child("apiGroup");
        if !group.view().is_empty() {
            group.optional_text(long_name, &mut errors);
        }
        for field in ["kind", "name"] {
            controller.child(field).required_text(|text| names::path_segment(text, false), &mut errors);
        }
    }
    let Some(templates) = spec.changed_child("podGroupTemplates") else { return errors };
    let may_change = templates.immutable(&mut errors);
    let is_short = templates.max_items(TEMPLATES_MAX, &mut errors);
    if templates.view().is_empty() {
        errors.push(Error::required(templates.view().path(), ""));
    } else if may_change && is_short {
        templates.unique("name", "io.k8s.api.scheduling.v1alpha2.PodGroupTemplate", &mut errors);
        for template in templates.items(Some("name")) {
            template.child("name").required_text(short_name, &mut errors);
            group::check(&template, Kind::Template, gates, &mut errors);
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    const OPEN: Gates = Gates { topology: true, claims: true, preemption: true };

    fn workload(template: Value) -> Value {
        json!({"spec": {"podGroupTemplates": [template]}})
    }

    #[test]
    fn templates_follow_the_rules_of_their_gates() {
        let good = json!({"name": "a", "schedulingPolicy": {"basic": {}}});
        let with = |field: &str, value: Value| {
            let mut template = good.clone();
            template[field] = value;
            workload(template)
        };
        for (object, gates, wrong) in [
            (workload(good.clone()), OPEN, &[][..]),
            (json!({"spec": {}}), OPEN, &["spec.podGroupTemplates: Required value"]),
            (
                with("schedulingPolicy", json!({})),
                OPEN,
                &[
                    "spec.podGroupTemplates[0].schedulingPolicy: Invalid value: \"\": must specify one of: `basic`, `gang`",
                ],
            ),
            (
                with("schedulingPolicy", json!({"gang": {"minCount": -1}})),
                OPEN,
                &[
                    "spec.podGroupTemplates[0].schedulingPolicy.gang.minCount: Invalid value: -1: must be greater than or equal to 1",
                ],
            ),
            (with("priority", json!(3)), Gates::default(), &["spec.podGroupTemplates[0].priority: Forbidden"]),
            (
                with("disruptionMode", json!("All")),
                OPEN,
                &[
                    "spec.podGroupTemplates[0].disruptionMode: Unsupported value: \"All\": supported values: \"Pod\", \"PodGroup\"",
                ],
            ),
        ] {
            let errors: Vec<String> = check(&object, None, gates).iter().map(ToString::to_string).collect();
            assert_eq!(errors, wrong, "{object}");
        }
    }

    #[test]
    fn what_needs_a_gate_stays_only_where_it_was() {
        let template = json!({"name": "a", "priority": 3, "disruptionMode": "Pod"});
        let mut object = workload(template.clone());
        drop_disabled(&mut object, None, Gates::default());
        assert_eq!(object, workload(json!({"name": "a"})));
        let mut object = workload(template.clone());
        drop_disabled(&mut object, Some(&workload(json!({"priority": 1}))), Gates::default());
        assert_eq!(object, workload(json!({"name": "a", "priority": 3})));
    }
}
