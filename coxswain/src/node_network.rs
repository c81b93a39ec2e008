//! The pod network of one node: the bridge that pods hang on, the CNI configuration that puts them there, and the routes to
//! the pods of other nodes (upstream leaves all of this to a network plugin such as flannel in host-gw mode).
//!
//! Driven by the Node objects: this node's pod CIDR makes the bridge, the other nodes' CIDRs and addresses make the routes.
//! Routes carry a protocol number of their own, so that only ours are ever removed.

use anyhow::{Context, Result};
use coxswain_client::Informers;
use coxswain_client::k8s_openapi::api::core::v1::Node;
use futures::TryStreamExt;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, LinkBridge, RouteMessageBuilder};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// The bridge of the pods, by the name that CNI's examples made customary.
pub const BRIDGE: &str = "cni0";
/// `RTPROT_` numbers above 191 are free for everybody.
const ROUTE_PROTOCOL: u8 = 201;

/// A subnet as `10.244.1.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnet {
    address: Ipv4Addr,
    bits: u8,
}

impl Subnet {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let bits: u8 = bits.parse().ok().filter(|b| *b <= 32)?;
        Some(Self { address: address.parse().ok()?, bits })
    }

    /// The first address, which the bridge takes.
    fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) + 1)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// What this node's network should be, from the Node objects.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    own: Option<Subnet>,
    /// Pod subnets of other nodes and the addresses of those nodes.
    routes: BTreeMap<Subnet, Ipv4Addr>,
}

fn plan<'a>(nodes: impl Iterator<Item = &'a Node>, own_name: &str) -> Plan {
    let mut plan = Plan::default();
    for node in nodes {
        let spec = node.spec.as_ref();
        let Some(subnet) = spec.and_then(|s| s.pod_cidr.as_deref()).and_then(Subnet::parse) else { continue };
        if node.metadata.name.as_deref() == Some(own_name) {
            plan.own = Some(subnet);
            continue;
        }
        let addresses = node.status.as_ref().and_then(|s| s.addresses.as_ref());
        let internal = addresses.into_iter().flatten().filter(|a| a.type_ == "InternalIP");
        if let Some(address) = internal.filter_map(|a| a.address.parse().ok()).next() {
            plan.routes.insert(subnet, address);
        }
    }
    plan
}

/// Keeps the network as the Node objects say until the shutdown.
pub async fn run(node_name: &str, cni_conf: &Path, informers: &Informers, shutdown: CancellationToken) -> Result<()> {
    forward_packets();
    let nodes = informers.informer::<Node>();
    let store = nodes.store();
    let mut events = nodes.subscribe();
    let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
    tokio::spawn(connection);
    nodes.synced().await;
    let mut applied = Plan::default();
    let mut retry = false;
    loop {
        let all = store.list();
        let wanted = plan(all.iter().map(AsRef::as_ref), node_name);
        if retry || wanted != applied {
            match apply(&handle, &wanted, cni_conf).await {
                Ok(()) => {
                    applied = wanted;
                    retry = false;
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the pod network could not be set up; trying again");
                    retry = true;
                }
            }
        }
        let pause = std::time::Duration::from_secs(if retry { 2 } else { 60 });
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            event = events.next() => if event.is_none() { return Ok(()) },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Packets must pass between pods and nodes, and bridged ones through the rules of Services.
fn forward_packets() {
    for (file, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/bridge/bridge-nf-call-iptables", "1"),
        ("net/bridge/bridge-nf-call-ip6tables", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
    ] {
        let path = Path::new("/proc/sys").join(file);
        if let Err(error) = std::fs::write(&path, value) {
            // The bridge module may be built without the option; Services then fail between pods of one node only.
            tracing::debug!(%error, path = %path.display(), "sysctl not set");
        }
    }
}

async fn apply(handle: &Handle, plan: &Plan, cni_conf: &Path) -> Result<()> {
    if let Some(subnet) = plan.own {
        make_bridge(handle, subnet).await.with_context(|| format!("setting up bridge {BRIDGE} for {subnet}"))?;
        // The CNI configuration comes last: the runtime reports its network ready as soon as it is there.
        write_cni(cni_conf, subnet)?;
    }
    for (subnet, via) in &plan.routes {
        let route =
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(subnet.address, subnet.bits).gateway(*via);
        let route = route.protocol(RouteProtocol::Other(ROUTE_PROTOCOL)).build();
        handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .with_context(|| format!("adding the route to {subnet} via {via}"))?;
    }
    for route in our_routes(handle).await? {
        if !destination(&route).is_some_and(|d| plan.routes.contains_key(&d)) {
            handle.route().del(route).execute().await.context("removing a stale route")?;
        }
    }
    Ok(())
}

async fn make_bridge(handle: &Handle, subnet: Subnet) -> Result<()> {
    let gateway = subnet.gateway();
    if link_index(handle, BRIDGE).await?.is_none() {
        // A fixed address: a bridge without one takes that of its first port and changes it with each pod.
        let mut mac = vec![0x0a, 0x58];
        mac.extend(gateway.octets());
        handle.link().add(LinkBridge::new(BRIDGE).address(mac).build()).execute().await?;
    }
    let index = link_index(handle, BRIDGE).await?.context("the bridge vanished")?;
    match handle.address().add(index, IpAddr::V4(gateway), subnet.bits).execute().await {
        Ok(()) => Ok(()),
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::EEXIST => Ok(()),
        Err(e) => Err(e.into()),
    }
}

async fn link_index(handle: &Handle, name: &str) -> Result<Option<u32>> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(link) => Ok(link.map(|l| l.header.index)),
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ENODEV => Ok(None),
        Err(e) => Err(e.into()),
    }
}

async fn our_routes(handle: &Handle) -> Result<Vec<RouteMessage>> {
    let all = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let ours = all.try_filter(|r| std::future::ready(r.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)));
    ours.try_collect().await.context("listing routes")
}

