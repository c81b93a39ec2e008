//! An event of the watch cache: one change of one object.

use crate::store::Object;
use bytes::Bytes;
use coxswain_storage::Revision;
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

impl EventKind {
    /// As a watch names it.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Added => "ADDED",
            EventKind::Modified => "MODIFIED",
            EventKind::Deleted => "DELETED",
        }
    }
}

pub struct Event {
    pub revision: Revision,
    pub kind: EventKind,
    /// When it came.
    pub at: Instant,
    /// The new state; for a deletion the last state, at the revision of the deletion.
    pub object: Arc<Object>,
    /// The state before; none for an addition.
    pub previous: Option<Arc<Object>>,
    /// The JSON line of the event for those who see it as it is; forgotten once it has gone out to them.
    line: Mutex<Option<Bytes>>,
    /// The previous state at this revision: what those see through whose selector the object has left.
    left: OnceLock<Arc<Object>>,
}

impl Event {
    pub fn new(revision: Revision, kind: EventKind, object: Arc<Object>, previous: Option<Arc<Object>>) -> Self {
        Self { revision, kind, at: Instant::now(), object, previous, line: Mutex::default(), left: OnceLock::new() }
    }

    /// The event through a selector: what kind it is to the watcher and which object it carries.
    pub fn through(&self, matches: impl Fn(&Object) -> bool) -> Option<(EventKind, Arc<Object>)> {
        let was = self.previous.as_ref().is_some_and(|p| matches(p));
        if self.kind == EventKind::Deleted {
            return was.then(|| (EventKind::Deleted, self.object.clone()));
        }
        match (was, matches(&self.object)) {
            (false, true) => Some((EventKind::Added, self.object.clone())),
            (true, true) => Some((EventKind::Modified, self.object.clone())),
            (true, false) => Some((EventKind::Deleted, self.left())),
            (false, false) => None,
        }
    }

    fn left(&self) -> Arc<Object> {
        let previous = self.previous.as_ref().expect("only what was there can leave");
        self.left.get_or_init(|| Arc::new(previous.at(self.revision))).clone()
    }

    /// `{"type":…,"object":…}` with a newline, in the hub version, made once for all who are there to see it.
    pub fn line(&self) -> Bytes {
        let mut line = self.line.lock();
        line.get_or_insert_with(|| event_line(self.kind.as_str(), self.object.json())).clone()
    }

    pub(super) fn forget_line(&self) {
        *self.line.lock() = None;
    }

    /// How many bytes it holds on to at most: both states may be held by it alone.
    pub fn size(&self) -> usize {
        self.object.size() + self.previous.as_ref().map_or(0, |p| p.size()) + 128
    }
}

/// A watch event in JSON.
pub fn event_line(kind: &str, object: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(object.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
    out.into()
}
