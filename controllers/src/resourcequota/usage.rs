//! What single objects use, under the names that quotas have for it. Pure.

use std::collections::BTreeMap;

use coxswain_api::quantity::{Format, Quantity};
use k8s_openapi::api::core::v1::{Container, PersistentVolumeClaim, Pod, ResourceQuota, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use super::is_counted;
use crate::common::owners;

pub(super) type Usage = BTreeMap<String, Quantity>;

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

/// The kind that a name of a quota counts, as `NAME.GROUP`, if it counts objects of no special treatment.
pub(super) fn counted_kind(name: &str) -> Option<String> {
    match name {
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => Some(name.to_owned()),
        _ => name.strip_prefix("count/").filter(|kind| *kind != "pods").map(str::to_owned),
    }
}

pub(super) fn has_scopes(quota: &ResourceQuota) -> bool {
    let spec = quota.spec.as_ref();
    spec.is_some_and(|spec| {
        spec.scopes.as_ref().is_some_and(|scopes| !scopes.is_empty()) || spec.scope_selector.is_some()
    })
}

/// Whether a quota is about a pod.
pub(super) fn in_scope(quota: &ResourceQuota, pod: &Pod) -> bool {
    let Some(spec) = &quota.spec else { return true };
    let scope_is = |scope: &str| match scope {
        "Terminating" => pod.spec.as_ref().is_some_and(|spec| spec.active_deadline_seconds.is_some()),
        "NotTerminating" => pod.spec.as_ref().is_none_or(|spec| spec.active_deadline_seconds.is_none()),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => priority_class(pod).is_some(),
        _ => false,
    };
    spec.scopes.iter().flatten().all(|scope| scope_is(scope))
        && spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten()).all(|wanted| {
            let values = wanted.values.as_deref().unwrap_or_default();
            let listed = || priority_class(pod).is_some_and(|class| values.iter().any(|value| value == class));
            match (wanted.scope_name.as_str(), wanted.operator.as_str()) {
                ("PriorityClass", "In") => listed(),
                ("PriorityClass", "NotIn") => !listed(),
                ("PriorityClass", "DoesNotExist") => priority_class(pod).is_none(),
                (scope, _) => scope_is(scope),
            }
        })
}

fn priority_class(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.priority_class_name.as_deref().filter(|name| !name.is_empty())
}

fn is_best_effort(pod: &Pod) -> bool {
    if let Some(class) = pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        return class == "BestEffort";
    }
    let spec = pod.spec.as_ref();
    let containers =
        spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    containers.filter_map(|container| container.resources.as_ref()).all(|resources| {
        let none = |list: &Option<BTreeMap<String, Text>>| {
            list.iter().flatten().all(|(name, _)| name != "cpu" && name != "memory")
        };
        none(&resources.requests) && none(&resources.limits)
    })
}

fn parsed(list: Option<&BTreeMap<String, Text>>) -> Usage {
    list.into_iter().flatten().filter_map(|(name, text)| Some((name.clone(), Quantity::parse(&text.0).ok()?))).collect()
}

fn add(total: &mut Usage, more: &Usage) {
    for (name, quantity) in more {
        total.entry(name.clone()).and_modify(|present| present.add(quantity)).or_insert_with(|| quantity.clone());
    }
}

fn raise(total: &mut Usage, other: Usage) {
    for (name, quantity) in other {
        match total.get_mut(&name) {
            Some(present) if *present >= quantity => {}
            _ => {
                total.insert(name, quantity);
            }
        }
    }
}

