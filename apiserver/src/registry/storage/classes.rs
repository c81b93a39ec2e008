//! StorageClass and VolumeAttributesClass: how volumes are made and what they can be told.

use crate::registry::checks;
use crate::registry::defaults::set_default;
use crate::registry::resource::Resource;
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const PARAMETERS_MAX: usize = 512;
const PARAMETERS_BYTES_MAX: usize = 256 * 1024;

/// Upstream lower-cases the name before it checks it, and shows it so.
fn qualified_lower(value: &View<'_>, errors: &mut ErrorList) {
    let lower = value.str().to_lowercase();
    if lower.is_empty() {
        errors.push(Error::required(value.path(), ""));
        return;
    }
    for why in coxswain_api::names::qualified_name(&lower) {
        errors.push(Error::invalid(value.path(), &lower, why));
    }
}

fn parameters(value: &View<'_>, required: bool, errors: &mut ErrorList) {
    if value.len() > PARAMETERS_MAX {
        errors.push(Error::too_long(value.path(), PARAMETERS_MAX as i64));
        return;
    }
    if required && value.is_empty() {
        errors.push(Error::required(value.path(), "must contain at least one key/value pair"));
    }
    let mut bytes = 0;
    for (key, text) in value.entries() {
        if key.is_empty() {
            errors.push(Error::invalid(value.path(), key, "field can not be empty."));
        }
        bytes += key.len() + text.str().len();
    }
    if bytes > PARAMETERS_BYTES_MAX {
        errors.push(Error::too_long(value.path(), PARAMETERS_BYTES_MAX as i64));
    }
}

pub struct StorageClasses;

impl Resource for StorageClasses {
    fn set_defaults(&self, object: &mut Value) {
        set_default(object, "reclaimPolicy", || json!("Delete"));
        set_default(object, "volumeBindingMode", || json!("Immediate"));
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (root, mut errors) = (View::root(object), ErrorList::new());
        qualified_lower(&root.child("provisioner"), &mut errors);
        parameters(&root.child("parameters"), false, &mut errors);
        let policy = root.child("reclaimPolicy");
        if !policy.is_empty() {
            checks::supported_value(&policy, &["Delete", "Retain"], &mut errors);
        }
        let mode = root.child("volumeBindingMode");
        if !mode.exists() {
            errors.push(Error::required(mode.path(), ""));
        } else {
            checks::supported_value(&mode, &["Immediate", "WaitForFirstConsumer"], &mut errors);
        }
        let topologies = root.child("allowedTopologies");
        // Upstream starts with as many empty terms as there are, so an empty one is a duplicate of each.
        let mut terms = vec![Topology::new(); topologies.len()];
        for term in topologies.items() {
            let topology = topology_term(&term, &mut errors);
            for _ in terms.iter().filter(|t| **t == topology) {
                errors.push(Error::duplicate(term.child("matchLabelExpressions").path(), ""));
            }
            terms.push(topology);
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let (new, old, mut errors) = (View::root(object), View::root(old), self.validate(ctx, object));
        checks::immutable(&new.child("parameters"), &old.child("parameters"), &mut errors);
        checks::immutable_text(&new.child("provisioner"), &old.child("provisioner"), &mut errors);
        for name in ["reclaimPolicy", "volumeBindingMode"] {
            checks::immutable(&new.child(name), &old.child(name), &mut errors);
        }
        errors
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}

/// The keys of a term with the values of each.
type Topology = BTreeMap<String, BTreeSet<String>>;

/// One term of `allowedTopologies` (upstream: `ValidateTopologySelectorTerm`).
fn topology_term(term: &View<'_>, errors: &mut ErrorList) -> Topology {
    let mut topology = Topology::new();
    for expression in term.child("matchLabelExpressions").items() {
        let values = expression.child("values");
        if values.is_empty() {
            errors.push(Error::required(values.path(), ""));
        }
        let mut seen = BTreeSet::new();
        for value in values.items() {
            if !seen.insert(value.str().to_owned()) {
                errors.push(Error::duplicate(value.path(), value.str()));
            }
        }
        let key = expression.child("key");
        checks::qualified_name(&key, errors);
        if topology.insert(key.str().to_owned(), seen).is_some() {
            errors.push(Error::duplicate(key.path(), key.str()));
        }
    }
    topology
}

pub struct VolumeAttributesClasses;

impl Resource for VolumeAttributesClasses {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (root, mut errors) = (View::root(object), ErrorList::new());
        qualified_lower(&root.child("driverName"), &mut errors);
        parameters(&root.child("parameters"), true, &mut errors);
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let (new, old, mut errors) = (View::root(object), View::root(old), ErrorList::new());
        for (name, why) in [
            ("driverName", "updates to driverName are forbidden."),
            ("parameters", "updates to parameters are forbidden."),
        ] {
            if !checks::same(new.child(name).value(), old.child(name).value()) {
                errors.push(Error::forbidden(new.child(name).path(), why));
            }
        }
        errors.extend(self.validate(ctx, object));
        errors
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}
