//! Lets one pod at a time use a claim that may be used by one pod only.

use crate::cluster::Cluster;
use crate::framework::{
    Change, CycleState, Plugin, PreFiltered, Rejection, Verdict, point, unresolvable, unschedulable,
};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::volumes::Volumes;

pub const NAME: &str = "VolumeRestrictions";

pub struct VolumeRestrictions(pub Volumes);

impl VolumeRestrictions {
    fn is_exclusive(&self, pod: &PodInfo, claim: &str) -> Option<bool> {
        let claim = self.0.claims.get(&pod.key.namespace, claim)?;
        Some(claim.access_modes.iter().any(|mode| mode == "ReadWriteOncePod"))
    }
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_FILTER | point::FILTER
    }

    fn may_help(&self, _: &Cluster, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(_) | Change::Volumes => true,
            Change::PodDeleted(other) => {
                other.key.namespace == pod.key.namespace
                    && other.spec.claims.iter().any(|c| pod.spec.claims.iter().any(|own| own.name == c.name))
            }
            _ => false,
        }
    }

    fn pre_filter(&self, _: &Cluster, pod: &PodInfo, _: &mut CycleState) -> Result<PreFiltered, Box<Rejection>> {
        let mut exclusive = false;
        for claim in &pod.spec.claims {
            match self.is_exclusive(pod, &claim.name) {
                Some(is) => exclusive |= is,
                None if claim.ephemeral => {}
                None => {
                    unresolvable(NAME, format!("persistentvolumeclaim {:?} not found", claim.name))?;
                }
            }
        }
        Ok(PreFiltered { skip: !exclusive, nodes: None })
    }

    fn filter(&self, cluster: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> Verdict {
        let exclusive = |name: &str| self.is_exclusive(pod, name) == Some(true);
        let used = |node: &NodeInfo, name: &str| {
            let others = node.pods.iter().filter(|p| p.key.namespace == pod.key.namespace);
            others.flat_map(|p| &p.spec.claims).any(|c| *c.name == *name)
        };
        for claim in pod.spec.claims.iter().filter(|c| exclusive(&c.name)) {
            // Wherever it is used, no other node can have it; here, evicting its user would free it.
            if used(info, &claim.name) || cluster.nodes().any(|n| n.index != info.index && used(n, &claim.name)) {
                return unschedulable(
                    NAME,
                    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
                );
            }
        }
        Ok(())
    }
}
