//! Keeps pods off nodes whose ports they want are taken.

use crate::cluster::Cluster;
use crate::framework::{Change, CycleState, Plugin, PreFiltered, Rejection, Verdict, point, unschedulable};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub const NAME: &str = "NodePorts";

pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_FILTER | point::FILTER
    }

    fn may_help(&self, _: &Cluster, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(_) => true,
            Change::PodDeleted(other) => {
                pod.spec.ports.iter().any(|wanted| other.spec.ports.iter().any(|port| port.conflicts(wanted)))
            }
            _ => false,
        }
    }

    fn pre_filter(&self, _: &Cluster, pod: &PodInfo, _: &mut CycleState) -> Result<PreFiltered, Box<Rejection>> {
        Ok(PreFiltered { skip: pod.spec.ports.is_empty(), nodes: None })
    }

    fn filter(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> Verdict {
        if pod.spec.ports.iter().any(|wanted| info.ports.iter().any(|port| port.conflicts(wanted))) {
            return unschedulable(NAME, "node(s) didn't have free ports for the requested pod ports");
        }
        Ok(())
    }
}
