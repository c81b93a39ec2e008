//! DeviceTaintRule: a taint that an administrator puts on devices (upstream: `pkg/registry/resource/devicetaintrule`).

use super::names::pool_name;
use super::validation::TAINT_EFFECTS;
use crate::registry::core::pod_spec::csi_driver_name;
use crate::registry::defaults::set_default;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::registry::{checks, metadata};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, json, names, time};

const CONDITIONS_MAX: i64 = 8;

pub struct DeviceTaintRules;

impl Resource for DeviceTaintRules {
    fn set_defaults(&self, object: &mut Value) {
        if let Some(taint) = object.pointer_mut("/spec/taint") {
            set_default(taint, "timeAdded", || json!(time::format_seconds(jiff::Timestamp::now())));
        }
    }

    /// The time is that of the effect: a writer who changes the one and leaves the other gets the time of the change.
    fn prepare_for_update(&self, ctx: &Context, object: &mut Value, old: &Value, subresource: &str) {
        let [new, before] = [&*object, old].map(|rule| View::root(rule).child("spec").child("taint"));
        let is_same = |field: &'static str| new.child(field).str() == before.child(field).str();
        if subresource.is_empty()
            && !is_same("effect")
            && is_same("timeAdded")
            && let Some(taint) = object.pointer_mut("/spec/taint").and_then(Value::as_object_mut)
        {
            taint.insert("timeAdded".into(), json!(time::format_seconds(ctx.now)));
        }
    }

    fn reset_for_status(&self, object: &mut Value, old: &Value) {
        metadata::reset_for_status(object, old);
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        check_spec(object, None)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        if subresource.is_empty() {
            return check_spec(object, Some(old));
        }
        let mut errors = ErrorList::new();
        let conditions = View::root(object).child("status").child("conditions");
        checks::conditions(&conditions, &mut errors);
        if conditions.len() as i64 > CONDITIONS_MAX {
            errors.push(Error::too_many(conditions.path(), conditions.len(), CONDITIONS_MAX));
        }
        errors
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        Some(if subresource.is_empty() { &["status"] } else { &["metadata", "spec"] })
    }
}

fn check_spec(object: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = View::root(object).child("spec");
    let selector = spec.child("deviceSelector");
    let [driver, pool, device] = ["driver", "pool", "device"].map(|field| selector.child(field));
    if driver.exists() {
        csi_driver_name(&driver, &mut errors);
    }
    if pool.exists() {
        pool_name(&pool, &mut errors);
    }
    if device.exists() {
        checks::dns_label(&device, &mut errors);
    }
    let taint = spec.child("taint");
    let [key, value, effect] = ["key", "value", "effect"].map(|field| taint.child(field));
    checks::qualified_name(&key, &mut errors);
    checks::all(&value, names::label_value(value.str()), &mut errors);
    let before = old.map(|old| View::root(old).child("spec").child("taint").child("effect").str().to_owned());
    if before.as_deref() != Some(effect.str()) {
        checks::one_of(&effect, &TAINT_EFFECTS, &mut errors);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_effect_stays_if_it_was_there() {
        let rule = |effect: &str| json!({"spec": {"taint": {"key": "a.b/c", "effect": effect}}});
        assert!(check_spec(&rule("None"), None).is_empty());
        assert_eq!(
            check_spec(&rule("Other"), None)[0].to_string(),
            "spec.taint.effect: Unsupported value: \"Other\": supported values: \"NoExecute\", \"NoSchedule\", \"None\""
        );
        assert!(check_spec(&rule("Other"), Some(&rule("Other"))).is_empty());
        let wrong = json!({"spec": {"deviceSelector": {"driver": "", "pool": "a//b", "device": "A"},
            "taint": {"key": "", "value": "-", "effect": "None"}}});
        let fields: Vec<String> = check_spec(&wrong, None).into_iter().map(|e| e.field).collect();
        let expected = [
            "deviceSelector.driver",
            "deviceSelector.pool",
            "deviceSelector.device",
            "taint.key",
            "taint.key",
            "taint.value",
        ];
        assert_eq!(fields, expected.map(|field| format!("spec.{field}")));
    }
}
