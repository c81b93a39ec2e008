//! The spec as a whole (upstream: `ValidatePodSpec`).

use super::containers::{self, Pod};
use super::{Options, affinity, environment, os, resources, security, volumes};
use crate::registry::checks;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, json, names};
use std::collections::BTreeSet;

/// Containers of all kinds, in upstream's order of visiting.
pub(crate) fn all_containers<'a>(spec: &View<'a>) -> impl Iterator<Item = View<'a>> + use<'a> {
    let list = |name: &'static str| spec.child(name).items();
    list("initContainers").chain(list("containers")).chain(list("ephemeralContainers"))
}

/// `pod_name` is known where the spec is a pod's own.
pub fn validate(spec: &View<'_>, pod_name: Option<&str>, options: &Options, errors: &mut ErrorList) {
    let grace = spec.child("terminationGracePeriodSeconds");
    if !grace.exists() {
        errors.push(Error::required(grace.path(), ""));
    }
    let volumes = volumes::validate(&spec.child("volumes"), pod_name, options, errors);
    let declared = spec.child("resourceClaims");
    let claims: BTreeSet<&str> = declared.items().map(|c| c.child("name").str()).filter(|n| !n.is_empty()).collect();
    resource_claims(&declared, errors);
    let pod = Pod {
        volumes: &volumes,
        claims: &claims,
        grace_period: grace.opt_i64(),
        restart_policy: spec.child("restartPolicy").str(),
        os: spec.child("os").child("name").str(),
        host_users: spec.child("hostUsers").opt_bool() != Some(false),
        options,
    };
    let (regular, init) = (spec.child("containers"), spec.child("initContainers"));
    containers::containers(&regular, &pod, errors);
    containers::init_containers(&init, &regular, &pod, errors);
    containers::ephemeral_containers(&spec.child("ephemeralContainers"), &regular, &init, &pod, errors);
    resources::validate_pod_level(spec, &claims, options, errors);
    host_network_ports(spec, options, errors);
    checks::one_of(&spec.child("restartPolicy"), &["Always", "OnFailure", "Never"], errors);
    const DNS: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    checks::one_of(&spec.child("dnsPolicy"), DNS, errors);
    checks::labels(&spec.child("nodeSelector"), errors);
    security::pod(spec, options, errors);
    affinity::affinity(&spec.child("affinity"), options, errors);
    dns_config(spec, errors);
    for gate in spec.child("readinessGates").items() {
        checks::qualified_name(&gate.child("conditionType"), errors);
    }
    scheduling_gates(&spec.child("schedulingGates"), errors);
    affinity::topology_spread(&spec.child("topologySpreadConstraints"), options, errors);
    os::host_process(spec, errors);
    os::host_users(spec, options, errors);
    hostname_override(spec, errors);
    let optional = |name: &'static str| Some(spec.child(name)).filter(|v| !v.str().is_empty());
    for name in ["serviceAccountName", "nodeName"] {
        if let Some(value) = optional(name) {
            checks::dns_subdomain(&value, errors);
        }
    }
    let deadline = spec.child("activeDeadlineSeconds");
    if let Some(seconds) = deadline.opt_i64() {
        for why in names::in_range(seconds, 1, i32::MAX.into()) {
            errors.push(Error::invalid(deadline.path(), seconds, why));
        }
    }
    for name in ["hostname", "subdomain"] {
        if let Some(value) = optional(name) {
            checks::dns_label(&value, errors);
        }
    }
    affinity::tolerations(&spec.child("tolerations"), options.allow_comparing_tolerations, errors);
    host_aliases(&spec.child("hostAliases"), errors);
    if let Some(class) = optional("priorityClassName") {
        checks::dns_subdomain(&class, errors);
    }
    let runtime = spec.child("runtimeClassName");
    if runtime.exists() {
        checks::dns_subdomain(&runtime, errors);
    }
    let preemption = spec.child("preemptionPolicy");
    if preemption.exists() {
        checks::one_of(&preemption, &["PreemptLowerPriority", "Never"], errors);
    }
    resources::validate_overhead(&spec.child("overhead"), options, errors);
    os::validate(spec, errors);
    let group = spec.child("schedulingGroup");
    if group.exists() {
        let name = group.child("podGroupName");
        if name.exists() {
            checks::dns_subdomain(&name, errors);
        } else {
            errors.push(Error::invalid(name.path(), &name, "must specify one of: `podGroupName`"));
        }
    }
    environment::file_volumes(spec, errors);
}

/// What the leniencies of [`Options`] could let through in an object with metadata and a pod spec.
pub(super) fn validate_leniencies(owner: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let spec = owner.child("spec");
    security::pod_annotations(&owner.child("metadata").child("annotations"), &spec, options, errors);
    validate(&spec, None, options, errors);
}

