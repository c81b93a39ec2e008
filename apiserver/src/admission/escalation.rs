//! Nobody grants by roles and bindings what they do not hold (upstream: `pkg/registry/rbac/*/policybased`).
//!
//! Upstream asks this in the registry, after mutating admission and before validation; as the last mutating plugin it
//! stands at the same place. It cannot be disabled.

use super::{Attributes, Operation, Parts, Plugin};
use crate::authentication::MASTERS;
use crate::authorization::rbac::{GROUP, Rule, compact, compacted, uncovered};
use crate::authorization::{Authorization, Authorizer};
use crate::request::RequestInfo;
use async_trait::async_trait;
use coxswain_api::field::go_quote;
use coxswain_api::{Status, Value};
use std::sync::Arc;

pub struct Escalation {
    authorization: Arc<Authorization>,
}

impl Escalation {
    pub fn new(parts: &Parts<'_>) -> Self {
        Self { authorization: parts.authorization.clone() }
    }

    async fn may(&self, attributes: &Attributes<'_>, verb: &str, namespace: &str, resource: &str, name: &str) -> bool {
        let request = RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: GROUP.into(),
            version: "*".into(),
            namespace: namespace.into(),
            resource: resource.into(),
            name: name.into(),
            ..RequestInfo::default()
        };
        self.authorization.authorize(&attributes.ctx.user, &request).await.is_allow()
    }

    async fn check_role(&self, attributes: &Attributes<'_>, object: &Value) -> Result<(), Status> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let asked = if attributes.name.is_empty() { name } else { attributes.name };
        if self.may(attributes, "escalate", attributes.namespace, attributes.plural(), asked).await {
            return Ok(());
        }
        let refused = |why: &str| Status::forbidden(GROUP, attributes.plural(), name, why);
        self.confirm(attributes, &Rule::of_role(object)).map_err(|why| refused(&why))?;
        // An aggregation rule can gather anything.
        let aggregates = |o: &Value| o["aggregationRule"].is_object();
        if aggregates(object) || attributes.old.is_some_and(aggregates) {
            let all = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
            let everything = [
                Rule { verbs: all(&["*"]), api_groups: all(&["*"]), resources: all(&["*"]), ..Rule::default() },
                Rule { verbs: all(&["*"]), non_resource_urls: all(&["*"]), ..Rule::default() },
            ];
            self.confirm(attributes, &everything)
                .map_err(|_| refused("must have cluster-admin privileges to use an aggregationRule"))?;
        }
        Ok(())
    }

    async fn check_binding(&self, attributes: &Attributes<'_>, object: &Value) -> Result<(), Status> {
        let role_ref = &object["roleRef"];
        let role = role_ref["name"].as_str().unwrap_or_default();
        let resource = if role_ref["kind"] == "Role" { "roles" } else { "clusterroles" };
        if self.may(attributes, "bind", attributes.namespace, resource, role).await {
            return Ok(());
        }
        let rules = self.authorization.rbac.role_rules(role_ref, attributes.namespace).await?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        self.confirm(attributes, &rules).map_err(|why| Status::forbidden(GROUP, attributes.plural(), name, &why))
    }

    /// Whether the caller holds all of `rules` in the namespace of the request; the error is upstream's sentence.
    fn confirm(&self, attributes: &Attributes<'_>, rules: &[Rule]) -> Result<(), String> {
        let user = &attributes.ctx.user;
        let (own, errors) = self.authorization.rbac.rules(user, attributes.namespace);
        let missing = uncovered(&own, rules);
        if missing.is_empty() {
            return Ok(());
        }
        let mut texts: Vec<String> = compacted(missing).iter().map(compact).collect();
        texts.sort();
        texts.dedup();
        let groups: Vec<String> = user.groups.iter().map(|g| go_quote(g)).collect();
        let mut message = format!(
            "user {} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            go_quote(&user.name),
            groups.join(" "),
            texts.join("\n")
        );
        if !errors.is_empty() {
            let mut unique = errors;
            unique.dedup();
            let list = if unique.len() == 1 { unique.remove(0) } else { format!("[{}]", unique.join(", ")) };
            message.push_str(&format!("; resolution errors: [{list}]"));
        }
        Err(message)
    }
}

#[async_trait]
impl Plugin for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if attributes.group() != GROUP || attributes.ctx.user.in_group(MASTERS) {
            return Ok(());
        }
        let Some(object) = attributes.new_object() else { return Ok(()) };
        if attributes.old.is_some_and(|old| only_for_collection(object, old)) {
            return Ok(());
        }
        match attributes.plural() {
            "roles" | "clusterroles" => self.check_role(attributes, object).await,
            "rolebindings" | "clusterrolebindings" => self.check_binding(attributes, object).await,
            _ => Ok(()),
        }
    }
}

/// Whether a change is one that the garbage collector makes: of owner references and finalizers only
/// (upstream: `IsOnlyMutatingGCFields`).
pub(super) fn only_for_collection(object: &Value, old: &Value) -> bool {
    let rest = |o: &Value| {
        let mut o = o.clone();
        if let Some(meta) = o["metadata"].as_object_mut() {
            for key in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
                meta.remove(key);
            }
        }
        o
    };
    rest(object) == rest(old)
}
