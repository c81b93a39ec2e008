//! Where a pod may run: node selectors, affinity, spreading, tolerations (upstream: `validateAffinity`,
//! `validateTopologySpreadConstraints`, `ValidateTolerations`).

use super::Options;
use crate::registry::checks::{self, SelectorLeniency};
use coxswain_api::features::Feature;
use coxswain_api::field::{Error, ErrorList, View, go_quote};
use coxswain_api::names;
use std::collections::BTreeSet;

pub(super) fn affinity(affinity: &View<'_>, options: &Options, errors: &mut ErrorList) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let node = affinity.child("nodeAffinity");
    let required = node.child(REQUIRED);
    if required.exists() {
        node_selector(&required, options.allow_invalid_node_affinity_value, errors);
    }
    for term in node.child(PREFERRED).items() {
        weight(&term.child("weight"), errors);
        node_selector_term(&term.child("preference"), true, errors);
    }
    let lenient = SelectorLeniency { allow_invalid_values: options.allow_invalid_label_value_in_selector };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let kind = affinity.child(kind);
        for term in kind.child(REQUIRED).items() {
            pod_affinity_term(&term, lenient, errors);
        }
        for term in kind.child(PREFERRED).items() {
            weight(&term.child("weight"), errors);
            pod_affinity_term(&term.child("podAffinityTerm"), lenient, errors);
        }
    }
}

fn weight(weight: &View<'_>, errors: &mut ErrorList) {
    if !(1..=100).contains(&weight.i64()) {
        errors.push(Error::invalid(weight.path(), weight.i64(), "must be in the range 1-100"));
    }
}

/// A `NodeSelector` (upstream: `ValidateNodeSelector`).
pub fn node_selector(selector: &View<'_>, allow_invalid_values: bool, errors: &mut ErrorList) {
    let terms = selector.child("nodeSelectorTerms");
    if terms.is_empty() {
        errors.push(Error::required(terms.path(), "must have at least one node selector term"));
    }
    for term in terms.items() {
        node_selector_term(&term, allow_invalid_values, errors);
    }
}

/// One term of a `NodeSelector`.
pub fn node_selector_term(term: &View<'_>, allow_invalid_values: bool, errors: &mut ErrorList) {
    for requirement in term.child("matchExpressions").items() {
        node_requirement(&requirement, allow_invalid_values, errors);
    }
    for requirement in term.child("matchFields").items() {
        node_field_requirement(&requirement, errors);
    }
}

fn node_requirement(requirement: &View<'_>, allow_invalid_values: bool, errors: &mut ErrorList) {
    let (operator, values) = (requirement.child("operator"), requirement.child("values"));
    match operator.str() {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors.push(Error::required(values.path(), "must be specified when `operator` is 'In' or 'NotIn'"));
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(Error::forbidden(values.path(), why));
            }
        }
        "Gt" | "Lt" => {
            if values.len() != 1 {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(Error::required(values.path(), why));
            }
        }
        other => errors.push(Error::invalid(operator.path(), other, "not a valid selector operator")),
    }
    checks::qualified_name(&requirement.child("key"), errors);
    if !allow_invalid_values {
        for value in values.items() {
            checks::all(&value, names::label_value(value.str()), errors);
        }
    }
}

fn node_field_requirement(requirement: &View<'_>, errors: &mut ErrorList) {
    let (operator, key, values) =
        (requirement.child("operator"), requirement.child("key"), requirement.child("values"));
    match operator.str() {
        "In" | "NotIn" => {
            if values.len() != 1 {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(Error::required(values.path(), why));
            }
        }
        other => errors.push(Error::invalid(operator.path(), other, "not a valid selector operator")),
    }
    if key.str() != "metadata.name" {
        errors.push(Error::invalid(key.path(), key.str(), "not a valid field selector key"));
        return;
    }
    for value in values.items() {
        checks::dns_subdomain(&value, errors);
    }
}

fn pod_affinity_term(term: &View<'_>, lenient: SelectorLeniency, errors: &mut ErrorList) {
    let selector = term.child("labelSelector");
    checks::label_selector(&selector, lenient, errors);
    checks::label_selector(&term.child("namespaceSelector"), lenient, errors);
    for namespace in term.child("namespaces").items() {
        for why in names::dns1123_label(namespace.str(), false) {
            errors.push(Error::invalid(&term.path().child("namespace"), namespace.str(), why));
        }
    }
    let (match_keys, mismatch_keys) = (term.child("matchLabelKeys"), term.child("mismatchLabelKeys"));
    for keys in [&match_keys, &mismatch_keys] {
        if keys.is_empty() {
            continue;
        }
        if !selector.exists() {
            errors.push(Error::forbidden(keys.path(), "must not be specified when labelSelector is not set"));
            continue;
        }
        for key in keys.items() {
            checks::qualified_name(&key, errors);
        }
    }
    // The server itself merges the keys into the selector: a key that is there twice was also given by hand.
    let mut selected: BTreeSet<&str> = selector.child("matchLabels").entries().map(|(k, _)| k).collect();
    for expression in selector.child("matchExpressions").items() {
        let key = expression.child("key").str();
        if let Some(i) = match_keys.items().position(|k| k.str() == key)
            && selected.contains(key)
        {
            let why = "exists in both matchLabelKeys and labelSelector";
            errors.push(Error::invalid(&term.path().index(i), key, why));
        }
        selected.insert(key);
    }
    for key in match_keys.items() {
        if mismatch_keys.items().any(|m| m.str() == key.str()) {
            let why = "exists in both matchLabelKeys and mismatchLabelKeys";
            errors.push(Error::invalid(key.path(), key.str(), why));
        }
    }
    let topology = term.child("topologyKey");
    if topology.str().is_empty() {
        errors.push(Error::required(topology.path(), "can not be empty"));
    }
    checks::qualified_name(&topology, errors);
}

