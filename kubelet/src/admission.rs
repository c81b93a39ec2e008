//! Whether a pod bound to this node can run here (upstream: `lifecycle/predicate.go`, `scheduler/framework/plugins/*` as the kubelet uses
//! them). A pod that cannot fails for good: whoever bound it, or the static file, has to know.

use crate::eviction::Pressure;
use crate::kubelet::Kubelet;
use crate::machine;
use crate::pod::{self, PodExt, now};
use crate::resources;
use crate::sandbox;
use crate::status::OWNED_CONDITIONS;
use coxswain_api::taints;
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

mod preemption;

pub use preemption::REASON as PREEMPTING;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: String,
    pub message: String,
}

impl Rejection {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Rejection { reason: reason.into(), message: message.into() }
    }

    fn predicate(name: &str, message: &str) -> Self {
        Rejection::new(name, format!("Predicate {name} failed: {message}"))
    }
}

pub fn rejected_status(pod: &Pod, rejection: &Rejection) -> PodStatus {
    let mut status = pod.status().clone();
    status.phase = Some("Failed".into());
    status.reason = Some(rejection.reason.clone());
    status.message = Some(format!("Pod was rejected: {}", rejection.message));
    status.observed_generation = pod.metadata.generation;
    // It has none of the states that conditions of the kubelet tell of. Others keep theirs.
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| !OWNED_CONDITIONS.contains(&c.type_.as_str()));
    }
    status.qos_class = Some(resources::qos_class(pod).name().into());
    status.start_time = status.start_time.or_else(|| Some(now()));
    status
}

