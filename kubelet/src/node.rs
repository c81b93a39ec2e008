//! This node's object and lease (upstream: `kubelet_node_status.go`, `kubelet/nodestatus`, `component-helpers/apimachinery/lease`).

mod lease;

use crate::config::Config;
use crate::cri::v1;
use crate::kubelet::Kubelet;
use crate::machine::{self, Machine};
use crate::pod::now;
use crate::resources::{self, ResourceList, bytes_quantity};
use coxswain_client::errors;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What this kubelet calls itself; the API server calls itself the same.
pub const VERSION: &str = concat!("v1.36.2+coxswain-", env!("CARGO_PKG_VERSION"));
const REGISTER_RETRY: Duration = Duration::from_millis(500);
const IMAGE_NAMES_MAX: usize = 5;
/// What this kubelet can do that not every kubelet of a supported version can, by the names of upstream's feature gates; sorted.
const DECLARED_FEATURES: [&str; 4] = [
    "ExtendWebSocketsToKubelet",
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "RestartAllContainersOnContainerExits",
];
const CONTROLLER_ATTACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

pub fn addresses(config: &Config) -> Vec<String> {
    if config.node_ips.is_empty() {
        machine::primary_address().map(|ip| ip.to_string()).into_iter().collect()
    } else {
        config.node_ips.iter().map(ToString::to_string).collect()
    }
}

pub fn capacity(config: &Config, machine: &Machine) -> ResourceList {
    let mut list = ResourceList::new();
    list.insert("cpu".into(), Quantity(machine.cpus.to_string()));
    list.insert("memory".into(), Quantity(format!("{}Ki", machine.memory_bytes / 1024)));
    let storage = machine::file_system(existing(&config.root_dir)).map_or(0, |f| f.capacity_bytes);
    list.insert("ephemeral-storage".into(), Quantity(format!("{}Ki", storage / 1024)));
    let settings = &config.settings;
    let pods = if settings.pods_per_core > 0 {
        (machine.cpus * i64::from(settings.pods_per_core)).min(i64::from(settings.max_pods))
    } else {
        i64::from(settings.max_pods)
    };
    list.insert("pods".into(), Quantity(pods.to_string()));
    for (kilobytes, count) in &machine.hugepages {
        let bytes = kilobytes * 1024;
        let amount = if *count == 0 { Quantity("0".into()) } else { bytes_quantity(bytes * count) };
        list.insert(format!("hugepages-{}", bytes_quantity(bytes).0), amount);
    }
    list
}

fn existing(path: &std::path::Path) -> &std::path::Path {
    path.ancestors().find(|p| p.exists()).unwrap_or(path)
}

/// What is left for pods: less what is reserved and what eviction keeps free.
pub fn allocatable(config: &Config, machine: &Machine) -> ResourceList {
    let settings = &config.settings;
    let mut list = capacity(config, machine);
    let reserved = |name: &str| -> i128 {
        [&settings.system_reserved, &settings.kube_reserved]
            .into_iter()
            .filter_map(|r| r.get(name))
            .map(|q| resources::nanos(&Quantity(q.clone())))
            .sum()
    };
    for (name, quantity) in &mut list {
        let whole = resources::nanos(quantity);
        let threshold = match name.as_str() {
            "memory" => threshold(&settings.eviction_hard, "memory.available", whole),
            "ephemeral-storage" => threshold(&settings.eviction_hard, "nodefs.available", whole),
            _ => 0,
        };
        let taken = reserved(name) + threshold;
        if taken == 0 {
            continue;
        }
        let left = (whole - taken).max(0);
        *quantity = match name.as_str() {
            "cpu" => resources::cpu_quantity((left / 1_000_000) as i64),
            "memory" => Quantity(format!("{}Ki", left / 1_000_000_000 / 1024)),
            _ => Quantity((left / 1_000_000_000).to_string()),
        };
    }
    list
}

/// An eviction threshold as an amount: a quantity, or a share of the whole.
pub fn threshold(thresholds: &std::collections::BTreeMap<String, String>, signal: &str, whole: i128) -> i128 {
    match thresholds.get(signal).map(String::as_str) {
        None => 0,
        Some(text) => match text.strip_suffix('%') {
            Some(percent) => (whole as f64 * percent.parse::<f64>().unwrap_or(0.0) / 100.0) as i128,
            None => resources::nanos(&Quantity(text.to_string())),
        },
    }
}

/// Registers the node, then keeps its status and lease current until the kubelet ends.
pub async fn run(kubelet: Arc<Kubelet>, listening: Option<u16>) {
    let work = async {
        if kubelet.config.settings.register_node {
            register(&kubelet, listening).await;
        }
        tokio::join!(lease::renew(&kubelet), keep_status(&kubelet, listening));
    };
    tokio::select! {
        () = work => {}
        () = kubelet.shutdown.cancelled() => {}
    }
}

