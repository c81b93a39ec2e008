//! Which address families a service has, and what an update that does not mention allocated values keeps
//! (upstream: `pkg/registry/core/service/storage/{alloc,storage}.go`, `pkg/registry/core/service/strategy.go`).

use super::validation::cluster_ip_errors;
use super::{Spec, node_port, spec_mut};
use crate::registry::allocators::ServiceNetwork;
use crate::registry::metadata;
use coxswain_api::field::{Error, ErrorList, Path};
use coxswain_api::{Status, Value, json};

/// The family of an address that was checked before.
pub(super) fn family_of(ip: &str) -> &'static str {
    if ip.contains(':') { "IPv6" } else { "IPv4" }
}

fn same(a: &Value, b: &Value, field: &str) -> bool {
    Spec(a).field(field) == Spec(b).field(field)
}

/// `clusterIP` and `clusterIPs` say the same: old clients only know the first.
pub(super) fn normalize_cluster_ips(service: &mut Value, old: Option<&Value>) {
    let ip = Spec(service).text("clusterIP").to_owned();
    let ips = Spec(service).texts("clusterIPs").len();
    let Some(old) = old else {
        if !ip.is_empty() && ips == 0 {
            spec_mut(service).insert("clusterIPs".into(), json!([ip]));
        }
        return;
    };
    let old_ip = Spec(old).text("clusterIP");
    let old_ips = Spec(old).field("clusterIPs").cloned();
    if ips == 0 && old_ip == ip {
        if let Some(list) = old_ips {
            spec_mut(service).insert("clusterIPs".into(), list);
        }
        return;
    }
    if old_ip == ip || !same(service, old, "clusterIPs") {
        return;
    }
    if ip.is_empty() && !old_ip.is_empty() {
        spec_mut(service).remove("clusterIPs");
    } else {
        spec_mut(service).insert("clusterIPs".into(), json!([ip]));
    }
}

/// What the server gave and the client left out stays as it was.
pub(super) fn patch_allocated_values(service: &mut Value, old: &Value) {
    let (new, before) = (Spec(service), Spec(old));
    let keeps_ips = new.needs_cluster_ip() && before.needs_cluster_ip();
    let keeps_ports = new.needs_node_port() && before.needs_node_port();
    let keeps_health = new.needs_health_check() && before.needs_health_check();
    if keeps_ips {
        if Spec(service).text("clusterIP").is_empty() && !before.text("clusterIP").is_empty() {
            spec_mut(service).insert("clusterIP".into(), before.text("clusterIP").into());
        }
        if Spec(service).texts("clusterIPs").is_empty()
            && Spec(service).text("clusterIP") == before.text("clusterIP")
            && let Some(ips) = before.field("clusterIPs")
        {
            spec_mut(service).insert("clusterIPs".into(), ips.clone());
        }
    }
    if keeps_ports {
        let old_ports = before.node_ports();
        let used: Vec<i64> = Spec(service).node_ports().into_iter().filter(|p| old_ports.contains(p)).collect();
        let name = |p: &Value| p.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let by_name: Vec<(String, i64)> = before.ports().iter().map(|p| (name(p), node_port(p))).collect();
        for port in spec_mut(service).get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if node_port(port) != 0 {
                continue;
            }
            let own = name(port);
            if let Some((_, number)) = by_name.iter().find(|(n, number)| *n == own && *number != 0)
                && !used.contains(number)
            {
                port["nodePort"] = (*number).into();
            }
        }
    }
    if keeps_health && Spec(service).number("healthCheckNodePort") == 0 && before.number("healthCheckNodePort") != 0 {
        spec_mut(service).insert("healthCheckNodePort".into(), before.number("healthCheckNodePort").into());
    }
}

