//! The front: the way of every request through the server (upstream: `DefaultBuildHandlerChain`).
//!
//! ```text
//! audit id → panic containment → request info → authentication → impersonation → flow control → authorization
//!   → deadline → dispatch (registry pipeline, reads, connections, documents) → warnings and headers → metrics
//! ```

mod component_status;
mod debug;
pub mod documents;
pub mod request_info;
pub mod route;
pub mod service;
mod zpages;

use crate::authentication::impersonation::Impersonation;
use crate::authentication::{Authentication, Peer};
use crate::authorization::Authorization;
use crate::connect::Dialer;
use crate::discovery::Discovery;
use crate::flow_control::in_flight::InFlight;
use crate::flow_control::{self, FlowControl, Refused};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::negotiate::{self, Accepted};
use crate::registry::options::{Query, manager_of_user_agent};
use crate::registry::pipeline::Pipeline;
use crate::request::{Context, RequestInfo, User, Warnings};
use crate::resources::Resources;
use crate::respond::{Answer, Body, NO_SNIFF, error_page, refusal};
use crate::store::Store;
use bytes::Bytes;
use coxswain_api::Status;
use coxswain_api::features::Feature;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{CACHE_CONTROL, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of a request, whatever it came by.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// The longest body that is read (upstream: `MaxRequestBodyBytes`).
pub const BODY_MAX: usize = 3 * 1024 * 1024;
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Who sends a request.
#[derive(Clone)]
pub enum Caller {
    /// To be found out from the connection and the headers.
    Peer(Arc<Peer>),
    /// Known: a component in this process.
    User(Arc<User>),
}

/// What bounds the requests that are served at once.
pub enum Flow {
    Fair(FlowControl),
    /// `--enable-priority-and-fairness=false`
    Plain(InFlight),
}

/// Everything that serving a request needs.
pub struct Front {
    pub resources: Arc<Resources>,
    pub pipeline: Pipeline,
    pub authentication: Arc<Authentication>,
    pub authorization: Arc<Authorization>,
    pub impersonation: Impersonation,
    pub discovery: Discovery,
    pub health: Health,
    pub metrics: Metrics,
    pub flow: Flow,
    pub dialer: Dialer,
    pub request_timeout: Duration,
    /// How likely it is that a client over HTTP/2 is asked to connect anew after a request.
    pub goaway_chance: f64,
    pub flags: Vec<(String, String)>,
    /// Whether profiles of this process are served, and the level of its log.
    pub profiling: bool,
    /// The address and port under which clients find this server.
    pub public_address: String,
    /// True once the server is to stop; watches end then.
    pub shutdown: tokio::sync::watch::Receiver<bool>,
}

/// A request whose meaning and sender are known.
pub struct Incoming {
    pub method: Method,
    pub headers: HeaderMap,
    pub extensions: http::Extensions,
    pub uri: http::Uri,
    pub query: Query,
    pub ctx: Context,
    /// Behind a lock only so that the whole can be shared while a handler waits.
    body: parking_lot::Mutex<RequestBody>,
}

impl Incoming {
    pub fn info(&self) -> &RequestInfo {
        &self.ctx.info
    }

    /// The body as a whole; upstream's refusal if it is too long.
    pub async fn read_body(&mut self) -> Result<Bytes, Status> {
        let body = http_body_util::Limited::new(self.take_body(), BODY_MAX);
        // Named as a boxed future: the compiler loses sight of its being `Send` otherwise.
        let collected: BoxFuture<'static, Result<http_body_util::Collected<Bytes>, BoxError>> =
            Box::pin(body.collect());
        match collected.await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(e) if e.is::<http_body_util::LengthLimitError>() => {
                Err(Status::too_large(format!("limit is {BODY_MAX}")))
            }
            Err(e) => Err(Status::bad_request(format!("reading the body of the request: {e}"))),
        }
    }

    /// The body as it comes, leaving none.
    pub fn take_body(&mut self) -> RequestBody {
        std::mem::take(self.body.get_mut())
    }

    /// The negotiated form, or plain JSON if negotiation failed: for refusals.
    pub fn accepted_or_json(&self) -> Accepted {
        negotiate::accept(&self.headers, &self.query, false).unwrap_or(Accepted::JSON)
    }
}

