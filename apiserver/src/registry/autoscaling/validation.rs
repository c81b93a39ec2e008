//! What may be wrong with an autoscaler (upstream: `pkg/apis/autoscaling/validation`).

use crate::registry::checks;
use crate::registry::core::quantities::validate_container_resource_name;
use coxswain_api::Value;
use coxswain_api::features::Feature;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names;
use coxswain_api::quantity::Quantity;

const WINDOW_SECONDS_MAX: i64 = 3600;
const PERIOD_SECONDS_MAX: i64 = 1800;

/// What a reference's `apiVersion` may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GroupRule {
    Required,
    Optional,
    /// It was wrong before, and an update may leave it so.
    Ignored,
}

pub(super) fn validate(object: &Value, old: Option<&Value>) -> ErrorList {
    let spec = View::root(object).child("spec");
    let before = old.map(|old| View::root(old).child("spec"));
    let mut errors = ErrorList::new();
    let (min, max) = (spec.child("minReplicas"), spec.child("maxReplicas"));
    // Who scales to zero already goes on doing so.
    let was_zero = before.as_ref().is_some_and(|b| b.child("minReplicas").opt_i64() == Some(0));
    let least = if Feature::HPAScaleToZero.enabled() || was_zero { 0 } else { 1 };
    if min.opt_i64().is_some_and(|m| m < least) {
        errors.push(Error::invalid(min.path(), min.i64(), format!("must be greater than or equal to {least}")));
    }
    match max.i64() {
        0 => errors.push(Error::required(max.path(), "must be set and greater than 0")),
        negative if negative < 0 => {
            errors.push(Error::invalid(max.path(), negative, "must be greater than or equal to 1"));
        }
        _ => {}
    }
    if min.opt_i64().is_some_and(|m| max.i64() < m) {
        errors.push(Error::invalid(max.path(), max.i64(), "must be greater than or equal to `minReplicas`"));
    }
    let target = spec.child("scaleTargetRef");
    let unchanged = before.as_ref().is_some_and(|before| {
        let before = before.child("scaleTargetRef");
        ["apiVersion", "kind"].iter().all(|field| before.child_named(field).str() == target.child_named(field).str())
    });
    let rule = match unchanged {
        true => GroupRule::Ignored,
        // The only kind of the core group that scales.
        false if target.child("kind").str() == "ReplicationController" => GroupRule::Optional,
        false => GroupRule::Required,
    };
    validate_reference(&target, rule, &mut errors);
    let metrics = spec.child("metrics");
    let described =
        |metric: &View<'_>| metric.child("object").child("describedObject").child("apiVersion").str().to_owned();
    let was_wrong = before.is_some_and(|before| {
        let objects = |m: &View<'_>| m.child("type").str() == "Object" && m.child("object").exists();
        before
            .child("metrics")
            .items()
            .filter(objects)
            .any(|m| group_error(&described(&m), GroupRule::Optional).is_some())
    });
    let rule = if was_wrong { GroupRule::Ignored } else { GroupRule::Optional };
    let mut scales_from_zero = false;
    for metric in metrics.items() {
        validate_metric(&metric, rule, &mut errors);
        scales_from_zero |= matches!(metric.child("type").str(), "Object" | "External");
    }
    if min.opt_i64() == Some(0) && !scales_from_zero {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.push(Error::forbidden(metrics.path(), why));
    }
    let behavior = spec.child("behavior");
    for direction in ["scaleUp", "scaleDown"] {
        let rules = behavior.child(direction);
        if rules.exists() {
            validate_rules(&rules, &mut errors);
        }
    }
    errors
}

pub(super) fn validate_status(object: &Value) -> ErrorList {
    let status = View::root(object).child("status");
    let mut errors = ErrorList::new();
    for field in ["currentReplicas", "desiredReplicas"] {
        let value = status.child(field);
        if value.i64() < 0 {
            errors.push(Error::invalid(value.path(), value.i64(), "must be greater than or equal to 0"));
        }
    }
    errors
}

