//! Checks that many kinds share (upstream: `apimachinery/pkg/api/validation`, `pkg/apis/core/validation` and
//! `apis/meta/v1/validation`).

use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Value, names};

pub const NEGATIVE: &str = "must be greater than or equal to 0";
pub const NOT_POSITIVE: &str = "must be greater than zero";
pub const IMMUTABLE: &str = "field is immutable";

/// Not below zero; an absent number is zero.
pub fn nonnegative(value: &View<'_>, errors: &mut ErrorList) {
    if value.i64() < 0 {
        errors.push(Error::invalid(value.path(), value.i64(), NEGATIVE));
    }
}

/// Every sentence about a value, each as an error of its own.
pub fn all(value: &View<'_>, wrong: Vec<String>, errors: &mut ErrorList) {
    for why in wrong {
        errors.push(Error::invalid(value.path(), value.str(), why));
    }
}

pub fn dns_label(value: &View<'_>, errors: &mut ErrorList) {
    all(value, names::dns1123_label(value.str(), false), errors);
}

pub fn dns_subdomain(value: &View<'_>, errors: &mut ErrorList) {
    all(value, names::dns1123_subdomain(value.str(), false), errors);
}

pub fn qualified_name(value: &View<'_>, errors: &mut ErrorList) {
    all(value, names::qualified_name(value.str()), errors);
}

/// Required if empty, and one of the supported values.
pub fn one_of(value: &View<'_>, supported: &[&str], errors: &mut ErrorList) {
    if value.str().is_empty() {
        errors.push(Error::required(value.path(), ""));
    } else {
        supported_value(value, supported, errors);
    }
}

/// One of the supported values, which are listed as given.
pub fn supported_value(value: &View<'_>, supported: &[&str], errors: &mut ErrorList) {
    if !supported.contains(&value.str()) {
        errors.push(Error::not_supported(value.path(), value.str(), supported));
    }
}

pub fn required(value: &View<'_>, errors: &mut ErrorList) {
    if value.str().is_empty() {
        errors.push(Error::required(value.path(), ""));
    }
}

/// The value must be what it was. Absence and emptiness of containers are one.
pub fn immutable(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    if !same(new.value(), old.value()) {
        errors.push(Error::invalid(new.path(), new, IMMUTABLE));
    }
}

/// The same for a text that upstream has no pointer to: absent, it is empty.
pub fn immutable_text(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    if new.str() != old.str() {
        errors.push(Error::invalid(new.path(), new.str(), IMMUTABLE));
    }
}

/// Equal as upstream's semantic equality has it: an empty list or map equals none.
pub fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    fn empty(v: Option<&Value>) -> bool {
        match v {
            None | Some(Value::Null) => true,
            Some(Value::Array(a)) => a.is_empty(),
            _ => false,
        }
    }
    a == b || empty(a) && empty(b)
}

/// Labels: keys and values, reported at the path of the map.
pub fn labels(labels: &View<'_>, errors: &mut ErrorList) {
    super::metadata::validate_labels(labels, errors);
}

/// What is not checked again where it was already wrong before.
#[derive(Clone, Copy, Default)]
pub struct SelectorLeniency {
    pub allow_invalid_values: bool,
}

/// A `metav1.LabelSelector`, if there is one.
pub fn label_selector(selector: &View<'_>, leniency: SelectorLeniency, errors: &mut ErrorList) {
    if !selector.exists() {
        return;
    }
    labels(&selector.child("matchLabels"), errors);
    for expression in selector.child("matchExpressions").items() {
        let values = expression.child("values");
        match expression.child("operator").str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(Error::required(values.path(), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(Error::forbidden(values.path(), why));
                }
            }
            other => {
                let path = expression.child("operator");
                errors.push(Error::invalid(path.path(), other, "not a valid selector operator"));
            }
        }
        qualified_name(&expression.child("key"), errors);
        if !leniency.allow_invalid_values {
            for value in values.items() {
                all(&value, names::label_value(value.str()), errors);
            }
        }
    }
}

/// `metav1.Condition`s of a status, each of a type of its own (upstream: `ValidateConditions`).
pub fn conditions(conditions: &View<'_>, errors: &mut ErrorList) {
    const REASON_BYTES_MAX: i64 = 1024;
    const MESSAGE_BYTES_MAX: i64 = 32 * 1024;
    let mut seen: Vec<&str> = Vec::new();
    for condition in conditions.items() {
        let field = |name: &'static str| condition.child(name);
        let (kind, status, reason, message) = (field("type"), field("status"), field("reason"), field("message"));
        if seen.contains(&kind.str()) {
            errors.push(Error::duplicate(kind.path(), kind.str()));
        }
        seen.push(kind.str());
        qualified_name(&kind, errors);
        supported_value(&status, &["False", "True", "Unknown"], errors);
        let observed = field("observedGeneration");
        if observed.i64() < 0 {
            errors.push(Error::invalid(observed.path(), observed.i64(), "must be greater than or equal to zero"));
        }
        if !field("lastTransitionTime").exists() {
            errors.push(Error::required(field("lastTransitionTime").path(), ""));
        }
        if reason.is_empty() {
            errors.push(Error::required(reason.path(), ""));
        } else {
            all(&reason, condition_reason(reason.str()), errors);
            if reason.str().len() as i64 > REASON_BYTES_MAX {
                errors.push(Error::too_long(reason.path(), REASON_BYTES_MAX));
            }
        }
        if message.str().len() as i64 > MESSAGE_BYTES_MAX {
            errors.push(Error::too_long(message.path(), MESSAGE_BYTES_MAX));
        }
    }
}

