//! What classes of devices and claims must satisfy (upstream: `pkg/apis/resource/validation`).

use super::limits::{at_most, each, set};
use super::names::full_name;
use crate::admission::cel::{Names, Wanted, check};
use crate::registry::checks::{self, NOT_POSITIVE};
use crate::registry::core::pod_spec::{csi_driver_name, only_labels_and_annotations};
use crate::registry::core::quantities::is_extended;
use crate::registry::internal::{Dump, devices, dump};
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, names};
use std::collections::HashSet;

const REQUESTS_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const SELECTORS_MAX: usize = 32;
const CONSTRAINTS_MAX: usize = 32;
pub(super) const CONFIG_MAX: usize = 32;
const EXPRESSION_BYTES_MAX: i64 = 10 * 1024;
const PARAMETERS_BYTES_MAX: usize = 10 * 1024;
pub(super) const TAINT_EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

pub(super) fn device_class(object: &Value) -> ErrorList {
    let (spec, mut errors) = (View::root(object).child("spec"), ErrorList::new());
    selectors(&spec.child("selectors"), &mut errors);
    let config = spec.child("config");
    each(&config, CONFIG_MAX, &mut errors, configuration);
    let name = spec.child("extendedResourceName");
    if name.opt_str().is_some_and(|n| !is_extended(n)) {
        errors.push(Error::invalid(name.path(), name.str(), "must be a valid extended resource name"));
    }
    errors
}

pub(super) fn claim_spec(spec: &View<'_>, errors: &mut ErrorList) {
    let devices = spec.child("devices");
    let known = known_requests(spec);
    set(&devices.child("requests"), REQUESTS_MAX, "name", errors, device_request);
    let constraints = devices.child("constraints");
    each(&constraints, CONSTRAINTS_MAX, errors, |constraint, errors| {
        named_requests(&constraint.child("requests"), &known, errors);
        let (matching, distinct) = (constraint.child("matchAttribute"), constraint.child("distinctAttribute"));
        if matching.exists() {
            full_name(&matching, errors);
        } else if distinct.exists() {
            full_name(&distinct, errors);
        } else {
            let why =
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
            errors.push(Error::required(constraint.path(), why));
        }
    });
    let config = devices.child("config");
    each(&config, CONFIG_MAX, errors, |entry, errors| {
        named_requests(&entry.child("requests"), &known, errors);
        configuration(entry, errors);
    });
}

/// The names of a claim's requests, and of the alternatives of each.
pub(super) fn known_requests(spec: &View<'_>) -> HashSet<String> {
    let mut known = HashSet::new();
    for request in spec.child("devices").child("requests").items() {
        let name = request.child("name").str();
        known.insert(name.to_owned());
        known.extend(request.child("firstAvailable").items().map(|sub| format!("{name}/{}", sub.child("name").str())));
    }
    known
}

pub(super) fn named_requests(named: &View<'_>, known: &HashSet<String>, errors: &mut ErrorList) {
    if !at_most(named, REQUESTS_MAX, errors) {
        return;
    }
    named.items().for_each(|name| named_request(&name, known, errors));
    let mut seen = HashSet::new();
    for name in named.items() {
        if !seen.insert(name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        }
    }
}

pub(super) fn named_request(name: &View<'_>, known: &HashSet<String>, errors: &mut ErrorList) {
    let segments: Vec<&str> = name.str().split('/').collect();
    if segments.len() <= 2 {
        for segment in segments {
            let wrong = names::dns1123_label(segment, false);
            errors.extend(wrong.into_iter().map(|why| Error::invalid(name.path(), segment, why)));
        }
    }
    if !known.contains(name.str()) {
        let why =
            "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
        errors.push(Error::invalid(name.path(), name.str(), why));
    }
}

fn device_request(request: &View<'_>, errors: &mut ErrorList) {
    checks::dns_label(&request.child("name"), errors);
    let (exactly, alternatives) = (request.child("exactly"), request.child("firstAvailable"));
    match (exactly.exists(), !alternatives.is_empty()) {
        (false, false) => {
            errors.push(Error::required(request.path(), "exactly one of `exactly` or `firstAvailable` is required"));
        }
        (true, true) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.push(Error::invalid(request.path(), &Value::Null, why));
        }
        (true, false) => asked(&exactly, errors),
        (false, true) => set(&alternatives, ALTERNATIVES_MAX, "name", errors, alternative),
    }
}

fn alternative(request: &View<'_>, errors: &mut ErrorList) {
    checks::dns_label(&request.child("name"), errors);
    asked(request, errors);
}

/// The class, the selectors and the number of a request.
fn asked(request: &View<'_>, errors: &mut ErrorList) {
    let class = request.child("deviceClassName");
    if class.is_empty() {
        errors.push(Error::required(class.path(), ""));
    } else {
        checks::dns_subdomain(&class, errors);
    }
    selectors(&request.child("selectors"), errors);
    let (mode, count) = (request.child("allocationMode"), request.child("count"));
    match mode.str() {
        "All" if count.i64() != 0 => {
            errors.push(Error::invalid(
                count.path(),
                count.i64(),
                "must not be specified when allocationMode is 'All'",
            ));
        }
        "ExactCount" if count.i64() <= 0 => errors.push(Error::invalid(count.path(), count.i64(), NOT_POSITIVE)),
        "All" | "ExactCount" => {}
        other => errors.push(Error::not_supported(mode.path(), other, &["All", "ExactCount"])),
    }
    request.child("tolerations").items().for_each(|t| toleration(&t, errors));
}

