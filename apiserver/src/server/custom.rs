//! Serving what CustomResourceDefinitions define (upstream: the naming, establishing and finalizing controllers of
//! `apiextensions-apiserver`, and its `customresource_handler`).
//!
//! One task looks at all definitions whenever one of them changed. A definition whose names nobody else has is accepted,
//! served, and then written as established, so that whoever has read that finds its objects; one that is deleted has its
//! objects deleted first. What is served is a matter of the definition as it is stored, so that several servers on one store
//! agree. Requests that find nothing wait for this task (`Resources::catch_up`), should it not have come to a change yet that
//! was made by another server and has been seen already.

mod names;
mod serving;

use super::bootstrap::send;
use crate::cache::Feed;
use crate::front::Front;
use crate::objects::Objects;
use crate::registry::apiextensions::definition::{FINALIZER, condition, is_true, set_condition};
use crate::store::Store;
use coxswain_api::{Value, time};
use coxswain_storage::{Revision, Storage};
use names::{Accepted, Known, State};
use serving::Ready;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const GROUP: &str = "apiextensions.k8s.io";
/// How soon a step that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Statuses written at once, so that they share commits; as many definitions are held as trees.
const WRITTEN_AT_ONCE: usize = 16;

struct Custom {
    front: Arc<Front>,
    objects: Arc<dyn Objects>,
    storage: Arc<dyn Storage>,
    feed: Arc<Feed>,
    /// What is served, by name of the definition: the hash of its spec, so that a change is seen, and its group and plural.
    served: BTreeMap<String, ([u8; 32], String, String)>,
    /// Every definition as it was when it was last looked at. One that has not changed is not read again, so that a change
    /// costs what it costs and not what all definitions do.
    known: BTreeMap<String, Known>,
}

