//! `metadata`: what the server owns of it, and what may be wrong with it (upstream: `registry/rest/meta.go`,
//! `apimachinery/pkg/api/validation/objectmeta.go`).

use super::options::validate_field_manager;
use super::resource::Resource;
use crate::request::Warnings;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Map, Status, Value, codec, names, schema, time};

/// The metadata of an object, made if there is none.
pub fn of_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let meta =
        object.as_object_mut().expect("just made").entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !meta.is_object() {
        *meta = Value::Object(Map::new());
    }
    meta.as_object_mut().expect("just made")
}

/// A text of the metadata, `""` if absent.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

pub fn number(object: &Value, field: &str) -> Option<i64> {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_i64)
}

pub fn finalizers(object: &Value) -> Vec<String> {
    let list = object.get("metadata").and_then(|m| m.get("finalizers")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|f| f.as_str().map(str::to_owned)).collect()
}

pub fn is_deleting(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

pub fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    of_mut(object).insert(field.into(), value.into());
}

pub fn remove(object: &mut Value, field: &str) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove(field);
    }
}

/// Forgets what a creator may not say (upstream: `WipeObjectMetaSystemFields`).
pub fn wipe_system_fields(object: &mut Value) {
    let meta = of_mut(object);
    for field in ["creationTimestamp", "uid", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        meta.remove(field);
    }
}

/// Gives a new object its identity (upstream: `FillObjectMetaSystemFields`).
pub fn fill_system_fields(object: &mut Value, now: jiff::Timestamp) {
    let meta = of_mut(object);
    meta.insert("creationTimestamp".into(), time::format_seconds(now).into());
    meta.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
}

/// The namespace of the object becomes that of the request, or the request is refused.
pub fn ensure_namespace(object: &mut Value, namespace: &str) -> Result<(), Status> {
    let own = text(object, "namespace");
    if own == namespace {
        return Ok(());
    }
    if namespace.is_empty() {
        remove(object, "namespace");
        return Ok(());
    }
    if own.is_empty() {
        set(object, "namespace", namespace);
        return Ok(());
    }
    Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"))
}

/// A write of the status leaves the rest of the metadata alone (upstream: `ResetObjectMetaForStatus`).
pub fn reset_for_status(object: &mut Value, old: &Value) {
    let meta = of_mut(object);
    for field in
        ["deletionTimestamp", "generation", "selfLink", "labels", "annotations", "finalizers", "ownerReferences"]
    {
        match old.get("metadata").and_then(|m| m.get(field)) {
            Some(value) => meta.insert(field.into(), value.clone()),
            None => meta.remove(field),
        };
    }
}

/// Drops owner references that are there twice, with a warning.
pub fn dedup_owner_references(object: &mut Value, warnings: &Warnings, after_admission: bool) {
    let list = object.get_mut("metadata").and_then(|m| m.get_mut("ownerReferences")).and_then(Value::as_array_mut);
    let Some(list) = list.filter(|l| l.len() > 1) else { return };
    let mut kept: Vec<Value> = Vec::with_capacity(list.len());
    let mut duplicates = Vec::new();
    for reference in std::mem::take(list) {
        if kept.contains(&reference) {
            duplicates.push(reference.get("uid").and_then(Value::as_str).unwrap_or_default().to_owned());
        } else {
            kept.push(reference);
        }
    }
    *list = kept;
    if duplicates.is_empty() {
        return;
    }
    let when = if after_admission { " after mutating admission happens" } else { "" };
    warnings.add(format!(
        ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may \
         reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
        duplicates.join(", ")
    ));
}

/// What every object must satisfy (upstream: `ValidateObjectMetaAccessor`). `check_name` says what is wrong with a name.
pub fn validate(object: &Value, namespaced: bool, check_name: &dyn Fn(&str, bool) -> Vec<String>) -> ErrorList {
    let meta = View::root(object).child("metadata");
    let mut errors = ErrorList::new();
    let generate = meta.child("generateName");
    if !generate.is_empty() {
        for why in check_name(generate.str(), true) {
            errors.push(Error::invalid(generate.path(), generate.str(), why));
        }
    }
    let name = meta.child("name");
    if name.is_empty() {
        errors.push(Error::required(name.path(), "name or generateName is required"));
    } else {
        for why in check_name(name.str(), false) {
            errors.push(Error::invalid(name.path(), name.str(), why));
        }
    }
    let namespace = meta.child("namespace");
    match (namespaced, namespace.is_empty()) {
        (true, true) => errors.push(Error::required(namespace.path(), "")),
        (true, false) => {
            for why in names::dns1123_label(namespace.str(), false) {
                errors.push(Error::invalid(namespace.path(), namespace.str(), why));
            }
        }
        (false, false) => errors.push(Error::forbidden(namespace.path(), "not allowed on this type")),
        (false, true) => {}
    }
    let generation = meta.child("generation");
    if generation.i64() < 0 {
        errors.push(Error::invalid(generation.path(), generation.i64(), "must be greater than or equal to 0"));
    }
    validate_labels(&meta.child("labels"), &mut errors);
    validate_annotations(&meta.child("annotations"), &mut errors);
    validate_owner_references(&meta.child("ownerReferences"), &mut errors);
    validate_finalizers(&meta.child("finalizers"), &mut errors);
    validate_managed_fields(&meta.child("managedFields"), &mut errors);
    errors
}

