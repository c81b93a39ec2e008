//! Keeps a node from getting more volumes of a CSI driver than the driver says it can have.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::Cluster;
use crate::framework::{Change, CycleState, Plugin, PreFiltered, Rejection, Verdict, point, unschedulable};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::volumes::Volumes;

pub const NAME: &str = "NodeVolumeLimits";

pub struct NodeVolumeLimits(pub Volumes);

impl NodeVolumeLimits {
    /// Adds the volumes of a pod by their driver; a claim without volume counts for the driver that will provision it.
    fn count(&self, pod: &PodInfo, by_driver: &mut BTreeMap<String, BTreeSet<String>>) {
        for wanted in &pod.spec.claims {
            let Some(claim) = self.0.claims.get(&pod.key.namespace, &wanted.name) else { continue };
            let driver = if claim.volume.is_empty() {
                self.0.classes.get("", &claim.class).map(|class| class.provisioner.clone())
            } else {
                self.0.volumes.get("", &claim.volume).and_then(|volume| volume.driver.clone())
            };
            if let Some(driver) = driver {
                let volume = if claim.volume.is_empty() { claim.key.to_string() } else { claim.volume.clone() };
                by_driver.entry(driver).or_default().insert(volume);
            }
        }
    }
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_FILTER | point::FILTER
    }

    fn may_help(&self, _: &Cluster, _: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(_) | Change::Volumes => true,
            Change::PodDeleted(other) => !other.spec.claims.is_empty(),
            _ => false,
        }
    }

    fn pre_filter(&self, _: &Cluster, pod: &PodInfo, _: &mut CycleState) -> Result<PreFiltered, Box<Rejection>> {
        Ok(PreFiltered { skip: pod.spec.claims.is_empty(), nodes: None })
    }

    fn filter(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> Verdict {
        let Some(drivers) = self.0.drivers.get("", &info.node().name) else { return Ok(()) };
        let limited =
            || drivers.0.iter().filter_map(|(driver, limit)| Some((driver, usize::try_from((*limit)?).ok()?)));
        if limited().next().is_none() {
            return Ok(());
        }
        let mut there = BTreeMap::new();
        info.pods.iter().for_each(|other| self.count(other, &mut there));
        let mut then = there.clone();
        self.count(pod, &mut then);
        for (driver, limit) in limited() {
            let count = |volumes: &BTreeMap<String, BTreeSet<String>>| volumes.get(driver).map_or(0, BTreeSet::len);
            // Volumes that are on the node already cost nothing.
            if count(&then) > count(&there) && count(&then) > limit {
                return unschedulable(NAME, "node(s) exceed max volume count");
            }
        }
        Ok(())
    }
}
