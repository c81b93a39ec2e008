//! `/exec`, `/attach` and `/run` (upstream: `kubelet/server/server.go`, `cri-streaming`): the runtime serves the streams, the kubelet brings
//! client and runtime together. SPDY is passed through byte by byte; WebSocket is translated.

use super::channels::{self, Streams};
use super::{Body, Query, body, error, spdy, text, websocket};
use crate::cri::v1;
use crate::kubelet::Kubelet;
use crate::pod::{self, PodExt};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long `/run` lets a command take, none if zero.
const RUN_TIMEOUT: Duration = Duration::ZERO;
const REFUSAL_BYTES_MAX: u64 = 64 << 10;

/// The running container that is meant. `lacking` is what is said where there is none.
fn running(
    kubelet: &Kubelet,
    namespace: &str,
    pod_name: &str,
    container: &str,
    lacking: impl Fn() -> String,
) -> Result<String, Response<Body>> {
    let Some(handle) = kubelet.find(namespace, pod_name) else {
        return Err(error(StatusCode::NOT_FOUND, "pod does not exist"));
    };
    let found = handle.runtime().find(container).filter(|c| c.is_running()).map(|c| c.id.clone());
    found.ok_or_else(|| error(StatusCode::INTERNAL_SERVER_ERROR, lacking()))
}

fn not_found(container: &str) -> String {
    format!("container not found ({container:?})")
}

