//! The objects an informer keeps, by key and by named indexes, the counterpart of client-go's `Indexer`.
//!
//! The informer's task alone writes. Each write tells the subscribers under the same lock, so that a new subscriber sees
//! every object exactly once before its changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use super::ObjectKey;
use super::subscription::{Inbox, Subscription};

/// Clones share the content.
pub struct Store<P>(Arc<RwLock<Content<P>>>);

impl<P> Clone for Store<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Content<P> {
    objects: BTreeMap<ObjectKey, Entry<P>>,
    indexes: HashMap<&'static str, Index<P>>,
    subscribers: Vec<Weak<Inbox<P>>>,
    closed: bool,
}

struct Entry<P> {
    uid: String,
    object: Arc<P>,
}

struct Index<P> {
    values_of: fn(&P) -> Vec<String>,
    keys: HashMap<String, BTreeSet<ObjectKey>>,
}

impl<P> Index<P> {
    fn insert(&mut self, key: &ObjectKey, object: &P) {
        for value in (self.values_of)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &ObjectKey, object: &P) {
        for value in (self.values_of)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

impl<P: Send + Sync + 'static> Default for Store<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Send + Sync + 'static> Store<P> {
    /// An empty store; informers make their own, tests fill one by [`Self::apply`].
    pub fn new() -> Self {
        Self(Arc::new(RwLock::new(Content {
            objects: BTreeMap::new(),
            indexes: HashMap::new(),
            subscribers: Vec::new(),
            closed: false,
        })))
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<P>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<P>> {
        self.0.read().objects.get(key).map(|entry| entry.object.clone())
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<P>> {
        self.0.read().objects.values().map(|entry| entry.object.clone()).collect()
    }

    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<P>> {
        let from = ObjectKey::new(namespace, "");
        self.0
            .read()
            .objects
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, entry)| entry.object.clone())
            .collect()
    }

    pub fn keys(&self) -> Vec<ObjectKey> {
        self.0.read().objects.keys().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.0.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Indexes the objects by the values a function gives each. Adding a name again changes nothing.
    pub fn add_index(&self, name: &'static str, values_of: fn(&P) -> Vec<String>) {
        let mut content = self.0.write();
        if content.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { values_of, keys: HashMap::new() };
        for (key, entry) in &content.objects {
            index.insert(key, &entry.object);
        }
        content.indexes.insert(name, index);
    }

    /// The objects that have a value in an index, by namespace and name; none if there is no such index.
    pub fn by_index(&self, name: &str, value: &str) -> Vec<Arc<P>> {
        let content = self.0.read();
        let Some(keys) = content.indexes.get(name).and_then(|index| index.keys.get(value)) else { return Vec::new() };
        keys.iter().filter_map(|key| content.objects.get(key)).map(|entry| entry.object.clone()).collect()
    }

    /// What changes from now on, beginning with the present content.
    pub fn subscribe(&self) -> Subscription<P> {
        let mut content = self.0.write();
        let inbox = Arc::new(Inbox::new());
        for (key, entry) in &content.objects {
            inbox.put(key, None, Some((&entry.object, &entry.uid)));
        }
        if content.closed {
            inbox.close();
        } else {
            content.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
            content.subscribers.push(Arc::downgrade(&inbox));
        }
        Subscription::new(inbox)
    }

    /// Adds an object or replaces the one of its key.
    pub fn apply(&self, key: ObjectKey, uid: String, object: P) {
        self.0.write().set(key, Some(Entry { uid, object: Arc::new(object) }));
    }

    pub fn remove(&self, key: &ObjectKey) {
        self.0.write().set(key.clone(), None);
    }

    /// Makes the content these objects and no others.
    pub fn replace(&self, objects: Vec<(ObjectKey, String, P)>) {
        let mut content = self.0.write();
        let kept: BTreeSet<&ObjectKey> = objects.iter().map(|(key, ..)| key).collect();
        let gone: Vec<ObjectKey> = content.objects.keys().filter(|key| !kept.contains(key)).cloned().collect();
        for key in gone {
            content.set(key, None);
        }
        for (key, uid, object) in objects {
            content.set(key, Some(Entry { uid, object: Arc::new(object) }));
        }
    }

    /// Ends all subscriptions.
    pub(super) fn close(&self) {
        let mut content = self.0.write();
        content.closed = true;
        for subscriber in content.subscribers.drain(..) {
            if let Some(inbox) = subscriber.upgrade() {
                inbox.close();
            }
        }
    }
}

impl<P> Content<P> {
    fn set(&mut self, key: ObjectKey, entry: Option<Entry<P>>) {
        let old = self.objects.remove(&key);
        for index in self.indexes.values_mut() {
            if let Some(old) = &old {
                index.remove(&key, &old.object);
            }
            if let Some(new) = &entry {
                index.insert(&key, &new.object);
            }
        }
        let mut dead = false;
        for subscriber in &self.subscribers {
            match subscriber.upgrade() {
                Some(inbox) => inbox.put(
                    &key,
                    old.as_ref().map(|old| (&old.object, old.uid.as_str())),
                    entry.as_ref().map(|new| (&new.object, new.uid.as_str())),
                ),
                None => dead = true,
            }
        }
        if dead {
            self.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        }
        if let Some(entry) = entry {
            self.objects.insert(key, entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Event;
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    #[tokio::test]
    async fn a_subscriber_sees_present_content_first_and_merged_changes_after() {
        let store = Store::new();
        store.apply(key("a"), "1".to_owned(), 1);
        let mut subscription = store.subscribe();
        assert!(matches!(subscription.next().await, Some(Event::Added(object)) if *object == 1));
        store.apply(key("a"), "1".to_owned(), 2);
        store.apply(key("a"), "1".to_owned(), 3);
        assert!(
            matches!(subscription.next().await, Some(Event::Updated { old, new }) if (*old, *new) == (1, 3)),
            "two changes that nobody took are one"
        );
        store.apply(key("b"), "2".to_owned(), 7);
        store.remove(&key("b"));
        store.remove(&key("a"));
        // The order is that of each object's first change.
        let mut deleted = Vec::new();
        while let Some(event) = subscription.try_next() {
            if let Event::Deleted(object) = event {
                deleted.push(*object);
            }
        }
        assert_eq!(deleted, [7, 3], "what came and went is still told");
        store.apply(key("a"), "1".to_owned(), 3);
        assert!(matches!(subscription.next().await, Some(Event::Added(_))));
        store.remove(&key("a"));
        assert!(matches!(subscription.next().await, Some(Event::Deleted(object)) if *object == 3));
        store.close();
        assert!(subscription.next().await.is_none());
    }

    #[tokio::test]
    async fn an_object_recreated_under_its_name_is_deleted_and_added() {
        let store = Store::new();
        store.apply(key("a"), "1".to_owned(), 1);
        let mut subscription = store.subscribe();
        subscription.next().await;
        store.replace(vec![(key("a"), "2".to_owned(), 2)]);
        assert!(matches!(subscription.next().await, Some(Event::Deleted(object)) if *object == 1));
        assert!(matches!(subscription.next().await, Some(Event::Added(object)) if *object == 2));
    }

    #[test]
    fn indexes_follow_the_content() {
        let store = Store::new();
        store.apply(key("a"), String::new(), 1);
        store.add_index("parity", |n| vec![(n % 2).to_string()]);
        store.apply(key("b"), String::new(), 3);
        assert_eq!(store.by_index("parity", "1").len(), 2);
        store.apply(key("a"), String::new(), 2);
        assert_eq!(store.by_index("parity", "1").len(), 1);
        store.replace(Vec::new());
        assert!(store.by_index("parity", "1").is_empty());
        assert!(store.list_namespace("ns").is_empty());
    }
}
