//! Answers for the addresses of load balancers that the bare-metal provider hands out (`cloud/src/bare_metal.rs`): for each one, one
//! node has it on its loopback interface, and so answers when its neighbours ask who has it (MetalLB's layer 2 mode).
//!
//! Every node decides the same from the same objects, so nobody is elected. Traffic that arrives is led to the pods by the
//! node's proxy. The addresses carry a label, so that only ours are ever removed.

use anyhow::{Context, Result};
use coxswain_client::k8s_openapi::api::core::v1::{Node, Service};
use coxswain_client::k8s_openapi::api::discovery::v1::EndpointSlice;
use coxswain_client::{Informers, ObjectKey, Selection};
use coxswain_cloud::bare_metal::ANNOTATION;
use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const INTERFACE: &str = "lo";
/// Labels begin with the interface and have at most 15 letters.
const LABEL: &str = "lo:coxswain";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const SETTLE: Duration = Duration::from_millis(100);
const CHECK_PERIOD: Duration = Duration::from_secs(60);

/// What of a Service counts here.
#[derive(Debug, Default, PartialEq)]
struct Announced {
    key: ObjectKey,
    /// Only nodes with endpoints of their own lead anywhere.
    local: bool,
    /// Empty for a Service whose addresses are not ours to answer.
    addresses: Vec<Ipv4Addr>,
}

impl Announced {
    fn new(service: Service) -> Self {
        let key = ObjectKey::of(&service);
        let spec = service.spec.unwrap_or_default();
        let ours = service.metadata.annotations.is_some_and(|annotations| annotations.contains_key(ANNOTATION));
        if !ours || spec.type_.as_deref() != Some("LoadBalancer") {
            return Self { key, ..Self::default() };
        }
        let ingress = service.status.and_then(|status| status.load_balancer?.ingress).unwrap_or_default();
        Self {
            key,
            local: spec.external_traffic_policy.as_deref() == Some("Local"),
            addresses: ingress.into_iter().filter_map(|ingress| ingress.ip?.parse().ok()).collect(),
        }
    }
}

/// A node's name, and whether it may answer.
type Able = (String, bool);

fn able(node: Node) -> Able {
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let excluded = node.metadata.labels.as_ref().and_then(|labels| labels.get(EXCLUDED));
    let able = ready && node.metadata.deletion_timestamp.is_none() && excluded.is_none_or(|value| value == "false");
    (node.metadata.name.unwrap_or_default(), able)
}

/// A Service, and the nodes with ready endpoints of one of its slices.
type Local = (ObjectKey, BTreeSet<String>);

fn local(slice: EndpointSlice) -> Local {
    let service = slice.metadata.labels.and_then(|mut labels| labels.remove("kubernetes.io/service-name"));
    let key = ObjectKey::new(slice.metadata.namespace.unwrap_or_default(), service.unwrap_or_default());
    let ready = slice
        .endpoints
        .into_iter()
        .flatten()
        .filter(|endpoint| endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false)));
    (key, ready.filter_map(|endpoint| endpoint.node_name).collect())
}

/// The addresses that this node should answer for.
fn wanted(services: &[Arc<Announced>], nodes: &[Arc<Able>], slices: &[Arc<Local>], own: &str) -> BTreeSet<Ipv4Addr> {
    let mut wanted = BTreeSet::new();
    for service in services.iter().filter(|service| !service.addresses.is_empty()) {
        let of_service = || slices.iter().filter(|slice| slice.0 == service.key);
        let fits = |node: &str| !service.local || of_service().any(|slice| slice.1.contains(node));
        let able: Vec<&str> = nodes.iter().filter(|n| n.1 && fits(&n.0)).map(|n| n.0.as_str()).collect();
        for address in &service.addresses {
            if able.iter().max_by_key(|node| weight(node, *address)) == Some(&own) {
                wanted.insert(*address);
            }
        }
    }
    wanted
}

