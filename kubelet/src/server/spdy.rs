//! The client's side of SPDY/3.1 as container runtimes serve streams over it, and plain passing through of it.
//!
//! Only what is needed: we open all streams, and nothing in the headers that a runtime sends matters to us, so they are not decompressed.
//! What we send is a valid zlib stream of stored blocks, for the same reason.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const FRAMES_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 64 << 10;
const FRAME_BYTES_MAX: usize = 1 << 20;
const FIN: u8 = 1;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// A runtime's answer to a request to upgrade, and the connection if it agreed.
pub(super) struct Upgraded {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub stream: TcpStream,
    /// What came after the head already.
    pub rest: Bytes,
}

/// Asks a runtime's streaming URL for SPDY.
pub(super) async fn upgrade(url: &str, protocols: &[String]) -> io::Result<Upgraded> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let uri: http::Uri = url.parse().map_err(|e| bad(format!("streaming URL {url:?}: {e}")))?;
    let host = uri.host().ok_or_else(|| bad(format!("streaming URL {url:?} has no host")))?;
    let port = uri.port_u16().unwrap_or(80);
    let mut stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    stream.set_nodelay(true)?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n"
    );
    for protocol in protocols {
        head.push_str(&format!("X-Stream-Protocol-Version: {protocol}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut buffer = BytesMut::new();
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if buffer.len() > HEAD_BYTES_MAX {
            return Err(bad("the answer's head is too long".into()));
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = buffer.split_to(end);
    let text = String::from_utf8_lossy(&head);
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse::<u16>().ok());
    let status =
        status.and_then(|s| StatusCode::from_u16(s).ok()).ok_or_else(|| bad("the answer has no status".into()))?;
    let mut headers = HeaderMap::new();
    for line in lines {
        if let Some((name, value)) = line.split_once(':')
            && let (Ok(name), Ok(value)) = (HeaderName::try_from(name.trim()), HeaderValue::try_from(value.trim()))
        {
            headers.append(name, value);
        }
    }
    Ok(Upgraded { status, headers, stream, rest: buffer.freeze() })
}

/// One connection with many streams. Dropping it ends them all.
pub(super) struct Connection {
    frames: mpsc::Sender<Bytes>,
    streams: Arc<Mutex<HashMap<u32, mpsc::Sender<Bytes>>>>,
    next_id: AtomicU32,
    header_begun: AtomicBool,
}

/// A stream's incoming data; it ends when the other side closes its half.
pub(super) struct Stream {
    pub id: u32,
    pub data: mpsc::Receiver<Bytes>,
}

impl Connection {
    pub(super) fn start(upgraded: Upgraded) -> Self {
        let (read, write) = upgraded.stream.into_split();
        let (frames, outgoing) = mpsc::channel(FRAMES_MAX);
        let streams = Arc::new(Mutex::new(HashMap::new()));
        tokio::spawn(write_frames(write, outgoing));
        tokio::spawn(read_frames(upgraded.rest.chain_with(read), streams.clone(), frames.clone()));
        Connection { frames, streams, next_id: AtomicU32::new(1), header_begun: AtomicBool::new(false) }
    }

    /// Opens a stream. Streams are opened one after the other by one task, as the header blocks are one compressed stream.
    pub(super) async fn open(&self, headers: &[(&str, &str)]) -> io::Result<Stream> {
        let id = self.next_id.fetch_add(2, Ordering::Relaxed);
        let (sender, data) = mpsc::channel(FRAMES_MAX);
        self.streams.lock().insert(id, sender);
        let block = header_block(headers, !self.header_begun.swap(true, Ordering::Relaxed));
        let mut frame = BytesMut::new();
        frame.put_u16(0x8003);
        frame.put_u16(SYN_STREAM);
        frame.put_u32(10 + block.len() as u32);
        frame.put_u32(id);
        frame.put_u32(0);
        frame.put_u16(0);
        frame.put_slice(&block);
        self.frames.send(frame.freeze()).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(Stream { id, data })
    }

    pub(super) async fn send(&self, id: u32, data: &[u8]) -> io::Result<()> {
        for piece in data.chunks(32 << 10) {
            self.data_frame(id, piece, 0).await?;
        }
        Ok(())
    }

    /// Closes our half of a stream.
    pub(super) async fn finish(&self, id: u32) -> io::Result<()> {
        self.data_frame(id, &[], FIN).await
    }

    async fn data_frame(&self, id: u32, data: &[u8], flags: u8) -> io::Result<()> {
        let mut frame = BytesMut::with_capacity(8 + data.len());
        frame.put_u32(id);
        frame.put_u32(u32::from(flags) << 24 | data.len() as u32);
        frame.put_slice(data);
        self.frames.send(frame.freeze()).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A name-value block in stored blocks. An empty one at the end makes the receiver's decompressor hand out what it has.
fn header_block(headers: &[(&str, &str)], first: bool) -> Vec<u8> {
    let mut plain = Vec::new();
    plain.put_u32(headers.len() as u32);
    for (name, value) in headers {
        plain.put_u32(name.len() as u32);
        plain.put_slice(name.as_bytes());
        plain.put_u32(value.len() as u32);
        plain.put_slice(value.as_bytes());
    }
    let mut out = Vec::new();
    if first {
        out.put_slice(&[0x78, 0x01]);
    }
    for block in [plain.as_slice(), &[]] {
        out.put_u8(0);
        out.put_u16_le(block.len() as u16);
        out.put_u16_le(!(block.len() as u16));
        out.put_slice(block);
    }
    out
}

trait ChainWith {
    fn chain_with<R: AsyncRead + Unpin>(self, read: R) -> impl AsyncRead + Unpin;
}

impl ChainWith for Bytes {
    fn chain_with<R: AsyncRead + Unpin>(self, read: R) -> impl AsyncRead + Unpin {
        io::Cursor::new(self).chain(read)
    }
}

async fn write_frames(mut write: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Bytes>) {
    while let Some(frame) = frames.recv().await {
        if write.write_all(&frame).await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}

/// Ends with the connection; all streams' data ends then too.
async fn read_frames(
    mut read: impl AsyncRead + Unpin,
    streams: Arc<Mutex<HashMap<u32, mpsc::Sender<Bytes>>>>,
    frames: mpsc::Sender<Bytes>,
) {
    // The sender is kept weakly, or the writer would never see the connection's owner go.
    let frames = {
        let weak = frames.downgrade();
        drop(frames);
        weak
    };
    let mut head = [0; 8];
    while read.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if length > FRAME_BYTES_MAX * 16 {
            break;
        }
        let mut payload = vec![0; length];
        if read.read_exact(&mut payload).await.is_err() {
            break;
        }
        let id_of = |bytes: &[u8]| bytes.first_chunk::<4>().map_or(0, |b| u32::from_be_bytes(*b) & 0x7fff_ffff);
        if head[0] & 0x80 == 0 {
            let id = id_of(&head);
            let sender = streams.lock().get(&id).cloned();
            if let Some(sender) = sender.filter(|_| !payload.is_empty()) {
                // A reader that is slow slows the whole connection down; one that is gone does not.
                let _ = sender.send(payload.into()).await;
            }
            if head[4] & FIN != 0 {
                streams.lock().remove(&id);
            }
            continue;
        }
        match u16::from_be_bytes([head[2], head[3]]) {
            RST_STREAM => {
                streams.lock().remove(&id_of(&payload));
            }
            PING => {
                if let Some(frames) = frames.upgrade() {
                    let _ = frames.send([&head[..], &payload].concat().into()).await;
                }
            }
            GOAWAY => break,
            _ => {}
        }
    }
    streams.lock().clear();
}

/// Reads all frames of these bytes, with two streams open that nobody reads from for long. For fuzzing.
pub(super) fn read_all(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    runtime.block_on(async {
        let (frames, mut outgoing) = mpsc::channel(FRAMES_MAX);
        let mut opened = Vec::new();
        let streams: HashMap<u32, mpsc::Sender<Bytes>> = [1, 3]
            .map(|id| {
                let (sender, data) = mpsc::channel(FRAMES_MAX);
                opened.push(data);
                (id, sender)
            })
            .into();
        let mut received = 0;
        let drain = async {
            for data in &mut opened {
                while let Some(piece) = data.recv().await {
                    received += piece.len();
                }
            }
        };
        let answers = async { while outgoing.recv().await.is_some() {} };
        tokio::join!(read_frames(bytes, Arc::new(Mutex::new(streams)), frames), drain, answers);
        assert!(received <= bytes.len(), "more came out than went in");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_blocks_are_zlib_streams() {
        let mut stream = header_block(&[("streamtype", "stdin")], true);
        stream.extend(header_block(&[("streamtype", "error")], false));
        assert_eq!(&stream[..2], [0x78, 0x01]);
        // Stored blocks: no flags, length, its complement, bytes.
        let length = u16::from_le_bytes([stream[3], stream[4]]);
        assert_eq!(length, 4 + 4 + 10 + 4 + 5);
        assert_eq!(&stream[7 + length as usize..][..5], [0, 0, 0, 0xff, 0xff]);
    }
}
