//! Calls to etcd: endpoints, credentials, and what is tried again (upstream: `newETCD3Client` and the interceptors of
//! etcd's own client).
//!
//! One endpoint is used until it cannot be reached; then the next. A call that was certainly not sent, and one that only
//! reads, is tried again for a while, so that the restart of a member is not seen by clients. A write whose answer was lost
//! is never repeated: its outcome is unknown.

use super::wire::*;
use super::{failed, is, revision, unavailable};
use crate::{Error, Result, Revision};
use bytes::Bytes;
use prost::Message;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Upstream allows 20 seconds; as another endpoint may answer at once, we turn to it sooner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call that may be repeated is repeated, and how often.
const RETRY_TIME: Duration = Duration::from_millis(2_500);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How often the files of certificates are looked at.
const FILES_INTERVAL: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 20 });

/// How etcd is reached and who we are there.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Authorities that may have signed the servers' certificates; the system's own if none.
    pub ca_file: Option<PathBuf>,
    /// Our certificate and its key, in PEM: both or none.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// A user of etcd and its password, where etcd asks for one.
    pub user: Option<(String, String)>,
}

impl Access {
    fn has_tls(&self) -> bool {
        self.ca_file.is_some() || self.cert_file.is_some() || self.key_file.is_some()
    }

    /// What the files hold.
    fn contents(&self) -> Vec<Option<Vec<u8>>> {
        let files = [&self.ca_file, &self.cert_file, &self.key_file];
        files.into_iter().flatten().map(|path| std::fs::read(path).ok()).collect()
    }

    fn tls(&self) -> Result<ClientTlsConfig> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|e| unavailable("open", format!("reading {}: {e}", path.display())))
        };
        let mut tls = match &self.ca_file {
            Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?)),
            (None, None) => {}
            _ => return Err(unavailable("open", "a certificate and its key must be given together")),
        }
        Ok(tls)
    }
}

#[derive(Clone)]
pub(super) struct Calls(Arc<Inner>);

struct Inner {
    /// A channel each; made anew when the files of certificates have changed.
    endpoints: parking_lot::RwLock<Vec<Channel>>,
    count: usize,
    /// Counts up; the endpoint in use is the rest after division by their number.
    current: AtomicUsize,
    user: Option<(String, String)>,
    token: parking_lot::RwLock<Option<MetadataValue<tonic::metadata::Ascii>>>,
    /// A key that every user of this etcd may read, though nothing is there.
    probe: Bytes,
    mark: Bytes,
    root: Box<str>,
}

impl Calls {
    pub(super) fn new(endpoints: &[String], access: &Access, root: &str) -> Result<Calls> {
        let mut user = access.user.clone();
        let mut urls = Vec::new();
        for url in endpoints {
            let (url, in_url) = without_user(url);
            user = user.or(in_url);
            urls.push(url);
        }
        let channels = channels(&urls, access)?;
        if channels.is_empty() {
            return Err(unavailable("open", "no endpoint of etcd is given"));
        }
        let inner = Inner {
            count: channels.len(),
            endpoints: parking_lot::RwLock::new(channels),
            current: AtomicUsize::new(0),
            user,
            token: Default::default(),
            probe: format!("{root}health").into(),
            mark: format!("{root}coxswain/progress").into(),
            root: root.into(),
        };
        let inner = Arc::new(inner);
        if access.has_tls() {
            tokio::spawn(follow_files(Arc::downgrade(&inner), urls, access.clone()));
        }
        Ok(Calls(inner))
    }

