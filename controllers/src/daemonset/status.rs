//! The status that a DaemonSet's pods amount to.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Node;

use super::plan::ByNode;
use super::{is_updated, placement};
use crate::common::{owners, pods};

pub(super) fn calculate(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    by_node: &ByNode,
    hash: &str,
    now: Timestamp,
) -> DaemonSetStatus {
    let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let (mut desired, mut current, mut misscheduled) = (0, 0, 0);
    let (mut ready, mut available, mut updated) = (0, 0, 0);
    for node in nodes {
        let present = by_node.get(owners::name(&node.metadata)).filter(|pods| !pods.is_empty());
        if !placement::should_run(set, node).0 {
            misscheduled += i32::from(present.is_some());
            continue;
        }
        desired += 1;
        let Some(present) = present else { continue };
        current += 1;
        // The newest stands for the node.
        let Some(pod) = present.iter().max_by_key(|pod| (owners::created(&pod.metadata), pod.metadata.name.clone()))
        else {
            continue;
        };
        if pods::is_ready(pod) {
            ready += 1;
            available += i32::from(pods::is_available(pod, min_ready, now));
        }
        updated += i32::from(is_updated(set, hash, pod));
    }
    let some = |count: i32| (count != 0).then_some(count);
    let before = set.status.as_ref();
    DaemonSetStatus {
        current_number_scheduled: current,
        desired_number_scheduled: desired,
        number_misscheduled: misscheduled,
        number_ready: ready,
        number_available: some(available),
        number_unavailable: some(desired - available),
        updated_number_scheduled: some(updated),
        observed_generation: set.metadata.generation,
        collision_count: before.and_then(|status| status.collision_count),
        conditions: before.and_then(|status| status.conditions.clone()),
    }
}
