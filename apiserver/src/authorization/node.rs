//! What a kubelet may do: its own node, the pods bound to it, and what these pods refer to
//! (upstream: `plugin/pkg/auth/authorizer/node`).
//!
//! Whether a node is related to an object is asked of the watch cache when a request comes: the pods of one node are few.

use super::rbac::Rule;
use super::{Authorizer, Decision, Rules};
use crate::objects::Objects;
use crate::request::{RequestInfo, User};
use async_trait::async_trait;
use coxswain_api::Value;
use coxswain_api::features::Feature;
use coxswain_api::field::go_quote;
use std::sync::Arc;

pub const NODES_GROUP: &str = "system:nodes";
const USER_PREFIX: &str = "system:node:";

/// The node that a user is: none for others, an empty name for one that cannot be told
/// (upstream: `nodeidentifier`).
pub fn node_of(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix(USER_PREFIX)?;
    user.in_group(NODES_GROUP).then_some(name)
}

pub struct NodeAuthorizer {
    objects: Arc<dyn Objects>,
    /// What every node may do with resources that are not subdivided by node.
    rules: Vec<Rule>,
}

/// Kinds of objects that a node is related to through its pods.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Secret,
    ConfigMap,
    Claim,
    Volume,
    ResourceClaim,
    Attachment,
    ServiceAccount,
    Slice,
    Pod,
    CertificateRequest,
}

