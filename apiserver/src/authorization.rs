//! Authorization: what a caller may do (upstream: `apiserver/pkg/authorization` and `kubeapiserver/authorizer`).
//!
//! [`Authorization`] is the whole chain of a server: members of `system:masters` first, then the modes in the order of
//! `--authorization-mode`. The first that allows or denies decides.

use crate::authentication::{ConfigError, MASTERS};
use crate::objects::Objects;
use crate::request::{RequestInfo, User};
use async_trait::async_trait;
use coxswain_api::Status;
use coxswain_api::field::go_quote;
use std::sync::Arc;

pub mod node;
pub mod rbac;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Why, for access reviews and the audit log; may be empty.
    Allow(String),
    /// Stops the chain.
    Deny(String),
    /// The next authorizer decides; the text goes into the refusal if none allows.
    NoOpinion(String),
}

impl Decision {
    pub fn is_allow(&self) -> bool {
        matches!(self, Decision::Allow(_))
    }

    pub fn reason(&self) -> &str {
        match self {
            Decision::Allow(reason) | Decision::Deny(reason) | Decision::NoOpinion(reason) => reason,
        }
    }
}

#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    async fn authorize(&self, user: &User, request: &RequestInfo) -> Decision;

    /// What a user may do in a namespace, as far as this authorizer can say (SelfSubjectRulesReview).
    fn rules_for(&self, _user: &User, _namespace: &str) -> Rules {
        Rules { incomplete: true, ..Rules::default() }
    }
}

/// Rules as an RBAC role states them, in the shape of `PolicyRule`.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    pub resource: Vec<coxswain_api::Value>,
    pub non_resource: Vec<coxswain_api::Value>,
    pub incomplete: bool,
    pub errors: Vec<String>,
}

/// The modes of `--authorization-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    AlwaysAllow,
    AlwaysDeny,
    Rbac,
    Node,
}

impl std::str::FromStr for Mode {
    type Err = ConfigError;
    fn from_str(s: &str) -> Result<Self, ConfigError> {
        match s {
            "AlwaysAllow" => Ok(Mode::AlwaysAllow),
            "AlwaysDeny" => Ok(Mode::AlwaysDeny),
            "RBAC" => Ok(Mode::Rbac),
            "Node" => Ok(Mode::Node),
            other => Err(ConfigError::Other(format!("{} is not a supported authorization mode", go_quote(other)))),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    /// In order; upstream's own default is `AlwaysAllow`.
    pub modes: Vec<Mode>,
}

impl Default for Config {
    fn default() -> Self {
        Self { modes: vec![Mode::Node, Mode::Rbac] }
    }
}

/// The chain of all authorizers.
pub struct Authorization {
    chain: Vec<Arc<dyn Authorizer>>,
    /// Rules as RBAC knows them, for escalation checks; present whatever the modes are.
    pub rbac: Arc<rbac::Rbac>,
}

impl Authorization {
    pub fn new(config: &Config, objects: Arc<dyn Objects>) -> Self {
        let rbac = Arc::new(rbac::Rbac::new(objects.clone()));
        let chain = config.modes.iter().map(|mode| -> Arc<dyn Authorizer> {
            match mode {
                Mode::AlwaysAllow => Arc::new(Always(true)),
                Mode::AlwaysDeny => Arc::new(Always(false)),
                Mode::Rbac => rbac.clone(),
                Mode::Node => Arc::new(node::NodeAuthorizer::new(objects.clone())),
            }
        });
        let chain = chain.collect();
        Self { chain, rbac }
    }

    /// `Err` is the answer 403.
    pub async fn check(&self, user: &User, request: &RequestInfo) -> Result<(), Status> {
        match self.authorize(user, request).await {
            Decision::Allow(_) => Ok(()),
            refused => Err(forbidden_because(user, request, &refused)),
        }
    }
}

#[async_trait]
impl Authorizer for Authorization {
    async fn authorize(&self, user: &User, request: &RequestInfo) -> Decision {
        if user.in_group(MASTERS) {
            return Decision::Allow(String::new());
        }
        let mut reasons: Vec<String> = Vec::new();
        for authorizer in &self.chain {
            match authorizer.authorize(user, request).await {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                Decision::Deny(reason) => {
                    reasons.retain(|r| !r.is_empty());
                    reasons.push(reason);
                    return Decision::Deny(reasons.join("\n"));
                }
                allow => return allow,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }

    fn rules_for(&self, user: &User, namespace: &str) -> Rules {
        let mut all = Rules::default();
        for authorizer in &self.chain {
            let rules = authorizer.rules_for(user, namespace);
            all.resource.extend(rules.resource);
            all.non_resource.extend(rules.non_resource);
            all.incomplete |= rules.incomplete;
            all.errors.extend(rules.errors);
        }
        all
    }
}

struct Always(bool);

#[async_trait]
impl Authorizer for Always {
    async fn authorize(&self, _user: &User, _request: &RequestInfo) -> Decision {
        if self.0 { Decision::Allow(String::new()) } else { Decision::NoOpinion("Everything is forbidden.".into()) }
    }

    fn rules_for(&self, _user: &User, _namespace: &str) -> Rules {
        if !self.0 {
            return Rules::default();
        }
        Rules {
            resource: vec![serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})],
            non_resource: vec![serde_json::json!({"verbs": ["*"], "nonResourceURLs": ["*"]})],
            ..Rules::default()
        }
    }
}

/// The answer to a request that no authorizer allowed.
pub fn forbidden_because(user: &User, request: &RequestInfo, decision: &Decision) -> Status {
    forbidden(user, request, decision.reason())
}

/// The answer 403 in upstream's words; `reason` may be empty (upstream: `responsewriters.ForbiddenStatusError`).
pub fn forbidden(user: &User, request: &RequestInfo, reason: &str) -> Status {
    // Never text that a browser might take for HTML.
    let mut message = refusal(user, request).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    if !reason.is_empty() {
        message.push_str(": ");
        message.push_str(reason);
    }
    Status::forbidden(&request.group, &request.resource, &request.name, &message)
}

fn refusal(user: &User, request: &RequestInfo) -> String {
    let (name, verb) = (go_quote(&user.name), &request.verb);
    if !request.is_resource {
        return format!("User {name} cannot {verb} path {}", go_quote(&request.path));
    }
    let resource = if request.subresource.is_empty() {
        go_quote(&request.resource)
    } else {
        go_quote(&format!("{}/{}", request.resource, request.subresource))
    };
    let group = go_quote(&request.group);
    let scope = if request.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {}", go_quote(&request.namespace))
    };
    format!("User {name} cannot {verb} resource {resource} in API group {group} {scope}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_as_upstream_prints_it() {
        let user = User { name: "x".into(), ..User::default() };
        let path = RequestInfo { path: "/api".into(), verb: "get".into(), ..RequestInfo::default() };
        assert_eq!(forbidden(&user, &path, "").message, "forbidden: User \"x\" cannot get path \"/api\"");
        let pods = RequestInfo {
            is_resource: true,
            verb: "get".into(),
            resource: "pods".into(),
            subresource: "log".into(),
            namespace: "n".into(),
            name: "p".into(),
            ..RequestInfo::default()
        };
        assert_eq!(
            forbidden(&user, &pods, "why").message,
            "pods \"p\" is forbidden: User \"x\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"n\": why"
        );
    }
}
