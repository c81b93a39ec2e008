//! Notices nodes that stop reporting, marks them, and evicts their pods at a measured pace, the counterpart of
//! `pkg/controller/nodelifecycle`. [`tainteviction`] deletes the pods that do not tolerate the marks.

use std::collections::HashMap;
use std::sync::Arc;

use coxswain_client::drive::{every, feed};
use coxswain_client::events;
use coxswain_client::objects::{self, PatchKind};
use coxswain_client::{Event, Informer, ObjectKey, Selection, Store, WorkQueue, errors, kube};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::Context;
use crate::common::slim::{self, SlimPod};
use crate::common::{nodes, owners, pods, time};

pub mod tainteviction;
mod taints;
mod zones;

use zones::{Zone, ZoneState};

/// Kept equal to the conditions that a node that stops reporting no longer vouches for.
const UNKNOWN_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
const WORKERS: usize = 8;

struct Controller {
    context: Context,
    nodes: Store<Node>,
    leases: Store<Lease>,
    pods: Store<SlimPod>,
    taint_queue: WorkQueue<ObjectKey>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    health: HashMap<String, Health>,
    zones: HashMap<String, Zone>,
}

/// When this process last saw a sign of life.
struct Health {
    /// What it was: conditions and lease, as far as they tell.
    sign: (Option<String>, Option<String>),
    at: Instant,
    /// Whether the node was ready when last looked at.
    was_ready: bool,
}

pub async fn run(context: Context) {
    let node_informer: Informer<Node> = context.informers.informer();
    let leases: Informer<Lease> = context.informers.informer_with(Selection::default().within("kube-node-lease"));
    let pods = context.pods();
    tokio::join!(node_informer.synced(), leases.synced(), pods.synced());
    let controller = Arc::new(Controller {
        nodes: node_informer.store(),
        leases: leases.store(),
        pods: pods.store(),
        taint_queue: WorkQueue::new(),
        state: Mutex::default(),
        context: context.clone(),
    });
    let tainter = controller.clone();
    let tainting = coxswain_client::runner::run_controller(
        "node-lifecycle",
        controller.taint_queue.clone(),
        WORKERS,
        context.shutdown.clone(),
        move |key: ObjectKey| {
            let controller = tainter.clone();
            async move { controller.sync_no_schedule(&key.name).await }
        },
    );
    let feeds = feed(&node_informer, |event| {
        let node = event.object();
        if let Event::Deleted(node) = &event {
            controller.state.lock().health.remove(owners::name(&node.metadata));
            return;
        }
        controller.taint_queue.add(ObjectKey::of(node.as_ref()));
    });
    let monitor = every(context.config.node_monitor_period, &context.shutdown, || controller.monitor());
    tokio::join!(tainting, monitor, async {
        tokio::select! { () = feeds => {}, () = context.shutdown.cancelled() => {} }
    });
}

impl Controller {
    /// The taints that conditions stand for, so that the scheduler need look at taints only.
    async fn sync_no_schedule(&self, name: &str) -> Result<(), kube::Error> {
        let Some(node) = self.nodes.get("", name) else { return Ok(()) };
        let present = nodes::taints(&node);
        match taints::with_no_schedule(&node, present) {
            Some(taints) => self.set_taints(&node, taints).await,
            None => Ok(()),
        }
    }

