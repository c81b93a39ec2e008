//! A kubelet writes only its own node and the pods bound to it (upstream: `plugin/pkg/admission/noderestriction`).
//!
//! The node authorizer sees names and verbs; this plugin sees what is written. Off unless enabled by name.

mod pod_certificate;

use super::{Attributes, Operation, Plugin};
use crate::authorization::node::{self, node_of};
use crate::authorization::{Authorization, Authorizer};
use crate::objects::Objects;
use crate::request::RequestInfo;
use async_trait::async_trait;
use base64::Engine;
use coxswain_api::field::go_quote;
use coxswain_api::{Status, Value};
use std::collections::BTreeSet;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

const MIRROR: &str = "kubernetes.io/config.mirror";

pub struct NodeRestriction {
    pub objects: Arc<dyn Objects>,
    pub authorization: Arc<Authorization>,
}

type Verdict = Result<(), Status>;

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Verdict {
        let user = attributes.ctx.user.clone();
        let Some(node) = node_of(&user) else { return Ok(()) };
        if node.is_empty() {
            let why = format!("could not determine node from user {}", go_quote(&user.name));
            return Err(attributes.forbidden(why));
        }
        match (attributes.group(), attributes.plural()) {
            ("", "pods") => self.pods(node, attributes).await,
            ("", "nodes") => self.nodes(node, attributes),
            ("", "persistentvolumeclaims") => claims(node, attributes),
            ("", "serviceaccounts") => self.tokens(node, attributes).await,
            ("coordination.k8s.io", "leases") => leases(node, attributes),
            ("storage.k8s.io", "csinodes") => {
                same_name(node, attributes, "can only access CSINode with the same name as the requesting node")
            }
            ("resource.k8s.io", "resourceslices") => slices(node, attributes),
            ("certificates.k8s.io", "certificatesigningrequests") => requests(node, attributes),
            ("certificates.k8s.io", "podcertificaterequests") => {
                pod_certificate::check(self.objects.as_ref(), node, attributes).await
            }
            _ => Ok(()),
        }
    }
}

impl NodeRestriction {
    async fn pods(&self, node: &str, attributes: &Attributes<'_>) -> Verdict {
        let operation = super::matching::operation_name(attributes.operation);
        let quoted = go_quote(node);
        let refuse = |why: String| Err(attributes.forbidden(why));
        match (attributes.subresource, attributes.operation) {
            ("", Operation::Create) => self.mirror_pod(node, attributes),
            ("", Operation::Delete) => match self.bound_node(attributes, attributes.name).await? {
                bound if bound == node => Ok(()),
                _ => refuse(format!("node {quoted} can only delete pods with spec.nodeName set to itself")),
            },
            ("", _) => refuse(format!(
                "unexpected operation {}, node {quoted} can only create and delete mirror pods",
                go_quote(operation)
            )),
            ("status", Operation::Update) => {
                let (Some(pod), Some(old)) = (attributes.new_object(), attributes.old) else { return Ok(()) };
                if old["spec"]["nodeName"] != node {
                    return refuse(format!(
                        "node {quoted} can only update pod status for pods with spec.nodeName set to itself"
                    ));
                }
                if pod["metadata"]["labels"] != old["metadata"]["labels"] {
                    return refuse(format!("node {quoted} cannot update labels through pod status"));
                }
                if pod["status"]["resourceClaimStatuses"] != old["status"]["resourceClaimStatuses"] {
                    return refuse(format!("node {quoted} cannot update resource claim statues"));
                }
                Ok(())
            }
            ("status", _) => refuse(format!(
                "unexpected operation {}, node {quoted} can only update pod status",
                go_quote(operation)
            )),
            ("eviction", Operation::Create) => match self.bound_node(attributes, attributes.name).await? {
                bound if bound == node => Ok(()),
                _ => refuse(format!("node {node} can only evict pods with spec.nodeName set to itself")),
            },
            ("eviction", _) => {
                refuse(format!("unexpected operation {operation}, node {node} can only create eviction"))
            }
            (other, _) => refuse(format!(
                "unexpected pod subresource {}, only 'status' and 'eviction' are allowed",
                go_quote(other)
            )),
        }
    }

