//! The network transport under [`kube::Client`]: hyper over rustls, HTTP/2 where the server has it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use base64::Engine;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue, UPGRADE, USER_AGENT};
use http::uri::{PathAndQuery, Uri};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::Body;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::{BoxError, Service};

use super::{Error, Identity, Target, tls};

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent HTTP/2 connection is probed this often, and given up when a probe stays unanswered.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// A token file is read again at most this often.
const TOKEN_RELOAD_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes in flight for one stream and for a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// A server and an identity, as a tower service. Clones share the connections.
#[derive(Clone)]
pub(super) struct Remote(Arc<Inner>);

struct Inner {
    /// Scheme, authority and path prefix of the server.
    base: Uri,
    user_agent: HeaderValue,
    credentials: Credentials,
    requests: Pool<Connector, Body>,
    watches: Pool<Connector, Body>,
    upgrades: Pool<Connector, Body>,
}

impl Remote {
    pub(super) fn new(target: Target, user_agent: String) -> Result<Self, Error> {
        let server = match target.cluster.server.as_str() {
            address if address.contains("://") => address.to_owned(),
            address => format!("https://{address}"),
        };
        let base: Uri =
            server.parse().map_err(|error| Error::Invalid(format!("invalid server address {server:?}: {error}")))?;
        let connector = |protocols: &[&[u8]]| -> Result<Connector, Error> {
            let tls = match base.scheme_str() {
                Some("https") => Some(Arc::new(tls::config(&target.cluster, &target.identity, protocols)?)),
                _ => None,
            };
            Ok(Connector { tls, server_name: target.cluster.tls_server_name.clone() })
        };
        let multiplexed = || -> Result<Pool<Connector, Body>, Error> {
            Ok(Pool::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
                .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .build(connector(&[b"h2", b"http/1.1"])?))
        };
        Ok(Self(Arc::new(Inner {
            requests: multiplexed()?,
            watches: multiplexed()?,
            upgrades: Pool::builder(TokioExecutor::new()).build(connector(&[b"http/1.1"])?),
            user_agent: HeaderValue::from_str(&user_agent).map_err(|error| Error::Invalid(error.to_string()))?,
            credentials: Credentials::new(target.identity)?,
            base,
        })))
    }
}

impl Service<Request<Body>> for Remote {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            *request.uri_mut() = inner.absolute(request.uri())?;
            let headers = request.headers_mut();
            headers.entry(USER_AGENT).or_insert_with(|| inner.user_agent.clone());
            inner.credentials.apply(headers);
            let pool = if headers.contains_key(UPGRADE) {
                &inner.upgrades
            } else if request.uri().query().is_some_and(is_long_running) {
                &inner.watches
            } else {
                &inner.requests
            };
            let spare = copy_of(&request);
            match (pool.request(request).await, spare) {
                // The next connection leads to a server that stays, or to the same one started again.
                (Err(error), Some(spare)) if was_turned_away(&error) => Ok(pool.request(spare).await?),
                (answer, _) => Ok(answer?),
            }
        })
    }
}

/// The same request once more, if its body is in memory.
fn copy_of(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Whether a server that ends has refused to begin with a request that was on its way when it asked to go away (RFC 9113,
/// sections 6.8 and 8.7): it has not been looked at, and may be sent again. Go's transport does so too.
fn was_turned_away(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let gently = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            return error.is_remote() && (gently || error.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        source = error.source();
    }
    false
}

/// Whether the query asks for a stream that stays open.
fn is_long_running(query: &str) -> bool {
    query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1" | "follow=true"))
}

impl Inner {
    fn absolute(&self, uri: &Uri) -> Result<Uri, http::Error> {
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let prefix = self.base.path().trim_end_matches('/');
        Uri::builder()
            .scheme(self.base.scheme_str().unwrap_or("https"))
            .authority(self.base.authority().map_or("localhost", |authority| authority.as_str()))
            .path_and_query(format!("{prefix}{path}"))
            .build()
    }
}

/// The headers that say who asks.
pub(super) struct Credentials {
    fixed: Vec<(HeaderName, HeaderValue)>,
    token_file: Option<std::path::PathBuf>,
    /// The header made from the token file, and when it was read.
    token: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Credentials {
    pub(super) fn new(identity: Identity) -> Result<Self, Error> {
        let mut fixed = Vec::new();
        let mut add = |name: HeaderName, value: &str| -> Result<(), Error> {
            let mut value = HeaderValue::from_str(value).map_err(|error| Error::Invalid(error.to_string()))?;
            value.set_sensitive(name == AUTHORIZATION);
            fixed.push((name, value));
            Ok(())
        };
        if identity.token_file.is_none() {
            if let Some(token) = &identity.token {
                add(AUTHORIZATION, &format!("Bearer {token}"))?;
            } else if let Some((user, password)) = &identity.basic {
                let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
                add(AUTHORIZATION, &format!("Basic {encoded}"))?;
            }
        }
        if let Some(user) = &identity.impersonate {
            add(HeaderName::from_static("impersonate-user"), user)?;
        }
        for group in &identity.impersonate_groups {
            add(HeaderName::from_static("impersonate-group"), group)?;
        }
        Ok(Self { fixed, token_file: identity.token_file, token: Mutex::new(None) })
    }

    pub(super) fn apply(&self, headers: &mut http::HeaderMap) {
        for (name, value) in &self.fixed {
            headers.append(name.clone(), value.clone());
        }
        if let Some(token) = self.file_token() {
            headers.insert(AUTHORIZATION, token);
        }
    }

    /// The token of the file, read again once it is old. While it cannot be read the last one serves.
    fn file_token(&self) -> Option<HeaderValue> {
        let path = self.token_file.as_ref()?;
        let mut cached = self.token.lock();
        if let Some((token, read_at)) = &*cached
            && read_at.elapsed() < TOKEN_RELOAD_INTERVAL
        {
            return Some(token.clone());
        }
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", text.trim())).ok()?;
                value.set_sensitive(true);
                *cached = Some((value, Instant::now()));
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot read the token file"),
        }
        cached.as_ref().map(|(token, _)| token.clone())
    }
}

/// Opens TCP connections, with TLS where the scheme asks for it.
#[derive(Clone)]
struct Connector {
    tls: Option<Arc<rustls::ClientConfig>>,
    server_name: Option<String>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            tokio::time::timeout(CONNECT_TIMEOUT, connector.open(uri))
                .await
                .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
                .map(TokioIo::new)
        })
    }
}

impl Connector {
    async fn open(&self, uri: Uri) -> std::io::Result<Stream> {
        let host = uri.host().unwrap_or("localhost").trim_start_matches('[').trim_end_matches(']').to_owned();
        let default_port = if self.tls.is_some() { 443 } else { 80 };
        let tcp = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(default_port))).await?;
        tcp.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Stream::Plain(tcp)) };
        let name = ServerName::try_from(self.server_name.clone().unwrap_or(host)).map_err(std::io::Error::other)?;
        Ok(Stream::Tls(Box::new(TlsConnector::from(tls.clone()).connect(name, tcp).await?)))
    }
}

/// A connection, with or without TLS.
enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => Connected::new().negotiated_h2(),
            _ => Connected::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
