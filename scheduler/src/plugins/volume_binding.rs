//! Finds nodes that a pod's volumes can reach, and binds claims that waited for their first consumer: to a volume that
//! exists, or by asking for one on the chosen node.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coxswain_client::ObjectKey;
use coxswain_client::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use coxswain_client::objects::{self, PatchKind};
use serde_json::json;

use crate::cluster::Cluster;
use crate::framework::{
    Change, Code, CycleState, Plugin, PreFiltered, Rejection, Verdict, failed, point, unresolvable,
};
use crate::node::{Node, NodeInfo};
use crate::pod::PodInfo;
use crate::volumes::{Class, SELECTED_NODE, Volume, VolumeClaim, Volumes};

pub const NAME: &str = "VolumeBinding";

const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
const NODE_CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
const VOLUME_GONE: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const BIND_TIMEOUT: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The claims of the pod in question.
#[derive(Clone, Default)]
pub struct State {
    bound: Vec<Arc<VolumeClaim>>,
    /// With their class; smallest first, so that small claims leave large volumes to large ones.
    waiting: Vec<(Arc<VolumeClaim>, Arc<Class>)>,
}

enum Decision {
    Bind(Arc<VolumeClaim>, Arc<Volume>),
    /// Ask the provisioner of its class for a volume.
    Provision,
}

pub struct VolumeBinding {
    volumes: Volumes,
}

impl VolumeBinding {
    pub fn new(volumes: Volumes) -> Self {
        Self { volumes }
    }

    /// What would be done on a node for the claims that wait; nothing if that is impossible there.
    fn decide(&self, state: &State, node: &Node) -> Option<Vec<Decision>> {
        let mut decisions = Vec::new();
        let mut taken: Vec<String> = Vec::new();
        for (claim, class) in &state.waiting {
            // Once a node was selected, the provisioner has begun there.
            if claim.selected_node.as_deref().is_some_and(|selected| *selected != *node.name) {
                return None;
            }
            let found = if claim.selected_node.is_some() { None } else { self.find(claim, node, &taken) };
            match found {
                Some(volume) => {
                    taken.push(volume.name.clone());
                    decisions.push(Decision::Bind(claim.clone(), volume));
                }
                None if class.provisions && allowed(class, node) => decisions.push(Decision::Provision),
                None => return None,
            }
        }
        Some(decisions)
    }

    /// The volume that suits a claim on a node with the fewest modes of access, and the smallest of these.
    fn find(&self, claim: &VolumeClaim, node: &Node, taken: &[String]) -> Option<Arc<Volume>> {
        let mut volumes = self.volumes.volumes.list();
        volumes.retain(|v| {
            let free = match &v.claim {
                Some((namespace, name, uid)) => {
                    *namespace == claim.key.namespace
                        && *name == claim.key.name
                        && (uid.is_empty() || *uid == claim.uid)
                }
                None => v.available,
            };
            free && v.class == claim.class
                && v.block == claim.block
                && v.bytes >= claim.bytes
                && claim.access_modes.iter().all(|mode| v.access_modes.contains(mode))
                && claim.selector.as_ref().is_none_or(|s| s.matches(&v.labels))
                && reaches(v, node)
                && !taken.contains(&v.name)
                && self.volumes.promised_to(&v.name).is_none_or(|to| to == claim.key.to_string())
        });
        // One that is reserved for this claim goes before any other.
        volumes.into_iter().min_by_key(|v| (v.claim.is_none(), v.access_modes.len(), v.bytes, v.name.clone()))
    }
}

fn reaches(volume: &Volume, node: &Node) -> bool {
    volume.node_terms.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)))
}

fn allowed(class: &Class, node: &Node) -> bool {
    let matches = |term: &Vec<(String, Vec<String>)>| {
        term.iter().all(|(key, values)| node.labels.get(key).is_some_and(|v| values.iter().any(|a| a == v)))
    };
    class.allowed_topologies.is_empty() || class.allowed_topologies.iter().any(matches)
}

