//! What is known of a request before its body is read (upstream: `apiserver/pkg/endpoints/request`).

use std::collections::BTreeMap;
use std::sync::Arc;

/// Who is asking (upstream: `user.Info`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What is asked, as authorization and admission see it (upstream: `RequestInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    /// The path as sent, for requests that name no resource.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`; the lower-case HTTP
    /// method for requests that name no resource.
    pub verb: String,
    /// `api` or `apis`.
    pub prefix: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// The path after resource, name and subresource (`proxy`).
    pub rest: Vec<String>,
    /// For list, watch and deletecollection: the selectors as sent, which authorizers may look at.
    pub field_selector: Option<String>,
    pub label_selector: Option<String>,
}

/// A request on its way through the server: what every later stage may ask.
#[derive(Clone, Debug)]
pub struct Context {
    pub user: Arc<User>,
    pub info: Arc<RequestInfo>,
    /// `dryRun=All`: everything happens but the commit.
    pub dry_run: bool,
    /// The `fieldManager` parameter, or the first part of the user agent.
    pub field_manager: String,
    /// The time at which the request was received; the only clock a strategy may use.
    pub now: jiff::Timestamp,
    pub warnings: Warnings,
}

/// `Warning` headers collected on the way (upstream: `apiserver/pkg/warning`). Repeated texts are sent once.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<parking_lot::Mutex<Vec<String>>>);

impl Warnings {
    pub fn add(&self, text: impl Into<String>) {
        let text = text.into();
        let mut list = self.0.lock();
        if !text.is_empty() && !list.contains(&text) {
            list.push(text);
        }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}
