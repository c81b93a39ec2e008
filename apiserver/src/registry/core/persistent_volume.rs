//! PersistentVolume (upstream: `pkg/registry/core/persistentvolume`, `ValidatePersistentVolume`).

use super::pod_spec::{self, persistent_sources};
use crate::registry::checks;
use crate::registry::core::persistent_volume_claim::set_default;
use crate::registry::internal::{VOLUME_NODE_AFFINITY, dump, unified, volumes as volume_shape};
use crate::registry::metadata;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::quantity::Quantity;
use coxswain_api::{Value, json, time};

pub struct PersistentVolumes;

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";

impl Resource for PersistentVolumes {
    fn set_defaults(&self, object: &mut Value) {
        set_default(object, "status", "phase", "Pending");
        set_default(object, "spec", "persistentVolumeReclaimPolicy", "Retain");
        if let Some(spec) = object.get_mut("spec") {
            crate::registry::defaults::set_default(spec, "volumeMode", || "Filesystem".into());
        }
        if let Some(path) = object.pointer_mut("/spec/hostPath").filter(|p| p.is_object())
            && path.get("type").is_none_or(Value::is_null)
        {
            path["type"] = "".into();
        }
    }

    fn prepare_for_create(&self, ctx: &Context, object: &mut Value) {
        object["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": time::format_seconds(ctx.now)});
    }

    fn prepare_for_update(&self, ctx: &Context, object: &mut Value, old: &Value, subresource: &str) {
        if subresource != "status" {
            return;
        }
        let field = |v: &Value, f: &str| v.get("status").and_then(|s| s.get(f)).cloned().unwrap_or_default();
        let moved = field(object, "phase") != field(old, "phase");
        let given = field(object, "lastPhaseTransitionTime");
        let before = field(old, "lastPhaseTransitionTime");
        if !moved && given.is_null() && !before.is_null() {
            object["status"]["lastPhaseTransitionTime"] = before;
        } else if moved && (given.is_null() || given == before) {
            object["status"]["lastPhaseTransitionTime"] = time::format_seconds(ctx.now).into();
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = validate(object, None);
        mount_options(object, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" {
            return ErrorList::new();
        }
        let mut errors = validate(object, Some(old));
        mount_options(object, &mut errors);
        // Upstream's strategy and its check of the update both look at the whole.
        errors.extend(validate(object, Some(old)));
        validate_change(&View::root(object).child("spec"), &View::root(old).child("spec"), &mut errors);
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings(&View::root(object))
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: subresource == "status", whole: subresource.is_empty(), whole_first: false }
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("name", metadata::text(object, "name").to_owned())]
    }
}

fn validate(object: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let use_of = Use::Whole { name: metadata::text(object, "name"), old };
    spec(&View::root(object).child("spec"), use_of, &mut errors);
    errors
}

/// The volume of an attachment that is described in place (upstream: `validateInlinePersistentVolumeSpec`).
pub fn inline_spec(volume: &View<'_>, errors: &mut ErrorList) {
    spec(volume, Use::Inline, errors);
}

/// What a spec describes.
#[derive(Clone, Copy)]
enum Use<'a> {
    /// A volume, and how it was before.
    Whole { name: &'a str, old: Option<&'a Value> },
    /// A volume that is no object: what is about its life in the cluster may not be said.
    Inline,
}

