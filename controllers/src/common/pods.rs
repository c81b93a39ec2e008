//! What a pod's status says, and the order in which pods are given up.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodSpec, PodStatus};

use super::slim::SlimPod;
use super::{owners, time};

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

pub fn status(pod: &Pod) -> Option<&PodStatus> {
    pod.status.as_ref()
}

pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

pub fn is_terminated(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor about to go.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminated(pod) && !owners::is_deleting(&pod.metadata)
}

/// About to go, but not finished.
pub fn is_terminating(pod: &Pod) -> bool {
    !is_terminated(pod) && owners::is_deleting(&pod.metadata)
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Ready for at least `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    next_available(pod, min_ready_seconds, now) == Some(Duration::ZERO)
}

/// How long until the pod is available if it stays ready; `None` if it is not ready.
pub fn next_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let ready = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    if min_ready_seconds <= 0 {
        return Some(Duration::ZERO);
    }
    let since = ready.last_transition_time.as_ref()?;
    Some(Duration::from_secs(min_ready_seconds as u64).saturating_sub(time::since(since, now)))
}

pub fn restarts_max(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let restartable_init = |name: &str| {
        pod.spec.as_ref().is_some_and(|spec| {
            spec.init_containers
                .iter()
                .flatten()
                .any(|container| container.name == name && container.restart_policy.as_deref() == Some("Always"))
        })
    };
    let init = status
        .and_then(|status| status.init_container_statuses.as_ref())
        .into_iter()
        .flatten()
        .filter(|status| restartable_init(&status.name));
    containers.into_iter().flatten().chain(init).map(|status| status.restart_count).max().unwrap_or(0)
}

/// A pod that may be given up, with how many related pods share its node.
pub struct Ranked {
    pub pod: Arc<SlimPod>,
    pub doubled: usize,
}

/// Which pod goes first: unassigned before assigned, pending before running, unready before ready, cheaper before dearer,
/// doubled up before alone, younger ready (on a logarithmic scale) before older, restarted before not, younger before older.
pub fn deletion_order(left: &Ranked, right: &Ranked, now: Timestamp) -> Ordering {
    let (a, b) = (&left.pod, &right.pod);
    let assigned = |pod: &Pod| !node_name(pod).is_empty();
    let phase_rank = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let cost = |pod: &Pod| {
        owners::annotation(&pod.metadata, "controller.kubernetes.io/pod-deletion-cost")
            .and_then(|cost| cost.parse::<i32>().ok())
            .unwrap_or(0)
    };
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| right.doubled.cmp(&left.doubled))
        .then_with(|| match (is_ready(a), is_ready(b)) {
            (true, true) => age_order(ready_since(a), ready_since(b), now),
            _ => Ordering::Equal,
        })
        .then_with(|| restarts_max(b).cmp(&restarts_max(a)))
        .then_with(|| age_order(created(a), created(b), now))
        // Of pods of the same age the choice is arbitrary, but it is not to depend on the order of the list.
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready")?.last_transition_time.as_ref().map(|time| time.0)
}

/// Younger first, times within the same power of two of seconds being equal; an unknown time is the youngest.
fn age_order(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let rank = |time: Timestamp| {
        let seconds = now.duration_since(time).as_secs();
        if seconds <= 0 { 0 } else { (seconds as f64).log2() as i64 + 1 }
    };
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(a), Some(b)) => rank(a).cmp(&rank(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Ranked {
        Ranked { pod: Arc::new(SlimPod::of(serde_json::from_value(json).unwrap())), doubled: 0 }
    }

    #[test]
    fn less_useful_pods_go_first() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let running = |name: &str, ready: &str, since: &str| {
            pod(serde_json::json!({
                "metadata": {"name": name, "creationTimestamp": since, "uid": name},
                "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]},
            }))
        };
        let mut pods = [
            running("old", "True", "2026-01-01T00:00:00Z"),
            running("young", "True", "2026-01-01T00:59:00Z"),
            running("unready", "False", "2026-01-01T00:00:00Z"),
            pod(serde_json::json!({"metadata": {"name": "pending"}, "status": {"phase": "Pending"}})),
        ];
        pods.sort_by(|a, b| deletion_order(a, b, now));
        let names: Vec<_> = pods.iter().map(|ranked| ranked.pod.metadata.name.clone().unwrap()).collect();
        assert_eq!(names, ["pending", "unready", "young", "old"]);
    }
}
