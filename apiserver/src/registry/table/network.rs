//! Services, ingresses, network policies, endpoint slices and addresses.

use super::cells::{NONE, UNKNOWN, UNSET, age, labels, load_balancer, name, selector, some_of, strings, text_or};
use super::{AGE, NAME, Printer, text, wide};
use coxswain_api::Value;
use coxswain_api::field::View;
use jiff::Timestamp;

#[rustfmt::skip]
pub(super) static PRINTERS: &[Printer] = &[
    Printer { group: "", kind: "Service", cells: service, columns: &[
        NAME, text("Type", "@core.v1.ServiceSpec.type"), text("Cluster-IP", "@core.v1.ServiceSpec.clusterIP"),
        text("External-IP", "@core.v1.ServiceSpec.externalIPs"), text("Port(s)", "@core.v1.ServiceSpec.ports"), AGE,
        wide("Selector", "@core.v1.ServiceSpec.selector"),
    ] },
    Printer { group: "discovery.k8s.io", kind: "EndpointSlice", cells: endpoint_slice, columns: &[
        NAME, text("AddressType", "@discovery.v1.EndpointSlice.addressType"),
        text("Ports", "@discovery.v1.EndpointSlice.ports"), text("Endpoints", "@discovery.v1.EndpointSlice.endpoints"), AGE,
    ] },
    Printer { group: "networking.k8s.io", kind: "IPAddress", cells: ip_address, columns: &[
        // The age has a cell but no column.
        NAME, text("ParentRef", "@networking.v1.IPAddressSpec.parentRef"),
    ] },
    Printer { group: "networking.k8s.io", kind: "Ingress", cells: ingress, columns: &[
        NAME, text("Class", "The name of the IngressClass resource that should be used for additional configuration"),
        text("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
        text("Address", "Address is a list containing ingress points for the load-balancer"),
        text("Ports", "Ports of TLS configurations that open"), AGE,
    ] },
    Printer { group: "networking.k8s.io", kind: "IngressClass", cells: ingress_class, columns: &[
        NAME, text("Controller", "Controller that is responsible for handling this class"),
        text("Parameters", "A reference to a resource with additional parameters"), AGE,
    ] },
    Printer { group: "networking.k8s.io", kind: "NetworkPolicy", cells: network_policy, columns: &[
        NAME, text("Pod-Selector", "@networking.v1.NetworkPolicySpec.podSelector"), AGE,
    ] },
    Printer { group: "networking.k8s.io", kind: "ServiceCIDR", cells: service_cidr, columns: &[
        NAME, text("CIDRs", "@networking.v1.ServiceCIDRSpec.cidrs"), AGE,
    ] },
];

fn service(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    let kind = spec.child("type").str();
    let cluster_ip = spec.child("clusterIPs").items().next().map_or(NONE, |ip| ip.str());
    let externals = strings(&spec.child("externalIPs")).join(",");
    let external = match kind {
        "ClusterIP" | "NodePort" if externals.is_empty() => NONE.to_owned(),
        "ClusterIP" | "NodePort" => externals,
        "LoadBalancer" => {
            let balanced = load_balancer(&o.child("status"));
            match (balanced.as_str(), externals.as_str()) {
                ("", "") => "<pending>".to_owned(),
                ("", one) | (one, "") => one.to_owned(),
                (balanced, externals) => format!("{balanced},{externals}"),
            }
        }
        "ExternalName" => spec.child("externalName").str().to_owned(),
        _ => UNKNOWN.to_owned(),
    };
    let ports: Vec<String> = spec
        .child("ports")
        .items()
        .map(|p| {
            let (port, protocol) = (p.child("port").i64(), p.child("protocol").str());
            match p.child("nodePort").i64() {
                0 => format!("{port}/{protocol}"),
                node_port => format!("{port}:{node_port}/{protocol}"),
            }
        })
        .collect();
    let ports = if ports.is_empty() { NONE.to_owned() } else { ports.join(",") };
    let selected = labels(&spec.child("selector"));
    vec![name(&o), kind.into(), cluster_ip.into(), external.into(), ports.into(), age(&o, now), selected.into()]
}

fn endpoint_slice(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = o
        .child("ports")
        .items()
        .map(|p| match (p.child("port").opt_i64(), p.child("name").str()) {
            (Some(port), _) => port.to_string(),
            (None, _) if !p.child("name").exists() => "*".to_owned(),
            (None, name) => name.to_owned(),
        })
        .collect();
    let addresses: Vec<String> = o.child("endpoints").items().flat_map(|e| strings(&e.child("addresses"))).collect();
    let shown = |list: &[String]| {
        let text = some_of(list, 3, ",");
        if text.is_empty() { UNSET.to_owned() } else { text }
    };
    vec![name(&o), o.child("addressType").str().into(), shown(&ports).into(), shown(&addresses).into(), age(&o, now)]
}

fn ip_address(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let parent = o.child("spec").child("parentRef");
    let text = if parent.exists() {
        let (group, resource) = (parent.child("group").str(), parent.child("resource").str());
        let dot = if group.is_empty() { "" } else { "." };
        let mut text = format!("{resource}{dot}{group}").to_lowercase();
        for part in ["namespace", "name"] {
            let part = parent.child_named(part).str().to_owned();
            if !part.is_empty() {
                text = format!("{text}/{part}");
            }
        }
        text
    } else {
        NONE.to_owned()
    };
    vec![name(&o), text.into(), age(&o, now)]
}

fn ingress(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    let hosts: Vec<String> =
        spec.child("rules").items().map(|r| r.child("host").str().to_owned()).filter(|h| !h.is_empty()).collect();
    let hosts = if hosts.is_empty() { "*".to_owned() } else { some_of(&hosts, 3, ",") };
    let ports = if spec.child("tls").is_empty() { "80" } else { "80, 443" };
    vec![
        name(&o),
        text_or(&spec.child("ingressClassName"), NONE),
        hosts.into(),
        load_balancer(&o.child("status")).into(),
        ports.into(),
        age(&o, now),
    ]
}

fn ingress_class(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    let parameters = spec.child("parameters");
    let text = if parameters.exists() {
        let group = parameters.child("apiGroup").str();
        let dot = if group.is_empty() { "" } else { "." };
        format!("{}{dot}{group}/{}", parameters.child("kind").str(), parameters.child("name").str())
    } else {
        NONE.to_owned()
    };
    vec![name(&o), spec.child("controller").str().into(), text.into(), age(&o, now)]
}

fn network_policy(o: View<'_>, now: Timestamp) -> Vec<Value> {
    vec![name(&o), selector(&o.child("spec").child("podSelector"), NONE).into(), age(&o, now)]
}

fn service_cidr(o: View<'_>, now: Timestamp) -> Vec<Value> {
    vec![name(&o), strings(&o.child("spec").child("cidrs")).join(",").into(), age(&o, now)]
}