/// The checks of [`validate`] as a resource makes them: with its own rule for names and, for built-in kinds, the rule that
/// a finalizer has a domain.
pub fn validate_for(resource: &dyn Resource, object: &Value, namespaced: bool) -> ErrorList {
    let check_name = |name: &str, prefix: bool| resource.validate_name(name, prefix);
    validate_rules(object, namespaced, &check_name, resource.restricts_finalizers())
}

/// As [`validate_for`], with the rules given.
pub fn validate_rules(
    object: &Value,
    namespaced: bool,
    check_name: &dyn Fn(&str, bool) -> Vec<String>,
    restricts_finalizers: bool,
) -> ErrorList {
    let mut errors = validate(object, namespaced, check_name);
    if restricts_finalizers {
        finalizer_names(object, &mut errors);
    }
    errors
}

/// What a built-in kind says of finalizers without a domain (upstream: `validateKubeFinalizerName`).
pub fn finalizer_names(object: &Value, errors: &mut ErrorList) {
    for finalizer in View::root(object).child("metadata").child("finalizers").items() {
        let name = finalizer.str();
        if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(Error::invalid(finalizer.path(), name, why));
        }
    }
}

/// What no change may do (upstream: `ValidateObjectMetaAccessorUpdate`).
pub fn validate_update(object: &Value, old: &Value) -> ErrorList {
    let meta = View::root(object).child("metadata");
    let old = View::root(old).child("metadata");
    let mut errors = ErrorList::new();
    if old.child("deletionTimestamp").exists() {
        let before: Vec<&str> = old.child("finalizers").items().map(|f| f.str()).collect();
        let mut extra: Vec<&str> =
            meta.child("finalizers").items().map(|f| f.str()).filter(|f| !before.contains(f)).collect();
        extra.sort_unstable();
        extra.dedup();
        if !extra.is_empty() {
            let quoted: Vec<String> = extra.iter().map(|f| coxswain_api::field::go_quote(f)).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                quoted.join(", ")
            );
            errors.push(Error::forbidden(meta.child("finalizers").path(), why));
        }
    }
    let version = meta.child("resourceVersion");
    if version.is_empty() {
        errors.push(Error::invalid(version.path(), "", "must be specified for an update"));
    }
    let generation = meta.child("generation");
    if generation.i64() < old.child("generation").i64() {
        errors.push(Error::invalid(generation.path(), generation.i64(), "must not be decremented"));
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let new = meta.child(field);
        if new.value() != old.child(field).value() {
            let shown = Value::String(String::new());
            let zero = if matches!(field, "name" | "namespace" | "uid") { Some(&shown) } else { None };
            let value = View::new(new.value().or(zero), new.path().clone());
            errors.push(Error::invalid(new.path(), &value, "field is immutable"));
        }
    }
    validate_labels(&meta.child("labels"), &mut errors);
    validate_annotations(&meta.child("annotations"), &mut errors);
    validate_owner_references(&meta.child("ownerReferences"), &mut errors);
    validate_managed_fields(&meta.child("managedFields"), &mut errors);
    errors
}

/// Labels as any map of labels is checked (upstream: `metav1validation.ValidateLabels`).
pub fn validate_labels(labels: &View<'_>, errors: &mut ErrorList) {
    for (key, value) in labels.entries() {
        for why in names::qualified_name(key) {
            errors.push(Error::invalid(labels.path(), key, why));
        }
        for why in names::label_value(value.str()) {
            errors.push(Error::invalid(labels.path(), value.str(), why));
        }
    }
}

/// Keys are qualified names, all of it at most 256 KiB.
pub fn validate_annotations(annotations: &View<'_>, errors: &mut ErrorList) {
    const BYTES_MAX: usize = 256 * 1024;
    let mut bytes = 0;
    for (key, value) in annotations.entries() {
        for why in names::qualified_name(&key.to_lowercase()) {
            errors.push(Error::invalid(annotations.path(), key, why));
        }
        bytes += key.len() + value.str().len();
    }
    if bytes > BYTES_MAX {
        errors.push(Error::too_long(annotations.path(), BYTES_MAX as i64));
    }
}

