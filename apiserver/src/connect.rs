//! Connections to pods, services and nodes through the server: logs, exec, attach, port forwarding and proxies
//! (upstream: `pkg/registry/core/pod/rest`, `…/node/rest`, `…/service/proxy.go` and `apimachinery/pkg/util/proxy`).
//!
//! The server finds where to go, checks nothing of what is said there, and passes bytes both ways. An upgraded connection
//! (SPDY/3.1 or WebSocket) is a tunnel from the moment the other side agreed.

pub mod dial;
pub mod target;

use crate::front::{Front, Incoming, NotCompressed, RequestBody};
use crate::resources::Served;
use crate::respond::{self, Answer, Body, refusal};
use bytes::Bytes;
use coxswain_api::Status;
pub use dial::{Dialer, KubeletConfig};
use futures::StreamExt;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use target::Target;

/// No more of a kubelet's reason is read.
const REFUSAL_BYTES_MAX: usize = 50_000;

/// Headers that belong to one connection and are not passed on.
const HOP_BY_HOP: [HeaderName; 8] = [
    HeaderName::from_static("connection"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("te"),
    HeaderName::from_static("trailer"),
    HeaderName::from_static("transfer-encoding"),
];

impl Front {
    /// Serves a connecting subresource.
    pub(crate) async fn connect(self: Arc<Self>, _served: Arc<Served>, mut incoming: Incoming) -> Answer {
        let accepted = incoming.accepted_or_json();
        let target = match target::find(&self, &incoming).await {
            Ok(Some(target)) => target,
            // The log of a pod that no node has yet.
            Ok(None) => return respond::no_content(),
            Err(status) => return refusal(&status, accepted),
        };
        let upgrades = is_upgrade(&incoming.headers);
        if target.must_upgrade && !upgrades {
            return refusal(&Status::bad_request("Upgrade request required"), accepted);
        }
        let is_log = target.is_kubelet && target.is_get;
        let answer = match self.forward(&mut incoming, target, upgrades).await {
            Ok(answer) if is_log && !answer.status().is_success() => Err(log_refusal(&incoming, answer).await),
            other => other,
        };
        match answer {
            Ok(mut answer) => {
                answer.extensions_mut().insert(NotCompressed);
                answer
            }
            Err(status) => refusal(&status, accepted),
        }
    }

    async fn forward(&self, incoming: &mut Incoming, target: Target, upgrades: bool) -> Result<Answer, Status> {
        let failed = |e: &dyn std::fmt::Display| {
            // As upstream's proxy answers when the other side cannot be reached.
            let message = format!("error trying to reach service: {e}");
            if target.is_kubelet { Status::internal(e) } else { Status::unavailable(message) }
        };
        let stream = self.dialer.dial(&target).await.map_err(|e| failed(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, RequestBody>(TokioIo::new(stream))
            .await
            .map_err(|e| failed(&e))?;
        let connection = tokio::spawn(async move { connection.with_upgrades().await });

        let mut request = Request::new(incoming.take_body());
        *request.method_mut() = if target.is_get { http::Method::GET } else { incoming.method.clone() };
        *request.uri_mut() = target.path_and_query.parse().map_err(|e| Status::bad_request(format!("{e}")))?;
        let headers = request.headers_mut();
        headers.clone_from(&incoming.headers);
        for name in HOP_BY_HOP {
            headers.remove(name);
        }
        if upgrades {
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            if let Some(protocol) = incoming.headers.get(UPGRADE) {
                headers.insert(UPGRADE, protocol.clone());
            }
        } else {
            headers.remove(UPGRADE);
        }
        if let Ok(host) = HeaderValue::from_str(&target.host) {
            headers.insert(HOST, host);
        }
        if target.is_proxy {
            forwarded(headers, incoming);
        }
        let mut response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let far = hyper::upgrade::on(&mut response);
            let near = incoming.extensions.remove::<hyper::upgrade::OnUpgrade>();
            let Some(near) = near else {
                return Err(Status::bad_request("this transport cannot be upgraded"));
            };
            tokio::spawn(async move {
                if let (Ok(near), Ok(far)) = tokio::join!(near, far) {
                    let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
                connection.abort();
            });
            let (parts, _) = response.into_parts();
            return Ok(Answer::from_parts(parts, Body::Empty));
        }
        let (mut parts, body) = response.into_parts();
        for name in HOP_BY_HOP {
            parts.headers.remove(name);
        }
        if target.is_proxy {
            target.rewrite_location(&mut parts.headers);
        }
        // The sender must live as long as the body is read.
        let stream = body.into_data_stream().map(move |piece| {
            let _alive = &sender;
            piece.map_err(std::io::Error::other)
        });
        Ok(Answer::from_parts(parts, Body::Stream(Box::pin(stream))))
    }
}

/// Why there is no log: the kubelet says it in plain text, clients read a `Status`
/// (upstream: `generic/rest/response_checker.go`).
async fn log_refusal(incoming: &Incoming, answer: Answer) -> Status {
    let code = answer.status();
    let mut text = Vec::new();
    if let Body::Stream(mut stream) = answer.into_body() {
        while let Some(Ok(piece)) = stream.next().await {
            text.extend_from_slice(&piece);
            if text.len() >= REFUSAL_BYTES_MAX {
                text.truncate(REFUSAL_BYTES_MAX);
                break;
            }
        }
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let name = &incoming.info().name;
    match code {
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::NOT_FOUND => {
            Status::new(404, "NotFound", format!("the server could not find the requested resource ( pods/log {name})"))
        }
        code => Status::new(code.as_u16(), "Unknown", text),
    }
}

/// Tells the other side by which way the request came.
fn forwarded(headers: &mut HeaderMap, incoming: &Incoming) {
    if let Ok(uri) = HeaderValue::from_str(incoming.uri.path()) {
        headers.insert(HeaderName::from_static("x-forwarded-uri"), uri);
    }
    if let Some(host) = incoming.headers.get(HOST) {
        headers.insert(HeaderName::from_static("x-forwarded-host"), host.clone());
    }
    headers.insert(HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static("https"));
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let tokens = |name: HeaderName| {
        let all: Vec<String> = headers
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .map(|t| t.trim().to_ascii_lowercase())
            .collect();
        all
    };
    tokens(CONNECTION).iter().any(|t| t == "upgrade") && headers.contains_key(UPGRADE)
}

/// A body with nothing in it, for requests that need one.
pub fn empty_body() -> RequestBody {
    RequestBody::new(http_body_util::Empty::<Bytes>::new().map_err(|never| match never {}))
}
