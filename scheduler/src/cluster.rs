//! The scheduler's view of the cluster: nodes with the pods on them, pods that are assumed there while their binding is
//! under way, nominations, and what plugins look up. Owned by the scheduling task, which alone changes it; so a cycle
//! works on it directly where upstream takes a snapshot of its cache.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::node::{Node, NodeInfo};
use crate::pod::PodInfo;
use crate::selector::Labels;
use crate::volumes::Volumes;
use crate::workloads::Workloads;

/// No domain: the node lacks the label.
pub const NO_DOMAIN: u32 = u32::MAX;

/// The domains of a topology key, numbered, so that counts per domain are plain vectors.
#[derive(Debug, Default)]
pub struct Topology {
    of_node: Vec<u32>,
    pub domains: usize,
}

impl Topology {
    pub fn domain(&self, node_index: usize) -> Option<usize> {
        self.of_node.get(node_index).copied().filter(|d| *d != NO_DOMAIN).map(|d| d as usize)
    }
}

struct Placed {
    pod: Arc<PodInfo>,
    node: usize,
    /// Whether only this scheduler knows yet.
    assumed: bool,
}

/// A pod came to a node or left it.
pub struct Moved {
    pub pod: Arc<PodInfo>,
    pub node: usize,
    pub came: bool,
}

#[derive(Default)]
pub struct Cluster {
    slots: Vec<NodeInfo>,
    free: Vec<usize>,
    by_name: HashMap<Box<str>, usize>,
    /// Nodes that have an object, zone by zone in turn.
    order: Vec<usize>,
    pods: HashMap<Box<str>, Placed>,
    namespaces: HashMap<Box<str>, Labels>,
    no_labels: Labels,
    /// On how many nodes an image is.
    images: HashMap<Box<str>, usize>,
    nominated: HashMap<Box<str>, Vec<Arc<PodInfo>>>,
    nominated_to: HashMap<Box<str>, Box<str>>,
    topologies: Mutex<HashMap<Box<str>, Arc<Topology>>>,
    generation: u64,
    pub workloads: Workloads,
    pub volumes: Volumes,
}

impl Cluster {
    pub fn new(workloads: Workloads, volumes: Volumes) -> Self {
        Self { workloads, volumes, ..Self::default() }
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The nodes in the order in which they are visited.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    pub fn at(&self, index: usize) -> &NodeInfo {
        &self.slots[index]
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.order.iter().map(|index| &self.slots[*index])
    }

    /// A node that has an object.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|index| &self.slots[*index]).filter(|info| info.node.is_some())
    }