#[async_trait]
impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_FILTER | point::FILTER | point::RESERVE | point::PRE_BIND
    }

    fn may_help(&self, _: &Cluster, _: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(_) | Change::Volumes => true,
            Change::NodeUpdated { old, new } => old.labels != new.labels,
            _ => false,
        }
    }

    fn pre_filter(&self, _: &Cluster, pod: &PodInfo, state: &mut CycleState) -> Result<PreFiltered, Box<Rejection>> {
        if pod.spec.claims.is_empty() {
            return Ok(PreFiltered { skip: true, nodes: None });
        }
        let mut own = State::default();
        let mut immediate = false;
        for wanted in &pod.spec.claims {
            let Some(claim) = self.volumes.claims.get(&pod.key.namespace, &wanted.name) else {
                let why = if wanted.ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim {:?}",
                        wanted.name
                    )
                } else {
                    format!("persistentvolumeclaim {:?} not found", wanted.name)
                };
                return Err(reject(why));
            };
            if claim.lost {
                let why = format!(
                    "persistentvolumeclaim {:?} bound to non-existent persistentvolume {:?}",
                    wanted.name, claim.volume
                );
                return Err(reject(why));
            }
            if claim.deleting {
                return Err(reject(format!("persistentvolumeclaim {:?} is being deleted", wanted.name)));
            }
            if wanted.ephemeral && claim.owner.as_deref() != Some(&*pod.uid) {
                let why = format!("PVC {} was not created for pod {} (pod is not owner)", claim.key, pod.key);
                return Err(reject(why));
            }
            if !claim.volume.is_empty() && claim.bind_completed {
                own.bound.push(claim);
                continue;
            }
            let class = self.volumes.classes.get("", &claim.class);
            match class.filter(|c| c.waits_for_consumer && claim.volume.is_empty()) {
                Some(class) => own.waiting.push((claim, class)),
                None => immediate = true,
            }
        }
        if immediate {
            return Err(reject("pod has unbound immediate PersistentVolumeClaims".to_owned()));
        }
        own.waiting.sort_by_key(|(claim, _)| claim.bytes);
        state.volumes = Some(Arc::new(own));
        Ok(PreFiltered::default())
    }

    fn filter(&self, _: &Cluster, _: &PodInfo, state: &CycleState, info: &NodeInfo) -> Verdict {
        let Some(state) = &state.volumes else { return Ok(()) };
        let mut reasons = Vec::new();
        for claim in &state.bound {
            match self.volumes.volumes.get("", &claim.volume) {
                None => return unresolvable(NAME, VOLUME_GONE),
                Some(volume) if !reaches(&volume, info.node()) => {
                    reasons.push(NODE_CONFLICT.into());
                    break;
                }
                Some(_) => {}
            }
        }
        if self.decide(state, info.node()).is_none() {
            reasons.push(NO_VOLUME.into());
        }
        if reasons.is_empty() {
            return Ok(());
        }
        Err(Box::new(Rejection { code: Code::Unresolvable, reasons, plugin: NAME }))
    }

    fn reserve(&self, cluster: &Cluster, pod: &Arc<PodInfo>, state: &CycleState, node: &str) -> Verdict {
        let (Some(state), Some(info)) = (&state.volumes, cluster.node(node)) else { return Ok(()) };
        let Some(decisions) = self.decide(state, info.node()) else { return unresolvable(NAME, NO_VOLUME) };
        for decision in decisions {
            if let Decision::Bind(claim, volume) = decision {
                self.volumes.promise(&volume.name, &claim.key, &pod.uid);
            }
        }
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo) {
        self.volumes.break_promises(&pod.uid);
    }

    async fn pre_bind(&self, pod: &PodInfo, node: &str) -> Verdict {
        let Some(client) = &self.volumes.client else { return Ok(()) };
        let waiting = || {
            let claims = pod.spec.claims.iter().map(|c| self.volumes.claims.get(&pod.key.namespace, &c.name));
            claims.filter(|c| c.as_ref().is_none_or(|c| c.volume.is_empty() || !c.bind_completed)).collect::<Vec<_>>()
        };
        for claim in waiting() {
            let Some(claim) = claim else { return failed(NAME, "a claim of the pod is gone") };
            let promised = self.volumes.volumes.list();
            let promised = promised.iter().find(|v| self.volumes.promised_to(&v.name) == Some(claim.key.to_string()));
            let result = if let Some(volume) = promised {
                let patch = json!({"spec": {"claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.key.namespace,
                    "name": claim.key.name, "uid": claim.uid, "resourceVersion": claim.resource_version,
                }}, "metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}}});
                let key = ObjectKey::new("", &volume.name);
                objects::patch::<PersistentVolume>(client, &key, "", PatchKind::Merge, &patch).await.map(drop)
            } else {
                let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
                objects::patch::<PersistentVolumeClaim>(client, &claim.key, "", PatchKind::Merge, &patch)
                    .await
                    .map(drop)
            };
            if let Err(error) = result {
                return failed(NAME, format!("binding volumes: {}", coxswain_client::errors::message(&error)));
            }
        }
        let deadline = tokio::time::Instant::now() + BIND_TIMEOUT;
        let mut reset = false;
        loop {
            let waiting = waiting();
            if waiting.is_empty() {
                return Ok(());
            }
            for claim in waiting {
                match claim {
                    None => return failed(NAME, "binding volumes: a claim was deleted"),
                    // The provisioner takes its mark away when it cannot serve the node.
                    Some(claim)
                        if reset
                            && claim.selected_node.is_none()
                            && self
                                .volumes
                                .volumes
                                .list()
                                .iter()
                                .all(|v| self.volumes.promised_to(&v.name) != Some(claim.key.to_string())) =>
                    {
                        return failed(
                            NAME,
                            format!("binding volumes: provisioning failed for PVC {:?}", claim.key.name),
                        );
                    }
                    Some(_) => {}
                }
            }
            if tokio::time::Instant::now() > deadline {
                return failed(NAME, "binding volumes: context deadline exceeded");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
            reset = tokio::time::Instant::now() + BIND_TIMEOUT > deadline + Duration::from_secs(5);
        }
    }
}

fn reject(reason: String) -> Box<Rejection> {
    Box::new(Rejection { code: Code::Unresolvable, reasons: vec![reason.into()], plugin: NAME })
}
