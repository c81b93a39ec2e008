//! What may be wrong with a service (upstream: `ValidateService` and its like in `pkg/apis/core/validation`).

use super::Spec;
use super::families::family_of;
use crate::registry::core::address::non_special_ip;
use crate::registry::metadata::validate_labels;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::names::{self, ip};
use coxswain_api::{Value, json};

const RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

fn spec_path(field: &'static str) -> Path {
    Path::new("spec").child(field)
}

pub(super) fn validate(service: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let s = Spec(service);
    let root = View::root(service);
    let spec = root.child("spec");
    let annotations = root.child("metadata").child("annotations");
    let hints = annotations.child_named("service.kubernetes.io/topology-aware-hints");
    let mode = annotations.child_named("service.kubernetes.io/topology-mode");
    if hints.exists() && mode.exists() && hints.str() != mode.str() {
        let path = annotations.path().key("service.kubernetes.io/topology-mode");
        let why = "must match annotations[service.kubernetes.io/topology-aware-hints] when both are specified";
        errors.push(Error::invalid(&path, mode.str(), why));
    }
    let headless = s.is_headless();
    let ports = spec.child("ports");
    if ports.is_empty() && !headless && s.kind() != "ExternalName" {
        errors.push(Error::required(ports.path(), ""));
    }
    match s.kind() {
        kind @ ("LoadBalancer" | "NodePort") if headless => {
            let path = spec_path("clusterIPs").index(0);
            errors.push(Error::invalid(&path, "None", format!("may not be set to 'None' for {kind} services")));
        }
        "ExternalName" => validate_external_name(&s, &spec, &mut errors),
        _ => {}
    }
    let mut port_names: Vec<&str> = Vec::new();
    for port in ports.items() {
        validate_port(&port, ports.len() > 1, &mut port_names, &mut errors);
    }
    validate_labels(&spec.child("selector"), &mut errors);
    validate_affinity(&spec, &mut errors);
    errors.extend(cluster_ip_errors(service, old));
    let old_ips = old.map(|o| Spec(o).texts("externalIPs")).unwrap_or_default();
    for address in spec.child("externalIPs").items() {
        let wrong = ip::check_ip_legacy(address.path(), address.str(), true, &old_ips);
        if wrong.is_empty() {
            non_special_ip(&address, &mut errors);
        }
        errors.extend(wrong);
    }
    let kind = spec.child("type");
    if kind.is_empty() {
        errors.push(Error::required(kind.path(), ""));
    } else if !matches!(kind.str(), "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        let known = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
        errors.push(Error::not_supported(kind.path(), kind.str(), &known));
    }
    validate_port_numbers(&s, &ports, &mut errors);
    let old_ranges = old.map(|o| Spec(o).texts("loadBalancerSourceRanges")).unwrap_or_default();
    validate_source_ranges(&s, &spec, &annotations, &old_ranges, &mut errors);
    let allocate = spec.child("allocateLoadBalancerNodePorts");
    match (allocate.exists(), s.kind() == "LoadBalancer") {
        (true, false) => {
            errors.push(Error::forbidden(allocate.path(), "may only be used when `type` is 'LoadBalancer'"));
        }
        (false, true) => errors.push(Error::required(&Path::new("allocateLoadBalancerNodePorts"), "")),
        _ => {}
    }
    validate_class(&s, &spec, None, &mut errors);
    validate_traffic(&s, &spec, &mut errors);
    errors
}

pub(super) fn validate_update(service: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (new, before) = (Spec(service), Spec(old));
    if new.kind() != "ExternalName" && before.kind() != "ExternalName" {
        let (headless, was) = (new.is_headless(), before.is_headless());
        if !(headless && was) {
            check_list_change(&new, &before, "clusterIPs", "clusterIP", &mut errors);
        }
        if !headless && !was {
            check_list_change(&new, &before, "ipFamilies", "ipFamily", &mut errors);
        }
    }
    validate_class(&new, &View::root(service).child("spec"), Some(&before), &mut errors);
    if new.needs_health_check()
        && before.needs_health_check()
        && new.number("healthCheckNodePort") != before.number("healthCheckNodePort")
    {
        errors.push(Error::forbidden(&spec_path("healthCheckNodePort"), "field is immutable"));
    }
    errors.extend(validate(service, Some(old)));
    errors
}

