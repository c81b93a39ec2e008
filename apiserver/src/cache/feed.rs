//! The feed: one stream of the store's changes, dispatched to the caches (upstream: a reflector per resource).
//!
//! One stream for all resources means one order and one measure of progress: when the feed has reached a revision, every
//! cache has, whether or not its resource changed. So a consistent read of any resource waits for one number.

use super::Objects;
use crate::store::recent::RecentTrees;
use crate::store::{Layout, Object, Store, storage_status};
use arc_swap::ArcSwap;
use coxswain_api::Status;
use coxswain_api::status::{Cause, Details};
use coxswain_storage::{Changes, ListOptions, Revision, Storage};
use futures::StreamExt;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Entries read in one go when a cache is filled.
const FILL_PAGE: usize = 2000;
/// How long a reader waits for a revision (upstream: `blockTimeout` of the cacher).
const REACH_SECONDS: u64 = 3;
/// The pause between looks for events that are too old.
const FORGET_PAUSE: Duration = Duration::from_secs(10);
/// How far back the caches of a new server begin, where the store remembers so much.
const REPLAYED_REVISIONS: u64 = 8192;

/// By key prefix.
type Stores = HashMap<Box<str>, Arc<Store>>;

/// Where the cache of a resource that is added begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With the present state: the resource is new.
    Now,
    /// Some way back in the store's history, so that watches which the end of a server interrupted go on where they were.
    Past,
}

pub struct Feed {
    storage: Arc<dyn Storage>,
    layout: Layout,
    stores: ArcSwap<Stores>,
    progress: watch::Sender<Revision>,
    /// Held while changes are applied, and by whoever adds or removes a resource.
    gate: tokio::sync::Mutex<()>,
    recent_trees: RecentTrees,
}

impl Feed {
    pub fn new(storage: Arc<dyn Storage>, layout: Layout) -> Arc<Self> {
        Arc::new(Self {
            storage,
            layout,
            stores: ArcSwap::default(),
            progress: watch::Sender::new(Revision(0)),
            gate: tokio::sync::Mutex::new(()),
            recent_trees: RecentTrees::default(),
        })
    }

    /// What writers of any resource just wrote, in one bound.
    pub fn recent_trees(&self) -> &RecentTrees {
        &self.recent_trees
    }

    /// How the objects of all resources lie in the store.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The revision that every cache has reached.
    pub fn progress(&self) -> Revision {
        *self.progress.borrow()
    }