fn toleration(toleration: &View<'_>, errors: &mut ErrorList) {
    let (key, operator) = (toleration.child("key"), toleration.child("operator"));
    let (value, effect) = (toleration.child("value"), toleration.child("effect"));
    if !key.is_empty() {
        checks::qualified_name(&key, errors);
    }
    match operator.str() {
        "Exists" if !value.is_empty() => {
            errors.push(Error::invalid(value.path(), value.str(), "must be empty for operator `Exists`"));
        }
        "Exists" => {}
        "Equal" => checks::all(&value, names::label_value(value.str()), errors),
        _ => checks::one_of(&operator, &["Equal", "Exists"], errors),
    }
    if !effect.is_empty() {
        checks::supported_value(&effect, &TAINT_EFFECTS, errors);
    }
}

fn selectors(selectors: &View<'_>, errors: &mut ErrorList) {
    each(selectors, SELECTORS_MAX, errors, |selector, errors| {
        let cel = selector.child("cel");
        if !cel.exists() {
            return errors.push(Error::required(cel.path(), ""));
        }
        let expression = cel.child("expression");
        if expression.str().len() as i64 > EXPRESSION_BYTES_MAX {
            return errors.push(Error::too_long(expression.path(), EXPRESSION_BYTES_MAX));
        }
        let wrong = if expression.is_empty() { Some(NO_EXPRESSION.to_owned()) } else { compile(expression.str()) };
        errors.extend(wrong.map(|why| Error::invalid(expression.path(), expression.str(), why)));
    });
}

const NO_EXPRESSION: &str = "compilation failed: ERROR: <input>:1:0: Syntax error: mismatched input '<EOF>' expecting \
                             {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, \
                             STRING, BYTES, IDENTIFIER}";

fn compile(expression: &str) -> Option<String> {
    check(expression, Wanted::BoolOrUnknown, &Names::of(&["device"])).err()
}

/// Parameters for a driver.
pub(super) fn configuration(entry: &View<'_>, errors: &mut ErrorList) {
    let opaque = entry.child("opaque");
    if !opaque.exists() {
        errors.push(Error::required(opaque.path(), ""));
        return;
    }
    csi_driver_name(&opaque.child("driver"), errors);
    raw_object(&opaque.child("parameters"), PARAMETERS_BYTES_MAX, errors);
}

/// An object of any shape, up to a size.
pub(super) fn raw_object(object: &View<'_>, max: usize, errors: &mut ErrorList) {
    match object.value() {
        None => errors.push(Error::required(object.path(), "")),
        Some(value) if value.to_string().len() > max => errors.push(Error::too_long(object.path(), max as i64)),
        Some(Value::Object(_)) => {}
        Some(_) => errors.push(Error::invalid(object.path(), "<value omitted>", "must be a valid JSON object")),
    }
}

/// Nothing of a template may change. Its metadata shows as if it were part of the spec.
pub(super) fn unchanged_template(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    if checks::same(new.value(), old.value()) {
        return;
    }
    let metadata = new.child("metadata");
    let given = devices::METADATA.iter().map(|field| (*field, metadata.child(field)));
    let mut shown: Vec<String> =
        given.filter_map(|(field, value)| Some(format!("\"{field}\":{}", value.value()?))).collect();
    shown.push(format!("\"Spec\":{}", dump(&new.child("spec"), &devices::CLAIM).0));
    errors.push(Error::invalid(new.path(), Dump(format!("{{{}}}", shown.join(","))), checks::IMMUTABLE));
}

pub(super) fn template_spec(spec: &View<'_>, errors: &mut ErrorList) {
    only_labels_and_annotations(&spec.child("metadata"), errors);
    claim_spec(&spec.child("spec"), errors);
}

pub(super) fn unchanged_claim(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    if !checks::same(new.value(), old.value()) {
        errors.push(Error::invalid(new.path(), dump(new, &devices::CLAIM), checks::IMMUTABLE));
    }
}

pub(super) fn capital(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn claims_name_their_requests() {
        let claim = json!({"devices": {
            "requests": [
                {"name": "a", "firstAvailable": [
                    {"name": "x", "deviceClassName": "c", "allocationMode": "ExactCount", "count": 1},
                    {"name": "x", "deviceClassName": "c", "allocationMode": "All"},
                ]},
                {"name": "a", "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1, "tolerations": [
                    {"operator": "Exists", "value": "v", "effect": "Soon"},
                ]}},
            ],
            "constraints": [{"requests": ["a/x", "a/y"], "matchAttribute": "example.org/n"}],
            "config": [{"requests": ["a"], "opaque": {"driver": "d.example.org", "parameters": "text"}}],
        }});
        let mut errors = ErrorList::new();
        claim_spec(&View::root(&claim), &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "devices.requests[0].firstAvailable[1]: Duplicate value: \"x\"",
                "devices.requests[1].exactly.tolerations[0].value: Invalid value: \"v\": must be empty for operator `Exists`",
                "devices.requests[1].exactly.tolerations[0].effect: Unsupported value: \"Soon\": supported values: \"NoExecute\", \"NoSchedule\", \"None\"",
                "devices.requests[1]: Duplicate value: \"a\"",
                "devices.constraints[0].requests[1]: Invalid value: \"a/y\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
                "devices.config[0].opaque.parameters: Invalid value: \"<value omitted>\": must be a valid JSON object",
            ]
        );
    }
}
