//! Devices may be asked for with the rights of an administrator only in namespaces that are marked for it (upstream:
//! `AuthorizedForAdmin`).

use super::status_access;
use crate::registry::pipeline::{Call, Pipeline};
use crate::registry::resource::{Hooks, Taken};
use async_trait::async_trait;
use coxswain_api::field::{Error, Path};
use coxswain_api::{Status, Value};

const LABEL: &str = "resource.kubernetes.io/admin-access";

/// The check of a claim, or of a template of claims, when it is created; what they ask for never changes.
pub(super) struct AdminAccess {
    /// Where the requests are.
    pub requests: &'static str,
}

#[async_trait]
impl Hooks for AdminAccess {
    async fn begin(
        &self,
        pipeline: &Pipeline,
        call: &Call,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Box<dyn Taken>, Status> {
        let requests = object.pointer(self.requests).and_then(Value::as_array);
        let asks = |request: &Value| request.pointer("/exactly/adminAccess") == Some(&Value::Bool(true));
        let asking = requests.and_then(|requests| requests.iter().position(asks)).filter(|_| old.is_none());
        if let Some(index) = asking
            && !is_marked(pipeline, call.namespace()).await?
        {
            // Upstream shows the path as it was in the first version, also for templates.
            let requests = Path::new("spec").child("devices").child("requests");
            return Err(call.invalid(object, &[not_marked(&requests.index(index).child("adminAccess"))]));
        }
        Ok(Box::new(Nothing))
    }

    async fn authorize_status(
        &self,
        pipeline: &Pipeline,
        call: &Call,
        object: &Value,
        old: &Value,
    ) -> Result<(), Status> {
        status_access::check(pipeline, call, object, old).await
    }
}

/// What is wrong with such a wish where the namespace is not marked.
pub(super) fn not_marked(path: &Path) -> Error {
    let why = format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
    Error::forbidden(path, why)
}

pub(super) async fn is_marked(pipeline: &Pipeline, namespace: &str) -> Result<bool, Status> {
    let Some(store) = pipeline.resources.store("", "namespaces") else { return Ok(false) };
    let Some(namespace) = store.get("", namespace).await? else { return Ok(false) };
    let tree = namespace.tree();
    let label = tree.pointer("/metadata/labels").and_then(|labels| labels.get(LABEL));
    Ok(label.and_then(Value::as_str) == Some("true"))
}

/// The check takes nothing.
struct Nothing;

impl Taken for Nothing {
    fn keep(self: Box<Self>) {}
}
