//! What others know of a pod's worker, and how they reach it (upstream: parts of `pod_workers.go`, `pod_manager.go` and `status_manager.go`).

use crate::allocation::{self, Allocation};
use crate::pod::{self, PodExt};
use crate::probes::Results;
use crate::runtime_status::RuntimePod;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Why a pod has to end, and how.
#[derive(Clone, Debug, Default)]
pub struct Termination {
    pub requested: bool,
    /// Shorter than the pod's own, as an eviction may want it.
    pub grace: Option<Duration>,
    /// Reason and message of the phase `Failed` for pods that the kubelet itself ends.
    pub failure: Option<(String, String)>,
    /// The object is gone from the API.
    pub removed: bool,
}

/// What others know of a pod's worker, and how they reach it.
pub struct PodHandle {
    pub uid: String,
    pod: RwLock<Arc<Pod>>,
    /// What the pod was granted, while it asks for something else.
    allocation: RwLock<Option<Allocation>>,
    /// The status to be published. Its watchers are the status sender and the probes.
    status: watch::Sender<Arc<PodStatus>>,
    wake: Notify,
    /// The runtime's state may differ from what the worker saw last.
    pub dirty: AtomicBool,
    /// Something other than the runtime wants the pod looked at.
    pub asked: AtomicBool,
    pub probes: Results,
    termination: watch::Sender<Termination>,
    runtime: RwLock<Arc<RuntimePod>>,
    /// Ids and states of the pod's sandboxes and containers as the worker saw them, for the lifecycle generator to compare.
    pub seen: Mutex<BTreeMap<String, i32>>,
    /// The pod's containers are gone and its object may go too.
    pub may_be_deleted: watch::Sender<bool>,
    /// Never started here, because the node did not admit it.
    pub rejected: AtomicBool,
    /// The worker has ended its containers.
    pub finished: AtomicBool,
}

impl PodHandle {
    pub fn new(pod: Arc<Pod>) -> Self {
        let status = Arc::new(pod.status().clone());
        let handle = PodHandle {
            uid: pod.uid().to_string(),
            pod: RwLock::new(pod.clone()),
            allocation: RwLock::new(Allocation::recovered(&pod)),
            status: watch::Sender::new(status),
            wake: Notify::new(),
            dirty: AtomicBool::new(true),
            asked: AtomicBool::new(false),
            probes: Results::default(),
            termination: watch::Sender::new(Termination::default()),
            runtime: RwLock::default(),
            seen: Mutex::default(),
            may_be_deleted: watch::Sender::new(false),
            rejected: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        };
        handle.update(pod);
        handle
    }

    pub fn pod(&self) -> Arc<Pod> {
        self.pod.read().clone()
    }

    /// The pod with the resources it was granted.
    pub fn allocated_pod(&self) -> Arc<Pod> {
        let pod = self.pod();
        allocation::granted(pod, self.allocation.read().as_ref())
    }

    pub fn allocation(&self) -> Option<Allocation> {
        self.allocation.read().clone()
    }

    /// The pod's wish is granted.
    pub fn allocate(&self) {
        *self.allocation.write() = None;
    }

    pub fn status(&self) -> Arc<PodStatus> {
        self.status.borrow().clone()
    }

    pub fn status_changes(&self) -> watch::Receiver<Arc<PodStatus>> {
        self.status.subscribe()
    }

    pub fn publish(&self, status: PodStatus) {
        self.status.send_if_modified(|present| {
            let changed = **present != status;
            if changed {
                *present = Arc::new(status);
            }
            changed
        });
    }

