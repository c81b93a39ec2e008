//! Webhooks and admission policies as objects (upstream: `pkg/registry/admissionregistration` and
//! `pkg/apis/admissionregistration`). What they do is in [`crate::admission`].

pub mod policies;
pub mod webhooks;

use super::checks;
use crate::admission::cel::Names;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};
use serde_json::json;

/// Sets a field that is not given.
fn default(object: &mut Value, key: &str, value: Value) {
    if object.is_object() && object[key].is_null() {
        object[key] = value;
    }
}

/// Rules without scope are of any.
fn default_scopes(object: &mut Value, key: &str) {
    for rule in object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
        default(rule, "scope", json!("*"));
    }
}

/// `RuleWithOperations`: what of the API is meant.
fn check_rule(rule: &View<'_>, errors: &mut ErrorList) {
    let operations = rule.child("operations");
    let has = |list: &View<'_>, text: &str| list.items().any(|v| v.str() == text);
    if operations.is_empty() {
        errors.push(Error::required(operations.path(), ""));
    }
    if operations.len() > 1 && has(&operations, "*") {
        let why = "if '*' is present, must not specify other operations";
        errors.push(Error::invalid(operations.path(), &operations, why));
    }
    for operation in operations.items() {
        checks::supported_value(&operation, &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"], errors);
    }
    for (key, what, empty_allowed) in [("apiGroups", "API groups", true), ("apiVersions", "API versions", false)] {
        let list = rule.child(key);
        if list.is_empty() {
            errors.push(Error::required(list.path(), ""));
        }
        if list.len() > 1 && has(&list, "*") {
            errors.push(Error::invalid(
                list.path(),
                &list,
                format!("if '*' is present, must not specify other {what}"),
            ));
        }
        for value in list.items().filter(|v| v.is_empty() && !empty_allowed) {
            errors.push(Error::required(value.path(), ""));
        }
    }
    check_resources(&rule.child("resources"), errors);
    let scope = rule.child("scope");
    if scope.exists() {
        checks::supported_value(&scope, &["*", "Cluster", "Namespaced"], errors);
    }
}

fn check_resources(resources: &View<'_>, errors: &mut ErrorList) {
    if resources.is_empty() {
        errors.push(Error::required(resources.path(), ""));
    }
    let all: Vec<&str> = resources.items().map(|r| r.str()).collect();
    // `x/*` covers every subresource of one, `*/x` covers that subresource of every resource. As upstream has it, what
    // comes before them is not looked at, and of the names without subresource the last one counts.
    let (mut whole_resources, mut whole_subresources) = (Vec::new(), Vec::new());
    let mut has_plain = false;
    for resource in resources.items() {
        let text = resource.str();
        if text.is_empty() {
            errors.push(Error::required(resource.path(), ""));
            continue;
        }
        let Some((name, sub)) = text.split_once('/') else {
            has_plain = text != "*";
            continue;
        };
        if whole_resources.contains(&name) {
            let why = format!("if '{name}/*' is present, must not specify {text}");
            errors.push(Error::invalid(resource.path(), text, why));
        }
        if whole_subresources.contains(&sub) {
            let why = format!("if '*/{sub}' is present, must not specify {text}");
            errors.push(Error::invalid(resource.path(), text, why));
        }
        if sub == "*" {
            whole_resources.push(name);
        }
        if name == "*" {
            whole_subresources.push(sub);
        }
    }
    if all.len() > 1 && all.contains(&"*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        errors.push(Error::invalid(resources.path(), resources, why));
    }
    if all.contains(&"*") && has_plain {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.push(Error::invalid(resources.path(), resources, why));
    }
}

/// Names by which match conditions and policies know the request.
const NAMES: [&str; 6] =
    ["object", "oldObject", "request", "authorizer", "authorizer.requestResource", "namespaceObject"];

/// What webhooks know of it.
const HOOK_NAMES: [&str; 5] = ["object", "oldObject", "request", "authorizer", "authorizer.requestResource"];

fn check_conditions(conditions: &View<'_>, declared: &Names, errors: &mut ErrorList) {
    use crate::admission::cel::{Wanted, check};
    const MAX: usize = 64;
    if conditions.len() > MAX {
        errors.push(Error::too_many(conditions.path(), conditions.len(), MAX as i64));
    }
    let mut seen = Vec::new();
    for condition in conditions.items() {
        let (name, expression) = (condition.child("name"), condition.child("expression"));
        let text = expression.str().trim();
        if text.is_empty() {
            errors.push(Error::required(expression.path(), ""));
        } else if let Err(why) = check(text, Wanted::Bool, declared) {
            errors.push(Error::invalid(expression.path(), expression.str(), why));
        }
        if name.is_empty() {
            errors.push(Error::required(name.path(), ""));
        } else {
            checks::qualified_name(&name, errors);
            if seen.contains(&name.str()) {
                errors.push(Error::duplicate(name.path(), name.str()));
            }
            seen.push(name.str());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_do_not_repeat_what_wildcards_cover() {
        for (list, wrong) in [
            (json!(["pods", "pods/log", "*/scale"]), &[][..]),
            (
                json!(["pods/*", "pods/log"]),
                &["[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log"],
            ),
            // What comes first is not looked at.
            (json!(["pods/log", "pods/*"]), &[]),
            (json!(["*", "pods/log"]), &[]),
            (
                json!(["*", "pods"]),
                &[
                    "<nil>: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources without subresources",
                ],
            ),
        ] {
            let mut errors = ErrorList::new();
            check_resources(&View::root(&list), &mut errors);
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(texts, wrong, "{list}");
        }
    }
}