    /// One call, without repetition.
    fn grpc(&self, endpoint: usize) -> Grpc<Channel> {
        let channel = self.0.endpoints.read()[endpoint % self.0.count].clone();
        Grpc::new(channel).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX)
    }

    fn request<Q>(&self, message: Q) -> tonic::Request<Q> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &*self.0.token.read() {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    /// Turns to the next endpoint, unless another call has already left this one.
    fn leave(&self, endpoint: usize) {
        let _ = self.0.current.compare_exchange(endpoint, endpoint + 1, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(super) async fn call<Q, A>(&self, operation: &'static str, path: &'static str, request: Q) -> Result<A>
    where
        Q: Message + Clone + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let reads = matches!(path, "/etcdserverpb.KV/Range" | "/etcdserverpb.Maintenance/Status");
        let begin = Instant::now();
        let mut authenticated = false;
        loop {
            let endpoint = self.0.current.load(Ordering::Relaxed);
            let status = match self.once(endpoint, path, request.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            if !authenticated && self.0.user.is_some() && wants_token(&status) {
                authenticated = true;
                self.authenticate(endpoint).await.map_err(|status| failed(operation, status))?;
                continue;
            }
            let unsent = never_sent(&status);
            let lost = unsent || status.code() == Code::Unavailable || broke(&status);
            if lost {
                self.leave(endpoint);
            }
            let again = unsent || (reads && lost);
            if !again || begin.elapsed() > RETRY_TIME {
                return Err(failed(operation, status));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn once<Q, A>(&self, endpoint: usize, path: &'static str, message: Q) -> std::result::Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.grpc(endpoint);
        let mut request = self.request(message);
        request.set_timeout(REQUEST_TIMEOUT);
        grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
        let codec = ProstCodec::<Q, A>::default();
        grpc.unary(request, PathAndQuery::from_static(path), codec).await.map(tonic::Response::into_inner)
    }

    async fn authenticate(&self, endpoint: usize) -> std::result::Result<(), Status> {
        let Some((name, password)) = self.0.user.clone() else { return Ok(()) };
        *self.0.token.write() = None;
        let request = AuthenticateRequest { name, password };
        let answer: AuthenticateResponse = self.once(endpoint, "/etcdserverpb.Auth/Authenticate", request).await?;
        let token = answer.token.parse().map_err(|_| Status::internal("etcd gave a token that is no text"))?;
        *self.0.token.write() = Some(token);
        Ok(())
    }

    /// Opens a stream of messages in both directions on whatever endpoint answers.
    pub(super) async fn stream<Q, A>(
        &self,
        operation: &'static str,
        path: &'static str,
        requests: impl futures::Stream<Item = Q> + Send + 'static,
    ) -> Result<tonic::Streaming<A>>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let endpoint = self.0.current.load(Ordering::Relaxed);
        let mut grpc = self.grpc(endpoint);
        let opened = match grpc.ready().await {
            Ok(()) => {
                let codec = ProstCodec::<Q, A>::default();
                grpc.streaming(self.request(requests), PathAndQuery::from_static(path), codec).await
            }
            Err(e) => Err(Status::from_error(e.into())),
        };
        match opened {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => {
                self.lost(&status).await;
                Err(failed(operation, status))
            }
        }
    }

    /// A stream ended so: the next one may go to another endpoint, or needs a new token.
    pub(super) async fn lost(&self, status: &Status) {
        let endpoint = self.0.current.load(Ordering::Relaxed);
        if self.0.user.is_some() && wants_token(status) {
            if let Err(status) = self.authenticate(endpoint).await {
                tracing::warn!(%status, "etcd does not know us");
            }
        } else {
            self.leave(endpoint);
        }
    }

    pub(super) async fn range(&self, operation: &'static str, request: RangeRequest) -> Result<RangeResponse> {
        let asked = Revision(request.revision as u64);
        match self.call(operation, "/etcdserverpb.KV/Range", request).await {
            Err(Error::Unavailable { source, .. }) if is(&source, "has been compacted") => {
                Err(Error::Compacted { asked, oldest: super::watch::oldest(self).await? })
            }
            Err(Error::Unavailable { source, .. }) if is(&source, "future revision") => {
                Err(Error::Future { asked, current: self.revision(operation).await? })
            }
            result => result,
        }
    }

    /// Reads nothing at a revision, or now: tells whether that is possible.
    pub(super) async fn probe(&self, operation: &'static str, at: i64) -> Result<RangeResponse> {
        let key = self.0.probe.clone();
        self.range(operation, RangeRequest { key, revision: at, count_only: true, ..Default::default() }).await
    }

    pub(super) async fn revision(&self, operation: &'static str) -> Result<Revision> {
        let request = RangeRequest { key: self.0.probe.clone(), count_only: true, ..Default::default() };
        let response: RangeResponse = self.call(operation, "/etcdserverpb.KV/Range", request).await?;
        Ok(revision(&response.header))
    }

    pub(super) async fn compact(&self, revision: Revision) -> Result<()> {
        let request = CompactionRequest { revision: revision.0 as i64 };
        match self.call::<_, CompactionResponse>("compact", "/etcdserverpb.KV/Compact", request).await {
            Err(Error::Unavailable { source, .. }) if is(&source, "has been compacted") => Ok(()),
            Err(Error::Unavailable { source, .. }) if is(&source, "future revision") => {
                Err(Error::Future { asked: revision, current: self.revision("compact").await? })
            }
            result => result.map(drop),
        }
    }

    /// Whether all members that answer tell how far a watch has come only when that is true. Those before 3.4.31 and 3.5.13
    /// may tell it of a watch that has not caught up, and before events that came earlier.
    pub(super) async fn tells_progress(&self) -> bool {
        let mut good = true;
        for endpoint in 0..self.0.count {
            let asked = self.once(endpoint, "/etcdserverpb.Maintenance/Status", StatusRequest {});
            match tokio::time::timeout(CONNECT_TIMEOUT, asked).await {
                Ok(Ok(StatusResponse { version, .. })) => good &= is_good_version(&version),
                // One that is away now may be of any version.
                _ => good &= self.0.count > 1,
            }
        }
        good
    }

    /// Writes the mark that readers of changes see in its order among all others.
    pub(super) async fn mark(&self) -> Result<()> {
        let put = PutRequest { key: self.0.mark.clone(), value: Bytes::new(), lease: 0 };
        self.call::<_, PutResponse>("changes", "/etcdserverpb.KV/Put", put).await.map(drop)
    }

    pub(super) fn mark_key(&self) -> &Bytes {
        &self.0.mark
    }

    pub(super) fn root(&self) -> &str {
        &self.0.root
    }

    /// The bytes that etcd's file takes on the disk of the member that answers.
    pub(super) async fn size(&self) -> Result<u64> {
        let answer: StatusResponse = self.call("status", "/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        Ok(answer.db_size.max(0) as u64)
    }

    pub(super) fn probe_key(&self) -> &Bytes {
        &self.0.probe
    }
}

/// A channel for each endpoint, which connects when it is used.
fn channels(urls: &[String], access: &Access) -> Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for url in urls {
        let secure = url.starts_with("https://");
        let url = if url.contains("://") { url.clone() } else { format!("http://{url}") };
        let mut endpoint = Endpoint::from_shared(url)
            .map_err(|e| unavailable("open", e))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        if secure {
            endpoint = endpoint.tls_config(access.tls()?).map_err(|e| unavailable("open", chain(&e)))?;
        } else if access.has_tls() {
            tracing::warn!(endpoint = %endpoint.uri(), "an endpoint of etcd without TLS, although certificates are given");
        }
        channels.push(endpoint.connect_lazy());
    }
    Ok(channels)
}

/// Certificates are renewed while the server runs: new connections are made with what the files hold by then. Calls and
/// watches under way end on the connections that they began on.
async fn follow_files(inner: Weak<Inner>, urls: Vec<String>, access: Access) {
    let mut known = access.contents();
    loop {
        tokio::time::sleep(FILES_INTERVAL).await;
        let Some(inner) = inner.upgrade() else { return };
        let now = access.contents();
        if now == known {
            continue;
        }
        // Half of it may be written only; the next look tells.
        match channels(&urls, &access) {
            Ok(channels) => {
                tracing::info!("the certificates for etcd have changed");
                *inner.endpoints.write() = channels;
                known = now;
            }
            Err(error) => tracing::warn!(%error, "the certificates for etcd have changed and cannot be used"),
        }
    }
}

/// `https://name:password@host:2379` and what it says.
fn without_user(url: &str) -> (String, Option<(String, String)>) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            (format!("{scheme}://{host}"), Some((name.to_owned(), password.to_owned())))
        }
        None => (url.to_owned(), None),
    }
}

fn is_good_version(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (3, 4, patch) => patch >= 31,
        (3, 5, patch) => patch >= 13,
        (major, minor, _) => (major, minor) > (3, 5),
    }
}

