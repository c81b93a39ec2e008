//! What may be wrong with flow schemas and priority levels (upstream: `pkg/apis/flowcontrol/validation`).

use super::bootstrap;
use crate::registry::internal::{EXEMPT_LEVEL_SPEC, FLOW_SCHEMA_SPEC, PRIORITY_LEVEL_SPEC, dump};
use coxswain_api::field::{Error, ErrorList, View, go_quote};
use coxswain_api::{Value, json, names};

const PRECEDENCE_MAX: i64 = 10_000;
const VERBS: [&str; 9] = ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
/// What every cluster has, and nobody may change.
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];
const HASH_BITS_MAX: u32 = 60;

pub(super) fn flow_schema(object: &Value) -> ErrorList {
    let root = View::root(object);
    let name = root.child("metadata").child("name").str();
    let spec = root.child("spec");
    let mut errors = ErrorList::new();
    let precedence = spec.child("matchingPrecedence");
    if precedence.i64() <= 0 {
        errors.push(Error::invalid(precedence.path(), precedence.i64(), "must be a positive value"));
    }
    if precedence.i64() > PRECEDENCE_MAX {
        let why = format!("must not be greater than {PRECEDENCE_MAX}");
        errors.push(Error::invalid(precedence.path(), precedence.i64(), why));
    }
    if precedence.i64() == 1 && name != "exempt" {
        let why = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.push(Error::invalid(precedence.path(), precedence.i64(), why));
    }
    let method = spec.child("distinguisherMethod");
    let kind = method.child("type").str();
    if method.exists() && !matches!(kind, "ByUser" | "ByNamespace") {
        let mut error = Error::not_supported(method.child("type").path(), "", &["ByNamespace", "ByUser"]);
        error.bad_value = Some(format!("{{\"Type\":{}}}", go_quote(kind)));
        errors.push(error);
    }
    let level = spec.child("priorityLevelConfiguration").child("name");
    if level.is_empty() {
        errors.push(Error::required(level.path(), "must reference a priority level"));
    } else {
        for why in names::dns1123_subdomain(level.str(), false) {
            errors.push(Error::invalid(level.path(), level.str(), why));
        }
    }
    for rule in spec.child("rules").items() {
        validate_rule(&rule, &mut errors);
    }
    let fixed = bootstrap::schemas().into_iter().find(|(n, _)| MANDATORY.contains(n) && *n == name);
    if let Some((name, fixed)) = fixed {
        let shown = dump(&spec, &FLOW_SCHEMA_SPEC);
        if shown.0 != dump(&View::root(&fixed), &FLOW_SCHEMA_SPEC).0 {
            errors.push(Error::invalid(spec.path(), shown, format!("spec of '{name}' must equal the fixed value")));
        }
    }
    errors.extend(status(object));
    errors
}

fn validate_rule(rule: &View<'_>, errors: &mut ErrorList) {
    let subjects = rule.child("subjects");
    if subjects.is_empty() {
        errors.push(Error::required(subjects.path(), "subjects must contain at least one value"));
    }
    for subject in subjects.items() {
        validate_subject(&subject, errors);
    }
    let (resources, paths) = (rule.child("resourceRules"), rule.child("nonResourceRules"));
    if resources.is_empty() && paths.is_empty() {
        let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(Error::required(rule.path(), why));
    }
    for resource in resources.items() {
        validate_resource_rule(&resource, errors);
    }
    for path in paths.items() {
        validate_path_rule(&path, errors);
    }
}