impl NodeAuthorizer {
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        let role = crate::registry::rbac::bootstrap::cluster_role("system:node");
        Self { objects, rules: role.as_ref().map(Rule::of_role).unwrap_or_default() }
    }

    fn decide(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        if request.is_resource {
            let status = request.subresource == "status";
            match (request.group.as_str(), request.resource.as_str()) {
                ("", "secrets") => return self.read_namespaced(node, Target::Secret, request),
                ("", "configmaps") => return self.read_namespaced(node, Target::ConfigMap, request),
                ("", "persistentvolumeclaims") if status => return self.update_status(node, Target::Claim, request),
                ("", "persistentvolumeclaims") => return self.get(node, Target::Claim, request),
                ("", "persistentvolumes") => return self.get(node, Target::Volume, request),
                ("resource.k8s.io", "resourceclaims") => return self.get(node, Target::ResourceClaim, request),
                ("storage.k8s.io", "volumeattachments") => return self.get(node, Target::Attachment, request),
                ("", "serviceaccounts") if request.verb == "get" && request.subresource.is_empty() => {
                    return self.get(node, Target::ServiceAccount, request);
                }
                ("", "serviceaccounts") => return self.create_token(node, request),
                ("coordination.k8s.io", "leases") => return lease(node, request),
                ("storage.k8s.io", "csinodes") => return csi_node(node, request),
                ("resource.k8s.io", "resourceslices") => return self.resource_slice(node, request),
                ("certificates.k8s.io", "podcertificaterequests") => {
                    return if Feature::PodCertificateRequest.enabled() {
                        self.pod_certificate_request(node, request)
                    } else {
                        refuse("")
                    };
                }
                ("", "nodes") => return own_node(node, request),
                ("", "pods") => return self.pod(node, request),
                _ => {}
            }
        }
        let combined = match request.subresource.as_str() {
            "" => request.resource.clone(),
            sub => format!("{}/{sub}", request.resource),
        };
        if self.rules.iter().any(|rule| rule.allows(request, &combined)) { Ok(()) } else { Err(String::new()) }
    }

    fn update_status(&self, node: &str, target: Target, request: &RequestInfo) -> Result<(), String> {
        if !matches!(request.verb.as_str(), "update" | "patch") {
            return refuse("can only get/update/patch this type");
        }
        self.related(node, target, request)
    }

    fn get(&self, node: &str, target: Target, request: &RequestInfo) -> Result<(), String> {
        if request.verb != "get" {
            return refuse("can only get individual resources of this type");
        }
        if !request.subresource.is_empty() {
            return refuse("cannot get subresource");
        }
        self.related(node, target, request)
    }

    fn read_namespaced(&self, node: &str, target: Target, request: &RequestInfo) -> Result<(), String> {
        if !matches!(request.verb.as_str(), "get" | "list" | "watch") {
            return refuse("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return refuse("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return refuse("can only read namespaced object of this type");
        }
        self.related(node, target, request)
    }

    fn create_token(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        if request.verb != "create" || request.name.is_empty() {
            return refuse("can only create tokens for individual service accounts");
        }
        if request.subresource != "token" {
            return refuse("can only create token subresource of serviceaccount");
        }
        self.related(node, Target::ServiceAccount, request)
    }

    fn resource_slice(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        if !request.subresource.is_empty() {
            return refuse("cannot authorize ResourceSlice subresources");
        }
        match request.verb.as_str() {
            // Whose slice it is, NodeRestriction sees.
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => self.related(node, Target::Slice, request),
            "watch" | "list" | "deletecollection" if selects(request, "spec.nodeName", node) => Ok(()),
            "watch" | "list" | "deletecollection" => {
                refuse("can only list/watch/deletecollection resourceslices with spec.nodeName field selector")
            }
            _ => refuse(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn pod_certificate_request(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        if !request.subresource.is_empty() {
            return refuse("nodes may not access the status subresource of PodCertificateRequests");
        }
        match request.verb.as_str() {
            // For which pods, NodeRestriction sees.
            "create" => Ok(()),
            "get" => self.related(node, Target::CertificateRequest, request),
            "list" | "watch" if selects(request, "spec.nodeName", node) => Ok(()),
            "list" | "watch" => refuse("can only list/watch podcertificaterequests with nodeName field selector"),
            verb => refuse(&format!("nodes may not {verb} podcertificaterequests")),
        }
    }

    fn pod(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        match (request.subresource.as_str(), request.verb.as_str()) {
            ("", "get") => self.get(node, Target::Pod, request),
            ("", "list" | "watch") => {
                if selects(request, "spec.nodeName", node) {
                    Ok(())
                } else if !request.name.is_empty() {
                    self.related(node, Target::Pod, request)
                } else {
                    refuse("can only list/watch pods with spec.nodeName field selector")
                }
            }
            // Mirror pods, and its own pods' status and eviction: NodeRestriction sees to the rest.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => refuse(""),
        }
    }

    fn related(&self, node: &str, target: Target, request: &RequestInfo) -> Result<(), String> {
        if request.name.is_empty() {
            return refuse("No Object name found");
        }
        if self.is_related(node, target, &request.namespace, &request.name) {
            return Ok(());
        }
        Err(format!("no relationship found between node '{node}' and this object"))
    }

    fn is_related(&self, node: &str, target: Target, namespace: &str, name: &str) -> bool {
        let get = |group: &str, resource: &str, namespace: &str| self.objects.get(group, resource, namespace, name);
        let on_node = |object: Option<Arc<Value>>| object.is_some_and(|o| o["spec"]["nodeName"] == node);
        let any_pod =
            |refers: fn(&Value, &str) -> bool| self.pods(node, Some(namespace)).iter().any(|p| refers(p, name));
        match target {
            Target::Pod => on_node(get("", "pods", namespace)),
            Target::CertificateRequest => on_node(get("certificates.k8s.io", "podcertificaterequests", namespace)),
            Target::Slice => on_node(get("resource.k8s.io", "resourceslices", "")),
            Target::Attachment => on_node(get("storage.k8s.io", "volumeattachments", "")),
            Target::ConfigMap => any_pod(|p, n| config_maps(p).any(|m| m == n)),
            Target::ServiceAccount => any_pod(|p, n| p["spec"]["serviceAccountName"] == n),
            Target::Claim => any_pod(|p, n| claims(p).any(|c| c == n)),
            Target::ResourceClaim => any_pod(|p, n| resource_claims(p).any(|c| c == n)),
            Target::Volume => get("", "persistentvolumes", "").is_some_and(|pv| self.mounts(node, &pv)),
            Target::Secret => any_pod(|p, n| secrets(p).any(|s| s == n)) || self.volume_secret(node, namespace, name),
        }
    }

    /// The pods bound to a node; mirror pods refer to nothing, because anybody on the node can make them.
    fn pods(&self, node: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let mut pods = self.objects.list_by_field("", "pods", namespace, "spec.nodeName", node);
        pods.retain(|p| p["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null());
        pods
    }

    /// Whether a pod of the node uses the claim that the volume is bound to.
    fn mounts(&self, node: &str, volume: &Value) -> bool {
        let claim = &volume["spec"]["claimRef"];
        match (claim["namespace"].as_str(), claim["name"].as_str()) {
            (Some(namespace), Some(name)) => self.is_related(node, Target::Claim, namespace, name),
            _ => false,
        }
    }

    /// Whether a volume that the node mounts needs this secret.
    fn volume_secret(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.pods(node, None).iter().any(|pod| {
            let pod_namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
            claims(pod).any(|claim| {
                let bound = self.objects.get("", "persistentvolumeclaims", pod_namespace, &claim);
                let volume = bound.as_ref().and_then(|c| c["spec"]["volumeName"].as_str().map(str::to_owned));
                let volume = volume.and_then(|v| self.objects.get("", "persistentvolumes", "", &v));
                volume.is_some_and(|pv| {
                    volume_secrets(&pv, pod_namespace).any(|s| s == (namespace.to_owned(), name.to_owned()))
                })
            })
        })
    }
}

#[async_trait]
impl Authorizer for NodeAuthorizer {
    async fn authorize(&self, user: &User, request: &RequestInfo) -> Decision {
        match node_of(user) {
            None => Decision::NoOpinion(String::new()),
            Some("") => Decision::NoOpinion(format!("unknown node for user {}", go_quote(&user.name))),
            Some(node) => match self.decide(node, request) {
                Ok(()) => Decision::Allow(String::new()),
                Err(why) => Decision::NoOpinion(why),
            },
        }
    }

    fn rules_for(&self, user: &User, _namespace: &str) -> Rules {
        let mut rules = Rules::default();
        if node_of(user).is_some() {
            rules.incomplete = true;
            rules.errors.push("node authorizer does not support user rule resolution".into());
        }
        rules
    }
}

fn refuse(why: &str) -> Result<(), String> {
    Err(why.to_owned())
}

fn lease(node: &str, request: &RequestInfo) -> Result<(), String> {
    if !matches!(request.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return refuse("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != "kube-node-lease" {
        return refuse("can only access leases in the \"kube-node-lease\" system namespace");
    }
    // The name of a new lease is not known here; NodeRestriction checks it.
    if request.verb != "create" && request.name != node {
        return refuse("can only access node lease with the same name as the requesting node");
    }
    Ok(())
}

fn csi_node(node: &str, request: &RequestInfo) -> Result<(), String> {
    if !matches!(request.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return refuse("can only get, create, update, patch, or delete a CSINode");
    }
    if !request.subresource.is_empty() {
        return refuse("cannot authorize CSINode subresources");
    }
    if request.verb != "create" && request.name != node {
        return refuse("can only access CSINode with the same name as the requesting node");
    }
    Ok(())
}

fn own_node(node: &str, request: &RequestInfo) -> Result<(), String> {
    match (request.subresource.as_str(), request.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if request.name == node => Ok(()),
        ("", "get" | "list" | "watch") if request.name.is_empty() => {
            Err(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => {
            Err(format!("node '{node}' cannot read '{}', only its own Node object", request.name))
        }
        _ => refuse(""),
    }
}

/// Whether the field selector of the request demands `field=value`.
fn selects(request: &RequestInfo, field: &str, value: &str) -> bool {
    let selector = request.field_selector.as_deref().unwrap_or_default();
    selector
        .split(',')
        .any(|term| term.split_once('=').is_some_and(|(f, v)| f == field && v.strip_prefix('=').unwrap_or(v) == value))
}

fn array<'a>(value: &'a Value) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.as_array().into_iter().flatten()
}

fn name_of(value: &Value, key: &str) -> Option<String> {
    value[key].as_str().filter(|s| !s.is_empty()).map(str::to_owned)
}

/// Containers of all three kinds.
pub(crate) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|kind| array(&pod["spec"][kind]))
}

/// The secrets that a pod names.
pub(crate) fn secrets(pod: &Value) -> impl Iterator<Item = String> {
    let pull = array(&pod["spec"]["imagePullSecrets"]).filter_map(|s| name_of(s, "name"));
    let env = containers(pod).flat_map(|c| {
        let single = array(&c["env"]).filter_map(|e| name_of(&e["valueFrom"]["secretKeyRef"], "name"));
        single.chain(array(&c["envFrom"]).filter_map(|e| name_of(&e["secretRef"], "name")))
    });
    let volumes = array(&pod["spec"]["volumes"]).flat_map(|v| {
        let mut names = Vec::new();
        names.extend(name_of(&v["secret"], "secretName"));
        names.extend(name_of(&v["azureFile"], "secretName"));
        for (source, key) in [
            ("cephfs", "secretRef"),
            ("cinder", "secretRef"),
            ("flexVolume", "secretRef"),
            ("rbd", "secretRef"),
            ("scaleIO", "secretRef"),
            ("iscsi", "secretRef"),
            ("storageos", "secretRef"),
            ("csi", "nodePublishSecretRef"),
        ] {
            names.extend(name_of(&v[source][key], "name"));
        }
        names.extend(array(&v["projected"]["sources"]).filter_map(|s| name_of(&s["secret"], "name")));
        names
    });
    pull.chain(env).chain(volumes)
}

/// The config maps that a pod names.
pub(crate) fn config_maps(pod: &Value) -> impl Iterator<Item = String> {
    let env = containers(pod).flat_map(|c| {
        let single = array(&c["env"]).filter_map(|e| name_of(&e["valueFrom"]["configMapKeyRef"], "name"));
        single.chain(array(&c["envFrom"]).filter_map(|e| name_of(&e["configMapRef"], "name")))
    });
    let volumes = array(&pod["spec"]["volumes"]).flat_map(|v| {
        let projected = array(&v["projected"]["sources"]).filter_map(|s| name_of(&s["configMap"], "name"));
        name_of(&v["configMap"], "name").into_iter().chain(projected)
    });
    env.chain(volumes)
}

/// The claims that a pod mounts, those made for its ephemeral volumes included.
pub(crate) fn claims(pod: &Value) -> impl Iterator<Item = String> {
    array(&pod["spec"]["volumes"]).filter_map(|v| {
        if v["ephemeral"].is_object() {
            return Some(format!("{}-{}", pod["metadata"]["name"].as_str()?, v["name"].as_str()?));
        }
        name_of(&v["persistentVolumeClaim"], "claimName")
    })
}

fn resource_claims(pod: &Value) -> impl Iterator<Item = String> {
    let named = array(&pod["spec"]["resourceClaims"]).filter_map(|c| name_of(c, "resourceClaimName"));
    let made = array(&pod["status"]["resourceClaimStatuses"]).filter_map(|c| name_of(c, "resourceClaimName"));
    named.chain(made).chain(name_of(&pod["status"]["extendedResourceClaimStatus"], "resourceClaimName"))
}

/// Namespace and name of the secrets that a volume needs; those without namespace are of the claim's.
fn volume_secrets(volume: &Value, claim_namespace: &str) -> impl Iterator<Item = (String, String)> {
    let spec = &volume["spec"];
    let reference = |r: &Value| {
        let namespace = name_of(r, "namespace").unwrap_or_else(|| claim_namespace.to_owned());
        name_of(r, "name").map(|name| (namespace, name))
    };
    let mut found = Vec::new();
    if let Some(name) = name_of(&spec["azureFile"], "secretName") {
        let namespace = name_of(&spec["azureFile"], "secretNamespace").unwrap_or_else(|| claim_namespace.to_owned());
        found.push((namespace, name));
    }
    for source in ["cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"] {
        found.extend(reference(&spec[source]["secretRef"]));
    }
    for key in [
        "controllerPublishSecretRef",
        "nodePublishSecretRef",
        "nodeStageSecretRef",
        "controllerExpandSecretRef",
        "nodeExpandSecretRef",
    ] {
        found.extend(reference(&spec["csi"][key]));
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::memory::Memory;
    use serde_json::json;

    fn ask(authorizer: &NodeAuthorizer, verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let request = RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..RequestInfo::default()
        };
        authorizer.decide("n1", &request).is_ok()
    }

    #[test]
    fn a_node_reads_only_what_its_pods_refer_to() {
        let objects = Memory::default();
        objects.put(
            "",
            "pods",
            json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"nodeName": "n1",
            "serviceAccountName": "sa",
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}]}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}),
        );
        objects.put(
            "",
            "pods",
            json!({"metadata": {"name": "q", "namespace": "a"}, "spec": {"nodeName": "n2",
            "imagePullSecrets": [{"name": "other"}]}}),
        );
        objects.put(
            "",
            "persistentvolumeclaims",
            json!({"metadata": {"name": "c", "namespace": "a"}, "spec": {"volumeName": "pv"}}),
        );
        objects.put("", "persistentvolumes", json!({"metadata": {"name": "pv"}, "spec": {
            "claimRef": {"namespace": "a", "name": "c"}, "csi": {"nodeStageSecretRef": {"namespace": "b", "name": "stage"}}}}));
        let authorizer = NodeAuthorizer::new(Arc::new(objects));
        assert!(ask(&authorizer, "get", "", "secrets", "a", "env"));
        assert!(ask(&authorizer, "watch", "", "secrets", "b", "stage"));
        assert!(!ask(&authorizer, "get", "", "secrets", "a", "other"));
        assert!(!ask(&authorizer, "list", "", "secrets", "a", ""));
        assert!(ask(&authorizer, "get", "", "persistentvolumes", "", "pv"));
        assert!(ask(&authorizer, "get", "", "pods", "a", "p"));
        assert!(!ask(&authorizer, "get", "", "pods", "a", "q"));
        assert!(!ask(&authorizer, "get", "", "nodes", "", "n2"));
        assert!(ask(&authorizer, "get", "", "services", "", ""));
    }
}
