//! How much of a quota an object uses (upstream: `pkg/quota/v1/evaluator/core` and the generic object counts).

use crate::admission::pod_resources::{Amounts, Side, amounts, is_best_effort, of_pod};
use crate::admission::{Attributes, Operation};
use coxswain_api::Value;
use coxswain_api::quantity::{Format, Quantity};
use std::collections::{BTreeMap, BTreeSet};

/// Resources that may also be counted under their plain name.
const PLAIN_NAMES: [&str; 6] =
    ["configmaps", "persistentvolumeclaims", "replicationcontrollers", "resourcequotas", "secrets", "services"];

const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";

/// Whether this kind of write can change usage.
pub(super) fn handles(attributes: &Attributes<'_>) -> bool {
    match (attributes.operation, attributes.subresource) {
        (Operation::Create, "") => true,
        (Operation::Update, "") => attributes.is("", "services") || attributes.is("", "persistentvolumeclaims"),
        (Operation::Update, "resize") => attributes.is_of("", "pods"),
        _ => false,
    }
}

/// `count/deployments.apps`
fn count_name(attributes: &Attributes<'_>) -> String {
    match attributes.group() {
        "" => format!("count/{}", attributes.plural()),
        group => format!("count/{}.{group}", attributes.plural()),
    }
}

/// Whether a quota's resource is one that this kind of object uses.
pub(super) fn counts(attributes: &Attributes<'_>, resource: &str) -> bool {
    if resource == count_name(attributes) {
        return true;
    }
    if !attributes.group().is_empty() {
        return false;
    }
    match attributes.plural() {
        "pods" => {
            let plain = resource.strip_prefix("requests.").unwrap_or(resource);
            resource == "pods"
                || matches!(plain, "cpu" | "memory" | "ephemeral-storage")
                || matches!(resource, "limits.cpu" | "limits.memory" | "limits.ephemeral-storage")
                || plain.starts_with("hugepages-")
                || (plain != resource && plain.contains('/') && !resource.contains(STORAGE_CLASS))
        }
        "services" => matches!(resource, "services" | "services.nodeports" | "services.loadbalancers"),
        "persistentvolumeclaims" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage") || resource.contains(STORAGE_CLASS)
        }
        plural => PLAIN_NAMES.contains(&plural) && resource == plural,
    }
}

fn whole(n: usize) -> Quantity {
    Quantity::new(n as i64, Format::DecimalSi)
}

pub(super) fn usage(attributes: &Attributes<'_>, object: &Value) -> Amounts {
    let mut used = Amounts::new();
    used.insert(count_name(attributes), whole(1));
    if !attributes.group().is_empty() {
        return used;
    }
    match attributes.plural() {
        "pods" => pod_usage(object, &mut used),
        "services" => service_usage(object, &mut used),
        "persistentvolumeclaims" => claim_usage(object, &mut used),
        plural if PLAIN_NAMES.contains(&plural) => {
            used.insert(plural.to_owned(), whole(1));
        }
        _ => {}
    }
    used
}

fn pod_usage(pod: &Value, used: &mut Amounts) {
    // What has come to its end uses nothing but its place in the store.
    if matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded")) {
        return;
    }
    used.insert("pods".into(), whole(1));
    for (name, amount) in of_pod(pod, Side::Requests, true) {
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                used.insert(format!("requests.{name}"), amount.clone());
                used.insert(name, amount);
            }
            _ if name.starts_with("hugepages-") => {
                used.insert(format!("requests.{name}"), amount.clone());
                used.insert(name, amount);
            }
            _ => {
                used.insert(format!("requests.{name}"), amount);
            }
        }
    }
    for (name, amount) in of_pod(pod, Side::Limits, true) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            used.insert(format!("limits.{name}"), amount);
        }
    }
}

fn service_usage(service: &Value, used: &mut Amounts) {
    used.insert("services".into(), whole(1));
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (mut node_ports, mut balancers) = (0, 0);
    match service["spec"]["type"].as_str() {
        Some("NodePort") => node_ports = ports.len(),
        Some("LoadBalancer") => {
            balancers = 1;
            node_ports = match service["spec"]["allocateLoadBalancerNodePorts"].as_bool() {
                Some(false) => ports.iter().filter(|p| p["nodePort"].as_i64().unwrap_or_default() != 0).count(),
                _ => ports.len(),
            };
        }
        _ => {}
    }
    used.insert("services.nodeports".into(), whole(node_ports));
    used.insert("services.loadbalancers".into(), whole(balancers));
}

