//! Authorization: what a caller may do (upstream: `apiserver/pkg/authorization`).

use crate::request::{RequestInfo, User};
use async_trait::async_trait;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// Stops the chain.
    Deny(String),
    /// The next authorizer decides; the text goes into the refusal if none allows.
    NoOpinion(String),
}

#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    async fn authorize(&self, user: &User, request: &RequestInfo) -> Decision;
}
