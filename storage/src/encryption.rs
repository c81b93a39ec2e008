//! Encryption at rest: what lies between the values of the API server and the bytes in the store (upstream:
//! `apiserver/pkg/storage/value`).
//!
//! The API server asks for the transformer of a resource and has it seal what is written and open what is read. The
//! bytes that come of it are upstream's, prefix and all, so that either server reads what the other wrote.

use async_trait::async_trait;
use bytes::Bytes;

/// A value that cannot be opened or sealed. The text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TransformError {
    pub message: String,
    /// The name of the gRPC code if a key service refused, for the metrics.
    pub code: Option<&'static str>,
}

impl TransformError {
    pub fn new(message: impl Into<String>) -> TransformError {
        TransformError { message: message.into(), code: None }
    }
}

/// A value as it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub value: Bytes,
    /// Not sealed as it would be now: it should be written again even if it does not change.
    pub stale: bool,
}

/// Seals values of one resource for the store, and opens them.
#[async_trait]
pub trait Transformer: Send + Sync + 'static {
    /// `key` is where the value lies: a value moved elsewhere does not open there, as far as the method authenticates.
    async fn open(&self, value: Bytes, key: &str) -> Result<Opened, TransformError>;

    async fn seal(&self, value: Bytes, key: &str) -> Result<Bytes, TransformError>;
}

/// Gives every resource its transformer.
pub trait Transformers: Send + Sync + 'static {
    fn for_resource(&self, group: &str, resource: &str) -> std::sync::Arc<dyn Transformer>;
}
