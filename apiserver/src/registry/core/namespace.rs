//! Namespace (upstream: `pkg/registry/core/namespace`).
//!
//! A namespace that is deleted stays, as Terminating, until the namespace controller has emptied it and takes the last of
//! `spec.finalizers` through the `finalize` subresource.

use crate::registry::metadata;
use crate::registry::resource::{DeleteRule, MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Map, Value, json, names, time};

/// The label by which selectors find a namespace by name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub struct Namespaces;

impl Resource for Namespaces {
    fn set_defaults(&self, object: &mut Value) {
        let status = child_mut(object, "status");
        if status.get("phase").and_then(Value::as_str).unwrap_or_default().is_empty() {
            status.insert("phase".into(), "Active".into());
        }
        set_name_label(object);
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        // A generated name was not known when defaults were set.
        set_name_label(object);
        let spec = child_mut(object, "spec");
        let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
        if !finalizers.is_array() {
            *finalizers = json!([]);
        }
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|f| f == "kubernetes")
        {
            list.push("kubernetes".into());
        }
        object["status"] = json!({"phase": "Active"});
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, subresource: &str) {
        match subresource {
            // Finalizers are changed through `finalize` only.
            "" => {
                let finalizers = old.pointer("/spec/finalizers").cloned();
                let spec = child_mut(object, "spec");
                match finalizers {
                    Some(list) => spec.insert("finalizers".into(), list),
                    None => spec.remove("finalizers"),
                };
            }
            "finalize" => {
                let status = old.get("status").cloned().unwrap_or_else(|| json!({}));
                object["status"] = status;
            }
            _ => {}
        }
        set_name_label(object);
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let finalizers = View::root(object).child("spec").child("finalizers");
        let mut errors = ErrorList::new();
        for finalizer in finalizers.items() {
            check_finalizer(finalizer.str(), finalizers.path(), &mut errors);
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, _old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        match subresource {
            "status" => {
                let phase = View::root(object).child("status").child("phase");
                let path = Path::new("status").child("Phase");
                let deleting = metadata::is_deleting(object);
                if !deleting && phase.str() != "Active" {
                    let why = "may only be 'Active' if `deletionTimestamp` is empty";
                    errors.push(Error::invalid(&path, phase.str(), why));
                }
                if deleting && phase.str() != "Terminating" {
                    let why = "may only be 'Terminating' if `deletionTimestamp` is not empty";
                    errors.push(Error::invalid(&path, phase.str(), why));
                }
            }
            "finalize" => {
                for finalizer in View::root(object).child("spec").child("finalizers").items() {
                    check_finalizer(finalizer.str(), finalizer.path(), &mut errors);
                }
            }
            _ => {}
        }
        errors
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::dns1123_label(name, prefix)
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }

    fn delete_rule(&self, ctx: &Context, object: &mut Value) -> DeleteRule {
        if !metadata::is_deleting(object) {
            metadata::set(object, "deletionTimestamp", time::format_seconds(ctx.now));
            child_mut(object, "status").insert("phase".into(), "Terminating".into());
            return DeleteRule::Mark;
        }
        if has_finalizers(object) { DeleteRule::Wait } else { DeleteRule::Usual }
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        (subresource == "finalize").then_some(&["status"])
    }

    fn delete_during_update(&self, object: &Value) -> bool {
        !has_finalizers(object)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let phase = View::root(object).child("status").child("phase").str().to_owned();
        vec![("name", metadata::text(object, "name").to_owned()), ("status.phase", phase)]
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &["status.phase"]
    }
}

fn has_finalizers(object: &Value) -> bool {
    !View::root(object).child("spec").child("finalizers").is_empty()
}

fn set_name_label(object: &mut Value) {
    let name = metadata::text(object, "name").to_owned();
    if name.is_empty() {
        return;
    }
    let labels = metadata::of_mut(object).entry("labels").or_insert_with(|| Value::Object(Map::new()));
    if !labels.is_object() {
        *labels = Value::Object(Map::new());
    }
    labels[NAME_LABEL] = name.into();
}

fn check_finalizer(name: &str, path: &Path, errors: &mut ErrorList) {
    for why in names::qualified_name(name) {
        errors.push(Error::invalid(path, name, why));
    }
    if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
        let why = "name is neither a standard finalizer name nor is it fully qualified";
        errors.push(Error::invalid(path, name, why));
    }
}

fn child_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    let slot = &mut object[field];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("just made")
}
