//! What the scheduler keeps of a node: its projection, and the sums over the pods on it.

use std::sync::Arc;

use coxswain_api::taints;
use coxswain_client::k8s_openapi::api::core::v1::Node as ApiNode;

use crate::pod::{HostPort, PodInfo, Tolerance};
use crate::resources::Resources;
use crate::selector::Labels;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Taint {
    pub key: Box<str>,
    pub value: Box<str>,
    pub effect: Box<str>,
}

impl Taint {
    pub fn is_hard(&self) -> bool {
        matches!(&*self.effect, "NoSchedule" | "NoExecute")
    }

    pub fn tolerated_by(&self, tolerances: &[Tolerance]) -> bool {
        let taint = taints::Taint { key: &self.key, value: &self.value, effect: &self.effect };
        let tolerates = |t: &Tolerance| {
            taints::Toleration { key: &t.key, operator: &t.operator, value: &t.value, effect: &t.effect }
                .tolerates(taint)
        };
        tolerances.iter().any(tolerates)
    }
}

/// The fields of a node that matter; equal projections mean that nothing did change for the scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: Box<str>,
    pub labels: Labels,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    /// Names of images on the node, with their size.
    pub images: Vec<(Box<str>, i64)>,
}

impl Node {
    pub fn new(node: ApiNode) -> Self {
        let (spec, status) = (node.spec.unwrap_or_default(), node.status.unwrap_or_default());
        let taints = spec.taints.iter().flatten();
        let images = status.images.iter().flatten();
        let mut images: Vec<(Box<str>, i64)> = images
            .flat_map(|i| i.names.iter().flatten().map(|n| (n.as_str().into(), i.size_bytes.unwrap_or(0))))
            .collect();
        images.sort();
        Self {
            name: node.metadata.name.unwrap_or_default().into(),
            labels: Labels::new(node.metadata.labels.as_ref()),
            taints: taints
                .map(|t| Taint {
                    key: t.key.as_str().into(),
                    value: t.value.clone().unwrap_or_default().into(),
                    effect: t.effect.as_str().into(),
                })
                .collect(),
            unschedulable: spec.unschedulable.unwrap_or(false),
            allocatable: Resources::new(status.allocatable.as_ref()),
            images,
        }
    }

    /// The region and zone of the node, by which pods are spread and nodes visited in turn.
    pub fn zone(&self) -> String {
        let get = |key: &str, old: &str| self.labels.get(key).or_else(|| self.labels.get(old)).unwrap_or_default();
        let region = get("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region");
        let zone = get("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone");
        format!("{region}:\u{0}:{zone}")
    }
}

/// A node and what runs on it, assumed pods included.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Its place in the cluster's list, by which topologies count.
    pub index: usize,
    /// Absent if the node is gone but pods of it are still known.
    pub node: Option<Arc<Node>>,
    pub pods: Vec<Arc<PodInfo>>,
    pub requested: Resources,
    pub requested_scored: Resources,
    pub ports: Vec<HostPort>,
    /// How many of the pods have any affinity.
    pub with_affinity: usize,
    /// Rises with every change.
    pub generation: u64,
}

impl NodeInfo {
    pub fn node(&self) -> &Node {
        // Nodes without an object are never offered to plugins.
        self.node.as_deref().expect("a node that is visited has an object")
    }

    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.count(&pod, 1);
        self.ports.extend(pod.spec.ports.iter().cloned());
        self.pods.push(pod);
    }

    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|p| *p.uid == *uid)?;
        let pod = self.pods.swap_remove(at);
        self.count(&pod, -1);
        for port in &pod.spec.ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
        Some(pod)
    }

    fn count(&mut self, pod: &PodInfo, times: i64) {
        self.requested.add(&pod.spec.requests, times);
        self.requested_scored.add(&pod.spec.requests_scored, times);
        if pod.spec.has_affinity() {
            self.with_affinity = self.with_affinity.wrapping_add_signed(times as isize);
        }
    }
}
