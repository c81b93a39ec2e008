//! Who owns whom. Pure: changes go in, work comes out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

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
    pub owners: Vec<Owner>,
}

/// What an object says of one of its owners, which need not be true: it names an object by more than its UID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub uid: String,
    /// Whether the dependent holds up the owner's deletion.
    pub blocks: bool,
    pub api_version: String,
    pub kind: String,
    pub name: String,
}

impl From<OwnerReference> for Owner {
    fn from(reference: OwnerReference) -> Self {
        Self {
            uid: reference.uid,
            blocks: reference.block_owner_deletion == Some(true),
            api_version: reference.api_version,
            kind: reference.kind,
            name: reference.name,
        }
    }
}

impl Node {
    pub(super) fn new(resource: &Arc<Resource>, meta: ObjectMeta) -> Self {
        let deleting = owners::is_deleting(&meta);
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|found| found == finalizer);
        Self {
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphaning: deleting && has(ORPHAN),
            owners: meta.owner_references.iter().flatten().cloned().map(Owner::from).collect(),
            resource: resource.clone(),
            uid: meta.uid.unwrap_or_default(),
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
        }
    }

    pub(super) fn path(&self) -> String {
        self.resource.path(&self.namespace, &self.name)
    }

    /// Whether an object of another namespace, or one of the cluster, calls this one its owner.
    fn is_out_of_reach_of(&self, dependent: &Node) -> bool {
        !self.namespace.is_empty() && self.namespace != dependent.namespace
    }

    /// Whether a dependent calls this object what it is.
    fn is_named_by(&self, owner: &Owner) -> bool {
        self.name == owner.name && self.resource.kind == owner.kind && self.resource.api_version() == owner.api_version
    }
}

/// An object to be looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    Delete(String),
    Orphan(String),
    /// Somebody should know that this object names an owner in another namespace.
    Report {
        uid: String,
        owner: Owner,
    },
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
            .filter(|node| node.owners.iter().any(|owner| owner.uid == uid && owner.blocks))
            .map(|node| (node.uid.clone(), node.foreground))
            .collect()
    }

    /// An object came or changed.
    pub(super) fn apply(&mut self, node: Node) -> Vec<Work> {
        let mut work = Vec::new();
        let uid = node.uid.clone();
        let old = self.nodes.get(&uid).cloned();
        let before = old.as_ref().map(|old| old.owners.as_slice()).unwrap_or_default();
        for owner in before {
            let still = node.owners.iter().find(|present| present.uid == owner.uid);
            if still.is_none() {
                self.unlink(&owner.uid, &uid);
            }
            // An owner that this object no longer holds up may be able to go now.
            if owner.blocks && still.is_none_or(|still| !still.blocks) && self.is_foreground(&owner.uid) {
                work.push(Work::Delete(owner.uid.clone()));
            }
        }
        let mut suspect = false;
        for owner in &node.owners {
            if before.iter().any(|present| present.uid == owner.uid) {
                continue;
            }
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            suspect |= match self.nodes.get(&owner.uid) {
                // The owner may be gone already, or have never been.
                None => true,
                Some(found) if found.is_out_of_reach_of(&node) => {
                    work.push(Work::Report { uid: uid.clone(), owner: owner.clone() });
                    true
                }
                Some(found) => found.deleting || !found.is_named_by(owner),
            };
        }
        if suspect {
            work.push(Work::Delete(uid.clone()));
        }
        if old.is_none() {
            work.extend(self.misled_dependents(&node));
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
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            if self.is_foreground(&owner.uid) {
                work.push(Work::Delete(owner.uid.clone()));
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

    /// Dependents that were seen before their owner, and turn out to be out of its reach.
    fn misled_dependents(&self, owner: &Node) -> Vec<Work> {
        let dependents = self.dependents.get(&owner.uid).into_iter().flatten().filter_map(|uid| self.nodes.get(uid));
        let misled = dependents.filter(|dependent| owner.is_out_of_reach_of(dependent));
        let reference = |dependent: &Node| dependent.owners.iter().find(|found| found.uid == owner.uid).cloned();
        misled
            .filter_map(|dependent| Some(Work::Report { uid: dependent.uid.clone(), owner: reference(dependent)? }))
            .collect()
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
            owners: owners.iter().map(|(uid, blocks)| owner(uid, *blocks)).collect(),
        }
    }

    fn owner(uid: &str, blocks: bool) -> Owner {
        Owner {
            uid: uid.to_owned(),
            blocks,
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: uid.to_owned(),
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

    #[test]
    fn an_owner_that_is_not_what_its_dependent_says_is_looked_up() {
        let elsewhere = |uid: &str, owners| Node { namespace: "elsewhere".to_owned(), ..node(uid, owners, false) };
        let report = |uid: &str| Work::Report { uid: uid.to_owned(), owner: owner("owner", false) };
        let mut graph = Graph::default();
        assert_eq!(graph.apply(elsewhere("early", &[("owner", false)])), [delete("early")]);
        assert_eq!(graph.apply(node("owner", &[], false)), [report("early")]);
        assert_eq!(graph.apply(elsewhere("late", &[("owner", false)])), [report("late"), delete("late")]);
        let mut other_kind = node("child", &[("owner", false)], false);
        other_kind.owners[0].kind = "ConfigMap".to_owned();
        assert_eq!(graph.apply(other_kind), [delete("child")]);
    }
}
