//! The taints that a node's conditions stand for. Pure.

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::common::{nodes, time};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition, status, taint.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// The taints with those of effect NoSchedule as the conditions say; `None` if they are so already.
pub(super) fn with_no_schedule(node: &Node, present: &[Taint]) -> Option<Vec<Taint>> {
    let mut wanted: Vec<&str> = BY_CONDITION
        .iter()
        .filter(|(kind, status, _)| nodes::condition(node, kind).is_some_and(|found| found.status == *status))
        .map(|(_, _, taint)| *taint)
        .collect();
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        wanted.push(UNSCHEDULABLE);
    }
    let ours = |taint: &Taint| {
        taint.effect == "NoSchedule"
            && (taint.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key))
    };
    reconcile(present, &wanted, "NoSchedule", ours)
}

/// The taints with those of effect NoExecute as readiness says; `None` if they are so already.
pub(super) fn with_no_execute(node: &Node, present: &[Taint]) -> Option<Vec<Taint>> {
    let wanted: &[&str] = match nodes::condition(node, "Ready").map(|ready| ready.status.as_str()) {
        Some("False") => &[NOT_READY],
        Some("Unknown") => &[UNREACHABLE],
        _ => &[],
    };
    reconcile(present, wanted, "NoExecute", is_no_execute)
}

pub(super) fn is_no_execute(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && (taint.key == NOT_READY || taint.key == UNREACHABLE)
}

fn reconcile(present: &[Taint], wanted: &[&str], effect: &str, ours: impl Fn(&Taint) -> bool) -> Option<Vec<Taint>> {
    let mut taints: Vec<Taint> =
        present.iter().filter(|taint| !ours(taint) || wanted.contains(&taint.key.as_str())).cloned().collect();
    for key in wanted {
        if !present.iter().any(|taint| taint.key == *key && taint.effect == effect) {
            taints.push(Taint {
                key: (*key).to_owned(),
                value: None,
                effect: effect.to_owned(),
                time_added: Some(time::now()),
            });
        }
    }
    (taints != present).then_some(taints)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let node: Node = serde_json::from_value(json!({
            "spec": {"unschedulable": true, "taints": [
                {"key": "mine", "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}, {"type": "DiskPressure", "status": "True"}]},
        }))
        .unwrap();
        let taints = with_no_schedule(&node, nodes::taints(&node)).unwrap();
        let keys: Vec<_> = taints.iter().map(|taint| taint.key.as_str()).collect();
        assert_eq!(keys, ["mine", UNREACHABLE, "node.kubernetes.io/disk-pressure", UNSCHEDULABLE]);
        assert!(with_no_schedule(&node, &taints).is_none());
    }
}
