//! `autoscaling` (upstream: `pkg/registry/autoscaling`, `pkg/apis/autoscaling`).

mod validation;

use super::gated::{self, Fields};
use super::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::ErrorList;
use coxswain_api::{Map, Value, json};

/// HorizontalPodAutoscaler. Defaults come in the version of the request, everything else in the stored one, v2.
pub struct HorizontalPodAutoscalers;

impl Resource for HorizontalPodAutoscalers {
    fn set_defaults(&self, object: &mut Value) {
        let old_version = object.get("apiVersion").and_then(Value::as_str) == Some("autoscaling/v1");
        let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
        let is_unset = |v: Option<&Value>| v.is_none_or(Value::is_null);
        if is_unset(spec.get("minReplicas")) {
            spec.insert("minReplicas".into(), 1.into());
        }
        if old_version {
            if is_unset(spec.get("targetCPUUtilizationPercentage")) {
                spec.insert("targetCPUUtilizationPercentage".into(), 80.into());
            }
            return;
        }
        if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            let cpu = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}});
            spec.insert("metrics".into(), json!([{"type": "Resource", "resource": cpu}]));
        }
        if let Some(behavior) = spec.get_mut("behavior").and_then(Value::as_object_mut) {
            let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
            let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
            let up = json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [pods, percent]});
            let down = json!({"selectPolicy": "Max", "policies": [percent]});
            fill(behavior, "scaleUp", up);
            fill(behavior, "scaleDown", down);
        }
    }

    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec", gated::AUTOSCALER_SPEC)]
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        object["status"] = json!({"desiredReplicas": 0, "currentMetrics": null});
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validation::validate(object, None)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" {
            validation::validate_status(object)
        } else {
            validation::validate(object, Some(old))
        }
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }
}

/// Sets what the rules of one direction do not say.
fn fill(behavior: &mut Map<String, Value>, direction: &str, defaults: Value) {
    let rules = behavior.entry(direction).or_insert_with(|| json!({}));
    if !rules.is_object() {
        *rules = json!({});
    }
    for (field, value) in defaults.as_object().into_iter().flatten() {
        if rules.get(field).is_none_or(Value::is_null) {
            rules[field] = value.clone();
        }
    }
}
