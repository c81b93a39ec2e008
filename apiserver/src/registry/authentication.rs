//! Questions about identity, answered and not stored: TokenReview, SelfSubjectReview and TokenRequest
//! (upstream: `pkg/registry/authentication` and `core/serviceaccount/storage/token.go`).

use super::options::{OptionsKind, WriteOptions};
use super::pipeline::{Call, Pipeline};
use super::resource::Virtual;
use crate::admission::Operation;
use crate::authentication::Authentication;
use crate::authentication::service_account::{Claims, ServiceAccounts};
use crate::objects::Objects;
use crate::request::User;
use async_trait::async_trait;
use coxswain_api::field::{Error, Path, go_quote};
use coxswain_api::{Status, Value};
use serde_json::{Value as Json, json};
use std::sync::Arc;

const DEFAULT_EXPIRATION_SECONDS: i64 = 3600;

pub(super) const GROUP: &str = "authentication.k8s.io";

/// Runs the validating admission of a create that stores nothing.
pub(super) async fn admit(pipeline: &Pipeline, call: &Call, name: &str, object: &mut Value) -> Result<(), Status> {
    let options = WriteOptions::of_query(&call.query, OptionsKind::Create)?.admission_object("CreateOptions");
    pipeline.validate_admission(call, Operation::Create, &options, name, Some(object), None).await
}

/// A user as `authentication.k8s.io` `UserInfo`.
pub(crate) fn user_info(user: &User) -> Json {
    let mut info = json!({});
    if !user.name.is_empty() {
        info["username"] = json!(user.name);
    }
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// `tokenreviews`
pub struct TokenReviews {
    pub authentication: Arc<Authentication>,
}

#[async_trait]
impl Virtual for TokenReviews {
    async fn create(&self, pipeline: &Pipeline, call: &Call, name: &str, object: Value) -> Result<Value, Status> {
        let mut object = object;
        let token = object["spec"]["token"].as_str().unwrap_or_default().to_owned();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        admit(pipeline, call, name, &mut object).await?;
        let mut audiences: Vec<String> = object["spec"]["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        if audiences.is_empty() {
            audiences.clone_from(&self.authentication.audiences);
        }
        object["status"] = match self.authentication.authenticate_token(&token, &audiences).await {
            Ok(found) => {
                json!({"authenticated": true, "user": user_info(&found.user), "audiences": found.audiences})
            }
            Err(refused) => json!({"user": {}, "error": refused.0}),
        };
        Ok(object)
    }
}

/// `selfsubjectreviews`
pub struct SelfSubjectReviews;

#[async_trait]
impl Virtual for SelfSubjectReviews {
    async fn create(&self, pipeline: &Pipeline, call: &Call, name: &str, object: Value) -> Result<Value, Status> {
        let mut object = object;
        admit(pipeline, call, name, &mut object).await?;
        Ok(json!({
            "apiVersion": object["apiVersion"], "kind": object["kind"],
            "metadata": {"creationTimestamp": seconds(call.ctx.now)},
            "status": {"userInfo": user_info(&call.ctx.user)},
        }))
    }
}

/// RFC 3339 in whole seconds, as `metav1.Time`.
fn seconds(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `serviceaccounts/token`
pub struct TokenRequests {
    pub service_accounts: Arc<ServiceAccounts>,
    pub objects: Arc<dyn Objects>,
}

/// What a token is bound to.
#[derive(Default)]
struct Bound {
    pod: Option<Arc<Value>>,
    secret: Option<Arc<Value>>,
    node: Option<Arc<Value>>,
}

impl TokenRequests {
    async fn find(&self, resource: &str, namespace: &str, name: &str) -> Result<Arc<Value>, Status> {
        let found = self.objects.get_consistent("", resource, namespace, name).await?;
        found.ok_or_else(|| Status::not_found("", resource, name))
    }

    async fn bound(&self, reference: &Value, namespace: &str, account: &str) -> Result<Bound, Status> {
        let text = |key: &str| reference[key].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
        let (kind, name) = (text("kind"), text("name"));
        let mut bound = Bound::default();
        let object = match (group, kind) {
            ("", "Pod") => {
                let pod = self.find("pods", namespace, name).await?;
                let runs_as = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
                if runs_as != account {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {} to pod running with serviceaccount {}",
                        go_quote(account),
                        go_quote(runs_as)
                    )));
                }
                if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                    // A node that is gone is still named, without uid.
                    let gone = || Arc::new(json!({"metadata": {"name": node}}));
                    bound.node = Some(self.objects.get("", "nodes", "", node).unwrap_or_else(gone));
                }
                bound.pod = Some(pod.clone());
                pod
            }
            ("", "Secret") => {
                let secret = self.find("secrets", namespace, name).await?;
                bound.secret = Some(secret.clone());
                secret
            }
            ("", "Node") => {
                let node = self.find("nodes", "", name).await?;
                bound.node = Some(node.clone());
                node
            }
            _ => {
                let message = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
                return Err(Status::bad_request(message));
            }
        };
        if !text("uid").is_empty() && object["metadata"]["uid"] != text("uid") {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                text("uid")
            );
            return Err(Status::conflict(group, kind, name, &why));
        }
        Ok(bound)
    }
}

