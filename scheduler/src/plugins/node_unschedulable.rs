//! Keeps pods off cordoned nodes, unless they tolerate the taint of the same meaning.

use crate::cluster::Cluster;
use crate::framework::{Change, CycleState, Plugin, Verdict, point, unresolvable};
use crate::node::{NodeInfo, Taint};
use crate::pod::PodInfo;

pub const NAME: &str = "NodeUnschedulable";

pub struct NodeUnschedulable;

fn tolerates(pod: &PodInfo) -> bool {
    let taint = Taint { key: "node.kubernetes.io/unschedulable".into(), value: "".into(), effect: "NoSchedule".into() };
    taint.tolerated_by(&pod.spec.tolerations)
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::FILTER
    }

    fn may_help(&self, _: &Cluster, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(node) => !node.unschedulable || tolerates(pod),
            Change::NodeUpdated { old, new } => {
                (old.unschedulable && !new.unschedulable) || (old.taints != new.taints && tolerates(pod))
            }
            Change::OwnUpdated { old, new } => old.spec.tolerations != new.spec.tolerations && tolerates(new),
            _ => false,
        }
    }

    fn filter(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> Verdict {
        if info.node().unschedulable && !tolerates(pod) {
            return unresolvable(NAME, "node(s) were unschedulable");
        }
        Ok(())
    }
}