    /// Writes a node's taints, unless they changed since they were read.
    async fn set_taints(&self, node: &Node, taints: Vec<Taint>) -> Result<(), kube::Error> {
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": (!taints.is_empty()).then_some(taints)},
        });
        let result =
            objects::patch::<Node>(&self.context.client, &ObjectKey::of(node), "", PatchKind::Merge, &patch).await;
        errors::ignore_not_found(result).map(drop)
    }

    /// One round over all nodes: who is alive, how each zone does, and whose pods are to go.
    async fn monitor(&self) {
        let all = self.nodes.list();
        let mut ready_of: HashMap<String, Vec<bool>> = HashMap::new();
        for node in &all {
            let ready = self.check_health(node).await.unwrap_or_else(|error| {
                tracing::debug!(node = owners::name(&node.metadata), %error, "cannot update the node");
                false
            });
            ready_of.entry(zones::zone_of(node)).or_default().push(ready);
        }
        self.update_zones(&ready_of);
        for node in &all {
            if let Err(error) = self.sync_no_execute(node).await {
                tracing::debug!(node = owners::name(&node.metadata), %error, "cannot taint the node");
            }
        }
    }

    /// Marks a node that has gone silent; says whether it is ready.
    async fn check_health(&self, node: &Node) -> Result<bool, kube::Error> {
        let name = owners::name(&node.metadata);
        let ready = nodes::condition(node, "Ready");
        let heartbeat = ready.and_then(|ready| ready.last_heartbeat_time.as_ref()).map(|time| time.0.to_string());
        let renewed = self
            .leases
            .get("kube-node-lease", name)
            .and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0.to_string()));
        let sign = (heartbeat, renewed);
        let config = &self.context.config;
        let (silent, was_ready) = {
            let mut state = self.state.lock();
            let health = state.health.entry(name.to_owned()).or_insert_with(|| {
                let message = format!("Node {name} event: Registered Node {name} in Controller");
                self.context.recorder.normal(&node_reference(node), "RegisteredNode", message);
                Health { sign: sign.clone(), at: Instant::now(), was_ready: false }
            });
            if health.sign != sign {
                health.sign = sign;
                health.at = Instant::now();
            }
            let grace =
                if ready.is_some() { config.node_monitor_grace_period } else { config.node_startup_grace_period };
            let was_ready = health.was_ready;
            let silent = health.at.elapsed() > grace;
            health.was_ready = !silent && ready.is_some_and(|ready| ready.status == "True");
            (silent, was_ready)
        };
        let is_ready = ready.is_some_and(|ready| ready.status == "True");
        let mut became_unready = was_ready && !is_ready;
        if silent {
            let changed = unknown_conditions(node);
            if !changed.is_empty() {
                let patch = json!({"status": {"conditions": changed}});
                let key = ObjectKey::of(node);
                objects::patch::<Node>(&self.context.client, &key, "status", PatchKind::Strategic, &patch).await?;
                became_unready |= is_ready;
            }
        }
        if became_unready {
            let about = node_reference(node);
            let message = format!("Node {name} status is now: NodeNotReady");
            self.context.recorder.normal(&about, "NodeNotReady", message);
            self.mark_pods_unready(name).await?;
        }
        Ok(is_ready && !silent)
    }

    /// Takes the pods of a node that is not ready out of service.
    async fn mark_pods_unready(&self, node: &str) -> Result<(), kube::Error> {
        for pod in self.pods.by_index(slim::BY_NODE, node) {
            if !pods::is_ready(&pod) {
                continue;
            }
            let patch = json!({"status": {"conditions": [
                {"type": "Ready", "status": "False", "lastTransitionTime": time::now()},
            ]}});
            let key = ObjectKey::of_meta(&pod.metadata);
            let result =
                objects::patch::<Pod>(&self.context.client, &key, "status", PatchKind::Strategic, &patch).await;
            errors::ignore_not_found(result)?;
            let pod: &Pod = &pod;
            self.context.recorder.warning(&events::reference(pod), "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }

    /// `ready_of` says of each zone's nodes whether they are ready.
    fn update_zones(&self, ready_of: &HashMap<String, Vec<bool>>) {
        let config = &self.context.config;
        let mut state = self.state.lock();
        state.zones.retain(|name, _| ready_of.contains_key(name));
        let states: HashMap<&String, ZoneState> = ready_of
            .iter()
            .map(|(name, ready)| (name, zones::state_of(ready, config.unhealthy_zone_threshold)))
            .collect();
        let all_dark = states.values().all(|state| *state == ZoneState::FullDisruption);
        for (name, zone_state) in states {
            let size = ready_of.get(name).map_or(0, Vec::len);
            let rate = match zone_state {
                // If nothing answers it is rather this process that is cut off.
                _ if all_dark => 0.0,
                ZoneState::Normal | ZoneState::FullDisruption => config.node_eviction_rate,
                ZoneState::PartialDisruption if size > config.large_cluster_size_threshold => {
                    config.secondary_node_eviction_rate
                }
                ZoneState::PartialDisruption => 0.0,
            };
            state.zones.entry(name.clone()).or_default().set_rate(rate);
        }
    }

    /// Marks a node for the eviction of its pods, when its zone's turn comes; takes the mark off once it is well.
    async fn sync_no_execute(&self, node: &Arc<Node>) -> Result<(), kube::Error> {
        // The health check may have changed it a moment ago.
        let Some(node) = self.nodes.get("", owners::name(&node.metadata)) else { return Ok(()) };
        let present = nodes::taints(&node);
        let Some(taints) = taints::with_no_execute(&node, present) else { return Ok(()) };
        let adds =
            taints.iter().any(|taint| !present.iter().any(|old| old.key == taint.key && old.effect == taint.effect));
        let swaps = present.iter().any(taints::is_no_execute);
        if adds && !swaps {
            let allowed = self.state.lock().zones.entry(zones::zone_of(&node)).or_default().try_accept(Instant::now());
            if !allowed {
                return Ok(());
            }
        }
        self.set_taints(&node, taints).await
    }
}

/// The conditions of a silent node that are not known any more.
fn unknown_conditions(node: &Node) -> Vec<NodeCondition> {
    let now = time::now();
    UNKNOWN_CONDITIONS
        .iter()
        .filter_map(|kind| match nodes::condition(node, kind) {
            None => Some(NodeCondition {
                type_: (*kind).to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(now.clone()),
            }),
            Some(present) if present.status != "Unknown" => Some(NodeCondition {
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusUnknown".to_owned()),
                message: Some("Kubelet stopped posting node status.".to_owned()),
                last_transition_time: Some(now.clone()),
                ..present.clone()
            }),
            Some(_) => None,
        })
        .collect()
}

/// A node as events refer to it: its UID is its name.
fn node_reference(node: &Node) -> k8s_openapi::api::core::v1::ObjectReference {
    let mut reference = events::reference(node);
    reference.resource_version = None;
    reference
}
