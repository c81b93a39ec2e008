//! `/portForward` (upstream: `cri-streaming/pkg/streaming/portforward`): SPDY passed through, SPDY within WebSocket (as kubectl does now), and the
//! older WebSocket channels, two a port.

use super::channels::Encoding;
use super::spdy::{self, Connection};
use super::websocket::{self, Socket};
use super::{Body, Query, error, streaming};
use crate::cri::v1;
use crate::kubelet::Kubelet;
use futures::stream::SelectAll;
use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::Message;

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const SPDY_PROTOCOL: &str = "portforward.k8s.io";
const CHANNELS: [&str; 2] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
const PIECE_BYTES: usize = 32 << 10;

pub(super) async fn answer(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(handle) = kubelet.find(namespace, pod) else {
        return error(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let Some(sandbox) = handle.runtime().ready_sandbox().map(|s| s.id.clone()) else {
        return error(StatusCode::INTERNAL_SERVER_ERROR, format!("failed to find sandbox for pod {pod:?}"));
    };
    let ports: Vec<i32> = ["port", "ports"]
        .iter()
        .flat_map(|n| query.all(n))
        .flat_map(|p| p.split(',').map(str::to_string).collect::<Vec<_>>())
        .filter_map(|p| p.parse().ok())
        .collect();
    let ask = v1::PortForwardRequest { pod_sandbox_id: sandbox, port: ports.clone() };
    let url = match kubelet.runtime.port_forward(ask).await {
        Ok(url) => url,
        Err(e) => return error(StatusCode::INTERNAL_SERVER_ERROR, e),
    };
    if websocket::is_spdy(request.headers()) {
        return streaming::pass_through(url, request).await;
    }
    if !websocket::is_websocket(request.headers()) {
        return error(StatusCode::BAD_REQUEST, "Upgrade request required");
    }
    let offered = websocket::protocols(request.headers(), "sec-websocket-protocol");
    let tunnel = offered.iter().any(|o| o == TUNNEL);
    let channels = CHANNELS.into_iter().find(|p| offered.iter().any(|o| o == p));
    if !tunnel && channels.is_none() {
        return error(
            StatusCode::FORBIDDEN,
            format!("unable to upgrade: requested protocols {offered:?} are not supported"),
        );
    }
    if !tunnel && ports.is_empty() {
        return error(StatusCode::BAD_REQUEST, "query parameter \"port\" is required");
    }
    let upgraded = match spdy::upgrade(&url, &[SPDY_PROTOCOL.to_string()]).await {
        Ok(upgraded) if upgraded.status == StatusCode::SWITCHING_PROTOCOLS => upgraded,
        Ok(refused) => {
            return error(
                StatusCode::BAD_GATEWAY,
                format!("the container runtime refused to forward: {}", refused.status),
            );
        }
        Err(e) => return error(StatusCode::BAD_GATEWAY, format!("error dialing the container runtime: {e}")),
    };
    if tunnel {
        return websocket::accept(request, Some(TUNNEL), move |socket| carry_tunnel(socket, upgraded));
    }
    let protocol = channels.unwrap_or_default();
    websocket::accept(request, channels, move |socket| async move {
        if let Err(error) = carry_channels(socket, upgraded, &ports, Encoding::of(protocol)).await {
            tracing::debug!(%error, "a forwarded port ended early");
        }
    })
}

/// The messages' bytes are the SPDY connection.
async fn carry_tunnel(socket: Socket, upgraded: spdy::Upgraded) {
    let (mut sink, mut source) = socket.split();
    let (mut read, mut write) = upgraded.stream.into_split();
    let outward = async {
        let mut piece = vec![0; PIECE_BYTES];
        if !upgraded.rest.is_empty() && sink.send(Message::binary(upgraded.rest)).await.is_err() {
            return;
        }
        while let Ok(count @ 1..) = read.read(&mut piece).await {
            if sink.send(Message::binary(piece[..count].to_vec())).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    };
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            let broken = match message {
                Message::Binary(data) => write.write_all(&data).await.is_err(),
                Message::Close(_) => true,
                _ => false,
            };
            if broken {
                return;
            }
        }
    };
    tokio::select! {
        () = outward => {}
        () = inward => {}
    }
}

/// Channel `2 i` carries the data of the i-th port, the next one its errors. Each begins with the port's number.
async fn carry_channels(socket: Socket, upgraded: spdy::Upgraded, ports: &[i32], encoding: Encoding) -> io::Result<()> {
    let connection = Connection::start(upgraded);
    let (mut sink, mut source) = socket.split();
    let broken = |e: tokio_tungstenite::tungstenite::Error| io::Error::other(e);
    let mut incoming = SelectAll::new();
    let mut data_streams = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let (port_text, request_id) = (port.to_string(), i.to_string());
        let header = |kind: &'static str| {
            [("streamtype", kind), ("port", port_text.as_str()), ("requestid", request_id.as_str())]
        };
        let errors = connection.open(&header("error")).await?;
        let data = connection.open(&header("data")).await?;
        data_streams.push(data.id);
        for (channel, stream) in [(2 * i, data), (2 * i + 1, errors)] {
            let channel = channel as u8;
            sink.send(encoding.encode(channel, &(*port as u16).to_le_bytes())).await.map_err(broken)?;
            incoming.push(ReceiverStream::new(stream.data).map(move |data| (channel, data)).boxed());
        }
    }
    loop {
        tokio::select! {
            next = incoming.next() => match next {
                Some((channel, data)) => sink.send(encoding.encode(channel, &data)).await.map_err(broken)?,
                None => {
                    let _ = sink.close().await;
                    return Ok(());
                }
            },
            message = source.next() => match message {
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Ok(message)) => {
                    if let Some((channel, data)) = encoding.decode(&message)
                        && channel % 2 == 0
                        && let Some(id) = data_streams.get(usize::from(channel / 2))
                    {
                        connection.send(*id, &data).await?;
                    }
                }
                Some(Err(e)) => return Err(broken(e)),
            },
        }
    }
}
