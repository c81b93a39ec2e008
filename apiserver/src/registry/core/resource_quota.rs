//! ResourceQuota (upstream: `pkg/registry/core/resourcequota`, `ValidateResourceQuota`).

use super::quantities::{is_standard_quota_resource, validate_quantity, validate_quota_resource_name};
use crate::registry::internal::{SCOPE_SELECTOR, dump};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};

pub struct ResourceQuotas;

impl Resource for ResourceQuotas {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = validate_spec(object);
        errors.extend(validate_status(object));
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" {
            return validate_status(object);
        }
        let mut errors = validate_spec(object);
        let scopes = View::root(object).child("spec").child("scopes");
        let sorted = |v: &View<'_>| {
            let mut list: Vec<String> = v.items().map(|s| s.str().to_owned()).collect();
            list.sort();
            list.dedup();
            list
        };
        if sorted(&scopes) != sorted(&View::root(old).child("spec").child("scopes")) {
            errors.push(Error::invalid(scopes.path(), &scopes, "field is immutable"));
        }
        errors
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }
}

fn validate_amounts(amounts: &View<'_>, errors: &mut ErrorList) {
    for (name, amount) in amounts.entries() {
        validate_quota_resource_name(name, amount.path(), errors);
        validate_quantity(name, &amount, errors);
    }
}

fn validate_status(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = View::root(object).child("status");
    validate_amounts(&status.child("hard"), &mut errors);
    validate_amounts(&status.child("used"), &mut errors);
    errors
}

fn validate_spec(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = View::root(object).child("spec");
    let hard = spec.child("hard");
    validate_amounts(&hard, &mut errors);
    let scopes = spec.child("scopes");
    let names: Vec<&str> = scopes.items().map(|s| s.str()).collect();
    for scope in &names {
        if !is_scope(scope) {
            errors.push(Error::invalid(scopes.path(), &scopes, "unsupported scope"));
        }
        for (resource, _) in hard.entries() {
            if is_standard_quota_resource(resource) && !fits(scope, resource) {
                errors.push(Error::invalid(scopes.path(), &scopes, "unsupported scope applied to resource"));
            }
        }
    }
    conflicting(&names, &scopes, &mut errors);
    let selector = spec.child("scopeSelector");
    if selector.exists() {
        validate_selector(&selector, &hard, &scopes, &mut errors);
    }
    errors
}

fn validate_selector(selector: &View<'_>, hard: &View<'_>, scopes: &View<'_>, errors: &mut ErrorList) {
    let list = selector.child("matchExpressions");
    let path = list.path();
    let mut names: Vec<&str> = Vec::new();
    for requirement in list.items() {
        let scope = requirement.child("scopeName").str();
        let operator = requirement.child("operator").str();
        let values = requirement.child("values");
        if !is_scope(scope) {
            errors.push(Error::invalid(&path.child("scopeName"), scope, "unsupported scope"));
        }
        for (resource, _) in hard.entries() {
            if is_standard_quota_resource(resource) && !fits(scope, resource) {
                errors.push(Error::invalid(
                    path,
                    dump(selector, &SCOPE_SELECTOR),
                    "unsupported scope applied to resource",
                ));
            }
        }
        let only_exists = matches!(
            scope,
            "BestEffort" | "NotBestEffort" | "Terminating" | "NotTerminating" | "CrossNamespacePodAffinity"
        );
        if only_exists && operator != "Exists" {
            let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
                       ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
                       ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(Error::invalid(&path.child("operator"), operator, why));
        }
        match operator {
            "In" | "NotIn" => {
                if values.is_empty() {
                    let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                    errors.push(Error::required(&path.child("values"), why));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                    errors.push(Error::invalid(&path.child("values"), &values, why));
                }
            }
            other => errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator")),
        }
        names.push(scope);
    }
    for pair in CONFLICTS {
        if pair.iter().all(|s| names.contains(s)) {
            errors.push(Error::invalid(path, scopes, "conflicting scopes"));
        }
    }
}

const CONFLICTS: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

fn conflicting(names: &[&str], scopes: &View<'_>, errors: &mut ErrorList) {
    for pair in CONFLICTS {
        if pair.iter().all(|s| names.contains(s)) {
            errors.push(Error::invalid(scopes.path(), scopes, "conflicting scopes"));
        }
    }
}

fn is_scope(name: &str) -> bool {
    matches!(
        name,
        "Terminating"
            | "NotTerminating"
            | "BestEffort"
            | "NotBestEffort"
            | "PriorityClass"
            | "CrossNamespacePodAffinity"
            | "VolumeAttributesClass"
    )
}

/// Whether a quota of this scope can count this resource.
fn fits(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            matches!(
                resource,
                "pods" | "cpu" | "memory" | "requests.cpu" | "requests.memory" | "limits.cpu" | "limits.memory"
            )
        }
        _ => true,
    }
}