/// A second address or family may come and go; the first one stays.
fn check_list_change(new: &Spec<'_>, old: &Spec<'_>, field: &'static str, one: &str, errors: &mut ErrorList) {
    let (now, before) = (new.texts(field), old.texts(field));
    let path = spec_path(field);
    let mut fixed = |i: usize, why: String| errors.push(Error::invalid(&path.index(i), &json!(now), why));
    let once = "may not change once set";
    if now.len() == before.len() {
        for (i, (a, b)) in now.iter().zip(&before).enumerate() {
            if a != b {
                fixed(if field == "ipFamilies" { 0 } else { i }, once.into());
            }
        }
        return;
    }
    if now.len() < before.len() && new.texts("clusterIPs").is_empty() {
        fixed(0, format!("primary {one} can not be unset"));
    }
    if !now.is_empty() && !before.is_empty() && now[0] != before[0] {
        fixed(0, once.into());
    }
    if now.len() < before.len() && now.len() == 1 && new.text("ipFamilyPolicy") != "SingleStack" {
        let why = format!("must be set to 'SingleStack' when releasing the secondary {one}");
        let policy = new.field("ipFamilyPolicy").cloned().unwrap_or(Value::Null);
        errors.push(Error::invalid(&spec_path("ipFamilyPolicy"), &policy, why));
    }
}

fn validate_external_name(s: &Spec<'_>, spec: &View<'_>, errors: &mut ErrorList) {
    let why = "may not be set for ExternalName services";
    for field in ["clusterIPs", "ipFamilies"] {
        if !s.texts(field).is_empty() {
            errors.push(Error::forbidden(spec.child(field).path(), why));
        }
    }
    if s.field("ipFamilyPolicy").is_some() {
        errors.push(Error::forbidden(spec.child("ipFamilyPolicy").path(), why));
    }
    let name = spec.child("externalName");
    // A trailing dot marks a fully qualified name.
    let cname = name.str().strip_suffix('.').unwrap_or(name.str());
    if cname.is_empty() {
        errors.push(Error::required(name.path(), ""));
    }
    for wrong in if cname.is_empty() { Vec::new() } else { names::dns1123_subdomain(cname, false) } {
        errors.push(Error::invalid(name.path(), cname, wrong));
    }
}

fn validate_port<'a>(port: &View<'a>, named: bool, seen: &mut Vec<&'a str>, errors: &mut ErrorList) {
    let name = port.child("name");
    if named && name.is_empty() {
        errors.push(Error::required(name.path(), ""));
    } else if !name.is_empty() {
        for why in names::dns1123_label(name.str(), false) {
            errors.push(Error::invalid(name.path(), name.str(), why));
        }
        if seen.contains(&name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        }
        seen.push(name.str());
    }
    let number = port.child("port");
    for why in names::port_number(number.i64()) {
        errors.push(Error::invalid(number.path(), number.i64(), why));
    }
    let protocol = port.child("protocol");
    if protocol.is_empty() {
        errors.push(Error::required(protocol.path(), ""));
    } else if !matches!(protocol.str(), "TCP" | "UDP" | "SCTP") {
        errors.push(Error::not_supported(protocol.path(), protocol.str(), &["SCTP", "TCP", "UDP"]));
    }
    let target = port.child("targetPort");
    match target.opt_str() {
        Some(text) => {
            for why in names::port_name(text) {
                errors.push(Error::invalid(target.path(), text, why));
            }
        }
        None => {
            for why in names::port_number(target.i64()) {
                errors.push(Error::invalid(target.path(), target.i64(), why));
            }
        }
    }
    let app = port.child("appProtocol");
    if let Some(text) = app.opt_str() {
        for why in names::qualified_name(text) {
            errors.push(Error::invalid(app.path(), text, why));
        }
    }
}

