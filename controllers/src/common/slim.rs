//! Pods reduced to what controllers look at. A decoded pod takes tens of kilobytes, most of it in container and volume
//! definitions that only the kubelet needs, and there are more pods than anything else.

use std::ops::Deref;

use coxswain_client::Store;
use k8s_openapi::api::core::v1::{Affinity, NodeAffinity, Pod};

use super::owners;

/// A pod without the definition of how its containers run: no commands, environment, probes, mounts or security, and only
/// the volumes that stand for claims. Never sent back to the server.
pub struct SlimPod(Pod);

impl Deref for SlimPod {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.0
    }
}

/// Index of pods by the UID of their controller, or `orphan/NAMESPACE` for those without one.
pub const BY_OWNER: &str = "owner";
/// Index of pods by node.
pub const BY_NODE: &str = "node";
/// Index of pods by namespace and claim they use, as `NAMESPACE/CLAIM`.
pub const BY_CLAIM: &str = "claim";
/// Index of pods by namespace and the group that they are scheduled with, as `NAMESPACE/GROUP`.
pub const BY_GROUP: &str = "group";

/// The group that a pod is scheduled with.
pub fn group_of(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.scheduling_group.as_ref()?.pod_group_name.clone()
}

/// What is left of an affinity when only references to nodes by field matter: by them DaemonSets place their pods.
fn node_fields_only(affinity: Affinity) -> Option<Affinity> {
    let required = affinity.node_affinity?.required_during_scheduling_ignored_during_execution?;
    if required.node_selector_terms.iter().all(|term| term.match_fields.is_none()) {
        return None;
    }
    let node_affinity = NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(required),
        preferred_during_scheduling_ignored_during_execution: None,
    };
    Some(Affinity { node_affinity: Some(node_affinity), ..Affinity::default() })
}

impl SlimPod {
    pub fn of(mut pod: Pod) -> Self {
        pod.metadata.managed_fields = None;
        if let Some(spec) = &mut pod.spec {
            let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
            for container in containers {
                container.args = None;
                container.command = None;
                container.env = None;
                container.env_from = None;
                container.lifecycle = None;
                container.liveness_probe = None;
                container.readiness_probe = None;
                container.startup_probe = None;
                container.security_context = None;
                container.volume_mounts = None;
                container.volume_devices = None;
            }
            spec.affinity = spec.affinity.take().and_then(node_fields_only);
            spec.topology_spread_constraints = None;
            spec.ephemeral_containers = None;
            spec.dns_config = None;
            spec.host_aliases = None;
            if let Some(volumes) = &mut spec.volumes {
                volumes.retain(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some());
                volumes.shrink_to_fit();
            }
        }
        Self(pod)
    }

    pub fn index(pods: &Store<SlimPod>) {
        pods.add_index(BY_OWNER, |pod| {
            vec![match owners::controller_of(&pod.metadata) {
                Some(owner) => owner.uid.clone(),
                None => format!("orphan/{}", owners::namespace(&pod.metadata)),
            }]
        });
        pods.add_index(BY_NODE, |pod| {
            pod.spec
                .as_ref()
                .and_then(|spec| spec.node_name.clone())
                .filter(|node| !node.is_empty())
                .into_iter()
                .collect()
        });
        pods.add_index(BY_GROUP, |pod| {
            let group = group_of(pod).map(|name| format!("{}/{name}", owners::namespace(&pod.metadata)));
            group.into_iter().collect()
        });
        pods.add_index(BY_CLAIM, |pod| {
            let namespace = owners::namespace(&pod.metadata);
            let name = owners::name(&pod.metadata);
            let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
            volumes
                .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
                    (Some(claim), _) => Some(format!("{namespace}/{}", claim.claim_name)),
                    (None, Some(_)) => Some(format!("{namespace}/{name}-{}", volume.name)),
                    _ => None,
                })
                .collect()
        });
    }
}