impl Front {
    /// Serves one request, from beginning to end.
    pub fn serve(self: Arc<Self>, request: Request<RequestBody>, caller: Caller) -> BoxFuture<'static, Answer> {
        Box::pin(self.serve_inner(request, caller))
    }

    async fn serve_inner(self: Arc<Self>, request: Request<RequestBody>, caller: Caller) -> Answer {
        let started = Instant::now();
        let audit_id = match request.headers().get(&AUDIT_ID) {
            Some(id) if !id.is_empty() && id.len() <= 64 => id.clone(),
            _ => HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).expect("a UUID is plain text"),
        };
        let is_head = request.method() == Method::HEAD;
        let accept_gzip = Feature::APIResponseCompression.enabled()
            && accepts_gzip(request.headers())
            && request.method() == Method::GET;
        let mut seen = crate::metrics::Labels::of_method(request.method());
        let chain: BoxFuture<'_, Answer> = Box::pin(self.clone().chain(request, caller, &mut seen));
        let served = AssertUnwindSafe(chain).catch_unwind().await;
        let mut answer = served.unwrap_or_else(|_| {
            // The panic itself is in the log, where the panic hook wrote it.
            let body = "This request caused apiserver to panic. Look in the logs for details.\n";
            error_page(StatusCode::INTERNAL_SERVER_ERROR, body)
        });
        let headers = answer.headers_mut();
        headers.insert(AUDIT_ID, audit_id);
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
        if is_head {
            *answer.body_mut() = Body::Empty;
        }
        let bytes = match answer.body() {
            Body::Full(bytes) => Some(bytes.len()),
            Body::Empty => Some(0),
            _ => None,
        };
        self.metrics.observe(&seen, answer.status().as_u16(), started.elapsed(), bytes);
        if accept_gzip { compressed(answer) } else { answer }
    }

    async fn chain(
        self: Arc<Self>,
        request: Request<RequestBody>,
        caller: Caller,
        seen: &mut crate::metrics::Labels,
    ) -> Answer {
        let (mut parts, body) = request.into_parts();
        let query = Query::parse(parts.uri.query());
        let path = percent_decoded_path(parts.uri.path());
        let accepted = negotiate::accept(&parts.headers, &query, false).unwrap_or(Accepted::JSON);
        let info = match request_info::parse(&parts.method, &path, &query) {
            Ok(info) => info,
            Err(why) => return refusal(&Status::internal(format!("failed to create RequestInfo: {why}")), accepted),
        };
        seen.describe(&info, &query, &parts.headers);
        let long_running = is_long_running(&info, &query);
        let timeout = match timeout_of(&query, self.request_timeout) {
            Ok(timeout) => timeout,
            Err(_) if long_running => self.request_timeout,
            Err(status) => return refusal(&status, accepted),
        };
        let mut user = match caller {
            Caller::User(user) => user,
            Caller::Peer(peer) => {
                let asked: BoxFuture<'_, _> = Box::pin(self.authentication.authenticate(&parts, &peer));
                match asked.await {
                    Ok(user) => user,
                    Err(status) => return refusal(&status, accepted),
                }
            }
        };
        let warnings = Warnings::default();
        if crate::authentication::ignores_bearer(&parts.headers) {
            let why = "the provided Authorization header contains extra space before the bearer token, and is ignored";
            warnings.add(why.to_owned());
        }
        // The credential must not reach anything that a request is passed on to.
        parts.headers.remove(http::header::AUTHORIZATION);
        let wanted: BoxFuture<'_, _> =
            Box::pin(self.impersonation.impersonate(&*self.authorization, &user, &mut parts.headers, &info));
        match wanted.await {
            Ok(Some(other)) => user = Arc::new(other),
            Ok(None) => {}
            Err(status) => {
                let mut answer = refusal(&status, accepted);
                answer.headers_mut().insert(NO_SNIFF.0, NO_SNIFF.1);
                return answer;
            }
        }
        let _in_flight = (!long_running).then(|| self.metrics.enter(&info));
        // Of what has no end only the beginning of a watch is bounded, which may be as much work as a list.
        let is_watch = long_running && info.verb == "watch";
        let (mut seat, mut place, mut flow_headers) = (None, None, None);
        match &self.flow {
            Flow::Fair(flow) if !long_running || is_watch => {
                let schema = flow.classify(&self.resources, &user, &info);
                flow_headers = Some([schema.uid.clone(), schema.level_uid.clone()]);
                let seats = flow_control::seats(&self.resources, &info, &query);
                let entered: BoxFuture<'_, _> = Box::pin(flow.enter(&schema, &user, &info, seats, timeout));
                match entered.await {
                    Ok(entered) => seat = Some(entered),
                    Err(refused) => return too_many_requests(&refused, flow_headers),
                }
            }
            Flow::Plain(bounds) if !long_running => match bounds.enter(&user, &info) {
                Ok(entered) => place = entered,
                Err(refused) => return too_many_requests(&refused, None),
            },
            _ => {}
        }
        let agent = parts.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let field_manager = match query.first("fieldManager") {
            Some(manager) if !manager.is_empty() => manager.to_owned(),
            _ => manager_of_user_agent(agent),
        };
        let ctx = Context {
            user,
            info: Arc::new(info),
            dry_run: query.all("dryRun").contains(&"All"),
            field_manager,
            now: jiff::Timestamp::now(),
            warnings: warnings.clone(),
        };
        let incoming = Incoming {
            method: parts.method,
            headers: parts.headers,
            extensions: parts.extensions,
            uri: parts.uri,
            query,
            ctx,
            body: parking_lot::Mutex::new(body),
        };
        let served = async {
            if let Err(status) = self.authorization.check(&incoming.ctx.user, incoming.info()).await {
                let mut answer = refusal(&status, accepted);
                answer.headers_mut().insert(NO_SNIFF.0, NO_SNIFF.1);
                return answer;
            }
            if incoming.info().is_resource {
                self.clone().resource(incoming).await
            } else {
                self.clone().document(incoming).await
            }
        };
        let mut answer = if long_running {
            served.await
        } else {
            match tokio::time::timeout(timeout, served).await {
                Ok(answer) => answer,
                Err(_) => {
                    let why = "request did not complete within the allotted timeout";
                    refusal(&Status::timeout(why, 0), accepted)
                }
            }
        };
        drop((seat, place));
        add_flow_headers(&mut answer, flow_headers);
        for text in warnings.take() {
            if let Ok(value) = HeaderValue::from_str(&warning_header(&text)) {
                answer.headers_mut().append(http::header::WARNING, value);
            }
        }
        answer
    }

    /// The store that a read is served from.
    pub fn store(&self, group: &str, plural: &str) -> Option<Arc<Store>> {
        self.resources.store(group, plural)
    }
}

