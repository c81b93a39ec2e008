//! Small questions about nodes and services that several controllers ask.

use coxswain_client::objects::{self, PatchKind};
use coxswain_client::{Client, ObjectKey, kube};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use serde_json::json;

pub(crate) fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

pub(crate) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

pub(crate) fn has_label(node: &Node, key: &str) -> bool {
    node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(key))
}

/// Replaces a node's taints, unless the node has changed since it was read.
pub(crate) async fn set_taints(client: &Client, node: &Node, taints: &[Taint]) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": taints}});
    objects::patch::<Node>(client, &ObjectKey::of(node), "", PatchKind::Merge, &patch).await.map(drop)
}
