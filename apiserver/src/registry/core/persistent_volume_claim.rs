//! PersistentVolumeClaim (upstream: `pkg/registry/core/persistentvolumeclaim`, `ValidatePersistentVolumeClaim`).

use super::pod_spec::{self, ClaimLeniency};
use crate::registry::checks;
use crate::registry::internal::{unified, volumes as volume_shape};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::features::Feature;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::quantity::Quantity;
use coxswain_api::{Value, json, names};

pub struct PersistentVolumeClaims;

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const IMMUTABLE: &str =
    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

impl Resource for PersistentVolumeClaims {
    fn set_defaults(&self, object: &mut Value) {
        set_default(object, "status", "phase", "Pending");
        if let Some(spec) = object.get_mut("spec") {
            crate::registry::defaults::set_default(spec, "volumeMode", || "Filesystem".into());
        }
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
        drop_data_sources(object, None);
        normalize_sources(object);
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, subresource: &str) {
        if subresource.is_empty() {
            drop_data_sources(object, Some(old));
            normalize_sources(object);
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = View::root(object).child("spec");
        pod_spec::persistent_volume_claim_spec(&spec, ClaimLeniency::default(), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        if subresource == "status" {
            validate_status(object, &mut errors);
            return errors;
        }
        let spec = View::root(object).child("spec");
        pod_spec::persistent_volume_claim_spec(&spec, leniency(&View::root(old).child("spec")), &mut errors);
        validate_change(object, old, &mut errors);
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let root = View::root(object);
        let mut list = Vec::new();
        let annotations = root.child("metadata").child("annotations");
        if annotations.child_named(CLASS_ANNOTATION).exists() {
            let path = annotations.path().key(CLASS_ANNOTATION);
            list.push(format!("{path}: deprecated since v1.8; use \"storageClassName\" attribute instead"));
        }
        pod_spec::claim_warnings(&root.child("spec"), &mut list);
        list
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty(), whole_first: false }
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("name", crate::registry::metadata::text(object, "name").to_owned())]
    }
}

pub(super) fn set_default(object: &mut Value, part: &str, field: &str, value: &str) {
    let part = &mut object[part];
    if !part.is_object() {
        *part = json!({});
    }
    if part.get(field).and_then(Value::as_str).unwrap_or_default().is_empty() {
        part[field] = value.into();
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v)));
            Value::Object(kept.collect())
        }
        other => other.clone(),
    }
}

fn is_claim_or_snapshot(source: &View<'_>) -> bool {
    matches!(
        (source.child("apiGroup").str(), source.child("kind").str()),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    )
}

/// What cannot be a source of data is dropped, as it always was.
fn drop_data_sources(object: &mut Value, old: Option<&Value>) {
    let given = |object: &Value, field: &str| object.pointer(&format!("/spec/{field}")).is_some_and(|v| !v.is_null());
    let used = |field: &str| old.is_some_and(|old| given(old, field));
    let elsewhere = !Feature::CrossNamespaceVolumeDataSource.enabled()
        && !View::root(object).child("spec").child("dataSourceRef").child("namespace").is_empty();
    let is_source = is_claim_or_snapshot(&View::root(object).child("spec").child("dataSource"));
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if elsewhere && !used("dataSourceRef") {
        spec.remove("dataSourceRef");
    }
    let referenced = spec.get("dataSourceRef").is_some_and(|v| !v.is_null());
    if !used("dataSource") && !used("dataSourceRef") && !referenced && !is_source {
        spec.remove("dataSource");
    }
}

/// The old and the new field say the same if only one is given and the other can say it.
fn normalize_sources(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let get = |field: &str| spec.get(field).filter(|v| !v.is_null()).cloned();
    match (get("dataSource"), get("dataSourceRef")) {
        (Some(source), None) => {
            spec.insert("dataSourceRef".into(), source);
        }
        (None, Some(mut reference)) if View::root(&reference).child("namespace").is_empty() => {
            if let Some(map) = reference.as_object_mut() {
                map.remove("namespace");
            }
            spec.insert("dataSource".into(), reference);
        }
        _ => {}
    }
}

/// What was wrong before may stay.
fn leniency(before: &View<'_>) -> ClaimLeniency {
    let mut wrong = ErrorList::new();
    checks::label_selector(&before.child("selector"), Default::default(), &mut wrong);
    let grouped = |source: &'static str| before.child(source).child("apiGroup").exists();
    ClaimLeniency {
        invalid_selector_values: !wrong.is_empty(),
        invalid_source_group: grouped("dataSource") || grouped("dataSourceRef"),
    }
}