/// Owner references as a message shows them: JSON in the order of the schema.
fn owners_text(value: Option<&Value>) -> String {
    let schema = schema::builtin().get("io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference");
    let text = |owner: &Value| {
        let mut out = Vec::new();
        match schema {
            Some(schema) => codec::json::encode(owner, schema, &mut out),
            None => out.extend(owner.to_string().into_bytes()),
        }
        String::from_utf8_lossy(&out).into_owned()
    };
    match value {
        Some(Value::Array(list)) => format!("[{}]", list.iter().map(text).collect::<Vec<_>>().join(",")),
        Some(owner) => text(owner),
        None => "null".into(),
    }
}

fn shown(path: &Path, value: Option<&Value>, why: impl Into<String>) -> Error {
    Error { bad_value: Some(owners_text(value)), ..Error::invalid(path, "", why) }
}

fn validate_owner_references(list: &View<'_>, errors: &mut ErrorList) {
    let path = list.path();
    let mut controller: Option<String> = None;
    for reference in list.items() {
        let api_version = reference.child("apiVersion").str();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = reference.child("kind").str();
        if version.is_empty() || version.contains('/') {
            errors.push(Error::invalid(&path.child("apiVersion"), api_version, "version must not be empty"));
        }
        for (field, value) in
            [("kind", kind), ("name", reference.child("name").str()), ("uid", reference.child("uid").str())]
        {
            if value.is_empty() {
                errors.push(Error::invalid(&path.child(field), value, "must not be empty"));
            }
        }
        if (group, version, kind) == ("", "v1", "Event") {
            errors.push(shown(path, reference.value(), "/v1, Kind=Event is disallowed from being an owner"));
        }
        if reference.child("controller").bool() {
            let this = format!("{kind}/{}", reference.child("name").str());
            match &controller {
                Some(first) => {
                    let why = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    );
                    errors.push(shown(path, list.value(), why));
                }
                None => controller = Some(this),
            }
        }
    }
}

fn validate_finalizers(list: &View<'_>, errors: &mut ErrorList) {
    let (mut orphan, mut foreground) = (false, false);
    for finalizer in list.items() {
        let name = finalizer.str();
        for why in names::qualified_name(name) {
            errors.push(Error::invalid(list.path(), name, why));
        }
        orphan |= name == "orphan";
        foreground |= name == "foregroundDeletion";
    }
    if orphan && foreground {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(Error::invalid(list.path(), list, why));
    }
}

fn validate_managed_fields(list: &View<'_>, errors: &mut ErrorList) {
    for entry in list.items() {
        let operation = entry.child("operation");
        if !matches!(operation.str(), "Apply" | "Update") {
            let why = "must be `Apply` or `Update`";
            errors.push(Error::invalid(operation.path(), operation.str(), why));
        }
        let fields_type = entry.child("fieldsType");
        if !matches!(fields_type.str(), "" | "FieldsV1") {
            errors.push(Error::invalid(fields_type.path(), fields_type.str(), "must be `FieldsV1`"));
        }
        let manager = entry.child("manager");
        validate_field_manager(manager.str(), manager.path(), errors);
        let subresource = entry.child("subresource");
        if subresource.len() > 256 {
            errors.push(Error::too_long(subresource.path(), 256));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn finalizers_cannot_be_added_to_what_is_being_deleted() {
        let meta = |finalizers: &[&str]| {
            json!({"metadata": {"name": "a", "resourceVersion": "1", "deletionTimestamp": "2026-01-01T00:00:00Z",
                "finalizers": finalizers}})
        };
        assert!(validate_update(&meta(&["a/b"]), &meta(&["a/b", "c/d"])).is_empty());
        let errors = validate_update(&meta(&["a/b", "e/f"]), &meta(&["a/b"]));
        assert_eq!(
            errors[0].to_string(),
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
             finalizers []string{\"e/f\"}"
        );
    }

    #[test]
    fn repeated_owners_are_dropped_with_a_warning() {
        let owner = json!({"apiVersion": "v1", "kind": "X", "name": "a", "uid": "u1"});
        let mut object = json!({"metadata": {"ownerReferences": [owner, owner]}});
        let warnings = Warnings::default();
        dedup_owner_references(&mut object, &warnings, false);
        assert_eq!(object["metadata"]["ownerReferences"].as_array().unwrap().len(), 1);
        assert!(warnings.take()[0].ends_with("duplicate UID(s) observed: u1"));
    }
}
