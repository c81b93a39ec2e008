//! Holds a pod to the node its spec names.

use crate::cluster::Cluster;
use crate::framework::{Change, CycleState, Plugin, Verdict, point, unresolvable};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub const NAME: &str = "NodeName";

pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::FILTER
    }

    fn may_help(&self, _: &Cluster, _: &PodInfo, change: &Change) -> bool {
        matches!(change, Change::NodeAdded(_))
    }

    fn filter(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> Verdict {
        if pod.node().is_some_and(|name| *name != *info.node().name) {
            return unresolvable(NAME, "node(s) didn't match the requested node name");
        }
        Ok(())
    }
}
