//! Admission policies: rules in CEL, bound to what they are for (upstream: `admission/plugin/policy`).

mod mutating;

pub use mutating::MutatingAdmissionPolicy;

use super::cel::{Asked, Variables, conditions_hold};
use super::matching::{
    AskedType, Remembered, access_request, converted, is_exempt, namespace_of, request, rules_match, selectors_match,
};
use super::{Attributes, Operation, Plugin};
use crate::authorization::Authorization;
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::selector::Selector;
use coxswain_api::status::Cause;
use coxswain_api::{Status, Value};
use std::sync::Arc;

/// `ValidatingAdmissionPolicy`
pub struct ValidatingAdmissionPolicy {
    common: Common,
}

impl ValidatingAdmissionPolicy {
    pub fn new(objects: Arc<dyn Objects>, authorization: Arc<Authorization>) -> Self {
        Self {
            common: Common::new(
                objects,
                authorization,
                "validatingadmissionpolicies",
                "validatingadmissionpolicybindings",
            ),
        }
    }
}

/// What policies of both kinds share: whom they are for, and their parameters.
struct Common {
    objects: Arc<dyn Objects>,
    authorization: Arc<Authorization>,
    policies: Remembered,
    bindings: Remembered,
}

/// Why a policy says no.
struct Denial {
    message: String,
    /// Of a status, such as `Invalid`.
    reason: String,
}

impl Common {
    fn new(
        objects: Arc<dyn Objects>,
        authorization: Arc<Authorization>,
        policies: &'static str,
        bindings: &'static str,
    ) -> Self {
        let policies = Remembered::new(objects.clone(), policies);
        let bindings = Remembered::new(objects.clone(), bindings);
        Self { objects, authorization, policies, bindings }
    }

    /// Who is asked what the caller may do.
    fn asked(&self, attributes: &Attributes<'_>) -> Asked {
        Asked { authorization: self.authorization.clone(), user: attributes.ctx.user.clone() }
    }

    /// Whether the criteria are for the request, and in which type they ask for its objects if it is not the request's own.
    async fn matches(
        &self,
        criteria: &Value,
        all_if_empty: bool,
        attributes: &Attributes<'_>,
    ) -> Result<Option<Option<AskedType>>, Status> {
        let fitting = |rules: &Value| rules_match(rules, &criteria["matchPolicy"], attributes, &*self.objects);
        if fitting(&criteria["excludeResourceRules"]).is_some() {
            return Ok(None);
        }
        let rules = &criteria["resourceRules"];
        let unbounded = all_if_empty && rules.as_array().is_none_or(Vec::is_empty);
        let Some(asked) = (if unbounded { Some(None) } else { fitting(rules) }) else { return Ok(None) };
        Ok(selectors_match(criteria, attributes, &self.objects).await?.then_some(asked))
    }

    /// The plural of a kind, built in or custom, and whether it is namespaced.
    fn resource_of(&self, group: &str, version: &str, kind: &str) -> Option<(String, bool)> {
        let mut built_in = coxswain_api::catalogue::builtin().resources();
        let found = built_in
            .find(|r| &*r.group_version.group == group && &*r.group_version.version == version && &*r.kind == kind);
        if let Some(resource) = found {
            return Some((resource.plural.to_string(), resource.namespaced));
        }
        let custom = self.objects.list("apiextensions.k8s.io", "customresourcedefinitions", None);
        let definition = custom.iter().find(|d| d["spec"]["group"] == group && d["spec"]["names"]["kind"] == kind)?;
        let plural = definition["spec"]["names"]["plural"].as_str()?.to_owned();
        Some((plural, definition["spec"]["scope"] == "Namespaced"))
    }

    /// The parameters of a binding: none if the policy takes none.
    fn params(
        &self,
        policy: &Value,
        binding: &Value,
        attributes: &Attributes<'_>,
    ) -> Result<Vec<Option<Arc<Value>>>, String> {
        let kind = &policy["spec"]["paramKind"];
        let reference = &binding["spec"]["paramRef"];
        if !kind.is_object() || !reference.is_object() {
            return Ok(vec![None]);
        }
        let (version, kind) =
            (kind["apiVersion"].as_str().unwrap_or_default(), kind["kind"].as_str().unwrap_or_default());
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let unknown = || format!("failed to find resource referenced by paramKind: '{group}/{version}, Kind={kind}'");
        let (plural, namespaced) = self.resource_of(group, version, kind).ok_or_else(unknown)?;
        let namespace = match (namespaced, reference["namespace"].as_str()) {
            (false, _) => "",
            (true, Some(namespace)) if !namespace.is_empty() => namespace,
            (true, _) if attributes.namespace.is_empty() => {
                return Err(
                    "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into()
                );
            }
            (true, _) => attributes.namespace,
        };
        let found: Vec<Arc<Value>> = match reference["name"].as_str().filter(|n| !n.is_empty()) {
            Some(name) => self.objects.get(group, &plural, namespace, name).into_iter().collect(),
            None => {
                let selector = Selector::from_label_selector(reference.get("selector"))?;
                let mut all = self.objects.list(group, &plural, namespaced.then_some(namespace));
                all.retain(|o| selector.matches_labels(o["metadata"].get("labels")));
                all
            }
        };
        if found.is_empty() {
            return match reference["parameterNotFoundAction"].as_str() {
                Some("Deny") => Err("no params found for policy binding with `Deny` parameterNotFoundAction".into()),
                _ => Ok(Vec::new()),
            };
        }
        Ok(found.into_iter().map(Some).collect())
    }
}

