//! Ways to reach an API server: a kubeconfig, a pod's service account, or a service in this process.
//!
//! The transport is our own, because kube's speaks HTTP/1.1 only and so needs a connection for each watch. Requests are
//! multiplexed over one HTTP/2 connection and watches over another, so that a full window of watch data never delays a
//! request; a server without HTTP/2 is spoken to in HTTP/1.1. Upgrades (exec, attach, port-forward) always take HTTP/1.1.

use std::path::{Path, PathBuf};

use kube::Client;

mod kubeconfig;
mod service_account;
mod tls;
mod transport;

pub use kubeconfig::{Cluster, Identity, Target};
pub use service_account::as_service_account;
pub use tls::AnyServer;

/// Why no connection could be configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("invalid kubeconfig: {0}")]
    Invalid(String),
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    #[error("not in a cluster: {0}")]
    NotInCluster(&'static str),
}

/// Connects as the kubeconfig's current context says.
pub fn from_kubeconfig(path: &Path) -> Result<Client, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let value = serde_yaml_ng::from_str(&text).map_err(|error| Error::Invalid(error.to_string()))?;
    from_target(kubeconfig::resolve(value, path.parent())?, default_user_agent())
}

/// Connects as a kubeconfig that is already parsed says; paths in it are relative to the working directory.
pub fn from_kubeconfig_value(value: serde_json::Value) -> Result<Client, Error> {
    from_target(target_of_value(value)?, default_user_agent())
}

/// What the current context of a parsed kubeconfig points at.
pub fn target_of_value(value: serde_json::Value) -> Result<Target, Error> {
    kubeconfig::resolve(serde_json::from_value(value).map_err(|error| Error::Invalid(error.to_string()))?, None)
}

/// What the current context of a kubeconfig file points at.
pub fn target_of_file(path: &Path) -> Result<Target, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let value = serde_yaml_ng::from_str(&text).map_err(|error| Error::Invalid(error.to_string()))?;
    kubeconfig::resolve(value, path.parent())
}

/// Connects with the service account that the kubelet mounted into this pod.
pub fn in_cluster() -> Result<Client, Error> {
    from_target(target_in_cluster()?, default_user_agent())
}

/// The API server and the service account that the kubelet told this pod of.
pub fn target_in_cluster() -> Result<Target, Error> {
    const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    let host = std::env::var("KUBERNETES_SERVICE_HOST")
        .map_err(|_| Error::NotInCluster("KUBERNETES_SERVICE_HOST is not set"))?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT")
        .map_err(|_| Error::NotInCluster("KUBERNETES_SERVICE_PORT is not set"))?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let ca_path = Path::new(MOUNT).join("ca.crt");
    let ca = std::fs::read(&ca_path).map_err(|source| Error::Read { path: ca_path, source })?;
    Ok(Target {
        cluster: Cluster {
            server: format!("https://{host}:{port}"),
            certificate_authority: Some(ca),
            ..Cluster::default()
        },
        identity: Identity { token_file: Some(Path::new(MOUNT).join("token")), ..Identity::default() },
        namespace: std::fs::read_to_string(Path::new(MOUNT).join("namespace")).ok().map(|text| text.trim().to_owned()),
    })
}

/// Connects to a server under an identity; the user agent becomes the manager's name in `metadata.managedFields`.
pub fn from_target(target: Target, user_agent: String) -> Result<Client, Error> {
    let namespace = target.namespace.clone().unwrap_or_else(|| "default".to_owned());
    Ok(Client::new(transport::Remote::new(target, user_agent)?, namespace))
}

/// TLS towards a server under an identity, for those who speak HTTP themselves.
pub fn tls_config(target: &Target, protocols: &[&[u8]]) -> Result<rustls::ClientConfig, Error> {
    tls::config(&target.cluster, &target.identity, protocols)
}

/// The headers that say who asks, where it is not the certificate that does.
pub fn identity_headers(target: &Target) -> Result<http::HeaderMap, Error> {
    let mut headers = http::HeaderMap::new();
    transport::Credentials::new(target.identity.clone())?.apply(&mut headers);
    Ok(headers)
}

/// The same client under another user agent, up to whose first `/` a server names the manager of the fields it writes.
pub fn with_user_agent(client: Client, user_agent: &str) -> Client {
    let value = http::HeaderValue::from_str(user_agent).unwrap_or(http::HeaderValue::from_static("coxswain"));
    let service = tower::service_fn(move |mut request: http::Request<kube::client::Body>| {
        let client = client.clone();
        request.headers_mut().insert(http::header::USER_AGENT, value.clone());
        async move { client.send(request).await }
    });
    Client::new(service, "default")
}

/// `NAME/VERSION`, the name being that of the program.
pub fn default_user_agent() -> String {
    let name = std::env::args().next().unwrap_or_default();
    let name = Path::new(&name).file_name().and_then(|name| name.to_str()).unwrap_or("coxswain");
    format!("{name}/v1.36.2 ({}/{}) coxswain", std::env::consts::OS, std::env::consts::ARCH)
}