fn destination(route: &RouteMessage) -> Option<Subnet> {
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => {
            Some(Subnet { address: *address, bits: route.header.destination_prefix_length })
        }
        _ => None,
    })
}

fn write_cni(dir: &Path, subnet: Subnet) -> Result<()> {
    let state: PathBuf = dir.parent().unwrap_or(dir).join("networks");
    let config = serde_json::json!({
        "cniVersion": "1.0.0", "name": "coxswain", "plugins": [
            {"type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": false, "hairpinMode": true,
             "forceAddress": true,
             "ipam": {"type": "host-local", "dataDir": state, "ranges": [[{"subnet": subnet.to_string()}]],
                      "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    });
    let content = serde_json::to_vec_pretty(&config)?;
    let path = dir.join("10-coxswain.conflist");
    if std::fs::read(&path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    crate::pki::write_atomic(&path, &content, 0o644)
}

/// Removes the bridge and every route that this module made.
pub async fn reset() -> Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
    tokio::spawn(connection);
    for route in our_routes(&handle).await? {
        handle.route().del(route).execute().await.context("removing a route")?;
    }
    if let Some(index) = link_index(&handle, BRIDGE).await? {
        handle.link().del(index).execute().await.context("removing the bridge")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_client::k8s_openapi::api::core::v1::{NodeAddress, NodeSpec, NodeStatus};

    fn node(name: &str, cidr: &str, address: &str) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.spec = Some(NodeSpec { pod_cidr: Some(cidr.into()), ..NodeSpec::default() });
        let address = NodeAddress { type_: "InternalIP".into(), address: address.into() };
        node.status = Some(NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() });
        node
    }

    #[test]
    fn other_nodes_become_routes_and_ones_own_becomes_the_bridge() {
        let nodes = [node("a", "10.244.0.0/24", "192.168.0.1"), node("b", "10.244.1.0/24", "192.168.0.2")];
        let plan = plan(nodes.iter(), "a");
        assert_eq!(plan.own.map(|s| s.gateway()), Some(Ipv4Addr::new(10, 244, 0, 1)));
        let routes: Vec<_> = plan.routes.iter().map(|(s, a)| format!("{s} via {a}")).collect();
        assert_eq!(routes, ["10.244.1.0/24 via 192.168.0.2"]);
    }
}