fn validate_reference(reference: &View<'_>, rule: GroupRule, errors: &mut ErrorList) {
    for field in ["kind", "name"] {
        let value = reference.child(field);
        if value.is_empty() {
            errors.push(Error::required(value.path(), ""));
            continue;
        }
        for why in names::path_segment(value.str(), false) {
            errors.push(Error::invalid(value.path(), value.str(), why));
        }
    }
    let version = reference.child("apiVersion");
    if let Some(why) = group_error(version.str(), rule) {
        errors.push(Error::invalid(version.path(), version.str(), why));
    }
}

/// What is wrong with a group and version (upstream: `ValidateAPIVersion`).
fn group_error(api_version: &str, rule: GroupRule) -> Option<String> {
    if rule == GroupRule::Ignored {
        return None;
    }
    if api_version.matches('/').count() > 1 {
        return Some(format!("unexpected GroupVersion string: {api_version}"));
    }
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    (rule == GroupRule::Required && group.is_empty()).then(|| "apiVersion must specify API group".to_owned())
}

fn validate_metric(metric: &View<'_>, rule: GroupRule, errors: &mut ErrorList) {
    const KINDS: [(&str, &str); 5] = [
        ("ContainerResource", "containerResource"),
        ("External", "external"),
        ("Object", "object"),
        ("Pods", "pods"),
        ("Resource", "resource"),
    ];
    let kind = metric.child("type");
    if kind.is_empty() {
        errors.push(Error::required(kind.path(), "must specify a metric source type"));
    }
    let expected = KINDS.iter().find(|(name, _)| *name == kind.str()).map(|(_, field)| *field);
    let unknown = || Error::not_supported(kind.path(), kind.str(), &KINDS.map(|(name, _)| name));
    if expected.is_none() {
        errors.push(unknown());
    }
    let order = ["object", "external", "pods", "resource", "containerResource"];
    let present: Vec<&str> = order.into_iter().filter(|f| metric.child_named(f).exists()).collect();
    if let Some(first) = present.first() {
        let source = metric.child_named(first);
        match *first {
            "object" => {
                validate_reference(&source.child("describedObject"), rule, errors);
                validate_identifier(&source.child("metric"), errors);
                let target = source.child("target");
                validate_target(&target, errors);
                one_of_values(&target, "must set either a target value or averageValue", errors);
            }
            "external" => {
                validate_identifier(&source.child("metric"), errors);
                let target = source.child("target");
                validate_target(&target, errors);
                one_of_values(&target, "must set either a target value for metric or a per-pod target", errors);
                if target.child("value").exists() && target.child("averageValue").exists() {
                    let why = "may not set both a target value for metric and a per-pod target";
                    errors.push(Error::forbidden(target.child("value").path(), why));
                }
            }
            "pods" => {
                validate_identifier(&source.child("metric"), errors);
                let target = source.child("target");
                validate_target(&target, errors);
                let average = target.child("averageValue");
                if !average.exists() {
                    errors.push(Error::required(average.path(), "must specify a positive target averageValue"));
                }
            }
            _ => validate_resource(&source, *first == "containerResource", errors),
        }
    }
    match expected {
        Some(field) if !present.contains(&field) => {
            let why = "must populate information for the given metric source";
            errors.push(Error::required(metric.child_named(field).path(), why));
        }
        Some(_) => {}
        // Upstream finds it twice: among the kinds there are, and as the kind whose details are missing.
        None => errors.push(unknown()),
    }
    if present.len() != 1 {
        for other in present.iter().filter(|p| Some(**p) != expected) {
            let why = "must populate the given metric source only";
            errors.push(Error::forbidden(metric.child_named(other).path(), why));
        }
    }
}

