//! The endpoints that a service's pods make. Pure.

use std::sync::Arc;

use coxswain_client::Store;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::plan::Group;
use super::{HEADLESS, MANAGED_BY, SERVICE_NAME};
use crate::common::selector::Labels;
use crate::common::slim::SlimPod;
use crate::common::{hash, owners, pods};

/// What endpoints show of a pod; a change of anything else does not concern them.
pub fn shows(pod: &Pod) -> impl PartialEq + use<> {
    let status = pod.status.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    (
        (status.pod_ip, status.pod_ips),
        pods::is_ready(pod),
        pods::is_terminated(pod),
        owners::is_deleting(&pod.metadata),
        pods::node_name(pod).to_owned(),
        spec.and_then(|spec| spec.hostname.clone()),
        spec.and_then(|spec| spec.subdomain.clone()),
        pod.metadata.uid.clone(),
    )
}

pub fn zone_of(node: &Node) -> Option<&str> {
    owners::label(&node.metadata, "topology.kubernetes.io/zone")
}

/// Whether a service has an address of its own.
pub fn has_cluster_ip(service: &Service) -> bool {
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
    !address.is_empty() && address != "None"
}

/// The service's labels, and those that tell what a slice is.
pub fn labels(service: &Service, controller: &str) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| ![HEADLESS, MANAGED_BY, SERVICE_NAME].contains(&key.as_str()));
    labels.insert(SERVICE_NAME.to_owned(), owners::name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), controller.to_owned());
    if !has_cluster_ip(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// Endpoints grouped by address type and ports, and whether a pod was left out because its node is not known.
pub fn groups(service: &Service, pods: &[Arc<SlimPod>], nodes: &Store<Node>) -> (Vec<Group>, bool) {
    let spec = service.spec.clone().unwrap_or_default();
    let publish_unready = spec.publish_not_ready_addresses == Some(true);
    let mut missing_node = false;
    let mut groups: Vec<Group> = Vec::new();
    for address_type in address_types(service) {
        // A service without endpoints has an empty slice for each address type: the plan makes it.
        groups.push(Group { address_type: address_type.clone(), ports: None, endpoints: Vec::new() });
        for pod in pods {
            if pods::is_terminated(pod) || ip_of(pod).is_none() {
                continue;
            }
            let node = Some(pods::node_name(pod)).filter(|name| !name.is_empty());
            let node_object = node.and_then(|name| nodes.get("", name));
            if node.is_some() && node_object.is_none() && !publish_unready {
                missing_node = true;
                continue;
            }
            let addresses = addresses_of(pod, &address_type);
            if addresses.is_empty() {
                continue;
            }
            let zone = node_object.as_deref().and_then(zone_of).map(str::to_owned);
            let endpoint = endpoint(service, pod, addresses, zone, publish_unready);
            let ports = ports_of(service, pod);
            match groups
                .iter_mut()
                .find(|group| group.address_type == address_type && group.ports.as_ref() == Some(&ports))
            {
                Some(group) => group.endpoints.push(endpoint),
                None => {
                    groups.push(Group {
                        address_type: address_type.clone(),
                        ports: Some(ports),
                        endpoints: vec![endpoint],
                    });
                }
            }
        }
    }
    (groups, missing_node)
}

/// The address types a service has: its IP families.
pub fn address_types(service: &Service) -> Vec<String> {
    let spec = service.spec.clone().unwrap_or_default();
    let families = spec.ip_families.unwrap_or_default();
    if !families.is_empty() {
        return families;
    }
    match spec.cluster_ip.as_deref() {
        Some(address) if address.contains(':') => vec!["IPv6".to_owned()],
        Some("None") | Some("") | None => vec!["IPv4".to_owned(), "IPv6".to_owned()],
        Some(_) => vec!["IPv4".to_owned()],
    }
}

pub fn ip_of(pod: &Pod) -> Option<&str> {
    pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).filter(|ip| !ip.is_empty())
}

pub fn addresses_of(pod: &Pod, address_type: &str) -> Vec<String> {
    let status = pod.status.as_ref();
    let listed = status.into_iter().flat_map(|status| status.pod_ips.iter().flatten()).map(|ip| ip.ip.clone());
    listed.filter(|ip| ip.contains(':') == (address_type == "IPv6")).collect()
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    addresses: Vec<String>,
    zone: Option<String>,
    publish_unready: bool,
) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = owners::is_deleting(&pod.metadata);
    let ready = publish_unready || (serving && !terminating);
    let node_name = Some(pods::node_name(pod).to_owned()).filter(|name| !name.is_empty());
    let distribution = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
    let for_zones = || zone.clone().map(|name| vec![ForZone { name }]);
    let hints = match distribution {
        _ if !ready => None,
        Some("PreferClose" | "PreferSameZone") => {
            for_zones().map(|zones| EndpointHints { for_zones: Some(zones), for_nodes: None })
        }
        Some("PreferSameNode") => Some(EndpointHints {
            for_nodes: node_name.clone().map(|name| vec![ForNode { name }]),
            for_zones: for_zones(),
        })
        .filter(|hints| hints.for_nodes.is_some() || hints.for_zones.is_some()),
        _ => None,
    };
    Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name,
        target_ref: Some(target_reference(pod)),
        zone,
        hints,
        deprecated_topology: None,
    }
}

pub fn target_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The pod's host name, if it is in the service's subdomain.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|name| !name.is_empty())?;
    (spec.subdomain.as_deref() == service.metadata.name.as_deref()).then_some(hostname)
}

fn ports_of(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let mut ports: Vec<EndpointPort> = ports
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(find_port(pod, port)?),
                protocol: Some(protocol(port).to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort_by_cached_key(|port| hash::deep("v1.EndpointPort~discovery.EndpointPort", port));
    ports
}

pub fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

/// The number of a service's target port on a pod, which may name a container's port.
pub fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|container| container.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|container| container.ports.iter().flatten())
                .find(|found| {
                    found.name.as_deref() == Some(name) && found.protocol.as_deref().unwrap_or("TCP") == protocol(port)
                })
                .map(|found| found.container_port)
        }
    }
}