fn add_flow_headers(answer: &mut Answer, uids: Option<[HeaderValue; 2]>) {
    let Some([schema, level]) = uids else { return };
    let headers = answer.headers_mut();
    headers.insert(HeaderName::from_static("x-kubernetes-pf-flowschema-uid"), schema);
    headers.insert(HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid"), level);
}

/// Plain text, as upstream has it.
fn too_many_requests(refused: &Refused, uids: Option<[HeaderValue; 2]>) -> Answer {
    let mut answer = error_page(StatusCode::TOO_MANY_REQUESTS, "Too many requests, please try again later.\n");
    let headers = answer.headers_mut();
    headers.insert(http::header::RETRY_AFTER, HeaderValue::from(refused.retry_after));
    add_flow_headers(&mut answer, uids);
    answer
}

/// Requests without an end in sight: neither bounded in time nor counted (upstream: `BasicLongRunningRequestCheck`).
fn is_long_running(info: &RequestInfo, query: &Query) -> bool {
    if !info.is_resource {
        return info.path.starts_with("/debug/pprof/");
    }
    let follows = info.subresource == "log" && query.first("follow").is_some_and(|f| f == "true" || f == "1");
    info.verb == "watch" || is_proxied(info) || follows || info.subresource == "log"
}

fn is_proxied(info: &RequestInfo) -> bool {
    info.verb == "proxy" || matches!(info.subresource.as_str(), "proxy" | "exec" | "attach" | "portforward")
}

/// How long a request may take: what it asks for with `timeout`, but no longer than the server allows. Zero asks for nothing
/// (upstream: `WithRequestDeadline`).
fn timeout_of(query: &Query, longest: Duration) -> Result<Duration, Status> {
    let Some(asked) = query.first("timeout").filter(|t| !t.is_empty()) else { return Ok(longest) };
    coxswain_api::time::check_duration(asked)
        .map_err(|why| Status::bad_request(format!("invalid timeout specified in the request URL - {why}")))?;
    let nanos = coxswain_api::time::parse_duration(asked).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    Ok(if nanos == 0 { longest } else { longest.min(Duration::from_nanos(nanos)) })
}

/// `299 - "text"` with the text quoted as RFC 7234 has it.
fn warning_header(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    format!("299 - \"{quoted}\"")
}

/// The path as Go's `URL.Path` has it.
fn percent_decoded_path(path: &str) -> String {
    if !path.contains('%') {
        return path.to_owned();
    }
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |i: usize| bytes.get(i).and_then(|b| (*b as char).to_digit(16));
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accept = headers.get(http::header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|e| {
        let mut pieces = e.split(';').map(str::trim);
        pieces.next() == Some("gzip") && !pieces.any(|p| p == "q=0")
    })
}

/// Answers below this are not worth compressing (upstream: `defaultGzipThresholdBytes`).
const GZIP_MIN: usize = 128 * 1024;

fn compressed(answer: Answer) -> Answer {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use futures::StreamExt;
    use std::io::Write;
    let as_it_is = answer.extensions().get::<NotCompressed>().is_some();
    let small = matches!(answer.body(), Body::Full(b) if b.len() < GZIP_MIN) || matches!(answer.body(), Body::Empty);
    if as_it_is || small || answer.headers().contains_key(http::header::CONTENT_ENCODING) {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    parts.headers.insert(http::header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(http::header::VARY, HeaderValue::from_static("Accept-Encoding"));
    let body = match body {
        Body::Full(bytes) => {
            let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::new(1));
            encoder.write_all(&bytes).expect("writing to memory does not fail");
            Body::Full(encoder.finish().expect("writing to memory does not fail").into())
        }
        Body::Stream(stream) => {
            let encoder = GzEncoder::new(Vec::new(), Compression::new(1));
            let pieces = futures::stream::unfold(Some((stream, encoder)), |state| async move {
                let (mut stream, mut encoder) = state?;
                match stream.next().await {
                    Some(Ok(piece)) => {
                        if let Err(e) = encoder.write_all(&piece) {
                            return Some((Err(e), None));
                        }
                        let out = std::mem::take(encoder.get_mut());
                        Some((Ok(Bytes::from(out)), Some((stream, encoder))))
                    }
                    Some(Err(e)) => Some((Err(e), None)),
                    None => Some((encoder.finish().map(Bytes::from), None)),
                }
            });
            // The encoder keeps text back; an empty piece would end an HTTP/1 body.
            Body::Stream(Box::pin(pieces.filter(|p| {
                let keep = !matches!(p, Ok(bytes) if bytes.is_empty());
                async move { keep }
            })))
        }
        Body::List(list) => Body::CompressedList(Box::new(list.compressed())),
        other => other,
    };
    Answer::from_parts(parts, body)
}

/// Marks an answer that is not to be compressed: a stream that must reach the client piece by piece, or what is compressed already.
#[derive(Clone, Copy)]
pub struct NotCompressed;
