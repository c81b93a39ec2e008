//! PersistentVolume (upstream: `pkg/registry/core/persistentvolume`, `ValidatePersistentVolume`).

use super::persistent_volume_claim::{
    set_default, validate_class, validate_modes, validate_positive, validate_volume_mode,
};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Value, json, names, time};

pub struct PersistentVolumes;

/// The kinds of volumes in the order in which upstream looks at them.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];
const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";

impl Resource for PersistentVolumes {
    fn set_defaults(&self, object: &mut Value) {
        set_default(object, "status", "phase", "Pending");
        set_default(object, "spec", "persistentVolumeReclaimPolicy", "Retain");
        set_default(object, "spec", "volumeMode", "Filesystem");
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
        if moved && (given.is_null() || given == field(old, "lastPhaseTransitionTime")) {
            object["status"]["lastPhaseTransitionTime"] = time::format_seconds(ctx.now).into();
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validate(object)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" {
            return ErrorList::new();
        }
        let mut errors = validate(object);
        let (spec, before) = (View::root(object).child("spec"), View::root(old).child("spec"));
        let sources = |v: &View<'_>| -> Vec<Option<Value>> {
            SOURCES.iter().map(|s| v.child_named(s).value().cloned()).collect()
        };
        if sources(&spec) != sources(&before) {
            let why = "spec.persistentvolumesource is immutable after creation";
            errors.push(Error::forbidden(&Path::new("spec").child("persistentvolumesource"), why));
        }
        let mode = spec.child("volumeMode");
        if mode.str() != before.child("volumeMode").str() {
            errors.push(Error::invalid(&Path::new("volumeMode"), mode.str(), "field is immutable"));
        }
        let affinity = spec.child("nodeAffinity");
        if before.child("nodeAffinity").exists() && affinity.value() != before.child("nodeAffinity").value() {
            errors.push(Error::invalid(
                &Path::new("nodeAffinity"),
                &affinity,
                "field is immutable, except for updating from beta label to GA",
            ));
        }
        errors
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: subresource == "status", whole: subresource.is_empty() }
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("name", crate::registry::metadata::text(object, "name").to_owned())]
    }
}

fn validate(object: &Value) -> ErrorList {
    let root = View::root(object);
    let spec = root.child("spec");
    let mut errors = ErrorList::new();
    validate_modes(&spec.child("accessModes"), "", &mut errors);
    let capacity = spec.child("capacity");
    if capacity.is_empty() {
        errors.push(Error::required(capacity.path(), ""));
    }
    if !capacity.child("storage").exists() || capacity.len() > 1 {
        let shown = capacity.value().cloned().unwrap_or(Value::Null);
        errors.push(Error::not_supported(capacity.path(), &shown, &["storage"]));
    }
    for (_, amount) in capacity.entries() {
        validate_positive(amount.str(), amount.path(), &mut errors);
    }
    let policy = spec.child("persistentVolumeReclaimPolicy");
    if !policy.is_empty() && !matches!(policy.str(), "Delete" | "Recycle" | "Retain") {
        errors.push(Error::not_supported(policy.path(), policy.str(), &["Delete", "Recycle", "Retain"]));
    }
    let affinity = spec.child("nodeAffinity");
    if affinity.exists() && !affinity.child("required").exists() {
        let why = "must specify required node constraints";
        errors.push(Error::required(affinity.child("required").path(), why));
    }
    let mut found = 0;
    for name in SOURCES {
        let source = spec.child_named(name);
        if !source.exists() {
            continue;
        }
        found += 1;
        if found > 1 {
            errors.push(Error::forbidden(source.path(), "may not specify more than 1 volume type"));
            continue;
        }
        validate_source(name, &source, &affinity, &mut errors);
    }
    if found == 0 {
        errors.push(Error::required(spec.path(), "must specify a volume type"));
    }
    let mountable = [
        "nfs",
        "cephfs",
        "iscsi",
        "csi",
        "gcePersistentDisk",
        "awsElasticBlockStore",
        "azureDisk",
        "azureFile",
        "cinder",
        "glusterfs",
        "rbd",
        "quobyte",
        "storageos",
        "vsphereVolume",
    ];
    let annotations = root.child("metadata").child("annotations");
    if annotations.child_named(MOUNT_OPTIONS).exists() && !mountable.iter().any(|m| spec.child_named(m).exists()) {
        let path = annotations.path().child_named(MOUNT_OPTIONS);
        errors.push(Error::forbidden(&path, "may not specify mount options for this volume type"));
    }
    let host = spec.child("hostPath").child("path");
    if host.exists() && policy.str() == "Recycle" && host.str().trim_end_matches('/').is_empty() {
        errors.push(Error::forbidden(policy.path(), "may not be 'recycle' for a hostPath mount of '/'"));
    }
    validate_class(&spec.child("storageClassName"), &mut errors);
    validate_volume_mode(&spec.child("volumeMode"), &mut errors);
    let attributes = spec.child("volumeAttributesClassName");
    if attributes.exists() {
        if attributes.is_empty() {
            errors.push(Error::required(attributes.path(), "an empty string is disallowed"));
        } else {
            validate_class(&attributes, &mut errors);
        }
        if !spec.child("csi").exists() {
            let why = "has to be specified when using volumeAttributesClassName";
            errors.push(Error::required(spec.child("csi").path(), why));
        }
    }
    errors
}