/// The node's verdict on a new pod, beside those it has accepted.
pub fn admit(kubelet: &Kubelet, pod: &Pod) -> Result<(), Rejection> {
    let others: Vec<_> = kubelet
        .handles()
        .into_iter()
        .filter(|h| !h.rejected.load(Ordering::Acquire) && !h.finished.load(Ordering::Acquire))
        .map(|h| h.allocated_pod())
        .collect();
    if pod.spec().os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(Rejection::new("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"));
    }
    if let Some(message) = sandbox::forbidden_sysctl(pod, &kubelet.config.settings.allowed_unsafe_sysctls) {
        return Err(Rejection::new("SysctlForbidden", message));
    }
    under_pressure(*kubelet.pressure.read(), pod)?;
    if lacks_strict_groups(kubelet, pod) {
        return Err(Rejection::new(
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        ));
    }
    let lacking = fits_resources(&kubelet.allocatable(), &others.iter().map(|p| p.as_ref()).collect::<Vec<_>>(), pod);
    if lacking.is_err() && !pod::is_critical(pod) {
        return lacking;
    }
    let Some(node) = kubelet.node_object() else { return lacking };
    let labels = node.metadata.labels.clone().unwrap_or_default();
    if !matches_node(pod, &labels, &kubelet.config.node_name) {
        return Err(Rejection::predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    if ports_taken(&others.iter().map(|p| p.as_ref()).collect::<Vec<_>>(), pod) {
        return Err(Rejection::predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    let untolerated = taints.into_iter().flatten().any(|taint| {
        taint.effect == "NoExecute"
            && !pod
                .spec()
                .tolerations
                .iter()
                .flatten()
                .any(|t| tolerates(t, &taint.key, taint.value.as_deref(), &taint.effect))
    });
    if untolerated && !pod::is_static(pod) {
        return Err(Rejection::predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate"));
    }
    if lacking.is_err() {
        preemption::make_room(kubelet, pod)?;
    }
    if kubelet.runtime.is_real() && confined_by_app_armor(pod) && !machine::has_app_armor() {
        return Err(Rejection::new("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"));
    }
    Ok(())
}

/// Whether the pod wants only the groups that its spec names, of a runtime that adds those of the image.
fn lacks_strict_groups(kubelet: &Kubelet, pod: &Pod) -> bool {
    let policy = pod.spec().security_context.as_ref().and_then(|s| s.supplemental_groups_policy.as_deref());
    if policy != Some("Strict") {
        return false;
    }
    let node = kubelet.node_object();
    let features = node.as_ref().and_then(|n| n.status.as_ref()).and_then(|s| s.features.as_ref());
    features.and_then(|f| f.supplemental_groups_policy) != Some(true)
}

fn confined_by_app_armor(pod: &Pod) -> bool {
    let of_pod = pod.spec().security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    pod::long_lived_containers(pod.spec()).any(|c| {
        let own = c.container.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
        own.or(of_pod).is_some_and(|profile| profile.type_ != "Unconfined")
    })
}

/// Whether a resized pod still fits: `Infeasible` if it never will, another reason (such as `OutOfcpu`) if others are in the way.
pub fn resize_verdict(kubelet: &Kubelet, pod: &Pod) -> Result<(), Rejection> {
    let allocatable = kubelet.allocatable();
    let amount = |name: &str, q: &Quantity| if name == "cpu" { resources::milli_value(q) } else { resources::value(q) };
    let requests = resources::pod_requests(pod);
    for name in ["cpu", "memory"] {
        let (Some(requested), Some(capacity)) = (requests.get(name), allocatable.get(name)) else { continue };
        let (requested, capacity) = (amount(name, requested), amount(name, capacity));
        if requested > capacity {
            return Err(Rejection::new(
                "Infeasible",
                format!("Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"),
            ));
        }
    }
    let others: Vec<_> = kubelet
        .handles()
        .into_iter()
        .filter(|h| h.uid != pod.uid() && !h.rejected.load(Ordering::Acquire) && !h.finished.load(Ordering::Acquire))
        .map(|h| h.allocated_pod())
        .collect();
    fits_resources(&allocatable, &others.iter().map(|p| p.as_ref()).collect::<Vec<_>>(), pod)
}

fn tolerates(toleration: &Toleration, key: &str, value: Option<&str>, effect: &str) -> bool {
    let text = Option::<String>::as_deref;
    taints::Toleration {
        key: text(&toleration.key).unwrap_or_default(),
        operator: text(&toleration.operator).unwrap_or_default(),
        value: text(&toleration.value).unwrap_or_default(),
        effect: text(&toleration.effect).unwrap_or_default(),
    }
    .tolerates(taints::Taint { key, value: value.unwrap_or_default(), effect })
}

/// A node that runs short takes only pods that it would not evict at once.
fn under_pressure(pressure: Pressure, pod: &Pod) -> Result<(), Rejection> {
    let tolerated = |t: &Toleration| tolerates(t, "node.kubernetes.io/memory-pressure", None, "NoSchedule");
    let tolerates = pod.spec().tolerations.iter().flatten().any(tolerated);
    let memory_only = pressure.memory && !pressure.disk && !pressure.pids;
    if pressure == Pressure::default() || pod::is_critical(pod) {
        return Ok(());
    }
    if memory_only && (resources::qos_class(pod) != resources::QosClass::BestEffort || tolerates) {
        return Ok(());
    }
    let names = [(pressure.memory, "MemoryPressure"), (pressure.disk, "DiskPressure"), (pressure.pids, "PIDPressure")];
    let names: Vec<&str> = names.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| name).collect();
    Err(Rejection::new("Evicted", format!("The node had condition: [{}]. ", names.join(" "))))
}

/// Amounts in messages are thousandths for CPUs and whole units otherwise, as upstream counts.
fn fits_resources(allocatable: &resources::ResourceList, others: &[&Pod], pod: &Pod) -> Result<(), Rejection> {
    let amount = |name: &str, quantity: &Quantity| {
        if name == "cpu" { resources::milli_value(quantity) } else { resources::value(quantity) }
    };
    let out_of = |name: &str, requested: i64, used: i64, capacity: i64| {
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        Rejection::new(format!("OutOf{name}"), message)
    };
    let capacity = |name: &str| allocatable.get(name).map_or(0, |q| amount(name, q));
    let count = others.len() as i64;
    if count + 1 > capacity("pods") {
        return Err(out_of("pods", 1, count, capacity("pods")));
    }
    let requests = resources::pod_requests(pod);
    let mut used: BTreeMap<String, i64> = BTreeMap::new();
    for other in others {
        for (name, quantity) in resources::pod_requests(other) {
            *used.entry(name.clone()).or_default() += amount(&name, &quantity);
        }
    }
    // The usual resources first, then extended ones by name.
    let mut names: Vec<&String> = requests.keys().collect();
    names.sort_by_key(|n| {
        (["cpu", "memory", "ephemeral-storage"].iter().position(|k| *k == n.as_str()).unwrap_or(9), n.as_str())
    });
    for name in names {
        let requested = amount(name, &requests[name]);
        let used = used.get(name).copied().unwrap_or(0);
        // Extended resources of device plugins that have not come back after a restart are not the pod's fault.
        if requested > 0 && (allocatable.contains_key(name) || !name.contains('/')) && requested + used > capacity(name)
        {
            return Err(out_of(name, requested, used, capacity(name)));
        }
    }
    Ok(())
}

fn matches_node(pod: &Pod, labels: &BTreeMap<String, String>, node_name: &str) -> bool {
    let spec = pod.spec();
    if spec.node_selector.iter().flatten().any(|(k, v)| labels.get(k) != Some(v)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    match affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
        None => true,
        Some(required) => required.node_selector_terms.iter().any(|term| matches_term(term, labels, node_name)),
    }
}

fn matches_term(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, node_name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // A term without anything matches nothing.
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|r| matches_requirement(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && matches_requirement(r, Some(node_name)))
}

fn matches_requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|x| x == v));
    let compared = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(|(a, b)| a > b),
        "Lt" => compared().is_some_and(|(a, b)| a < b),
        _ => false,
    }
}