fn spec(spec: &View<'_>, use_of: Use<'_>, errors: &mut ErrorList) {
    const INLINE: &str = "in the context of inline volumes";
    let (inline, name, old) = match use_of {
        Use::Whole { name, old } => (false, name, old),
        Use::Inline => (true, "", None),
    };
    let forbidden = |field: &View<'_>, errors: &mut ErrorList| {
        errors.push(Error::forbidden(field.path(), format!("may not be specified {INLINE}")));
    };
    let (size, claim) = (spec.child("capacity"), spec.child("claimRef"));
    if inline {
        if claim.exists() {
            forbidden(&claim, errors);
        }
        if !size.is_empty() {
            forbidden(&size, errors);
        }
        if !spec.child("csi").exists() {
            errors.push(Error::required(spec.child("csi").path(), format!("has to be specified {INLINE}")));
        }
    }
    let modes = spec.child("accessModes");
    if modes.is_empty() {
        errors.push(Error::required(modes.path(), ""));
    }
    pod_spec::access_modes(&modes, errors);
    if !inline {
        capacity(&size, errors);
    }
    let policy = spec.child("persistentVolumeReclaimPolicy");
    match policy.str() {
        "" => {}
        "Retain" if inline => {}
        _ if inline => errors.push(Error::forbidden(policy.path(), format!("may only be Retain {INLINE}"))),
        _ => checks::supported_value(&policy, &["Delete", "Recycle", "Retain"], errors),
    }
    node_affinity(&spec.child("nodeAffinity"), old, errors);
    persistent_sources::validate(spec, name, errors);
    if policy.str() == "Recycle" && is_root(spec.child("hostPath").child("path").str()) {
        errors.push(Error::forbidden(policy.path(), "may not be 'recycle' for a hostPath mount of '/'"));
    }
    let class = spec.child("storageClassName");
    match inline && !class.is_empty() {
        true => forbidden(&class, errors),
        false => pod_spec::class_name(&class, errors),
    }
    let mode = spec.child("volumeMode");
    if inline && mode.exists() && mode.str() != "Filesystem" {
        let why = format!("may not specify volumeMode other than Filesystem {INLINE}");
        errors.push(Error::forbidden(mode.path(), why));
    } else if !inline && mode.exists() {
        checks::supported_value(&mode, &["Block", "Filesystem"], errors);
    }
    let attributes = spec.child("volumeAttributesClassName");
    if attributes.exists() && !inline {
        if attributes.is_empty() {
            errors.push(Error::required(attributes.path(), "an empty string is disallowed"));
        }
        pod_spec::class_name(&attributes, errors);
        if !spec.child("csi").exists() {
            let why = "has to be specified when using volumeAttributesClassName";
            errors.push(Error::required(spec.child("csi").path(), why));
        }
    }
}

fn capacity(capacity: &View<'_>, errors: &mut ErrorList) {
    if capacity.is_empty() {
        errors.push(Error::required(capacity.path(), ""));
    }
    if !capacity.child("storage").exists() || capacity.len() > 1 {
        errors.push(Error::not_supported(capacity.path(), capacity, &["storage"]));
    }
    for (_, amount) in capacity.entries() {
        let Ok(quantity) = Quantity::parse(amount.str()) else { continue };
        if quantity.value() < 0 {
            errors.push(Error::invalid(amount.path(), quantity.value(), "must be a valid resource quantity"));
        }
        if quantity.sign() <= 0 {
            errors.push(Error::invalid(amount.path(), amount.str(), checks::NOT_POSITIVE));
        }
    }
}

fn required_terms<'a>(spec: &View<'a>) -> View<'a> {
    spec.child("nodeAffinity").child("required").child("nodeSelectorTerms")
}

fn node_affinity(affinity: &View<'_>, old: Option<&Value>, errors: &mut ErrorList) {
    if !affinity.exists() {
        return;
    }
    let required = affinity.child("required");
    if !required.exists() {
        errors.push(Error::required(required.path(), "must specify required node constraints"));
        return;
    }
    // A value that was wrong before may stay.
    let lenient = old.is_some_and(|old| {
        let terms = required_terms(&View::root(old).child("spec"));
        let mut values =
            terms.items().flat_map(|t| t.child("matchExpressions").items()).flat_map(|e| e.child("values").items());
        values.any(|v| !coxswain_api::names::label_value(v.str()).is_empty())
    });
    pod_spec::node_selector(&required, lenient, errors);
}