fn hostname_override(spec: &View<'_>, errors: &mut ErrorList) {
    let name = spec.child("hostnameOverride");
    if !name.exists() {
        return;
    }
    for (field, set) in [
        ("setHostnameAsFQDN", spec.child("setHostnameAsFQDN").bool()),
        ("hostNetwork", spec.child("hostNetwork").bool()),
    ] {
        if set {
            errors.push(Error::forbidden(name.path(), format!("may not be specified when {field} is true")));
        }
    }
    if name.len() > 64 {
        errors.push(Error::too_long(name.path(), 64));
    }
    checks::dns_subdomain(&name, errors);
}

fn resource_claims(claims: &View<'_>, errors: &mut ErrorList) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for claim in claims.items() {
        let (name, direct, template) =
            (claim.child("name"), claim.child("resourceClaimName"), claim.child("resourceClaimTemplateName"));
        if name.str().is_empty() {
            errors.push(Error::required(name.path(), ""));
        } else if !seen.insert(name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        } else {
            checks::dns_label(&name, errors);
        }
        let shown = || -> Value {
            let text = |v: &View<'_>| v.value().cloned().unwrap_or_default();
            format!(
                "{{\"Name\":{},\"ResourceClaimName\":{},\"ResourceClaimTemplateName\":{}}}",
                json!(name.str()),
                text(&direct),
                text(&template)
            )
            .into()
        };
        if direct.exists() && template.exists() {
            let why = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
            errors.push(security::invalid_shown(claim.path(), &shown(), why));
        }
        if !direct.exists() && !template.exists() {
            let why = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
            errors.push(security::invalid_shown(claim.path(), &shown(), why));
        }
        for reference in [&direct, &template] {
            if reference.exists() {
                checks::dns_subdomain(reference, errors);
            }
        }
    }
}

/// On the host's network a port of the host is the port of the container.
fn host_network_ports(spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    if !spec.child("hostNetwork").bool() {
        return;
    }
    for port in spec.child("containers").items().flat_map(|c| c.child("ports").items()) {
        let host = port.child("hostPort");
        if (options.is_pod || host.i64() != 0) && host.i64() != port.child("containerPort").i64() {
            let why = "must match `containerPort` when `hostNetwork` is true";
            errors.push(Error::invalid(host.path(), host.i64(), why));
        }
    }
}

fn dns_config(spec: &View<'_>, errors: &mut ErrorList) {
    const NAMESERVERS_MAX: usize = 3;
    const SEARCHES_MAX: usize = 32;
    const SEARCH_CHARS_MAX: usize = 2048;
    let config = spec.child("dnsConfig");
    let (nameservers, searches) = (config.child("nameservers"), config.child("searches"));
    if spec.child("dnsPolicy").str() == "None" {
        if !config.exists() {
            errors.push(Error::required(config.path(), "must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        }
        if nameservers.is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(Error::required(nameservers.path(), why));
            return;
        }
    }
    if nameservers.len() > NAMESERVERS_MAX {
        let why = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.push(Error::invalid(nameservers.path(), &nameservers, why));
    }
    for server in nameservers.items() {
        errors.extend(names::ip::check_ip_legacy(server.path(), server.str(), true, &[]));
    }
    if searches.len() > SEARCHES_MAX {
        let why = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.push(Error::invalid(searches.path(), &searches, why));
    }
    let chars: usize = searches.items().map(|s| s.len() + 1).sum();
    if chars.saturating_sub(1) > SEARCH_CHARS_MAX {
        let why =
            format!("must not have more than {SEARCH_CHARS_MAX} characters (including spaces) in the search list");
        errors.push(Error::invalid(searches.path(), &searches, why));
    }
    for search in searches.items().filter(|s| s.str() != ".") {
        let domain = search.str().strip_suffix('.').unwrap_or(search.str());
        for why in names::dns1123_subdomain_with_underscore(domain) {
            errors.push(Error::invalid(search.path(), domain, why));
        }
    }
    for option in config.child("options").items() {
        if option.child("name").is_empty() {
            errors.push(Error::required(option.path(), "must not be empty"));
        }
    }
}

fn scheduling_gates(gates: &View<'_>, errors: &mut ErrorList) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for gate in gates.items() {
        let name = gate.child("name").str();
        for why in names::qualified_name(name) {
            errors.push(Error::invalid(gate.path(), name, why));
        }
        if !seen.insert(name) {
            errors.push(Error::duplicate(gate.path(), name));
        }
    }
}

fn host_aliases(aliases: &View<'_>, errors: &mut ErrorList) {
    for alias in aliases.items() {
        let ip = alias.child("ip");
        errors.extend(names::ip::check_ip_legacy(ip.path(), ip.str(), true, &[]));
        for name in alias.child("hostnames").items() {
            checks::dns_subdomain(&name, errors);
        }
    }
}
