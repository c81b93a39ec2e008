//! Calls webhooks: HTTPS with the authority of the webhook's configuration, to a service of the cluster or to an address.
//! Connections are kept for the next call.

use super::trust::Bundle;
use crate::objects::Objects;
use bytes::Bytes;
use coxswain_api::Value;
use coxswain_api::field::go_quote;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// Longer answers are refused.
const ANSWER_MAX: usize = 3 * 1024 * 1024;
/// So many idle connections are kept for each webhook; beyond it connections are closed after use.
const IDLE_MAX: usize = 8;
/// So many webhooks have idle connections; beyond it all are closed.
const TARGETS_MAX: usize = 64;
/// Where systems keep the authorities they trust, for webhooks that name none.
const SYSTEM_ROOTS: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

type Connection = SendRequest<Full<Bytes>>;

pub(super) struct Client {
    objects: Arc<dyn Objects>,
    idle: parking_lot::Mutex<HashMap<String, Vec<Connection>>>,
}

/// Where a webhook is.
struct Target {
    /// As errors show it.
    url: String,
    /// Whose certificate is expected.
    server_name: String,
    /// Where to connect to.
    address: String,
    /// Path and query.
    path: String,
}

impl Client {
    pub(super) fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects, idle: Default::default() }
    }

    /// Sends a review and returns the answer; the error is a sentence.
    pub(super) async fn post(&self, hook: &Value, review: &Value) -> Result<Value, String> {
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(10);
        let timeout = Duration::from_secs(seconds);
        let config = &hook["clientConfig"];
        let target = self.target(config, seconds)?;
        let failed = |why: String| format!("Post {}: {why}", go_quote(&target.url));
        let exchange = self.exchange(config, &target, review);
        match tokio::time::timeout(timeout, exchange).await {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(failed("context deadline exceeded".into())),
        }
    }

    fn target(&self, config: &Value, seconds: u64) -> Result<Target, String> {
        if let Some(url) = config["url"].as_str() {
            let parsed: http::Uri = url.parse().map_err(|e| format!("{e}"))?;
            let host = parsed.host().unwrap_or_default().to_owned();
            let port = parsed.port_u16().unwrap_or(443);
            let path = match parsed.query() {
                Some(query) => format!("{}?{query}&timeout={seconds}s", parsed.path()),
                None => format!("{}?timeout={seconds}s", parsed.path()),
            };
            let shown = format!("https://{}{path}", parsed.authority().map(|a| a.as_str()).unwrap_or_default());
            return Ok(Target { url: shown, address: format!("{host}:{port}"), server_name: host, path });
        }
        let service = &config["service"];
        let text = |key: &str| service[key].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let port = service["port"].as_u64().unwrap_or(443);
        let path = format!("/{}?timeout={seconds}s", text("path").trim_start_matches('/'));
        let server_name = format!("{name}.{namespace}.svc");
        let url = format!("https://{server_name}:{port}{path}");
        let address =
            self.service_address(namespace, name, port).map_err(|why| format!("Post {}: {why}", go_quote(&url)))?;
        Ok(Target { url, server_name, address, path })
    }

    /// The cluster IP of a service (upstream: `ClusterIPServiceResolver`).
    fn service_address(&self, namespace: &str, name: &str, port: u64) -> Result<String, String> {
        let service = self.objects.get("", "services", namespace, name);
        let service = service.ok_or_else(|| format!("service {} not found", go_quote(name)))?;
        let spec = &service["spec"];
        if spec["type"] == "ExternalName" {
            return Ok(format!("{}:{port}", spec["externalName"].as_str().unwrap_or_default()));
        }
        match spec["clusterIP"].as_str().filter(|ip| !ip.is_empty() && *ip != "None") {
            None => Err(format!("cannot route to service with ClusterIP {}", go_quote("None"))),
            Some(_) if !spec["ports"].as_array().is_some_and(|l| l.iter().any(|p| p["port"] == port)) => {
                Err(format!("no service port {port} found for service {}", go_quote(name)))
            }
            Some(ip) if ip.contains(':') => Ok(format!("[{ip}]:{port}")),
            Some(ip) => Ok(format!("{ip}:{port}")),
        }
    }

    async fn exchange(&self, config: &Value, target: &Target, review: &Value) -> Result<Value, String> {
        let bundle = config["caBundle"].as_str().unwrap_or_default();
        let key = format!("{} {} {bundle}", target.address, target.server_name);
        let body = Bytes::from(review.to_string());
        // A kept connection may have been closed by the other side meanwhile: then a new one is made.
        while let Some(connection) = self.idle(&key) {
            if let Ok(answer) = self.send(&key, connection, target, body.clone()).await {
                return answer;
            }
        }
        let connection = connect(bundle, target).await?;
        self.send(&key, connection, target, body).await.map_err(|e| e.to_string())?
    }

    fn idle(&self, key: &str) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let kept = idle.get_mut(key)?;
        std::iter::from_fn(|| kept.pop()).find(|c| !c.is_closed())
    }

    /// The outer error means that the connection did not carry the request.
    async fn send(
        &self,
        key: &str,
        mut connection: Connection,
        target: &Target,
        body: Bytes,
    ) -> Result<Result<Value, String>, hyper::Error> {
        connection.ready().await?;
        let request = http::Request::post(&target.path)
            .header("host", &target.server_name)
            .header("content-type", "application/json")
            .header("accept", "application/json, */*")
            .header("user-agent", "kube-apiserver-admission")
            .body(Full::new(body));
        let request = match request {
            Ok(request) => request,
            Err(e) => return Ok(Err(e.to_string())),
        };
        let response = connection.send_request(request).await?;
        let code = response.status();
        let bytes = match Limited::new(response.into_body(), ANSWER_MAX).collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(e) => return Ok(Err(e.to_string())),
        };
        let mut idle = self.idle.lock();
        if idle.len() >= TARGETS_MAX && !idle.contains_key(key) {
            idle.clear();
        }
        let kept = idle.entry(key.to_owned()).or_default();
        if kept.len() < IDLE_MAX {
            kept.push(connection);
        }
        if !code.is_success() {
            let text = String::from_utf8_lossy(&bytes);
            return Ok(Err(match text.trim() {
                "" => "the server could not find the requested resource".into(),
                text => {
                    format!("an error on the server ({}) has prevented the request from succeeding", go_quote(text))
                }
            }));
        }
        Ok(serde_json::from_slice(&bytes).map_err(|e| e.to_string()))
    }
}

async fn connect(bundle: &str, target: &Target) -> Result<Connection, String> {
    use base64::Engine;
    let pem = if bundle.is_empty() {
        SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default()
    } else {
        base64::engine::general_purpose::STANDARD.decode(bundle).map_err(|e| e.to_string())?
    };
    let bundle = Bundle::new(CertificateDer::pem_slice_iter(&pem).flatten().collect())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(bundle))
        .with_no_client_auth();
    let name = ServerName::try_from(target.server_name.clone()).map_err(|e| e.to_string())?;
    let stream =
        TcpStream::connect(&target.address).await.map_err(|e| format!("dial tcp {}: connect: {e}", target.address))?;
    let _ = stream.set_nodelay(true);
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = stream.map_err(|e| format!("tls: failed to verify certificate: {e}"))?;
    let (connection, driver) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        // An error here is seen by the request that waits, too.
        let _ = driver.await;
    });
    Ok(connection)
}
