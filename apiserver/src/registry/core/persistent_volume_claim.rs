//! PersistentVolumeClaim (upstream: `pkg/registry/core/persistentvolumeclaim`, `ValidatePersistentVolumeClaim`).

use crate::registry::checks;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
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
        set_default(object, "spec", "volumeMode", "Filesystem");
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
        let spec = View::root(object).child("spec");
        // What is neither a claim nor a snapshot was silently dropped before there were references to anything.
        let keeps = !spec.child("dataSource").exists() || is_claim_or_snapshot(&spec.child("dataSource"));
        if !keeps && let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove("dataSource");
        }
        normalize_sources(object);
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, _old: &Value, subresource: &str) {
        if subresource.is_empty() {
            normalize_sources(object);
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validate_spec(&View::root(object).child("spec"))
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" {
            return validate_status(object);
        }
        let mut errors = self.validate(ctx, object);
        let (spec, before) = (View::root(object).child("spec"), View::root(old).child("spec"));
        let (mut a, mut b) = (object["spec"].clone(), old["spec"].clone());
        if before.child("volumeName").is_empty() {
            b["volumeName"] = a["volumeName"].clone();
        }
        let annotation = |v: &Value| v.pointer("/metadata/annotations").and_then(|m| m.get(CLASS_ANNOTATION)).cloned();
        if annotation(object) != annotation(old) {
            let path = Path::new("metadata").child("annotations").key(CLASS_ANNOTATION);
            errors.push(Error::invalid(&path, &annotation(object).unwrap_or_else(|| json!("")), "field is immutable"));
        }
        if !before.child("storageClassName").exists()
            && spec.child("storageClassName").exists()
            && annotation(old).is_none()
        {
            a["storageClassName"] = b["storageClassName"].clone();
        }
        if View::root(object).child("status").child("phase").str() == "Bound" {
            if a.pointer("/resources/requests").is_some() {
                a["resources"]["requests"]["storage"] = b["resources"]["requests"]["storage"].clone();
            }
            a["volumeAttributesClassName"] = b["volumeAttributesClassName"].clone();
        }
        if without_nulls(&a) != without_nulls(&b) {
            errors.push(Error::forbidden(&Path::new("spec"), IMMUTABLE));
        }
        let size = |v: &View<'_>| Quantity::parse(v.child("resources").child("requests").child("storage").str()).ok();
        if let (Some(now), Some(was)) = (size(&spec), size(&before))
            && now < was
        {
            let capacity = View::root(old).child("status").child("capacity").child("storage");
            let known = Quantity::parse(capacity.str()).ok();
            if known.is_some_and(|k| now <= k) {
                let path = Path::new("spec").child("resources").child("requests").child("storage");
                errors.push(Error::forbidden(&path, "field can not be less than status.capacity"));
            }
        }
        let mode = spec.child("volumeMode");
        if mode.str() != before.child("volumeMode").str() {
            errors.push(Error::invalid(&Path::new("volumeMode"), mode.str(), "field is immutable"));
        }
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut list = Vec::new();
        for field in ["requests", "limits"] {
            let storage = View::root(object).child("spec").child("resources").child(field).child("storage");
            let fractional = Quantity::parse(storage.str()).is_ok_and(|q| q.milli_value() % 1000 != 0);
            if fractional {
                list.push(format!(
                    "spec.resources.{field}[storage]: fractional byte value {} is invalid, must be an integer",
                    coxswain_api::field::go_quote(storage.str())
                ));
            }
        }
        list
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty() }
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

/// The old and the new field say the same if only one is given and the other can say it.
fn normalize_sources(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let (old, new) = (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned());
    let given = |v: &Option<Value>| v.as_ref().is_some_and(|v| !v.is_null());
    match (given(&old), given(&new)) {
        (true, false) => {
            spec.insert("dataSourceRef".into(), old.unwrap_or_default());
        }
        (false, true) => {
            let mut reference = new.unwrap_or_default();
            let elsewhere = reference.get("namespace").and_then(Value::as_str).is_some_and(|n| !n.is_empty());
            if !elsewhere && is_claim_or_snapshot(&View::root(&reference)) {
                if let Some(map) = reference.as_object_mut() {
                    map.remove("namespace");
                }
                spec.insert("dataSource".into(), reference);
            }
        }
        _ => {}
    }
}

