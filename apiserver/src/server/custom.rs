//! Serving what CustomResourceDefinitions define (upstream: the naming, establishing and finalizing controllers of
//! `apiextensions-apiserver`, and its `customresource_handler`).
//!
//! One task looks at all definitions whenever one of them changed. A definition whose names nobody else has is accepted,
//! served, and then written as established, so that whoever has read that finds its objects; one that is deleted has its
//! objects deleted first. What is served is a matter of the definition as it is stored, so that several servers on one store
//! agree. Requests that find nothing wait for this task (`Resources::catch_up`), should it not have come to a change yet that
//! was made by another server and has been seen already.

use super::bootstrap::send;
use crate::cache::Feed;
use crate::front::Front;
use crate::objects::Objects;
use crate::registry::apiextensions::custom_resource::CustomResource;
use crate::registry::apiextensions::definition::{FINALIZER, condition, is_true, set_condition, storage_version};
use crate::resources::Served;
use crate::store::Store;
use base64::Engine;
use coxswain_api::catalogue::{GroupVersion, ResourceType, SubresourceType};
use coxswain_api::structural::Structural;
use coxswain_api::{Status, Value, json, schema, time};
use coxswain_storage::{Revision, Storage};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const GROUP: &str = "apiextensions.k8s.io";
/// How soon a step that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// As discovery lists them for custom resources.
const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

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

/// What others need to know of a definition, and whether there is anything left to do about it.
struct Known {
    revision: Revision,
    group: String,
    /// Its accepted plural, singular and short names.
    resources: Vec<String>,
    /// Its accepted kinds.
    kinds: Vec<String>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Something is to be done about it, or to be tried again.
    Pending,
    /// Somebody else has its names; it is looked at again when a definition of its group changes.
    Conflicted,
    Settled,
}