/// What a policy says of a request.
fn evaluate(policy: &Value, variables: &mut Variables<'_>) -> Vec<Denial> {
    let spec = &policy["spec"];
    let fails = spec["failurePolicy"] != "Ignore";
    let error = |message: String| Denial { message, reason: "Invalid".into() };
    match conditions_hold(&spec["matchConditions"], variables) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(why) if fails => return vec![error(why)],
        Err(_) => return Vec::new(),
    }
    define_variables(spec, variables);
    let mut denials = Vec::new();
    for validation in spec["validations"].as_array().into_iter().flatten() {
        let expression = validation["expression"].as_str().unwrap_or_default().trim();
        match variables.is_true(expression) {
            Ok(true) => {}
            Ok(false) => {
                let reason = validation["reason"].as_str().unwrap_or("Invalid").to_owned();
                denials.push(Denial { message: message(validation, expression, variables), reason });
            }
            Err(why) if fails => denials.push(error(format!("expression '{expression}' resulted in error: {why}"))),
            Err(_) => {}
        }
    }
    denials
}

fn define_variables(spec: &Value, variables: &mut Variables<'_>) {
    for variable in spec["variables"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap_or_default();
        variables.define(name, variable["expression"].as_str().unwrap_or_default().trim());
    }
}

/// The message expression if it gives a usable text, else the message, else the expression that failed.
fn message(validation: &Value, expression: &str, variables: &Variables<'_>) -> String {
    let computed = validation["messageExpression"].as_str().and_then(|e| variables.text(e.trim()).ok());
    let usable = computed.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty() && !t.contains('\n'));
    let stated = || validation["message"].as_str().map(|m| m.trim().to_owned()).filter(|m| !m.is_empty());
    usable.or_else(stated).unwrap_or_else(|| format!("failed expression: {expression}"))
}

#[async_trait]
impl Plugin for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, _operation: Operation) -> bool {
        true
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        let bindings = self.common.bindings.all();
        if bindings.is_empty() || is_exempt(attributes) {
            return Ok(());
        }
        for policy in self.common.policies.all().iter() {
            let name = policy["metadata"]["name"].as_str().unwrap_or_default();
            let bound: Vec<_> = bindings.iter().filter(|b| b["spec"]["policyName"] == name).collect();
            if bound.is_empty() {
                continue;
            }
            let Some(ty) = self.common.matches(&policy["spec"]["matchConstraints"], false, attributes).await? else {
                continue;
            };
            let object = converted(attributes.new_object(), attributes, ty.as_ref());
            let old = converted(attributes.old, attributes, ty.as_ref());
            let namespace = namespace_of(attributes, &self.common.objects).await?;
            for binding in bound {
                if self.common.matches(&binding["spec"]["matchResources"], true, attributes).await?.is_none() {
                    continue;
                }
                let denials = match self.common.params(policy, binding, attributes) {
                    Err(why) if policy["spec"]["failurePolicy"] == "Ignore" => {
                        tracing::debug!(policy = name, %why, "a policy is ignored");
                        continue;
                    }
                    Err(why) => {
                        let message = format!("failed to configure binding: {why}");
                        vec![Denial { message, reason: "Invalid".into() }]
                    }
                    Ok(params) => {
                        let mut denials = Vec::new();
                        let (shown, asked) = (request(attributes, ty.as_ref()), self.common.asked(attributes));
                        for param in &params {
                            let mut variables = Variables::new();
                            variables.set("object", object.as_deref());
                            variables.set("oldObject", old.as_deref());
                            variables.set("request", Some(&shown));
                            variables.set_authorizer(&asked, access_request(attributes));
                            variables.set("params", param.as_deref());
                            variables.set("namespaceObject", namespace.as_deref());
                            denials.extend(evaluate(policy, &mut variables));
                        }
                        denials
                    }
                };
                act(attributes, name, binding, denials)?;
            }
        }
        Ok(())
    }
}

/// Does what the binding says is to be done about denials.
fn act(attributes: &Attributes<'_>, policy: &str, binding: &Value, denials: Vec<Denial>) -> Result<(), Status> {
    let name = binding["metadata"]["name"].as_str().unwrap_or_default();
    let does =
        |action: &str| binding["spec"]["validationActions"].as_array().is_some_and(|l| l.iter().any(|a| a == action));
    if does("Warn") {
        for denial in &denials {
            attributes.ctx.warnings.add(format!(
                "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{name}': {}",
                denial.message
            ));
        }
    }
    let Some(denial) = denials.into_iter().next().filter(|_| does("Deny")) else { return Ok(()) };
    let message =
        format!("ValidatingAdmissionPolicy '{policy}' with binding '{name}' denied request: {}", denial.message);
    let mut status = attributes.forbidden(&message);
    status.code = match denial.reason.as_str() {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    status.reason = denial.reason;
    if let Some(details) = &mut status.details {
        details.causes.push(Cause { message, ..Cause::default() });
    }
    Err(status)
}