fn validate_subject(subject: &View<'_>, errors: &mut ErrorList) {
    let kind = subject.child("kind");
    const KINDS: [(&str, &str); 3] = [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let Some((name, field)) = KINDS.into_iter().find(|(name, _)| *name == kind.str()) else {
        errors.push(Error::not_supported(kind.path(), kind.str(), &["Group", "ServiceAccount", "User"]));
        return;
    };
    let part = subject.child(field);
    if part.exists() {
        validate_subject_part(field, &part, errors);
    } else {
        errors.push(Error::required(part.path(), format!("{field} is required when subject kind is '{name}'")));
    }
    for (other, field) in KINDS.into_iter().filter(|(other, _)| *other != name) {
        let part = subject.child(field);
        if part.exists() {
            let why = format!("{field} is forbidden when subject kind is not '{other}'");
            errors.push(Error::forbidden(part.path(), why));
        }
    }
}

fn validate_subject_part(field: &str, part: &View<'_>, errors: &mut ErrorList) {
    let name = part.child("name");
    if name.is_empty() {
        errors.push(Error::required(name.path(), ""));
    } else if field == "serviceAccount" && name.str() != "*" {
        for why in names::dns1123_subdomain(name.str(), false) {
            errors.push(Error::invalid(name.path(), name.str(), why));
        }
    }
    if field == "serviceAccount" {
        let namespace = part.child("namespace");
        if namespace.is_empty() {
            errors.push(Error::required(namespace.path(), "must specify namespace for service account"));
        } else {
            for why in names::dns1123_label(namespace.str(), false) {
                errors.push(Error::invalid(namespace.path(), namespace.str(), why));
            }
        }
    }
}

fn validate_verbs(verbs: &View<'_>, errors: &mut ErrorList) {
    if verbs.is_empty() {
        errors.push(Error::required(verbs.path(), "verbs must contain at least one value"));
        return;
    }
    let list: Vec<&str> = verbs.items().map(|v| v.str()).collect();
    if list.contains(&"*") {
        if list.len() > 1 {
            errors.push(Error::invalid(verbs.path(), verbs, "if '*' is present, must not specify other verbs"));
        }
    } else if !list.iter().all(|v| VERBS.contains(v)) {
        errors.push(Error::not_supported(verbs.path(), &json!(list), &VERBS));
    }
}

fn validate_resource_rule(rule: &View<'_>, errors: &mut ErrorList) {
    validate_verbs(&rule.child("verbs"), errors);
    for (field, one, many) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")] {
        let list = rule.child(field);
        if list.is_empty() {
            errors.push(Error::required(list.path(), format!("resource rules must supply at least one {one}")));
        } else if list.len() > 1 && list.items().any(|v| v.str() == "*") {
            let why = format!("if '*' is present, must not specify other {many}");
            errors.push(Error::invalid(list.path(), &list, why));
        }
    }
    let namespaces = rule.child("namespaces");
    if namespaces.is_empty() && !rule.child("clusterScope").bool() {
        let why = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.push(Error::required(namespaces.path(), why));
    } else if namespaces.items().any(|n| n.str() == "*") {
        if namespaces.len() > 1 {
            let why = "if '*' is present, must not specify other namespaces";
            errors.push(Error::invalid(namespaces.path(), &namespaces, why));
        }
    } else {
        for namespace in namespaces.items() {
            for why in names::dns1123_label(namespace.str(), false) {
                let why = format!("each member of this list must be '*' or a DNS-1123 label; {why}");
                errors.push(Error::invalid(namespace.path(), namespace.str(), why));
            }
        }
    }
}

fn validate_path_rule(rule: &View<'_>, errors: &mut ErrorList) {
    validate_verbs(&rule.child("verbs"), errors);
    let urls = rule.child("nonResourceURLs");
    if urls.is_empty() {
        errors.push(Error::required(urls.path(), "nonResourceURLs must contain at least one value"));
    } else if urls.len() > 1 && urls.items().any(|u| u.str() == "*") {
        let why = "if '*' is present, must not specify other non-resource URLs";
        errors.push(Error::invalid(urls.path(), &urls, why));
    } else {
        for url in urls.items().filter(|u| u.str() != "*") {
            if let Some(why) = wrong_url(url.str()) {
                errors.push(Error::invalid(url.path(), url.str(), why));
            }
        }
    }
}