impl Known {
    fn of(definition: &Value, revision: Revision) -> Self {
        let accepted = |field: &str| text(definition, &format!("/status/acceptedNames/{field}")).to_owned();
        let mut resources = vec![accepted("plural"), accepted("singular")];
        resources.extend(strings(definition, "/status/acceptedNames/shortNames"));
        let kinds = vec![accepted("kind"), accepted("listKind")];
        Self { revision, group: text(definition, "/spec/group").to_owned(), resources, kinds, state: State::Pending }
    }
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
        for (name, object) in present {
            let known = &self.known[name];
            match known.state {
                State::Settled => continue,
                State::Conflicted if !touched.contains(&known.group) => continue,
                _ => {}
            }
            match self.bring_up(name, &object.tree()).await {
                Ok(state) => {
                    if let Some(known) = self.known.get_mut(name) {
                        known.state = state;
                    }
                }
                Err(why) => {
                    failure.get_or_insert(why);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Does what is to be done about one definition.
    async fn bring_up(&mut self, name: &str, definition: &Value) -> Result<State, String> {
        if definition.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null()) {
            self.finalize(definition).await?;
            return Ok(State::Pending);
        }
        let (status, accepted) = self.accept_names(definition);
        if accepted {
            self.serve(definition).await.map_err(|status| format!("serving {name}: {status}"))?;
        }
        if definition.get("status").is_none_or(|old| !same_but_times(old, &status)) {
            let mut changed = definition.clone();
            changed["status"] = status;
            self.put(&format!("{DEFINITIONS}/{name}/status"), &changed).await?;
            // Whoever is looked at next must know which names are taken now.
            if let Some(known) = self.known.get_mut(name) {
                *known = Known::of(&changed, known.revision);
            }
        }
        // What was written just now comes back as a change.
        Ok(match accepted && is_true(definition, "NamesAccepted") {
            true => State::Settled,
            false => State::Conflicted,
        })
    }

    /// Checks the names against those of all other definitions of the group: the status that comes of it, and whether the
    /// definition may be served.
    fn accept_names(&self, definition: &Value) -> (Value, bool) {
        let group = text(definition, "/spec/group");
        let own = text(definition, "/metadata/name");
        let others = || self.known.iter().filter(|(name, known)| known.group == group && *name != own);
        let resources: HashSet<String> = others().flat_map(|(_, known)| known.resources.iter().cloned()).collect();
        let kinds: HashSet<String> = others().flat_map(|(_, known)| known.kinds.iter().cloned()).collect();
        let requested = |field: &str| text(definition, &format!("/spec/names/{field}")).to_owned();
        let before = |field: &str| text(definition, &format!("/status/acceptedNames/{field}")).to_owned();
        let mut accepted = serde_json::Map::new();
        let mut conflict: Option<(&str, String)> = None;
        let mut take = |field: &'static str,
                        reason: &'static str,
                        used: &HashSet<String>,
                        accepted: &mut serde_json::Map<String, Value>| {
            let name = requested(field);
            if !name.is_empty() && used.contains(&name) {
                // The last conflict found is the one told.
                conflict = Some((reason, format!("{} is already in use", coxswain_api::field::go_quote(&name))));
                accepted.insert(field.into(), before(field).into());
            } else {
                accepted.insert(field.into(), name.into());
            }
        };
        take("plural", "PluralConflict", &resources, &mut accepted);
        take("singular", "SingularConflict", &resources, &mut accepted);
        let short_names = strings(definition, "/spec/names/shortNames");
        let taken: Vec<&String> = short_names.iter().filter(|n| resources.contains(*n)).collect();
        let short_conflict: Option<(&str, String)> = (!taken.is_empty()).then(|| {
            let quoted: Vec<String> = taken.iter().map(|n| coxswain_api::field::go_quote(n)).collect();
            let (list, verb) = (quoted.join(", "), if taken.len() == 1 { "is" } else { "are" });
            ("ShortNamesConflict", format!("{list} {verb} already in use"))
        });
        if short_conflict.is_none() && !short_names.is_empty() {
            accepted.insert("shortNames".into(), short_names.into());
        }
        take("kind", "KindConflict", &kinds, &mut accepted);
        take("listKind", "ListKindConflict", &kinds, &mut accepted);
        let late = conflict.as_ref().is_some_and(|(reason, _)| matches!(*reason, "KindConflict" | "ListKindConflict"));
        let conflict = if late { conflict } else { short_conflict.or(conflict) };
        let categories = strings(definition, "/spec/names/categories");
        if !categories.is_empty() {
            accepted.insert("categories".into(), categories.into());
        }
        accepted.retain(|field, value| matches!(field.as_str(), "plural" | "kind") || value != "");

        let now = time::format_seconds(jiff::Timestamp::now());
        let mut status = definition.get("status").cloned().unwrap_or_else(|| json!({}));
        status["acceptedNames"] = Value::Object(accepted);
        match &conflict {
            None => set_condition(&mut status, "NamesAccepted", "True", "NoConflicts", "no conflicts found", &now),
            Some((reason, message)) => set_condition(&mut status, "NamesAccepted", "False", reason, message, &now),
        }
        let established = is_true(definition, "Established");
        if conflict.is_none() && !established {
            let message = "the initial names have been accepted";
            set_condition(&mut status, "Established", "True", "InitialNamesAccepted", message, &now);
        } else if conflict.is_some() && !established {
            set_condition(&mut status, "Established", "False", "NotAccepted", "not all names are accepted", &now);
        }
        (status, conflict.is_none() || established)
    }

    /// A conflict means that somebody else wrote meanwhile; their change brings us here again.
    async fn put(&self, path: &str, object: &Value) -> Result<(), String> {
        match send(&*self.objects, "PUT", path, Some(object)).await? {
            (200 | 201 | 404 | 409, _) => Ok(()),
            (code, answer) => Err(format!("updating {path}: {code} {}", answer["message"])),
        }
    }

    /// Puts every served version of a definition into the table of what is served.
    async fn serve(&mut self, definition: &Value) -> Result<(), Status> {
        let name = text(definition, "/metadata/name").to_owned();
        let spec = definition.get("spec").cloned().unwrap_or_default();
        let hash: [u8; 32] = Sha256::digest(spec.to_string().as_bytes()).into();
        if self.served.get(&name).is_some_and(|(old, ..)| *old == hash) {
            return Ok(());
        }
        let (group, plural) = (text(&spec, "/group").to_owned(), text(&spec, "/names/plural").to_owned());
        let Some(stored) = storage_version(definition).map(str::to_owned) else { return Ok(()) };
        let versions = spec.get("versions").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut made: Vec<(Arc<ResourceType>, Arc<CustomResource>, bool)> = Vec::new();
        for version in &versions {
            let ty = Arc::new(resource_type(&spec, version, &stored));
            made.push((ty, Arc::new(CustomResource::new(version)), version["served"] == true));
        }
        let Some((hub, strategy, _)) = made.iter().find(|(ty, ..)| *ty.group_version.version == *stored).cloned()
        else {
            return Ok(());
        };
        // Watchers see the change of a schema as the end of their watch, as they do upstream.
        let store = Arc::new(Store::new(hub, strategy, self.storage.clone(), self.feed.clone(), true));
        self.feed.remove(store.prefix()).await;
        self.feed.add(store.clone()).await?;
        self.front.resources.change(|index| {
            index.remove(&group, &plural);
            for (ty, strategy, is_served) in made {
                if is_served {
                    let store = Some(store.clone());
                    index.insert(Arc::new(Served { ty, strategy, store, custom: true }));
                }
            }
        });
        self.served.insert(name, (hash, group, plural));
        Ok(())
    }

    async fn withdraw(&mut self, name: &str) {
        if let Some((_, group, plural)) = self.served.remove(name) {
            self.front.resources.change(|index| index.remove(&group, &plural));
            self.feed.remove(&self.feed.layout().key_prefix(&group, &plural, true)).await;
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

/// Whether two statuses say the same, whenever it was that they came to say it.
fn same_but_times(a: &Value, b: &Value) -> bool {
    let without = |status: &Value| {
        let mut status = status.clone();
        for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                condition.remove("lastTransitionTime");
            }
        }
        status
    };
    without(a) == without(b)
}

/// One version of a definition as the catalogue has built-in resources.
fn resource_type(spec: &Value, version: &Value, stored: &str) -> ResourceType {
    let boxes = |pointer: &str| -> Vec<Box<str>> { strings(spec, pointer).into_iter().map(Into::into).collect() };
    let group_version = GroupVersion { group: text(spec, "/group").into(), version: text(version, "/name").into() };
    let kind = text(spec, "/names/kind");
    let structural = match version.pointer("/schema/openAPIV3Schema") {
        Some(schema) => Structural::parse(schema),
        None => Structural { preserve_unknown: true, ..Structural::default() },
    };
    let object = structural.to_struct();
    let mut subresources = Vec::new();
    if version.pointer("/subresources/status").is_some_and(|s| !s.is_null()) {
        subresources.push(SubresourceType {
            name: "status".into(),
            group_version: group_version.clone(),
            kind: kind.into(),
            verbs: ["get", "patch", "update"].map(Into::into).into(),
            schema: object.clone(),
        });
    }
    if version.pointer("/subresources/scale").is_some_and(|s| !s.is_null())
        && let Some(scale) = schema::builtin().kind("autoscaling", "v1", "Scale")
    {
        subresources.push(SubresourceType {
            name: "scale".into(),
            group_version: GroupVersion { group: "autoscaling".into(), version: "v1".into() },
            kind: "Scale".into(),
            verbs: ["get", "patch", "update"].map(Into::into).into(),
            schema: scale.clone(),
        });
    }
    let hash = Sha256::digest(format!("{}/{stored}/{kind}", group_version.group));
    ResourceType {
        plural: text(spec, "/names/plural").into(),
        singular: text(spec, "/names/singular").into(),
        kind: kind.into(),
        list_kind: text(spec, "/names/listKind").into(),
        namespaced: text(spec, "/scope") == "Namespaced",
        short_names: boxes("/names/shortNames"),
        categories: boxes("/names/categories"),
        verbs: VERBS.map(Into::into).into(),
        subresources,
        storage_group: group_version.group.clone(),
        storage_version: stored.into(),
        storage_version_hash: base64::engine::general_purpose::STANDARD.encode(&hash[..8]).into(),
        served_by_default: true,
        schema: object,
        group_version,
    }
}