    async fn bound_node(&self, attributes: &Attributes<'_>, name: &str) -> Result<String, Status> {
        let pod = self.objects.get_consistent("", "pods", attributes.namespace, name).await?;
        let pod = pod.ok_or_else(|| Status::not_found("", "pods", name))?;
        Ok(pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned())
    }

    fn mirror_pod(&self, node: &str, attributes: &Attributes<'_>) -> Verdict {
        let Some(pod) = attributes.new_object() else { return Ok(()) };
        let quoted = go_quote(node);
        let refuse = |why: String| Err(attributes.forbidden(why));
        if pod["metadata"]["annotations"][MIRROR].is_null() {
            let key = go_quote(MIRROR);
            return refuse(format!("pod does not have {key} annotation, node {quoted} can only create mirror pods"));
        }
        if pod["spec"]["nodeName"] != node {
            return refuse(format!("node {quoted} can only create pods with spec.nodeName set to itself"));
        }
        let owners = pod["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
        let owner = match owners {
            [] => {
                return refuse(format!("node {quoted} can only create pods with an owner reference set to itself"));
            }
            [one] => one,
            _ => {
                return refuse(format!(
                    "node {quoted} can only create pods with a single owner reference set to itself"
                ));
            }
        };
        if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
            return refuse(format!("node {quoted} can only create pods with an owner reference set to itself"));
        }
        if owner["controller"] != true {
            return refuse(format!(
                "node {quoted} can only create pods with a controller owner reference set to itself"
            ));
        }
        if owner["blockOwnerDeletion"] == true {
            return refuse(format!("node {quoted} must not set blockOwnerDeletion on an owner reference"));
        }
        let own = self.objects.get("", "nodes", "", node).ok_or_else(|| Status::not_found("", "nodes", node))?;
        if owner["uid"] != own["metadata"]["uid"] {
            let uid = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            return refuse(format!(
                "node {node} UID mismatch: expected {} got {}",
                uid(&owner["uid"]),
                uid(&own["metadata"]["uid"])
            ));
        }
        let claims_resources = pod["spec"]["resourceClaims"].as_array().is_some_and(|l| !l.is_empty());
        let referenced = [
            (pod["spec"]["serviceAccountName"].as_str().is_some_and(|n| !n.is_empty()), "a service account"),
            (node::secrets(pod).next().is_some(), "secrets"),
            (node::config_maps(pod).next().is_some(), "configmaps"),
            (node::claims(pod).next().is_some(), "persistentvolumeclaims"),
            (claims_resources, "resourceclaims"),
        ];
        match referenced.iter().find(|(refers, _)| *refers) {
            Some((_, what)) => refuse(format!("node {quoted} can not create pods that reference {what}")),
            None => Ok(()),
        }
    }

    fn nodes(&self, node: &str, attributes: &Attributes<'_>) -> Verdict {
        let quoted = go_quote(node);
        let in_object = attributes.new_object().and_then(|o| o["metadata"]["name"].as_str()).unwrap_or_default();
        let asked = if attributes.name.is_empty() { in_object } else { attributes.name };
        let refuse = |why: String| Err(attributes.forbidden(why));
        if asked != node {
            return refuse(format!("node {quoted} is not allowed to modify node {}", go_quote(asked)));
        }
        let Some(object) = attributes.new_object() else { return Ok(()) };
        let old = attributes.old.filter(|_| attributes.operation == Operation::Update);
        let forbidden: Vec<String> = changed_labels(object, old).into_iter().filter(|l| is_reserved(l)).collect();
        if let Some(old) = old {
            if object["spec"]["taints"] != old["spec"]["taints"] {
                return refuse(format!("node {quoted} is not allowed to modify taints"));
            }
            if object["metadata"]["ownerReferences"] != old["metadata"]["ownerReferences"] {
                return refuse(format!("node {quoted} is not allowed to modify ownerReferences"));
            }
        }
        if forbidden.is_empty() {
            return Ok(());
        }
        let list = forbidden.join(", ");
        match old {
            Some(_) => refuse(format!("is not allowed to modify labels: {list}")),
            None => refuse(format!("node {quoted} is not allowed to set the following labels: {list}")),
        }
    }

