//! How parts of the server other than the pipeline read and write objects: admission, authorization, allocators.
//!
//! Reads come from the watch cache. Writes take the whole pipeline under an identity of their own: even inside the server
//! there is no private door.

use crate::request::User;
use async_trait::async_trait;
use coxswain_api::{Status, Value};
use std::sync::Arc;

/// The server's own view of its objects, in their storage version, defaults applied.
#[async_trait]
pub trait Objects: Send + Sync + 'static {
    /// From the watch cache; it may lag behind the store by the time a change takes to arrive.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// From the store itself: sees every acknowledged write.
    async fn get_consistent(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, Status>;

    /// From the watch cache, in key order; of one namespace or of all.
    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>>;

    /// A number that changes whenever any object of the resource does; readers keep what they derived beside it and
    /// derive again when it moved.
    fn version(&self, group: &str, resource: &str) -> u64;

    /// Sends a request through the whole pipeline as `user`.
    async fn request(&self, user: &User, request: http::Request<bytes::Bytes>) -> http::Response<bytes::Bytes>;
}
