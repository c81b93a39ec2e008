//! Stores: one per resource, shared by all of its versions (upstream: `registry/generic/registry.Store` over
//! `apiserver/pkg/storage/etcd3`).
//!
//! A store owns the key layout, turns hub trees into stored bytes and back, and commits at expected revisions. The stored
//! value is the JSON of the hub version *without* `metadata.resourceVersion`; the revision is spliced in when the entry is
//! read, so the bytes of an object version are made exactly once. Reads come from the [`Cache`] once it has reached the
//! store's revision.

pub mod object;

use crate::cache::{Cache, Feed};
use crate::registry::resource::Resource;
use coxswain_api::catalogue::ResourceType;
use coxswain_api::{Status, Value};
use coxswain_storage::{Entry, Error, Expect, Op, Revision, Storage, Write};
pub use object::Object;
use std::sync::Arc;
use std::time::Duration;

/// Why a commit did not happen.
#[derive(Debug)]
pub enum CommitError {
    /// The key is not at the expected revision: this is the object now, none if there is none.
    Conflict(Option<Arc<Object>>),
    /// Anything else, as the client is to see it.
    Refused(Status),
}

/// The objects of one resource.
pub struct Store {
    /// The resource in its hub version.
    pub hub: Arc<ResourceType>,
    pub strategy: Arc<dyn Resource>,
    storage: Arc<dyn Storage>,
    feed: Arc<Feed>,
    cache: Arc<Cache>,
    /// `/registry/pods/`, with the closing slash.
    prefix: Box<str>,
    /// Of the hub version.
    api_version: Box<str>,
}