/// Whether a path leads to `/` once it is cleaned.
fn is_root(path: &str) -> bool {
    let mut depth = 0_usize;
    for step in path.split('/') {
        match step {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    path.starts_with('/') && depth == 0
}

fn mount_options(object: &Value, errors: &mut ErrorList) {
    const MOUNTABLE: &[&str] = &[
        "gcePersistentDisk",
        "awsElasticBlockStore",
        "glusterfs",
        "nfs",
        "rbd",
        "quobyte",
        "iscsi",
        "cinder",
        "cephfs",
        "azureFile",
        "vsphereVolume",
        "azureDisk",
        "storageos",
        "csi",
    ];
    let root = View::root(object);
    let spec = root.child("spec");
    let annotations = root.child("metadata").child("annotations");
    if annotations.child_named(MOUNT_OPTIONS).exists() && !MOUNTABLE.iter().any(|m| spec.child(m).exists()) {
        let path = annotations.path().child_named(MOUNT_OPTIONS);
        errors.push(Error::forbidden(&path, "may not specify mount options for this volume type"));
    }
}

fn validate_change(spec: &View<'_>, before: &View<'_>, errors: &mut ErrorList) {
    if sources(spec, before) != sources(before, before) {
        let mut now = spec.value().cloned().unwrap_or_default();
        if may_add_secret(before) {
            drop_expansion_secret(&mut now);
        }
        let difference = unified::internal(before, &View::new(Some(&now), spec.path().clone()), &volume_shape::SOURCE);
        let why = format!("spec.persistentvolumesource is immutable after creation\n{difference}");
        errors.push(Error::forbidden(&Path::new("spec").child("persistentvolumesource"), why));
    }
    let at = |field: &'static str| View::new(spec.child(field).value(), Path::new(field));
    checks::immutable(&at("volumeMode"), &before.child("volumeMode"), errors);
    let affinity = at("nodeAffinity");
    if before.child("nodeAffinity").exists()
        && with_stable_labels(&affinity, before) != before.child("nodeAffinity").value().cloned()
    {
        let why = "field is immutable, except for updating from beta label to GA";
        errors.push(Error::invalid(affinity.path(), dump(&affinity, &VOLUME_NODE_AFFINITY), why));
    }
    let attributes = spec.child("volumeAttributesClassName");
    if before.child("volumeAttributesClassName").exists() && !attributes.exists() {
        errors.push(Error::forbidden(attributes.path(), "update from non-nil value to nil is forbidden"));
    }
}

const EXPANSION_SECRET: &str = "controllerExpandSecretRef";

/// The secret for expansion may be added to a volume that has none.
fn may_add_secret(before: &View<'_>) -> bool {
    before.child("csi").exists() && !before.child("csi").child(EXPANSION_SECRET).exists()
}

fn drop_expansion_secret(spec: &mut Value) {
    if let Some(csi) = spec.get_mut("csi").and_then(Value::as_object_mut) {
        csi.remove(EXPANSION_SECRET);
    }
}

/// The sources of a volume, without the secret for expansion if it may be added.
fn sources(spec: &View<'_>, before: &View<'_>) -> Vec<Option<Value>> {
    let mut spec = spec.value().cloned().unwrap_or_default();
    if may_add_secret(before) {
        drop_expansion_secret(&mut spec);
    }
    persistent_sources::all(&View::root(&spec)).into_iter().map(|s| s.cloned()).collect()
}

/// The affinity with labels as they were, where they were replaced by those that stand for them now.
fn with_stable_labels(affinity: &View<'_>, before: &View<'_>) -> Option<Value> {
    const STABLE: &[(&str, &str)] = &[
        ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
        ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
        ("beta.kubernetes.io/os", "kubernetes.io/os"),
        ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
        ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
    ];
    let mut affinity = affinity.value()?.clone();
    let terms = affinity.pointer_mut("/required/nodeSelectorTerms").and_then(Value::as_array_mut);
    for (term, was) in terms.into_iter().flatten().zip(required_terms(before).items()) {
        for list in ["matchExpressions", "matchFields"] {
            let requirements = term.get_mut(list).and_then(Value::as_array_mut);
            for (requirement, was) in requirements.into_iter().flatten().zip(was.child(list).items()) {
                let key = requirement.get("key").and_then(Value::as_str).unwrap_or_default();
                if STABLE.contains(&(was.child("key").str(), key)) {
                    requirement["key"] = was.child("key").str().into();
                }
            }
        }
    }
    Some(affinity)
}

fn warnings(volume: &View<'_>) -> Vec<String> {
    const GONE: &[(&str, &str, &str)] = &[
        ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    let mut out = Vec::new();
    let annotations = volume.child("metadata").child("annotations");
    for (key, message) in [
        (CLASS_ANNOTATION, "deprecated since v1.8; use \"storageClassName\" attribute instead"),
        (MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead"),
    ] {
        if annotations.child_named(key).exists() {
            out.push(format!("{}: {message}", annotations.path().key(key)));
        }
    }
    let spec = volume.child("spec");
    let policy = spec.child("persistentVolumeReclaimPolicy");
    if policy.str() == "Recycle" {
        let message = "The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.";
        out.push(format!("{}: {message}", policy.path()));
    }
    for term in required_terms(&spec).items() {
        pod_spec::node_selector_term_warnings(&term, &mut out);
    }
    for (field, reported, message) in GONE {
        if spec.child(field).exists() {
            out.push(format!("{}: {message}", spec.path().child(reported)));
        }
    }
    out
}
