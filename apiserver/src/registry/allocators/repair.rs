//! What services have and what is held for them, compared (upstream: `service/ipallocator/controller/repairip.go` and
//! `service/portallocator/controller/repair.go`).
//!
//! What a service has and nobody holds is taken for it. What is held for no service is given back, but not at once: a
//! server may just be creating that service. The findings are told as events by [`crate::server`].

use super::cluster_ips::{FAMILY_LABEL, MANAGED_BY, MANAGED_BY_LABEL, create_address, service_cidrs};
use super::range::{Ports, Refusal};
use crate::cache::Objects;
use crate::registry::core::service::{Spec, node_port};
use crate::registry::pipeline::Pipeline;
use crate::store::{Object, Store};
use coxswain_api::{Status, Value};
use ipnet::IpNet;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A port that no service has is given back when it is found for this many times.
const PASSES_BEFORE_CLEANUP: u32 = 3;
/// An address may be older than its service by as much as a request may take.
const GRACE: Duration = Duration::from_secs(60);
const CONFLICTS_MAX: usize = 5;

/// Something that was found, in upstream's words.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// `Service` or `IPAddress`.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub reason: &'static str,
    /// Empty for ports, whose events are of the older kind that has none.
    pub action: &'static str,
    pub message: String,
}

impl Finding {
    fn new(kind: &'static str, object: &Object, reason: &'static str, action: &'static str, message: String) -> Self {
        let tree = object.tree();
        let uid = tree.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned();
        Finding {
            kind,
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            uid,
            resource_version: object.revision.to_string(),
            reason,
            action,
            message,
        }
    }
}

/// Remembers, from one pass to the next, what seems to be held for nobody.
#[derive(Default)]
pub struct Repair {
    /// How many more times a port must be found before it is given back.
    leaks: HashMap<u16, u32>,
}

impl Repair {
    /// One pass. An error means that the store could not be read or written; the next pass may do better.
    pub async fn run(&mut self, pipeline: &Pipeline) -> Result<Vec<Finding>, Status> {
        let (Some(services), Some(addresses)) =
            (pipeline.resources.store("", "services"), pipeline.resources.store("networking.k8s.io", "ipaddresses"))
        else {
            return Ok(Vec::new());
        };
        let mut findings = self.node_ports(pipeline, &services).await?;
        cluster_ips(pipeline, &services, &addresses, &mut findings).await?;
        Ok(findings)
    }

    async fn node_ports(&mut self, pipeline: &Pipeline, services: &Store) -> Result<Vec<Finding>, Status> {
        for _ in 0..CONFLICTS_MAX {
            // What is held is read first: a service that is created meanwhile then only seems to lack its port, and the
            // write below fails.
            let before = pipeline.node_ports.read().await?;
            let revision = services.catch_up().await?;
            let all = services.cache().snapshot(revision).objects;
            let mut leaks = self.leaks.clone();
            let empty = Ports::new(pipeline.node_ports.range().clone());
            let stored = before.as_ref().map_or_else(|| empty.clone(), |known| known.ports.clone());
            let (rebuilt, findings) = rebuild(empty, stored, &all, &mut leaks);
            if pipeline.node_ports.replace(before.as_ref(), rebuilt).await? {
                self.leaks = leaks;
                return Ok(findings);
            }
        }
        Err(Status::internal("the node ports that are taken are changed by others all the time"))
    }
}

/// Which ports should be taken.
fn rebuild(
    mut rebuilt: Ports,
    stored: Ports,
    services: &Objects,
    leaks: &mut HashMap<u16, u32>,
) -> (Ports, Vec<Finding>) {
    let mut left = stored.clone();
    let mut findings = Vec::new();
    let range = rebuilt.range_text();
    for object in services.values() {
        for port in ports_of(&object.tree()) {
            let found = match rebuilt.take(port) {
                Ok(port) => {
                    left.release(port);
                    leaks.remove(&port);
                    if stored.has(port) {
                        continue;
                    }
                    ("PortNotAllocated", format!("Port {port} is not allocated; repairing"))
                }
                Err(Refusal::Why(why)) if why.contains("already") => (
                    "PortAlreadyAllocated",
                    format!("Port {port} was assigned to multiple services; please recreate service"),
                ),
                Err(_) => (
                    "PortOutOfRange",
                    format!("Port {port} is not within the port range {range}; please recreate service"),
                ),
            };
            findings.push(Finding::new("Service", object, found.0, "", found.1));
        }
    }
    for port in left.taken() {
        let more = leaks.entry(port).or_insert_with(|| {
            tracing::info!(port, "a node port may have leaked");
            PASSES_BEFORE_CLEANUP - 1
        });
        if *more > 0 {
            *more -= 1;
            // Of another range it cannot be kept.
            let _ = rebuilt.take(i64::from(port));
        } else {
            tracing::info!(port, "a node port that no service has is given back");
            leaks.remove(&port);
        }
    }
    // What was given back meanwhile has not leaked.
    leaks.retain(|port, _| left.has(*port));
    (rebuilt, findings)
}

