//! Cluster IPs and node ports (upstream: `pkg/registry/core/service/{ipallocator,portallocator}`).
//!
//! A cluster IP is taken by creating its `IPAddress` object, out of the networks of the `ServiceCIDR` objects
//! ([`cluster_ips`]). A node port is taken by setting its bit in the `RangeAllocation` object ([`range`]). Either is one
//! commit that only one of several servers can win, and what a crashed server left behind is found by [`repair`].

mod cluster_ips;
mod node_ports;
pub mod range;
pub mod repair;

use super::core::service::Spec;
use super::pipeline::{Call, Pipeline};
use super::resource::Taken;
use crate::store::Store;
use coxswain_api::Value;
use ipnet::IpNet;
use range::NodePorts;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// What the flags say of services.
#[derive(Clone, Debug)]
pub struct ServiceNetwork {
    /// `--service-cluster-ip-range`: one network, or one of each family.
    pub cidrs: Vec<IpNet>,
    /// `--service-node-port-range`.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for ServiceNetwork {
    fn default() -> Self {
        let cidr = "10.96.0.0/16".parse().expect("a network");
        Self { cidrs: vec![cidr], node_ports: 30000..=32767 }
    }
}

impl ServiceNetwork {
    /// From the texts of the flags; a network is named once for each family.
    pub fn parse(cidrs: &str, node_ports: (u16, u16)) -> Result<Self, String> {
        let mut parsed = Vec::new();
        for text in cidrs.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            parsed.push(text.parse::<IpNet>().map_err(|_| format!("service cluster IP range: {text} is no network"))?);
        }
        if parsed.is_empty() || parsed.len() > 2 || (parsed.len() == 2 && family(&parsed[0]) == family(&parsed[1])) {
            return Err("service cluster IP range: one network is wanted, or one of each family".into());
        }
        if node_ports.0 > node_ports.1 {
            return Err("service node port range: the first port is above the last".into());
        }
        Ok(Self { cidrs: parsed, node_ports: node_ports.0..=node_ports.1 })
    }

    pub fn default_family(&self) -> &'static str {
        self.cidrs.first().map_or("IPv4", family)
    }

    pub fn has_family(&self, wanted: &str) -> bool {
        self.cidrs.iter().any(|c| family(c) == wanted)
    }

    pub fn is_dual_stack(&self) -> bool {
        self.has_family("IPv4") && self.has_family("IPv6")
    }
}

fn family(cidr: &IpNet) -> &'static str {
    match cidr {
        IpNet::V4(_) => "IPv4",
        IpNet::V6(_) => "IPv6",
    }
}

/// What one write of a service has taken, and what it gives back when it is done.
pub(super) struct Taking<'a> {
    pipeline: &'a Pipeline,
    call: &'a Call,
    dry_run: bool,
    /// The ports that a dry run would have taken.
    dry_ports: Vec<i64>,
    held: Held,
    /// Given back once the write is committed.
    surplus: Held,
}

/// Addresses and ports with the stores they are kept in.
struct Held {
    addresses: Vec<String>,
    ports: Vec<u16>,
    ip_store: Option<Arc<Store>>,
    node_ports: Arc<NodePorts>,
}

impl Held {
    fn new(pipeline: &Pipeline) -> Self {
        let ip_store = pipeline.resources.store("networking.k8s.io", "ipaddresses");
        Self { addresses: Vec::new(), ports: Vec::new(), ip_store, node_ports: pipeline.node_ports.clone() }
    }

    /// What is held; nothing is left here.
    fn take(&mut self) -> Held {
        Held {
            addresses: std::mem::take(&mut self.addresses),
            ports: std::mem::take(&mut self.ports),
            ip_store: self.ip_store.clone(),
            node_ports: self.node_ports.clone(),
        }
    }

    /// Gives everything back. What fails is mended by the repair.
    async fn release(self) {
        for address in &self.addresses {
            // Gone already is as good.
            if let Some(store) = &self.ip_store
                && let Ok(Some(object)) = store.get("", address).await
                && let Err(error) = store.delete(&object).await
            {
                tracing::warn!(address, ?error, "a cluster IP was not given back");
            }
        }
        if !self.ports.is_empty()
            && let Err(error) = self.node_ports.release(&self.ports).await
        {
            tracing::warn!(ports = ?self.ports, ?error, "node ports were not given back");
        }
    }

    fn release_in_background(&mut self) {
        if !self.addresses.is_empty() || !self.ports.is_empty() {
            tokio::spawn(self.take().release());
        }
    }
}

/// A [`Taking`] that outlives the call.
pub(super) struct OwnedTaking {
    held: Held,
    surplus: Held,
}

impl Taken for OwnedTaking {
    fn keep(mut self: Box<Self>) {
        self.held.addresses.clear();
        self.held.ports.clear();
        self.surplus.release_in_background();
    }
}

impl Drop for OwnedTaking {
    fn drop(&mut self) {
        self.held.release_in_background();
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.held.release_in_background();
    }
}

impl<'a> Taking<'a> {
    pub(super) fn new(pipeline: &'a Pipeline, call: &'a Call) -> Self {
        let (held, surplus) = (Held::new(pipeline), Held::new(pipeline));
        Self { pipeline, call, dry_run: call.query.first("dryRun").is_some(), dry_ports: Vec::new(), held, surplus }
    }

    pub(super) fn finish(mut self) -> Box<dyn Taken> {
        let (held, mut surplus) = (self.held.take(), self.surplus.take());
        if self.dry_run {
            surplus.take();
        }
        Box::new(OwnedTaking { held, surplus })
    }
}

/// Gives back what a deleted service had.
pub(super) async fn release_service(pipeline: &Pipeline, service: &Value) {
    let s = Spec(service);
    let mut held = Held::new(pipeline);
    if s.kind() != "ExternalName" && !s.is_headless() {
        held.addresses.extend(s.texts("clusterIPs").into_iter().map(str::to_owned));
    }
    held.ports.extend(s.node_ports().into_iter().map(|p| p as u16));
    if s.number("healthCheckNodePort") != 0 {
        held.ports.push(s.number("healthCheckNodePort") as u16);
    }
    held.release().await;
}
