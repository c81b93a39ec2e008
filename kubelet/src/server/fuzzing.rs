//! The door through which fuzzing reaches the parsers of streams.

use super::channels::Encoding;
use super::spdy;
use bytes::Bytes;
use tokio_tungstenite::tungstenite::Message;

/// Whatever a runtime sends, reading ends when its bytes end, and no more is held than it sent.
pub fn spdy_frames(bytes: &[u8]) {
    spdy::read_all(bytes);
}

/// A message of a WebSocket: its first byte says whether it is text and in base64.
pub fn channel_message(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let encoding = Encoding { base64: first & 1 == 1 };
    let message = match std::str::from_utf8(rest) {
        Ok(text) if first & 2 == 2 => Message::text(text),
        _ => Message::binary(Bytes::copy_from_slice(rest)),
    };
    if let Some((channel, data)) = encoding.decode(&message)
        && channel <= 9
    {
        assert_eq!(encoding.decode(&encoding.encode(channel, &data)), Some((channel, data)));
    }
}
