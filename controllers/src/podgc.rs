//! Removes pods that nobody else will: too many finished ones, those of nodes that are gone, and those deleted before they
//! were ever placed. The counterpart of `pkg/controller/podgc`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::every;
use coxswain_client::objects::{self, Deletion, PatchKind};
use coxswain_client::{Informer, ObjectKey, errors, kube};
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Context;
use crate::common::slim::SlimPod;
use crate::common::{nodes, owners, pods, time};

const PERIOD: Duration = Duration::from_secs(20);
/// A node must have been missing this long before its pods are given up.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub async fn run(context: Context) {
    let node_informer: Informer<Node> = context.informers.informer();
    let pods = context.pods();
    tokio::join!(node_informer.synced(), pods.synced());
    let missing: Mutex<HashMap<String, Instant>> = Mutex::default();
    every(PERIOD, &context.shutdown, || async {
        let pods = pods.store().list();
        let doomed = collect(&pods, &node_informer, &missing, context.config.terminated_pod_gc_threshold);
        for (pod, condition) in doomed {
            if let Err(error) = force_delete(&context, &pod, condition).await {
                tracing::debug!(pod = %ObjectKey::of_meta(&pod.metadata), %error, "cannot remove the pod");
            }
        }
    })
    .await;
}

fn collect(
    pods: &[Arc<SlimPod>],
    node_informer: &Informer<Node>,
    missing: &Mutex<HashMap<String, Instant>>,
    threshold: usize,
) -> Vec<(Arc<SlimPod>, Option<Value>)> {
    let mut doomed: Vec<(Arc<SlimPod>, Option<Value>)> = Vec::new();
    if threshold > 0 {
        let mut finished: Vec<&Arc<SlimPod>> =
            pods.iter().filter(|pod| pods::is_terminated(pod) && !owners::is_deleting(&pod.metadata)).collect();
        finished.sort_by_key(|pod| (owners::created(&pod.metadata), pod.metadata.name.clone()));
        let surplus = finished.len().saturating_sub(threshold);
        doomed.extend(finished.into_iter().take(surplus).map(|pod| (pod.clone(), None)));
    }
    let store = node_informer.store();
    let mut missing = missing.lock();
    missing.retain(|name, _| store.get("", name).is_none());
    for pod in pods {
        let name = pods::node_name(pod);
        if name.is_empty() {
            if owners::is_deleting(&pod.metadata) {
                doomed.push((pod.clone(), None));
            }
            continue;
        }
        match store.get("", name) {
            Some(node) => {
                let unready = nodes::condition(&node, "Ready").is_none_or(|ready| ready.status != "True");
                let out = nodes::taints(&node).iter().any(|taint| taint.key == OUT_OF_SERVICE);
                if unready && out && owners::is_deleting(&pod.metadata) {
                    doomed.push((pod.clone(), None));
                }
            }
            None => {
                let since = missing.entry(name.to_owned()).or_insert_with(Instant::now);
                if since.elapsed() >= QUARANTINE {
                    let condition = json!({
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "DeletionByPodGC",
                        "message": "PodGC: node no longer exists",
                        "lastTransitionTime": time::now(),
                    });
                    doomed.push((pod.clone(), Some(condition)));
                }
            }
        }
    }
    doomed
}

/// Ends a pod that no kubelet will end, and removes it.
async fn force_delete(context: &Context, pod: &Pod, condition: Option<Value>) -> Result<(), kube::Error> {
    let key = ObjectKey::of_meta(&pod.metadata);
    if !pods::is_terminated(pod) {
        let mut status = json!({"phase": "Failed"});
        if let Some(condition) = condition {
            status["conditions"] = json!([condition]);
        }
        let patch = json!({"status": status});
        let patched = objects::patch::<Pod>(&context.client, &key, "status", PatchKind::Strategic, &patch).await;
        errors::ignore_not_found(patched)?;
    }
    let deletion = Deletion { grace_seconds: Some(0), uid: pod.metadata.uid.as_deref(), ..Deletion::default() };
    errors::ignore_not_found(objects::delete::<Pod>(&context.client, &key, &deletion).await).map(drop)
}
