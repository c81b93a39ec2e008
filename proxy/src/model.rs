//! What the proxy and the DNS server keep of services, endpoint slices and the node: projections of the informers' objects.

use std::net::IpAddr;

use coxswain_client::ObjectKey;
use coxswain_client::k8s_openapi::api::core::v1::{Node, Service as ApiService};
use coxswain_client::k8s_openapi::api::discovery::v1::EndpointSlice;
use coxswain_client::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn new(name: Option<&str>) -> Self {
        match name {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            _ => Self::Tcp,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
    /// The port at the endpoints if it is a number; for services without endpoints of their own.
    pub target: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub key: ObjectKey,
    /// Empty for a headless service.
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    pub source_ranges: Vec<String>,
    pub ports: Vec<ServicePort>,
    pub external_name: Option<String>,
    /// Seconds for which a client stays with an endpoint.
    pub affinity_seconds: Option<i32>,
    pub internal_local: bool,
    pub external_local: bool,
    pub health_check_port: Option<u16>,
    pub publish_not_ready: bool,
    /// Whether it prefers endpoints nearby, so that hints of nodes and zones count.
    pub foreign: bool,
}

fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

impl Service {
    pub fn new(service: ApiService) -> Self {
        let (spec, status) = (service.spec.unwrap_or_default(), service.status.unwrap_or_default());
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let balanced = kind == "LoadBalancer";
        let ingress = status.load_balancer.and_then(|l| l.ingress).unwrap_or_default();
        // Addresses at which the balancer itself ends connections are not ours to answer.
        let ingress = ingress.into_iter().filter(|i| balanced && i.ip_mode.as_deref() != Some("Proxy"));
        let local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        let ports = spec.ports.into_iter().flatten().filter_map(|port| {
            Some(ServicePort {
                protocol: Protocol::new(port.protocol.as_deref()),
                port: u16::try_from(port.port).ok()?,
                node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0),
                target: match port.target_port {
                    Some(IntOrString::Int(number)) => u16::try_from(number).ok(),
                    _ => None,
                },
                name: port.name.unwrap_or_default(),
            })
        });
        let cluster_ips = match spec.cluster_ips {
            Some(ips) if !ips.is_empty() => ips,
            _ => spec.cluster_ip.into_iter().collect(),
        };
        let affinity = spec.session_affinity.as_deref() == Some("ClientIP");
        let seconds = spec.session_affinity_config.and_then(|c| c.client_ip).and_then(|c| c.timeout_seconds);
        let labels = service.metadata.labels.clone().unwrap_or_default();
        Self {
            key: ObjectKey::of_meta(&service.metadata),
            cluster_ips: addresses(&cluster_ips),
            external_ips: addresses(spec.external_ips.iter().flatten()),
            load_balancer_ips: ingress.filter_map(|i| i.ip?.parse().ok()).collect(),
            source_ranges: spec.load_balancer_source_ranges.unwrap_or_default(),
            ports: ports.collect(),
            external_name: spec.external_name.filter(|_| kind == "ExternalName"),
            affinity_seconds: affinity.then(|| seconds.unwrap_or(10800)),
            internal_local: local(&spec.internal_traffic_policy),
            external_local: local(&spec.external_traffic_policy),
            health_check_port: spec.health_check_node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            foreign: labels.contains_key("service.kubernetes.io/service-proxy-name"),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<String>,
    pub hostname: Option<String>,
    pub zone_hints: Vec<String>,
    pub node_hints: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Of the service.
    pub service: ObjectKey,
    pub ports: Vec<(String, Protocol, Option<u16>)>,
    pub endpoints: Vec<Endpoint>,
    pub foreign: bool,
}

/// The name of the store's index of slices by service.
pub const BY_SERVICE: &str = "service";

impl Slice {
    pub fn new(slice: EndpointSlice) -> Self {
        let labels = slice.metadata.labels.unwrap_or_default();
        let service = labels.get("kubernetes.io/service-name").cloned().unwrap_or_default();
        let endpoints = slice.endpoints.into_iter().flatten().map(|endpoint| {
            let conditions = endpoint.conditions.unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            let hints = endpoint.hints.unwrap_or_default();
            Endpoint {
                addresses: addresses(&endpoint.addresses),
                ready,
                serving: conditions.serving.unwrap_or(ready),
                terminating: conditions.terminating.unwrap_or(false),
                node: endpoint.node_name,
                hostname: endpoint.hostname,
                zone_hints: hints.for_zones.into_iter().flatten().map(|z| z.name).collect(),
                node_hints: hints.for_nodes.into_iter().flatten().map(|n| n.name).collect(),
            }
        });
        let ports = slice.ports.into_iter().flatten().map(|port| {
            let number = port.port.and_then(|p| u16::try_from(p).ok());
            (port.name.unwrap_or_default(), Protocol::new(port.protocol.as_deref()), number)
        });
        Self {
            service: ObjectKey::new(slice.metadata.namespace.unwrap_or_default(), service),
            ports: ports.collect(),
            endpoints: endpoints.collect(),
            foreign: labels.contains_key("service.kubernetes.io/service-proxy-name"),
        }
    }

    pub fn index(&self) -> Vec<String> {
        vec![self.service.to_string()]
    }
}

/// The node that the proxy runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnNode {
    pub zone: Option<String>,
    /// Whether balancers may send traffic here.
    pub eligible: bool,
}

impl OwnNode {
    pub fn new(node: Node) -> Self {
        let labels = node.metadata.labels.unwrap_or_default();
        let taints = node.spec.and_then(|s| s.taints).unwrap_or_default();
        Self {
            zone: labels.get("topology.kubernetes.io/zone").cloned(),
            eligible: node.metadata.deletion_timestamp.is_none()
                && taints.iter().all(|t| t.key != "ToBeDeletedByClusterAutoscaler"),
        }
    }
}