fn wrong_url(url: &str) -> Option<&'static str> {
    if url.is_empty() {
        return Some("must not be empty");
    }
    if url == "/" {
        return None;
    }
    if !url.starts_with('/') {
        return Some("must start with slash");
    }
    if url.contains(' ') {
        return Some("must not contain white-space");
    }
    if url.contains("//") {
        return Some("must not contain double slash");
    }
    match url.matches('*').count() {
        0 => None,
        1 if url.ends_with("/*") => None,
        _ => Some("wildcard can only do suffix matching"),
    }
}

pub(super) fn priority_level(object: &Value) -> ErrorList {
    let root = View::root(object);
    let name = root.child("metadata").child("name").str();
    let spec = root.child("spec");
    let kind = spec.child("type");
    let mut errors = ErrorList::new();
    if (name == "exempt") != (kind.str() == "Exempt") {
        let why = "must be 'Exempt' if and only if `name` is 'exempt'";
        errors.push(Error::invalid(kind.path(), kind.str(), why));
    }
    let (exempt, limited) = (spec.child("exempt"), spec.child("limited"));
    match kind.str() {
        "Exempt" => {
            if limited.exists() {
                let why = "must be nil if the type is not Limited";
                errors.push(Error::forbidden(limited.path(), why));
            }
            if exempt.exists() {
                validate_shares(&exempt, &mut errors);
                validate_lendable(&exempt, &mut errors);
            }
        }
        "Limited" => {
            if exempt.exists() {
                let why = "must be nil if the type is Limited";
                errors.push(Error::forbidden(exempt.path(), why));
            }
            if limited.exists() {
                validate_limited(&limited, &mut errors);
            } else {
                errors.push(Error::required(limited.path(), "must not be empty when type is Limited"));
            }
        }
        other => errors.push(Error::not_supported(kind.path(), other, &["Exempt", "Limited"])),
    }
    let fixed = bootstrap::levels().into_iter().find(|(n, _)| MANDATORY.contains(n) && *n == name);
    if let Some((name, fixed)) = fixed {
        let exempt = name == "exempt";
        let shape = if exempt { &EXEMPT_LEVEL_SPEC } else { &PRIORITY_LEVEL_SPEC };
        if dump(&spec, shape).0 != dump(&View::root(&fixed), shape).0 {
            let but = if exempt { "except the 'spec.exempt' field " } else { "" };
            let why = format!("spec of '{name}' {but}must equal the fixed value");
            errors.push(Error::invalid(spec.path(), dump(&spec, &PRIORITY_LEVEL_SPEC), why));
        }
    }
    errors.extend(status(object));
    errors
}

fn validate_shares(part: &View<'_>, errors: &mut ErrorList) {
    let shares = part.child("nominalConcurrencyShares");
    if shares.i64() < 0 {
        errors.push(Error::invalid(shares.path(), shares.i64(), "must be a non-negative integer"));
    }
}

fn validate_lendable(part: &View<'_>, errors: &mut ErrorList) {
    let lendable = part.child("lendablePercent");
    if !(0..=100).contains(&lendable.i64()) {
        errors.push(Error::invalid(lendable.path(), lendable.i64(), "must be between 0 and 100, inclusive"));
    }
}

fn validate_limited(limited: &View<'_>, errors: &mut ErrorList) {
    validate_shares(limited, errors);
    let response = limited.child("limitResponse");
    let kind = response.child("type");
    let queuing = response.child("queuing");
    match (kind.str(), queuing.exists()) {
        ("Reject", false) => {}
        ("Reject", true) => {
            let why = "must be nil if limited.limitResponse.type is not Limited";
            errors.push(Error::forbidden(queuing.path(), why));
        }
        ("Queue", true) => validate_queuing(&queuing, errors),
        ("Queue", false) => {
            let why = "must not be empty if limited.limitResponse.type is Limited";
            errors.push(Error::required(queuing.path(), why));
        }
        (other, _) => errors.push(Error::not_supported(kind.path(), other, &["Queue", "Reject"])),
    }
    validate_lendable(limited, errors);
    let borrowing = limited.child("borrowingLimitPercent");
    if borrowing.opt_i64().is_some_and(|b| b < 0) {
        let why = "if specified, must be a non-negative integer";
        errors.push(Error::invalid(borrowing.path(), borrowing.i64(), why));
    }
}

