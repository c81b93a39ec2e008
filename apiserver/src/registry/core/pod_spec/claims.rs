//! Claims of storage, and volumes that come with a claim of their own (upstream: `ValidatePersistentVolumeClaimSpec`,
//! `validateEphemeralVolumeSource`).

use super::volumes::need;
use crate::registry::checks::{self, SelectorLeniency};
use crate::registry::core::quantities;
use crate::registry::internal::Dump;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names;
use coxswain_api::quantity::Quantity;

/// The metadata of a claim to be made, which gets its name otherwise (upstream: `ValidateTemplateObjectMeta`).
pub fn only_labels_and_annotations(metadata: &View<'_>, errors: &mut ErrorList) {
    crate::registry::metadata::validate_annotations(&metadata.child("annotations"), errors);
    checks::labels(&metadata.child("labels"), errors);
    for (field, value) in metadata.entries() {
        let set = value.value().is_some_and(|v| !v.is_null() && v.as_str() != Some(""));
        if set && !matches!(field, "labels" | "annotations") {
            // Upstream derives the name from that of the Go field.
            let name = if field == "uid" { "uID" } else { field };
            errors.push(Error::forbidden(&metadata.path().child_named(name), "cannot be set"));
        }
    }
}

pub(super) fn ephemeral(source: &View<'_>, volume: &View<'_>, pod_name: Option<&str>, errors: &mut ErrorList) {
    let template = source.child("volumeClaimTemplate");
    if !template.exists() {
        errors.push(Error::required(template.path(), ""));
    } else {
        only_labels_and_annotations(&template.child("metadata"), errors);
        persistent_volume_claim_spec(&template.child("spec"), ClaimLeniency::default(), errors);
    }
    let name = volume.child("name");
    if let Some(pod) = pod_name.filter(|_| !name.str().is_empty()) {
        let claim = format!("{pod}-{}", name.str());
        for why in names::dns1123_subdomain(&claim, false) {
            errors.push(Error::invalid(name.path(), name.str(), format!("PVC name \"{claim}\": {why}")));
        }
    }
}

/// What an update may keep although it is wrong by now.
#[derive(Clone, Copy, Default)]
pub struct ClaimLeniency {
    pub invalid_selector_values: bool,
    pub invalid_source_group: bool,
}

/// The spec of a claim (upstream: `ValidatePersistentVolumeClaimSpec`).
pub fn persistent_volume_claim_spec(spec: &View<'_>, leniency: ClaimLeniency, errors: &mut ErrorList) {
    let modes = spec.child("accessModes");
    if modes.is_empty() {
        errors.push(Error::required(modes.path(), "at least 1 access mode is required"));
    }
    let selectors = SelectorLeniency { allow_invalid_values: leniency.invalid_selector_values };
    checks::label_selector(&spec.child("selector"), selectors, errors);
    access_modes(&modes, errors);
    let storage = spec.child("resources").child("requests").child("storage");
    let at = spec.path().child("resources").key("storage");
    if !storage.exists() {
        errors.push(Error::required(&at, ""));
    } else if Quantity::parse(storage.str()).is_ok_and(|q| q.sign() <= 0) {
        errors.push(Error::invalid(&at, storage.str(), checks::NOT_POSITIVE));
    } else {
        quantities::validate_quantity("storage", &View::new(storage.value(), at), errors);
    }
    class_name(&spec.child("storageClassName"), errors);
    let mode = spec.child("volumeMode");
    if mode.exists() {
        checks::supported_value(&mode, &["Block", "Filesystem"], errors);
    }
    data_source(spec, leniency, errors);
    class_name(&spec.child("volumeAttributesClassName"), errors);
}

/// Modes of access, which claims and volumes write alike.
pub fn access_modes(modes: &View<'_>, errors: &mut ErrorList) {
    const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let (mut exclusive, mut shared) = (false, false);
    for mode in modes.items() {
        checks::supported_value(&View::new(mode.value(), modes.path().clone()), MODES, errors);
        exclusive |= mode.str() == "ReadWriteOncePod";
        shared |= mode.str() != "ReadWriteOncePod" && MODES.contains(&mode.str());
    }
    if exclusive && shared {
        let why = "may not use ReadWriteOncePod with other access modes";
        errors.push(Error::forbidden(modes.path(), why));
    }
}

/// The name of a class, if there is one.
pub fn class_name(class: &View<'_>, errors: &mut ErrorList) {
    if !class.is_empty() {
        checks::dns_subdomain(class, errors);
    }
}

fn data_source(spec: &View<'_>, leniency: ClaimLeniency, errors: &mut ErrorList) {
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
        } else if !leniency.invalid_source_group {
            checks::dns_subdomain(&group, errors);
        }
    }
    let namespace = reference.child("namespace");
    if !namespace.is_empty() {
        checks::dns_label(&namespace, errors);
    }
    // Upstream shows the path of the source, which has nothing in it that JSON could show.
    let mut wrong = |why: &str| errors.push(Error::invalid(spec.path(), Dump("{}".to_owned()), why));
    if !namespace.is_empty() && source.exists() {
        wrong("may not be specified when dataSourceRef.namespace is specified");
    } else if namespace.is_empty() && source.exists() && reference.exists() {
        let differs =
            ["apiGroup", "kind", "name"].iter().any(|f| source.child(f).value() != reference.child(f).value());
        if differs {
            wrong("must match dataSourceRef");
        }
    }
}
