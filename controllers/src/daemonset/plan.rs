//! Which pods of a DaemonSet to make and which to delete. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{is_updated, placement};
use crate::common::slim::SlimPod;
use crate::common::{int_or_percent, owners, pods};

pub(super) type ByNode = BTreeMap<String, Vec<Arc<SlimPod>>>;

/// Nodes that need a pod, and pods to delete.
#[derive(Default)]
pub(super) struct Plan {
    pub create: Vec<String>,
    pub delete: Vec<Arc<SlimPod>>,
}

pub(super) fn rolls(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

fn min_ready(set: &DaemonSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
}

/// How many pods more than one a node, and how many nodes without an available pod, an update may cause.
fn limits(set: &DaemonSet, desired: i32) -> (i32, i32) {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let resolve = |value: Option<&IntOrString>| {
        value.and_then(|value| int_or_percent::resolve(value, desired, true)).unwrap_or(0)
    };
    let surge = resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()));
    let unavailable = match rolling {
        Some(rolling) => resolve(rolling.max_unavailable.as_ref()),
        None => 1,
    };
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// Gives every node that should have a pod one, and no other node any.
pub(super) fn manage(set: &DaemonSet, nodes: &[Arc<Node>], by_node: &ByNode, hash: &str, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let desired = nodes.iter().filter(|node| placement::should_run(set, node).0).count() as i32;
    let surges = rolls(set) && limits(set, desired).0 > 0;
    for node in nodes {
        let name = owners::name(&node.metadata);
        let (should_run, may_stay) = placement::should_run(set, node);
        let present = by_node.get(name).map(Vec::as_slice).unwrap_or_default();
        if present.is_empty() {
            if should_run {
                plan.create.push(name.to_owned());
            }
            continue;
        }
        if !may_stay {
            plan.delete.extend(present.iter().filter(|pod| !owners::is_deleting(&pod.metadata)).cloned());
            continue;
        }
        let mut running = Vec::new();
        for pod in present.iter().filter(|pod| !owners::is_deleting(&pod.metadata)) {
            if pods::is_terminated(pod) { plan.delete.push(pod.clone()) } else { running.push(pod) }
        }
        if running.is_empty()
            && should_run
            && present.iter().all(|pod| pods::is_terminated(pod) && owners::is_deleting(&pod.metadata))
        {
            plan.create.push(name.to_owned());
        }
        // Of several pods the one that is assigned, and then the oldest, stays.
        running.sort_by_key(|pod| {
            (pods::node_name(pod).is_empty(), owners::created(&pod.metadata), pod.metadata.name.clone())
        });
        if !surges {
            plan.delete.extend(running.into_iter().skip(1).cloned());
            continue;
        }
        // During an update with a surge a node may have one pod of each kind.
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| is_updated(set, hash, pod));
        let new_available = new.first().is_some_and(|pod| pods::is_available(pod, min_ready(set), now));
        plan.delete.extend(new.into_iter().skip(1).cloned());
        plan.delete.extend(old.into_iter().skip(usize::from(!new_available)).cloned());
    }
    let known: std::collections::BTreeSet<&str> = nodes.iter().map(|node| owners::name(&node.metadata)).collect();
    // Pods of nodes that are gone and that nothing has placed yet would never start.
    for (_, pods) in by_node.iter().filter(|(name, _)| !known.contains(name.as_str())) {
        plan.delete.extend(
            pods.iter().filter(|pod| pods::node_name(pod).is_empty() && !owners::is_deleting(&pod.metadata)).cloned(),
        );
    }
    plan
}

/// Replaces pods of old templates as far as the strategy allows it.
pub(super) fn rolling_update(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    by_node: &ByNode,
    hash: &str,
    now: Timestamp,
) -> Plan {
    let desired = nodes.iter().filter(|node| placement::should_run(set, node).0).count() as i32;
    let (surge, unavailable) = limits(set, desired);
    let is_available = |pod: &SlimPod| pods::is_available(pod, min_ready(set), now);
    let mut plan = Plan::default();
    let mut candidates = Vec::new();
    let mut busy = 0;
    for node in nodes.iter().filter(|node| placement::should_run(set, node).0) {
        let name = owners::name(&node.metadata);
        let live: Vec<&Arc<SlimPod>> = by_node
            .get(name)
            .into_iter()
            .flatten()
            .filter(|pod| !owners::is_deleting(&pod.metadata) && !pods::is_terminated(pod))
            .collect();
        let new = live.iter().find(|pod| is_updated(set, hash, pod));
        let old = live.iter().find(|pod| !is_updated(set, hash, pod));
        if surge > 0 {
            match (new, old) {
                (_, None) => {}
                (None, Some(old)) if !is_available(old) => plan.create.push(name.to_owned()),
                (None, Some(_)) => candidates.push((name.to_owned(), None)),
                (Some(new), Some(old)) => {
                    if is_available(new) {
                        plan.delete.push((*old).clone());
                    } else {
                        busy += 1;
                    }
                }
            }
        } else {
            match (new, old) {
                // What is missing or double is not for the update to mend.
                (None, None) | (Some(_), Some(_)) => busy += 1,
                (Some(new), None) => busy += i32::from(!is_available(new)),
                (None, Some(old)) if !is_available(old) => {
                    plan.delete.push((*old).clone());
                    busy += 1;
                }
                (None, Some(old)) => candidates.push((name.to_owned(), Some((*old).clone()))),
            }
        }
    }
    let room = (if surge > 0 { surge } else { unavailable } - busy).max(0) as usize;
    for (name, pod) in candidates.into_iter().take(room) {
        match pod {
            Some(pod) => plan.delete.push(pod),
            None => plan.create.push(name),
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set() -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "d", "uid": "u"},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [], "nodeSelector": {"x": "y"}}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}},
        }))
        .unwrap()
    }

    fn node(name: &str, label: &str) -> Arc<Node> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": {"x": label}}})).unwrap())
    }

    fn pod(name: &str, hash: &str) -> Arc<SlimPod> {
        let pod = json!({
            "metadata": {"name": name, "labels": {"controller-revision-hash": hash}},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        Arc::new(SlimPod::of(serde_json::from_value(pod).unwrap()))
    }

    #[test]
    fn every_node_that_fits_gets_one_pod() {
        let now = Timestamp::UNIX_EPOCH;
        let nodes = [node("a", "y"), node("b", "z"), node("c", "y")];
        let by_node =
            ByNode::from([("b".to_owned(), vec![pod("p", "h")]), ("c".to_owned(), vec![pod("q", "h"), pod("r", "h")])]);
        let plan = manage(&set(), &nodes, &by_node, "h", now);
        assert_eq!(plan.create, ["a"]);
        assert_eq!(plan.delete.len(), 2);
    }

    #[test]
    fn an_update_replaces_as_many_pods_as_may_be_unavailable() {
        let now = Timestamp::UNIX_EPOCH;
        let nodes = [node("a", "y"), node("b", "y"), node("c", "y")];
        let by_node: ByNode = ["a", "b", "c"].iter().map(|name| ((*name).to_owned(), vec![pod(name, "old")])).collect();
        assert_eq!(rolling_update(&set(), &nodes, &by_node, "new", now).delete.len(), 1);
    }
}
