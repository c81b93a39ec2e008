//! The task that keeps the tables as services and endpoints say. Changes that arrive while `nft` runs are taken together
//! in the next script. When a script fails, or the table vanished, everything is written anew.

use std::collections::HashSet;
use std::time::Duration;

use coxswain_client::k8s_openapi::api::core::v1::{Node, Service as ApiService};
use coxswain_client::k8s_openapi::api::discovery::v1::EndpointSlice;
use coxswain_client::{Client, Informers, ObjectKey, Selection, Store};
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::model::{BY_SERVICE, OwnNode, Service, Slice};
use crate::rules::{self, Desired, Surroundings};
use crate::table::Table;
use crate::{Config, Error, conntrack, nft};

/// How often the tables are looked after when nothing changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// After a script failed.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Services written in one script while others wait, so that one script is never huge but the first.
const SERVICES_PER_SCRIPT: usize = 1000;

/// The rules of one family.
struct Family {
    table: Table,
    around: Surroundings,
    /// Whether the kernel's table is what `table` says; if not it is written as a whole.
    applied: bool,
}

pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let informers = Informers::new(client);
    let services = informers.projected(Selection::default(), Service::new as fn(ApiService) -> Service);
    let slices = informers.projected(Selection::default(), Slice::new as fn(EndpointSlice) -> Slice);
    slices.store().add_index(BY_SERVICE, Slice::index);
    let own = Selection::fields(format!("metadata.name={}", config.node_name));
    let nodes = informers.projected(own, OwnNode::new as fn(Node) -> OwnNode);
    let health = Health::start(&config, &shutdown);
    let cidrs: Vec<String> = config
        .cluster_cidr
        .iter()
        .flat_map(|c| c.split(','))
        .map(|c| c.trim().to_owned())
        .filter(|c| !c.is_empty())
        .collect();
    let family = |ipv6: bool| {
        let cidr = cidrs.iter().find(|c| c.contains(':') == ipv6).cloned();
        let node_name = config.node_name.clone();
        Family {
            table: Table::new(ipv6, cidr.clone().filter(|_| config.masquerade_pods)),
            around: Surroundings { node_name, node: OwnNode::default(), ipv6, cluster_cidr: cidr },
            applied: false,
        }
    };
    let mut families = vec![family(false), family(true)];
    tokio::select! {
        () = async { services.synced().await; slices.synced().await; nodes.synced().await } => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    let (service_store, slice_store) = (services.store(), slices.store());
    let mut service_changes = services.subscribe();
    let mut slice_changes = slices.subscribe();
    let mut node_changes = nodes.subscribe();
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut dirty: HashSet<ObjectKey> = HashSet::new();
    loop {
        while let Some(event) = service_changes.try_next() {
            dirty.insert(event.object().key.clone());
        }
        while let Some(event) = slice_changes.try_next() {
            dirty.insert(event.object().service.clone());
        }
        while let Some(event) = node_changes.try_next() {
            let node = (**event.object()).clone();
            health.set_eligible(node.eligible);
            if node.zone != families[0].around.node.zone {
                dirty.extend(service_store.keys());
            }
            families.iter_mut().for_each(|f| f.around.node = node.clone());
        }
        let whole = families.iter().any(|f| !f.applied);
        let max = if whole { usize::MAX } else { SERVICES_PER_SCRIPT };
        let batch: Vec<ObjectKey> = dirty.iter().take(max).cloned().collect();
        for key in &batch {
            dirty.remove(key);
        }
        let mut failed = false;
        for family in &mut families {
            if let Err(error) = sync(family, &batch, &service_store, &slice_store).await {
                tracing::error!(ipv6 = family.around.ipv6, %error, "the rules of services could not be written");
                family.applied = false;
                failed = true;
            }
        }
        if failed {
            tokio::select! {
                () = tokio::time::sleep(RETRY_DELAY) => continue,
                () = shutdown.cancelled() => return Ok(()),
            }
        }
        health.synced(&service_store, &slice_store, &families[0].around);
        if !dirty.is_empty() {
            continue;
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(event) = service_changes.next() => dirty.extend([event.object().key.clone()]),
            Some(event) = slice_changes.next() => dirty.extend([event.object().service.clone()]),
            Some(event) = node_changes.next() => {
                let node = (**event.object()).clone();
                health.set_eligible(node.eligible);
                dirty.extend(service_store.keys());
                families.iter_mut().for_each(|f| f.around.node = node.clone());
            }
            _ = check.tick() => for family in families.iter_mut().filter(|f| f.applied && !(f.around.ipv6 && f.table.is_empty())) {
                family.applied = nft::is_there(family.around.ipv6).await;
            },
        }
    }
}

/// Writes what the services in question want now.
async fn sync(
    family: &mut Family,
    batch: &[ObjectKey],
    services: &Store<Service>,
    slices: &Store<Slice>,
) -> Result<(), Error> {
    let changes: Vec<(ObjectKey, Desired)> = batch
        .iter()
        .map(|key| {
            let desired = services.get_key(key).map(|service| {
                let slices = slices.by_index(BY_SERVICE, &key.to_string());
                rules::desired(&service, &slices, &family.around)
            });
            (key.clone(), desired.unwrap_or_default())
        })
        .collect();
    let stale: Vec<conntrack::Flow> = changes
        .iter()
        .flat_map(|(key, new)| conntrack::stale(family.table.service(key).map(|old| &old.udp), &new.udp))
        .collect();
    let script = family.table.update(changes);
    if !family.applied {
        // Most clusters have no IPv6 services, and some nodes no IPv6.
        if family.around.ipv6 && family.table.is_empty() {
            family.applied = true;
            return Ok(());
        }
        nft::apply(&family.table.whole()).await?;
        family.applied = true;
        tracing::info!(ipv6 = family.around.ipv6, services = family.table.keys().len(), "wrote the rules of services");
    } else if !script.is_empty() {
        if family.around.ipv6 && !nft::is_there(true).await {
            family.applied = false;
            nft::apply(&family.table.whole()).await?;
            family.applied = true;
        } else {
            nft::apply(&script).await?;
        }
    }
    conntrack::forget(&stale).await;
    Ok(())
}
