//! LimitRange (upstream: `pkg/registry/core/limitrange`, `ValidateLimitRange`).

use super::quantities::{overcommit_allowed, validate_container_resource_name, validate_resource_name};
use crate::registry::metadata;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::quantity::{Format, Quantity};
use coxswain_api::{Map, Value, names};
use std::collections::BTreeSet;

pub struct LimitRanges;

impl Resource for LimitRanges {
    /// A limit on containers that states only some of its values implies the others.
    fn set_defaults(&self, object: &mut Value) {
        let limits = object.pointer_mut("/spec/limits").and_then(Value::as_array_mut);
        for limit in limits.into_iter().flatten().filter(|l| l["type"] == "Container") {
            fill(limit, "default", &["max"]);
            fill(limit, "defaultRequest", &["default", "min"]);
        }
    }

    /// A nameless limit range is given a name, as it always was.
    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        if metadata::text(object, "name").is_empty() {
            metadata::set(object, "name", uuid::Uuid::new_v4().to_string());
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let mut types: Vec<&str> = Vec::new();
        for limit in View::root(object).child("spec").child("limits").items() {
            let kind = limit.child("type");
            validate_type(&kind, &mut errors);
            if types.contains(&kind.str()) {
                errors.push(Error::duplicate(kind.path(), kind.str()));
            }
            types.push(kind.str());
            validate_limit(&limit, kind.str(), &mut errors);
        }
        errors
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: false, whole: true, whole_first: false }
    }
}

/// Sets what is missing of `target` from the first of `sources` that has it.
fn fill(limit: &mut Value, target: &str, sources: &[&str]) {
    let mut filled = limit.get(target).and_then(Value::as_object).cloned().unwrap_or_default();
    for source in sources {
        let given: Map<String, Value> = limit.get(source).and_then(Value::as_object).cloned().unwrap_or_default();
        for (key, value) in given {
            filled.entry(key).or_insert(value);
        }
    }
    if !filled.is_empty() {
        limit[target] = filled.into();
    }
}

fn validate_type(kind: &View<'_>, errors: &mut ErrorList) {
    let name = kind.str();
    let wrong = names::qualified_name(name);
    let known = matches!(name, "Pod" | "Container" | "PersistentVolumeClaim");
    if wrong.is_empty() && !name.contains('/') && !known {
        errors.push(Error::invalid(kind.path(), name, "must be a standard limit type or fully qualified"));
    }
    for why in wrong {
        errors.push(Error::invalid(kind.path(), name, why));
    }
}

fn validate_limit(limit: &View<'_>, kind: &str, errors: &mut ErrorList) {
    let mut keys: BTreeSet<&str> = BTreeSet::new();
    let mut check = |field: &'static str, errors: &mut ErrorList| {
        for (key, value) in limit.child(field).entries() {
            match kind {
                "Pod" | "Container" => validate_container_resource_name(key, value.path(), errors),
                _ => {
                    validate_resource_name(key, value.path(), errors);
                }
            }
            keys.insert(key);
        }
    };
    check("max", errors);
    check("min", errors);
    let pod = kind == "Pod";
    for field in ["default", "defaultRequest"] {
        if !pod {
            check(field, errors);
        } else if !limit.child(field).is_empty() {
            let path = limit.child(field);
            errors.push(Error::forbidden(path.path(), "may not be specified when `type` is 'Pod'"));
        }
    }
    if kind == "PersistentVolumeClaim"
        && !limit.child("min").child("storage").exists()
        && !limit.child("max").child("storage").exists()
    {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        errors.push(Error::required(limit.child("limits").path(), why));
    }
    check("maxLimitRequestRatio", errors);

    for key in keys {
        let quantity = |field: &'static str| {
            if pod && field.starts_with("default") {
                return None;
            }
            Quantity::parse(limit.child(field).child_named(key).opt_str()?).ok()
        };
        let (min, max) = (quantity("min"), quantity("max"));
        let (default, request) = (quantity("default"), quantity("defaultRequest"));
        let ratio = quantity("maxLimitRequestRatio");
        let mut wrong = |field: &'static str, shown: &Quantity, why: String| {
            let path = limit.child(field).path().key(key);
            errors.push(Error::invalid(&path, shown.to_string(), why));
        };
        if let (Some(min), Some(max)) = (&min, &max)
            && min > max
        {
            wrong("min", min, format!("min value {min} is greater than max value {max}"));
        }
        if let (Some(request), Some(min)) = (&request, &min)
            && min > request
        {
            wrong(
                "defaultRequest",
                request,
                format!("min value {min} is greater than default request value {request}"),
            );
        }
        if let (Some(request), Some(max)) = (&request, &max)
            && request > max
        {
            wrong(
                "defaultRequest",
                request,
                format!("default request value {request} is greater than max value {max}"),
            );
        }
        if let (Some(request), Some(default)) = (&request, &default)
            && request > default
        {
            let why = format!("default request value {request} is greater than default limit value {default}");
            wrong("defaultRequest", request, why);
        }
        if let (Some(default), Some(min)) = (&default, &min)
            && min > default
        {
            wrong("default", min, format!("min value {min} is greater than default value {default}"));
        }
        if let (Some(default), Some(max)) = (&default, &max)
            && default > max
        {
            // Upstream shows the bound here, and not what exceeds it.
            wrong("default", max, format!("default value {default} is greater than max value {max}"));
        }
        if let Some(ratio) = &ratio
            && *ratio < Quantity::new(1, Format::DecimalSi)
        {
            wrong("maxLimitRequestRatio", ratio, format!("ratio {ratio} is less than 1"));
        }
        if let (Some(ratio), Some(min), Some(max)) = (&ratio, &min, &max) {
            let limit = max.as_f64() / min.as_f64();
            if ratio.as_f64() > limit {
                wrong("maxLimitRequestRatio", ratio, format!("ratio {ratio} is greater than max/min = {limit:.6}"));
            }
        }
        if let (Some(default), Some(request)) = (&default, &request)
            && !overcommit_allowed(key)
            && default != request
        {
            let why = format!("default value {default} must equal to defaultRequest value {request} in {key}");
            wrong("defaultRequest", request, why);
        }
    }
}
