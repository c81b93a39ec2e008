//! Deletes pods from nodes with NoExecute taints that they do not tolerate, or not for ever; the counterpart of
//! `pkg/controller/tainteviction`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::{drive, feed};
use coxswain_client::events;
use coxswain_client::objects::{self, Deletion, PatchKind};
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::Context;
use crate::common::slim::{self, SlimPod};
use crate::common::{nodes, owners, pods, time};

const WORKERS: usize = 8;

struct Controller {
    context: Context,
    nodes: Store<Node>,
    pods: Store<SlimPod>,
    queue: WorkQueue<ObjectKey>,
    /// By pod: its UID, and when it is to be deleted.
    due: Mutex<HashMap<ObjectKey, (String, Instant)>>,
}

pub async fn run(context: Context) {
    let node_informer: Informer<Node> = context.informers.informer();
    let pods = context.pods();
    tokio::join!(node_informer.synced(), pods.synced());
    let controller = Arc::new(Controller {
        nodes: node_informer.store(),
        pods: pods.store(),
        queue: WorkQueue::new(),
        due: Mutex::default(),
        context: context.clone(),
    });
    let feeds = async {
        tokio::join!(
            feed(&node_informer, |event| {
                let node = event.object();
                let before = match &event {
                    Event::Updated { old, .. } => no_execute(old),
                    _ => Vec::new(),
                };
                if no_execute(node) != before {
                    for pod in controller.pods.by_index(slim::BY_NODE, owners::name(&node.metadata)) {
                        controller.queue.add(ObjectKey::of_meta(&pod.metadata));
                    }
                }
            }),
            feed(&pods, |event| {
                let pod = event.object();
                let relevant = match &event {
                    Event::Updated { old, new } => {
                        pods::node_name(old) != pods::node_name(new) || tolerations(old) != tolerations(new)
                    }
                    _ => true,
                };
                if relevant {
                    controller.queue.add(ObjectKey::of_meta(&pod.metadata));
                }
            }),
        )
    };
    drive(
        "taint-eviction",
        controller.clone(),
        controller.queue.clone(),
        WORKERS,
        context.shutdown.clone(),
        |controller, key| async move { controller.reconcile(key).await },
        feeds,
    )
    .await;
}

fn no_execute(node: &Node) -> Vec<Taint> {
    nodes::taints(node).iter().filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

/// How long a pod may stay: for ever if `None`.
fn allowance(taints: &[Taint], tolerations: &[Toleration]) -> Option<Duration> {
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let matching: Vec<_> = tolerations.iter().filter(|toleration| nodes::tolerates(toleration, taint)).collect();
        if matching.is_empty() {
            return Some(Duration::ZERO);
        }
        for seconds in matching.iter().filter_map(|toleration| toleration.toleration_seconds) {
            let allowed = Duration::from_secs(seconds.max(0) as u64);
            shortest = Some(shortest.map_or(allowed, |shortest| shortest.min(allowed)));
        }
    }
    shortest
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let pod = self.pods.get_key(&key).filter(|pod| !owners::is_deleting(&pod.metadata));
        let Some(pod) = pod else {
            self.due.lock().remove(&key);
            return Ok(());
        };
        let taints = self.nodes.get("", pods::node_name(&pod)).map(|node| no_execute(&node)).unwrap_or_default();
        let allowed = if taints.is_empty() { None } else { allowance(&taints, tolerations(&pod)) };
        let uid = owners::uid(&pod.metadata).to_owned();
        let Some(allowed) = allowed else {
            if self.due.lock().remove(&key).is_some() {
                let pod: &Pod = &pod;
                let message = format!("Cancelling deletion of Pod {key}");
                self.context.recorder.normal(&events::reference(pod), "TaintManagerEviction", message);
            }
            return Ok(());
        };
        let now = Instant::now();
        let left = {
            let mut due = self.due.lock();
            let entry = due.entry(key.clone()).or_insert_with(|| (uid.clone(), now + allowed));
            if entry.0 != uid {
                *entry = (uid, now + allowed);
            }
            // A taint that was added since may allow less.
            entry.1 = entry.1.min(now + allowed);
            entry.1.saturating_duration_since(now)
        };
        if !left.is_zero() {
            self.queue.add_after(key, left);
            return Ok(());
        }
        self.evict(&key, &pod).await?;
        self.due.lock().remove(&key);
        Ok(())
    }

    async fn evict(&self, key: &ObjectKey, pod: &Pod) -> Result<(), kube::Error> {
        let message = format!("Marking for deletion Pod {key}");
        self.context.recorder.normal(&events::reference(pod), "TaintManagerEviction", message);
        let patch = json!({"status": {"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": time::now(),
        }]}});
        let client = &self.context.client;
        errors::ignore_not_found(objects::patch::<Pod>(client, key, "status", PatchKind::Strategic, &patch).await)?;
        let deletion = Deletion { uid: pod.metadata.uid.as_deref(), ..Deletion::default() };
        errors::ignore_not_found(objects::delete::<Pod>(client, key, &deletion).await).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_shortest_toleration_counts_and_an_untolerated_taint_ends_at_once() {
        let taint = |key: &str| Taint { key: key.to_owned(), effect: "NoExecute".to_owned(), ..Taint::default() };
        let tolerations: Vec<Toleration> = serde_json::from_value(json!([
            {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "b", "operator": "Exists"},
        ]))
        .unwrap();
        assert_eq!(allowance(&[taint("a"), taint("b")], &tolerations), Some(Duration::from_secs(300)));
        assert_eq!(allowance(&[taint("b")], &tolerations), None);
        assert_eq!(allowance(&[taint("a"), taint("c")], &tolerations), Some(Duration::ZERO));
    }
}
