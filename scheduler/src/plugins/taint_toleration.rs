//! Keeps pods off nodes with taints they do not tolerate, and prefers nodes with fewer such soft taints.

use crate::cluster::Cluster;
use crate::framework::{self, Change, CycleState, Plugin, Verdict, point, unresolvable};
use crate::node::{Node, NodeInfo};
use crate::pod::PodInfo;

pub const NAME: &str = "TaintToleration";

pub struct TaintToleration;

fn tolerated(pod: &PodInfo, node: &Node) -> bool {
    node.taints.iter().all(|taint| !taint.is_hard() || taint.tolerated_by(&pod.spec.tolerations))
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::FILTER | point::PRE_SCORE | point::SCORE
    }

    fn may_help(&self, _: &Cluster, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(node) => tolerated(pod, node),
            Change::NodeUpdated { old, new } => !tolerated(pod, old) && tolerated(pod, new),
            Change::OwnUpdated { old, new } => old.spec.tolerations != new.spec.tolerations,
            _ => false,
        }
    }

    fn filter(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> Verdict {
        if tolerated(pod, info.node()) {
            return Ok(());
        }
        unresolvable(NAME, "node(s) had untolerated taint(s)")
    }

    fn pre_score(&self, cluster: &Cluster, _: &PodInfo, _: &mut CycleState, nodes: &[usize]) -> bool {
        nodes.iter().any(|n| !cluster.at(*n).node().taints.is_empty())
    }

    fn score(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> i64 {
        let soft = info.node().taints.iter().filter(|t| &*t.effect == "PreferNoSchedule");
        let tolerations = &pod.spec.tolerations;
        // Only tolerations that may mean a soft taint count.
        let matches = |taint: &&crate::node::Taint| {
            tolerations
                .iter()
                .filter(|t| t.effect.is_empty() || &*t.effect == "PreferNoSchedule")
                .any(|t| taint.tolerated_by(std::slice::from_ref(t)))
        };
        soft.filter(|taint| !matches(taint)).count() as i64
    }

    fn normalize(&self, _: &Cluster, _: &PodInfo, _: &CycleState, _: &[usize], scores: &mut [i64]) {
        framework::normalize(scores, true);
    }
}
