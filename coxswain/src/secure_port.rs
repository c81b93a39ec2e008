//! The HTTPS port of a component that runs alone: health, metrics, configuration and profiles, for whoever the API server allows (upstream:
//! the `SecureServing`, `Authentication` and `Authorization` options of `apiserver/pkg/server/options`).
//!
//! Paths of `--authorization-always-allow-paths` are open to everybody, so that probes need no credential.

use crate::flags::Flags;
use anyhow::{Context, Result};
use bytes::Bytes;
use coxswain_client::Client;
use coxswain_client::delegated::{Attributes, Delegated, Peer};
use coxswain_client::k8s_openapi::api::core::v1::ConfigMap;
use coxswain_client::kube::Api;
use coxswain_profiling::routes::{self, Asked};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
const HANDSHAKE_SECONDS_MAX: u64 = 10;
const BODY_BYTES_MAX: usize = 1 << 20;
const NO_SNIFF: header::HeaderValue = header::HeaderValue::from_static("nosniff");

/// What a component shows of itself.
pub struct Served {
    /// The name of its configuration in `/configz`, and the configuration.
    pub configz: (&'static str, Value),
    /// Whether profiles of this process are served, and the level of its log.
    pub profiling: bool,
}

struct Port {
    served: Served,
    delegated: Option<Delegated>,
    open_paths: Vec<String>,
    started: SystemTime,
}

/// Listens where the flags say and serves until the shutdown. Nothing is served with `--secure-port=0`.
pub async fn start(flags: &Flags, client: &Client, served: Served, shutdown: CancellationToken) -> Result<()> {
    let port: u16 = flags.parsed("secure-port")?.unwrap_or(0);
    let bind = flags.ip("bind-address")?.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let reviewer = |flag: &str| -> Result<Client> {
        match flags.path(flag) {
            Some(path) => Ok(coxswain_client::connect::from_kubeconfig(&path)?),
            None => Ok(client.clone()),
        }
    };
    let delegated = {
        // One identity asks both questions, unless two are named; then the one for authorization does.
        let authentication = reviewer("authentication-kubeconfig")?;
        let client = if flags.is_set("authorization-kubeconfig") {
            reviewer("authorization-kubeconfig")?
        } else {
            authentication
        };
        let seconds = |flag: &str| flags.duration(flag).map(|d| d.unwrap_or(Duration::from_secs(10)));
        let allowed = seconds("authorization-webhook-cache-authorized-ttl")?;
        let denied = seconds("authorization-webhook-cache-unauthorized-ttl")?;
        let token = seconds("authentication-token-webhook-cache-ttl")?;
        Delegated::new(client, token, allowed, denied)
    };
    let open_paths = flags.list("authorization-always-allow-paths");
    let skip_lookup = flags.bool("authentication-skip-lookup")?;
    if port == 0 {
        return Ok(());
    }
    let mut client_ca = match flags.path("client-ca-file") {
        Some(path) => std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?,
        None => Vec::new(),
    };
    if client_ca.is_empty() && !skip_lookup {
        client_ca = client_authority(client).await.unwrap_or_default();
    }
    let tls = acceptor(flags, &client_ca)?;
    let address = SocketAddr::new(bind, port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("failed to create listener: {address}"))?;
    let port = Arc::new(Port { served, delegated: Some(delegated), open_paths, started: SystemTime::now() });
    tracing::info!(%address, "serving health, metrics, configuration and profiles");
    tokio::spawn(accept(listener, tls, port, shutdown));
    Ok(())
}

/// Whose client certificates the API server believes, which it tells in `kube-system`.
async fn client_authority(client: &Client) -> Option<Vec<u8>> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    match maps.get("extension-apiserver-authentication").await {
        Ok(map) => map.data?.remove("client-ca-file").map(String::into_bytes),
        Err(error) => {
            tracing::warn!(%error, "client certificates count for nothing here: kube-system/extension-apiserver-authentication cannot be read");
            None
        }
    }
}

fn acceptor(flags: &Flags, client_ca: &[u8]) -> Result<TlsAcceptor> {
    let (certificate, key) = match (flags.path("tls-cert-file"), flags.path("tls-private-key-file")) {
        (Some(certificate), Some(key)) => (read(&certificate)?, read(&key)?),
        _ => self_signed(flags)?,
    };
    let chain = CertificateDer::pem_slice_iter(&certificate)
        .collect::<Result<Vec<_>, _>>()
        .context("reading the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(&key).context("reading the key")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(client_ca) {
        roots.add(authority.context("reading the clients' authority")?)?;
    }
    let builder = if roots.is_empty() {
        builder.with_no_client_auth()
    } else {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated();
        builder.with_client_cert_verifier(verifier.build()?)
    };
    let mut tls = builder.with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// A certificate of our own making, kept for the next start if `--cert-dir` says where.
fn self_signed(flags: &Flags) -> Result<(Vec<u8>, Vec<u8>)> {
    let kept = flags.path("cert-dir").map(|dir| {
        let file = |end: &str| -> PathBuf { dir.join(format!("{}.{end}", flags.component().name())) };
        (file("crt"), file("key"))
    });
    if let Some((certificate, key)) = kept.as_ref().filter(|(certificate, key)| certificate.exists() && key.exists()) {
        return Ok((read(certificate)?, read(key)?));
    }
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).context("making a certificate")?;
    let (certificate, key) = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
    if let Some((certificate_path, key_path)) = kept {
        crate::pki::write_private(&key_path, &key)?;
        crate::pki::write_atomic(&certificate_path, &certificate, 0o644)?;
    }
    Ok((certificate, key))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, port: Arc<Port>, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => return,
        };
        let (tls, port, shutdown) = (tls.clone(), port.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let handshake = tokio::time::timeout(Duration::from_secs(HANDSHAKE_SECONDS_MAX), tls.accept(stream));
            let Ok(Ok(stream)) = handshake.await else { return };
            let certificates = stream.get_ref().1.peer_certificates();
            let peer = certificates.and_then(|chain| Peer::of_certificate(chain.first()?));
            let service = service_fn(move |request| {
                let (port, peer) = (port.clone(), peer.clone());
                async move { Ok::<_, Infallible>(port.serve(request, peer).await) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            tokio::select! {
                _ = builder.serve_connection(TokioIo::new(stream), service) => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.into())));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn not_found() -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::NOT_FOUND, "404 page not found\n");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    response
}

