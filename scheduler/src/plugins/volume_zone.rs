//! Keeps pods on nodes of the zone and region of their volumes.

use crate::cluster::Cluster;
use crate::framework::{Change, CycleState, Plugin, PreFiltered, Rejection, Verdict, point, unresolvable};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::volumes::Volumes;

pub const NAME: &str = "VolumeZone";

const KEYS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

pub struct VolumeZone(pub Volumes);

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_FILTER | point::FILTER
    }

    fn may_help(&self, _: &Cluster, _: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(_) | Change::Volumes => true,
            Change::NodeUpdated { old, new } => old.labels != new.labels,
            _ => false,
        }
    }

    fn pre_filter(&self, _: &Cluster, pod: &PodInfo, _: &mut CycleState) -> Result<PreFiltered, Box<Rejection>> {
        Ok(PreFiltered { skip: pod.spec.claims.is_empty(), nodes: None })
    }

    fn filter(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> Verdict {
        let labels = &info.node().labels;
        // A cluster of one zone labels nothing.
        if KEYS.iter().all(|key| labels.get(key).is_none()) {
            return Ok(());
        }
        for claim in &pod.spec.claims {
            let Some(claim) = self.0.claims.get(&pod.key.namespace, &claim.name) else { continue };
            let Some(volume) = self.0.volumes.get("", &claim.volume) else { continue };
            for key in KEYS {
                let Some(wanted) = volume.labels.get(key) else { continue };
                // A volume of several zones names them all, joined by two underscores.
                if !labels.get(key).is_some_and(|value| wanted.split("__").any(|w| w == value)) {
                    return unresolvable(NAME, "node(s) had no available volume zone");
                }
            }
        }
        Ok(())
    }
}
