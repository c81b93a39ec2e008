//! Gives each node a range of pod addresses, the counterpart of `pkg/controller/nodeipam`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::events;
use coxswain_client::objects::{self, PatchKind};
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, kube};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use crate::Context;
use crate::common::owners;

const WORKERS: usize = 4;
/// Ranges of a cluster network beyond this many are not handed out.
const RANGES_MAX: u64 = 1 << 16;

struct Controller {
    context: Context,
    nodes: Store<Node>,
    queue: WorkQueue<ObjectKey>,
    pools: Mutex<Vec<Pool>>,
}

/// One cluster network, cut into ranges of equal size.
struct Pool {
    network: IpNet,
    prefix: u8,
    used: BTreeSet<u64>,
}

impl Pool {
    fn len(&self) -> u64 {
        let bits = u32::from(self.prefix.saturating_sub(self.network.prefix_len()));
        1u64.checked_shl(bits).unwrap_or(u64::MAX).min(RANGES_MAX)
    }

    fn range(&self, index: u64) -> Option<IpNet> {
        let address = match self.network.network() {
            IpAddr::V4(base) => {
                let offset = (index as u32).checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(base) + offset))
            }
            IpAddr::V6(base) => {
                let offset = u128::from(index).checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(base) + offset))
            }
        };
        IpNet::new(address, self.prefix).ok()
    }

    fn index_of(&self, range: &IpNet) -> Option<u64> {
        if range.prefix_len() != self.prefix || !self.network.contains(range) {
            return None;
        }
        let distance = match (range.network(), self.network.network()) {
            (IpAddr::V4(range), IpAddr::V4(base)) => {
                u128::from(u32::from(range) - u32::from(base)) >> (32 - u32::from(self.prefix))
            }
            (IpAddr::V6(range), IpAddr::V6(base)) => {
                (u128::from(range) - u128::from(base)) >> (128 - u32::from(self.prefix))
            }
            _ => return None,
        };
        u64::try_from(distance).ok()
    }

    fn take(&mut self) -> Option<(u64, IpNet)> {
        let index = (0..self.len()).find(|index| !self.used.contains(index))?;
        let range = self.range(index)?;
        self.used.insert(index);
        Some((index, range))
    }
}

pub async fn run(context: Context) {
    let config = &context.config;
    if !config.allocate_node_cidrs || config.cluster_cidrs.is_empty() {
        return;
    }
    let pools = config.cluster_cidrs.iter().map(|network| Pool {
        network: *network,
        prefix: match network {
            IpNet::V4(_) => config.node_cidr_mask_size_ipv4,
            IpNet::V6(_) => config.node_cidr_mask_size_ipv6,
        },
        used: BTreeSet::new(),
    });
    let nodes: Informer<Node> = context.informers.informer();
    nodes.synced().await;
    let controller = Arc::new(Controller {
        nodes: nodes.store(),
        queue: WorkQueue::new(),
        pools: Mutex::new(pools.collect()),
        context: context.clone(),
    });
    // What nodes have already must be known before anything is handed out.
    for node in nodes.store().list() {
        controller.occupy(&node);
    }
    let feeds = feed(&nodes, |event| match event {
        Event::Deleted(node) => controller.release(&node),
        event => {
            controller.occupy(event.object());
            controller.queue.add(ObjectKey::of(event.object().as_ref()));
        }
    });
    drive(
        "node-ipam",
        controller.clone(),
        controller.queue.clone(),
        WORKERS,
        context.shutdown.clone(),
        |controller, key| async move { controller.reconcile(key).await },
        feeds,
    )
    .await;
}

fn ranges_of(node: &Node) -> Vec<IpNet> {
    let ranges = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
    ranges.filter_map(|range| range.parse().ok()).collect()
}

impl Controller {
    fn occupy(&self, node: &Node) {
        let mut pools = self.pools.lock();
        for range in ranges_of(node) {
            for pool in pools.iter_mut() {
                if let Some(index) = pool.index_of(&range) {
                    pool.used.insert(index);
                }
            }
        }
    }

    fn release(&self, node: &Node) {
        let mut pools = self.pools.lock();
        for range in ranges_of(node) {
            for pool in pools.iter_mut() {
                if let Some(index) = pool.index_of(&range) {
                    pool.used.remove(&index);
                }
            }
        }
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(node) = self.nodes.get_key(&key) else { return Ok(()) };
        if !ranges_of(&node).is_empty() {
            return Ok(());
        }
        let taken: Vec<Option<(u64, IpNet)>> = self.pools.lock().iter_mut().map(Pool::take).collect();
        let give_back = || {
            let mut pools = self.pools.lock();
            for (pool, taken) in pools.iter_mut().zip(&taken) {
                if let Some((index, _)) = taken {
                    pool.used.remove(index);
                }
            }
        };
        if taken.iter().any(Option::is_none) {
            give_back();
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.context.recorder.normal(&events::reference(node.as_ref()), "CIDRNotAvailable", message);
            return Err(kube::Error::Service("no pod address range is left".into()));
        }
        let ranges: Vec<String> = taken.iter().flatten().map(|(_, range)| range.to_string()).collect();
        let patch = json!({
            "metadata": {"uid": owners::uid(&node.metadata)},
            "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges},
        });
        match objects::patch::<Node>(&self.context.client, &key, "", PatchKind::Strategic, &patch).await {
            Ok(_) => Ok(()),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_handed_out_once() {
        let mut pool = Pool { network: "10.1.0.0/22".parse().unwrap(), prefix: 24, used: BTreeSet::new() };
        pool.used.insert(pool.index_of(&"10.1.1.0/24".parse().unwrap()).unwrap());
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).map(|(_, range)| range.to_string()).collect();
        assert_eq!(taken, ["10.1.0.0/24", "10.1.2.0/24", "10.1.3.0/24"]);
    }
}
