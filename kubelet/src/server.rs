//! The kubelet's HTTPS server (upstream: `kubelet/server/server.go`): logs, exec, attach and port-forward for the API server's proxies,
//! statistics and metrics for monitors.

mod auth;
mod channels;
mod container_logs;
mod debug;
#[doc(hidden)]
pub mod fuzzing;
mod metrics;
mod port_forward;
mod spdy;
pub mod stats;
mod streaming;
mod tls;
mod websocket;

use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use auth::{Auth, Peer};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>;

/// Listens on the configured port, and on the one for health checks. Returns the port, which the node reports.
pub async fn start(kubelet: Arc<Kubelet>) -> Result<u16, String> {
    let settings = &kubelet.config.settings;
    let address = SocketAddr::new(
        settings.address.parse().map_err(|e| format!("address {:?}: {e}", settings.address))?,
        settings.port,
    );
    let listener = TcpListener::bind(address).await.map_err(|e| format!("listening on {address}: {e}"))?;
    let port = listener.local_addr().map_err(|e| e.to_string())?.port();
    let tls = tls::acceptor(&kubelet.config)?;
    let auth = Arc::new(Auth::new(&kubelet));
    tokio::spawn(serve(kubelet.clone(), listener, Some(tls), Some(auth)));
    if settings.healthz_port > 0 {
        let address = format!("{}:{}", settings.healthz_bind_address, settings.healthz_port);
        match TcpListener::bind(&address).await {
            Ok(listener) => {
                tokio::spawn(serve(kubelet.clone(), listener, None, None));
            }
            // Upstream goes on without it too.
            Err(error) => tracing::warn!(address, %error, "health checks are not served"),
        }
    }
    Ok(port)
}

/// Without authentication only health checks are answered.
async fn serve(kubelet: Arc<Kubelet>, listener: TcpListener, tls: Option<TlsAcceptor>, auth: Option<Arc<Auth>>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = kubelet.shutdown.cancelled() => return,
        };
        let (kubelet, tls, auth) = (kubelet.clone(), tls.clone(), auth.clone());
        tokio::spawn(async move {
            let _permit = permit;
            connection(kubelet, stream, tls, auth).await;
        });
    }
}

async fn connection(kubelet: Arc<Kubelet>, stream: TcpStream, tls: Option<TlsAcceptor>, auth: Option<Arc<Auth>>) {
    let _ = stream.set_nodelay(true);
    match tls {
        Some(tls) => {
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await else { return };
            let certificate =
                stream.get_ref().1.peer_certificates().and_then(|c| c.first()).map(|c| c.as_ref().to_vec());
            let peer = certificate.as_deref().and_then(Peer::of_certificate);
            http(kubelet, TokioIo::new(stream), auth, peer).await;
        }
        None => http(kubelet, TokioIo::new(stream), auth, None).await,
    }
}

async fn http<S>(kubelet: Arc<Kubelet>, io: S, auth: Option<Arc<Auth>>, peer: Option<Peer>)
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (kubelet, auth, peer) = (kubelet.clone(), auth.clone(), peer.clone());
        async move {
            let of_headers = request.method() == Method::HEAD;
            let response = answer(kubelet, request, auth, peer).await;
            Ok::<_, std::convert::Infallible>(if of_headers { headers_alone(response) } else { response })
        }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection_with_upgrades(io, service).await;
}

/// What HEAD is answered with: a body would break the connection.
fn headers_alone(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert("content-length", length.into());
    }
    *response.body_mut() = body(Bytes::new());
    response
}

