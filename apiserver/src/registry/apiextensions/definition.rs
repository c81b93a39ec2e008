//! The CustomResourceDefinition itself: defaults, validation, deletion (upstream: `pkg/registry/customresourcedefinition` and
//! `pkg/apis/apiextensions/validation`).

mod names;
mod printed;
mod schema;
mod validation;

use crate::registry::metadata;
use crate::registry::resource::{DeleteRule, Resource};
use crate::request::Context;
use coxswain_api::field::ErrorList;
use coxswain_api::{Map, Value, json, structural, time};

/// Keeps a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

pub struct CustomResourceDefinitions;

fn child<'a>(object: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    let map = object.as_object_mut()?;
    let slot = map.entry(name).or_insert_with(|| json!({}));
    if slot.is_null() {
        *slot = json!({});
    }
    slot.as_object_mut()
}

/// Sets or replaces a condition, with the time at which its status changed.
pub fn set_condition(status: &mut Value, kind: &str, state: &str, reason: &str, message: &str, now: &str) {
    let Some(status) = status.as_object_mut() else { return };
    let list = status.entry("conditions").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    let old = list.iter_mut().find(|c| c["type"] == kind);
    let time = match &old {
        Some(old) if old["status"] == state => old["lastTransitionTime"].clone(),
        _ => now.into(),
    };
    let made = json!({"type": kind, "status": state, "lastTransitionTime": time, "reason": reason, "message": message});
    match old {
        Some(old) => *old = made,
        None => list.push(made),
    }
}

pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|c| c["type"] == kind)
}

pub fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| c["status"] == "True")
}

/// The version that objects are stored in.
pub fn storage_version(object: &Value) -> Option<&str> {
    let versions = object.pointer("/spec/versions")?.as_array()?;
    versions.iter().find(|v| v["storage"] == true)?.get("name")?.as_str()
}

fn remember_storage_version(object: &mut Value) {
    let Some(version) = storage_version(object).map(str::to_owned) else { return };
    let Some(status) = child(object, "status") else { return };
    let stored = status.entry("storedVersions").or_insert_with(|| json!([]));
    if !stored.is_array() {
        *stored = json!([]);
    }
    if let Some(stored) = stored.as_array_mut()
        && !stored.iter().any(|v| *v == *version)
    {
        stored.push(version.into());
    }
}

impl Resource for CustomResourceDefinitions {
    fn set_defaults(&self, object: &mut Value) {
        let stored = object.pointer("/status/storedVersions").and_then(Value::as_array);
        if stored.is_none_or(Vec::is_empty) {
            remember_storage_version(object);
        }
        let Some(spec) = child(object, "spec") else { return };
        if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
            let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
            let empty = |names: &Map<String, Value>, field: &str| {
                names.get(field).and_then(Value::as_str).unwrap_or_default().is_empty()
            };
            if empty(names, "singular") && !kind.is_empty() {
                names.insert("singular".into(), kind.to_lowercase().into());
            }
            if empty(names, "listKind") && !kind.is_empty() {
                names.insert("listKind".into(), format!("{kind}List").into());
            }
        }
        let conversion = spec.entry("conversion").or_insert(Value::Null);
        if conversion.is_null() {
            *conversion = json!({"strategy": "None"});
        }
        // Of one that says nothing, nothing is kept.
        let says_nothing = |webhook: &Value| {
            let empty = |found: Option<&Value>| found.and_then(Value::as_array).is_none_or(Vec::is_empty);
            webhook.get("clientConfig").is_none_or(Value::is_null) && empty(webhook.get("conversionReviewVersions"))
        };
        if let Some(conversion) = conversion.as_object_mut()
            && conversion.get("webhook").is_some_and(says_nothing)
        {
            conversion.remove("webhook");
        }
        // A webhook that is a service is asked at the usual port.
        if let Some(service) = conversion.pointer_mut("/webhook/clientConfig/service").and_then(Value::as_object_mut)
            && service.get("port").is_none_or(Value::is_null)
        {
            service.insert("port".into(), 443.into());
        }
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            let status = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []});
            map.insert("status".into(), status);
        }
        remember_storage_version(object);
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, _old: &Value, subresource: &str) {
        if subresource.is_empty() {
            remember_storage_version(object);
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    /// Formats that nothing is known of, as far as they are new.
    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        let known = old.map(unrecognized_formats).unwrap_or_default();
        let new = unrecognized_formats(object).into_iter().filter(|format| !known.contains(format));
        new.map(|format| format!("unrecognized format {}", coxswain_api::field::go_quote(&format))).collect()
    }

    fn delete_rule(&self, ctx: &Context, object: &mut Value) -> DeleteRule {
        if metadata::is_deleting(object) {
            return DeleteRule::Usual;
        }
        let now = time::format_seconds(ctx.now);
        metadata::set(object, "deletionTimestamp", now.clone());
        let mut finalizers = metadata::finalizers(object);
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.into());
            metadata::set(object, "finalizers", finalizers);
        }
        if let Some(status) = object.get_mut("status") {
            let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
            set_condition(status, "Terminating", "True", "InstanceDeletionPending", message, &now);
        }
        DeleteRule::Mark
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validation::check(object)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        match subresource {
            "status" => validation::check_status(object),
            _ => validation::check_update(object, old),
        }
    }
}

fn unrecognized_formats(object: &Value) -> Vec<String> {
    let mut formats = Vec::new();
    for version in object.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten() {
        if let Some(schema) = version.pointer("/schema/openAPIV3Schema") {
            structural::unrecognized_formats(schema, &mut formats);
        }
    }
    let mut seen = std::collections::HashSet::new();
    formats.retain(|format| seen.insert(format.clone()));
    formats
}