fn ports_taken(others: &[&Pod], pod: &Pod) -> bool {
    fn ports(pod: &Pod) -> Vec<(String, String, i32)> {
        pod::long_lived_containers(pod.spec())
            .filter(|c| c.kind == pod::ContainerKind::Regular || c.is_sidecar())
            .flat_map(|c| c.container.ports.iter().flatten())
            .filter_map(|p| {
                let port = p.host_port.filter(|p| *p > 0)?;
                let ip = p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
                Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), ip, port))
            })
            .collect()
    }
    let wanted = ports(pod);
    others.iter().flat_map(|p| ports(p)).any(|(protocol, ip, port)| {
        wanted.iter().any(|(wp, wip, wport)| {
            *wp == protocol && *wport == port && (*wip == ip || ip == "0.0.0.0" || wip == "0.0.0.0")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn requests_must_fit_beside_those_of_others() {
        let quantity = |s: &str| k8s_openapi::apimachinery::pkg::api::resource::Quantity(s.into());
        let node = [("cpu", "1"), ("memory", "1Gi"), ("pods", "2")].map(|(k, v)| (k.to_string(), quantity(v))).into();
        let a = pod(serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "600m"}}}]}));
        assert!(fits_resources(&node, &[], &a).is_ok());
        assert_eq!(
            fits_resources(&node, &[&a], &a).unwrap_err(),
            Rejection::new(
                "OutOfcpu",
                "Node didn't have enough resource: cpu, requested: 600, used: 600, capacity: 1000"
            )
        );
        let small = pod(serde_json::json!({"containers": []}));
        assert_eq!(fits_resources(&node, &[&small, &small], &small).unwrap_err().reason, "OutOfpods");
    }

    #[test]
    fn host_ports_conflict_by_protocol_and_address() {
        let with = |ip: &str, protocol: &str| {
            pod(
                serde_json::json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": protocol}]}]}),
            )
        };
        assert!(ports_taken(&[&with("", "TCP")], &with("1.1.1.1", "TCP")));
        assert!(!ports_taken(&[&with("2.2.2.2", "TCP")], &with("1.1.1.1", "TCP")));
        assert!(!ports_taken(&[&with("", "UDP")], &with("", "TCP")));
    }
}
