//! Deletes objects whose owners are gone, the counterpart of `pkg/controller/garbagecollector`.
//!
//! Every resource that can be listed, watched and deleted is watched for its metadata. [`graph`] keeps who owns whom and
//! says which objects must be looked at; this file asks the server how things really are before it deletes anything.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::events::EventRecorder;
use coxswain_client::informer::{Change, Reflector, Target};
use coxswain_client::objects::{self, Deletion, PatchKind};
use coxswain_client::runner::run_controller;
use coxswain_client::{Client, Selection, WorkQueue, errors, kube};
use http::Method;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::Context;
use crate::common::discovery::{self, Resource};
use crate::common::owners;

mod graph;

use graph::{Graph, Node, Owner, Work};

const WORKERS: usize = 20;
/// How often kinds that came or went are looked for.
const RESYNC_PERIOD: Duration = Duration::from_secs(30);
/// How soon after a definition of custom resources has changed, so that many changes cost one look.
const DEFINITIONS_SETTLE: Duration = Duration::from_secs(1);
/// Objects owned by kinds not known yet that are remembered to be looked at again; those beyond wait for their back-off.
const UNMATCHED_MAX: usize = 10_000;
/// An owner that was found absent is believed to be for this long; UIDs do not come back.
const ABSENT_TTL: Duration = Duration::from_secs(300);
const ABSENT_MAX: usize = 500;
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What of an object matters here.
#[derive(Deserialize)]
struct Object {
    metadata: ObjectMeta,
}

/// A UID in the queue.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Uid(String);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an owner that was looked for is known by. A UID alone does not do: a dependent may call it something that it is not,
/// and what is absent under one name may well be there under another.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Coordinates {
    api_version: String,
    kind: String,
    /// Empty for objects of the cluster.
    namespace: String,
    name: String,
    uid: String,
}

impl Coordinates {
    fn new(reference: &OwnerReference, namespace: &str) -> Self {
        Self {
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
            namespace: namespace.to_owned(),
            name: reference.name.clone(),
            uid: reference.uid.clone(),
        }
    }
}

/// What has become of an owner.
enum Found {
    Present(Box<ObjectMeta>),
    Absent,
    /// An object of the cluster cannot be owned by one of a namespace; nothing will make it so, and nothing is deleted for it.
    Impossible,
}

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    deletions: WorkQueue<Uid>,
    orphanings: WorkQueue<Uid>,
    resources: Mutex<Watched>,
    absent: Mutex<HashMap<Coordinates, Instant>>,
    recorder: EventRecorder,
    /// UIDs of objects whose owners' kinds were not known when they were looked at.
    unmatched: Mutex<HashSet<String>>,
    definitions_changed: Notify,
}

#[derive(Default)]
struct Watched {
    by_kind: HashMap<(String, String), Arc<Resource>>,
    reflectors: HashMap<Resource, AbortHandle>,
}

pub async fn run(context: Context) {
    let collector = Arc::new(Collector {
        client: context.client.clone(),
        graph: Mutex::default(),
        deletions: WorkQueue::new(),
        orphanings: WorkQueue::new(),
        resources: Mutex::default(),
        absent: Mutex::default(),
        recorder: context.recorder.clone(),
        unmatched: Mutex::default(),
        definitions_changed: Notify::new(),
    });
    let deleter = collector.clone();
    let deletions = run_controller(
        "garbage-collector",
        collector.deletions.clone(),
        context.workers(WORKERS),
        context.shutdown.clone(),
        move |uid| {
            let collector = deleter.clone();
            async move { collector.attempt_to_delete(uid).await }
        },
    );
    let orphaner = collector.clone();
    let orphanings = run_controller(
        "garbage-collector-orphan",
        collector.orphanings.clone(),
        context.workers(WORKERS),
        context.shutdown.clone(),
        move |uid| {
            let collector = orphaner.clone();
            async move { collector.orphan_dependents(uid).await }
        },
    );
    let sync = async {
        tokio::select! { () = collector.clone().keep_in_sync() => {}, () = context.shutdown.cancelled() => {} }
    };
    tokio::join!(deletions, orphanings, sync);
    for reflector in collector.resources.lock().reflectors.values() {
        reflector.abort();
    }
}