fn validate_affinity(spec: &View<'_>, errors: &mut ErrorList) {
    let affinity = spec.child("sessionAffinity");
    let config = spec.child("sessionAffinityConfig");
    match affinity.str() {
        "" => errors.push(Error::required(affinity.path(), "")),
        "ClientIP" => {
            let client = config.child("clientIP");
            let timeout = client.child("timeoutSeconds");
            if !config.exists() {
                errors.push(Error::required(config.path(), "when session affinity type is ClientIP"));
            } else if !client.exists() {
                errors.push(Error::required(client.path(), "when session affinity type is ClientIP"));
            } else if !timeout.exists() {
                errors.push(Error::required(timeout.path(), "when session affinity type is ClientIP"));
            } else if timeout.i64() <= 0 || timeout.i64() > 86400 {
                let why = "must be greater than 0 and less than 86400";
                errors.push(Error::invalid(timeout.path(), timeout.i64(), why));
            }
        }
        "None" if config.exists() => {
            errors.push(Error::forbidden(config.path(), "must not be set when session affinity is None"));
        }
        "None" => {}
        other => errors.push(Error::not_supported(affinity.path(), other, &["ClientIP", "None"])),
    }
}

/// `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy` fit together.
pub(super) fn cluster_ip_errors(service: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let s = Spec(service);
    if s.kind() == "ExternalName" {
        return errors;
    }
    let path = spec_path("clusterIPs");
    let (ip, ips) = (s.text("clusterIP"), s.texts("clusterIPs"));
    let shown = json!(ips);
    let mut wrong = |why: &str| errors.push(Error::invalid(&path, &shown, why));
    match (ip.is_empty(), ips.first()) {
        (false, None) => errors.push(Error::required(&path, "")),
        (false, Some(first)) if *first != ip => wrong("first value must match `clusterIP`"),
        (true, Some(_)) => wrong("must be empty when `clusterIP` is not specified"),
        _ => {}
    }
    let families = s.texts("ipFamilies");
    for (i, family) in families.iter().enumerate() {
        let path = spec_path("ipFamilies").index(i);
        if !matches!(*family, "IPv4" | "IPv6") {
            errors.push(Error::not_supported(&path, *family, &["IPv4", "IPv6"]));
        }
        if families[..i].contains(family) {
            errors.push(Error::duplicate(&path, *family));
        }
    }
    if let Some(policy) = s.field("ipFamilyPolicy").and_then(Value::as_str)
        && !matches!(policy, "SingleStack" | "PreferDualStack" | "RequireDualStack")
    {
        let known = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        errors.push(Error::not_supported(&spec_path("ipFamilyPolicy"), policy, &known));
    }
    let old_ips = old.map(|o| Spec(o).texts("clusterIPs")).unwrap_or_default();
    let mut malformed = false;
    for (i, text) in ips.iter().enumerate() {
        if i == 0 && *text == "None" {
            if ips.len() > 1 {
                malformed = true;
                errors.push(Error::invalid(&path, &shown, "'None' must be the first and only value"));
            }
            continue;
        }
        let found = ip::check_ip_legacy(&path.index(i), text, true, &old_ips);
        malformed |= !found.is_empty();
        errors.extend(found);
    }
    if ips.len() > 2 {
        errors.push(Error::invalid(&path, &shown, "may only hold up to 2 values"));
    }
    if malformed {
        return errors;
    }
    if ips.len() > 1 {
        let kinds: Vec<&str> = ips.iter().map(|ip| family_of(ip)).collect();
        if !(kinds.contains(&"IPv4") && kinds.contains(&"IPv6")) {
            errors.push(Error::invalid(&path, &shown, "may specify no more than one IP for each IP family"));
        }
    }
    if !s.is_headless() {
        for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
            if family_of(ip) != *family && matches!(*family, "IPv4" | "IPv6") {
                let why = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
                errors.push(Error::invalid(&path.index(i), *ip, why));
            }
        }
    }
    errors
}