impl Store {
    /// Not yet filled: [`Feed::add`] does that.
    pub fn new(
        hub: Arc<ResourceType>,
        strategy: Arc<dyn Resource>,
        storage: Arc<dyn Storage>,
        feed: Arc<Feed>,
        prefix: impl Into<Box<str>>,
    ) -> Self {
        let cache = Arc::new(Cache::new());
        let api_version = hub.group_version.api_version().into();
        Self { api_version, hub, strategy, storage, feed, cache, prefix: prefix.into() }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Where an object is stored; `namespace` is empty for cluster-wide resources.
    pub fn key(&self, namespace: &str, name: &str) -> Arc<str> {
        let mut key = String::with_capacity(self.prefix.len() + namespace.len() + name.len() + 1);
        key.push_str(&self.prefix);
        if !namespace.is_empty() {
            key.push_str(namespace);
            key.push('/');
        }
        key.push_str(name);
        key.into()
    }

    /// The object as every acknowledged write left it.
    pub async fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<Object>>, Status> {
        let key = self.key(namespace, name);
        let now = self.storage.current_revision().await.map_err(storage_status)?;
        if self.feed.progress() >= now {
            return Ok(self.cache.get(&key));
        }
        // The cache is a moment behind: one key is read faster from the store than the cache catches up.
        let (entry, _) = self.storage.get(&key, None).await.map_err(storage_status)?;
        entry.map(|e| self.object_of(e)).transpose()
    }

    /// The object as the watch cache has it, which may be a moment old. A good first guess for an update: a stale one is
    /// found by the commit, which then returns the current object.
    pub fn get_cached(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.cache.get(&self.key(namespace, name))
    }

    /// Commits a new object; `Conflict` if the name is taken. `object` is in the hub version; its
    /// `metadata.resourceVersion` is ignored.
    pub async fn create(
        &self,
        namespace: &str,
        name: &str,
        object: &Value,
        ttl: Option<Duration>,
    ) -> Result<Arc<Object>, CommitError> {
        self.put(self.key(namespace, name), Expect::Absent, object, ttl).await
    }

    /// Commits a change of `old`; `Conflict` if `old` is not the present one.
    pub async fn update(
        &self,
        old: &Object,
        object: &Value,
        ttl: Option<Duration>,
    ) -> Result<Arc<Object>, CommitError> {
        self.put(old.key.clone(), Expect::At(old.revision), object, ttl).await
    }

    /// Commits the end of `old`; returns its last state at the revision of the deletion.
    pub async fn delete(&self, old: &Arc<Object>) -> Result<Arc<Object>, CommitError> {
        let write = Write { key: old.key.clone(), expect: Expect::At(old.revision), op: Op::Delete };
        let revision = self.storage.commit(vec![write]).await.map_err(|e| self.commit_error(e))?;
        Ok(Arc::new(old.at(revision)))
    }

    async fn put(
        &self,
        key: Arc<str>,
        expect: Expect,
        object: &Value,
        ttl: Option<Duration>,
    ) -> Result<Arc<Object>, CommitError> {
        let value = object::stored_bytes(object, &self.hub.schema);
        let write = Write { key: key.clone(), expect, op: Op::Put { value: value.clone(), ttl } };
        let revision = self.storage.commit(vec![write]).await.map_err(|e| self.commit_error(e))?;
        // The watch cache may have seen this commit already and made the object of it; otherwise it takes ours.
        Ok(self.cache.adopt(&key, revision, || {
            Object::of_tree(key.clone(), self.prefix.len(), revision, &value, object, &*self.strategy)
        }))
    }

    /// The object of a storage entry, the one in the cache if that is the same version.
    pub fn object_of(&self, entry: Entry) -> Result<Arc<Object>, Status> {
        if let Some(cached) = self.cache.get(&entry.key).filter(|c| c.revision == entry.modified) {
            return Ok(cached);
        }
        self.parse(entry).map(Arc::new)
    }

    /// Makes an object of its stored form.
    pub fn parse(&self, entry: Entry) -> Result<Object, Status> {
        let mut tree: Value = serde_json::from_slice(&entry.value)
            .map_err(|e| Status::internal(format!("the stored value of {} cannot be read: {e}", entry.key)))?;
        // Objects stored before the storage version moved are read as what they now are.
        if tree.get("apiVersion").and_then(Value::as_str) != Some(&*self.api_version) {
            coxswain_api::conversion::convert(&mut tree, &self.hub.group_version);
            let value = object::stored_bytes(&tree, &self.hub.schema);
            return Ok(Object::of_tree(entry.key, self.prefix.len(), entry.modified, &value, &tree, &*self.strategy));
        }
        Ok(Object::of_tree(entry.key, self.prefix.len(), entry.modified, &entry.value, &tree, &*self.strategy))
    }

    fn commit_error(&self, error: Error) -> CommitError {
        match error {
            Error::Conflict { current, .. } => match current.map(|e| self.object_of(e)).transpose() {
                Ok(current) => CommitError::Conflict(current),
                Err(status) => CommitError::Refused(status),
            },
            other => CommitError::Refused(storage_status(other)),
        }
    }

    /// Waits until the watch cache has seen everything acknowledged before now; the revision then reached.
    pub async fn catch_up(&self) -> Result<Revision, Status> {
        let now = self.storage.current_revision().await.map_err(storage_status)?;
        self.feed.reach(now).await
    }
}

/// What a client sees of a failure of the store.
pub fn storage_status(error: Error) -> Status {
    match error {
        Error::Compacted { .. } => Status::expired("The provided resource version is too old and has been compacted."),
        other => Status::internal(other),
    }
}

/// Upstream's key prefix of a resource: the plural for built-in groups, with the historical exceptions; group and plural
/// for the extension APIs and custom resources.
pub fn key_prefix(group: &str, plural: &str, custom: bool) -> String {
    let path = match (group, plural) {
        ("", "replicationcontrollers") => "controllers",
        ("", "endpoints") => "services/endpoints",
        ("", "services") => "services/specs",
        ("", "nodes") => "minions",
        ("networking.k8s.io", "ingresses") => "ingress",
        _ => plural,
    };
    let own = custom || matches!(group, "apiextensions.k8s.io" | "apiregistration.k8s.io");
    if own { format!("/registry/{group}/{path}/") } else { format!("/registry/{path}/") }
}
