//! `flowcontrol.apiserver.k8s.io` (upstream: `pkg/registry/flowcontrol`, `pkg/apis/flowcontrol`).

pub mod bootstrap;
mod validation;

use super::metadata;
use super::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::ErrorList;
use coxswain_api::{Value, json};

pub struct FlowSchemas;

impl Resource for FlowSchemas {
    fn set_defaults(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
        if spec.get("matchingPrecedence").and_then(Value::as_i64).unwrap_or(0) == 0 {
            spec.insert("matchingPrecedence".into(), 1000.into());
        }
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validation::flow_schema(object)
    }

    fn validate_update(&self, ctx: &Context, object: &Value, _old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" { validation::status(object) } else { self.validate(ctx, object) }
    }

    fn reset_for_status(&self, object: &mut Value, old: &Value) {
        metadata::reset_for_status(object, old);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        (subresource == "status").then_some(&["spec", "metadata"])
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: false, whole: subresource.is_empty(), whole_first: false }
    }
}

pub struct PriorityLevelConfigurations;

impl Resource for PriorityLevelConfigurations {
    fn set_defaults(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
        let default = |part: &mut Value, field: &str, value: i64| {
            if part.get(field).is_none_or(Value::is_null) {
                part[field] = value.into();
            }
        };
        if let Some(exempt) = spec.get_mut("exempt").filter(|e| e.is_object()) {
            default(exempt, "nominalConcurrencyShares", 0);
            default(exempt, "lendablePercent", 0);
        }
        if let Some(limited) = spec.get_mut("limited").filter(|l| l.is_object()) {
            default(limited, "nominalConcurrencyShares", 30);
            default(limited, "lendablePercent", 0);
            if let Some(queuing) = limited.pointer_mut("/limitResponse/queuing").filter(|q| q.is_object()) {
                for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                    if queuing.get(field).and_then(Value::as_i64).unwrap_or(0) == 0 {
                        queuing[field] = value.into();
                    }
                }
            }
        }
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        object["status"] = json!({});
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validation::priority_level(object)
    }

    fn validate_update(&self, ctx: &Context, object: &Value, _old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" { validation::status(object) } else { self.validate(ctx, object) }
    }

    fn reset_for_status(&self, object: &mut Value, old: &Value) {
        metadata::reset_for_status(object, old);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        (subresource == "status").then_some(&["spec", "metadata"])
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: false, whole: subresource.is_empty(), whole_first: false }
    }
}
