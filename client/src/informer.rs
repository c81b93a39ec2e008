//! Shared informers: one list and watch for each selection of objects in a process, the counterpart of client-go's
//! `SharedInformerFactory`.
//!
//! A task keeps the [`Store`] equal to the server's content and tells every [`Subscription`] what changed. A subscriber
//! that is slow delays nobody: what it has not taken yet is merged per object. An informer may keep a projection of the
//! objects instead of the objects, where there are many of them and few fields matter.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use kube::Client;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod reflector;
mod store;
mod subscription;

pub(crate) use reflector::check as reflector_check;
pub use reflector::{Change, Listed, Reflector, Target};
pub use store::Store;
pub use subscription::{Event, Subscription};

/// Namespace and name of an object; the namespace is empty for one that belongs to the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of<K: kube::Resource>(object: &K) -> Self {
        Self::of_meta(object.meta())
    }

    pub fn of_meta(meta: &kube::core::ObjectMeta) -> Self {
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Which objects of a kind: all of them by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    pub namespace: Option<String>,
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
}

impl Selection {
    pub fn fields(selector: impl Into<String>) -> Self {
        Self { field_selector: Some(selector.into()), ..Self::default() }
    }

    pub fn labels(selector: impl Into<String>) -> Self {
        Self { label_selector: Some(selector.into()), ..Self::default() }
    }

    pub fn within(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }
}

/// What an informer can hold: a kind whose type is known at compile time.
pub trait Object: kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + Send + Sync + 'static {}
impl<K: kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + Send + Sync + 'static> Object for K {}

/// The informers of a process. Clones share them; they stop when the last clone is gone or [`Informers::stop`] is called.
#[derive(Clone)]
pub struct Informers(Arc<Shared>);

struct Shared {
    client: Client,
    /// By kind, kept type and selection; the value is an `Informer` of that type.
    informers: Mutex<HashMap<(TypeId, TypeId, Selection), Box<dyn Any + Send + Sync>>>,
    stop: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Informers {
    pub fn new(client: Client) -> Self {
        Self(Arc::new(Shared { client, informers: Mutex::default(), stop: CancellationToken::new() }))
    }

    /// The informer of all objects of a kind, started at the first call.
    pub fn informer<K: Object>(&self) -> Informer<K> {
        self.informer_with::<K>(Selection::default())
    }

    /// The informer of selected objects of a kind. Managed fields are dropped, as no consumer needs them.
    pub fn informer_with<K: Object>(&self, selection: Selection) -> Informer<K> {
        self.projected::<K, K>(selection, |mut object| {
            object.meta_mut().managed_fields = None;
            object
        })
    }

    /// An informer that keeps what `project` makes of each object. There is one for each kind, kept type and selection;
    /// the first caller's function counts.
    pub fn projected<K: Object, P: Send + Sync + 'static>(
        &self,
        selection: Selection,
        project: fn(K) -> P,
    ) -> Informer<P> {
        let mut informers = self.0.informers.lock();
        let id = (TypeId::of::<K>(), TypeId::of::<P>(), selection.clone());
        if let Some(informer) = informers.get(&id).and_then(|any| any.downcast_ref::<Informer<P>>()) {
            return informer.clone();
        }
        let (synced, _) = watch::channel(false);
        let informer = Informer { store: Store::new(), synced: Arc::new(synced) };
        let target = Target { path: K::url_path(&(), selection.namespace.as_deref()), selection, metadata_only: false };
        let reflector = Reflector::<K>::new(self.0.client.clone(), target);
        let (store, synced) = (informer.store.clone(), informer.synced.clone());
        let stop = self.0.stop.clone();
        tokio::spawn(async move {
            let run = reflector.run(|change| {
                match change {
                    Change::Replaced(objects) => {
                        store.replace(objects.into_iter().map(|object| keyed(object, project)).collect());
                        synced.send_replace(true);
                    }
                    Change::Applied(object) => {
                        let (key, uid, kept) = keyed(object, project);
                        store.apply(key, uid, kept);
                    }
                    Change::Deleted(object) => store.remove(&ObjectKey::of(&object)),
                };
            });
            tokio::select! {
                () = run => {}
                () = stop.cancelled() => {}
            }
            store.close();
        });
        informers.insert(id, Box::new(informer.clone()));
        informer
    }

    /// Stops all informers; their subscriptions end.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }

    pub fn client(&self) -> &Client {
        &self.0.client
    }
}

fn keyed<K: Object, P>(object: K, project: fn(K) -> P) -> (ObjectKey, String, P) {
    let key = ObjectKey::of(&object);
    let uid = object.meta().uid.clone().unwrap_or_default();
    (key, uid, project(object))
}

/// A kept copy of the server's objects and a source of their changes. Clones share it.
pub struct Informer<P> {
    store: Store<P>,
    synced: Arc<watch::Sender<bool>>,
}

impl<P> Clone for Informer<P> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), synced: self.synced.clone() }
    }
}

impl<P: Send + Sync + 'static> Informer<P> {
    pub fn store(&self) -> Store<P> {
        self.store.clone()
    }

    /// What changes from now on, beginning with an `Added` for each object that is there.
    pub fn subscribe(&self) -> Subscription<P> {
        self.store.subscribe()
    }

    /// Returns once the store has held the server's whole content.
    pub async fn synced(&self) {
        let mut receiver = self.synced.subscribe();
        // The sender lives in this informer, so waiting cannot fail.
        let _ = receiver.wait_for(|synced| *synced).await;
    }

    pub fn has_synced(&self) -> bool {
        *self.synced.borrow()
    }
}
