//! Tells kubelets how long to keep secrets and config maps before asking again, by an annotation on their node that
//! grows with the cluster; the counterpart of `pkg/controller/ttl`.

use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::objects::{self, PatchKind};
use coxswain_client::{Client, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use crate::Context;
use crate::common::owners;

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";
/// Nodes from which and up to which a time holds; the ranges overlap, so that a cluster at a border does not flap.
const STEPS: [(usize, usize, u32); 5] =
    [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

struct State {
    client: Client,
    nodes: Store<Node>,
    step: Mutex<usize>,
}

pub async fn run(context: Context) {
    let nodes: Informer<Node> = context.informers.informer();
    nodes.synced().await;
    let queue = WorkQueue::<ObjectKey>::new();
    let state = Arc::new(State { client: context.client.clone(), nodes: nodes.store(), step: Mutex::new(0) });
    let feeds = feed(&nodes, |event| {
        let count = nodes.store().len();
        let changed = {
            let mut step = state.step.lock();
            let before = *step;
            while *step > 0 && count < STEPS[*step].0 {
                *step -= 1;
            }
            while count > STEPS[*step].1 {
                *step += 1;
            }
            *step != before
        };
        if changed {
            for node in nodes.store().list() {
                queue.add(ObjectKey::of(node.as_ref()));
            }
        } else {
            queue.add(ObjectKey::of(event.object().as_ref()));
        }
    });
    let reconcile = |state: Arc<State>, key: ObjectKey| async move { state.reconcile(key).await };
    drive("ttl", state.clone(), queue.clone(), 2, context.shutdown.clone(), reconcile, feeds).await;
}

impl State {
    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(node) = self.nodes.get_key(&key) else { return Ok(()) };
        let wanted = STEPS[*self.step.lock()].2.to_string();
        if owners::annotation(&node.metadata, ANNOTATION) == Some(wanted.as_str()) {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": {ANNOTATION: wanted}}});
        let patched = objects::patch::<Node>(&self.client, &key, "", PatchKind::Strategic, &patch).await;
        errors::ignore_not_found(patched).map(drop)
    }
}