    /// Publishes the status if nothing newer comes up within `wait`: what is about to change need not be told.
    pub fn publish_unless_newer(self: &Arc<Self>, status: PodStatus, wait: Duration) {
        let (handle, before) = (self.clone(), self.status());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            if Arc::ptr_eq(&handle.status(), &before) {
                handle.publish(status);
            }
        });
    }

    /// Makes the status known once more, as if it had changed.
    pub fn tell_again(&self) {
        self.status.send_modify(|_| {});
    }

    pub fn runtime(&self) -> Arc<RuntimePod> {
        self.runtime.read().clone()
    }

    pub fn set_runtime(&self, runtime: Arc<RuntimePod>) {
        let seen = runtime
            .sandboxes
            .iter()
            .map(|s| (s.id.clone(), s.state))
            .chain(runtime.containers.iter().map(|c| (c.id.clone(), c.state as i32)))
            .collect();
        *self.seen.lock() = seen;
        *self.runtime.write() = runtime;
    }

    /// A newer version of the object. Older ones, which a fresh list may bring after a patch's answer, are ignored.
    pub fn update(&self, pod: Arc<Pod>) {
        let version = |p: &Pod| p.metadata.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        let matters = {
            let mut present = self.pod.write();
            if version(&pod) < version(&present) {
                return;
            }
            let matters = concerns_worker(&present, &pod);
            if matters {
                let held = Allocation::of(&present);
                if !held.is_asked_by(&pod) {
                    self.allocation.write().get_or_insert(held);
                }
            }
            *present = pod.clone();
            matters
        };
        if pod.metadata.deletion_timestamp.is_some() {
            self.terminate(Some(pod::grace_period(&pod)), None);
        }
        if matters {
            self.wake();
        }
    }

    /// Asks the worker to look at the pod.
    pub fn wake(&self) {
        self.asked.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Tells the worker that the runtime holds something else than it saw last.
    pub fn runtime_changed(&self) {
        self.dirty.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Asks for the pod's end. A shorter grace period than before takes effect at once; a longer one never does.
    pub fn terminate(&self, grace: Option<Duration>, failure: Option<(String, String)>) {
        self.termination.send_if_modified(|t| {
            let shorter = match (grace, t.grace) {
                (Some(new), Some(old)) => new < old,
                (Some(_), None) => true,
                (None, _) => false,
            };
            let changed = !t.requested || shorter;
            t.requested = true;
            if shorter {
                t.grace = grace;
            }
            if t.failure.is_none() {
                t.failure = failure;
            }
            changed
        });
        self.wake();
    }

    pub fn removed(&self) {
        let grace = pod::grace_period(&self.pod());
        self.terminate(Some(grace), None);
        self.termination.send_modify(|t| t.removed = true);
        self.wake();
    }

    pub fn termination(&self) -> watch::Receiver<Termination> {
        self.termination.subscribe()
    }
}

/// Whether a newer version of a pod is more than the echo of the kubelet's own status. An echo must not make a worker try again at once
/// what has just failed.
fn concerns_worker(old: &Pod, new: &Pod) -> bool {
    let (a, b) = (&old.metadata, &new.metadata);
    let foreign = |pod: &Pod| {
        let conditions = pod.status().conditions.iter().flatten();
        let others = conditions.filter(|c| !crate::status::OWNED_CONDITIONS.contains(&c.type_.as_str()));
        others.map(|c| (c.type_.clone(), c.status.clone())).collect::<Vec<_>>()
    };
    a.generation != b.generation
        || a.deletion_timestamp != b.deletion_timestamp
        || a.deletion_grace_period_seconds != b.deletion_grace_period_seconds
        || a.labels != b.labels
        || a.annotations != b.annotations
        || pod::is_terminal(old.status()) != pod::is_terminal(new.status())
        || foreign(old) != foreign(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(extra: serde_json::Value) -> Arc<Pod> {
        let mut value =
            serde_json::json!({"metadata": {"name": "p", "uid": "u", "generation": 1, "resourceVersion": "5"}});
        for (name, part) in extra.as_object().unwrap() {
            for (key, v) in part.as_object().unwrap() {
                value[name][key] = v.clone();
            }
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[tokio::test]
    async fn an_echo_of_the_own_status_wakes_nobody() {
        let handle = PodHandle::new(pod(serde_json::json!({})));
        let woken =
            async |handle: &PodHandle| tokio::time::timeout(Duration::from_millis(1), handle.woken()).await.is_ok();
        let condition = |kind: &str| serde_json::json!({"conditions": [{"type": kind, "status": "True"}]});
        handle.update(pod(serde_json::json!({"metadata": {"resourceVersion": "6"}, "status": condition("Ready")})));
        assert!(!woken(&handle).await);
        handle.update(pod(
            serde_json::json!({"metadata": {"resourceVersion": "7"}, "status": condition("example.com/gate")}),
        ));
        assert!(woken(&handle).await);
        handle.update(pod(serde_json::json!({"metadata": {"resourceVersion": "3", "generation": 9}})));
        assert!(!woken(&handle).await && handle.pod().generation() == 1);
    }

    #[test]
    fn a_grace_period_can_only_become_shorter() {
        let handle = PodHandle::new(pod(serde_json::json!({})));
        let grace = |seconds| Some(Duration::from_secs(seconds));
        handle.terminate(grace(30), None);
        handle.terminate(grace(60), None);
        assert_eq!(handle.termination().borrow().grace, grace(30));
        handle.terminate(grace(1), None);
        assert_eq!(handle.termination().borrow().grace, grace(1));
    }
}