pub(crate) fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(body(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An error as Go's `http.Error` writes it, with a newline.
pub(crate) fn error(status: StatusCode, message: impl std::fmt::Display) -> Response<Body> {
    let mut response = text(status, format!("{message}\n"));
    response.headers_mut().insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    response
}

fn not_found() -> Response<Body> {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    let mut response = Response::new(body(serde_json::to_vec(value).unwrap_or_default()));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

/// A body that is written while it is sent.
pub(crate) fn stream_body(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    use futures::StreamExt;
    let frames = tokio_stream::wrappers::ReceiverStream::new(pieces).map(|piece| piece.map(Frame::data));
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

/// The parameters of a query, repeated ones in order.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let decode = |s: &str| percent_decode(&s.replace('+', " "));
        let pairs = text.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(k), decode(v))
        });
        Query(pairs.collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == name).map(|(_, v)| v.clone()).collect()
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true" | "t" | "T" | "True" | "TRUE"))
    }
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex =
            (bytes[i] == b'%').then(|| text.get(i + 1..i + 3)).flatten().and_then(|h| u8::from_str_radix(h, 16).ok());
        match hex {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

async fn answer(
    kubelet: Arc<Kubelet>,
    request: Request<Incoming>,
    auth: Option<Arc<Auth>>,
    peer: Option<Peer>,
) -> Response<Body> {
    let path = request.uri().path().to_string();
    let Some(auth) = auth else {
        return match path.as_str() {
            "/healthz" | "/healthz/ping" | "/healthz/syncloop" => text(StatusCode::OK, "ok"),
            _ => error(StatusCode::NOT_FOUND, "404 page not found"),
        };
    };
    if let Err(refusal) = auth.check(&kubelet, &request, peer).await {
        return refusal;
    }
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let parts: Vec<String> = path.trim_matches('/').split('/').map(percent_decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let get = request.method() == Method::GET;
    let settings = &kubelet.config.settings;
    let debugging = settings.enable_debugging_handlers;
    if let Some(refusal) = debug::disabled(settings, &path) {
        return refusal;
    }
    match parts.as_slice() {
        ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => text(StatusCode::OK, "ok"),
        ["pods"] if get => pods(&kubelet),
        ["runningpods"] if get && debugging => running_pods(&kubelet),
        ["configz"] if get => json(&HashMap::from([("kubeletconfig", settings)])),
        ["stats", "summary"] => json(&stats::summary(&kubelet, query.flag("only_cpu_and_memory")).await),
        ["metrics"] if get => metrics::own(&kubelet),
        ["metrics", "resource"] if get => metrics::resource(&kubelet).await,
        ["metrics", "cadvisor"] if get => metrics::cadvisor(&kubelet).await,
        ["metrics", "probes"] if get => metrics::probes(&kubelet),
        ["containerLogs", namespace, pod, container] if get && debugging => {
            container_logs::answer(&kubelet, namespace, pod, container, &query).await
        }
        ["run", namespace, pod, container] | ["run", namespace, pod, _, container] if debugging => {
            streaming::run(&kubelet, namespace, pod, container, &query).await
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] if debugging => {
            streaming::exec(&kubelet, namespace, pod, container, &query, request).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] if debugging => {
            streaming::attach(&kubelet, namespace, pod, container, &query, request).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] if debugging => {
            port_forward::answer(&kubelet, namespace, pod, &query, request).await
        }
        ["debug", ..] if debugging => match debug::answer(settings, request).await {
            Some(answer) => answer,
            None => not_found(),
        },
        _ => not_found(),
    }
}

fn pods(kubelet: &Kubelet) -> Response<Body> {
    let items: Vec<_> = kubelet
        .handles()
        .into_iter()
        .map(|handle| {
            let mut pod = (*handle.pod()).clone();
            pod.status = Some((*handle.status()).clone());
            pod.metadata.managed_fields = None;
            serde_json::to_value(pod).unwrap_or_default()
        })
        .map(|mut pod| {
            if let Some(map) = pod.as_object_mut() {
                map.remove("apiVersion");
                map.remove("kind");
            }
            pod
        })
        .collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

fn running_pods(kubelet: &Kubelet) -> Response<Body> {
    let items: Vec<_> = kubelet
        .handles()
        .into_iter()
        .filter(|h| h.runtime().containers.iter().any(|c| c.is_running()))
        .map(|handle| {
            let pod = handle.pod();
            let runtime = handle.runtime();
            let containers: Vec<_> = runtime
                .containers
                .iter()
                .filter(|c| c.is_running())
                .map(|c| serde_json::json!({"name": c.name, "image": c.image_ref, "resources": {}}))
                .collect();
            serde_json::json!({"metadata": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
                "spec": {"containers": containers}, "status": {}})
        })
        .collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("command=sh&command=-c&command=echo%20a+b&input=1&tty=false");
        assert_eq!(query.all("command"), ["sh", "-c", "echo a b"]);
        assert!(query.flag("input") && !query.flag("tty") && !query.flag("output"));
    }
}
