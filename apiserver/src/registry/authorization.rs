//! Questions about permission, answered and not stored: access reviews and the rules review
//! (upstream: `pkg/registry/authorization` and `pkg/apis/authorization/validation`).

use super::authentication::admit;
use super::pipeline::{Call, Pipeline};
use super::resource::Virtual;
use crate::authentication::Authentication;
use crate::authorization::{Authorization, Authorizer, Decision};
use crate::objects::Objects;
use crate::request::{RequestInfo, User};
use async_trait::async_trait;
use coxswain_api::field::{Error, ErrorKind, ErrorList, Path, View};
use coxswain_api::selector::Selector;
use coxswain_api::selector::field_selector::FieldSelector;
use coxswain_api::{Status, Value};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

const GROUP: &str = "authorization.k8s.io";

type Virtuals = HashMap<(&'static str, &'static str, &'static str), Arc<dyn Virtual>>;

/// Every resource of authentication and authorization that is answered and not stored, as the pipeline takes them.
pub fn virtuals(
    authentication: &Arc<Authentication>,
    authorization: &Arc<Authorization>,
    objects: &Arc<dyn Objects>,
) -> Virtuals {
    use super::authentication::{GROUP as IDENTITY, SelfSubjectReviews, TokenRequests, TokenReviews};
    let review = |kind| -> Arc<dyn Virtual> { Arc::new(AccessReviews { kind, authorization: authorization.clone() }) };
    let mut all: Virtuals = HashMap::new();
    all.insert((IDENTITY, "tokenreviews", ""), Arc::new(TokenReviews { authentication: authentication.clone() }));
    all.insert((IDENTITY, "selfsubjectreviews", ""), Arc::new(SelfSubjectReviews));
    all.insert((GROUP, "subjectaccessreviews", ""), review(Kind::Subject));
    all.insert((GROUP, "localsubjectaccessreviews", ""), review(Kind::Local));
    all.insert((GROUP, "selfsubjectaccessreviews", ""), review(Kind::Own));
    let rules = RulesReviews { authorization: authorization.clone() };
    all.insert((GROUP, "selfsubjectrulesreviews", ""), Arc::new(rules));
    if let Some(service_accounts) = &authentication.service_accounts {
        let tokens = TokenRequests { service_accounts: service_accounts.clone(), objects: objects.clone() };
        all.insert(("", "serviceaccounts", "token"), Arc::new(tokens));
    }
    all
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of any user.
    Subject,
    /// Of any user, in one namespace.
    Local,
    /// Of the caller.
    Own,
}

struct AccessReviews {
    kind: Kind,
    authorization: Arc<Authorization>,
}

#[async_trait]
impl Virtual for AccessReviews {
    async fn create(&self, pipeline: &Pipeline, call: &Call, name: &str, object: Value) -> Result<Value, Status> {
        let mut object = object;
        let errors = check(self.kind, &object, call);
        if !errors.is_empty() {
            // Upstream names no kind here.
            return Err(Status::invalid(GROUP, "", "", &errors));
        }
        admit(pipeline, call, name, &mut object).await?;
        let spec = &object["spec"];
        let user = if self.kind == Kind::Own { (*call.ctx.user).clone() } else { subject(spec) };
        let request = attributes(spec);
        let decision = self.authorization.authorize(&user, &request).await;
        let mut status = json!({"allowed": decision.is_allow()});
        if matches!(decision, Decision::Deny(_)) {
            status["denied"] = json!(true);
        }
        if !decision.reason().is_empty() {
            status["reason"] = json!(decision.reason());
        }
        let unread = unread_selectors(&spec["resourceAttributes"]);
        if !unread.is_empty() {
            status["evaluationError"] = json!(unread.join("; "));
        }
        object["status"] = status;
        Ok(object)
    }
}

/// What of the selectors of a review is not taken into account, because it cannot be read (upstream: `BuildEvaluationError`).
fn unread_selectors(resource: &Value) -> Vec<String> {
    let raw = |name: &str| resource[name]["rawSelector"].as_str().filter(|raw| !raw.is_empty()).map(str::to_owned);
    let told = |name: &str, extent: &str| format!("spec.resourceAttributes.{name} {extent} due to parse error");
    let mut unread = Vec::new();
    match raw("fieldSelector") {
        Some(raw) if FieldSelector::parse(&raw).is_err() => unread.push(told("fieldSelector", "ignored")),
        Some(_) => {}
        None => {
            let asked = resource["fieldSelector"]["requirements"].as_array().map_or(0, Vec::len);
            let read = selector(&resource["fieldSelector"]).map_or(0, |terms| terms.split(',').count());
            if read < asked {
                unread.push(told("fieldSelector", if read > 0 { "partially ignored" } else { "ignored" }));
            }
        }
    }
    if raw("labelSelector").is_some_and(|raw| Selector::parse(&raw).is_err()) {
        unread.push(told("labelSelector", "ignored"));
    }
    unread
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn subject(spec: &Value) -> User {
    // Upstream's v1beta1 calls the field `group`.
    let groups = if spec["groups"].is_null() { &spec["group"] } else { &spec["groups"] };
    let extra = spec["extra"].as_object().into_iter().flatten();
    User {
        name: text(&spec["user"]),
        uid: text(&spec["uid"]),
        groups: strings(groups),
        extra: extra.map(|(key, values)| (key.to_lowercase(), strings(values))).collect(),
    }
}

/// The request that the review asks about.
fn attributes(spec: &Value) -> RequestInfo {
    let path = &spec["nonResourceAttributes"];
    if path.is_object() {
        return RequestInfo { path: text(&path["path"]), verb: text(&path["verb"]), ..RequestInfo::default() };
    }
    let resource = &spec["resourceAttributes"];
    let version = text(&resource["version"]);
    RequestInfo {
        is_resource: true,
        verb: text(&resource["verb"]),
        group: text(&resource["group"]),
        version: if version.is_empty() { "*".into() } else { version },
        namespace: text(&resource["namespace"]),
        resource: text(&resource["resource"]),
        subresource: text(&resource["subresource"]),
        name: text(&resource["name"]),
        field_selector: selector(&resource["fieldSelector"]),
        label_selector: selector(&resource["labelSelector"]),
        ..RequestInfo::default()
    }
}

/// A selector as a request would send it; requirements that no selector can express ask for less and are left out.
fn selector(value: &Value) -> Option<String> {
    if let Some(raw) = value["rawSelector"].as_str().filter(|raw| !raw.is_empty()) {
        return Some(raw.to_owned());
    }
    let terms = value["requirements"].as_array().into_iter().flatten().filter_map(|r| {
        let (key, values) = (text(&r["key"]), strings(&r["values"]));
        match (r["operator"].as_str()?, values.as_slice()) {
            ("In", [one]) => Some(format!("{key}={one}")),
            ("NotIn", [one]) => Some(format!("{key}!={one}")),
            _ => None,
        }
    });
    let terms: Vec<String> = terms.collect();
    (!terms.is_empty()).then(|| terms.join(","))
}

fn check(kind: Kind, object: &Value, call: &Call) -> ErrorList {
    let spec = View::new(object.get("spec"), Path::new("spec"));
    let (resource, path) = (spec.child("resourceAttributes"), spec.child("nonResourceAttributes"));
    let mut errors = ErrorList::new();
    if resource.exists() && path.exists() {
        errors.push(go_invalid(&path, "cannot be specified in combination with resourceAttributes"));
    }
    if !resource.exists() && !path.exists() {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(Error::invalid(resource.path(), &resource, why));
    }
    let groups = if spec.child("groups").exists() { spec.child("groups") } else { spec.child("group") };
    if kind != Kind::Own && spec.child("user").is_empty() && groups.is_empty() {
        let why = "at least one of user or group must be specified";
        errors.push(Error::invalid(spec.child("user").path(), "", why));
    }
    for key in ["fieldSelector", "labelSelector"] {
        check_selector(&resource.child_named(key), &mut errors);
    }
    check_metadata(kind, object, call, &mut errors);
    if kind == Kind::Local {
        let namespace = resource.child("namespace");
        if resource.exists() && namespace.str() != call.namespace() {
            errors.push(Error::invalid(namespace.path(), namespace.str(), "must match metadata.namespace"));
        }
        if path.exists() {
            errors.push(go_invalid(&path, "disallowed on this kind of request"));
        }
    }
    errors
}

/// Nothing may be said in the metadata of a review.
fn check_metadata(kind: Kind, object: &Value, call: &Call, errors: &mut ErrorList) {
    let own = |key: &str| key == "managedFields" || (key == "namespace" && kind == Kind::Local);
    let given = object["metadata"].as_object().into_iter().flatten();
    let mut given = given.filter(|(key, value)| !own(key) && !value.is_null());
    if given.next().is_none() {
        return;
    }
    let mut shown = Vec::new();
    match call.shape().schema.field("metadata").map(|f| &f.ty) {
        Some(coxswain_api::schema::Type::Struct(schema)) => {
            coxswain_api::codec::json::encode(&object["metadata"], schema, &mut shown);
        }
        _ => shown.extend(object["metadata"].to_string().bytes()),
    }
    let detail = if kind == Kind::Local { "must be empty except for namespace" } else { "must be empty" };
    errors.push(Error {
        kind: ErrorKind::Invalid,
        field: "metadata".into(),
        bad_value: Some(String::from_utf8_lossy(&shown).into_owned()),
        detail: detail.into(),
    });
}

fn check_selector(selector: &View<'_>, errors: &mut ErrorList) {
    if !selector.exists() {
        return;
    }
    let (raw, requirements) = (selector.child("rawSelector"), selector.child("requirements"));
    if !raw.is_empty() && !requirements.is_empty() {
        let why = "may not specified at the same time as requirements";
        errors.push(Error::invalid(raw.path(), raw.str(), why));
    }
    if raw.is_empty() && requirements.is_empty() {
        let path = selector.path();
        let why = format!("when {path} is specified, requirements or rawSelector is required");
        errors.push(Error::required(requirements.path(), why));
    }
    for requirement in requirements.items() {
        let (key, operator, values) =
            (requirement.child("key"), requirement.child("operator"), requirement.child("values"));
        if key.is_empty() {
            errors.push(Error::required(key.path(), "must be specified"));
        }
        match operator.str() {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(Error::required(values.path(), why));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(Error::forbidden(values.path(), why));
            }
            _ => {}
        }
    }
}

/// The error of a struct, which upstream shows with its Go names.
fn go_invalid(path: &View<'_>, detail: &str) -> Error {
    let part = |key: &'static str| json!(path.child(key).str());
    Error {
        kind: ErrorKind::Invalid,
        field: path.path().to_string(),
        bad_value: Some(format!("{{\"Path\":{},\"Verb\":{}}}", part("path"), part("verb"))),
        detail: detail.into(),
    }
}

struct RulesReviews {
    authorization: Arc<Authorization>,
}

#[async_trait]
impl Virtual for RulesReviews {
    async fn create(&self, pipeline: &Pipeline, call: &Call, name: &str, object: Value) -> Result<Value, Status> {
        let mut object = object;
        let namespace = text(&object["spec"]["namespace"]);
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        admit(pipeline, call, name, &mut object).await?;
        let rules = self.authorization.rules_for(&call.ctx.user, &namespace);
        let mut status = json!({
            "resourceRules": rules.resource, "nonResourceRules": rules.non_resource, "incomplete": rules.incomplete,
        });
        if !rules.errors.is_empty() {
            status["evaluationError"] = json!(rules.errors.join(", "));
        }
        // Upstream answers with the status alone.
        Ok(json!({
            "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": {}, "spec": {}, "status": status,
        }))
    }
}