/// Profiles of this process and the level of its log.
pub async fn debug(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body.map(|body| body.to_bytes()).map_err(|error| error.to_string());
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    match routes::answer(Asked { method: &parts.method, path, query, body }).await {
        Some(answer) => answer.map(Full::new),
        None => not_found(),
    }
}

impl Port {
    async fn serve(&self, request: Request<Incoming>, peer: Option<Peer>) -> Response<Full<Bytes>> {
        let of_headers = request.method() == Method::HEAD;
        let mut response = self.answer(request, peer).await;
        let kept = header::HeaderValue::from_static("no-cache, private");
        response.headers_mut().insert(header::CACHE_CONTROL, kept);
        if of_headers {
            let length = response.body().size_hint().lower();
            response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            *response.body_mut() = Full::default();
        }
        response
    }

    async fn answer(&self, request: Request<Incoming>, peer: Option<Peer>) -> Response<Full<Bytes>> {
        if let Err(refusal) = self.admit(&request, peer).await {
            return refusal;
        }
        match request.uri().path().trim_end_matches('/') {
            "/healthz" | "/livez" | "/readyz" => health(request.uri()),
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.metrics());
                let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            "/configz" => {
                let (name, config) = &self.served.configz;
                let mut response = text(StatusCode::OK, json!({*name: config}).to_string());
                let kind = header::HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            path if self.served.profiling && path.starts_with("/debug") => debug(request).await,
            _ => not_found(),
        }
    }

    async fn admit<B>(&self, request: &Request<B>, peer: Option<Peer>) -> Result<(), Response<Full<Bytes>>> {
        let path = request.uri().path();
        let open = self.open_paths.iter().any(|open| match open.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => path.trim_end_matches('/') == open.trim_end_matches('/'),
        });
        let Some(delegated) = self.delegated.as_ref().filter(|_| !open) else { return Ok(()) };
        let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
        let peer = match (peer, bearer) {
            (Some(peer), _) => peer,
            (None, Some(token)) => match delegated.peer_of_token(token).await {
                Some(peer) => peer,
                None => return Err(text(StatusCode::UNAUTHORIZED, "Unauthorized")),
            },
            (None, None) => Peer::anonymous(),
        };
        let verb = request.method().as_str().to_ascii_lowercase();
        let wanted = Attributes::Path { verb: verb.clone(), path: path.to_owned() };
        match delegated.allows(&peer, wanted).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let message = format!("forbidden: User {:?} cannot {verb} path {path:?}", peer.name);
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": message, "reason": "Forbidden", "details": {}, "code": 403});
                let mut response = text(StatusCode::FORBIDDEN, status.to_string());
                let kind = header::HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
                Err(response)
            }
            Err(error) => {
                tracing::warn!(%error, "the API server cannot be asked whether a request is allowed");
                Err(text(StatusCode::INTERNAL_SERVER_ERROR, format!("Internal Server Error: {path:?}: {error}\n")))
            }
        }
    }

    fn metrics(&self) -> String {
        let mut out = String::new();
        let mut gauge = |name: &str, help: &str, kind: &str, labels: &str, value: f64| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}");
        };
        let build = format!("{{git_version={:?},major=\"1\",minor=\"36\"}}", coxswain_apiserver::version::GIT_VERSION);
        gauge(
            "kubernetes_build_info",
            "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
            "gauge",
            &build,
            1.0,
        );
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        gauge(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            "gauge",
            "",
            started,
        );
        let (cpu, memory) = usage().unwrap_or_default();
        gauge("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", "counter", "", cpu);
        gauge("process_resident_memory_bytes", "Resident memory size in bytes.", "gauge", "", memory);
        out.push_str(&coxswain_api::features::metrics_text());
        out.push_str(&coxswain_client::metrics::text());
        out
    }
}

/// CPU seconds and resident bytes of this process.
fn usage() -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything; the numbers follow the last one.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as f64;
    Some(((number(11)? + number(12)?) / ticks, number(21)? * page))
}

/// `ok`, or with `?verbose` the checks one by one.
fn health(uri: &http::Uri) -> Response<Full<Bytes>> {
    let verbose =
        uri.query().is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("verbose")));
    let name = uri.path().trim_matches('/');
    if verbose {
        text(StatusCode::OK, format!("[+]ping ok\n{name} check passed\n"))
    } else {
        text(StatusCode::OK, "ok")
    }
}
