//! The objects that a new cluster has beyond those that the API server itself makes: its DNS Service, and what nodes need to
//! join (upstream: kubeadm's `bootstrap-token`, `upload-config` and `addon` phases).
//!
//! They are applied at every start under a field manager of their own, so that what an operator changed elsewhere stays.

use anyhow::{Context, Result};
use coxswain_client::Client;
use coxswain_client::kube::Api;
use coxswain_client::kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use rand::Rng;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::Path;

const FIELD_MANAGER: &str = "coxswain";
/// Where the cluster's DNS listens on its node; the Service brings it to port 53.
pub const DNS_PORT: u16 = 10053;

pub struct Setup<'a> {
    pub server: &'a str,
    pub authority_pem: &'a str,
    pub dns_service_ip: IpAddr,
    /// The node whose DNS answers; none without a real node.
    pub dns_node_ip: Option<IpAddr>,
    /// `id.secret` of the token that nodes join with.
    pub bootstrap_token: &'a str,
}

/// Applies everything; what is already so costs a request each and no write.
pub async fn apply(client: &Client, setup: &Setup<'_>) -> Result<()> {
    for object in objects(setup) {
        let what =
            format!("{} {}", object["kind"].as_str().unwrap_or(""), object["metadata"]["name"].as_str().unwrap_or(""));
        apply_one(client, object).await.with_context(|| format!("applying {what}"))?;
    }
    Ok(())
}

async fn apply_one(client: &Client, object: Value) -> Result<()> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let namespace = object["metadata"]["namespace"].as_str();
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&text(&object["metadata"]["name"]), &params, &Patch::Apply(&object)).await?;
    Ok(())
}

fn objects(setup: &Setup<'_>) -> Vec<Value> {
    let rbac = "rbac.authorization.k8s.io";
    let group = |name: &str| json!([{"apiGroup": rbac, "kind": "Group", "name": name}]);
    let cluster_binding = |name: &str, role: &str, who: &str| {
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
               "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role}, "subjects": group(who)})
    };
    let (id, secret) = setup.bootstrap_token.split_once('.').unwrap_or((setup.bootstrap_token, ""));
    let mut list = vec![
        // Nodes that join: they ask for a certificate, which is approved and renewed without a person.
        cluster_binding(
            "coxswain:node-bootstrapper",
            "system:node-bootstrapper",
            "system:bootstrappers:coxswain:nodes",
        ),
        cluster_binding(
            "coxswain:node-autoapprove",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            "system:bootstrappers:coxswain:nodes",
        ),
        cluster_binding(
            "coxswain:node-autorenew",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            "system:nodes",
        ),
        // A joined node's proxy works under the node's own identity.
        cluster_binding("coxswain:node-proxier", "system:node-proxier", "system:nodes"),
        json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
               "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
               "stringData": {"token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true",
                              "usage-bootstrap-signing": "true",
                              "auth-extra-groups": "system:bootstrappers:coxswain:nodes"}}),
        // What a node may know before it is trusted: where the cluster is and who vouches for it.
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-info", "namespace": "kube-public"},
               "data": {"kubeconfig": cluster_info(setup)}}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "Role",
               "metadata": {"name": "coxswain:cluster-info", "namespace": "kube-public"},
               "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["cluster-info"], "verbs": ["get"]}]}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding",
               "metadata": {"name": "coxswain:cluster-info", "namespace": "kube-public"},
               "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "coxswain:cluster-info"},
               "subjects": [{"apiGroup": rbac, "kind": "User", "name": "system:anonymous"}]}),
    ];
    if let Some(node_ip) = setup.dns_node_ip {
        let watched = json!([
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces", "endpoints"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
        ]);
        list.push(json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole",
            "metadata": {"name": "coxswain:dns"}, "rules": watched}));
        list.push(json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding",
            "metadata": {"name": "coxswain:dns"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "coxswain:dns"},
            "subjects": [{"kind": "ServiceAccount", "namespace": "kube-system", "name": "kube-dns"}]}));
        let ports = json!([
            {"name": "dns", "port": DNS_PORT, "protocol": "UDP"}, {"name": "dns-tcp", "port": DNS_PORT, "protocol": "TCP"}
        ]);
        list.push(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system",
                         "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"}},
            "spec": {"clusterIP": setup.dns_service_ip, "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": DNS_PORT},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": DNS_PORT}]}}));
        list.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "kube-dns-coxswain", "namespace": "kube-system",
                         "labels": {"kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": "coxswain"}},
            "endpoints": [{"addresses": [node_ip], "conditions": {"ready": true}}], "ports": ports}));
    }
    list
}

fn cluster_info(setup: &Setup<'_>) -> String {
    use base64::Engine;
    let authority = base64::engine::general_purpose::STANDARD.encode(setup.authority_pem);
    let config = json!({"apiVersion": "v1", "kind": "Config", "clusters": [
        {"name": "", "cluster": {"server": setup.server, "certificate-authority-data": authority}}]});
    serde_yaml_ng::to_string(&config).unwrap_or_default()
}

/// The token that nodes join this cluster with, `id.secret` as upstream shapes it; made once and kept.
pub fn bootstrap_token(data_dir: &Path) -> Result<String> {
    let path = data_dir.join("pki/bootstrap-token");
    if let Ok(token) = std::fs::read_to_string(&path) {
        return Ok(token.trim().to_owned());
    }
    let mut rng = rand::rng();
    let mut letters = |count: usize| -> String {
        (0..count).map(|_| char::from(b"abcdefghijklmnopqrstuvwxyz0123456789"[rng.random_range(0..36)])).collect()
    };
    let token = format!("{}.{}", letters(6), letters(16));
    crate::pki::write_private(&path, token.as_bytes())?;
    Ok(token)
}