/// Access modes, the same for volumes and claims.
pub(super) fn validate_modes(modes: &View<'_>, missing: &str, errors: &mut ErrorList) {
    if modes.is_empty() {
        errors.push(Error::required(modes.path(), missing));
    }
    let known = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let (mut alone, mut others) = (false, false);
    for mode in modes.items() {
        if !known.contains(&mode.str()) {
            errors.push(Error::not_supported(modes.path(), mode.str(), &known));
        }
        alone |= mode.str() == "ReadWriteOncePod";
        others |= mode.str() != "ReadWriteOncePod" && known.contains(&mode.str());
    }
    if alone && others {
        errors.push(Error::forbidden(modes.path(), "may not use ReadWriteOncePod with other access modes"));
    }
}

pub(super) fn validate_class(class: &View<'_>, errors: &mut ErrorList) {
    for why in if class.is_empty() { Vec::new() } else { names::dns1123_subdomain(class.str(), false) } {
        errors.push(Error::invalid(class.path(), class.str(), why));
    }
}

pub(super) fn validate_volume_mode(mode: &View<'_>, errors: &mut ErrorList) {
    if let Some(text) = mode.opt_str()
        && !matches!(text, "Block" | "Filesystem")
    {
        errors.push(Error::not_supported(mode.path(), text, &["Block", "Filesystem"]));
    }
}

pub(super) fn validate_positive(text: &str, path: &Path, errors: &mut ErrorList) {
    if Quantity::parse(text).is_ok_and(|q| q.sign() <= 0) {
        errors.push(Error::invalid(path, text, "must be greater than zero"));
    }
}

fn validate_spec(spec: &View<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    let modes = spec.child("accessModes");
    let mut of_modes = ErrorList::new();
    validate_modes(&modes, "at least 1 access mode is required", &mut of_modes);
    if modes.is_empty() {
        errors.append(&mut of_modes);
    }
    let selector = spec.child("selector");
    if selector.exists() {
        checks::label_selector(&selector, Default::default(), &mut errors);
    }
    errors.append(&mut of_modes);
    let resources = spec.child("resources");
    let path = resources.path().key("storage");
    match resources.child("requests").child("storage").opt_str() {
        None => errors.push(Error::required(&path, "")),
        Some(text) => validate_positive(text, &path, &mut errors),
    }
    validate_class(&spec.child("storageClassName"), &mut errors);
    validate_volume_mode(&spec.child("volumeMode"), &mut errors);
    let (source, reference) = (spec.child("dataSource"), spec.child("dataSourceRef"));
    for source in [&source, &reference] {
        if source.exists() {
            validate_source(source, &mut errors);
        }
    }
    validate_class(&spec.child("volumeAttributesClassName"), &mut errors);
    if source.exists() && reference.exists() {
        let same =
            ["apiGroup", "kind", "name"].iter().all(|f| source.child_named(f).str() == reference.child_named(f).str());
        if !same {
            errors.push(Error::invalid(spec.path(), &json!({}), "must match dataSourceRef"));
        }
    }
    errors
}

fn validate_source(source: &View<'_>, errors: &mut ErrorList) {
    for field in ["name", "kind"] {
        let value = source.child(field);
        if value.is_empty() {
            errors.push(Error::required(value.path(), ""));
        }
    }
    let group = source.child("apiGroup");
    let kind = source.child("kind");
    if group.is_empty() && kind.str() != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.push(Error::invalid(kind.path(), kind.str(), why));
    }
    for why in if group.is_empty() { Vec::new() } else { names::dns1123_subdomain(group.str(), false) } {
        errors.push(Error::invalid(group.path(), group.str(), why));
    }
    let namespace = source.child("namespace");
    for why in if namespace.is_empty() { Vec::new() } else { names::dns1123_label(namespace.str(), false) } {
        errors.push(Error::invalid(namespace.path(), namespace.str(), why));
    }
}

fn validate_status(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = View::root(object).child("status");
    for field in ["capacity", "allocatedResources"] {
        for (_, amount) in status.child(field).entries() {
            if let Ok(quantity) = Quantity::parse(amount.str())
                && quantity.value() < 0
            {
                errors.push(Error::invalid(amount.path(), quantity.value(), "must be a valid resource quantity"));
            }
        }
    }
    errors
}