/// What a pod needs at most at any time: its containers together, or one of its init containers with those that stay.
fn needs(pod: &Pod, of: impl Fn(&Container) -> Usage, pod_level: Usage) -> Usage {
    let Some(spec) = &pod.spec else { return Usage::new() };
    let mut total = Usage::new();
    for container in &spec.containers {
        add(&mut total, &of(container));
    }
    let mut staying = Usage::new();
    let mut starting = Usage::new();
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut total, &own);
            add(&mut staying, &own);
            raise(&mut starting, staying.clone());
        } else {
            let mut at_once = own;
            add(&mut at_once, &staying);
            raise(&mut starting, at_once);
        }
    }
    raise(&mut total, starting);
    total.extend(pod_level);
    add(&mut total, &parsed(spec.overhead.as_ref()));
    total
}

pub(super) fn of_pod(pod: &Pod) -> Usage {
    let mut usage = Usage::from([("count/pods".to_owned(), one())]);
    if !is_counted(pod) {
        return usage;
    }
    usage.insert("pods".to_owned(), one());
    let level = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = needs(
        pod,
        |container| parsed(container.resources.as_ref().and_then(|resources| resources.requests.as_ref())),
        parsed(level.and_then(|level| level.requests.as_ref())),
    );
    let limits = needs(
        pod,
        |container| parsed(container.resources.as_ref().and_then(|resources| resources.limits.as_ref())),
        parsed(level.and_then(|level| level.limits.as_ref())),
    );
    for (name, quantity) in requests {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            usage.insert(name.clone(), quantity.clone());
        }
        usage.insert(format!("requests.{name}"), quantity);
    }
    for (name, quantity) in limits {
        usage.insert(format!("limits.{name}"), quantity);
    }
    usage
}

pub(super) fn of_service(service: &Service) -> Usage {
    let spec = service.spec.clone().unwrap_or_default();
    let mut usage = Usage::from([("services".to_owned(), one())]);
    let ports = spec.ports.iter().flatten().count() as i64;
    let node_ports = spec.ports.iter().flatten().filter(|port| port.node_port.unwrap_or(0) != 0).count() as i64;
    let count = |number| Quantity::new(number, Format::DecimalSi);
    match spec.type_.as_deref() {
        Some("NodePort") => {
            usage.insert("services.nodeports".to_owned(), count(ports));
        }
        Some("LoadBalancer") => {
            let allocates = spec.allocate_load_balancer_node_ports != Some(false);
            usage.insert("services.nodeports".to_owned(), count(if allocates { ports } else { node_ports }));
            usage.insert("services.loadbalancers".to_owned(), one());
        }
        _ => {}
    }
    usage
}

pub(super) fn of_claim(claim: &PersistentVolumeClaim) -> Usage {
    let mut usage = Usage::from([("persistentvolumeclaims".to_owned(), one())]);
    let spec = claim.spec.as_ref();
    let class = spec
        .and_then(|spec| spec.storage_class_name.as_deref())
        .or_else(|| owners::annotation(&claim.metadata, "volume.beta.kubernetes.io/storage-class"))
        .filter(|class| !class.is_empty());
    let suffix = class.map(|class| format!("{class}.storageclass.storage.k8s.io/"));
    if let Some(prefix) = &suffix {
        usage.insert(format!("{prefix}persistentvolumeclaims"), one());
    }
    let asked = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
    if let Some(quantity) = asked.and_then(|text| Quantity::parse(&text.0).ok()) {
        if let Some(prefix) = &suffix {
            usage.insert(format!("{prefix}requests.storage"), quantity.clone());
        }
        usage.insert("requests.storage".to_owned(), quantity);
    }
    usage
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_needs_the_larger_of_start_and_run() {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {
                "containers": [
                    {"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}}},
                    {"name": "b", "resources": {"requests": {"cpu": "200m"}}}],
                "initContainers": [
                    {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                    {"name": "init", "resources": {"requests": {"cpu": "500m"}}}],
            },
        }))
        .unwrap();
        let usage = of_pod(&pod);
        assert_eq!(usage["requests.cpu"].to_string(), "550m");
        assert_eq!(usage["limits.memory"].to_string(), "1Gi");
        assert_eq!(usage["pods"].to_string(), "1");
    }
}
