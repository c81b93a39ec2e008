//! Everything that is served, by group, version and plural: the router's table (upstream: `APIGroupInfo` and the
//! `genericapiserver`'s installed storage).
//!
//! Built once for the built-in kinds; CustomResourceDefinitions add and remove entries while the server runs. Readers take
//! the whole table as it is and keep it for one request.

use crate::discovery::version_priority;
use crate::registry::resource::Resource;
use crate::store::Store;
use arc_swap::ArcSwap;
use coxswain_api::catalogue::ResourceType;
use coxswain_storage::Revision;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a request waits at most for definitions that were seen but are not served yet.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);

/// One resource as one version serves it.
pub struct Served {
    pub ty: Arc<ResourceType>,
    pub strategy: Arc<dyn Resource>,
    /// The objects, shared by all versions; none for resources that store nothing (reviews).
    pub store: Option<Arc<Store>>,
    /// Defined by a CustomResourceDefinition: its objects name their kind wherever they are written.
    pub custom: bool,
}

impl Served {
    /// Whether this is the version that objects are stored in.
    pub fn is_hub(&self) -> bool {
        self.store.as_ref().is_some_and(|s| s.hub.group_version == self.ty.group_version)
    }
}

/// Group and version; then plural.
type Versions = BTreeMap<(Arc<str>, Arc<str>), BTreeMap<Arc<str>, Arc<Served>>>;

#[derive(Clone, Default)]
pub struct Index {
    pub versions: Versions,
    /// The store of a resource by group and plural.
    stores: BTreeMap<(Arc<str>, Arc<str>), Arc<Store>>,
}

impl Index {
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Served>> {
        self.versions.get(&(group.into(), version.into()))?.get(plural)
    }

    /// Whether any version of the group is served.
    pub fn has_group(&self, group: &str) -> bool {
        self.versions.keys().any(|(g, _)| **g == *group)
    }

    /// Whether nothing but definitions makes up the group.
    pub fn is_custom_group(&self, group: &str) -> bool {
        let mut found =
            self.versions.iter().filter(|((g, _), _)| **g == *group).flat_map(|(_, served)| served.values());
        found.all(|served| served.custom)
    }

    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.versions.contains_key(&(group.into(), version.into()))
    }

    /// The other types by which the objects of a resource are served: its other versions, and for events the other group.
    pub fn equivalents(&self, group: &str, version: &str, plural: &str) -> Vec<Arc<ResourceType>> {
        let Some(store) = self.get(group, version, plural).and_then(|served| served.store.as_ref()) else {
            return Vec::new();
        };
        let other_group = match (group, plural) {
            ("", "events") => Some("events.k8s.io"),
            ("events.k8s.io", "events") => Some(""),
            _ => None,
        };
        let mut found = Vec::new();
        for group in std::iter::once(group).chain(other_group) {
            let versions = self.versions.range((Arc::from(group), Arc::from(""))..);
            for ((_, other), resources) in versions.take_while(|((g, _), _)| **g == *group) {
                let same = |served: &&Arc<Served>| served.store.as_ref().is_some_and(|s| Arc::ptr_eq(s, store));
                if let Some(served) = resources.get(plural).filter(same)
                    && (**other != *version || other_group == Some(group))
                {
                    found.push(served.ty.clone());
                }
            }
        }
        found.sort_by_cached_key(|ty| std::cmp::Reverse(version_priority(&ty.group_version.version)));
        found
    }

    pub fn insert(&mut self, served: Arc<Served>) {
        let ty = &served.ty;
        let gv = &ty.group_version;
        if let Some(store) = &served.store {
            self.stores.insert((gv.group.clone(), ty.plural.clone()), store.clone());
        }
        let version = self.versions.entry((gv.group.clone(), gv.version.clone())).or_default();
        version.insert(ty.plural.clone(), served.clone());
    }

    /// Takes away a resource in every version.
    pub fn remove(&mut self, group: &str, plural: &str) {
        self.stores.remove(&(group.into(), plural.into()));
        self.versions.retain(|(g, _), resources| {
            if **g == *group {
                resources.remove(plural);
            }
            !resources.is_empty()
        });
    }

    /// Every store once.
    pub fn stores(&self) -> Vec<Arc<Store>> {
        let mut all: Vec<Arc<Store>> = Vec::new();
        for store in self.stores.values() {
            if !all.iter().any(|s| Arc::ptr_eq(s, store)) {
                all.push(store.clone());
            }
        }
        all
    }
}

#[derive(Default)]
pub struct Resources {
    index: ArcSwap<Index>,
    writer: parking_lot::Mutex<()>,
    /// Up to which change of a definition the table is right.
    reached: watch::Sender<Revision>,
}

impl Resources {
    pub fn new(index: Index) -> Self {
        Self { index: ArcSwap::from_pointee(index), ..Self::default() }
    }

    /// The table now has what the definitions said at this revision.
    pub fn reached(&self, revision: Revision) {
        self.reached.send_replace(revision);
    }

    /// Waits, but not for long, until the table has what the definitions say that clients can see by now: who has seen
    /// that a kind is established expects it to be served. Whoever looked at the table before has to look again, also where
    /// there was nothing to wait for: the table may have got there meanwhile.
    pub async fn catch_up(&self) {
        let Some(definitions) = self.store("apiextensions.k8s.io", "customresourcedefinitions") else { return };
        let shown = definitions.cache().changed();
        let mut reached = self.reached.subscribe();
        let _late = tokio::time::timeout(CATCH_UP_MAX, reached.wait_for(|at| *at >= shown)).await;
    }

    /// The whole table as it is now.
    pub fn index(&self) -> Arc<Index> {
        self.index.load_full()
    }

    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Served>> {
        self.index.load().get(group, version, plural).cloned()
    }

    /// The store of a resource, whatever version is asked for.
    pub fn store(&self, group: &str, plural: &str) -> Option<Arc<Store>> {
        self.index.load().stores.get(&(group.into(), plural.into())).cloned()
    }

    /// The served resource of a kind, for those who only know group, version and kind.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Served>> {
        let index = self.index.load();
        index.versions.get(&(group.into(), version.into()))?.values().find(|s| *s.ty.kind == *kind).cloned()
    }

    /// Changes the table at once for all later requests.
    pub fn change(&self, edit: impl FnOnce(&mut Index)) {
        let _one = self.writer.lock();
        let mut index = Index::clone(&self.index.load());
        edit(&mut index);
        self.index.store(Arc::new(index));
    }
}