#[async_trait]
impl Virtual for TokenRequests {
    fn set_defaults(&self, object: &mut Value) {
        if object["spec"]["expirationSeconds"].is_null() {
            object["spec"]["expirationSeconds"] = json!(DEFAULT_EXPIRATION_SECONDS);
        }
    }

    async fn create(&self, pipeline: &Pipeline, call: &Call, name: &str, object: Value) -> Result<Value, Status> {
        let mut object = object;
        let namespace = call.namespace();
        for (key, wanted, what) in [("name", name, "name"), ("namespace", namespace, "namespace")] {
            let given = object["metadata"][key].as_str().unwrap_or_default().to_owned();
            if !given.is_empty() && given != wanted {
                let path = Path::new("metadata").child_named(key);
                let why = format!("must match the service account {what} if specified");
                return Err(Status::invalid(GROUP, "TokenRequest", name, &[Error::invalid(&path, &given, why)]));
            }
        }
        let account = self.find("serviceaccounts", namespace, name).await?;
        let uid = account["metadata"]["uid"].as_str().unwrap_or_default();
        let given = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        if !given.is_empty() && given != uid {
            let why =
                format!("the UID in the token request ({given}) does not match the UID of the service account ({uid})");
            return Err(Status::conflict(GROUP, "TokenRequest", name, &why));
        }
        let mut audiences: Vec<String> = object["spec"]["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        if audiences.is_empty() {
            audiences = self.service_accounts.api_audiences().to_vec();
        }
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(name);
        metadata["namespace"] = json!(namespace);
        metadata["uid"] = json!(uid);
        metadata["creationTimestamp"] = json!(seconds(call.ctx.now));
        object["spec"]["audiences"] = json!(audiences);
        object["status"] = json!({"token": "", "expirationTimestamp": null});
        let mut expiration = object["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_EXPIRATION_SECONDS);
        check_expiration(expiration)?;
        admit(pipeline, call, name, &mut object).await?;

        let bound = match &object["spec"]["boundObjectRef"] {
            Value::Null => Bound::default(),
            reference => self.bound(reference, namespace, name).await?,
        };
        if let Some(max) = self.service_accounts.max_expiration_seconds().filter(|max| expiration > *max) {
            let text = format!("requested expiration of {expiration} seconds shortened to {max} seconds");
            call.ctx.warnings.add(text);
            expiration = max;
            object["spec"]["expirationSeconds"] = json!(max);
        }
        let claims = Claims {
            service_account: Some(&account),
            pod: bound.pod.as_deref(),
            secret: bound.secret.as_deref(),
            node: bound.node.as_deref(),
            audiences: &audiences,
            expiration_seconds: expiration,
            now: call.ctx.now,
        };
        let token = self
            .service_accounts
            .issue(&claims)
            .map_err(|why| Status::internal(format!("failed to generate token: {why}")))?;
        let expires = call.ctx.now + jiff::SignedDuration::from_secs(expiration);
        object["status"] = json!({"token": token, "expirationTimestamp": seconds(expires)});
        Ok(object)
    }
}

fn check_expiration(seconds: i64) -> Result<(), Status> {
    let path = Path::new("spec").child("expirationSeconds");
    let why = match seconds {
        ..600 => "may not specify a duration less than 10 minutes",
        4_294_967_297.. => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(()),
    };
    Err(Status::invalid(GROUP, "TokenRequest", "", &[Error::invalid(&path, seconds, why)]))
}