fn validate_queuing(queuing: &View<'_>, errors: &mut ErrorList) {
    let (limit, queues, hand) = (queuing.child("queueLengthLimit"), queuing.child("queues"), queuing.child("handSize"));
    if limit.i64() <= 0 {
        errors.push(Error::invalid(limit.path(), limit.i64(), "must be positive"));
    }
    if queues.i64() <= 0 {
        errors.push(Error::invalid(queues.path(), queues.i64(), "must be positive"));
    } else if queues.i64() > 10_000_000 {
        errors.push(Error::invalid(queues.path(), queues.i64(), "must not be greater than 10000000"));
    }
    if hand.i64() <= 0 {
        errors.push(Error::invalid(hand.path(), hand.i64(), "must be positive"));
    } else if hand.i64() > queues.i64() {
        let why = format!("should not be greater than queues ({})", queues.i64());
        errors.push(Error::invalid(hand.path(), hand.i64(), why));
    } else if ((queues.i64() as f64).log2() * hand.i64() as f64).ceil() as u32 > HASH_BITS_MAX {
        let why = format!(
            "required entropy bits of deckSize {} and handSize {} should not be greater than {HASH_BITS_MAX}",
            queues.i64(),
            hand.i64()
        );
        errors.push(Error::invalid(hand.path(), hand.i64(), why));
    }
}

/// Conditions of a status: each type once, with status and reason.
pub(super) fn status(object: &Value) -> ErrorList {
    let conditions = View::root(object).child("status").child("conditions");
    let mut errors = ErrorList::new();
    let mut seen: Vec<&str> = Vec::new();
    for condition in conditions.items() {
        let kind = condition.child("type");
        if seen.contains(&kind.str()) {
            errors.push(Error::duplicate(kind.path(), kind.str()));
        }
        seen.push(kind.str());
        if kind.is_empty() {
            errors.push(Error::required(kind.path(), ""));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(errors: ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_every_cluster_has_is_fixed() {
        for (name, spec) in bootstrap::levels() {
            assert_eq!(texts(priority_level(&json!({"metadata": {"name": name}, "spec": spec}))), [""; 0], "{name}");
        }
        for (name, spec) in bootstrap::schemas() {
            assert_eq!(texts(flow_schema(&json!({"metadata": {"name": name}, "spec": spec}))), [""; 0], "{name}");
        }
        let level = json!({"metadata": {"name": "catch-all"}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 6, "lendablePercent": 0, "limitResponse": {"type": "Reject"}}}});
        assert_eq!(
            texts(priority_level(&level)),
            [
                r#"spec: Invalid value: {"Type":"Limited","Limited":{"NominalConcurrencyShares":6,"LimitResponse":{"Type":"Reject","Queuing":null},"LendablePercent":0,"BorrowingLimitPercent":null},"Exempt":null}: spec of 'catch-all' must equal the fixed value"#
            ]
        );
        let exempt = json!({"metadata": {"name": "exempt"}, "spec": {"type": "Exempt",
            "exempt": {"nominalConcurrencyShares": 5, "lendablePercent": 0}}});
        assert_eq!(texts(priority_level(&exempt)), [""; 0]);
    }

    #[test]
    fn hands_fit_the_queues_and_the_hash() {
        for (queues, hand, wrong) in [
            (64, 8, None),
            (128, 6, None),
            (4, 5, Some("should not be greater than queues (4)")),
            (512, 8, Some("required entropy bits of deckSize 512 and handSize 8 should not be greater than 60")),
        ] {
            let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
            let mut errors = ErrorList::new();
            validate_queuing(&View::root(&queuing), &mut errors);
            let expected: Vec<String> =
                wrong.iter().map(|why| format!("handSize: Invalid value: {hand}: {why}")).collect();
            assert_eq!(texts(errors), expected);
        }
    }
}