fn condition_reason(reason: &str) -> Vec<String> {
    const FORM: &str = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?";
    const WRONG: &str = "a condition reason must start with alphabetic character, optionally followed by a string of \
                         alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'";
    let good = reason.starts_with(|c: char| c.is_ascii_alphabetic())
        && reason.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' && reason.len() > 1)
        && reason.bytes().all(|b| b.is_ascii_alphanumeric() || b"_,:".contains(&b));
    if good {
        return Vec::new();
    }
    vec![names::regex_error(WRONG, FORM, &["my_name", "MY_NAME", "MyName", "ReasonA,ReasonB", "ReasonA:ReasonB"])]
}

/// Whether a LabelSelector restricts nothing.
pub fn is_empty_selector(selector: &View<'_>) -> bool {
    selector.child("matchLabels").is_empty() && selector.child("matchExpressions").is_empty()
}

/// A relative path without steps back.
pub fn descending_path(value: &View<'_>, at: &Path, errors: &mut ErrorList) {
    if value.str().starts_with('/') {
        errors.push(Error::invalid(at, value.str(), "must be a relative path"));
    }
    no_backsteps(value, at, errors);
}

pub fn no_backsteps(value: &View<'_>, at: &Path, errors: &mut ErrorList) {
    if value.str().split('/').any(|part| part == "..") {
        errors.push(Error::invalid(at, value.str(), "must not contain '..'"));
    }
}

/// A descending path that does not begin with two dots either: those names are reserved for atomic writes.
pub fn local_path(value: &View<'_>, at: &Path, errors: &mut ErrorList) {
    descending_path(value, at, errors);
    if value.str().starts_with("..") && !value.str().starts_with("../") {
        errors.push(Error::invalid(at, value.str(), "must not start with '..'"));
    }
}

/// A number of at least 0 or a percentage.
pub fn int_or_percent(value: &View<'_>, errors: &mut ErrorList) {
    match value.value() {
        Some(Value::String(text)) => {
            for why in names::percent(text) {
                errors.push(Error::invalid(value.path(), text, why));
            }
        }
        _ => nonnegative(value, errors),
    }
}

/// The number, or the number of percent.
pub fn int_or_percent_value(value: &View<'_>) -> i64 {
    match value.value() {
        Some(Value::String(text)) if names::percent(text).is_empty() => {
            coxswain_api::intstr::percentage(text).unwrap_or_default()
        }
        Some(other) => coxswain_api::intstr::int_value(other),
        None => 0,
    }
}

pub fn at_most_100_percent(value: &View<'_>, errors: &mut ErrorList) {
    let is_percent = value.opt_str().is_some_and(|t| names::percent(t).is_empty());
    if is_percent && int_or_percent_value(value) > 100 {
        errors.push(Error::invalid(value.path(), value, "must not be greater than 100%"));
    }
}

/// A domain and a path, such as `acme.io/foo`.
pub fn domain_prefixed_path(value: &View<'_>, errors: &mut ErrorList) {
    let text = value.str();
    if text.is_empty() {
        errors.push(Error::required(value.path(), ""));
        return;
    }
    let Some((host, path)) = text.split_once('/').filter(|(h, p)| !h.is_empty() && !p.is_empty()) else {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        errors.push(Error::invalid(value.path(), text, why));
        return;
    };
    for why in names::dns1123_subdomain(host, false) {
        errors.push(Error::invalid(value.path(), host, why));
    }
    const PATH: &str = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+";
    if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
        errors.push(Error::invalid(value.path(), path, names::regex_error("Invalid path", PATH, &[])));
    }
}

/// Annotations that a user asks a signer to note: keys with a domain, of any case (upstream: `ValidateUserAnnotations`).
pub fn user_annotations(annotations: &View<'_>, errors: &mut ErrorList) {
    const BYTES_MAX: usize = 256 * 1024;
    let path = annotations.path();
    let Some(map) = annotations.value().and_then(Value::as_object) else { return };
    for key in map.keys().map(|key: &String| key.to_lowercase()) {
        let wrong = names::qualified_name(&key);
        if key.is_empty() {
            errors.push(Error::required(path, ""));
        } else if !wrong.is_empty() {
            errors.extend(wrong.into_iter().map(|why| Error::invalid(path, &*key, why)));
        } else if !key.contains('/') {
            let why = "must be a domain-prefixed key (such as \"acme.io/foo\")";
            errors.push(Error::invalid(path, &*key, why));
        }
    }
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > BYTES_MAX {
        errors.push(Error::too_long(path, BYTES_MAX as i64));
    }
}

/// A counter that may only grow; removal counts as 0.
pub fn not_decremented(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    if old.exists() && (!new.exists() || new.i64() < old.i64()) {
        errors.push(Error::invalid(new.path(), new.i64(), "cannot be decremented"));
    }
}