fn validate_port_numbers(s: &Spec<'_>, ports: &View<'_>, errors: &mut ErrorList) {
    if s.kind() == "ClusterIP" {
        for port in ports.items().filter(|p| p.child("nodePort").i64() != 0) {
            let path = port.child("nodePort");
            errors.push(Error::forbidden(path.path(), "may not be used when `type` is 'ClusterIP'"));
        }
    }
    let mut seen: Vec<(&str, i64)> = Vec::new();
    for port in ports.items() {
        let number = port.child("nodePort");
        if number.i64() == 0 {
            continue;
        }
        let key = (port.child("protocol").str(), number.i64());
        if seen.contains(&key) {
            errors.push(Error::duplicate(number.path(), number.i64()));
        }
        seen.push(key);
    }
    let mut seen: Vec<(&str, i64)> = Vec::new();
    for port in ports.items() {
        let key = (port.child("protocol").str(), port.child("port").i64());
        if seen.contains(&key) {
            // Upstream shows the key as the Go struct that it uses for comparing.
            let shown = format!(
                r#"{{"Name":"","Protocol":"{}","AppProtocol":null,"Port":{},"TargetPort":0,"NodePort":0}}"#,
                key.0, key.1
            );
            let mut error = Error::duplicate(port.path(), "");
            error.bad_value = Some(shown);
            errors.push(error);
        }
        seen.push(key);
    }
}

fn validate_source_ranges(
    s: &Spec<'_>,
    spec: &View<'_>,
    annotations: &View<'_>,
    old_ranges: &[&str],
    errors: &mut ErrorList,
) {
    let only = "may only be used when `type` is 'LoadBalancer'";
    let balanced = s.kind() == "LoadBalancer";
    let ranges = spec.child("loadBalancerSourceRanges");
    let annotation = annotations.child_named(RANGES_ANNOTATION);
    if !ranges.is_empty() {
        let path = spec_path("LoadBalancerSourceRanges");
        if !balanced {
            errors.push(Error::forbidden(&path, only));
        }
        let old_ranges: Vec<&str> = old_ranges.iter().map(|r| r.trim()).collect();
        for (i, range) in ranges.items().enumerate() {
            errors.extend(ip::check_cidr_legacy(&path.index(i), range.str().trim(), true, &old_ranges));
        }
    } else if annotation.exists() {
        let path = annotations.path().key(RANGES_ANNOTATION);
        if !balanced {
            errors.push(Error::forbidden(&path, only));
        }
        let text = annotation.str().trim();
        for range in text.split(',').filter(|_| !text.is_empty()) {
            errors.extend(ip::check_cidr_legacy(&path, range.trim(), true, &[]));
        }
    }
}

fn validate_class(s: &Spec<'_>, spec: &View<'_>, old: Option<&Spec<'_>>, errors: &mut ErrorList) {
    let class = spec.child("loadBalancerClass");
    let balanced = s.kind() == "LoadBalancer";
    if let Some(old) = old
        && balanced
        && old.kind() == "LoadBalancer"
        && old.field("loadBalancerClass") != s.field("loadBalancerClass")
    {
        errors.push(Error::invalid(class.path(), &class, "may not change once set"));
    }
    let Some(name) = class.opt_str() else { return };
    if balanced {
        for why in names::qualified_name(name) {
            errors.push(Error::invalid(class.path(), name, why));
        }
    } else {
        errors.push(Error::forbidden(class.path(), "may only be used when `type` is 'LoadBalancer'"));
    }
}

fn validate_traffic(s: &Spec<'_>, spec: &View<'_>, errors: &mut ErrorList) {
    let external = spec.child("externalTrafficPolicy");
    if !s.is_external() {
        if !external.is_empty() {
            let why = "may only be set for externally-accessible services";
            errors.push(Error::invalid(external.path(), external.str(), why));
        }
    } else if external.is_empty() {
        errors.push(Error::required(external.path(), ""));
    } else if !matches!(external.str(), "Cluster" | "Local") {
        errors.push(Error::not_supported(external.path(), external.str(), &["Cluster", "Local"]));
    }
    let health = spec.child("healthCheckNodePort");
    if !s.needs_health_check() {
        if health.i64() != 0 {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(Error::invalid(health.path(), health.i64(), why));
        }
    } else if health.i64() == 0 {
        errors.push(Error::required(health.path(), ""));
    } else {
        for why in names::port_number(health.i64()) {
            errors.push(Error::invalid(health.path(), health.i64(), why));
        }
    }
    let internal = spec.child("internalTrafficPolicy");
    match internal.opt_str() {
        None if s.needs_cluster_ip() => errors.push(Error::required(internal.path(), "")),
        None | Some("Cluster" | "Local") => {}
        Some(other) => errors.push(Error::not_supported(internal.path(), other, &["Cluster", "Local"])),
    }
    let distribution = spec.child("trafficDistribution");
    if let Some(text) = distribution.opt_str()
        && !matches!(text, "PreferClose" | "PreferSameZone" | "PreferSameNode")
    {
        let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        errors.push(Error::not_supported(distribution.path(), text, &known));
    }
}

