//! Claims of storage, and volumes that come with a claim of their own (upstream: `ValidatePersistentVolumeClaimSpec`,
//! `validateEphemeralVolumeSource`).

use super::volumes::need;
use crate::registry::checks;
use crate::registry::core::quantities;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names;
use coxswain_api::quantity::Quantity;

pub(super) fn ephemeral(source: &View<'_>, volume: &View<'_>, pod_name: Option<&str>, errors: &mut ErrorList) {
    let template = source.child("volumeClaimTemplate");
    if !template.exists() {
        errors.push(Error::required(template.path(), ""));
    } else {
        let metadata = template.child("metadata");
        crate::registry::metadata::validate_annotations(&metadata.child("annotations"), errors);
        checks::labels(&metadata.child("labels"), errors);
        // The claim's metadata is made of the pod's: nothing but labels and annotations can be given.
        for (field, _) in metadata.entries() {
            if !matches!(field, "labels" | "annotations" | "creationTimestamp") {
                let path = metadata.path().child_named(field);
                errors.push(Error::forbidden(&path, "cannot be set for an ephemeral volume"));
            }
        }
        persistent_volume_claim_spec(&template.child("spec"), errors);
    }
    let name = volume.child("name");
    if let Some(pod) = pod_name.filter(|_| !name.str().is_empty()) {
        let claim = format!("{pod}-{}", name.str());
        for why in names::dns1123_subdomain(&claim, false) {
            errors.push(Error::invalid(name.path(), name.str(), format!("PVC name \"{claim}\": {why}")));
        }
    }
}

/// The spec of a claim (upstream: `ValidatePersistentVolumeClaimSpec`).
pub fn persistent_volume_claim_spec(spec: &View<'_>, errors: &mut ErrorList) {
    let modes = spec.child("accessModes");
    if modes.is_empty() {
        errors.push(Error::required(modes.path(), "at least 1 access mode is required"));
    }
    checks::label_selector(&spec.child("selector"), Default::default(), errors);
    const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let (mut exclusive, mut shared) = (false, false);
    for mode in modes.items() {
        if !MODES.contains(&mode.str()) {
            errors.push(Error::not_supported(modes.path(), mode.str(), MODES));
        }
        if mode.str() == "ReadWriteOncePod" { exclusive = true } else { shared = true }
    }
    if exclusive && shared {
        let why = "may not use ReadWriteOncePod with other access modes";
        errors.push(Error::forbidden(modes.path(), why));
    }
    let storage = spec.child("resources").child("requests").child("storage");
    let at = spec.path().child("resources").key("storage");
    if !storage.exists() {
        errors.push(Error::required(&at, ""));
    } else {
        let moved = View::new(storage.value(), at.clone());
        quantities::validate_quantity("storage", &moved, errors);
        if Quantity::parse(storage.str()).is_ok_and(|q| q.sign() <= 0) {
            errors.push(Error::invalid(&at, storage.str(), checks::NOT_POSITIVE));
        }
    }
    let class = spec.child("storageClassName");
    if !class.str().is_empty() {
        checks::dns_subdomain(&class, errors);
    }
    let mode = spec.child("volumeMode");
    if mode.exists() {
        checks::supported_value(&mode, &["Block", "Filesystem"], errors);
    }
    data_source(spec, errors);
    let attributes = spec.child("volumeAttributesClassName");
    if !attributes.str().is_empty() {
        checks::dns_subdomain(&attributes, errors);
    }
}

fn data_source(spec: &View<'_>, errors: &mut ErrorList) {
    let (source, reference) = (spec.child("dataSource"), spec.child("dataSourceRef"));
    for source in [&source, &reference] {
        if !source.exists() {
            continue;
        }
        need(source, &["name", "kind"], errors);
        let group = source.child("apiGroup");
        if group.str().is_empty() {
            if source.child("kind").str() != "PersistentVolumeClaim" {
                let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
                errors.push(Error::invalid(source.path(), source.child("kind").str(), why));
            }
        } else {
            checks::dns_subdomain(&group, errors);
        }
    }
    let namespaced = !reference.child("namespace").str().is_empty();
    if namespaced && source.exists() {
        let why = "may not be specified when dataSourceRef.namespace is specified";
        errors.push(Error::invalid(spec.path(), source.path().to_string(), why));
    } else if !namespaced && source.exists() && reference.exists() {
        let differs =
            ["apiGroup", "kind", "name"].iter().any(|f| source.child(f).value() != reference.child(f).value());
        if differs {
            errors.push(Error::invalid(spec.path(), source.path().to_string(), "must match dataSourceRef"));
        }
    }
}
