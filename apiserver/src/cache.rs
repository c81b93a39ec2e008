//! The watch cache of one resource (upstream: `apiserver/pkg/storage/cacher`).
//!
//! An ordered persistent map of the present objects and a ring of recent events. Reading the state is a clone of the map,
//! which costs nothing; the state at a recent revision is the present map with the later events taken back. One writer
//! (the [`Feed`]) applies the store's changes in order; lists and watches read.

pub mod event;
pub mod feed;
pub mod watchers;

use crate::store::{Facts, Object};
use bytes::Bytes;
use coxswain_api::Status;
use coxswain_storage::Revision;
pub use event::{Event, EventKind};
pub use feed::{Begin, Feed};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use watchers::Watchers;
pub use watchers::{Scope, Watch};

/// Key to object, in key order.
pub type Objects = imbl::OrdMap<Arc<str>, Arc<Object>>;

/// At most this many events are remembered…
const RING_EVENTS_MAX: usize = 32_768;
/// …holding on to at most this many bytes of objects.
const RING_BYTES_MAX: usize = 64 << 20;
/// Older events are forgotten (upstream: `eventFreshDuration`), except for the last few…
const RING_FRESH: Duration = Duration::from_secs(75);
/// …which are kept whatever their age, as long as they are within these bounds.
const RING_EVENTS_KEPT: usize = 1024;
const RING_BYTES_KEPT: usize = 1 << 20;
/// The lines of this many events are kept for watchers that are a little behind.
const LINES_KEPT: usize = 256;
/// How many states of paged lists are kept, and for how long.
const SNAPSHOTS_MAX: usize = 64;
const SNAPSHOT_SECONDS: u64 = 300;
/// Objects that writers made and the feed has not brought yet.
const PENDING_MAX: usize = 4096;

/// The state of a resource at one revision.
#[derive(Clone)]
pub struct Snapshot {
    pub objects: Objects,
    pub revision: Revision,
}

/// The asked-for revision is older than what the cache remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOld {
    pub oldest: Revision,
}

pub struct Cache {
    state: RwLock<State>,
    /// Locked before `state` by whoever needs both.
    watchers: Mutex<Watchers>,
    pending: Mutex<Vec<Arc<Object>>>,
    /// What is in the store and cannot be read, by key. A list that left it out would tell its readers that it is gone.
    unreadable: Mutex<BTreeMap<Arc<str>, Status>>,
    /// What writers of this process are committing.
    expected: Mutex<Vec<Expected>>,
    snapshots: Mutex<VecDeque<(std::time::Instant, Snapshot)>>,
}

#[derive(Default)]
struct State {
    objects: Objects,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// Every event after this revision is in the ring.
    floor: Revision,
    /// The last revision that changed this resource.
    changed: Revision,
}

/// A write that is being committed.
struct Expected {
    key: Arc<str>,
    /// As it is stored.
    value: Bytes,
    json: Bytes,
    facts: Arc<Facts>,
}

/// As long as it lives, a commit is expected.
pub struct Expecting<'a> {
    cache: &'a Cache,
    value: Bytes,
}

impl Drop for Expecting<'_> {
    fn drop(&mut self) {
        let mut expected = self.cache.expected.lock();
        // Found by its bytes in memory: no other write has the same.
        if let Some(at) = expected.iter().position(|e| e.value.as_ptr() == self.value.as_ptr()) {
            expected.swap_remove(at);
        }
    }
}

impl State {
    /// Drops events from the front as long as there are too many. Those of one revision go together, or a watch from the one
    /// before would miss a part.
    fn trim(&mut self, too_many: impl Fn(&State) -> bool) {
        while too_many(self) {
            let Some(front) = self.ring.front() else { return };
            self.floor = front.revision;
            while let Some(dropped) = self.ring.pop_front_if(|e| e.revision == self.floor) {
                self.ring_bytes -= dropped.size();
            }
        }
        if self.ring.capacity() > 4 * self.ring.len() + 1024 {
            self.ring.shrink_to(2 * self.ring.len());
        }
    }