fn wants_token(status: &Status) -> bool {
    let message = status.message();
    // Etcd answers a missing token with InvalidArgument, an old one with Unauthenticated or, in 3.4, with Unknown.
    status.code() == Code::Unauthenticated
        || message.contains("user name is empty")
        || message.contains("auth token")
        || message.contains("auth: revision in header is old")
}

/// Whether there was no connection to send the call on.
pub(crate) fn never_sent(status: &Status) -> bool {
    has_source::<tonic::ConnectError>(status)
}

/// Whether the connection broke under the call.
fn broke(status: &Status) -> bool {
    has_source::<tonic::transport::Error>(status)
}

fn has_source<E: std::error::Error + 'static>(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<E>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        for (version, good) in [
            ("3.4.23", false),
            ("3.4.31", true),
            ("3.5.12", false),
            ("3.5.13", true),
            ("3.6.0-rc.1", true),
            ("", false),
        ] {
            assert_eq!(is_good_version(version), good, "{version}");
        }
    }

    #[test]
    fn a_user_in_the_url_is_taken_out_of_it() {
        let user = |n: &str, p: &str| Some((n.to_owned(), p.to_owned()));
        assert_eq!(without_user("https://a:b@c:1"), ("https://c:1".to_owned(), user("a", "b")));
        assert_eq!(without_user("http://c:1"), ("http://c:1".to_owned(), None));
    }
}
