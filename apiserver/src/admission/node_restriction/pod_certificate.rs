//! A kubelet asks for certificates only for pods that run on it, under the account that they run under (upstream:
//! `admitPodCertificateRequest`).
//!
//! Where the cache may lag behind what the kubelet has seen, the answer is not that it is forbidden but an error, so that it asks
//! again.

use crate::admission::{Attributes, Operation};
use crate::objects::Objects;
use coxswain_api::features::Feature;
use coxswain_api::field::go_quote;
use coxswain_api::{Status, Value};
use std::sync::Arc;

pub(super) async fn check(objects: &dyn Objects, node: &str, attributes: &Attributes<'_>) -> Result<(), Status> {
    let refuse = |why: String| Err(attributes.forbidden(why));
    if !Feature::PodCertificateRequest.enabled() {
        return refuse("PodCertificateRequest feature gate is disabled".into());
    }
    if attributes.operation != Operation::Create {
        let operation = crate::admission::matching::operation_name(attributes.operation);
        return refuse(format!("unexpected operation {operation}"));
    }
    if !attributes.subresource.is_empty() {
        return refuse(format!("unexpected subresource {}", attributes.subresource));
    }
    let Some(spec) = attributes.new_object().and_then(|request| request.get("spec")) else { return Ok(()) };
    let text = |field: &str| spec[field].as_str().unwrap_or_default();
    let quoted = |field: &str| go_quote(text(field));
    let namespace = attributes.namespace;
    let within = |name: &str| go_quote(&format!("{namespace}/{name}"));
    if text("nodeName") != node {
        let named = quoted("nodeName");
        let why =
            format!("PodCertificateRequest.Spec.NodeName={named}, which is not the requesting node {}", go_quote(node));
        return refuse(why);
    }
    let pod_name = within(text("podName"));
    let this_node = objects.get("", "nodes", "", node).ok_or_else(|| missing("node", &go_quote(node), "node", node))?;
    if uid(&this_node) != text("nodeUID") {
        let (named, present) = (quoted("nodeUID"), go_quote(uid(&this_node)));
        return Err(error(format!(
            "PodCertificateRequest for pod {pod_name} names node UID {named}, inconsistent with the running node ({present})"
        )));
    }
    let pod = objects.get("", "pods", namespace, text("podName"));
    let pod: Arc<Value> = pod.ok_or_else(|| missing("pod", &pod_name, "pod", text("podName")))?;
    if uid(&pod) != text("podUID") {
        let (named, present) = (quoted("podUID"), go_quote(uid(&pod)));
        return Err(error(format!(
            "PodCertificateRequest for pod {pod_name} contains pod UID ({named}) which differs from running pod {present}"
        )));
    }
    if pod["spec"]["nodeName"] != node {
        let node = go_quote(node);
        return refuse(format!("pod {pod_name} is not running on node {node} named in the PodCertificateRequest"));
    }
    if !pod["metadata"]["annotations"][super::MIRROR].is_null() {
        return refuse(format!("pod {pod_name} is a mirror pod"));
    }
    let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    if text("serviceAccountName") != account {
        let (named, present) = (quoted("serviceAccountName"), go_quote(account));
        return refuse(format!(
            "PodCertificateRequest for pod {pod_name} contains serviceAccountName ({named}) that differs from running pod ({present})"
        ));
    }
    let found = objects.get("", "serviceaccounts", namespace, account);
    let found = found.ok_or_else(|| missing("service account", &within(account), "serviceaccount", account))?;
    if uid(&found) != text("serviceAccountUID") {
        let (named, present) = (quoted("serviceAccountUID"), go_quote(uid(&found)));
        return Err(error(format!(
            "PodCertificateRequest for pod {pod_name} names service account UID {named}, which differs from the running service account ({present})"
        )));
    }
    Ok(())
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// An error of which nothing more is known.
fn error(why: String) -> Status {
    let mut status = Status::new(500, "", why);
    status.details = None;
    status
}

fn missing(what: &str, shown: &str, resource: &str, name: &str) -> Status {
    let name = go_quote(name);
    error(format!("while retrieving {what} {shown} named in the PodCertificateRequest: {resource} {name} not found"))
}
