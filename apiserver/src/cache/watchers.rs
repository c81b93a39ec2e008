//! Who watches a resource, indexed by what they can possibly see, so that an event costs what its receivers cost.

use super::{Cache, Event};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Events that wait for one watcher. A watcher whose queue is full is cut off; its client lists or resumes.
const QUEUE_MAX: usize = 2048;

/// Which events can concern a watcher at all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    All,
    Namespace(Arc<str>),
    /// One object, by its key.
    Key(Arc<str>),
    /// Pods bound to a node.
    Node(Arc<str>),
}

const NODE_NAME: &str = "spec.nodeName";

impl Scope {
    /// Whether an event can concern this scope.
    pub fn covers(&self, event: &Event) -> bool {
        match self {
            Scope::All => true,
            Scope::Namespace(namespace) => event.object.namespace() == &**namespace,
            Scope::Key(key) => event.object.key == *key,
            Scope::Node(node) => {
                event.object.field(NODE_NAME) == &**node
                    || event.previous.as_ref().is_some_and(|p| p.field(NODE_NAME) == &**node)
            }
        }
    }
}

/// An open watch: the queue ends when the watcher was too slow or the cache was filled anew.
pub struct Watch {
    pub events: mpsc::Receiver<Arc<Event>>,
    scope: Scope,
    id: u64,
    cache: Arc<Cache>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cache.unwatch(&self.scope, self.id);
    }
}

struct Watcher {
    id: u64,
    queue: mpsc::Sender<Arc<Event>>,
}

#[derive(Default)]
pub(super) struct Watchers {
    next: u64,
    all: Vec<Watcher>,
    namespaces: HashMap<Arc<str>, Vec<Watcher>>,
    keys: HashMap<Arc<str>, Vec<Watcher>>,
    nodes: HashMap<Arc<str>, Vec<Watcher>>,
}

impl Watchers {
    pub(super) fn add(&mut self, scope: Scope, cache: &Arc<Cache>) -> Watch {
        self.next += 1;
        let (queue, events) = mpsc::channel(QUEUE_MAX);
        let watcher = Watcher { id: self.next, queue };
        match &scope {
            Scope::All => self.all.push(watcher),
            Scope::Namespace(n) => self.namespaces.entry(n.clone()).or_default().push(watcher),
            Scope::Key(k) => self.keys.entry(k.clone()).or_default().push(watcher),
            Scope::Node(n) => self.nodes.entry(n.clone()).or_default().push(watcher),
        }
        Watch { events, scope, id: self.next, cache: cache.clone() }
    }

    pub(super) fn remove(&mut self, scope: &Scope, id: u64) {
        let (index, key) = match scope {
            Scope::All => return self.all.retain(|w| w.id != id),
            Scope::Namespace(n) => (&mut self.namespaces, n),
            Scope::Key(k) => (&mut self.keys, k),
            Scope::Node(n) => (&mut self.nodes, n),
        };
        if let Some(list) = index.get_mut(key) {
            list.retain(|w| w.id != id);
            if list.is_empty() {
                index.remove(key);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        let of = |index: &HashMap<Arc<str>, Vec<Watcher>>| index.values().map(Vec::len).sum::<usize>();
        self.all.len() + of(&self.namespaces) + of(&self.keys) + of(&self.nodes)
    }

    pub(super) fn end_all(&mut self) {
        self.all.clear();
        self.namespaces.clear();
        self.keys.clear();
        self.nodes.clear();
    }

    pub(super) fn send(&mut self, event: &Arc<Event>) {
        deliver(&mut self.all, event);
        let object = &event.object;
        for (index, key) in [(&mut self.namespaces, object.namespace()), (&mut self.keys, &*object.key)] {
            if let Some(list) = index.get_mut(key) {
                deliver(list, event);
            }
        }
        if self.nodes.is_empty() {
            return;
        }
        let node = object.field(NODE_NAME);
        if let Some(list) = self.nodes.get_mut(node) {
            deliver(list, event);
        }
        // A pod never changes its node, but other kinds may carry such a field.
        let before = event.previous.as_ref().map_or("", |p| p.field(NODE_NAME));
        if before != node
            && let Some(list) = self.nodes.get_mut(before)
        {
            deliver(list, event);
        }
    }
}

/// Hands the event to each; those who are gone or too slow are dropped.
fn deliver(list: &mut Vec<Watcher>, event: &Arc<Event>) {
    list.retain(|w| w.queue.try_send(event.clone()).is_ok());
}