fn claim_usage(claim: &Value, used: &mut Amounts) {
    used.insert("persistentvolumeclaims".into(), whole(1));
    let beta = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str();
    let class = beta.or(claim["spec"]["storageClassName"].as_str()).unwrap_or_default();
    if !class.is_empty() {
        used.insert(format!("{class}{STORAGE_CLASS}persistentvolumeclaims"), whole(1));
    }
    let asked = amounts(&claim["spec"]["resources"]["requests"]).remove("storage");
    let granted = amounts(&claim["status"]["allocatedResources"]).remove("storage");
    if let Some(size) = asked.max(granted) {
        if !class.is_empty() {
            used.insert(format!("{class}{STORAGE_CLASS}requests.storage"), size.clone());
        }
        used.insert("requests.storage".into(), size);
    }
}

/// Containers of a pod must state what the quota counts (upstream: `Constraints`).
pub(super) fn unmet(attributes: &Attributes<'_>, restricted: &[&str], object: &Value) -> Option<String> {
    if !attributes.is_of("", "pods") {
        return None;
    }
    let needed: BTreeSet<&str> = restricted
        .iter()
        .copied()
        .filter(|r| {
            matches!(*r, "cpu" | "memory" | "requests.cpu" | "requests.memory" | "limits.cpu" | "limits.memory")
        })
        .collect();
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let whole_pod = &object["spec"]["resources"];
    for kind in ["containers", "initContainers"] {
        for container in object["spec"][kind].as_array().into_iter().flatten() {
            for resource in &needed {
                let (side, name) = match resource.split_once('.') {
                    Some((side, name)) => (side, name),
                    None => ("requests", *resource),
                };
                if container["resources"][side][name].is_null() && whole_pod[side][name].is_null() {
                    missing.entry(resource).or_default().insert(container["name"].as_str().unwrap_or_default());
                }
            }
        }
    }
    if missing.is_empty() {
        return None;
    }
    let parts: Vec<String> = missing
        .iter()
        .map(|(resource, containers)| {
            let names: Vec<&str> = containers.iter().copied().collect();
            format!("{resource} for: {}", names.join(","))
        })
        .collect();
    Some(format!("must specify {}", parts.join("; ")))
}

/// Whether an object is one of those that the quota is for.
pub(super) fn in_scope(attributes: &Attributes<'_>, quota: &Value, object: &Value) -> bool {
    let scopes = quota["spec"]["scopes"].as_array().into_iter().flatten();
    let plain = scopes.map(|scope| (scope.as_str().unwrap_or_default(), "Exists", &Value::Null));
    let expressions = quota["spec"]["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    let selected = expressions.map(|e| {
        (e["scopeName"].as_str().unwrap_or_default(), e["operator"].as_str().unwrap_or("Exists"), &e["values"])
    });
    let mut all = plain.chain(selected);
    match attributes.plural() {
        "pods" => all.all(|(scope, operator, values)| pod_in_scope(object, scope, operator, values)),
        "persistentvolumeclaims" => all.all(|(scope, operator, values)| {
            let class = object["spec"]["volumeAttributesClassName"].as_str().unwrap_or_default();
            scope == "VolumeAttributesClass" && named(class, operator, values)
        }),
        // Other kinds have no scopes: a quota with one is not for them.
        _ => all.next().is_none(),
    }
}

fn pod_in_scope(pod: &Value, scope: &str, operator: &str, values: &Value) -> bool {
    let spec = &pod["spec"];
    let terminating = || spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => terminating(),
        "NotTerminating" => !terminating(),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => named(spec["priorityClassName"].as_str().unwrap_or_default(), operator, values),
        "CrossNamespacePodAffinity" => reaches_other_namespaces(&spec["affinity"]),
        _ => false,
    }
}

fn named(name: &str, operator: &str, values: &Value) -> bool {
    let listed = || values.as_array().is_some_and(|l| l.iter().any(|v| v == name));
    match operator {
        "Exists" => !name.is_empty(),
        "DoesNotExist" => name.is_empty(),
        "In" => !name.is_empty() && listed(),
        "NotIn" => !listed(),
        _ => false,
    }
}

fn reaches_other_namespaces(affinity: &Value) -> bool {
    let term_reaches = |term: &Value| {
        term["namespaceSelector"].is_object() || term["namespaces"].as_array().is_some_and(|n| !n.is_empty())
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let list = |key: &str| affinity[kind][key].as_array().into_iter().flatten();
        list("requiredDuringSchedulingIgnoredDuringExecution").any(term_reaches)
            || list("preferredDuringSchedulingIgnoredDuringExecution").any(|t| term_reaches(&t["podAffinityTerm"]))
    })
}