/// A type that has no use for a field loses it, unless the client changed the field as well.
pub(super) fn drop_type_dependent_fields(service: &mut Value, old: &Value) {
    let before = Spec(old);
    let lost = |needs: fn(&Spec<'_>) -> bool, service: &Value| needs(&before) && !needs(&Spec(service));
    let inside: fn(&Spec<'_>) -> bool = |s| s.kind() != "ExternalName";
    if lost(inside, service) {
        if same(service, old, "clusterIPs") && same(service, old, "clusterIP") {
            spec_mut(service).remove("clusterIP");
            spec_mut(service).remove("clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if same(service, old, field) {
                spec_mut(service).remove(field);
            }
        }
    }
    if lost(|s| s.has_node_ports(), service) && before.node_ports() == Spec(service).node_ports() {
        for port in spec_mut(service).get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        }
    }
    if lost(|s| s.needs_health_check(), service) && same(service, old, "healthCheckNodePort") {
        spec_mut(service).remove("healthCheckNodePort");
    }
    let balanced: fn(&Spec<'_>) -> bool = |s| s.kind() == "LoadBalancer";
    if lost(balanced, service) {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(service, old, field) {
                spec_mut(service).remove(field);
            }
        }
    }
    if lost(|s| s.is_external(), service) && same(service, old, "externalTrafficPolicy") {
        spec_mut(service).remove("externalTrafficPolicy");
    }
    if lost(inside, service) && same(service, old, "internalTrafficPolicy") {
        spec_mut(service).remove("internalTrafficPolicy");
    }
}

/// Fills in `ipFamilyPolicy` and `ipFamilies` by what the service asks for and the cluster has.
pub(super) fn init(service: &mut Value, old: Option<&Value>, network: &ServiceNetwork) -> Result<(), Status> {
    if Spec(service).kind() == "ExternalName" {
        return Ok(());
    }
    let single = "SingleStack";
    if let Some(old) = old
        && Spec(service).text("ipFamilyPolicy") == "PreferDualStack"
        && ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"].iter().all(|f| same(service, old, f))
    {
        return Ok(());
    }
    let headless_without_selector =
        Spec(service).text("clusterIP") == "None" && Spec(service).field("selector").is_none_or(is_empty);
    if Spec(service).field("ipFamilyPolicy").is_none() {
        let inherited = old.map(|o| Spec(o).text("ipFamilyPolicy")).filter(|p| !p.is_empty());
        let policy = inherited.unwrap_or(if headless_without_selector { "RequireDualStack" } else { single });
        spec_mut(service).insert("ipFamilyPolicy".into(), policy.into());
    }
    let mut errors = cluster_ip_errors(service, old);
    if !errors.is_empty() {
        return Err(invalid(service, &errors));
    }
    let policy_path = Path::new("spec").child("ipFamilyPolicy");
    let policy = Spec(service).text("ipFamilyPolicy").to_owned();
    if let Some(old) = old {
        if policy == single {
            for field in ["clusterIPs", "ipFamilies"] {
                if same(service, old, field)
                    && let Some(list) = spec_mut(service).get_mut(field).and_then(Value::as_array_mut)
                {
                    list.truncate(1);
                }
            }
        } else {
            for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
                let (now, before) = (Spec(service).texts(field), Spec(old).texts(field));
                if !now.is_empty() && now.len() < before.len() {
                    let why = format!("must be 'SingleStack' to release the secondary {what}");
                    errors.push(Error::invalid(&policy_path, &policy, why));
                }
            }
        }
    }
    if policy == single {
        for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if Spec(service).texts(field).len() == 2 {
                let why = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
                errors.push(Error::invalid(&policy_path, &policy, why));
            }
        }
    }
    let mut families: Vec<String> = Spec(service).texts("ipFamilies").into_iter().map(str::to_owned).collect();
    let ips: Vec<String> = Spec(service).texts("clusterIPs").into_iter().map(str::to_owned).collect();
    for (i, ip) in ips.iter().enumerate().take_while(|(_, ip)| *ip != "None").skip(families.len()) {
        let family = family_of(ip);
        if network.has_family(family) {
            families.push(family.to_owned());
        } else {
            let path = Path::new("spec").child("clusterIPs").index(i);
            errors.push(Error::invalid(&path, &json!(ips), format!("{family} is not configured on this cluster")));
        }
    }
    if !errors.is_empty() {
        return Err(invalid(service, &errors));
    }
    let other = |family: &str| if family == "IPv4" { "IPv6" } else { "IPv4" }.to_owned();
    if headless_without_selector {
        if families.is_empty() {
            families.push(network.default_family().to_owned());
        }
        if families.len() < 2 && policy != single {
            families.push(other(&families[0]));
        }
        spec_mut(service).insert("ipFamilies".into(), json!(families));
        return Ok(());
    }
    if policy == "RequireDualStack" && !network.is_dual_stack() {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(Error::invalid(&policy_path, &policy, why));
    }
    for (i, family) in families.iter().enumerate() {
        if !network.has_family(family) {
            let path = Path::new("spec").child("ipFamilies").index(i);
            errors.push(Error::invalid(&path, family, "not configured on this cluster"));
        }
    }
    if !errors.is_empty() {
        return Err(invalid(service, &errors));
    }
    if families.is_empty() {
        families.push(network.default_family().to_owned());
    }
    if policy != single && families.len() == 1 && network.is_dual_stack() {
        families.push(other(&families[0]));
    }
    spec_mut(service).insert("ipFamilies".into(), json!(families));
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_none_or(|m| m.is_empty())
}

fn invalid(service: &Value, errors: &ErrorList) -> Status {
    Status::invalid("", "Service", metadata::text(service, "name"), errors)
}