/// The node ports of a service; one that two of its ports of the same protocol have is there twice.
fn ports_of(service: &Value) -> Vec<i64> {
    let spec = Spec(service);
    let mut seen: HashSet<(i64, &str)> = HashSet::new();
    let mut ports = Vec::new();
    for port in spec.ports() {
        let number = node_port(port);
        let is_new = !seen.iter().any(|(n, _)| *n == number);
        let same_protocol = !seen.insert((number, port.get("protocol").and_then(Value::as_str).unwrap_or_default()));
        if number != 0 && (is_new || same_protocol) {
            ports.push(number);
        }
    }
    let health = spec.number("healthCheckNodePort");
    if health != 0 && (!seen.iter().any(|(n, _)| *n == health) || seen.contains(&(health, "TCP"))) {
        ports.push(health);
    }
    ports
}

/// Services and their `IPAddress` objects name each other, or are made to.
async fn cluster_ips(
    pipeline: &Pipeline,
    services: &Store,
    addresses: &Arc<Store>,
    findings: &mut Vec<Finding>,
) -> Result<(), Status> {
    // Addresses first: then those of services that are created meanwhile are not there.
    let revision = addresses.catch_up().await?;
    let held = addresses.cache().snapshot(revision).objects;
    let revision = services.catch_up().await?;
    let all = services.cache().snapshot(revision).objects;
    let cidrs = service_cidrs(pipeline);
    let mut made_anew: HashSet<String> = HashSet::new();
    for service in all.values() {
        let tree = service.tree();
        let spec = Spec(&tree);
        if spec.kind() == "ExternalName" || spec.is_headless() {
            continue;
        }
        for ip in spec.texts("clusterIPs").into_iter().filter(|ip| !ip.is_empty()) {
            let address = addresses.get("", ip).await?;
            let verdict = judge(service, ip, address.as_deref(), &cidrs, |namespace, name| {
                let other = all.get(&services.key(namespace, name))?;
                Some(Spec(&other.tree()).texts("clusterIPs").contains(&ip))
            });
            let (found, mend) = match verdict {
                Verdict::Right => continue,
                Verdict::Told(reason, message) => (Some((reason, message)), false),
                Verdict::Mended(reason, message) => (Some((reason, message)), true),
                Verdict::Relabelled => (None, true),
            };
            if let Some((reason, message)) = found {
                let action = if reason == "ClusterIPNotValid" { "ClusterIPValidation" } else { "ClusterIPAllocation" };
                findings.push(Finding::new("Service", service, reason, action, message));
            }
            if mend {
                made_anew.insert(ip.to_owned());
                give_back(addresses, address.as_ref()).await;
                let now = jiff::Timestamp::now();
                let made = create_address(pipeline, now, service.namespace(), service.name(), ip).await;
                if let Err(error) = made.or_else(|e| if e.is_already_exists() { Ok(()) } else { Err(e) }) {
                    tracing::warn!(ip, ?error, "the address of a service could not be taken");
                }
            }
        }
    }
    for address in held.values() {
        if address.label(MANAGED_BY_LABEL) != Some(MANAGED_BY) || made_anew.contains(address.name()) {
            continue;
        }
        let found = orphan(address, |namespace, name| {
            let service = all.get(&services.key(namespace, name))?;
            Some(Spec(&service.tree()).texts("clusterIPs").contains(&address.name()))
        });
        if let Some((reason, message)) = found {
            tracing::info!(ip = address.name(), reason, "an address that no service has is given back");
            findings.push(Finding::new("IPAddress", address, reason, "IPAddressAllocation", message));
            give_back(addresses, Some(address)).await;
        }
    }
    Ok(())
}

async fn give_back(addresses: &Store, address: Option<&Arc<Object>>) {
    if let Some(address) = address
        && let Err(error) = addresses.delete(address).await
    {
        tracing::warn!(ip = address.name(), ?error, "an address could not be given back");
    }
}

