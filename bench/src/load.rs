//! Closed-loop load: a fixed number of requests in flight over a fixed number of connections.
//!
//! Requests go out over HTTP/2 connections of our own, with as little in between as possible: on a small machine every
//! microsecond that the load generator uses is one that the server does not get. Its share is reported with the figures.

use crate::process::{Processes, own_cpu_seconds};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use coxswain_client::connect;
use http::header::{HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::Client;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// As the figures for orientation were taken: 64 requests in flight over 8 connections.
pub const CONNECTIONS: usize = 8;
pub const IN_FLIGHT: usize = 64;
/// Flow control windows, as Go's HTTP/2 client has them for a stream.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

const READ_BYTES: usize = 128 * 1024;

#[derive(Clone)]
pub struct Settings {
    pub objects: usize,
    pub seconds: u64,
    pub image: String,
    pub watchers: usize,
    pub writes_per_second: f64,
}

/// A request to be sent.
pub struct Call {
    pub method: Method,
    pub path: String,
    pub body: Option<(&'static str, Vec<u8>)>,
    pub headers: &'static [(&'static str, &'static str)],
}

impl Call {
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, headers: &[] }
    }

    pub fn post(path: impl Into<String>, body: Vec<u8>) -> Self {
        Self { method: Method::POST, body: Some(("application/json", body)), ..Self::get(path) }
    }

    pub fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }

    pub fn with(self, headers: &'static [(&'static str, &'static str)]) -> Self {
        Self { headers, ..self }
    }
}

/// A server under load.
pub struct Server {
    connections: Vec<SendRequest<Full<Bytes>>>,
    /// Scheme, host, port and path prefix.
    base: Uri,
    headers: HeaderMap,
    client: Client,
    pub processes: Processes,
}

/// How a run of load went.
#[derive(Default)]
pub struct Outcome {
    pub requests: u64,
    pub seconds: f64,
    pub bytes: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// CPU that the server used for each request; none if its process is not known.
    pub server_us: Option<f64>,
    /// Cores that the load generator itself kept busy.
    pub own_cores: f64,
}

impl Outcome {
    pub fn per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }
}

impl Server {
    pub async fn connect(kubeconfig: &Path, pids: &[u32]) -> Result<Self> {
        let target = connect::target_of_file(kubeconfig)?;
        let base: Uri = target.cluster.server.parse().context("the server's address")?;
        let host = base.host().context("the server's address has no host")?.to_owned();
        let port = base.port_u16().unwrap_or(443);
        let tls = Arc::new(connect::tls_config(&target, &[b"h2"])?);
        let name = target.cluster.tls_server_name.clone().unwrap_or_else(|| host.clone());
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let tcp = TcpStream::connect((host.as_str(), port)).await.with_context(|| format!("{host}:{port}"))?;
            tcp.set_nodelay(true)?;
            let name = rustls_pki_types::ServerName::try_from(name.clone())?;
            // Read in large pieces: TLS by itself asks the socket for a few KB at a time.
            let tcp = tokio::io::BufReader::with_capacity(READ_BYTES, tcp);
            let stream = tokio_rustls::TlsConnector::from(tls.clone()).connect(name, tcp).await?;
            let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .handshake(TokioIo::new(stream))
                .await?;
            tokio::spawn(connection);
            connections.push(sender);
        }
        let mut headers = connect::identity_headers(&target)?;
        headers.insert(USER_AGENT, HeaderValue::from_static("bench"));
        let processes = Processes::find(pids, port);
        Ok(Self { connections, base, headers, client: connect::from_kubeconfig(kubeconfig)?, processes })
    }

    /// A client for what is not measured, and for cases whose load is small.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Sends over one of the connections; the answer's body is still to be read.
    pub fn start(
        &self,
        connection: usize,
        call: Call,
    ) -> Result<impl Future<Output = hyper::Result<http::Response<Incoming>>> + Send + 'static + use<>> {
        let prefix = self.base.path().trim_end_matches('/');
        let uri = Uri::builder()
            .scheme("https")
            .authority(self.base.authority().map_or("localhost", |a| a.as_str()))
            .path_and_query(format!("{prefix}{}", call.path))
            .build()?;
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.method_mut() = call.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().remove(HOST);
        for (name, value) in call.headers {
            request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        if let Some((kind, bytes)) = call.body {
            request.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
            *request.body_mut() = Full::new(bytes.into());
        }
        Ok(self.connections[connection % CONNECTIONS].clone().send_request(request))
    }

    /// One request; its status code and how many bytes the answer had. A refusal's text is the error.
    pub async fn send(&self, connection: usize, call: Call) -> Result<(u16, u64)> {
        let shown = format!("{} {}", call.method, call.path);
        let response = self.start(connection, call)?.await.with_context(|| shown.clone())?;
        let code = response.status().as_u16();
        let mut body = response.into_body();
        let (mut bytes, mut text) = (0, Vec::new());
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.with_context(|| shown.clone())?.data_ref() {
                bytes += data.len() as u64;
                if code >= 300 {
                    text.extend_from_slice(data);
                }
            }
        }
        if code >= 300 && code != 404 && code != 409 {
            bail!("{shown}: {code}: {}", String::from_utf8_lossy(&text));
        }
        Ok((code, bytes))
    }

    /// Sends what `make` makes (it gets a running number) for some seconds, or until `make` gives none.
    pub async fn drive<F>(self: &Arc<Self>, seconds: u64, in_flight: usize, make: F) -> Result<Outcome>
    where
        F: Fn(u64) -> Option<Call> + Send + Sync + 'static,
    {
        let make = Arc::new(make);
        let next = Arc::new(AtomicU64::new(0));
        let (server_before, own_before) = (self.processes.cpu_seconds(), own_cpu_seconds());
        let start = Instant::now();
        let end = start + Duration::from_secs(seconds);
        let workers = (0..in_flight).map(|i| {
            let (server, make, next) = (self.clone(), make.clone(), next.clone());
            tokio::spawn(async move {
                let (mut times, mut bytes) = (Vec::new(), 0u64);
                while Instant::now() < end {
                    let Some(call) = make(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let sent = Instant::now();
                    bytes += server.send(i, call).await?.1;
                    times.push(sent.elapsed());
                }
                anyhow::Ok((times, bytes))
            })
        });
        let (mut times, mut bytes) = (Vec::new(), 0);
        for outcome in futures::future::join_all(workers).await {
            let (t, b) = outcome??;
            times.extend(t);
            bytes += b;
        }
        let took = start.elapsed().as_secs_f64();
        times.sort();
        let requests = times.len() as u64;
        let used = self.processes.cpu_seconds() - server_before;
        Ok(Outcome {
            requests,
            seconds: took,
            bytes,
            p50_ms: at(&times, 0.5),
            p99_ms: at(&times, 0.99),
            server_us: (self.processes.is_known() && requests > 0).then(|| used * 1e6 / requests as f64),
            own_cores: (own_cpu_seconds() - own_before) / took,
        })
    }
}

/// A percentile of sorted times, in milliseconds.
pub fn at(times: &[Duration], share: f64) -> f64 {
    let i = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
    times.get(i).map_or(0.0, |t| t.as_secs_f64() * 1000.0)
}