    /// Tokens only for the service accounts of its pods, for audiences that these pods ask for.
    async fn tokens(&self, node: &str, attributes: &Attributes<'_>) -> Verdict {
        if attributes.operation != Operation::Create || attributes.subresource != "token" {
            return Ok(());
        }
        let Some(request) = attributes.new_object() else { return Ok(()) };
        let refuse = |why: &str| Err(attributes.forbidden(why));
        let reference = &request["spec"]["boundObjectRef"];
        let text = |key: &str| reference[key].as_str().unwrap_or_default();
        if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
            return refuse("node requested token not bound to a pod");
        }
        if text("uid").is_empty() {
            return refuse("node requested token with a pod binding without a uid");
        }
        let pod = self.objects.get_consistent("", "pods", attributes.namespace, text("name")).await?;
        let pod = pod.ok_or_else(|| Status::not_found("", "pods", text("name")))?;
        if pod["metadata"]["uid"] != text("uid") {
            return refuse(&format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                text("uid")
            ));
        }
        if pod["spec"]["nodeName"] != node {
            return refuse("node requested token bound to a pod scheduled on a different node");
        }
        let audiences = request["spec"]["audiences"].as_array().map(Vec::as_slice).unwrap_or_default();
        let audience = match audiences {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return refuse("node may only request 0 or 1 audiences"),
        };
        if self.asks_for(&pod, audience) || self.may_request(attributes, audience).await {
            return Ok(());
        }
        refuse(&format!("audience {} not found in pod spec volume", go_quote(audience)))
    }

    /// Whether a volume of the pod needs a token for the audience: projected, or of a CSI driver.
    fn asks_for(&self, pod: &Value, audience: &str) -> bool {
        let list = |v: &'_ Value| v.as_array().cloned().unwrap_or_default();
        let projected = list(&pod["spec"]["volumes"]).iter().any(|v| {
            list(&v["projected"]["sources"]).iter().any(|s| {
                let token = &s["serviceAccountToken"];
                token.is_object() && token["audience"].as_str().unwrap_or_default() == audience
            })
        });
        if projected || audience.is_empty() {
            return true;
        }
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let inline = list(&pod["spec"]["volumes"]);
        let inline = inline.iter().filter_map(|v| v["csi"]["driver"].as_str().map(str::to_owned));
        let mounted = node::claims(pod).filter_map(|claim| {
            let claim = self.objects.get("", "persistentvolumeclaims", namespace, &claim)?;
            let volume = self.objects.get("", "persistentvolumes", "", claim["spec"]["volumeName"].as_str()?)?;
            volume["spec"]["csi"]["driver"].as_str().map(str::to_owned)
        });
        let drivers: BTreeSet<String> = inline.chain(mounted).collect();
        drivers.iter().any(|driver| {
            let driver = self.objects.get("storage.k8s.io", "csidrivers", "", driver);
            driver.is_some_and(|d| list(&d["spec"]["tokenRequests"]).iter().any(|r| r["audience"] == audience))
        })
    }

    async fn may_request(&self, attributes: &Attributes<'_>, audience: &str) -> bool {
        let request = RequestInfo {
            is_resource: true,
            verb: "request-serviceaccounts-token-audience".into(),
            version: "v1".into(),
            namespace: attributes.namespace.into(),
            resource: audience.into(),
            name: attributes.name.into(),
            ..RequestInfo::default()
        };
        self.authorization.authorize(&attributes.ctx.user, &request).await.is_allow()
    }
}

fn claims(node: &str, attributes: &Attributes<'_>) -> Verdict {
    if attributes.subresource != "status" {
        return Err(attributes.forbidden("may only update PVC status"));
    }
    let (Some(new), Some(old)) = (attributes.new_object(), attributes.old) else { return Ok(()) };
    let rest = |o: &Value| {
        let mut o = o.clone();
        for key in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses", "modifyVolumeStatus"] {
            o["status"].as_object_mut().map(|s| s.remove(key));
        }
        for key in ["resourceVersion", "managedFields"] {
            o["metadata"].as_object_mut().map(|m| m.remove(key));
        }
        o
    };
    if rest(new) == rest(old) {
        return Ok(());
    }
    let why = "is not allowed to update fields other than status.quantity and status.conditions";
    Err(attributes.forbidden(format!("node {} {why}", go_quote(node))))
}

