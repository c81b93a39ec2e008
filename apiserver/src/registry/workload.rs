//! What the kinds that make pods from a template have in common (upstream: `pkg/apis/apps/validation`).

use super::checks;
use super::core::pod_spec::{self, Options};
pub use super::defaults::child_mut as map_at;
use super::defaults::set_default;
use super::internal::Dump;
use super::metadata;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::selector::Selector;
use coxswain_api::{Value, json, names};

pub const SELECTOR_MISMATCH: &str = "`selector` does not match template `labels`";
const MORE_THAN_REPLICAS: &str = "cannot be greater than status.replicas";

/// Sets a field that is absent, null or an empty string.
pub fn default_to(owner: &mut Value, key: &str, value: impl Into<Value>) {
    let absent = match owner.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if absent && let Some(map) = owner.as_object_mut() {
        map.insert(key.to_owned(), value.into());
    }
}

/// Sets a pointer field that is absent or null.
pub fn default_absent(owner: &mut Value, key: &str, value: impl Into<Value>) {
    set_default(owner, key, || value.into());
}

/// Makes `template` and its spec, if absent, and fills in its defaults.
pub fn default_template(owner: &mut Value) {
    let template = map_at(owner, "template");
    map_at(template, "spec");
    pod_spec::defaults::template(template);
}

/// Sets a field to what it was before.
pub fn restore(object: &mut Value, old: &Value, field: &str) {
    let Some(map) = object.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => map.insert(field.to_owned(), value.clone()),
        None => map.remove(field),
    };
}

/// `{"Type":…,"RollingUpdate":…}`: a strategy that is not one of those known, as upstream shows it. `fields` are those of
/// the rolling update, in upstream's order, by their names there and here.
pub fn strategy_dump(strategy: &View<'_>, fields: &[(&str, &'static str)]) -> Dump {
    let rolling = strategy.child("rollingUpdate");
    let rolling = if rolling.exists() { rolling_dump(&rolling, fields).0 } else { "null".to_owned() };
    Dump(format!("{{\"Type\":{},\"RollingUpdate\":{rolling}}}", json!(strategy.child("type").str())))
}

pub fn rolling_dump(rolling: &View<'_>, fields: &[(&str, &'static str)]) -> Dump {
    let shown: Vec<String> = fields
        .iter()
        .map(|(there, here)| format!("{}:{}", json!(there), rolling.child(here).value().unwrap_or(&Value::Null)))
        .collect();
    Dump(format!("{{{}}}", shown.join(",")))
}

/// The selector as it is applied, or what is wrong with it.
pub fn selector_of(selector: &View<'_>) -> Result<Selector, String> {
    Selector::from_label_selector(selector.value())
}

/// A selector that must be given and must not be empty; `empty` is said otherwise.
pub fn required_selector(selector: &View<'_>, empty: &str, errors: &mut ErrorList) {
    if !selector.exists() {
        errors.push(Error::required(selector.path(), ""));
        return;
    }
    checks::label_selector(selector, Default::default(), errors);
    if checks::is_empty_selector(selector) {
        errors.push(Error::invalid(selector.path(), selector, empty));
    }
}

/// The labels of the template must be selected.
pub fn matches_template(selector: &Selector, template: &View<'_>, errors: &mut ErrorList) {
    let labels = template.child("metadata").child("labels");
    if !selector.matches_labels(labels.value()) {
        errors.push(Error::invalid(labels.path(), &labels, SELECTOR_MISMATCH));
    }
}

/// The pods of `owner` are restarted always and for ever.
pub fn runs_forever(template: &View<'_>, owner: &str, errors: &mut ErrorList) {
    let spec = template.child("spec");
    checks::supported_value(&spec.child("restartPolicy"), &["Always"], errors);
    let deadline = spec.child("activeDeadlineSeconds");
    if deadline.exists() {
        let why = format!("activeDeadlineSeconds in {owner} is not Supported");
        errors.push(Error::forbidden(deadline.path(), why));
    }
}

/// The selector and template of Deployments and ReplicaSets.
pub fn selector_and_template(spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let selector = spec.child("selector");
    required_selector(&selector, "empty selector is invalid for deployment", errors);
    match selector_of(&selector) {
        Err(_) => errors.push(Error::invalid(selector.path(), &selector, "invalid label selector")),
        Ok(selector) => {
            let template = spec.child("template");
            matches_template(&selector, &template, errors);
            pod_spec::validate_template(&template, options, errors);
            runs_forever(&template, "ReplicaSet", errors);
        }
    }
}

/// What an old template lets through.
pub fn options_of(old: Option<&Value>) -> Options {
    let old = old.map(View::root);
    Options::of_old(old.map(|o| o.child("spec").child("template")).as_ref(), false)
}

/// Each of the numbers is at least 0.
pub fn nonnegative(owner: &View<'_>, fields: &[&'static str], errors: &mut ErrorList) {
    for field in fields {
        checks::nonnegative(&owner.child(field), errors);
    }
}

/// None of the numbers is greater than that of replicas.
pub fn within_replicas(status: &View<'_>, fields: &[&'static str], errors: &mut ErrorList) {
    let replicas = status.child("replicas").i64();
    for field in fields {
        let number = status.child(field);
        if number.i64() > replicas {
            errors.push(Error::invalid(number.path(), number.i64(), MORE_THAN_REPLICAS));
        }
    }
}

/// What is available is ready.
pub fn available_are_ready(status: &View<'_>, why: &str, errors: &mut ErrorList) {
    let available = status.child("availableReplicas");
    if available.i64() > status.child("readyReplicas").i64() {
        errors.push(Error::invalid(available.path(), available.i64(), why));
    }
}

/// The status of ReplicaSets and ReplicationControllers.
pub fn replica_status(status: &View<'_>, errors: &mut ErrorList) {
    const COUNTS: &[&str] =
        &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"];
    nonnegative(status, COUNTS, errors);
    within_replicas(status, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"], errors);
    available_are_ready(status, "cannot be greater than readyReplicas", errors);
}

/// The name becomes part of host names.
pub fn name_warning(object: &Value) -> Option<String> {
    let wrong = names::dns1123_label(metadata::text(object, "name"), false);
    (!wrong.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label \
             is recommended: [{}]",
            wrong.join(" ")
        )
    })
}

/// Whether warnings are due: for new objects, and for changes that count.
pub fn warns(object: &Value, old: Option<&Value>) -> bool {
    old.is_none_or(|old| metadata::number(object, "generation") != metadata::number(old, "generation"))
}

/// Warnings about the template, and with `name` about the name of a new object.
pub fn warnings(object: &Value, old: Option<&Value>, name: bool) -> Vec<String> {
    if !warns(object, old) {
        return Vec::new();
    }
    let mut warnings: Vec<String> = name_warning(object).filter(|_| name && old.is_none()).into_iter().collect();
    warnings.extend(pod_spec::for_template(&View::root(object).child("spec").child("template")));
    warnings
}

/// The selector of a workload is decided once.
pub fn selector_immutable(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    checks::immutable(&new.child("spec").child("selector"), &old.child("spec").child("selector"), errors);
}
