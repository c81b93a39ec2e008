//! What somebody may do (upstream: `apiserver/pkg/cel/library/authz.go`). The question is put together step by step; the last
//! step, `check`, asks the authorizer that was passed in.

use super::Found;
use crate::eval::Error;
use crate::value::Value;
use coxswain_api::names;

/// Who answers.
pub trait Authorizer: Send + Sync {
    fn authorize(&self, request: &AccessRequest) -> Decision;
}

/// Whether somebody may do something.
#[derive(Clone, Debug, Default)]
pub struct AccessRequest {
    /// Namespace and name of a service account that is asked about instead of the caller.
    pub service_account: Option<(String, String)>,
    pub verb: String,
    /// Of something that is no resource; empty for resources.
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

#[derive(Clone, Debug, Default)]
pub struct Decision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// A question on its way.
#[derive(Clone)]
pub struct Check<'a> {
    asked: &'a dyn Authorizer,
    stage: Stage,
    request: AccessRequest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Authorizer,
    Path,
    Group,
    Resource,
}

impl std::fmt::Debug for Check<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("stage", &self.stage).field("request", &self.request).finish_non_exhaustive()
    }
}

impl<'a> Value<'a> {
    /// The variable `authorizer`.
    pub fn authorizer(asked: &'a dyn Authorizer) -> Self {
        let request = AccessRequest::default();
        Value::Check(std::sync::Arc::new(Check { asked, stage: Stage::Authorizer, request }))
    }

    /// The variable `authorizer.requestResource`: the question about the resource of the request itself.
    pub fn resource_authorizer(asked: &'a dyn Authorizer, request: AccessRequest) -> Self {
        Value::Check(std::sync::Arc::new(Check { asked, stage: Stage::Resource, request }))
    }
}

impl<'a> Check<'a> {
    pub(crate) fn type_name(&self) -> &'static str {
        match self.stage {
            Stage::Authorizer => "kubernetes.authorization.Authorizer",
            Stage::Path => "kubernetes.authorization.PathCheck",
            Stage::Group => "kubernetes.authorization.GroupCheck",
            Stage::Resource => "kubernetes.authorization.ResourceCheck",
        }
    }

    pub(super) fn call(&self, name: &str, rest: &[Value<'a>]) -> Found<'a> {
        let texts: Option<Vec<&str>> = rest
            .iter()
            .map(|v| match v {
                Value::Text(text) => Some(&**text),
                _ => None,
            })
            .collect();
        let texts = texts.ok_or_else(Error::no_overload)?;
        let mut next = self.clone();
        match (self.stage, name, &texts[..]) {
            (Stage::Authorizer, "path", [path]) => {
                if path.trim().is_empty() {
                    return Err(Error::new("path must not be empty"));
                }
                next.stage = Stage::Path;
                next.request.path = (*path).to_owned();
            }
            (Stage::Authorizer, "group", [group]) => {
                next.stage = Stage::Group;
                next.request.group = (*group).to_owned();
            }
            (Stage::Authorizer, "serviceAccount", [namespace, account]) => {
                if !names::dns1123_subdomain(account, false).is_empty() {
                    return Err(Error::new("Invalid service account name"));
                }
                if !names::dns1123_label(namespace, false).is_empty() {
                    return Err(Error::new("Invalid service account namespace"));
                }
                next.request.service_account = Some(((*namespace).to_owned(), (*account).to_owned()));
            }
            (Stage::Group, "resource", [resource]) => {
                if resource.trim().is_empty() {
                    return Err(Error::new("resource must not be empty"));
                }
                next.stage = Stage::Resource;
                next.request.resource = (*resource).to_owned();
            }
            (Stage::Resource, "subresource", [text]) => next.request.subresource = (*text).to_owned(),
            (Stage::Resource, "namespace", [text]) => next.request.namespace = (*text).to_owned(),
            (Stage::Resource, "name", [text]) => next.request.name = (*text).to_owned(),
            (Stage::Resource, "fieldSelector", [text]) => next.request.field_selector = (*text).to_owned(),
            (Stage::Resource, "labelSelector", [text]) => next.request.label_selector = (*text).to_owned(),
            (Stage::Path | Stage::Resource, "check", [verb]) => {
                next.request.verb = (*verb).to_owned();
                return Ok(Value::Decision(std::sync::Arc::new(self.asked.authorize(&next.request))));
            }
            _ => return Err(Error::no_overload()),
        }
        Ok(Value::Check(std::sync::Arc::new(next)))
    }
}

impl Decision {
    pub(super) fn call<'a>(&self, name: &str) -> Found<'a> {
        Ok(match name {
            "allowed" => self.allowed.into(),
            "reason" => self.reason.as_str().into(),
            "errored" => self.error.is_some().into(),
            "error" => self.error.as_deref().unwrap_or_default().into(),
            _ => return Err(Error::no_overload()),
        })
    }
}
