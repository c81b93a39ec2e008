//! Which requests a webhook or an admission policy is for (upstream: `admission/plugin/webhook/predicates` and
//! `admission/plugin/policy/matching`).

use super::{Attributes, Operation};
use crate::objects::Objects;
use coxswain_api::selector::Selector;
use coxswain_api::{Status, Value};
use std::sync::Arc;

const GROUP: &str = "admissionregistration.k8s.io";

/// All objects of a resource that changes seldom, read again when it did.
pub(super) struct Remembered {
    objects: Arc<dyn Objects>,
    resource: &'static str,
    kept: parking_lot::Mutex<Option<(u64, Arc<Vec<Arc<Value>>>)>>,
}

impl Remembered {
    pub(super) fn new(objects: Arc<dyn Objects>, resource: &'static str) -> Self {
        Self { objects, resource, kept: Default::default() }
    }

    pub(super) fn all(&self) -> Arc<Vec<Arc<Value>>> {
        // The version first: a change while reading then only means one more reading.
        let version = self.objects.version(GROUP, self.resource);
        let mut kept = self.kept.lock();
        if let Some((of, list)) = &*kept
            && *of == version
        {
            return list.clone();
        }
        let list = Arc::new(self.objects.list(GROUP, self.resource, None));
        *kept = Some((version, list.clone()));
        list
    }
}

/// Nobody but the built-in plugins may stand in the way of mending webhooks and policies.
pub(super) fn is_exempt(attributes: &Attributes<'_>) -> bool {
    const KINDS: [&str; 6] = [
        "validatingwebhookconfigurations",
        "mutatingwebhookconfigurations",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicybindings",
    ];
    attributes.group() == GROUP && KINDS.contains(&attributes.plural())
}

pub(super) fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Whether one of `RuleWithOperations` fits.
pub(super) fn rules_match(rules: &Value, attributes: &Attributes<'_>) -> bool {
    list(rules).any(|rule| rule_matches(rule, attributes))
}

fn rule_matches(rule: &Value, attributes: &Attributes<'_>) -> bool {
    let any = |key: &str, wanted: &str| list(&rule[key]).any(|v| v == "*" || v == wanted);
    let is_namespace = attributes.is_of("", "namespaces");
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => !is_namespace && !attributes.namespace.is_empty(),
        Some("Cluster") => is_namespace || attributes.namespace.is_empty(),
        _ => true,
    };
    let equivalent_version = |version: &str| {
        // With `matchPolicy: Equivalent` any version of the resource counts; objects are alike in all of them.
        any("apiVersions", version)
    };
    let resource = list(&rule["resources"]).filter_map(Value::as_str).any(|pattern| {
        let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
        (resource == "*" || resource == attributes.plural())
            && (subresource == "*" || subresource == attributes.subresource)
    });
    let named = list(&rule["resourceNames"]).next().is_none()
        || list(&rule["resourceNames"]).any(|name| name == attributes.name);
    scope
        && any("operations", operation_name(attributes.operation))
        && any("apiGroups", attributes.group())
        && equivalent_version(&attributes.resource.group_version.version)
        && resource
        && named
}

/// Whether `namespaceSelector` and `objectSelector` of `criteria` select the request.
pub(super) async fn selectors_match(
    criteria: &Value,
    attributes: &Attributes<'_>,
    objects: &Arc<dyn Objects>,
) -> Result<bool, Status> {
    let parse =
        |key: &str| Selector::from_label_selector(criteria.get(key).filter(|s| !s.is_null())).map_err(Status::internal);
    let is_set = |key: &str| criteria[key].as_object().is_some_and(|s| !s.is_empty());
    if is_set("objectSelector") {
        let selector = parse("objectSelector")?;
        let selected =
            |object: Option<&Value>| object.is_some_and(|o| selector.matches_labels(o["metadata"].get("labels")));
        if !selected(attributes.new_object()) && !selected(attributes.old) {
            return Ok(false);
        }
    }
    if !is_set("namespaceSelector") {
        return Ok(true);
    }
    let selector = parse("namespaceSelector")?;
    // A namespace is selected by its own labels: those it has, or is about to have.
    let is_namespace = attributes.is_of("", "namespaces");
    if is_namespace && let Some(namespace) = attributes.new_object().or(attributes.old) {
        return Ok(selector.matches_labels(namespace["metadata"].get("labels")));
    }
    if attributes.namespace.is_empty() {
        return Ok(true);
    }
    let namespace = namespace_of(attributes, objects).await?;
    Ok(namespace.is_some_and(|n| selector.matches_labels(n["metadata"].get("labels"))))
}

/// The namespace of the request, if it has one.
pub(super) async fn namespace_of(
    attributes: &Attributes<'_>,
    objects: &Arc<dyn Objects>,
) -> Result<Option<Arc<Value>>, Status> {
    if attributes.namespace.is_empty() {
        return Ok(None);
    }
    match objects.get("", "namespaces", "", attributes.namespace) {
        Some(found) => Ok(Some(found)),
        None => objects.get_consistent("", "namespaces", "", attributes.namespace).await,
    }
}

/// The question whether the caller may do what the request does; only the verb is missing.
pub(super) fn access_request(attributes: &Attributes<'_>) -> coxswain_cel::AccessRequest {
    coxswain_cel::AccessRequest {
        group: attributes.group().into(),
        resource: attributes.plural().into(),
        subresource: attributes.subresource.into(),
        namespace: attributes.namespace.into(),
        name: attributes.name.into(),
        ..Default::default()
    }
}

/// The request as `AdmissionRequest` shows it, without the objects.
pub(super) fn request(attributes: &Attributes<'_>) -> Value {
    let version = &attributes.resource.group_version;
    let kind =
        serde_json::json!({"group": &*version.group, "version": &*version.version, "kind": &*attributes.resource.kind});
    let resource =
        serde_json::json!({"group": &*version.group, "version": &*version.version, "resource": attributes.plural()});
    let user = &attributes.ctx.user;
    let mut out = serde_json::json!({
        "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
        "operation": operation_name(attributes.operation),
        "userInfo": crate::registry::authentication::user_info(user),
        "dryRun": attributes.ctx.dry_run,
        "options": attributes.options,
    });
    for (key, text) in [
        ("subResource", attributes.subresource),
        ("requestSubResource", attributes.subresource),
        ("name", attributes.name),
        ("namespace", attributes.namespace),
    ] {
        if !text.is_empty() {
            out[key] = serde_json::json!(text);
        }
    }
    out
}