    pub fn namespace_labels(&self, namespace: &str) -> &Labels {
        self.namespaces.get(namespace).unwrap_or(&self.no_labels)
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.into(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
    }

    pub fn nodes_with_image(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    pub fn is_placed(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placed| placed.assumed)
    }

    /// The domains of a label over the nodes as they are.
    pub fn topology(&self, key: &str) -> Arc<Topology> {
        let mut topologies = self.topologies.lock();
        if let Some(topology) = topologies.get(key) {
            return topology.clone();
        }
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut of_node = vec![NO_DOMAIN; self.slots.len()];
        for index in &self.order {
            if let Some(value) = self.slots[*index].node().labels.get(key) {
                let next = numbers.len() as u32;
                of_node[*index] = *numbers.entry(value).or_insert(next);
            }
        }
        let topology = Arc::new(Topology { of_node, domains: numbers.len() });
        topologies.insert(key.into(), topology.clone());
        topology
    }

    fn touch(&mut self, index: usize) {
        self.generation += 1;
        self.slots[index].generation = self.generation;
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(NodeInfo::default());
            self.slots.len() - 1
        });
        self.slots[index] = NodeInfo { index, ..NodeInfo::default() };
        self.by_name.insert(name.into(), index);
        index
    }

    fn release_if_unused(&mut self, index: usize, name: &str) {
        let slot = &self.slots[index];
        if slot.node.is_none() && slot.pods.is_empty() {
            self.by_name.remove(name);
            self.free.push(index);
        }
    }

    /// Adds or changes a node. Returns whether labels, taints or the set of nodes changed, on which counts depend.
    pub fn set_node(&mut self, node: Arc<Node>) -> bool {
        let index = self.slot(&node.name);
        let old = self.slots[index].node.replace(node.clone());
        self.touch(index);
        if old.as_ref().is_none_or(|old| old.images != node.images) {
            self.count_images(old.as_deref(), Some(&node));
        }
        let moved = old.as_ref().is_none_or(|old| old.labels != node.labels);
        if moved {
            self.topologies.lock().clear();
            self.arrange();
        }
        moved || old.is_some_and(|old| old.taints != node.taints || old.unschedulable != node.unschedulable)
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(&index) = self.by_name.get(name) else { return };
        if let Some(old) = self.slots[index].node.take() {
            self.count_images(Some(&old), None);
        }
        self.touch(index);
        self.topologies.lock().clear();
        self.arrange();
        self.release_if_unused(index, name);
    }

    fn count_images(&mut self, old: Option<&Node>, new: Option<&Node>) {
        for (image, _) in old.iter().flat_map(|n| &n.images) {
            if let Some(count) = self.images.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.images.remove(image);
                }
            }
        }
        for (image, _) in new.iter().flat_map(|n| &n.images) {
            *self.images.entry(image.clone()).or_default() += 1;
        }
    }

    /// Takes a node of each zone in turn, so that a search that ends early has seen all zones.
    fn arrange(&mut self) {
        let mut zones: Vec<(String, Vec<usize>)> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        for slot in self.slots.iter().filter(|slot| slot.node.is_some()) {
            let zone = slot.node().zone();
            let at = *known.entry(zone.clone()).or_insert_with(|| {
                zones.push((zone, Vec::new()));
                zones.len() - 1
            });
            zones[at].1.push(slot.index);
        }
        let longest = zones.iter().map(|(_, nodes)| nodes.len()).max().unwrap_or(0);
        self.order =
            (0..longest).flat_map(|i| zones.iter().filter_map(move |(_, nodes)| nodes.get(i).copied())).collect();
    }

    /// Counts a pod on its node. `assumed` says that the server has not confirmed it.
    pub fn place(&mut self, pod: Arc<PodInfo>, assumed: bool) -> Vec<Moved> {
        let mut moves = Vec::new();
        let Some(name) = pod.node().map(str::to_owned) else { return moves };
        if let Some(before) = self.pods.get_mut(&pod.uid) {
            let same = self.slots[before.node].index == self.by_name.get(&*name).copied().unwrap_or(usize::MAX)
                && before.pod.labels == pod.labels
                && before.pod.deleting == pod.deleting
                && before.pod.spec == pod.spec
                && before.pod.priority == pod.priority;
            if same {
                before.assumed &= assumed;
                let node = before.node;
                before.pod = pod.clone();
                if let Some(kept) = self.slots[node].pods.iter_mut().find(|p| p.uid == pod.uid) {
                    *kept = pod;
                }
                return moves;
            }
            moves.extend(self.unplace(&pod.uid));
        }
        let node = self.slot(&name);
        self.slots[node].add(pod.clone());
        self.touch(node);
        self.pods.insert(pod.uid.clone(), Placed { pod: pod.clone(), node, assumed });
        moves.push(Moved { pod, node, came: true });
        moves
    }

    /// Forgets a pod that ended, was deleted, or could not be bound.
    pub fn unplace(&mut self, uid: &str) -> Option<Moved> {
        let placed = self.pods.remove(uid)?;
        self.slots[placed.node].remove(uid);
        self.touch(placed.node);
        let name = placed.pod.spec.node_name.clone();
        self.release_if_unused(placed.node, &name);
        Some(Moved { pod: placed.pod, node: placed.node, came: false })
    }

    /// Reserves room on a node for a pod that waits for its victims to leave.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.withdraw(&pod.uid);
        if !node.is_empty() {
            self.nominated_to.insert(pod.uid.clone(), node.into());
            self.nominated.entry(node.into()).or_default().push(pod);
        }
    }

    pub fn withdraw(&mut self, uid: &str) {
        let Some(node) = self.nominated_to.remove(uid) else { return };
        if let Some(pods) = self.nominated.get_mut(&node) {
            pods.retain(|p| *p.uid != *uid);
            if pods.is_empty() {
                self.nominated.remove(&node);
            }
        }
    }

    pub fn nominated_node(&self, uid: &str) -> Option<&str> {
        self.nominated_to.get(uid).map(|n| &**n)
    }

    pub fn nominated(&self, node: &str) -> &[Arc<PodInfo>] {
        self.nominated.get(node).map(Vec::as_slice).unwrap_or_default()
    }
}