/// The status: addresses that a load balancer reports (upstream: `ValidateLoadBalancerStatus`).
pub(super) fn validate_load_balancer(service: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let entries = |of| View::root(of).child("status").child("loadBalancer").child("ingress");
    let (ingress, before) = (entries(service), entries(old));
    let known: Vec<View<'_>> = before.items().map(|i| i.child("ip")).collect();
    let known: Vec<&str> = known.iter().map(View::str).collect();
    let kind = Spec(service).kind();
    if kind != "LoadBalancer" && !ingress.is_empty() {
        errors.push(Error::forbidden(ingress.path(), "may only be used when `spec.type` is 'LoadBalancer'"));
        return errors;
    }
    for address in ingress.items() {
        let ip = address.child("ip");
        if !ip.is_empty() {
            errors.extend(ip::check_ip_legacy(ip.path(), ip.str(), true, &known));
        }
        let mode = address.child("ipMode");
        if !mode.exists() {
            if !ip.is_empty() {
                errors.push(Error::required(mode.path(), "must be specified when `ip` is set"));
            }
        } else if ip.is_empty() {
            errors.push(Error::forbidden(mode.path(), "may not be specified when `ip` is not set"));
        } else if !matches!(mode.str(), "VIP" | "Proxy") {
            errors.push(Error::not_supported(mode.path(), mode.str(), &["Proxy", "VIP"]));
        }
        let host = address.child("hostname");
        if !host.is_empty() {
            for why in names::dns1123_subdomain(host.str(), false) {
                errors.push(Error::invalid(host.path(), host.str(), why));
            }
            if ip::parse_ip_sloppy(host.str()).is_some() {
                errors.push(Error::invalid(host.path(), host.str(), "must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}

/// Sentences for fields that are ignored or written in an old way.
pub(super) fn warnings(service: &Value) -> Vec<String> {
    let s = Spec(service);
    let mut list = Vec::new();
    let root = View::root(service);
    let hints = "service.kubernetes.io/topology-aware-hints";
    if root.child("metadata").child("annotations").child_named(hints).exists() {
        list.push(format!("annotation {hints} is deprecated, please use service.kubernetes.io/topology-mode instead"));
    }
    let spec = root.child("spec");
    let (cluster_ips, external_ips) = (spec.child("clusterIPs"), spec.child("externalIPs"));
    for address in cluster_ips.items().filter(|a| a.str() != "None") {
        list.extend(ip::warnings_for_ip(address.path(), address.str()));
    }
    let headless = s.is_headless();
    if headless {
        if !s.text("loadBalancerIP").is_empty() {
            list.push("spec.loadBalancerIP is ignored for headless services".into());
        }
        if !external_ips.is_empty() {
            list.push("spec.externalIPs is ignored for headless services".into());
        }
        if s.text("sessionAffinity") != "None" {
            list.push("spec.SessionAffinity is ignored for headless services".into());
        }
    }
    for address in external_ips.items() {
        list.extend(ip::warnings_for_ip(address.path(), address.str()));
    }
    if !external_ips.is_empty() && !headless && s.kind() != "ExternalName" {
        list.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    let balancer_ip = spec.child("loadBalancerIP");
    if !balancer_ip.is_empty() {
        list.extend(ip::warnings_for_ip(balancer_ip.path(), balancer_ip.str()));
    }
    for range in spec.child("loadBalancerSourceRanges").items() {
        list.extend(ip::warnings_for_cidr(range.path(), range.str()));
    }
    if s.kind() == "ExternalName" && !s.texts("externalIPs").is_empty() {
        list.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if s.kind() != "ExternalName" && !s.text("externalName").is_empty() {
        list.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if s.text("trafficDistribution") == "PreferClose" {
        list.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
    }
    list
}
