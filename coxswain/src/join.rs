//! `coxswain join`: makes this machine a node of a running cluster (upstream: `kubeadm join`).
//!
//! The token says who may ask; the hash of the cluster's authority says whom to believe. The node asks for a certificate of
//! its own, and keeps key and certificate in its data directory for the next start.

use crate::pki::write_private;
use anyhow::{Context, Result, bail};
use base64::Engine;
use coxswain_client::connect::{self, Cluster, Identity, Target};
use coxswain_client::k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use coxswain_client::k8s_openapi::api::core::v1::ConfigMap;
use coxswain_client::kube::Api;
use coxswain_client::kube::api::PostParams;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const CERTIFICATE_SECONDS_MAX: u64 = 60;
const USER_AGENT: &str = "coxswain-join/v1.36.2";

/// Where the cluster is, and how both sides know each other.
pub struct Invitation<'a> {
    pub server: &'a str,
    pub token: &'a str,
    /// `sha256:…` over the authority's public key, as kubeadm prints it.
    pub authority_hash: &'a str,
}

/// The files that a joined node keeps.
pub struct Joined {
    pub kubeconfig: PathBuf,
    pub authority: PathBuf,
}

/// The hash that `--discovery-token-ca-cert-hash` takes.
pub fn authority_hash(authority_pem: &str) -> Result<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(authority_pem.as_bytes()).context("reading the authority")?;
    let certificate = pem.parse_x509().context("reading the authority")?;
    let hash = digest(&SHA256, certificate.public_key().raw);
    Ok(format!("sha256:{}", hash.as_ref().iter().map(|b| format!("{b:02x}")).collect::<String>()))
}

/// Gets the node its identity, unless it has one from an earlier time.
pub async fn identity(dir: &Path, node_name: &str, invitation: &Invitation<'_>) -> Result<Joined> {
    let joined = Joined { kubeconfig: dir.join("kubelet.kubeconfig"), authority: dir.join("pki/ca.crt") };
    if joined.kubeconfig.exists() && joined.authority.exists() {
        return Ok(joined);
    }
    let authority_pem = discover(invitation).await?;
    let target = |identity: Identity| Target {
        cluster: Cluster {
            server: invitation.server.to_owned(),
            certificate_authority: Some(authority_pem.clone().into_bytes()),
            ..Cluster::default()
        },
        identity,
        namespace: None,
    };
    let bearer = Identity { token: Some(invitation.token.to_owned()), ..Identity::default() };
    let client = connect::from_target(target(bearer), USER_AGENT.into())?;

    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node_name}"));
    let request = params.serialize_request(&key)?.pem()?;
    let requests: Api<CertificateSigningRequest> = Api::all(client);
    let object: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": {"generateName": "node-csr-"},
        "spec": {"request": base64::engine::general_purpose::STANDARD.encode(request), "signerName": SIGNER,
                 "usages": ["digital signature", "client auth"]},
    }))?;
    let made = requests.create(&PostParams::default(), &object).await.context("asking for the node's certificate")?;
    let name = made.metadata.name.unwrap_or_default();
    let end = Instant::now() + Duration::from_secs(CERTIFICATE_SECONDS_MAX);
    let certificate = loop {
        let status =
            requests.get(&name).await.context("waiting for the node's certificate")?.status.unwrap_or_default();
        if let Some(certificate) = status.certificate {
            break String::from_utf8(certificate.0).context("reading the node's certificate")?;
        }
        let refused = status.conditions.into_iter().flatten().find(|c| c.type_ == "Denied" || c.type_ == "Failed");
        if let Some(condition) = refused {
            bail!("the cluster refused the node's certificate: {}", condition.message.unwrap_or(condition.type_));
        }
        if Instant::now() > end {
            bail!(
                "certificate request {name} was not signed within {CERTIFICATE_SECONDS_MAX} s; \
                 see: kubectl describe certificatesigningrequest {name}"
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let document = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "coxswain",
        "clusters": [{"name": "coxswain", "cluster": {
            "server": invitation.server, "certificate-authority-data": base64(&authority_pem)}}],
        "users": [{"name": "node", "user": {
            "client-certificate-data": base64(&certificate), "client-key-data": base64(&key.serialize_pem())}}],
        "contexts": [{"name": "coxswain", "context": {"cluster": "coxswain", "user": "node"}}],
    });
    crate::pki::write_atomic(&joined.authority, authority_pem.as_bytes(), 0o644)?;
    write_private(&joined.kubeconfig, serde_yaml_ng::to_string(&document)?.as_bytes())?;
    Ok(joined)
}

/// The cluster's authority, believed only if its hash is the one that the operator brought along.
async fn discover(invitation: &Invitation<'_>) -> Result<String> {
    let cluster =
        Cluster { server: invitation.server.to_owned(), insecure_skip_tls_verify: true, ..Cluster::default() };
    let target = Target { cluster, identity: Identity::default(), namespace: None };
    let client = connect::from_target(target, USER_AGENT.into())?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "kube-public");
    let info =
        maps.get("cluster-info").await.with_context(|| format!("asking {} for its authority", invitation.server))?;
    let text = info.data.and_then(|mut d| d.remove("kubeconfig")).context("cluster-info names no authority")?;
    let config: Value = serde_yaml_ng::from_str(&text).context("reading cluster-info")?;
    let data = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap_or_default();
    let pem = base64::engine::general_purpose::STANDARD.decode(data).context("reading cluster-info")?;
    let pem = String::from_utf8(pem).context("reading cluster-info")?;
    let found = authority_hash(&pem)?;
    if found != invitation.authority_hash {
        bail!(
            "{} is vouched for by {found}, not by {}: this may be another cluster, or somebody between you and it",
            invitation.server,
            invitation.authority_hash
        );
    }
    Ok(pem)
}