fn validate_resource(source: &View<'_>, of_container: bool, errors: &mut ErrorList) {
    let name = source.child("name");
    if name.is_empty() {
        errors.push(Error::required(name.path(), "must specify a resource name"));
    }
    let container = source.child("container");
    if of_container && !name.is_empty() {
        validate_container_resource_name(name.str(), name.path(), errors);
    }
    if of_container && container.is_empty() {
        errors.push(Error::required(container.path(), "must specify a container"));
    } else if of_container {
        checks::dns_label(&container, errors);
    }
    let target = source.child("target");
    validate_target(&target, errors);
    let (utilization, value) = (target.child("averageUtilization"), target.child("averageValue"));
    if !utilization.exists() && !value.exists() {
        let why = "must set either a target raw value or a target utilization";
        errors.push(Error::required(utilization.path(), why));
    }
    if utilization.exists() && value.exists() {
        let why = "may not set both a target raw value and a target utilization";
        errors.push(Error::forbidden(value.path(), why));
    }
}

fn one_of_values(target: &View<'_>, why: &str, errors: &mut ErrorList) {
    let average = target.child("averageValue");
    if !target.child("value").exists() && !average.exists() {
        errors.push(Error::required(average.path(), why));
    }
}

fn validate_identifier(metric: &View<'_>, errors: &mut ErrorList) {
    let name = metric.child("name");
    if name.is_empty() {
        errors.push(Error::required(name.path(), "must specify a metric name"));
    } else {
        for why in names::path_segment(name.str(), false) {
            errors.push(Error::invalid(name.path(), name.str(), why));
        }
    }
}

fn validate_target(target: &View<'_>, errors: &mut ErrorList) {
    let kind = target.child("type");
    if kind.is_empty() {
        errors.push(Error::required(kind.path(), "must specify a metric target type"));
    }
    if !matches!(kind.str(), "Utilization" | "Value" | "AverageValue") {
        let why = "must be either Utilization, Value, or AverageValue";
        errors.push(Error::invalid(kind.path(), kind.str(), why));
    }
    for field in ["value", "averageValue"] {
        let value = target.child(field);
        if Quantity::parse(value.str()).is_ok_and(|q| q.sign() != 1) {
            errors.push(Error::invalid(value.path(), value.str(), "must be positive"));
        }
    }
    let utilization = target.child("averageUtilization");
    if utilization.opt_i64().is_some_and(|u| u < 1) {
        errors.push(Error::invalid(utilization.path(), utilization.i64(), "must be greater than 0"));
    }
}

fn validate_rules(rules: &View<'_>, errors: &mut ErrorList) {
    let window = rules.child("stabilizationWindowSeconds");
    if window.i64() < 0 {
        errors.push(Error::invalid(window.path(), window.i64(), "must be greater than or equal to zero"));
    }
    if window.i64() > WINDOW_SECONDS_MAX {
        let why = format!("must be less than or equal to {WINDOW_SECONDS_MAX}");
        errors.push(Error::invalid(window.path(), window.i64(), why));
    }
    let select = rules.child("selectPolicy");
    if let Some(policy) = select.opt_str()
        && !matches!(policy, "Disabled" | "Max" | "Min")
    {
        errors.push(Error::not_supported(select.path(), policy, &["Disabled", "Max", "Min"]));
    }
    let policies = rules.child("policies");
    if policies.is_empty() {
        errors.push(Error::required(policies.path(), "must specify at least one Policy"));
    }
    for policy in policies.items() {
        let (kind, value, period) = (policy.child("type"), policy.child("value"), policy.child("periodSeconds"));
        if !matches!(kind.str(), "Percent" | "Pods") {
            errors.push(Error::not_supported(kind.path(), kind.str(), &["Percent", "Pods"]));
        }
        for number in [&value, &period] {
            if number.i64() <= 0 {
                errors.push(Error::invalid(number.path(), number.i64(), "must be greater than zero"));
            }
        }
        if period.i64() > PERIOD_SECONDS_MAX {
            let why = format!("must be less than or equal to {PERIOD_SECONDS_MAX}");
            errors.push(Error::invalid(period.path(), period.i64(), why));
        }
    }
    let tolerance = rules.child("tolerance");
    if Quantity::parse(tolerance.str()).is_ok_and(|q| q.sign() < 0) {
        errors.push(Error::invalid(tolerance.path(), tolerance.str(), "must be greater than or equal to 0"));
    }
}
