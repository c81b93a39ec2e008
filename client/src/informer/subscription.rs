//! What a subscriber has not taken yet. There is at most one entry for each object, so that a subscriber which never comes
//! back holds no more than the content twice.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ObjectKey;

/// A change of one object, possibly several changes merged.
#[derive(Debug)]
pub enum Event<P> {
    Added(Arc<P>),
    Updated {
        old: Arc<P>,
        new: Arc<P>,
    },
    /// The object as it was last seen.
    Deleted(Arc<P>),
}

impl<P> Clone for Event<P> {
    fn clone(&self) -> Self {
        match self {
            Self::Added(object) => Self::Added(object.clone()),
            Self::Updated { old, new } => Self::Updated { old: old.clone(), new: new.clone() },
            Self::Deleted(object) => Self::Deleted(object.clone()),
        }
    }
}

impl<P> Event<P> {
    /// The object as it is, or was last.
    pub fn object(&self) -> &Arc<P> {
        match self {
            Self::Added(object) | Self::Deleted(object) => object,
            Self::Updated { new, .. } => new,
        }
    }
}

/// The receiving end of an informer's changes.
pub struct Subscription<P>(Arc<Inbox<P>>);

impl<P> Subscription<P> {
    pub(super) fn new(inbox: Arc<Inbox<P>>) -> Self {
        Self(inbox)
    }

    /// The next change; `None` once the informer has stopped and all changes are taken. Safe to cancel.
    pub async fn next(&mut self) -> Option<Event<P>> {
        loop {
            let notified = self.0.wake.notified();
            if let Some(event) = self.0.take() {
                return Some(event);
            }
            if self.0.waiting.lock().closed {
                return None;
            }
            notified.await;
        }
    }

    /// The next change if there is one.
    pub fn try_next(&mut self) -> Option<Event<P>> {
        self.0.take()
    }
}

pub(super) struct Inbox<P> {
    waiting: Mutex<Waiting<P>>,
    wake: Notify,
}

struct Waiting<P> {
    /// Keys of `changes` in the order in which they first changed.
    order: VecDeque<ObjectKey>,
    changes: HashMap<ObjectKey, Change<P>>,
    closed: bool,
}

/// Versions with their UIDs.
struct Change<P> {
    /// What the subscriber was told last.
    seen: Option<(Arc<P>, String)>,
    current: Option<(Arc<P>, String)>,
    /// An object that came and went before the subscriber looked.
    passed: Option<(Arc<P>, String)>,
}

impl<P> Inbox<P> {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting { order: VecDeque::new(), changes: HashMap::new(), closed: false }),
            wake: Notify::new(),
        }
    }

    pub(super) fn put(&self, key: &ObjectKey, old: Option<(&Arc<P>, &str)>, new: Option<(&Arc<P>, &str)>) {
        if old.is_none() && new.is_none() {
            return;
        }
        let owned = |version: Option<(&Arc<P>, &str)>| version.map(|(object, uid)| (object.clone(), uid.to_owned()));
        let mut waiting = self.waiting.lock();
        match waiting.changes.get_mut(key) {
            Some(change) => {
                if new.is_none() && change.seen.is_none() {
                    change.passed = change.current.take();
                }
                change.current = owned(new);
            }
            None => {
                waiting.changes.insert(key.clone(), Change { seen: owned(old), current: owned(new), passed: None });
                waiting.order.push_back(key.clone());
            }
        }
        drop(waiting);
        self.wake.notify_one();
    }

    fn take(&self) -> Option<Event<P>> {
        let mut waiting = self.waiting.lock();
        loop {
            let key = waiting.order.pop_front()?;
            let Some(mut change) = waiting.changes.remove(&key) else { continue };
            match (change.seen.take(), change.current.take()) {
                (None, Some((new, _))) => return Some(Event::Added(new)),
                (Some((old, _)), None) => return Some(Event::Deleted(old)),
                (Some((old, old_uid)), Some((new, new_uid))) => {
                    if old_uid == new_uid {
                        return Some(Event::Updated { old, new });
                    }
                    // Another object of the same name: the old one is reported gone before the new one comes.
                    waiting
                        .changes
                        .insert(key.clone(), Change { seen: None, current: Some((new, new_uid)), passed: None });
                    waiting.order.push_front(key);
                    return Some(Event::Deleted(old));
                }
                (None, None) => {
                    let Some((passed, uid)) = change.passed.take() else { continue };
                    // Whoever counts creations must learn of this one too.
                    let gone = Change { seen: Some((passed.clone(), uid)), current: None, passed: None };
                    waiting.changes.insert(key.clone(), gone);
                    waiting.order.push_front(key);
                    return Some(Event::Added(passed));
                }
            }
        }
    }

    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.wake.notify_one();
    }
}