impl Collector {
    /// Looks for kinds that came or went every now and then, and soon after a definition has changed: an owner that does
    /// not live for long is then watched before it goes.
    async fn keep_in_sync(self: Arc<Self>) {
        loop {
            self.clone().sync_resources().await;
            let changed = tokio::time::timeout(RESYNC_PERIOD, self.definitions_changed.notified()).await;
            if changed.is_ok() {
                tokio::time::sleep(DEFINITIONS_SETTLE).await;
            }
        }
    }

    /// Watches resources that came, and stops watching those that went.
    async fn sync_resources(self: Arc<Self>) {
        let found = match discovery::discover(&self.client).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "cannot discover resources");
                return;
            }
        };
        let mut watched = self.resources.lock();
        watched.by_kind = found
            .resources
            .iter()
            .map(|resource| ((resource.group.clone(), resource.kind.clone()), Arc::new(resource.clone())))
            .collect();
        let wanted: Vec<Resource> = found.resources.into_iter().filter(is_collected).collect();
        watched.reflectors.retain(|resource, reflector| {
            let failed = found.failed.contains(&resource.api_version());
            let keep = failed || wanted.contains(resource);
            if !keep {
                reflector.abort();
                let gone = self.graph.lock().forget_resource(resource);
                self.enqueue(gone);
            }
            keep
        });
        for resource in wanted {
            let reflected = Arc::new(resource.clone());
            watched.reflectors.entry(resource).or_insert_with(|| {
                let collector = self.clone();
                tokio::spawn(async move { collector.reflect(reflected).await }).abort_handle()
            });
        }
        drop(watched);
        for uid in self.unmatched.lock().drain() {
            self.deletions.add(Uid(uid));
        }
    }

    async fn reflect(&self, resource: Arc<Resource>) {
        let target = Target { path: resource.path("", ""), selection: Selection::default(), metadata_only: true };
        let reflector = Reflector::<Object>::new(self.client.clone(), target);
        let defines = resource.group == "apiextensions.k8s.io";
        reflector
            .run(|change| {
                if defines {
                    self.definitions_changed.notify_one();
                }
                let work = match change {
                    Change::Replaced(all) => {
                        let nodes = all.into_iter().map(|object| Node::new(&resource, object.metadata)).collect();
                        self.graph.lock().replace(&resource, nodes)
                    }
                    Change::Applied(object) => self.graph.lock().apply(Node::new(&resource, object.metadata)),
                    Change::Deleted(object) => self.graph.lock().remove(owners::uid(&object.metadata)),
                };
                self.enqueue(work);
            })
            .await;
    }

    fn enqueue(&self, work: Vec<Work>) {
        for work in work {
            match work {
                Work::Delete(uid) => self.deletions.add(Uid(uid)),
                Work::Orphan(uid) => self.orphanings.add(Uid(uid)),
                Work::Report { uid, owner } => self.report(&uid, &owner),
            }
        }
    }

    async fn attempt_to_delete(&self, uid: Uid) -> Result<(), kube::Error> {
        let Some(node) = self.graph.lock().get(&uid.0) else { return Ok(()) };
        if node.deleting && !node.foreground {
            return Ok(());
        }
        let Some(latest) = self.latest(&node).await? else {
            let work = self.graph.lock().remove(&uid.0);
            self.enqueue(work);
            return Ok(());
        };
        if node.foreground {
            return self.finish_foreground(&node, &latest).await;
        }
        let references = latest.owner_references.clone().unwrap_or_default();
        if references.is_empty() {
            return Ok(());
        }
        let (mut solid, mut dangling, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for reference in &references {
            match self.owner(&node, reference).await? {
                Found::Absent => dangling.push(reference),
                Found::Present(owner) if is_foreground(&owner) => waiting.push(reference),
                Found::Present(_) => solid.push(reference),
                Found::Impossible => return Ok(()),
            }
        }
        let path = node.path();
        if !solid.is_empty() {
            if dangling.is_empty() && waiting.is_empty() {
                return Ok(());
            }
            let gone: Vec<&str> = dangling.iter().chain(&waiting).map(|reference| reference.uid.as_str()).collect();
            let kept: Vec<_> =
                references.iter().filter(|reference| !gone.contains(&reference.uid.as_str())).cloned().collect();
            return self.patch(&path, &latest, json!({"ownerReferences": kept})).await;
        }
        let has = |finalizer: &str| latest.finalizers.iter().flatten().any(|found| found == finalizer);
        let dependents = self.graph.lock().has_dependents(&uid.0);
        let propagation = if !waiting.is_empty() && dependents {
            self.break_cycle(&node, &latest).await?;
            "Foreground"
        } else if has(ORPHAN) {
            "Orphan"
        } else if has(FOREGROUND) {
            "Foreground"
        } else {
            "Background"
        };
        let deletion = Deletion {
            propagation: Some(propagation),
            uid: Some(&uid.0),
            resource_version: latest.resource_version.as_deref(),
            ..Deletion::default()
        };
        errors::ignore_not_found(objects::delete_at(&self.client, &path, &deletion).await).map(drop)
    }

    /// Objects that own each other and are all to go in the foreground would wait for each other for ever: the references
    /// of the one that goes first no longer block.
    async fn break_cycle(&self, node: &Node, latest: &ObjectMeta) -> Result<(), kube::Error> {
        if !self.graph.lock().any_dependent_waits(&node.uid) {
            return Ok(());
        }
        let mut references = latest.owner_references.clone().unwrap_or_default();
        for reference in &mut references {
            reference.block_owner_deletion = Some(false);
        }
        self.patch(&node.path(), latest, json!({"ownerReferences": references})).await
    }

    /// An object to go after its dependents goes once none of them blocks it any more.
    async fn finish_foreground(&self, node: &Node, latest: &ObjectMeta) -> Result<(), kube::Error> {
        let blocking = self.graph.lock().blocking_dependents(&node.uid);
        if blocking.is_empty() {
            return self.remove_finalizer(node, latest, FOREGROUND).await;
        }
        for (dependent, waits) in blocking {
            if !waits {
                self.deletions.add(Uid(dependent));
            }
        }
        Ok(())
    }

    /// Takes the owner's reference from all its dependents, then lets the owner go.
    async fn orphan_dependents(&self, uid: Uid) -> Result<(), kube::Error> {
        let Some(owner) = self.graph.lock().get(&uid.0) else { return Ok(()) };
        let dependents = self.graph.lock().dependents(&uid.0);
        for dependent in dependents {
            let Some(latest) = self.latest(&dependent).await? else { continue };
            let references = latest.owner_references.clone().unwrap_or_default();
            let kept: Vec<_> = references.iter().filter(|reference| reference.uid != uid.0).cloned().collect();
            if kept.len() != references.len() {
                self.patch(&dependent.path(), &latest, json!({"ownerReferences": kept})).await?;
            }
        }
        let Some(latest) = self.latest(&owner).await? else { return Ok(()) };
        self.remove_finalizer(&owner, &latest, ORPHAN).await
    }

    async fn remove_finalizer(&self, node: &Node, latest: &ObjectMeta, finalizer: &str) -> Result<(), kube::Error> {
        let finalizers = latest.finalizers.clone().unwrap_or_default();
        let kept: Vec<_> = finalizers.iter().filter(|found| *found != finalizer).cloned().collect();
        if kept.len() == finalizers.len() {
            return Ok(());
        }
        self.patch(&node.path(), latest, json!({"finalizers": kept})).await
    }

    /// Changes metadata of exactly the version that was read.
    async fn patch(&self, path: &str, latest: &ObjectMeta, mut metadata: serde_json::Value) -> Result<(), kube::Error> {
        metadata["uid"] = json!(latest.uid);
        metadata["resourceVersion"] = json!(latest.resource_version);
        let patch = json!({"metadata": metadata});
        let result = objects::patch_at::<Object>(&self.client, path, PatchKind::Merge, &patch).await;
        errors::ignore_not_found(result).map(drop)
    }

    /// The object's metadata as the server has it; `None` if it is gone or another one has its name.
    async fn latest(&self, node: &Node) -> Result<Option<ObjectMeta>, kube::Error> {
        let found = objects::request::<Object>(&self.client, Method::GET, &node.path(), "", None).await;
        let found = errors::ignore_not_found(found)?.map(|object| object.metadata);
        Ok(found.filter(|meta| owners::uid(meta) == node.uid))
    }

    /// An owner as the server has it.
    async fn owner(&self, dependent: &Node, reference: &OwnerReference) -> Result<Found, kube::Error> {
        let namespaces = ["", dependent.namespace.as_str()];
        let known_absent = {
            let absent = self.absent.lock();
            let since = |namespace: &&str| absent.get(&Coordinates::new(reference, namespace)).copied();
            namespaces.iter().filter_map(since).any(|since| since.elapsed() < ABSENT_TTL)
        };
        if known_absent {
            return Ok(Found::Absent);
        }
        let group = reference.api_version.split_once('/').map_or("", |(group, _)| group);
        let resource = self.resources.lock().by_kind.get(&(group.to_owned(), reference.kind.clone())).cloned();
        // A kind that is not served may be served again: nothing is deleted on a guess.
        let Some(resource) = resource else {
            let mut unmatched = self.unmatched.lock();
            if unmatched.len() < UNMATCHED_MAX {
                unmatched.insert(dependent.uid.clone());
            }
            return Err(kube::Error::Service(
                format!("no matches for kind \"{}\" in \"{}\"", reference.kind, reference.api_version).into(),
            ));
        };
        if resource.namespaced && dependent.namespace.is_empty() {
            return Ok(Found::Impossible);
        }
        let namespace = if resource.namespaced { dependent.namespace.as_str() } else { "" };
        let path = resource.path(namespace, &reference.name);
        let found = objects::request::<Object>(&self.client, Method::GET, &path, "", None).await;
        let found = errors::ignore_not_found(found)?.map(|object| object.metadata);
        if let Some(meta) = found.filter(|meta| owners::uid(meta) == reference.uid) {
            return Ok(Found::Present(Box::new(meta)));
        }
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT_MAX {
            absent.clear();
        }
        absent.insert(Coordinates::new(reference, namespace), Instant::now());
        Ok(Found::Absent)
    }

    fn report(&self, uid: &str, owner: &Owner) {
        let Some(node) = self.graph.lock().get(uid) else { return };
        let about = ObjectReference {
            api_version: Some(node.resource.api_version()),
            kind: Some(node.resource.kind.clone()),
            namespace: Some(node.namespace.clone()),
            name: Some(node.name),
            uid: Some(node.uid),
            ..ObjectReference::default()
        };
        let message = format!(
            "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace \"{}\"",
            owner.api_version, owner.kind, node.namespace, owner.name, owner.uid, node.namespace
        );
        self.recorder.warning(&about, "OwnerRefInvalidNamespace", message);
    }
}

fn is_foreground(meta: &ObjectMeta) -> bool {
    owners::is_deleting(meta) && meta.finalizers.iter().flatten().any(|finalizer| finalizer == FOREGROUND)
}

/// Events have no owners and are many.
fn is_collected(resource: &Resource) -> bool {
    let all = ["list", "watch", "delete"].iter().all(|verb| resource.can(verb));
    all && !(resource.name == "events" && matches!(resource.group.as_str(), "" | "events.k8s.io"))
}