fn validate_source(name: &str, source: &View<'_>, affinity: &View<'_>, errors: &mut ErrorList) {
    let require = |field: &'static str, errors: &mut ErrorList| {
        let value = source.child(field);
        if value.is_empty() {
            errors.push(Error::required(value.path(), ""));
        }
    };
    match name {
        "hostPath" => {
            let path = source.child("path");
            if path.is_empty() {
                errors.push(Error::required(path.path(), ""));
            } else if path.str().split('/').any(|p| p == "..") {
                errors.push(Error::invalid(path.path(), path.str(), "must not contain '..'"));
            }
        }
        "nfs" => {
            require("server", errors);
            let path = source.child("path");
            if path.is_empty() {
                errors.push(Error::required(path.path(), ""));
            } else if !path.str().starts_with('/') {
                errors.push(Error::invalid(path.path(), path.str(), "must be an absolute path"));
            }
        }
        "local" => {
            let path = source.child("path");
            if path.is_empty() {
                errors.push(Error::required(path.path(), ""));
            } else if path.str().split('/').any(|p| p == "..") {
                errors.push(Error::invalid(path.path(), path.str(), "must not contain '..'"));
            }
            if !affinity.exists() {
                errors.push(Error::required(affinity.path(), "Local volume requires node affinity"));
            }
        }
        "csi" => {
            let driver = source.child("driver");
            if driver.is_empty() {
                errors.push(Error::required(driver.path(), ""));
            } else {
                if driver.len() > 63 {
                    errors.push(Error::too_long(driver.path(), 63));
                }
                for why in names::dns1123_subdomain(&driver.str().to_lowercase(), false) {
                    errors.push(Error::invalid(driver.path(), driver.str(), why));
                }
            }
            require("volumeHandle", errors);
            for secret in [
                "controllerPublishSecretRef",
                "controllerExpandSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ] {
                let reference = source.child(secret);
                for field in ["name", "namespace"] {
                    let value = reference.child(field);
                    if reference.exists() && value.is_empty() {
                        errors.push(Error::required(value.path(), ""));
                    }
                }
            }
        }
        "gcePersistentDisk" if source.child("pdName").is_empty() => {
            let path = Path::new("spec").child("persistentDisk").child("pdName");
            errors.push(Error::required(&path, ""));
        }
        "awsElasticBlockStore" | "cinder" => require("volumeID", errors),
        "iscsi" => {
            for field in ["targetPortal", "iqn"] {
                require(field, errors);
            }
        }
        "glusterfs" => {
            for field in ["endpoints", "path"] {
                require(field, errors);
            }
        }
        "rbd" => {
            if source.child("monitors").is_empty() {
                errors.push(Error::required(source.child("monitors").path(), ""));
            }
            require("image", errors);
        }
        "cephfs" if source.child("monitors").is_empty() => {
            errors.push(Error::required(source.child("monitors").path(), ""));
        }
        "flexVolume" => require("driver", errors),
        "vsphereVolume" => require("volumePath", errors),
        "photonPersistentDisk" => require("pdID", errors),
        "azureFile" => {
            for field in ["secretName", "shareName"] {
                require(field, errors);
            }
        }
        "azureDisk" => {
            for field in ["diskName", "diskURI"] {
                require(field, errors);
            }
        }
        "portworxVolume" => require("volumeID", errors),
        "scaleIO" => {
            for field in ["gateway", "system", "volumeName"] {
                require(field, errors);
            }
        }
        _ => {}
    }
}