    /// Wakes whenever the caches have reached a further revision.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.progress.subscribe()
    }

    /// Waits until every cache has reached `revision`; upstream's refusal if that takes too long.
    pub async fn reach(&self, revision: Revision) -> Result<Revision, Status> {
        let now = self.progress();
        if now >= revision {
            return Ok(now);
        }
        let mut progress = self.progress.subscribe();
        let wait = progress.wait_for(|p| *p >= revision);
        match tokio::time::timeout(Duration::from_secs(REACH_SECONDS), wait).await {
            Ok(Ok(reached)) => Ok(*reached),
            _ => Err(too_large_resource_version(revision, self.progress())),
        }
    }

    /// Fills the caches of `stores` and follows the store from there. The feed lives as long as the returned task.
    ///
    /// The caches begin some way back in the store's history and catch up before this returns, so that watches which the
    /// end of another server interrupted go on where they were.
    pub async fn start(self: &Arc<Self>, stores: Vec<Arc<Store>>) -> Result<tokio::task::JoinHandle<()>, Status> {
        let gate = self.gate.lock().await;
        let now = self.storage.current_revision().await.map_err(storage_status)?;
        let past = self.readable(Revision(now.0.saturating_sub(REPLAYED_REVISIONS))).await.map_err(storage_status)?;
        for store in &stores {
            self.fill(store, past).await?;
        }
        self.stores.store(Arc::new(stores.into_iter().map(|s| (s.prefix().into(), s)).collect()));
        self.replay(self.layout.root(), &self.stores.load_full(), past, now).await.map_err(storage_status)?;
        self.progress.send_replace(now.max(past));
        drop(gate);
        let feed = self.clone();
        Ok(tokio::spawn(async move {
            tokio::select! {
                () = feed.clone().run() => {}
                () = feed.forget_old() => {}
            }
        }))
    }

    /// This revision, or the oldest that the store still knows.
    async fn readable(&self, wanted: Revision) -> Result<Revision, coxswain_storage::Error> {
        let options = ListOptions { at: Some(wanted), limit: Some(1), from: None };
        match self.storage.list(self.layout.root(), options).await {
            Ok(_) => Ok(wanted),
            Err(coxswain_storage::Error::Compacted { oldest, .. }) => Ok(oldest),
            Err(error) => Err(error),
        }
    }

    /// Applies to `stores` what happened to the keys under `prefix` after `past` and up to `until`. The gate is the caller's.
    async fn replay(
        &self,
        prefix: &str,
        stores: &Stores,
        past: Revision,
        until: Revision,
    ) -> Result<(), coxswain_storage::Error> {
        if past >= until {
            return Ok(());
        }
        let mut stream = self.storage.changes(prefix, past).await?;
        self.storage.request_progress().await?;
        while let Some(changes) = stream.next().await {
            let changes = changes?;
            let revision = changes.revision;
            if revision <= until {
                self.dispatch(stores, changes).await;
            }
            if revision >= until {
                break;
            }
        }
        Ok(())
    }

    /// Adds resources while the feed runs (CustomResourceDefinitions). The history is read once for all of them.
    pub async fn add(&self, added: Vec<Arc<Store>>, begin: Begin) -> Result<(), Status> {
        if added.is_empty() {
            return Ok(());
        }
        let _gate = self.gate.lock().await;
        let now = self.progress();
        let past = match begin {
            Begin::Now => now,
            Begin::Past => Revision(now.0.saturating_sub(REPLAYED_REVISIONS)),
        };
        let past = self.readable(past).await.map_err(storage_status)?;
        for store in &added {
            self.fill(store, past).await?;
        }
        let added: Stores = added.into_iter().map(|store| (store.prefix().into(), store)).collect();
        let mut stores = Stores::clone(&self.stores.load());
        stores.extend(added.iter().map(|(prefix, store)| (prefix.clone(), store.clone())));
        self.stores.store(Arc::new(stores));
        let prefix = match added.keys().next() {
            Some(only) if added.len() == 1 => only,
            _ => self.layout.root(),
        };
        self.replay(prefix, &added, past, now).await.map_err(storage_status)
    }

    /// Removes resources; their open watches end.
    pub async fn remove(&self, prefixes: &[String]) {
        if prefixes.is_empty() {
            return;
        }
        let _gate = self.gate.lock().await;
        let mut stores = Stores::clone(&self.stores.load());
        for store in prefixes.iter().filter_map(|prefix| stores.remove(&**prefix)).collect::<Vec<_>>() {
            store.cache().end_watches();
        }
        self.stores.store(Arc::new(stores));
    }

    async fn fill(&self, store: &Arc<Store>, revision: Revision) -> Result<(), Status> {
        store.cache().forget_unreadable();
        let mut objects = Objects::new();
        let mut from = None;
        loop {
            let options = ListOptions { at: Some(revision), limit: Some(FILL_PAGE), from };
            let page = self.storage.list(store.prefix(), options).await.map_err(storage_status)?;
            for entry in page.entries {
                let key = entry.key.clone();
                match store.parse(entry).await {
                    Ok(object) => {
                        objects.insert(key, Arc::new(object));
                    }
                    // One unreadable object must not keep the server from starting.
                    Err(status) => {
                        tracing::error!(%key, %status, "an object cannot be read");
                        store.cache().set_unreadable(key, status);
                    }
                }
            }
            from = page.next;
            if from.is_none() {
                store.cache().reset(objects, revision);
                return Ok(());
            }
        }
    }

    /// Follows the store; after a failure it begins again, from where it was if the store still knows that revision.
    async fn run(self: Arc<Self>) {
        loop {
            match self.follow().await {
                // The data has moved to another store, which goes on where this one ended.
                Ok(()) => {
                    tracing::info!("the store ended its stream of changes");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                }
                Err(coxswain_storage::Error::Compacted { .. }) => {
                    if let Err(status) = self.refill().await {
                        tracing::error!(%status, "the watch caches could not be filled anew");
                    }
                }
                Err(error) => tracing::error!(%error, "the stream of changes broke"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Now and then looks for events that need not be remembered any longer. Never ends.
    async fn forget_old(&self) {
        loop {
            tokio::time::sleep(FORGET_PAUSE).await;
            for store in self.stores.load().values() {
                store.cache().forget_old();
            }
        }
    }

    async fn refill(&self) -> Result<(), Status> {
        let _gate = self.gate.lock().await;
        let revision = self.storage.current_revision().await.map_err(storage_status)?;
        for store in self.stores.load_full().values() {
            self.fill(store, revision).await?;
        }
        self.progress.send_replace(revision);
        Ok(())
    }

    async fn follow(&self) -> Result<(), coxswain_storage::Error> {
        let mut stream = self.storage.changes(self.layout.root(), self.progress()).await?;
        while let Some(changes) = stream.next().await {
            let changes = changes?;
            let _gate = self.gate.lock().await;
            let revision = changes.revision;
            self.dispatch(&self.stores.load_full(), changes).await;
            if revision > self.progress() {
                self.progress.send_replace(revision);
            }
        }
        Ok(())
    }

    async fn dispatch(&self, stores: &Stores, changes: Changes) {
        let revision = changes.revision;
        let mut touched: Vec<(&Arc<Store>, Vec<(Arc<str>, Option<Arc<Object>>)>)> = Vec::new();
        for change in changes.changes {
            let Some(store) = store_of(stores, self.layout.root(), &change.key) else { continue };
            let hub = &store.hub;
            coxswain_storage::metrics::EVENTS_RECEIVED.add(&[&hub.group_version.group, &hub.plural], 1);
            let object = match change.value {
                None => None,
                Some(entry) => match store.cache().take_pending(&change.key, revision) {
                    Some(object) => Some(object),
                    None => match store.object_of_change(entry).await {
                        Ok(object) => Some(Arc::new(object)),
                        Err(status) => {
                            // It stays as it was last read for those who watch; those who read are told.
                            tracing::error!(key = %change.key, %status, "a change cannot be read");
                            store.cache().set_unreadable(change.key, status);
                            continue;
                        }
                    },
                },
            };
            match touched.iter_mut().find(|(s, _)| Arc::ptr_eq(s, store)) {
                Some((_, list)) => list.push((change.key, object)),
                None => touched.push((store, vec![(change.key, object)])),
            }
        }
        for (store, list) in touched {
            store.cache().apply(revision, list);
        }
    }
}

/// A resource's prefix has one or two parts after the root.
fn store_of<'a>(stores: &'a Stores, root: &str, key: &str) -> Option<&'a Arc<Store>> {
    let mut slashes = memchr::memchr_iter(b'/', key.as_bytes().get(root.len()..)?);
    let first = root.len() + slashes.next()?;
    let second = slashes.next().map(|at| root.len() + at);
    second.and_then(|at| stores.get(&key[..=at])).or_else(|| stores.get(&key[..=first]))
}

/// Upstream's refusal of a resourceVersion that the server has not reached.
pub fn too_large_resource_version(asked: Revision, current: Revision) -> Status {
    let mut status = Status::timeout(format!("Too large resource version: {asked}, current: {current}"), 1);
    let cause = Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    };
    status.details = Some(Box::new(Details { causes: vec![cause], retry_after_seconds: 1, ..Details::default() }));
    status
}