pub(super) fn topology_spread(constraints: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let all: Vec<View<'_>> = constraints.items().collect();
    for (i, constraint) in all.iter().enumerate() {
        let (skew, key) = (constraint.child("maxSkew"), constraint.child("topologyKey"));
        if skew.i64() <= 0 {
            errors.push(Error::invalid(skew.path(), skew.i64(), checks::NOT_POSITIVE));
        }
        if key.str().is_empty() {
            errors.push(Error::required(key.path(), "can not be empty"));
        }
        let action = constraint.child("whenUnsatisfiable");
        checks::supported_value(&action, &["DoNotSchedule", "ScheduleAnyway"], errors);
        let pair =
            |c: &View<'_>| (c.child("topologyKey").str().to_owned(), c.child("whenUnsatisfiable").str().to_owned());
        if all[i + 1..].iter().any(|other| pair(other) == pair(constraint)) {
            let path = constraint.path().child("{topologyKey, whenUnsatisfiable}");
            errors.push(Error::duplicate(&path, format!("{{{}, {}}}", key.str(), action.str())));
        }
        let domains = constraint.child("minDomains");
        if let Some(n) = domains.opt_i64() {
            if n <= 0 {
                errors.push(Error::invalid(domains.path(), n, checks::NOT_POSITIVE));
            }
            if action.str() != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", action.str());
                errors.push(Error::invalid(domains.path(), n, why));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let policy = constraint.child(policy);
            if policy.exists() {
                checks::supported_value(&policy, &["Honor", "Ignore"], errors);
            }
        }
        spread_label_keys(constraint, errors);
        if !options.allow_invalid_spread_selector {
            checks::label_selector(&constraint.child("labelSelector"), SelectorLeniency::default(), errors);
        }
    }
}

fn spread_label_keys(constraint: &View<'_>, errors: &mut ErrorList) {
    let (keys, selector) = (constraint.child("matchLabelKeys"), constraint.child("labelSelector"));
    if keys.is_empty() {
        return;
    }
    if !selector.exists() {
        errors.push(Error::forbidden(keys.path(), "must not be specified when labelSelector is not set"));
    }
    for key in keys.items() {
        checks::qualified_name(&key, errors);
        // Merged by the server it is there once, as an expression; whoever wrote it too has it there twice.
        let expressions =
            selector.child("matchExpressions").items().filter(|e| e.child("key").str() == key.str()).count();
        let labelled = selector.child("matchLabels").entries().any(|(k, _)| k == key.str());
        if expressions + usize::from(labelled) > 1 {
            errors.push(Error::invalid(key.path(), key.str(), "exists in both matchLabelKeys and labelSelector"));
        }
    }
}

/// Tolerations (upstream: `ValidateTolerations`). `comparing`: some that compare numbers are there already.
pub fn tolerations(tolerations: &View<'_>, comparing: bool, errors: &mut ErrorList) {
    for toleration in tolerations.items() {
        let field = |name| toleration.child(name);
        let (key, operator, value, effect) = (field("key"), field("operator"), field("value"), field("effect"));
        if !key.str().is_empty() {
            checks::qualified_name(&key, errors);
        } else if operator.str() != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(Error::invalid(operator.path(), operator.str(), why));
        }
        if field("tolerationSeconds").exists() && effect.str() != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(Error::invalid(effect.path(), effect.str(), why));
        }
        match operator.str() {
            "" | "Equal" => {
                let wrong = names::label_value(value.str());
                if !wrong.is_empty() {
                    errors.push(Error::invalid(operator.path(), value.str(), wrong.join(";")));
                }
            }
            "Exists" => {
                if !value.str().is_empty() {
                    let why = "value must be empty when `operator` is 'Exists'";
                    errors.push(Error::invalid(operator.path(), value.str(), why));
                }
            }
            "Lt" | "Gt" if comparing || Feature::TaintTolerationComparisonOperators.enabled() => {
                decimal_integer(&value, errors);
            }
            other @ ("Lt" | "Gt") => {
                errors.push(Error::not_supported(operator.path(), other, &["Equal", "Exists", "Lt", "Gt"]));
            }
            other => errors.push(Error::not_supported(operator.path(), other, &["Equal", "Exists"])),
        }
        if !effect.str().is_empty() {
            checks::supported_value(&effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"], errors);
        }
    }
}

const DECIMAL: &str = "must be a valid decimal integer in canonical form";

/// A whole number in its shortest form that fits 64 bits.
fn decimal_integer(value: &View<'_>, errors: &mut ErrorList) {
    let text = value.str();
    let digits = text.strip_prefix('-').unwrap_or(text);
    let canonical = text == "0" || digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    if text.is_empty() {
        errors.push(Error::invalid(value.path(), text, "must be non-empty"));
    } else if !canonical || digits.is_empty() {
        errors.push(Error::invalid(value.path(), text, DECIMAL));
    }
    if let Err(error) = text.parse::<i64>() {
        use std::num::IntErrorKind::{NegOverflow, PosOverflow};
        let why =
            if matches!(error.kind(), PosOverflow | NegOverflow) { "value out of range" } else { "invalid syntax" };
        let why = format!("strconv.ParseInt: parsing {}: {why}", go_quote(text));
        errors.push(Error::invalid(value.path(), text, why));
    }
}
