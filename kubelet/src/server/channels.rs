//! Streams of exec and attach over WebSocket: the first byte of a message is its channel (upstream: `wsstream.Conn`,
//! `cri-streaming/pkg/streaming/remotecommand/websocket.go`). Towards the runtime they are SPDY streams.

use super::spdy::{Connection, Stream, Upgraded};
use super::websocket::Socket;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{SelectAll, SplitSink};
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use std::io;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::Message;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// A v5 client closes a channel by this one.
const CLOSE: u8 = 255;
const STATUS_BYTES_MAX: usize = 64 << 10;

/// Subprotocols in the server's order of preference.
pub(super) const PROTOCOLS: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// How messages are written.
#[derive(Clone, Copy)]
pub(super) struct Encoding {
    pub base64: bool,
}

impl Encoding {
    pub(super) fn of(protocol: &str) -> Self {
        Encoding { base64: protocol.contains("base64") }
    }

    pub(super) fn encode(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let mut text = char::from(b'0' + channel).to_string();
            text.push_str(&STANDARD.encode(data));
            Message::text(text)
        } else {
            let mut bytes = Vec::with_capacity(data.len() + 1);
            bytes.push(channel);
            bytes.extend_from_slice(data);
            Message::binary(bytes)
        }
    }

    pub(super) fn decode(self, message: &Message) -> Option<(u8, Bytes)> {
        let data = match message {
            Message::Binary(data) => data.clone(),
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            _ => return None,
        };
        let channel = *data.first()?;
        if self.base64 {
            let decoded = STANDARD.decode(&data[1..]).ok()?;
            return Some((channel.wrapping_sub(b'0'), decoded.into()));
        }
        Some((channel, data.slice(1..)))
    }
}

/// Carries a command's streams until it ends or the client goes.
pub(super) async fn serve(socket: Socket, runtime: Upgraded, streams: Streams, protocol: String) {
    let encoding = Encoding::of(&protocol);
    // Before v4 the error channel had plain text.
    let verdict = match protocol.get(..2) {
        Some("v5") => translated,
        Some("v4") => as_it_is,
        _ => plain,
    };
    if let Err(error) = carry(socket, runtime, streams, encoding, verdict).await {
        tracing::debug!(%error, "a stream ended early");
    }
}

async fn carry(
    socket: Socket,
    runtime: Upgraded,
    streams: Streams,
    encoding: Encoding,
    verdict: fn(&[u8]) -> Vec<u8>,
) -> io::Result<()> {
    let connection = Connection::start(runtime);
    let mut incoming = SelectAll::new();
    let tagged =
        |channel: u8, stream: Stream| ReceiverStream::new(stream.data).map(move |data| (channel, data)).boxed();
    // The runtime waits for exactly the streams of the request, the one for errors always among them.
    incoming.push(tagged(ERROR, connection.open(&[("streamtype", "error")]).await?));
    let stdin = if streams.stdin { Some(connection.open(&[("streamtype", "stdin")]).await?.id) } else { None };
    if streams.stdout {
        incoming.push(tagged(STDOUT, connection.open(&[("streamtype", "stdout")]).await?));
    }
    if streams.stderr && !streams.tty {
        incoming.push(tagged(STDERR, connection.open(&[("streamtype", "stderr")]).await?));
    }
    let resize = if streams.tty { Some(connection.open(&[("streamtype", "resize")]).await?.id) } else { None };

    let (mut sink, mut source) = socket.split();
    let broken = |e: tokio_tungstenite::tungstenite::Error| io::Error::other(e);
    // An empty message tells the client that the channels are there.
    sink.send(encoding.encode(if streams.stdout { STDOUT } else { ERROR }, &[])).await.map_err(broken)?;
    let mut status: Vec<u8> = Vec::new();
    loop {
        tokio::select! {
            next = incoming.next() => match next {
                // How it ended is the last word: a client stops listening when it has heard it.
                Some((ERROR, data)) => {
                    let room = STATUS_BYTES_MAX.saturating_sub(status.len());
                    status.extend_from_slice(&data[..data.len().min(room)]);
                }
                Some((channel, data)) => sink.send(encoding.encode(channel, &data)).await.map_err(broken)?,
                None => {
                    let status = verdict(&status);
                    if !status.is_empty() {
                        sink.send(encoding.encode(ERROR, &status)).await.map_err(broken)?;
                    }
                    return close(sink).await;
                }
            },
            message = source.next() => match message {
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Ok(message)) => match encoding.decode(&message) {
                    Some((STDIN, data)) => {
                        if let Some(id) = stdin {
                            connection.send(id, &data).await?;
                        }
                    }
                    Some((RESIZE, data)) => {
                        if let Some(id) = resize {
                            connection.send(id, &data).await?;
                        }
                    }
                    Some((CLOSE, data)) => {
                        if let Some(id) = stdin.filter(|_| data.first() == Some(&STDIN)) {
                            connection.finish(id).await?;
                        }
                    }
                    _ => {}
                },
                Some(Err(e)) => return Err(broken(e)),
            },
        }
    }
}

async fn close(mut sink: SplitSink<Socket, Message>) -> io::Result<()> {
    use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = sink.send(Message::Close(Some(frame))).await;
    let _ = sink.close().await;
    Ok(())
}

fn as_it_is(status: &[u8]) -> Vec<u8> {
    status.to_vec()
}

/// The message of a failed status.
fn plain(status: &[u8]) -> Vec<u8> {
    let status: Value = serde_json::from_slice(status).unwrap_or_default();
    if status["status"] == "Success" { Vec::new() } else { status["message"].as_str().unwrap_or_default().into() }
}

/// Failures of the runtime itself, unlike those of a command, become errors of the one who passes them on (upstream: `streamtranslator.go`).
fn translated(status: &[u8]) -> Vec<u8> {
    let parsed: Value = serde_json::from_slice(status).unwrap_or_default();
    if parsed["status"] != "Failure" || parsed["reason"] == "NonZeroExitCode" {
        return status.to_vec();
    }
    let message = parsed["message"].as_str().unwrap_or_default();
    let error = serde_json::json!({"metadata": {}, "status": "Failure", "message": format!("Internal error occurred: {message}"),
        "reason": "InternalError", "details": {"causes": [{"message": message}]}, "code": 500});
    error.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_the_runtime_are_internal_errors() {
        let exit = br#"{"status":"Failure","reason":"NonZeroExitCode"}"#;
        assert_eq!(translated(exit), exit);
        let failure: Value = serde_json::from_slice(&translated(br#"{"status":"Failure","message":"no"}"#)).unwrap();
        assert_eq!(
            (failure["message"].as_str(), failure["code"].as_i64()),
            (Some("Internal error occurred: no"), Some(500))
        );
    }

    #[test]
    fn messages_name_their_channel() {
        let binary = Encoding { base64: false };
        assert_eq!(binary.encode(1, b"a"), Message::binary(vec![1, b'a']));
        assert_eq!(binary.decode(&Message::binary(vec![255, 0])), Some((CLOSE, Bytes::from_static(&[0]))));
        let text = Encoding { base64: true };
        assert_eq!(text.encode(1, b"a"), Message::text("1YQ=="));
        assert_eq!(text.decode(&Message::text("0YQ==")), Some((0, Bytes::from_static(b"a"))));
    }
}
