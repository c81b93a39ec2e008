//! What one service needs in the table: chains, sets and elements. A pure function of the service and its endpoints.
//!
//! A packet finds its service in the map `service-ips` (or `service-nodeports`), goes through the service's chain, which
//! picks an endpoint, to the endpoint's chain, which rewrites the destination. Traffic from outside goes through the
//! service's `external` chain first. The layout is that of upstream's nftables mode.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::endpoints::{self, Targets};
use crate::model::{OwnNode, Protocol, Service, ServicePort, Slice};

/// Maps and sets of the table, whose elements are the services'.
pub const SERVICE_IPS: &str = "service-ips";
pub const SERVICE_NODEPORTS: &str = "service-nodeports";
pub const NO_ENDPOINT_SERVICES: &str = "no-endpoint-services";
pub const NO_ENDPOINT_NODEPORTS: &str = "no-endpoint-nodeports";
pub const FIREWALL_IPS: &str = "firewall-ips";
pub const CLUSTER_IPS: &str = "cluster-ips";

/// What a service wants to be in the table of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub chains: BTreeMap<String, Vec<String>>,
    /// Sets by name, with their definition.
    pub sets: BTreeMap<String, String>,
    /// By map and key: the verdict, empty for a member of a set.
    pub elements: BTreeMap<(&'static str, String), String>,
    /// UDP addresses and the endpoints behind them, whose connections must not outlive a change.
    pub udp: BTreeMap<SocketAddr, Vec<SocketAddr>>,
}

/// What the rules of all services depend on.
#[derive(Clone, Debug)]
pub struct Surroundings {
    pub node_name: String,
    pub node: OwnNode,
    pub ipv6: bool,
    /// Addresses of pods in the family.
    pub cluster_cidr: Option<String>,
}

impl Surroundings {
    fn ip(&self) -> &'static str {
        if self.ipv6 { "ip6" } else { "ip" }
    }
}

pub fn desired(service: &Service, slices: &[Arc<Slice>], around: &Surroundings) -> Desired {
    let mut desired = Desired::default();
    let of_family =
        |ips: &[IpAddr]| -> Vec<IpAddr> { ips.iter().copied().filter(|ip| ip.is_ipv6() == around.ipv6).collect() };
    let Some(cluster_ip) = of_family(&service.cluster_ips).first().copied() else { return desired };
    if service.foreign || service.external_name.is_some() {
        return desired;
    }
    desired.elements.insert((CLUSTER_IPS, cluster_ip.to_string()), String::new());
    let external: Vec<IpAddr> = of_family(&service.external_ips);
    let balanced: Vec<IpAddr> = of_family(&service.load_balancer_ips);
    for port in &service.ports {
        let targets = endpoints::of_port(service, port, slices, &around.node_name, &around.node, around.ipv6);
        let port = Port { service, port, targets: &targets, around };
        port.add(&mut desired, cluster_ip, &external, &balanced);
    }
    desired
}

struct Port<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    targets: &'a Targets,
    around: &'a Surroundings,
}

