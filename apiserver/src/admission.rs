//! Admission: what may change or refuse a write after it was decoded and before it is stored
//! (upstream: `apiserver/pkg/admission` and `plugin/pkg/admission`).
//!
//! The order in [`chain`](crate::admission) is the order of execution: first every `admit`, then, after validation,
//! every `validate`.

use crate::request::Context;
use async_trait::async_trait;
use coxswain_api::catalogue::ResourceType;
use coxswain_api::{Status, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// A write as admission sees it (upstream: `admission.Attributes`). Objects are in the version of the request.
pub struct Attributes<'a> {
    pub ctx: &'a Context,
    pub operation: Operation,
    pub resource: &'a ResourceType,
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Empty on create with `generateName`.
    pub name: &'a str,
    /// The new object; none on delete. For connect, the options (such as `PodExecOptions`).
    pub object: Option<&'a mut Value>,
    /// The stored object; none on create.
    pub old: Option<&'a Value>,
    /// `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions`.
    pub options: &'a Value,
}

/// One admission plugin.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// Upstream's name, as `--enable-admission-plugins` takes it.
    fn name(&self) -> &'static str;

    fn handles(&self, operation: Operation) -> bool;

    /// May change `attributes.object`, and may refuse.
    async fn admit(&self, _attributes: &mut Attributes<'_>) -> Result<(), Status> {
        Ok(())
    }

    /// May only refuse.
    async fn validate(&self, _attributes: &Attributes<'_>) -> Result<(), Status> {
        Ok(())
    }
}