fn same_name(node: &str, attributes: &Attributes<'_>, why: &str) -> Verdict {
    let in_object = attributes.new_object().and_then(|o| o["metadata"]["name"].as_str());
    let name = if attributes.operation == Operation::Create { in_object.unwrap_or_default() } else { attributes.name };
    if name == node { Ok(()) } else { Err(attributes.forbidden(why)) }
}

fn leases(node: &str, attributes: &Attributes<'_>) -> Verdict {
    if attributes.namespace != "kube-node-lease" {
        return Err(attributes.forbidden("can only access leases in the \"kube-node-lease\" system namespace"));
    }
    same_name(node, attributes, "can only access node lease with the same name as the requesting node")
}

fn slices(node: &str, attributes: &Attributes<'_>) -> Verdict {
    let object = if attributes.operation == Operation::Delete { attributes.old } else { attributes.new_object() };
    if object.is_none_or(|o| o["spec"]["nodeName"] == node) {
        return Ok(());
    }
    let verb = match attributes.operation {
        Operation::Create => "create",
        Operation::Delete => "delete",
        _ => "update",
    };
    Err(attributes.forbidden(format!("can only {verb} ResourceSlice with the same NodeName as the requesting node")))
}

/// A kubelet asks for certificates of its own node only.
fn requests(node: &str, attributes: &Attributes<'_>) -> Verdict {
    let Some(object) = attributes.new_object().filter(|_| attributes.operation == Operation::Create) else {
        return Ok(());
    };
    let signer = object["spec"]["signerName"].as_str();
    if !matches!(signer, Some("kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet")) {
        return Ok(());
    }
    let text = object["spec"]["request"].as_str().unwrap_or_default();
    let pem = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    let name = x509_parser::pem::parse_x509_pem(&pem).ok().and_then(|(_, block)| {
        let (_, request) = X509CertificationRequest::from_der(&block.contents).ok()?;
        let subject = &request.certification_request_info.subject;
        subject.iter_common_name().next()?.as_str().ok().map(str::to_owned)
    });
    match name {
        None => Err(attributes.forbidden("unable to parse csr")),
        Some(name) if name == format!("system:node:{node}") => Ok(()),
        Some(_) => Err(attributes.forbidden(format!("can only create a node CSR with CN=system:node:{node}"))),
    }
}

fn changed_labels(object: &Value, old: Option<&Value>) -> BTreeSet<String> {
    let labels = |o: &Value| o["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (new, old) = (labels(object), old.map(labels).unwrap_or_default());
    new.keys().chain(old.keys()).filter(|key| new.get(*key) != old.get(*key)).cloned().collect()
}

/// Labels that say what a node is trusted with are not for the node to choose.
fn is_reserved(label: &str) -> bool {
    #[rustfmt::skip]
    const KUBELET: [&str; 11] = [
        "kubernetes.io/hostname", "topology.kubernetes.io/zone", "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region",
        "node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type", "kubernetes.io/os",
        "kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
    ];
    let Some((domain, _)) = label.split_once('/') else { return false };
    let within = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|d| d.ends_with('.'));
    if within("node-restriction.kubernetes.io") {
        return true;
    }
    let own = KUBELET.contains(&label) || within("kubelet.kubernetes.io") || within("node.kubernetes.io");
    (within("kubernetes.io") || within("k8s.io")) && !own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_sets_only_its_own_labels() {
        for label in
            ["a", "example.com/a", "kubernetes.io/hostname", "node.kubernetes.io/x", "a.kubelet.kubernetes.io/x"]
        {
            assert!(!is_reserved(label), "{label}");
        }
        for label in [
            "kubernetes.io/x",
            "a.k8s.io/x",
            "node-restriction.kubernetes.io/x",
            "node-role.kubernetes.io/control-plane",
        ] {
            assert!(is_reserved(label), "{label}");
        }
    }
}