/// What is to be done about one address of a service.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Right,
    /// Only somebody who knows the service can mend it.
    Told(&'static str, String),
    /// The address is made anew.
    Mended(&'static str, String),
    Relabelled,
}

/// `has` says whether another service has this address; none if there is no such service.
fn judge(
    service: &Object,
    ip: &str,
    address: Option<&Object>,
    cidrs: &[IpNet],
    has: impl Fn(&str, &str) -> Option<bool>,
) -> Verdict {
    let Ok(parsed) = ip.parse::<IpAddr>() else {
        return Verdict::Told(
            "ClusterIPNotValid",
            format!("Cluster IP {ip} is not a valid IP; please recreate Service"),
        );
    };
    let family = if parsed.is_ipv6() { "IPv6" } else { "IPv4" };
    if !cidrs.iter().any(|cidr| cidr.contains(&parsed)) {
        let message =
            format!("Cluster IP [{family}]: {ip} is not within any configured Service CIDR; please recreate service");
        return Verdict::Told("ClusterIPOutOfRange", message);
    }
    let Some(address) = address else {
        let message = format!("Cluster IP [{family}]: {ip} is not allocated; repairing");
        return Verdict::Mended("ClusterIPNotAllocated", message);
    };
    let (namespace, name) = (service.namespace(), service.name());
    let wrong = || {
        let message =
            format!("the ClusterIP [{family}]: {ip} for Service {namespace}/{name} has a wrong reference; repairing");
        Verdict::Mended("ClusterIPNotAllocated", message)
    };
    let parent = Parent::of(address);
    if !parent.is_service() {
        return wrong();
    }
    if (&*parent.namespace, &*parent.name) != (namespace, name) {
        match has(&parent.namespace, &parent.name) {
            None => return wrong(),
            Some(true) => {
                let message =
                    format!("Cluster IP [{family}]:{ip} was assigned to multiple services; please recreate service");
                return Verdict::Told("ClusterIPAlreadyAllocated", message);
            }
            Some(false) => {}
        }
    }
    let labelled = address.label(FAMILY_LABEL) == Some(family) && address.label(MANAGED_BY_LABEL) == Some(MANAGED_BY);
    if labelled { Verdict::Right } else { Verdict::Relabelled }
}

/// Why an address that the allocator made is not needed. `has` is as in [`judge`].
fn orphan(address: &Object, has: impl Fn(&str, &str) -> Option<bool>) -> Option<(&'static str, String)> {
    let (ip, parent) = (address.name(), Parent::of(address));
    if !parent.is_service() {
        let message = format!(
            "IPAddress {ip} appears to have been modified, not referencing a Service {}: cleaning up",
            parent.go_text()
        );
        return Some(("IPAddressNotAllocated", message));
    }
    let service = format!("{}/{}", parent.namespace, parent.name);
    match has(&parent.namespace, &parent.name) {
        Some(true) => None,
        Some(false) => {
            let message = format!("IPAddress: {ip} for Service {service} has a wrong reference; cleaning up");
            Some(("IPAddressWrongReference", message))
        }
        None => {
            let tree = address.tree();
            let created = tree.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
            let created: jiff::Timestamp = created?.parse().ok()?;
            let age = jiff::Timestamp::now().duration_since(created);
            let old = age > jiff::SignedDuration::try_from(GRACE).unwrap_or_default();
            old.then(|| {
                let message = format!("IPAddress: {ip} for Service {service} appears to have leaked: cleaning up");
                ("IPAddressNotAllocated", message)
            })
        }
    }
}

/// What an address says that it is for.
struct Parent {
    group: String,
    resource: String,
    namespace: String,
    name: String,
}

impl Parent {
    fn of(address: &Object) -> Parent {
        let tree = address.tree();
        let text = |field: &str| {
            let value = tree.pointer(&format!("/spec/parentRef/{field}"));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        Parent { group: text("group"), resource: text("resource"), namespace: text("namespace"), name: text("name") }
    }

    fn is_service(&self) -> bool {
        self.group.is_empty() && self.resource == "services"
    }

    /// As Go prints a pointer to it.
    fn go_text(&self) -> String {
        format!("&{{{} {} {} {}}}", self.group, self.resource, self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::builtin;
    use crate::store::Facts;
    use coxswain_api::json;
    use coxswain_storage::Revision;
    use expect_test::{Expect, expect};

    fn object(resource: &str, tree: &Value) -> Arc<Object> {
        let text = |field: &str| tree.pointer(field).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
        let prefix = format!("/registry/{resource}/");
        let middle = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        let facts = Arc::new(Facts::of(tree, &*builtin::strategy("", resource)));
        let stored = tree.to_string();
        let key = format!("{prefix}{middle}{name}").into();
        Arc::new(Object::new(key, prefix.len(), Revision(7), stored.as_bytes(), facts))
    }

    fn service(name: &str, spec: Value) -> Arc<Object> {
        object("services", &json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": spec}))
    }

    fn ports(taken: &[i64]) -> Ports {
        let mut ports = Ports::new(30000..=30099);
        for port in taken {
            ports.take(*port).unwrap();
        }
        ports
    }

    #[test]
    fn ports_are_taken_for_who_has_them_and_what_is_wrong_is_told() {
        let services: Objects = [
            service(
                "a",
                json!({"ports": [{"nodePort": 30001, "protocol": "TCP"}, {"nodePort": 30001, "protocol": "UDP"}]}),
            ),
            service(
                "b",
                json!({"ports": [{"nodePort": 30001, "protocol": "TCP"}, {"nodePort": 40000, "protocol": "TCP"}]}),
            ),
            service("c", json!({"healthCheckNodePort": 30003, "ports": [{"nodePort": 30002, "protocol": "TCP"}]})),
        ]
        .into_iter()
        .map(|object| (object.key.clone(), object))
        .collect();
        let mut leaks = HashMap::new();
        let (rebuilt, findings) = rebuild(ports(&[]), ports(&[30001, 30003]), &services, &mut leaks);
        assert_eq!(rebuilt, ports(&[30001, 30002, 30003]));
        let told: Vec<_> = findings.iter().map(|f| format!("{} {}: {}", f.name, f.reason, f.message)).collect();
        expect![[r#"
            b PortAlreadyAllocated: Port 30001 was assigned to multiple services; please recreate service
            b PortOutOfRange: Port 40000 is not within the port range 30000-30099; please recreate service
            c PortNotAllocated: Port 30002 is not allocated; repairing"#]]
        .assert_eq(&told.join("\n"));
    }

    #[test]
    fn a_port_that_no_service_has_is_given_back_in_time() {
        let (none, mut leaks) = (Objects::new(), HashMap::new());
        let mut stored = ports(&[30005]);
        for _ in 0..2 {
            stored = rebuild(ports(&[]), stored, &none, &mut leaks).0;
            assert_eq!(stored, ports(&[30005]), "a service may just be created with it");
        }
        assert_eq!(rebuild(ports(&[]), stored, &none, &mut leaks).0, ports(&[]));
        assert!(leaks.is_empty());
    }

    fn check(address: Option<Value>, other: Option<bool>, expected: Expect) {
        let service = service("a", json!({"clusterIPs": ["10.0.0.9"]}));
        let address = address.map(|a| object("ipaddresses", &a));
        let cidrs = ["10.0.0.0/24".parse().unwrap()];
        let verdict = judge(&service, "10.0.0.9", address.as_deref(), &cidrs, |_, _| other);
        let orphan = address.as_deref().and_then(|a| orphan(a, |_, name| if name == "a" { Some(true) } else { other }));
        expected.assert_eq(&format!("{verdict:?} {orphan:?}"));
    }

    fn address(labels: Value, parent: Value) -> Option<Value> {
        Some(json!({"metadata": {"name": "10.0.0.9", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"parentRef": parent}}))
    }

    #[test]
    fn services_and_addresses_name_each_other_or_are_made_to() {
        let labels = json!({FAMILY_LABEL: "IPv4", MANAGED_BY_LABEL: MANAGED_BY});
        let of = |name: &str| json!({"resource": "services", "namespace": "n", "name": name});
        check(address(labels.clone(), of("a")), None, expect!["Right None"]);
        check(address(json!({}), of("a")), None, expect!["Relabelled None"]);
        check(
            None,
            None,
            expect![[
                r#"Mended("ClusterIPNotAllocated", "Cluster IP [IPv4]: 10.0.0.9 is not allocated; repairing") None"#
            ]],
        );
        check(
            address(labels.clone(), of("gone")),
            None,
            expect![[
                r#"Mended("ClusterIPNotAllocated", "the ClusterIP [IPv4]: 10.0.0.9 for Service n/a has a wrong reference; repairing") Some(("IPAddressNotAllocated", "IPAddress: 10.0.0.9 for Service n/gone appears to have leaked: cleaning up"))"#
            ]],
        );
        check(
            address(labels.clone(), of("b")),
            Some(true),
            expect![[
                r#"Told("ClusterIPAlreadyAllocated", "Cluster IP [IPv4]:10.0.0.9 was assigned to multiple services; please recreate service") None"#
            ]],
        );
        check(
            address(labels.clone(), json!({"group": "g", "resource": "gateways", "name": "x"})),
            None,
            expect![[
                r#"Mended("ClusterIPNotAllocated", "the ClusterIP [IPv4]: 10.0.0.9 for Service n/a has a wrong reference; repairing") Some(("IPAddressNotAllocated", "IPAddress 10.0.0.9 appears to have been modified, not referencing a Service &{g gateways  x}: cleaning up"))"#
            ]],
        );
    }
}
