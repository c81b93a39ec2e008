//! Authentication: who is asking (upstream: `apiserver/pkg/authentication`).

use crate::request::User;
use async_trait::async_trait;

/// What the connection itself says of the caller.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    pub address: Option<std::net::SocketAddr>,
    /// The certificate chain that the client presented, leaf first, DER. Verified only by an authenticator.
    pub certificates: Vec<Vec<u8>>,
}

/// One way of knowing a caller; they are asked in turn.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// `Ok(None)`: this request carries nothing for this authenticator. `Err`: it does, and it is wrong.
    async fn authenticate(&self, request: &http::request::Parts, peer: &Peer) -> Result<Option<User>, Refused>;
}

/// Why a credential was refused; logged, never sent to the client.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);
