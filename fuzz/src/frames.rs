//! Frames of streams and records of stores.

#[cfg(feature = "kubelet")]
pub(crate) fn spdy_frames(bytes: &[u8]) {
    coxswain_kubelet::server::fuzzing::spdy_frames(bytes);
}

#[cfg(feature = "kubelet")]
pub(crate) fn websocket_channels(bytes: &[u8]) {
    coxswain_kubelet::server::fuzzing::channel_message(bytes);
}

/// A record that can be read is written as it was.
#[cfg(feature = "server")]
pub(crate) fn storage_records(bytes: &[u8]) {
    coxswain_storage::embedded::fuzzing::records(bytes);
}