async fn register(kubelet: &Kubelet, listening: Option<u16>) {
    let api: Api<Node> = Api::all(kubelet.client.clone());
    let mut told = false;
    loop {
        let mut node = initial(kubelet);
        let (status, turned) = status(kubelet, &NodeStatus::default(), listening).await;
        node.status = Some(status);
        let registered = match api.create(&PostParams::default(), &node).await {
            Ok(_) => {
                tracing::info!(node = kubelet.config.node_name, "registered this node");
                Ok(())
            }
            Err(e) if errors::is_already_exists(&e) => reconcile(kubelet, &api, &node).await,
            Err(e) => Err(e),
        };
        let Err(error) = registered else {
            // Whether a node is ready is told when that changes, not at its start.
            record_conditions(kubelet, turned.into_iter().filter(|(reason, _)| !reason.ends_with("Ready")).collect());
            kubelet.events.node("Normal", "NodeAllocatableEnforced", "Updated Node Allocatable limit across pods");
            return;
        };
        if !told {
            tracing::warn!(node = kubelet.config.node_name, %error, "this node could not be registered yet");
            told = true;
        }
        tokio::time::sleep(REGISTER_RETRY).await;
    }
}

fn initial(kubelet: &Kubelet) -> Node {
    let config = &kubelet.config;
    let mut node = Node::default();
    node.metadata.name = Some(config.node_name.clone());
    let mut labels = config.node_labels.clone();
    for (name, value) in [
        ("beta.kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
    ] {
        labels.entry(name.into()).or_insert_with(|| value.into());
    }
    node.metadata.labels = Some(labels);
    if config.settings.enable_controller_attach_detach {
        node.metadata.annotations = Some([(CONTROLLER_ATTACH.to_string(), "true".to_string())].into());
    }
    let mut taints = config.settings.register_with_taints.clone();
    if config.cloud_provider_external {
        let taint = Taint {
            key: "node.cloudprovider.kubernetes.io/uninitialized".into(),
            value: Some("true".into()),
            effect: "NoSchedule".into(),
            ..Default::default()
        };
        if !taints.iter().any(|t| t.key == taint.key) {
            taints.push(taint);
        }
    }
    let provider = &config.settings.provider_id;
    node.spec = Some(NodeSpec {
        taints: (!taints.is_empty()).then_some(taints),
        provider_id: (!provider.is_empty()).then(|| provider.clone()),
        ..Default::default()
    });
    node
}

/// A node that was there before keeps its spec; labels that are the kubelet's are set again.
async fn reconcile(kubelet: &Kubelet, api: &Api<Node>, wanted: &Node) -> Result<(), kube::Error> {
    let present = api.get(&kubelet.config.node_name).await?;
    let has = present.metadata.labels.unwrap_or_default();
    let missing: std::collections::BTreeMap<&String, &String> =
        wanted.metadata.labels.iter().flatten().filter(|(k, v)| has.get(*k) != Some(*v)).collect();
    let annotated = present.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(CONTROLLER_ATTACH));
    if missing.is_empty() && annotated {
        return Ok(());
    }
    let patch = json!({"metadata": {"labels": missing, "annotations": wanted.metadata.annotations}});
    api.patch(&kubelet.config.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
}

async fn keep_status(kubelet: &Arc<Kubelet>, listening: Option<u16>) {
    let settings = &kubelet.config.settings;
    let api: Api<Node> = Api::all(kubelet.client.clone());
    let mut reported = Instant::now();
    let mut pod_cidr = String::new();
    let mut first = true;
    loop {
        if let Ok(node) = api.get(&kubelet.config.node_name).await {
            let cidr = node.spec.as_ref().and_then(|s| s.pod_cidr.clone()).unwrap_or_default();
            if !cidr.is_empty() && cidr != pod_cidr && kubelet.runtime.update_runtime_config(&cidr).await.is_ok() {
                pod_cidr = cidr;
            }
            let old = node.status.unwrap_or_default();
            let (status, events) = status(kubelet, &old, listening).await;
            let due = reported.elapsed() >= settings.node_status_report_frequency.0;
            if first || due || differs(&old, &status) {
                let patch = json!({"status": patch_of(&old, &status)});
                match api
                    .patch_status(&kubelet.config.node_name, &PatchParams::default(), &Patch::Strategic(patch))
                    .await
                {
                    Ok(_) => {
                        reported = Instant::now();
                        first = false;
                        record_conditions(kubelet, events);
                    }
                    Err(error) => tracing::debug!(%error, "the node's status could not be brought to the API server"),
                }
            }
        }
        let ready = kubelet.network_error.read().is_none();
        // Until the node is ready, somebody waits for it.
        let wait = if ready { settings.node_status_update_frequency.0 } else { REGISTER_RETRY * 2 };
        tokio::time::sleep(wait).await;
    }
}

fn record_conditions(kubelet: &Kubelet, turned: ConditionEvents) {
    let name = &kubelet.config.node_name;
    for (reason, kind) in turned {
        kubelet.events.node(kind, &reason, format!("Node {name} status is now: {reason}"));
    }
}

fn patch_of(old: &NodeStatus, new: &NodeStatus) -> serde_json::Value {
    let mut patch = serde_json::to_value(new).unwrap_or_default();
    if old.addresses.is_some() && old.addresses != new.addresses {
        // Merged by type, so an address that is no longer ours would stay.
        if let Some(list) = patch["addresses"].as_array_mut() {
            list.insert(0, json!({"$patch": "replace"}));
        }
    }
    // Others write these.
    for field in ["volumesAttached", "config", "phase"] {
        if let Some(map) = patch.as_object_mut() {
            map.remove(field);
        }
    }
    patch
}

/// Whether anything but heartbeats changed.
fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let bare = |status: &NodeStatus| {
        let mut status = status.clone();
        status.volumes_attached = None;
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        let mut conditions = status.conditions.take().unwrap_or_default();
        conditions.retain(|c| matches!(c.type_.as_str(), "MemoryPressure" | "DiskPressure" | "PIDPressure" | "Ready"));
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        status.conditions = Some(conditions);
        status
    };
    bare(old) != bare(new)
}