fn streams(query: &Query) -> Result<Streams, Response<Body>> {
    let flag = |old: &str, new: &str| query.flag(old) || query.flag(new);
    let tty = query.flag("tty");
    let streams = Streams {
        stdin: flag("input", "stdin"),
        stdout: flag("output", "stdout"),
        stderr: flag("error", "stderr") && !tty,
        tty,
    };
    if !streams.stdin && !streams.stdout && !streams.stderr {
        return Err(error(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(streams)
}

pub(super) async fn exec(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Response<Body> {
    let found = running(kubelet, namespace, pod, container, || not_found(container));
    let (id, streams) = match found.and_then(|id| Ok((id, streams(query)?))) {
        Ok(both) => both,
        Err(refusal) => return refusal,
    };
    let ask = v1::ExecRequest {
        container_id: id,
        cmd: query.all("command"),
        tty: streams.tty,
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
    };
    match kubelet.runtime.exec(ask).await {
        Ok(url) => bring_together(url, streams, request).await,
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, e),
    }
}

pub(super) async fn attach(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Response<Body> {
    let lacking = || format!("container {container} not found in pod {pod}_{namespace}");
    let found = running(kubelet, namespace, pod, container, lacking);
    let (id, streams) = match found.and_then(|id| Ok((id, streams(query)?))) {
        Ok(both) => both,
        Err(refusal) => return refusal,
    };
    // Whether there is a terminal was decided when the container was made.
    let tty = kubelet.find(namespace, pod).is_some_and(|handle| {
        let pod = handle.pod();
        let own = pod::long_lived_containers(pod.spec())
            .find(|c| c.container.name == container)
            .and_then(|c| c.container.tty);
        let ephemeral =
            || pod::ephemeral_containers(pod.spec()).iter().find(|c| c.name == container).and_then(|c| c.tty);
        own.or_else(ephemeral) == Some(true)
    });
    let streams = Streams { tty, stderr: streams.stderr && !tty, ..streams };
    let ask = v1::AttachRequest {
        container_id: id,
        stdin: streams.stdin,
        tty,
        stdout: streams.stdout,
        stderr: streams.stderr,
    };
    match kubelet.runtime.attach(ask).await {
        Ok(url) => bring_together(url, streams, request).await,
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, e),
    }
}

async fn bring_together(url: String, streams: Streams, request: Request<Incoming>) -> Response<Body> {
    if websocket::is_spdy(request.headers()) {
        return pass_through(url, request).await;
    }
    if !websocket::is_websocket(request.headers()) {
        return error(StatusCode::BAD_REQUEST, "Upgrade request required");
    }
    let offered = websocket::protocols(request.headers(), "sec-websocket-protocol");
    let chosen =
        channels::PROTOCOLS.into_iter().find(|p| offered.iter().any(|o| o == p) || p.is_empty() && offered.is_empty());
    let Some(protocol) = chosen else {
        return error(
            StatusCode::FORBIDDEN,
            format!("unable to upgrade: requested protocols {offered:?} are not supported"),
        );
    };
    let upgraded = match spdy::upgrade(&url, &["v4.channel.k8s.io".to_string()]).await {
        Ok(upgraded) if upgraded.status == StatusCode::SWITCHING_PROTOCOLS => upgraded,
        Ok(refused) => return refusal(refused).await,
        Err(e) => return error(StatusCode::BAD_GATEWAY, format!("error dialing the container runtime: {e}")),
    };
    let name = (!protocol.is_empty()).then_some(protocol);
    websocket::accept(request, name, move |socket| channels::serve(socket, upgraded, streams, protocol.to_string()))
}

/// What a runtime said in place of agreeing.
async fn refusal(mut refused: spdy::Upgraded) -> Response<Body> {
    let mut rest = refused.rest.to_vec();
    let length = refused.headers.get("content-length").and_then(|v| v.to_str().ok()?.parse::<u64>().ok()).unwrap_or(0);
    let missing = length.min(REFUSAL_BYTES_MAX).saturating_sub(rest.len() as u64);
    let _ = (&mut refused.stream).take(missing).read_to_end(&mut rest).await;
    text(refused.status, String::from_utf8_lossy(&rest).into_owned())
}

/// Gives the client the runtime's own connection.
pub(super) async fn pass_through(url: String, mut request: Request<Incoming>) -> Response<Body> {
    let protocols = websocket::protocols(request.headers(), "x-stream-protocol-version");
    let upgraded = match spdy::upgrade(&url, &protocols).await {
        Ok(upgraded) if upgraded.status == StatusCode::SWITCHING_PROTOCOLS => upgraded,
        Ok(refused) => return refusal(refused).await,
        Err(e) => return error(StatusCode::BAD_GATEWAY, format!("error dialing the container runtime: {e}")),
    };
    let headers = upgraded.headers.clone();
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(client) = client.await else { return };
        let mut client = TokioIo::new(client);
        copy(&mut client, upgraded.stream, upgraded.rest).await;
    });
    switching(&headers)
}

fn switching(from: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(body(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("upgrade", HeaderValue::from_static("SPDY/3.1"));
    headers.insert("connection", HeaderValue::from_static("Upgrade"));
    for value in from.get_all("x-stream-protocol-version") {
        headers.append("x-stream-protocol-version", value.clone());
    }
    response
}

async fn copy<S>(client: &mut S, mut runtime: tokio::net::TcpStream, rest: Bytes)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    if client.write_all(&rest).await.is_ok() {
        let _ = tokio::io::copy_bidirectional(client, &mut runtime).await;
    }
}

pub(super) async fn run(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let id = match running(kubelet, namespace, pod, container, || not_found(container)) {
        Ok(id) => id,
        Err(refusal) => return refusal,
    };
    // Upstream takes one parameter and splits it at spaces.
    let command: Vec<String> =
        query.get("cmd").unwrap_or_default().split(' ').filter(|w| !w.is_empty()).map(str::to_string).collect();
    match kubelet.runtime.exec_sync(&id, &command, RUN_TIMEOUT).await {
        Ok(answer) if answer.exit_code == 0 => {
            text(StatusCode::OK, String::from_utf8_lossy(&[answer.stdout, answer.stderr].concat()).into_owned())
        }
        Ok(answer) => {
            let output = String::from_utf8_lossy(&[answer.stdout, answer.stderr].concat()).into_owned();
            error(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("command '{}' exited with {}: {output}", command.join(" "), answer.exit_code),
            )
        }
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, e),
    }
}
