//! Which requests a webhook or an admission policy is for (upstream: `admission/plugin/webhook/predicates` and
//! `admission/plugin/policy/matching`).

use super::{Attributes, Operation};
use crate::objects::Objects;
use coxswain_api::catalogue::{GroupVersion, ResourceType};
use coxswain_api::selector::Selector;
use coxswain_api::{Status, Value, json};
use std::borrow::Cow;
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

/// The type in which a rule asks for the objects of a request.
pub(super) type AskedType = Arc<ResourceType>;

/// Whether one of `RuleWithOperations` fits a request. With `matchPolicy: Equivalent`, the default, a rule for another version
/// of the resource does: then the request is to be shown in that version.
pub(super) fn rules_match(
    rules: &Value,
    match_policy: &Value,
    attributes: &Attributes<'_>,
    objects: &dyn Objects,
) -> Option<Option<AskedType>> {
    if list(rules).any(|rule| rule_matches(rule, attributes.resource, attributes)) {
        return Some(None);
    }
    let own = attributes.resource;
    // Most rules are for other resources altogether.
    let may_match = |rule: &Value| list(&rule["resources"]).any(|pattern| resource_matches(pattern, own, attributes));
    if match_policy == "Exact" || !list(rules).any(may_match) {
        return None;
    }
    let gv = &own.group_version;
    let mut others = objects.equivalents(&gv.group, &gv.version, &own.plural);
    others.retain(|ty| attributes.subresource.is_empty() || ty.subresource(attributes.subresource).is_some());
    // Earlier rules go before earlier versions.
    let found = list(rules).find_map(|rule| others.iter().find(|ty| rule_matches(rule, ty, attributes)));
    found.map(|ty| Some(ty.clone()))
}

fn resource_matches(pattern: &Value, ty: &ResourceType, attributes: &Attributes<'_>) -> bool {
    let Some(pattern) = pattern.as_str() else { return false };
    let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
    (resource == "*" || *resource == *ty.plural) && (subresource == "*" || subresource == attributes.subresource)
}

fn rule_matches(rule: &Value, ty: &ResourceType, attributes: &Attributes<'_>) -> bool {
    let any = |key: &str, wanted: &str| list(&rule[key]).any(|v| v == "*" || v == wanted);
    let is_namespace = attributes.is_of("", "namespaces");
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => !is_namespace && !attributes.namespace.is_empty(),
        Some("Cluster") => is_namespace || attributes.namespace.is_empty(),
        _ => true,
    };
    let resource = list(&rule["resources"]).any(|pattern| resource_matches(pattern, ty, attributes));
    let named = list(&rule["resourceNames"]).next().is_none()
        || list(&rule["resourceNames"]).any(|name| name == attributes.name);
    scope
        && any("operations", operation_name(attributes.operation))
        && any("apiGroups", &ty.group_version.group)
        && any("apiVersions", &ty.group_version.version)
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

/// The kind of what is written: a subresource may have one of its own.
pub(super) fn kind_of<'t>(ty: &'t ResourceType, subresource: &str) -> (&'t GroupVersion, &'t str) {
    match ty.subresource(subresource) {
        Some(own) => (&own.group_version, &own.kind),
        None => (&ty.group_version, &ty.kind),
    }
}

/// An object of the request with the kind that it is of, in the version in which it is asked for.
pub(super) fn shown(object: &Value, attributes: &Attributes<'_>, asked: Option<&AskedType>) -> Value {
    let mut object = object.clone();
    if object["kind"].is_null() && attributes.operation != Operation::Connect {
        let (version, kind) = kind_of(attributes.resource, attributes.subresource);
        object["apiVersion"] = json!(version.api_version());
        object["kind"] = json!(kind);
    }
    if let Some(ty) = asked {
        coxswain_api::conversion::convert(&mut object, kind_of(ty, attributes.subresource).0);
    }
    object
}