type ConditionEvents = Vec<(String, &'static str)>;

/// The node's status now, and events about conditions that turned.
async fn status(kubelet: &Kubelet, old: &NodeStatus, listening: Option<u16>) -> (NodeStatus, ConditionEvents) {
    let config = &kubelet.config;
    let runtime = kubelet.runtime.status(false).await;
    let error = readiness_error(&runtime);
    *kubelet.network_error.write() = network_error(&runtime);
    let mut events = Vec::new();
    let mut conditions: Vec<NodeCondition> = Vec::new();
    let pressure = *kubelet.pressure.read();
    let pressures = [
        (
            "MemoryPressure",
            pressure.memory,
            [
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ],
            ["NodeHasSufficientMemory", "NodeHasInsufficientMemory"],
        ),
        (
            "DiskPressure",
            pressure.disk,
            [
                "KubeletHasNoDiskPressure",
                "kubelet has no disk pressure",
                "KubeletHasDiskPressure",
                "kubelet has disk pressure",
            ],
            ["NodeHasNoDiskPressure", "NodeHasDiskPressure"],
        ),
        (
            "PIDPressure",
            pressure.pids,
            [
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
            ],
            ["NodeHasSufficientPID", "NodeHasInsufficientPID"],
        ),
    ];
    for (kind, under_pressure, texts, names) in pressures {
        let at = if under_pressure { 2 } else { 0 };
        let (condition, turned) = condition(old, kind, under_pressure, texts[at], texts[at + 1]);
        conditions.push(condition);
        if turned {
            events.push((names[usize::from(under_pressure)].to_string(), "Normal"));
        }
    }
    let ready = error.is_none();
    let message = error.unwrap_or_else(|| "kubelet is posting ready status".into());
    let (condition, turned) =
        condition(old, "Ready", ready, if ready { "KubeletReady" } else { "KubeletNotReady" }, &message);
    conditions.push(condition);
    if turned {
        events.push((if ready { "NodeReady" } else { "NodeNotReady" }.to_string(), "Normal"));
    }
    let ips = kubelet.node_ips.read().clone();
    let mut addresses: Vec<NodeAddress> =
        ips.iter().map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.clone() }).collect();
    addresses.push(NodeAddress { type_: "Hostname".into(), address: config.node_name.clone() });
    let machine = &kubelet.machine;
    let (handlers, features) = runtime.as_ref().map(runtime_features).unwrap_or_default();
    let status = NodeStatus {
        // A cloud provider knows better which addresses the node has.
        addresses: if config.cloud_provider_external && old.addresses.is_some() {
            old.addresses.clone()
        } else {
            Some(addresses)
        },
        capacity: Some(capacity(config, machine)),
        allocatable: Some(kubelet.allocatable()),
        conditions: Some(conditions),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(listening.unwrap_or(config.settings.port)) }),
        }),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().into(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: format!(
                "{}://{}",
                kubelet.runtime_version.runtime_name,
                plain_version(&kubelet.runtime_version.runtime_version)
            ),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: VERSION.into(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            swap: (machine.swap_bytes > 0)
                .then_some(k8s_openapi::api::core::v1::NodeSwapStatus { capacity: Some(machine.swap_bytes) }),
        }),
        images: images(kubelet).await,
        runtime_handlers: handlers,
        features,
        declared_features: Some(DECLARED_FEATURES.map(String::from).to_vec()),
        volumes_in_use: None,
        volumes_attached: old.volumes_attached.clone(),
        ..Default::default()
    };
    (status, events)
}

