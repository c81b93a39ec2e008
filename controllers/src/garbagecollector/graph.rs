//! Who owns whom. Pure: changes go in, work comes out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{FOREGROUND, ORPHAN};
use crate::common::discovery::Resource;
use crate::common::owners;

/// An object, as far as ownership goes.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub uid: String,
    pub resource: Arc<Resource>,
    pub namespace: String,
    pub name: String,
    pub deleting: bool,
    /// It is to go after its dependents.
    pub foreground: bool,
    /// Its dependents are to stay when it goes.
    pub orphaning: bool,
    /// UIDs of its owners, and whether it holds up their deletion.
    pub owners: Vec<(String, bool)>,
}

impl Node {
    pub(super) fn new(resource: &Arc<Resource>, meta: ObjectMeta) -> Self {
        let deleting = owners::is_deleting(&meta);
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|found| found == finalizer);
        Self {
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphaning: deleting && has(ORPHAN),
            owners: meta
                .owner_references
                .iter()
                .flatten()
                .map(|owner| (owner.uid.clone(), owner.block_owner_deletion == Some(true)))
                .collect(),
            resource: resource.clone(),
            uid: meta.uid.unwrap_or_default(),
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
        }
    }

    pub(super) fn path(&self) -> String {
        self.resource.path(&self.namespace, &self.name)
    }
}

/// An object to be looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    Delete(String),
    Orphan(String),
}

#[derive(Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    /// By owner, whether or not the owner has been seen.
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<Node> {
        self.nodes.get(uid).cloned()
    }

    pub(super) fn has_dependents(&self, uid: &str) -> bool {
        self.dependents.contains_key(uid)
    }

    pub(super) fn dependents(&self, uid: &str) -> Vec<Node> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.get(uid)).collect()
    }

    pub(super) fn any_dependent_waits(&self, uid: &str) -> bool {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.nodes.get(uid)).any(|node| node.foreground)
    }

    /// Dependents that hold up the object's deletion, and whether they themselves wait for theirs.
    pub(super) fn blocking_dependents(&self, uid: &str) -> Vec<(String, bool)> {
        let dependents = self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.nodes.get(uid));
        dependents
            .filter(|node| node.owners.iter().any(|(owner, blocks)| owner == uid && *blocks))
            .map(|node| (node.uid.clone(), node.foreground))
            .collect()
    }

    /// An object came or changed.
    pub(super) fn apply(&mut self, node: Node) -> Vec<Work> {
        let mut work = Vec::new();
        let uid = node.uid.clone();
        let old = self.nodes.get(&uid).cloned();
        let before = old.as_ref().map(|old| old.owners.as_slice()).unwrap_or_default();
        for (owner, blocked) in before {
            let still = node.owners.iter().find(|(present, _)| present == owner);
            if still.is_none() {
                self.unlink(owner, &uid);
            }
            // An owner that this object no longer holds up may be able to go now.
            if *blocked && still.is_none_or(|(_, blocks)| !blocks) && self.is_foreground(owner) {
                work.push(Work::Delete(owner.clone()));
            }
        }
        for (owner, _) in &node.owners {
            if before.iter().any(|(present, _)| present == owner) {
                continue;
            }
            self.dependents.entry(owner.clone()).or_default().insert(uid.clone());
            // The owner may be gone already, or about to go.
            let gone_or_going = self.nodes.get(owner).is_none_or(|owner| owner.deleting);
            if gone_or_going && !work.contains(&Work::Delete(uid.clone())) {
                work.push(Work::Delete(uid.clone()));
            }
        }
        if node.orphaning && !old.as_ref().is_some_and(|old| old.orphaning) {
            work.push(Work::Orphan(uid.clone()));
        }
        if node.foreground && !old.as_ref().is_some_and(|old| old.foreground) {
            work.extend(self.dependents.get(&uid).into_iter().flatten().cloned().map(Work::Delete));
            work.push(Work::Delete(uid.clone()));
        }
        self.nodes.insert(uid, node);
        work
    }

    /// An object is gone: its dependents may have to go, and its owners may be able to.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut work: Vec<Work> = self.dependents.get(uid).into_iter().flatten().cloned().map(Work::Delete).collect();
        for (owner, _) in &node.owners {
            self.unlink(owner, uid);
            if self.is_foreground(owner) {
                work.push(Work::Delete(owner.clone()));
            }
        }
        work
    }

    /// These are all objects of a resource.
    pub(super) fn replace(&mut self, resource: &Resource, nodes: Vec<Node>) -> Vec<Work> {
        let present: HashSet<String> = nodes.iter().map(|node| node.uid.clone()).collect();
        let gone: Vec<String> = self
            .nodes
            .values()
            .filter(|node| *node.resource == *resource && !present.contains(&node.uid))
            .map(|node| node.uid.clone())
            .collect();
        let mut work: Vec<Work> = gone.iter().flat_map(|uid| self.remove(uid)).collect();
        work.extend(nodes.into_iter().flat_map(|node| self.apply(node)).collect::<Vec<_>>());
        work
    }

    /// A resource is no longer served: what is known of its objects is no longer kept.
    pub(super) fn forget_resource(&mut self, resource: &Resource) -> Vec<Work> {
        self.replace(resource, Vec::new())
    }

    fn is_foreground(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|node| node.foreground)
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(uid: &str, owners: &[(&str, bool)], foreground: bool) -> Node {
        let resource = Resource {
            group: String::new(),
            version: "v1".to_owned(),
            name: "pods".to_owned(),
            kind: "Pod".to_owned(),
            namespaced: true,
            verbs: Vec::new(),
        };
        Node {
            uid: uid.to_owned(),
            resource: Arc::new(resource),
            namespace: "n".to_owned(),
            name: uid.to_owned(),
            deleting: foreground,
            foreground,
            orphaning: false,
            owners: owners.iter().map(|(uid, blocks)| ((*uid).to_owned(), *blocks)).collect(),
        }
    }

    fn delete(uid: &str) -> Work {
        Work::Delete(uid.to_owned())
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let mut graph = Graph::default();
        assert!(graph.apply(node("owner", &[], false)).is_empty());
        assert!(graph.apply(node("child", &[("owner", true)], false)).is_empty());
        assert_eq!(graph.remove("owner"), [delete("child")]);
        assert_eq!(graph.apply(node("late", &[("owner", true)], false)), [delete("late")]);
    }

    #[test]
    fn a_foreground_deletion_ends_when_nothing_blocks_it() {
        let mut graph = Graph::default();
        graph.apply(node("owner", &[], false));
        graph.apply(node("child", &[("owner", true)], false));
        graph.apply(node("free", &[("owner", false)], false));
        let work = graph.apply(node("owner", &[], true));
        assert_eq!(work.len(), 3);
        assert_eq!(graph.blocking_dependents("owner"), [("child".to_owned(), false)]);
        assert_eq!(graph.remove("child"), [delete("owner")]);
        assert!(graph.blocking_dependents("owner").is_empty());
    }
}
