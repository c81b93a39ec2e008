//! Stores: one per resource, shared by all of its versions (upstream: `registry/generic/registry.Store` over
//! `apiserver/pkg/storage/etcd3`).
//!
//! A store owns the key layout, turns hub trees into stored bytes and back, and commits at expected revisions. An object's
//! bytes are the JSON of the hub version *without* `metadata.resourceVersion`; the revision is spliced in when the entry is
//! read, so the bytes of an object version are made exactly once. The [`value`] stored is that JSON, or what [`Layout`]
//! says. Reads come from the [`Cache`] once it has reached the store's revision.

pub mod forms;
pub mod layout;
pub mod metrics;
pub mod object;
pub mod recent;
pub mod value;

use crate::cache::{Cache, Feed};
use crate::registry::resource::Resource;
use coxswain_api::catalogue::ResourceType;
use coxswain_api::status::Details;
use coxswain_api::{Status, Value};
use coxswain_storage::{Entry, Error, Expect, Op, Revision, Storage, Write};
pub use layout::Layout;
pub use object::{Facts, Object};
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
    values: value::Values,
}

impl Store {
    /// Not yet filled: [`Feed::add`] does that.
    pub fn new(
        hub: Arc<ResourceType>,
        strategy: Arc<dyn Resource>,
        storage: Arc<dyn Storage>,
        feed: Arc<Feed>,
        custom: bool,
    ) -> Self {
        let cache = Arc::new(Cache::new());
        let (layout, group) = (feed.layout(), &hub.group_version.group);
        let prefix = layout.key_prefix(group, &hub.plural, custom).into();
        let transformer = layout.encryption.as_ref().map(|e| e.for_resource(group, &hub.plural));
        let values = value::Values::new(hub.clone(), layout.format_of(group, custom), transformer, custom);
        Self { hub, strategy, storage, feed, cache, prefix, values }
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
            return match self.cache.unreadable_key(&key) {
                Some(status) => Err(status),
                None => Ok(self.cache.get(&key)),
            };
        }
        // The cache is a moment behind: one key is read faster from the store than the cache catches up.
        let read = self.storage.get(&key, None);
        let (entry, _) = self.counted("get", read).await.map_err(storage_status)?;
        match entry {
            Some(entry) => self.object_of(entry).await.map(Some),
            None => Ok(None),
        }
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
        match self.counted("delete", self.storage.commit(vec![write])).await {
            Ok(revision) => Ok(Arc::new(old.at(revision))),
            Err(error) => Err(self.commit_error(error).await),
        }
    }

    async fn put(
        &self,
        key: Arc<str>,
        expect: Expect,
        object: &Value,
        ttl: Option<Duration>,
    ) -> Result<Arc<Object>, CommitError> {
        let json = object::stored_bytes(object, &self.hub.schema);
        let value = self.values.seal(&key, object, &json).await.map_err(CommitError::Refused)?;
        // Only events end by themselves, and how soon is a matter of a flag.
        let ttl = ttl.map(|_| self.feed.layout().event_ttl);
        let facts = Arc::new(Facts::of(object, &*self.strategy));
        let _expected = self.cache.expect(key.clone(), value.clone(), json.clone(), facts.clone());
        let write = Write { key: key.clone(), expect, op: Op::Put { value, ttl } };
        let operation = if expect == Expect::Absent { "create" } else { "update" };
        let revision = match self.counted(operation, self.storage.commit(vec![write])).await {
            Ok(revision) => revision,
            Err(error) => return Err(self.commit_error(error).await),
        };
        // The watch cache may have seen this commit already and made the object of it; otherwise it takes ours.
        Ok(self.cache.adopt(&key, revision, || Object::new(key.clone(), self.prefix.len(), revision, &json, facts)))
    }

    /// Takes the tree that `object` was made of, which is about to be changed again as likely as not.
    pub fn remember(&self, object: &Object, tree: Value) {
        object.remember(tree, self.feed.recent_trees());
    }

    /// Whether an object lies in the store in another form than it would be written in now: then it is written again even
    /// if nothing about it changes, which is how stored data is brought to a new key or encoding.
    pub async fn is_stale(&self, object: &Object) -> bool {
        if object.stale || !self.values.may_go_stale() {
            return object.stale;
        }
        // The keys may have changed since it was read.
        match self.storage.get(&object.key, Some(object.revision)).await {
            Ok((Some(entry), _)) => self.values.is_stale(&entry).await,
            _ => false,
        }
    }

    /// The object of a storage entry, the one in the cache if that is the same version.
    pub async fn object_of(&self, entry: Entry) -> Result<Arc<Object>, Status> {
        if let Some(cached) = self.cache.get(&entry.key).filter(|c| c.revision == entry.modified) {
            return Ok(cached);
        }
        self.parse(entry).await.map(Arc::new)
    }

    /// Makes an object of its stored form.
    pub async fn parse(&self, entry: Entry) -> Result<Object, Status> {
        let value::Decoded { tree, json, stale } = self.values.open(&entry, &*self.strategy).await?;
        let facts = Arc::new(Facts::of(&tree, &*self.strategy));
        let object = Object::new(entry.key, self.prefix.len(), entry.modified, &json, facts);
        Ok(if stale { object.into_stale() } else { object })
    }

    /// Makes an object of what a change brought: where a writer of this process waits for it, without reading it.
    pub(crate) async fn object_of_change(&self, entry: Entry) -> Result<Object, Status> {
        match self.cache.expected(&entry.key, &entry.value) {
            Some((json, facts)) => Ok(Object::new(entry.key, self.prefix.len(), entry.modified, &json, facts)),
            None => self.parse(entry).await,
        }
    }

    async fn commit_error(&self, error: Error) -> CommitError {
        match error {
            Error::Conflict { current: None, .. } => CommitError::Conflict(None),
            Error::Conflict { current: Some(entry), .. } => match self.object_of(entry).await {
                Ok(current) => CommitError::Conflict(Some(current)),
                Err(status) => CommitError::Refused(status),
            },
            other => CommitError::Refused(storage_status(other)),
        }
    }

    async fn counted<T>(
        &self,
        operation: &str,
        request: impl Future<Output = coxswain_storage::Result<T>>,
    ) -> coxswain_storage::Result<T> {
        metrics::counted(operation, &self.hub.group_version.group, &self.hub.plural, request).await
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
        // It takes less than a second.
        Error::Moved(_) => {
            let mut status =
                Status::unavailable("the server's data is moving to another store, please try again later");
            status.details = Some(Box::new(Details { retry_after_seconds: 1, ..Details::default() }));
            status
        }
        other => Status::internal(other),
    }
}