/// A version as upstream shows it: what a distribution adds to the numbers is left out unless it is a semantic version.
fn plain_version(text: &str) -> &str {
    let text = text.trim_start_matches('v');
    let numbers = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, rest) = (text[..numbers].trim_end_matches('.'), &text[numbers..]);
    let semantic = number.split('.').count() == 3
        && rest.starts_with(['-', '+'])
        && rest.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'));
    if semantic { text } else { number }
}

fn condition(old: &NodeStatus, kind: &str, holds: bool, reason: &str, message: &str) -> (NodeCondition, bool) {
    let status = if holds { "True" } else { "False" };
    let before = old.conditions.iter().flatten().find(|c| c.type_ == kind);
    let same = before.filter(|c| c.status == status);
    let condition = NodeCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(now()),
        last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(now())),
    };
    (condition, same.is_none())
}

fn runtime_condition<'a>(answer: &'a v1::StatusResponse, kind: &str) -> Option<&'a v1::RuntimeCondition> {
    answer.status.iter().flat_map(|s| &s.conditions).find(|c| c.r#type == kind)
}

fn printed(condition: &v1::RuntimeCondition) -> String {
    format!("{}={} reason:{} message:{}", condition.r#type, condition.status, condition.reason, condition.message)
}

fn network_error(answer: &crate::cri::Result<v1::StatusResponse>) -> Option<String> {
    let answer = answer.as_ref().ok()?;
    match runtime_condition(answer, "NetworkReady") {
        Some(c) if c.status => None,
        Some(c) => Some(format!("container runtime network not ready: {}", printed(c))),
        None => Some("container runtime network not ready: NetworkReady=false reason: message:".into()),
    }
}

/// Why the node is not ready.
fn readiness_error(answer: &crate::cri::Result<v1::StatusResponse>) -> Option<String> {
    let mut errors = Vec::new();
    match answer {
        Err(e) => errors.push(format!("container runtime is down: {e}")),
        Ok(status) => {
            if let Some(c) = runtime_condition(status, "RuntimeReady").filter(|c| !c.status) {
                errors.push(format!("container runtime not ready: {}", printed(c)));
            }
            errors.extend(network_error(answer));
        }
    }
    match errors.len() {
        0 => None,
        1 => errors.pop(),
        _ => Some(format!("[{}]", errors.join(", "))),
    }
}

type Handlers = (Option<Vec<NodeRuntimeHandler>>, Option<NodeFeatures>);

fn runtime_features(answer: &v1::StatusResponse) -> Handlers {
    let handlers: Vec<NodeRuntimeHandler> = answer
        .runtime_handlers
        .iter()
        .map(|h| NodeRuntimeHandler {
            name: Some(h.name.clone()),
            features: h.features.as_ref().map(|f| NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
                user_namespaces: Some(f.user_namespaces),
            }),
        })
        .collect();
    let features = answer
        .features
        .as_ref()
        .map(|f| NodeFeatures { supplemental_groups_policy: Some(f.supplemental_groups_policy) });
    ((!handlers.is_empty()).then_some(handlers), features)
}

async fn images(kubelet: &Kubelet) -> Option<Vec<ContainerImage>> {
    let mut list = kubelet.runtime.list_images().await.ok()?;
    list.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let max = kubelet.config.settings.node_status_max_images;
    if max >= 0 {
        list.truncate(max as usize);
    }
    let images: Vec<ContainerImage> = list
        .into_iter()
        .map(|image| {
            let names: Vec<String> =
                image.repo_digests.into_iter().chain(image.repo_tags).take(IMAGE_NAMES_MAX).collect();
            ContainerImage { names: Some(names), size_bytes: Some(image.size as i64) }
        })
        .collect();
    (!images.is_empty()).then_some(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_shown_without_what_distributions_add() {
        for (told, shown) in
            [("1.6.20~ds1", "1.6.20"), ("v2.1.0", "2.1.0"), ("1.7.2-rc.1", "1.7.2-rc.1"), ("1.30", "1.30")]
        {
            assert_eq!(plain_version(told), shown);
        }
    }
}