/// Of a claim's spec, little may change (upstream: `ValidatePersistentVolumeClaimUpdate`).
fn validate_change(object: &Value, old: &Value, errors: &mut ErrorList) {
    let (spec, before) = (View::root(object).child("spec"), View::root(old).child("spec"));
    let (mut new, mut was) = (object["spec"].clone(), old["spec"].clone());
    normalize_old(&mut was);
    if before.child("volumeName").is_empty() {
        was["volumeName"] = new["volumeName"].clone();
    }
    let annotation = |v: &Value| -> Option<String> {
        Some(v.pointer("/metadata/annotations")?.get(CLASS_ANNOTATION)?.as_str()?.to_owned())
    };
    let (class, old_class) = (spec.child("storageClassName"), before.child("storageClassName"));
    let (note, old_note) = (annotation(object), annotation(old));
    // The class may move from the annotation, where it once was, to the field.
    let moves = old_note.is_some()
        && !old_class.exists()
        && class.opt_str() == old_note.as_deref()
        && (note.is_none() || note == old_note);
    if moves {
        new["storageClassName"] = Value::Null;
    } else {
        if note.clone().unwrap_or_default() != old_note.clone().unwrap_or_default() {
            let path = Path::new("metadata").child("annotations").child(CLASS_ANNOTATION);
            errors.push(Error::invalid(&path, note.unwrap_or_default(), checks::IMMUTABLE));
        }
        let fills = class.exists() && !old_class.exists();
        if fills && old_note.as_deref().is_none_or(|note| class.str() == note) {
            new["storageClassName"] = was["storageClassName"].clone();
        }
    }
    if View::root(object).child("status").child("phase").str() == "Bound" {
        if new.pointer("/resources/requests").is_some_and(Value::is_object) {
            new["resources"]["requests"]["storage"] = was["resources"]["requests"]["storage"].clone();
        }
        new["volumeAttributesClassName"] = was["volumeAttributesClassName"].clone();
    }
    if without_nulls(&new) != without_nulls(&was) {
        let difference = unified::internal(&View::root(&was), &View::root(&new), &volume_shape::CLAIM);
        errors.push(Error::forbidden(&Path::new("spec"), format!("{IMMUTABLE}\n{difference}")));
    }
    size(&spec, &before, &View::root(old).child("status"), errors);
    let mode = View::new(spec.child("volumeMode").value(), Path::new("volumeMode"));
    checks::immutable(&mode, &before.child("volumeMode"), errors);
    let (attributes, old_attributes) =
        (spec.child("volumeAttributesClassName"), before.child("volumeAttributesClassName"));
    let applied = View::root(old).child("status").child("currentVolumeAttributesClassName").exists();
    if applied && attributes.opt_str() != old_attributes.opt_str() && attributes.is_empty() {
        let what = if attributes.exists() { "empty string" } else { "nil" };
        let why = format!("update to {what} is forbidden when status.currentVolumeAttributesClassName is not nil");
        errors.push(Error::forbidden(attributes.path(), why));
    }
}

/// A claim that an earlier release wrote may have one of the two fields only.
fn normalize_old(spec: &mut Value) {
    let mut whole = json!({ "spec": spec.take() });
    normalize_sources(&mut whole);
    *spec = whole["spec"].take();
}

/// A claim may shrink to what it has, no further: so one recovers from an expansion that failed.
fn size(spec: &View<'_>, before: &View<'_>, status: &View<'_>, errors: &mut ErrorList) {
    fn requested<'a>(spec: &View<'a>) -> View<'a> {
        spec.child("resources").child("requests").child("storage")
    }
    let parse = |amount: &View<'_>| Quantity::parse(amount.str()).ok();
    // What is not said is nothing.
    let [now, was] = [spec, before].map(|of| parse(&requested(of)).unwrap_or_default());
    if now < was && now <= parse(&status.child("capacity").child("storage")).unwrap_or_default() {
        errors.push(Error::forbidden(requested(spec).path(), "field can not be less than status.capacity"));
    }
}

fn validate_status(object: &Value, errors: &mut ErrorList) {
    const STATES: &[&str] = &[
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
        "NodeResizePending",
    ];
    let root = View::root(object);
    if root.child("spec").child("accessModes").is_empty() {
        errors.push(Error::required(&Path::new("Spec").child("accessModes"), ""));
    }
    let status = root.child("status");
    for (_, amount) in status.child("capacity").entries() {
        basic_amount(&amount, errors);
    }
    let states = status.child("allocatedResourceStatuses");
    for (resource, state) in states.entries() {
        resource_key(resource, states.path(), errors);
        if !STATES.contains(&state.str()) {
            errors.push(Error::not_supported(states.path(), resource, STATES));
        }
    }
    let allocated = status.child("allocatedResources");
    for (resource, amount) in allocated.entries() {
        let good = resource_key(resource, allocated.path(), errors) && basic_amount(&amount, errors);
        if good {
            super::quantities::validate_quantity("storage", &amount, errors);
        }
    }
}

fn basic_amount(amount: &View<'_>, errors: &mut ErrorList) -> bool {
    let Some(quantity) = Quantity::parse(amount.str()).ok().filter(|q| q.value() < 0) else { return true };
    errors.push(Error::invalid(amount.path(), quantity.value(), "must be a valid resource quantity"));
    false
}

/// Of the resources without a domain of their own, claims know storage.
fn resource_key(name: &str, at: &Path, errors: &mut ErrorList) -> bool {
    let wrong = names::qualified_name(name);
    let mut good = wrong.is_empty();
    errors.extend(wrong.into_iter().map(|why| Error::invalid(at, name, why)));
    if good && super::quantities::is_native(name) && name != "storage" {
        errors.push(Error::not_supported(at, name, &["storage"]));
        good = false;
    }
    good
}
