//! Keeps pods with scheduling gates out of the queue.

use crate::cluster::Cluster;
use crate::framework::{Change, Plugin, Verdict, point, unresolvable};
use crate::pod::PodInfo;

pub const NAME: &str = "SchedulingGates";

pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_ENQUEUE
    }

    fn may_help(&self, _: &Cluster, _: &PodInfo, change: &Change) -> bool {
        matches!(change, Change::OwnUpdated { new, .. } if new.gates.is_empty())
    }

    fn pre_enqueue(&self, pod: &PodInfo) -> Verdict {
        if pod.gates.is_empty() {
            return Ok(());
        }
        unresolvable(NAME, format!("waiting for scheduling gates: [{}]", pod.gates.join(" ")))
    }
}
