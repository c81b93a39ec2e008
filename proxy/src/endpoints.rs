//! Which endpoints take a service port's traffic on this node, the counterpart of upstream's `CategorizeEndpoints`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{Endpoint, OwnNode, Service, ServicePort, Slice};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub address: SocketAddr,
    pub local: bool,
}

/// The endpoints for each traffic policy, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    pub cluster: Vec<SocketAddr>,
    pub local: Vec<SocketAddr>,
    /// Whether any endpoint is reachable by any policy, here or elsewhere.
    pub any: bool,
    /// Endpoints of this node that are ready, for health checks of load balancers.
    pub ready_here: usize,
}

/// `ipv6` says which family is asked for.
pub fn of_port(
    service: &Service,
    port: &ServicePort,
    slices: &[Arc<Slice>],
    node_name: &str,
    node: &OwnNode,
    ipv6: bool,
) -> Targets {
    let mut all: Vec<(SocketAddr, &Endpoint)> = Vec::new();
    for slice in slices.iter().filter(|s| !s.foreign) {
        let named = slice.ports.iter().find(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
        let Some(number) = named.and_then(|(.., number)| *number) else { continue };
        for endpoint in &slice.endpoints {
            // All addresses of an endpoint are interchangeable: one is enough.
            if let Some(ip) = endpoint.addresses.iter().find(|ip| ip.is_ipv6() == ipv6) {
                all.push((SocketAddr::new(*ip, number), endpoint));
            }
        }
    }
    let here = |endpoint: &Endpoint| endpoint.node.as_deref() == Some(node_name);
    let nearby = hinted(&all, node_name, node);
    let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<SocketAddr> {
        let set: BTreeSet<SocketAddr> = all.iter().filter(|(_, e)| wanted(e)).map(|(address, _)| *address).collect();
        set.into_iter().collect()
    };
    // When all that is left terminates, what still serves is better than nothing.
    let leaving = |e: &Endpoint| e.serving && e.terminating;
    let mut targets = Targets { ready_here: pick(&|e| e.ready && here(e)).len(), ..Targets::default() };
    targets.cluster = pick(&|e| e.ready && nearby(e));
    if targets.cluster.is_empty() {
        targets.cluster = pick(&leaving);
    }
    if service.internal_local || service.external_local {
        targets.local = pick(&|e| e.ready && here(e));
        if targets.local.is_empty() {
            targets.local = pick(&|e| leaving(e) && here(e));
        }
    }
    targets.any = all.iter().any(|(_, e)| e.ready || leaving(e));
    targets
}

/// Hints count if every ready endpoint has them and some point here: those for the node, or else those for its zone.
fn hinted<'a>(
    all: &[(SocketAddr, &Endpoint)],
    node_name: &'a str,
    node: &'a OwnNode,
) -> Box<dyn Fn(&Endpoint) -> bool + 'a> {
    let ready = || all.iter().map(|(_, e)| *e).filter(|e| e.ready);
    let for_node = move |e: &Endpoint| e.node_hints.iter().any(|n| n == node_name);
    if ready().all(|e| !e.node_hints.is_empty()) && ready().any(for_node) {
        return Box::new(for_node);
    }
    let Some(zone) = &node.zone else { return Box::new(|_| true) };
    let for_zone = move |e: &Endpoint| e.zone_hints.iter().any(|z| z == zone);
    if ready().all(|e| !e.zone_hints.is_empty()) && ready().any(for_zone) {
        return Box::new(for_zone);
    }
    Box::new(|_| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn endpoint(ip: &str, node: &str, ready: bool, terminating: bool, zone: &str) -> Endpoint {
        Endpoint {
            addresses: vec![ip.parse().expect("an address")],
            ready,
            serving: true,
            terminating,
            node: Some(node.to_owned()),
            zone_hints: Some(zone.to_owned()).filter(|z| !z.is_empty()).into_iter().collect(),
            ..Endpoint::default()
        }
    }

    fn targets(endpoints: Vec<Endpoint>) -> Targets {
        let port =
            ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80, node_port: None, target: None };
        let slice = Slice { ports: vec![(String::new(), Protocol::Tcp, Some(8080))], endpoints, ..Slice::default() };
        let service = Service { external_local: true, ..Service::default() };
        let node = OwnNode { zone: Some("z1".to_owned()), eligible: true };
        of_port(&service, &port, &[Arc::new(slice)], "n1", &node, false)
    }

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|a| a.parse().expect("an address")).collect()
    }

    #[test]
    fn what_terminates_serves_only_when_nothing_is_ready() {
        let found =
            targets(vec![endpoint("10.0.0.1", "n1", true, false, ""), endpoint("10.0.0.2", "n2", false, true, "")]);
        assert_eq!(found.cluster, addresses(&["10.0.0.1:8080"]));
        let found =
            targets(vec![endpoint("10.0.0.1", "n1", false, false, ""), endpoint("10.0.0.2", "n2", false, true, "")]);
        assert_eq!(found.cluster, addresses(&["10.0.0.2:8080"]));
        assert!(found.any && found.local.is_empty() && found.ready_here == 0);
    }

    #[test]
    fn hints_count_only_if_all_have_them_and_some_point_here() {
        let both = |a: &str, b: &str| {
            targets(vec![endpoint("10.0.0.1", "n1", true, false, a), endpoint("10.0.0.2", "n2", true, false, b)])
                .cluster
        };
        assert_eq!(both("z1", "z2"), addresses(&["10.0.0.1:8080"]));
        assert_eq!(both("z1", ""), addresses(&["10.0.0.1:8080", "10.0.0.2:8080"]));
        assert_eq!(both("z2", "z2"), addresses(&["10.0.0.1:8080", "10.0.0.2:8080"]));
    }
}
