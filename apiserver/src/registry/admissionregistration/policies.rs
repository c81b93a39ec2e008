//! `validatingadmissionpolicies`, `mutatingadmissionpolicies` and their bindings.

use super::{NAMES, check_conditions, check_rule, default, default_scopes};
use crate::admission::cel::{Names, Wanted, check};
use crate::registry::checks::{self, SelectorLeniency};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, names};
use serde_json::json;

const AUDIT_ANNOTATIONS_MAX: usize = 20;
const AUDIT_EXPRESSION_BYTES_MAX: usize = 5 * 1024;

pub struct Policies {
    pub mutating: bool,
}

pub struct Bindings {
    pub mutating: bool,
}

fn default_criteria(criteria: &mut Value) {
    default(criteria, "matchPolicy", json!("Equivalent"));
    default(criteria, "namespaceSelector", json!({}));
    default(criteria, "objectSelector", json!({}));
    default_scopes(criteria, "resourceRules");
    default_scopes(criteria, "excludeResourceRules");
}

impl Resource for Policies {
    fn set_defaults(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec") else { return };
        default(spec, "failurePolicy", json!("Fail"));
        if let Some(criteria) = spec.get_mut("matchConstraints") {
            default_criteria(criteria);
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let spec = View::root(object).child("spec");
        let mut errors = ErrorList::new();
        let mut declared = Names::of(&NAMES);
        // Without any, not even their place is known to a validation.
        if self.mutating || !spec.child("variables").is_empty() {
            declared.add("variables");
        }
        let failure = spec.child("failurePolicy");
        if failure.exists() {
            checks::supported_value(&failure, &["Fail", "Ignore"], &mut errors);
        }
        let kind = spec.child("paramKind");
        if kind.exists() {
            declared.add("params");
            check_param_kind(&kind, &mut errors);
        }
        let constraints = spec.child("matchConstraints");
        if constraints.exists() {
            check_criteria(&constraints, &mut errors);
            let rules = constraints.child("resourceRules");
            if rules.is_empty() {
                errors.push(Error::required(rules.path(), ""));
            }
            if self.mutating {
                only_mutating_operations(&rules, &mut errors);
            }
        } else {
            errors.push(Error::required(constraints.path(), ""));
        }
        check_conditions(&spec.child("matchConditions"), &declared, &mut errors);
        check_variables(&spec.child("variables"), &mut declared, &mut errors);
        if self.mutating {
            check_mutations(&spec, &declared, &mut errors);
        } else {
            let name = View::root(object).child("metadata").child("name").str();
            check_validations(&spec, &declared, name, &mut errors);
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        // What was accepted once stays acceptable, so that upgrades never lock an object.
        if subresource == "status" || object["spec"] == old["spec"] {
            ErrorList::new()
        } else {
            self.validate(ctx, object)
        }
    }

    fn reset_for_status(&self, object: &mut Value, old: &Value) {
        crate::registry::metadata::reset_for_status(object, old);
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        Some(if subresource.is_empty() { &["status"] } else { &["metadata", "spec"] })
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    /// Upstream checks finalizers of this group by the general rules only.
    fn restricts_finalizers(&self) -> bool {
        false
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: false, whole: false, whole_first: false }
    }
}

impl Resource for Bindings {
    fn set_defaults(&self, object: &mut Value) {
        if let Some(criteria) = object.pointer_mut("/spec/matchResources") {
            default_criteria(criteria);
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let spec = View::root(object).child("spec");
        let mut errors = ErrorList::new();
        let policy = spec.child("policyName");
        if policy.is_empty() {
            errors.push(Error::required(policy.path(), ""));
        } else {
            checks::dns_subdomain(&policy, &mut errors);
        }
        let params = spec.child("paramRef");
        if params.exists() {
            check_param_ref(&params, &mut errors);
        }
        let criteria = spec.child("matchResources");
        if criteria.exists() {
            check_criteria(&criteria, &mut errors);
        }
        if !self.mutating {
            check_actions(&spec.child("validationActions"), &mut errors);
        }
        errors
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    /// Upstream checks finalizers of this group by the general rules only.
    fn restricts_finalizers(&self) -> bool {
        false
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: false, whole: false, whole_first: false }
    }
}

fn check_criteria(criteria: &View<'_>, errors: &mut ErrorList) {
    let policy = criteria.child("matchPolicy");
    if policy.exists() {
        checks::supported_value(&policy, &["Equivalent", "Exact"], errors);
    }
    for key in ["namespaceSelector", "objectSelector"] {
        let selector = criteria.child_named(key);
        if selector.exists() {
            checks::label_selector(&selector, SelectorLeniency::default(), errors);
        }
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        for rule in criteria.child_named(key).items() {
            let mut seen = Vec::new();
            for name in rule.child("resourceNames").items() {
                checks::all(&name, names::path_segment(name.str(), false), errors);
                if seen.contains(&name.str()) {
                    errors.push(Error::duplicate(name.path(), name.str()));
                }
                seen.push(name.str());
            }
            check_rule(&rule, errors);
        }
    }
}

/// There is nothing to change in what is deleted. Upstream leaves out which rule and which operation it is.
fn only_mutating_operations(rules: &View<'_>, errors: &mut ErrorList) {
    let path = rules.path().child("operations");
    for operation in rules.items().flat_map(|rule| rule.child("operations").items()) {
        checks::supported_value(
            &View::new(operation.value(), path.clone()),
            &["*", "CONNECT", "CREATE", "UPDATE"],
            errors,
        );
    }
}

fn check_param_kind(kind: &View<'_>, errors: &mut ErrorList) {
    let version = kind.child("apiVersion");
    let text = version.str();
    if text.is_empty() {
        errors.push(Error::required(version.path(), ""));
    } else if text.matches('/').count() > 1 {
        errors.push(Error::invalid(version.path(), text, format!("unexpected GroupVersion string: {text}")));
    } else {
        let (group, name) = text.split_once('/').unwrap_or(("", text));
        let wrong = if group.is_empty() { Vec::new() } else { names::dns1123_subdomain(group, false) };
        if !wrong.is_empty() {
            errors.push(Error::invalid(version.path(), group, wrong.join(",")));
        }
        let wrong = names::dns1035_label(name, false);
        if name.is_empty() {
            errors.push(Error::invalid(version.path(), text, "version must be specified"));
        } else if !wrong.is_empty() {
            errors.push(Error::invalid(version.path(), name, wrong.join(",")));
        }
    }
    let name = kind.child("kind");
    if name.is_empty() {
        errors.push(Error::required(name.path(), ""));
        return;
    }
    let wrong = names::dns1035_label(&name.str().to_lowercase(), false);
    if !wrong.is_empty() {
        let why = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        errors.push(Error::invalid(name.path(), name.str(), why));
    }
}

fn check_param_ref(reference: &View<'_>, errors: &mut ErrorList) {
    let (name, selector) = (reference.child("name"), reference.child("selector"));
    let action = reference.child("parameterNotFoundAction");
    if !name.is_empty() {
        checks::all(&name, names::path_segment(name.str(), false), errors);
    }
    const BOTH: &str = "name and selector are mutually exclusive";
    if !name.is_empty() && selector.exists() {
        errors.push(Error::forbidden(name.path(), BOTH));
    }
    if selector.exists() {
        checks::label_selector(&selector, SelectorLeniency::default(), errors);
        if !name.is_empty() {
            errors.push(Error::forbidden(selector.path(), BOTH));
        }
    }
    if name.is_empty() && !selector.exists() {
        errors.push(Error::required(reference.path(), "one of name or selector must be specified"));
    }
    checks::one_of(&action, &["Deny", "Allow"], errors);
}

fn check_actions(actions: &View<'_>, errors: &mut ErrorList) {
    let mut seen = Vec::new();
    for action in actions.items() {
        checks::supported_value(&action, &["Audit", "Deny", "Warn"], errors);
        if seen.contains(&action.str()) {
            errors.push(Error::duplicate(action.path(), action.str()));
        }
        seen.push(action.str());
    }
    if seen.contains(&"Deny") && seen.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                   response and headers serves no purpose)";
        errors.push(Error::invalid(actions.path(), actions, why));
    }
    if seen.is_empty() {
        errors.push(Error::required(actions.path(), "at least one validation action is required"));
    }
}

fn check_variables(variables: &View<'_>, declared: &mut Names, errors: &mut ErrorList) {
    for variable in variables.items() {
        let (name, expression) = (variable.child("name"), variable.child("expression"));
        if name.str().trim().is_empty() {
            errors.push(Error::required(name.path(), "name is not specified"));
        } else {
            if !is_identifier(name.str()) {
                errors.push(Error::invalid(name.path(), name.str(), "must be a valid CEL identifier"));
            }
        }
        let text = expression.str().trim();
        let mut ty = None;
        if text.is_empty() {
            errors.push(Error::required(expression.path(), "expression is not specified"));
        } else {
            // A variable sees only those before it.
            match check(text, Wanted::Any, declared) {
                Ok(found) => ty = Some(found),
                Err(why) => {
                    ty = Some(coxswain_cel::Type::Dyn);
                    errors.push(Error::invalid(expression.path(), expression.str(), why));
                }
            }
        }
        // One without an expression is not there for those after it; one that does not compile may be anything.
        if let Some(ty) = ty {
            declared.define(name.str(), ty);
        }
    }
}

fn is_identifier(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !matches!(
            text,
            "true"
                | "false"
                | "null"
                | "in"
                | "as"
                | "break"
                | "const"
                | "continue"
                | "else"
                | "for"
                | "function"
                | "if"
                | "import"
                | "let"
                | "loop"
                | "package"
                | "namespace"
                | "return"
                | "var"
                | "void"
                | "while"
        )
}

fn check_validations(spec: &View<'_>, declared: &Names, policy: &str, errors: &mut ErrorList) {
    let (validations, annotations) = (spec.child("validations"), spec.child("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        errors.push(Error::required(validations.path(), why));
        errors.push(Error::required(annotations.path(), why));
        return;
    }
    for validation in validations.items() {
        let expression = validation.child("expression");
        let text = expression.str().trim();
        if text.is_empty() {
            errors.push(Error::required(expression.path(), "expression is not specified"));
        } else if let Err(why) = check(text, Wanted::Bool, declared) {
            errors.push(Error::invalid(expression.path(), expression.str(), why));
        }
        let message = validation.child("messageExpression");
        let text = message.str().trim();
        if text.is_empty() && !message.is_empty() {
            errors.push(Error::invalid(message.path(), message.str(), "must be non-empty if specified"));
        } else if !text.is_empty()
            && let Err(why) = check(text, Wanted::Text, declared)
        {
            errors.push(Error::invalid(message.path(), message.str(), why));
        }
        let message = validation.child("message");
        let text = message.str().trim();
        if text.is_empty() && !message.is_empty() {
            errors.push(Error::invalid(message.path(), message.str(), "must be non-empty if specified"));
        } else if text.contains(['\n', '\r']) {
            errors.push(Error::invalid(message.path(), message.str(), "must not contain line breaks"));
        }
        let reason = validation.child("reason");
        if reason.exists() {
            checks::supported_value(&reason, &["Forbidden", "Invalid", "RequestEntityTooLarge"], errors);
        }
    }
    if annotations.len() > AUDIT_ANNOTATIONS_MAX {
        let why = format!("must not have more than {AUDIT_ANNOTATIONS_MAX} auditAnnotations");
        errors.push(Error::invalid(annotations.path(), &annotations, why));
    }
    let mut seen = Vec::new();
    for annotation in annotations.items() {
        let (key, value) = (annotation.child("key"), annotation.child("valueExpression"));
        let full = format!("{policy}/{}", key.str());
        for why in names::qualified_name(&full) {
            errors.push(Error::invalid(key.path(), &full, why));
        }
        let text = value.str().trim();
        if text.is_empty() {
            errors.push(Error::required(value.path(), "valueExpression is not specified"));
        } else if text.len() > AUDIT_EXPRESSION_BYTES_MAX {
            let why = format!("must not exceed {AUDIT_EXPRESSION_BYTES_MAX} bytes in length");
            errors.push(Error::required(value.path(), why));
        } else if let Err(why) = check(text, Wanted::TextOrNull, declared) {
            errors.push(Error::invalid(value.path(), value.str(), why));
        }
        if seen.contains(&key.str()) {
            errors.push(Error::duplicate(key.path(), key.str()));
        }
        seen.push(key.str());
    }
}

fn check_mutations(spec: &View<'_>, declared: &Names, errors: &mut ErrorList) {
    let mutations = spec.child("mutations");
    if mutations.is_empty() {
        errors.push(Error::required(mutations.path(), "mutations must contain at least one item"));
    }
    for mutation in mutations.items() {
        let kind = mutation.child("patchType");
        let (used, other, wanted) = match kind.str() {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch", Wanted::Object),
            "JSONPatch" => ("jsonPatch", "applyConfiguration", Wanted::Patches),
            "" => {
                errors.push(Error::required(kind.path(), ""));
                continue;
            }
            unknown => {
                errors.push(Error::not_supported(kind.path(), unknown, &["ApplyConfiguration", "JSONPatch"]));
                continue;
            }
        };
        let (given, wrong) = (mutation.child_named(used), mutation.child_named(other));
        if given.exists() {
            let expression = given.child("expression");
            let text = expression.str().trim();
            if text.is_empty() {
                errors.push(Error::required(expression.path(), ""));
            } else if let Err(why) = check(text, wanted, declared) {
                errors.push(Error::invalid(expression.path(), text, why));
            }
        } else {
            let why = format!("must be specified when patchType is {}", kind.str());
            errors.push(Error::required(given.path(), why));
        }
        if wrong.exists() {
            let why = format!("must not be specified when patchType is {}", kind.str());
            errors.push(Error::invalid(wrong.path(), format!("{{{other}}}"), why));
        }
    }
    let again = spec.child("reinvocationPolicy");
    match again.opt_str() {
        None => errors.push(Error::required(again.path(), "")),
        Some(_) => checks::supported_value(&again, &["IfNeeded", "Never"], errors),
    }
}