/// Spreads addresses over nodes, and moves as few as possible when a node comes or goes (rendezvous hashing: FNV-1a, whose upper
/// bits tell similar names apart only after a final mixing, that of MurmurHash3).
fn weight(node: &str, address: Ipv4Addr) -> u64 {
    let bytes = node.bytes().chain(address.octets());
    let hash: u64 =
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Keeps the addresses on this node as the objects say until the shutdown.
pub async fn run(node_name: &str, informers: &Informers, shutdown: CancellationToken) -> Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
    tokio::spawn(connection);
    // What an earlier process may have left.
    apply(&handle, &BTreeSet::new()).await?;
    let services = informers.projected(Selection::default(), Announced::new);
    let mut on_service = services.subscribe();
    // Most clusters have no such Service, and then nothing else need be watched.
    while services.store().list().iter().all(|service| service.addresses.is_empty()) {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            event = on_service.next() => if event.is_none() { return Ok(()) },
        }
    }
    let nodes = informers.projected(Selection::default(), able);
    let slices = informers.projected(Selection::default(), local);
    let (mut on_node, mut on_slice) = (nodes.subscribe(), slices.subscribe());
    tokio::join!(nodes.synced(), slices.synced());
    loop {
        let wanted = wanted(&services.store().list(), &nodes.store().list(), &slices.store().list(), node_name);
        if let Err(error) = apply(&handle, &wanted).await {
            tracing::warn!(error = format!("{error:#}"), "the addresses of load balancers could not be set up");
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            event = on_service.next() => if event.is_none() { break },
            event = on_node.next() => if event.is_none() { break },
            event = on_slice.next() => if event.is_none() { break },
            () = tokio::time::sleep(CHECK_PERIOD) => {}
        }
        // What comes together is handled together.
        tokio::time::sleep(SETTLE).await;
        while on_service.try_next().is_some() {}
        while on_node.try_next().is_some() {}
        while on_slice.try_next().is_some() {}
    }
    // Another node takes them over once this one is not ready any more; two must not answer meanwhile.
    apply(&handle, &BTreeSet::new()).await
}

/// Removes every address that this module added.
pub async fn reset() -> Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
    tokio::spawn(connection);
    apply(&handle, &BTreeSet::new()).await
}

async fn apply(handle: &Handle, wanted: &BTreeSet<Ipv4Addr>) -> Result<()> {
    let Some(link) = handle.link().get().match_name(INTERFACE.to_owned()).execute().try_next().await? else {
        return Ok(());
    };
    let index = link.header.index;
    let all: Vec<AddressMessage> = handle.address().get().set_link_index_filter(index).execute().try_collect().await?;
    let mut present = BTreeSet::new();
    for message in all {
        let Some(address) = ours(&message) else { continue };
        if wanted.contains(&address) {
            present.insert(address);
        } else {
            tracing::info!(%address, "no longer answering for a load balancer's address");
            handle.address().del(message).execute().await.with_context(|| format!("removing {address}"))?;
        }
    }
    for address in wanted.difference(&present) {
        tracing::info!(%address, "answering for a load balancer's address");
        let mut request = handle.address().add(index, IpAddr::V4(*address), 32);
        request.message_mut().attributes.push(AddressAttribute::Label(LABEL.to_owned()));
        request.execute().await.with_context(|| format!("adding {address}"))?;
    }
    Ok(())
}

fn ours(message: &AddressMessage) -> Option<Ipv4Addr> {
    let labelled = message.attributes.iter().any(|a| matches!(a, AddressAttribute::Label(label) if label == LABEL));
    message.attributes.iter().filter(|_| labelled).find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_address_is_one_ready_nodes() {
        let node = |name: &str, ready: &str| -> Arc<Able> {
            let json =
                json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
            Arc::new(able(serde_json::from_value(json).unwrap()))
        };
        let service = |name: &str, ip: &str, policy: &str| -> Arc<Announced> {
            let json = json!({"metadata": {"namespace": "n", "name": name, "annotations": {ANNOTATION: "bare-metal"}},
                "spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy},
                "status": {"loadBalancer": {"ingress": [{"ip": ip}]}}});
            Arc::new(Announced::new(serde_json::from_value(json).unwrap()))
        };
        let nodes = [node("a", "True"), node("b", "True"), node("c", "Unknown")];
        let addresses: Vec<String> = (1..=32).map(|i| format!("192.0.2.{i}")).collect();
        let services: Vec<_> = addresses.iter().map(|ip| service(ip, ip, "Cluster")).collect();
        let of = |name: &str| wanted(&services, &nodes, &[], name);
        assert_eq!(of("a").len() + of("b").len(), 32);
        assert!(of("a").is_disjoint(&of("b")) && !of("a").is_empty() && !of("b").is_empty());
        assert!(of("c").is_empty());

        let slice = json!({"metadata": {"namespace": "n", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "b", "conditions": {"ready": true}}]});
        let slices = [Arc::new(local(serde_json::from_value(slice).unwrap()))];
        let services = [service("s", "192.0.2.1", "Local")];
        assert_eq!(wanted(&services, &nodes, &slices, "b").len(), 1);
        assert!(wanted(&services, &nodes, &slices, "a").is_empty());
    }
}
