//! Takes back the condition that announced a disruption which did not come: a pod that is still there two minutes after it was to
//! be evicted or preempted may count again (upstream: the disruption controller's `stalePodDisruptionWorker`).

use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::{drive, feed};
use coxswain_client::objects::{self, PatchKind};
use coxswain_client::{Client, Event, ObjectKey, Store, WorkQueue, errors, kube};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::Context;
use crate::common::slim::SlimPod;
use crate::common::{owners, pods, time};

const CONDITION: &str = "DisruptionTarget";
const TIMEOUT: Duration = Duration::from_secs(120);

struct State {
    client: Client,
    pods: Store<SlimPod>,
    queue: WorkQueue<ObjectKey>,
}

pub(super) async fn run(context: Context) {
    let pods = context.pods();
    let queue = WorkQueue::<ObjectKey>::new();
    let state = Arc::new(State { client: context.client.clone(), pods: pods.store(), queue: queue.clone() });
    let feeds = feed(&pods, |event| {
        if matches!(event, Event::Deleted(_)) {
            return;
        }
        let pod = event.object();
        if let Some(left) = stale_in(pod, Timestamp::now()) {
            queue.add_after(ObjectKey::of_meta(&pod.metadata), left);
        }
    });
    let reconcile = |state: Arc<State>, key: ObjectKey| async move { state.reconcile(key).await };
    drive("stale-pod-disruption", state, queue.clone(), 1, context.shutdown.clone(), reconcile, feeds).await;
}

/// When the pod's announced disruption will be stale; none if it has none, or is on its way. What the kubelet announces may take as
/// long as it likes.
fn stale_in(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let condition = pods::condition(pod, CONDITION).filter(|condition| condition.status == "True")?;
    let by_kubelet = condition.reason.as_deref() == Some("TerminationByKubelet");
    if by_kubelet || owners::is_deleting(&pod.metadata) || pods::is_terminated(pod) {
        return None;
    }
    let since = condition.last_transition_time.as_ref().map_or(Duration::ZERO, |at| time::since(at, now));
    Some(TIMEOUT.saturating_sub(since))
}

impl State {
    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(pod) = self.pods.get_key(&key) else { return Ok(()) };
        let Some(left) = stale_in(&pod, Timestamp::now()) else { return Ok(()) };
        if !left.is_zero() {
            self.queue.add_after(key, left);
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": owners::uid(&pod.metadata)},
            "status": {"conditions": [{"type": CONDITION, "status": "False", "reason": "", "message": "",
                "lastTransitionTime": time::now()}]},
        });
        let patched = objects::patch::<Pod>(&self.client, &key, "status", PatchKind::Strategic, &patch).await;
        errors::ignore_not_found(patched).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disruption_that_does_not_come_is_stale_after_two_minutes() {
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        let pod = |reason: &str, phase: &str, deleted: Option<&str>| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p", "deletionTimestamp": deleted}, "status": {"phase": phase,
                "conditions": [{"type": CONDITION, "status": "True", "reason": reason,
                    "lastTransitionTime": "2026-01-01T00:00:30Z"}]}}),
            )
            .unwrap()
        };
        assert_eq!(stale_in(&pod("EvictionByEvictionAPI", "Running", None), now), Some(Duration::from_secs(30)));
        assert_eq!(stale_in(&pod("TerminationByKubelet", "Running", None), now), None);
        assert_eq!(stale_in(&pod("PreemptionByScheduler", "Failed", None), now), None);
        assert_eq!(stale_in(&pod("PreemptionByScheduler", "Running", Some("2026-01-01T00:00:31Z")), now), None);
        let later: Timestamp = "2026-01-01T00:09:00Z".parse().unwrap();
        assert_eq!(stale_in(&pod("PreemptionByScheduler", "Running", None), later), Some(Duration::ZERO));
    }
}
