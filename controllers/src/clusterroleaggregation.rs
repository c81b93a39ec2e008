//! Fills ClusterRoles that gather the rules of others, the counterpart of `pkg/controller/clusterroleaggregation`.

use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::objects::{self, PatchKind};
use coxswain_client::{Client, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use http::Method;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use serde_json::json;

use crate::Context;
use crate::common::{owners, selector};

type State = (Client, Store<ClusterRole>);

pub async fn run(context: Context) {
    let roles: Informer<ClusterRole> = context.informers.informer();
    roles.synced().await;
    let queue = WorkQueue::<ObjectKey>::new();
    let state: Arc<State> = Arc::new((context.client.clone(), roles.store()));
    let feeds = feed(&roles, |_| {
        // Any role may be gathered by any other.
        for role in roles.store().list().iter().filter(|role| role.aggregation_rule.is_some()) {
            queue.add(ObjectKey::of(role.as_ref()));
        }
    });
    let reconcile = |state: Arc<State>, key: ObjectKey| async move { reconcile(&state, key).await };
    drive("cluster-role-aggregation", state, queue.clone(), 5, context.shutdown.clone(), reconcile, feeds).await;
}

/// The rules of all roles that one selects, each once, in the order of selectors and names.
fn gather(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    let selectors = role.aggregation_rule.iter().flat_map(|rule| rule.cluster_role_selectors.iter().flatten());
    for wanted in selectors {
        for other in all.iter().filter(|other| other.metadata.name != role.metadata.name) {
            if selector::matches(Some(wanted), other.metadata.labels.as_ref()) {
                for rule in other.rules.iter().flatten() {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
        }
    }
    rules
}

async fn reconcile((client, roles): &State, key: ObjectKey) -> Result<(), kube::Error> {
    let Some(role) = roles.get_key(&key).filter(|role| role.aggregation_rule.is_some()) else { return Ok(()) };
    let rules = gather(&role, &roles.list());
    if role.rules.clone().unwrap_or_default() == rules {
        return Ok(());
    }
    let applied = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": owners::name(&role.metadata)},
        "rules": rules,
    });
    let path =
        format!("{}?fieldManager=clusterrole-aggregation-controller&force=true", objects::path_of::<ClusterRole>(&key));
    let body = serde_json::to_vec(&applied).map_err(kube::Error::SerdeError)?;
    let result =
        objects::request::<ClusterRole>(client, Method::PATCH, &path, "application/apply-patch+yaml", Some(body)).await;
    match result {
        Ok(_) => Ok(()),
        // A server without apply takes the rules by a patch.
        Err(kube::Error::Api(status)) if status.code == 415 => {
            let patch = json!({"rules": rules});
            let patched = objects::patch::<ClusterRole>(client, &key, "", PatchKind::Merge, &patch).await;
            errors::ignore_not_found(patched).map(drop)
        }
        Err(error) => Err(error),
    }
}