/// Follows the definitions for as long as the server lives.
pub async fn run(front: Arc<Front>, objects: Arc<dyn Objects>, storage: Arc<dyn Storage>) {
    let Some(store) = front.store(GROUP, "customresourcedefinitions") else { return };
    let feed = store.feed().clone();
    let mut progress = feed.subscribe();
    let mut seen = Revision(0);
    let mut custom = Custom { front, objects, storage, feed, served: BTreeMap::new(), known: BTreeMap::new() };
    loop {
        let changed = store.cache().changed();
        if changed != seen {
            let result = custom.step(&store).await;
            // A definition that cannot be brought up to date is no reason for others' requests to wait.
            custom.front.resources.reached(changed);
            match result {
                Ok(()) => seen = changed,
                Err(why) => {
                    tracing::warn!(%why, "custom resource definitions could not be brought up to date");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        if progress.changed().await.is_err() {
            return;
        }
    }
}

impl Custom {
    async fn step(&mut self, store: &Store) -> Result<(), String> {
        let snapshot = store.cache().snapshot(store.feed().progress());
        let present: BTreeMap<&str, _> = snapshot.objects.values().map(|o| (o.name(), o)).collect();
        let gone: Vec<String> = self.known.keys().filter(|n| !present.contains_key(n.as_str())).cloned().collect();
        // Names that were in the way of others may have become free.
        let mut touched: HashSet<String> = HashSet::new();
        for name in gone {
            self.withdraw(&name).await;
            touched.extend(self.known.remove(&name).map(|known| known.group));
        }
        for (name, object) in &present {
            if self.known.get(*name).is_none_or(|known| known.revision != object.revision) {
                let made = Known::of(&object.tree(), object.revision);
                touched.extend(self.known.insert((*name).to_owned(), made).map(|known| known.group));
                touched.insert(self.known[*name].group.clone());
            }
        }
        // One that cannot be brought up to date does not keep the others waiting.
        let mut failure = None;
        let mut ready = Vec::new();
        let mut waiting = Vec::new();
        for (name, object) in present {
            let known = &self.known[name];
            match known.state {
                State::Settled => continue,
                State::Conflicted if !touched.contains(&known.group) => continue,
                _ => {}
            }
            let definition = object.tree();
            if definition.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null()) {
                failure = failure.or(self.finalize(&definition).await.err());
                continue;
            }
            let Accepted { changed, free, servable } = names::accept(&definition, &self.known);
            if servable {
                ready.extend(self.prepare(&definition));
            }
            let known = self.known.get_mut(name).expect("all that are present are known");
            match changed {
                None => {
                    let settled = free && is_true(&definition, "NamesAccepted");
                    known.state = if settled { State::Settled } else { State::Conflicted };
                }
                // What is written now comes back as a change. Whoever is looked at next must know which names are taken.
                Some(changed) => {
                    *known = Known::of(&changed, known.revision);
                    known.state = State::Conflicted;
                    waiting.push(changed);
                }
            }
            if waiting.len() == WRITTEN_AT_ONCE {
                let done = self.finish(std::mem::take(&mut ready), std::mem::take(&mut waiting)).await;
                failure = failure.or(done.err());
            }
        }
        failure = failure.or(self.finish(ready, waiting).await.err());
        failure.map_or(Ok(()), Err)
    }

    /// Serves what is ready, and then writes down the statuses of these definitions.
    async fn finish(&mut self, ready: Vec<Ready>, waiting: Vec<Value>) -> Result<(), String> {
        let mut failure = None;
        if let Err(status) = self.publish(ready).await {
            failure = Some(format!("serving what is defined: {status}"));
        }
        let (this, may_write) = (&*self, failure.is_none());
        let writes = waiting.into_iter().map(|changed| async move {
            let name = text(&changed, "/metadata/name");
            let written = match may_write {
                true => this.put(&format!("{DEFINITIONS}/{name}/status"), &changed).await,
                // Nobody is told that it is established.
                false => Err(format!("{name} is not served")),
            };
            (name.to_owned(), written)
        });
        for (name, written) in futures::future::join_all(writes).await {
            if let Err(why) = written {
                failure.get_or_insert(why);
                self.known.entry(name).and_modify(|known| known.state = State::Pending);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// A conflict means that somebody else wrote meanwhile; their change brings us here again.
    async fn put(&self, path: &str, object: &Value) -> Result<(), String> {
        match send(&*self.objects, "PUT", path, Some(object)).await? {
            (200 | 201 | 404 | 409, _) => Ok(()),
            (code, answer) => Err(format!("updating {path}: {code} {}", answer["message"])),
        }
    }

    /// Deletes the objects of a definition that is to go, and then lets it go.
    async fn finalize(&mut self, definition: &Value) -> Result<(), String> {
        let name = text(definition, "/metadata/name").to_owned();
        let finalizers = strings(definition, "/metadata/finalizers");
        if !finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(());
        }
        let (group, plural) = (text(definition, "/spec/group"), text(definition, "/spec/names/plural"));
        let mut left = 0;
        if is_true(definition, "Established")
            && self.served.contains_key(&name)
            && let Some(store) = self.front.store(group, plural)
        {
            let snapshot = store.cache().snapshot(store.feed().progress());
            let version = &store.hub.group_version.version;
            for object in snapshot.objects.values() {
                let path = match object.namespace() {
                    "" => format!("/apis/{group}/{version}/{plural}/{}", object.name()),
                    namespace => format!("/apis/{group}/{version}/namespaces/{namespace}/{plural}/{}", object.name()),
                };
                if object.tree().pointer("/metadata/deletionTimestamp").is_none() {
                    send(&*self.objects, "DELETE", &path, None).await?;
                }
            }
            let at = store.catch_up().await.map_err(|s| s.to_string())?;
            left = store.cache().snapshot(at).objects.len();
        }
        if left > 0 {
            // Objects with finalizers of their own: somebody else has to act.
            let message = format!("CustomResource deletion is in progress, {left} left");
            let told =
                condition(definition, "Terminating").is_some_and(|c| c["reason"] == "InstanceDeletionInProgress");
            if !told {
                let now = time::format_seconds(jiff::Timestamp::now());
                let mut changed = definition.clone();
                set_condition(
                    &mut changed["status"],
                    "Terminating",
                    "True",
                    "InstanceDeletionInProgress",
                    &message,
                    &now,
                );
                self.put(&format!("{DEFINITIONS}/{name}/status"), &changed).await?;
            }
            return Err(format!("{name} still has {left} objects"));
        }
        let now = time::format_seconds(jiff::Timestamp::now());
        let mut changed = definition.clone();
        let completed = ("InstanceDeletionCompleted", "removed all instances");
        set_condition(&mut changed["status"], "Terminating", "False", completed.0, completed.1, &now);
        // Both in one write, so that nobody sees a definition that is done with but still held.
        let rest: Vec<String> = finalizers.into_iter().filter(|f| f != FINALIZER).collect();
        changed["metadata"]["finalizers"] = rest.into();
        self.put(&format!("{DEFINITIONS}/{name}/status"), &changed).await?;
        self.withdraw(&name).await;
        Ok(())
    }
}

fn text<'a>(tree: &'a Value, pointer: &str) -> &'a str {
    tree.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn strings(tree: &Value, pointer: &str) -> Vec<String> {
    let list = tree.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(String::from).collect()
}
