//! One HTTP request to a pod, for probes and lifecycle hooks (upstream: `pkg/probe/http`). Certificates are not verified: a pod's server
//! rarely has one for its address.

use bytes::Bytes;
use coxswain_client::connect::AnyServer;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// More of an answer's body is not read (upstream: `maxRespBodyLength`).
const BODY_BYTES_MAX: usize = 10 << 10;
const REDIRECTS_MAX: usize = 10;

#[derive(Clone, Debug)]
pub struct Request {
    pub https: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Request {
    fn url(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{host}:{}{}", self.port, self.path)
    }
}

/// The text of a failure to connect, as Go's net package has it.
pub fn dial_error(address: &str, error: &std::io::Error) -> String {
    let why = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "connect: connection refused".to_string(),
        Some(libc::EHOSTUNREACH) => "connect: no route to host".to_string(),
        Some(libc::ENETUNREACH) => "connect: network is unreachable".to_string(),
        Some(libc::ETIMEDOUT) => "i/o timeout".to_string(),
        Some(libc::ECONNRESET) => "connect: connection reset by peer".to_string(),
        _ => error.to_string(),
    };
    format!("dial tcp {address}: {why}")
}

pub fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Redirects within the host are followed; one to another host is an answer.
pub async fn get(request: &Request, timeout: Duration) -> Result<Answer, String> {
    let url = request.url();
    match tokio::time::timeout(timeout, follow(request.clone())).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(message)) => Err(format!("Get {url:?}: {message}")),
        Err(_) => {
            Err(format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
        }
    }
}

async fn follow(mut request: Request) -> Result<Answer, String> {
    for _ in 0..=REDIRECTS_MAX {
        let (answer, location) = once(&request).await?;
        let Some(location) = location.filter(|_| (300..400).contains(&answer.status)) else { return Ok(answer) };
        let Ok(target) = location.parse::<http::Uri>() else { return Ok(answer) };
        let target_path = target.path_and_query().map_or("/".to_string(), |p| p.to_string());
        match target.host() {
            Some(host) if host.trim_matches(['[', ']']) != request.host => return Ok(answer),
            Some(_) => {
                request.https = target.scheme_str() == Some("https");
                request.port = target.port_u16().unwrap_or(if request.https { 443 } else { 80 });
            }
            None => {}
        }
        request.path = target_path;
    }
    Err(format!("stopped after {REDIRECTS_MAX} redirects"))
}

async fn once(request: &Request) -> Result<(Answer, Option<String>), String> {
    let address = address(&request.host, request.port);
    let stream = TcpStream::connect(&address).await.map_err(|e| dial_error(&address, &e))?;
    if request.https {
        let name = ServerName::try_from(request.host.clone()).map_err(|e| e.to_string())?;
        let stream = TlsConnector::from(TLS.clone()).connect(name, stream).await.map_err(|e| tls_error(&e))?;
        exchange(request, TokioIo::new(stream)).await
    } else {
        exchange(request, TokioIo::new(stream)).await
    }
}

async fn exchange<S>(request: &Request, io: S) -> Result<(Answer, Option<String>), String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let mut builder = http::Request::get(if request.path.is_empty() { "/" } else { &request.path });
    let mut host = address(&request.host, request.port);
    let (mut agent, mut accept) = (false, false);
    for (name, value) in &request.headers {
        match name.to_ascii_lowercase().as_str() {
            "host" => {
                host = value.clone();
                continue;
            }
            "user-agent" => agent = true,
            "accept" => accept = true,
            _ => {}
        }
        // A header with an empty value suppresses the default one.
        if !value.is_empty() {
            builder = builder.header(name, value);
        }
    }
    if !agent {
        builder = builder.header("User-Agent", "kube-probe/1.36");
    }
    if !accept {
        builder = builder.header("Accept", "*/*");
    }
    let outgoing = builder
        .header("Host", host)
        .header("Connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let result = async {
        let answer = sender
            .send_request(outgoing)
            .await
            .map_err(|e| if e.is_incomplete_message() { "EOF".into() } else { e.to_string() })?;
        let location = answer.headers().get("location").and_then(|v| v.to_str().ok()).map(str::to_string);
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned()).unwrap_or_default();
        Ok((Answer { status, body }, location))
    }
    .await;
    driver.abort();
    result
}

/// A failed handshake in the words of Go's client, where it has some of its own.
fn tls_error(error: &std::io::Error) -> String {
    use rustls::Error;
    let cause = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    match (error.kind(), cause) {
        (std::io::ErrorKind::UnexpectedEof, _) => "EOF".into(),
        (_, Some(Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType))) => {
            "http: server gave HTTP response to HTTPS client".into()
        }
        _ => error.to_string(),
    }
}

static TLS: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer::new(provider)))
        .with_no_client_auth();
    Arc::new(config)
});