    fn has_old(&self) -> bool {
        (self.ring.len() > RING_EVENTS_KEPT || self.ring_bytes > RING_BYTES_KEPT)
            && self.ring.front().is_some_and(|e| e.at.elapsed() > RING_FRESH)
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self::new()
    }
}

impl Cache {
    pub fn new() -> Self {
        Self {
            state: RwLock::default(),
            watchers: Mutex::default(),
            pending: Mutex::default(),
            unreadable: Mutex::default(),
            expected: Mutex::default(),
            snapshots: Mutex::default(),
        }
    }

    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.state.read().objects.get(key).cloned()
    }

    /// Why a key that begins so cannot be read, if there is one.
    pub fn unreadable(&self, prefix: &str) -> Option<Status> {
        let unreadable = self.unreadable.lock();
        let (key, status) = unreadable.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)).next()?;
        key.starts_with(prefix).then(|| status.clone())
    }

    /// Why this key cannot be read, if that is so.
    pub fn unreadable_key(&self, key: &str) -> Option<Status> {
        self.unreadable.lock().get(key).cloned()
    }

    pub(crate) fn set_unreadable(&self, key: Arc<str>, status: Status) {
        self.unreadable.lock().insert(key, status);
    }

    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves whenever an object of the resource changes.
    pub fn changed(&self) -> Revision {
        self.state.read().changed
    }

    /// The present state; its revision is at least `progress` (what the feed has delivered to all caches).
    pub fn snapshot(&self, progress: Revision) -> Snapshot {
        let state = self.state.read();
        Snapshot { objects: state.objects.clone(), revision: state.changed.max(progress) }
    }

    /// The state exactly at `revision`, if it is remembered.
    pub fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, TooOld> {
        let kept = self.snapshots.lock().iter().find(|(_, s)| s.revision == revision).map(|(_, s)| s.clone());
        if let Some(snapshot) = kept {
            return Ok(snapshot);
        }
        let state = self.state.read();
        if revision < state.floor {
            return Err(TooOld { oldest: state.floor });
        }
        let mut objects = state.objects.clone();
        for event in state.ring.iter().rev().take_while(|e| e.revision > revision) {
            match &event.previous {
                Some(previous) => objects.insert(previous.key.clone(), previous.clone()),
                None => objects.remove(&*event.object.key),
            };
        }
        Ok(Snapshot { objects, revision })
    }

    /// Keeps a state for the later pages of a list.
    pub fn keep(&self, snapshot: &Snapshot) {
        let now = std::time::Instant::now();
        let mut kept = self.snapshots.lock();
        kept.retain(|(at, s)| at.elapsed().as_secs() < SNAPSHOT_SECONDS && s.revision != snapshot.revision);
        if kept.len() == SNAPSHOTS_MAX {
            kept.pop_front();
        }
        kept.push_back((now, snapshot.clone()));
    }

    /// Everything after `since` that concerns `scope`, then what comes.
    pub fn watch_since(self: &Arc<Self>, scope: Scope, since: Revision) -> Result<(Vec<Arc<Event>>, Watch), TooOld> {
        let mut watchers = self.watchers.lock();
        let state = self.state.read();
        if since < state.floor {
            return Err(TooOld { oldest: state.floor });
        }
        let first = state.ring.partition_point(|e| e.revision <= since);
        let backlog = state.ring.range(first..).filter(|e| scope.covers(e)).cloned().collect();
        Ok((backlog, watchers.add(scope, self)))
    }

    /// The present state, then what comes after it.
    pub fn watch_from_state(self: &Arc<Self>, scope: Scope, progress: Revision) -> (Snapshot, Watch) {
        let mut watchers = self.watchers.lock();
        let snapshot = self.snapshot(progress);
        (snapshot, watchers.add(scope, self))
    }

    pub(crate) fn unwatch(&self, scope: &Scope, id: u64) {
        self.watchers.lock().remove(scope, id);
    }

    /// Ends every open watch: the resource is no longer served.
    pub(crate) fn end_watches(&self) {
        self.watchers.lock().end_all();
    }

    /// How many watches are open.
    pub fn watch_count(&self) -> usize {
        self.watchers.lock().len()
    }

    /// Takes the object that a writer made of its own commit, or gives the one that the feed has brought meanwhile.
    pub fn adopt(&self, key: &str, revision: Revision, make: impl FnOnce() -> Object) -> Arc<Object> {
        {
            let state = self.state.read();
            if let Some(object) = state.objects.get(key).filter(|o| o.revision == revision) {
                return object.clone();
            }
        }
        let object = Arc::new(make());
        let mut pending = self.pending.lock();
        // Full only when the feed stands still; then the feed makes its own object later.
        if pending.len() < PENDING_MAX {
            pending.push(object.clone());
        }
        object
    }

    /// Says what is about to be committed, until the returned value is dropped: the feed often sees a commit before its
    /// writer does, and need not read the object then.
    pub fn expect(&self, key: Arc<str>, value: Bytes, json: Bytes, facts: Arc<Facts>) -> Expecting<'_> {
        let mut expected = self.expected.lock();
        // As many as there are writers, whom flow control bounds.
        expected.push(Expected { key, value: value.clone(), json, facts });
        Expecting { cache: self, value }
    }

    /// The JSON and the facts of a value that a writer of this process is committing.
    pub(crate) fn expected(&self, key: &str, value: &[u8]) -> Option<(Bytes, Arc<Facts>)> {
        let expected = self.expected.lock();
        expected.iter().find(|e| *e.key == *key && e.value == value).map(|e| (e.json.clone(), e.facts.clone()))
    }

    fn take_pending(&self, key: &str, revision: Revision) -> Option<Arc<Object>> {
        let mut pending = self.pending.lock();
        let found = pending.iter().position(|o| o.revision == revision && *o.key == *key);
        let object = found.map(|i| pending.swap_remove(i));
        pending.retain(|o| o.revision > revision);
        object
    }

    /// Fills the cache anew, at first or after the feed lost its place; open watches end, as their clients must list again.
    pub(crate) fn reset(&self, objects: Objects, revision: Revision) {
        let mut watchers = self.watchers.lock();
        let mut state = self.state.write();
        assert!(revision >= state.changed, "the watch cache would go back");
        *state = State { objects, floor: revision, changed: revision, ..State::default() };
        watchers.end_all();
    }

    /// Forgets what could not be read, before the cache is filled anew.
    pub(crate) fn forget_unreadable(&self) {
        self.unreadable.lock().clear();
    }

    /// Forgets events that are too old to be of use to anybody who was only disconnected.
    pub(crate) fn forget_old(&self) {
        // A look first: most resources have nothing to forget, and writers exclude readers.
        if !self.state.read().has_old() {
            return;
        }
        self.state.write().trim(State::has_old);
    }

    /// Applies the changes of one revision: a new object for each key, none where the key was deleted.
    pub(crate) fn apply(&self, revision: Revision, changes: Vec<(Arc<str>, Option<Arc<Object>>)>) {
        {
            let mut unreadable = self.unreadable.lock();
            if !unreadable.is_empty() {
                changes.iter().for_each(|(key, _)| drop(unreadable.remove(key)));
            }
        }
        let mut watchers = self.watchers.lock();
        let mut events = Vec::with_capacity(changes.len());
        {
            let mut state = self.state.write();
            assert!(revision > state.changed, "the store delivered {revision} after {}", state.changed);
            state.changed = revision;
            for (key, object) in changes {
                let event = match object {
                    Some(object) => {
                        let previous = state.objects.insert(key, object.clone());
                        let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
                        Event::new(revision, kind, object, previous)
                    }
                    None => match state.objects.remove(&*key) {
                        Some(previous) => {
                            let last = Arc::new(previous.at(revision));
                            Event::new(revision, EventKind::Deleted, last, Some(previous))
                        }
                        None => continue,
                    },
                };
                let event = Arc::new(event);
                state.ring_bytes += event.size();
                state.ring.push_back(event.clone());
                events.push(event);
            }
            let sent = state.ring.len().saturating_sub(LINES_KEPT);
            state.ring.range(sent.saturating_sub(events.len())..sent).for_each(|e| e.forget_line());
            state.trim(|state| state.ring.len() > RING_EVENTS_MAX || state.ring_bytes > RING_BYTES_MAX);
        }
        for event in &events {
            watchers.send(event);
        }
    }
}