/// As [`shown`], where it is of use only if it is another version.
pub(super) fn converted<'o>(
    object: Option<&'o Value>,
    attributes: &Attributes<'_>,
    asked: Option<&AskedType>,
) -> Option<Cow<'o, Value>> {
    object.map(|object| match asked {
        None => Cow::Borrowed(object),
        Some(_) => Cow::Owned(shown(object, attributes, asked)),
    })
}

/// Takes an object that [`shown`] has converted back to the version of the request.
pub(super) fn restored(mut object: Value, attributes: &Attributes<'_>, asked: Option<&AskedType>) -> Value {
    if asked.is_some() {
        coxswain_api::conversion::convert(&mut object, kind_of(attributes.resource, attributes.subresource).0);
    }
    object
}

/// The request as `AdmissionRequest` shows it, without the objects.
pub(super) fn request(attributes: &Attributes<'_>, asked: Option<&AskedType>) -> Value {
    let names = |ty: &ResourceType| {
        let (version, kind) = kind_of(ty, attributes.subresource);
        let kind = json!({"group": &*version.group, "version": &*version.version, "kind": kind});
        let version = &ty.group_version;
        (kind, json!({"group": &*version.group, "version": &*version.version, "resource": &*ty.plural}))
    };
    let (request_kind, request_resource) = names(attributes.resource);
    let (kind, resource) = names(asked.map_or(attributes.resource, |ty| ty));
    let user = &attributes.ctx.user;
    let mut out = json!({
        "kind": kind, "resource": resource, "requestKind": request_kind, "requestResource": request_resource,
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
            out[key] = json!(text);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::memory::Memory;
    use crate::request::Context;
    use coxswain_api::catalogue;

    fn asked(rule: Value, match_policy: &str, version: &str) -> Option<Option<String>> {
        let ty = catalogue::builtin().resource("autoscaling", version, "horizontalpodautoscalers").unwrap();
        let ctx = Context {
            user: Arc::default(),
            info: Arc::default(),
            dry_run: false,
            field_manager: String::new(),
            now: jiff::Timestamp::UNIX_EPOCH,
            warnings: Default::default(),
        };
        let mut object = json!({
            "metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}});
        let attributes = Attributes {
            ctx: &ctx,
            operation: Operation::Create,
            resource: ty,
            subresource: "",
            namespace: "n",
            name: "h",
            object: Some(&mut object),
            old: None,
            options: &Value::Null,
        };
        let found = rules_match(&json!([rule]), &json!(match_policy), &attributes, &Memory::default())?;
        let object = shown(attributes.new_object().unwrap(), &attributes, found.as_ref());
        let request = request(&attributes, found.as_ref());
        assert_eq!(request["requestKind"]["version"], version);
        assert_eq!(request["kind"]["version"], object["apiVersion"].as_str().unwrap().rsplit('/').next().unwrap());
        if let Some(other) = &found {
            assert_eq!(object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
            let back = restored(object, &attributes, found.as_ref());
            assert_eq!(back["spec"]["targetCPUUtilizationPercentage"], 80);
            return Some(Some(other.group_version.api_version().to_string()));
        }
        Some(None)
    }

    #[test]
    fn a_rule_for_another_version_asks_for_the_object_in_that() {
        let rule = |version: &str| {
            json!({"operations": ["*"], "apiGroups": ["autoscaling"], "apiVersions": [version],
                "resources": ["horizontalpodautoscalers"]})
        };
        assert_eq!(asked(rule("v1"), "Equivalent", "v1"), Some(None));
        assert_eq!(asked(rule("v2"), "Equivalent", "v1"), Some(Some("autoscaling/v2".into())));
        assert_eq!(asked(rule("v2"), "Exact", "v1"), None);
        assert_eq!(asked(rule("v3"), "Equivalent", "v1"), None);
        assert_eq!(asked(rule("*"), "Exact", "v1"), Some(None));
    }
}