impl Port<'_> {
    /// `namespace/name/protocol/port`, which chains and sets are named after.
    fn name(&self) -> String {
        let key = &self.service.key;
        format!("{}/{}/{}/{}", key.namespace, key.name, self.port.protocol.as_str(), self.port.name)
    }

    fn key(&self, ip: IpAddr) -> String {
        format!("{ip} . {} . {}", self.port.protocol.as_str(), self.port.port)
    }

    fn endpoint_name(&self, address: SocketAddr) -> String {
        // A colon ends a name.
        let ip = address.ip().to_string().replace(':', ".");
        format!("{}__{ip}/{}", self.name(), address.port())
    }

    /// Which clients an endpoint has. The definition of a set cannot change, so its timeout is part of the name.
    fn affinity_set(&self, endpoint: &str) -> String {
        format!("affinity-{}s-{endpoint}", self.service.affinity_seconds.unwrap_or_default())
    }

    fn add(&self, desired: &mut Desired, cluster_ip: IpAddr, external: &[IpAddr], balanced: &[IpAddr]) {
        let (service, targets, ip) = (self.service, self.targets, self.around.ip());
        let (cluster, local) = (format!("service-{}", self.name()), format!("local-{}", self.name()));
        let from_pods = self.around.cluster_cidr.as_ref();
        let exposed = !external.is_empty() || !balanced.is_empty() || self.port.node_port.is_some();
        let internal_targets = if service.internal_local { &targets.local } else { &targets.cluster };
        let external_targets = if service.external_local { &targets.local } else { &targets.cluster };
        let uses_local = (service.internal_local || (exposed && service.external_local)) && !targets.local.is_empty();
        let uses_cluster = !targets.cluster.is_empty() && (!service.internal_local || exposed);

        let internal_chain = if service.internal_local { &local } else { &cluster };
        // What comes from elsewhere must find its way back through this node.
        let masquerade = from_pods.map(|cidr| {
            let (protocol, port) = (self.port.protocol.as_str(), self.port.port);
            format!("{ip} daddr {cluster_ip} {protocol} dport {port} {ip} saddr != {cidr} jump mark-for-masquerade")
        });
        for (chain, used, list) in [(&cluster, uses_cluster, &targets.cluster), (&local, uses_local, &targets.local)] {
            if used {
                let first = masquerade.clone().filter(|_| chain == internal_chain);
                let rules = first.into_iter().chain(self.choice(list)).collect();
                desired.chains.insert(chain.clone(), rules);
                self.add_endpoints(desired, list);
            }
        }
        let no_target = |found: bool| match (found, targets.any) {
            (true, _) => None,
            (false, false) => Some("goto reject-chain"),
            // There are endpoints, but none that the traffic policy allows here.
            (false, true) => Some("drop"),
        };
        match no_target(!internal_targets.is_empty()) {
            None => desired.elements.insert((SERVICE_IPS, self.key(cluster_ip)), format!("goto {internal_chain}")),
            Some(verdict) => desired.elements.insert((NO_ENDPOINT_SERVICES, self.key(cluster_ip)), verdict.to_owned()),
        };
        if self.port.protocol == Protocol::Udp {
            self.add_udp(desired, cluster_ip, internal_targets, external.iter().chain(balanced), external_targets);
        }
        if !exposed {
            return;
        }
        // An external address that pods use may be served by the whole cluster even under the local policy.
        let outside = format!("external-{}", self.name());
        let verdict = no_target(!external_targets.is_empty());
        if verdict.is_none() || (service.external_local && uses_cluster) {
            let mut rules = Vec::new();
            if service.external_local {
                if uses_cluster {
                    rules.extend(from_pods.map(|cidr| format!("{ip} saddr {cidr} goto {cluster}")));
                    rules.push("fib saddr type local jump mark-for-masquerade".to_owned());
                    rules.push(format!("fib saddr type local goto {cluster}"));
                }
                if uses_local {
                    rules.push(format!("goto {local}"));
                }
            } else {
                rules.push("jump mark-for-masquerade".to_owned());
                rules.push(format!("goto {cluster}"));
            }
            desired.chains.insert(outside.clone(), rules);
            for address in external.iter().chain(balanced) {
                desired.elements.insert((SERVICE_IPS, self.key(*address)), format!("goto {outside}"));
            }
            if let Some(node_port) = self.node_port_key() {
                desired.elements.insert((SERVICE_NODEPORTS, node_port), format!("goto {outside}"));
            }
        }
        if let Some(verdict) = verdict {
            for address in external.iter().chain(balanced) {
                desired.elements.insert((NO_ENDPOINT_SERVICES, self.key(*address)), verdict.to_owned());
            }
            if let Some(node_port) = self.node_port_key() {
                desired.elements.insert((NO_ENDPOINT_NODEPORTS, node_port), verdict.to_owned());
            }
        }
        self.add_firewall(desired, balanced);
    }

    fn node_port_key(&self) -> Option<String> {
        self.port.node_port.map(|number| format!("{} . {number}", self.port.protocol.as_str()))
    }

    /// Picks one of the endpoints, the one that the client had before if it is to stay with it.
    fn choice(&self, targets: &[SocketAddr]) -> Vec<String> {
        let ip = self.around.ip();
        let mut rules = Vec::new();
        if self.service.affinity_seconds.is_some() {
            for target in targets {
                let name = self.endpoint_name(*target);
                rules.push(format!("{ip} saddr @{} goto endpoint-{name}", self.affinity_set(&name)));
            }
        }
        let chain = |target: &SocketAddr| format!("goto endpoint-{}", self.endpoint_name(*target));
        match targets {
            [only] => rules.push(chain(only)),
            many => {
                let choices: Vec<String> =
                    many.iter().enumerate().map(|(i, t)| format!("{i} : {}", chain(t))).collect();
                rules.push(format!("numgen random mod {} vmap {{ {} }}", many.len(), choices.join(" , ")));
            }
        }
        rules
    }

    fn add_endpoints(&self, desired: &mut Desired, targets: &[SocketAddr]) {
        let ip = self.around.ip();
        for target in targets {
            let name = self.endpoint_name(*target);
            // A pod that reaches itself through its service must see an answer from the service.
            let mut rules = vec![format!("{ip} saddr {} jump mark-for-masquerade", target.ip())];
            if let Some(seconds) = self.service.affinity_seconds {
                let kind = if self.around.ipv6 { "ipv6_addr" } else { "ipv4_addr" };
                let definition = format!("type {kind}; flags dynamic,timeout; timeout {seconds}s;");
                desired.sets.insert(self.affinity_set(&name), definition);
                rules.push(format!("update @{} {{ {ip} saddr }}", self.affinity_set(&name)));
            }
            rules.push(format!("meta l4proto {} dnat to {target}", self.port.protocol.as_str()));
            desired.chains.insert(format!("endpoint-{name}"), rules);
        }
    }

    fn add_firewall(&self, desired: &mut Desired, balanced: &[IpAddr]) {
        let ranges = self.service.source_ranges.iter().map(|r| r.trim());
        let ranges: Vec<&str> = ranges
            .filter(|r| r.parse::<ipnet::IpNet>().is_ok_and(|net| net.addr().is_ipv6() == self.around.ipv6))
            .collect();
        if ranges.is_empty() || balanced.is_empty() {
            return;
        }
        let (ip, chain) = (self.around.ip(), format!("firewall-{}", self.name()));
        desired.chains.insert(chain.clone(), vec![format!("{ip} saddr != {{ {} }} drop", ranges.join(", "))]);
        for address in balanced {
            desired.elements.insert((FIREWALL_IPS, self.key(*address)), format!("goto {chain}"));
        }
    }

    fn add_udp<'a>(
        &self,
        desired: &mut Desired,
        cluster_ip: IpAddr,
        internal: &[SocketAddr],
        outer: impl Iterator<Item = &'a IpAddr>,
        external: &[SocketAddr],
    ) {
        let at = |ip: IpAddr| SocketAddr::new(ip, self.port.port);
        desired.udp.insert(at(cluster_ip), internal.to_vec());
        for ip in outer {
            desired.udp.insert(at(*ip), external.to_vec());
        }
        if let Some(node_port) = self.port.node_port {
            let any: IpAddr = if self.around.ipv6 { [0u16; 8].into() } else { [0u8; 4].into() };
            desired.udp.insert(SocketAddr::new(any, node_port), external.to_vec());
        }
    }
}
