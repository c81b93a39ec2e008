//! What the kubelet writes on sandboxes and containers so that it, or a kubelet that takes over, finds its pods again after a restart
//! (upstream: `kuberuntime/labels.go`).

use crate::pod::PodExt;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::HashMap;
use std::time::Duration;

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

const HASH: &str = "io.kubernetes.container.hash";
const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
const PORTS: &str = "io.kubernetes.container.ports";
const POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
const POD_DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";

type Map = HashMap<String, String>;

pub fn pod_labels(pod: &Pod) -> Map {
    let mut labels: Map = pod.metadata.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.insert(POD_NAME.into(), pod.name().into());
    labels.insert(POD_NAMESPACE.into(), pod.namespace().into());
    labels.insert(POD_UID.into(), pod.uid().into());
    labels
}

pub fn pod_annotations(pod: &Pod) -> Map {
    pod.metadata.annotations.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
}

pub fn container_labels(pod: &Pod, container: &Container) -> Map {
    [
        (POD_NAME, pod.name()),
        (POD_NAMESPACE, pod.namespace()),
        (POD_UID, pod.uid()),
        (CONTAINER_NAME, container.name.as_str()),
    ]
    .map(|(k, v)| (k.to_string(), v.to_string()))
    .into()
}

pub fn container_annotations(pod: &Pod, container: &Container, restart_count: i32) -> Map {
    let mut map: Map = HashMap::new();
    map.insert(HASH.into(), format!("{:x}", container_hash(container)));
    map.insert(RESTART_COUNT.into(), restart_count.to_string());
    map.insert(MESSAGE_PATH.into(), container.termination_message_path.clone().unwrap_or_default());
    map.insert(MESSAGE_POLICY.into(), container.termination_message_policy.clone().unwrap_or_default());
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        map.insert(POD_DELETION_GRACE.into(), seconds.to_string());
    }
    if let Some(seconds) = pod.spec().termination_grace_period_seconds {
        map.insert(POD_GRACE.into(), seconds.to_string());
    }
    if let Some(handler) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())
        && let Ok(text) = serde_json::to_string(handler)
    {
        map.insert(PRE_STOP.into(), text);
    }
    if let Some(ports) = container.ports.as_ref().filter(|p| !p.is_empty())
        && let Ok(text) = serde_json::to_string(ports)
    {
        map.insert(PORTS.into(), text);
    }
    map
}

/// Changes of these fields restart a container; all others are immutable in a running pod (upstream: `HashContainer`).
pub fn container_hash(container: &Container) -> u32 {
    let image = container.image.as_deref().unwrap_or_default();
    let text = serde_json::json!({"name": container.name, "image": image}).to_string();
    fnv32a(text.as_bytes())
}

pub fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// What the annotations of a container say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerInfo {
    pub hash: Option<u32>,
    pub restart_count: i32,
    pub termination_message_path: String,
    pub fallback_to_logs: bool,
    pub grace_period: Option<Duration>,
    pub pre_stop: Option<k8s_openapi::api::core::v1::LifecycleHandler>,
}

pub fn container_info(annotations: &Map) -> ContainerInfo {
    let get = |key: &str| annotations.get(key).map(String::as_str).unwrap_or_default();
    let seconds = |key: &str| get(key).parse::<u64>().ok().map(Duration::from_secs);
    ContainerInfo {
        hash: u32::from_str_radix(get(HASH), 16).ok(),
        restart_count: get(RESTART_COUNT).parse().unwrap_or(0),
        termination_message_path: get(MESSAGE_PATH).into(),
        fallback_to_logs: get(MESSAGE_POLICY) == "FallbackToLogsOnError",
        grace_period: seconds(POD_DELETION_GRACE).or_else(|| seconds(POD_GRACE)),
        pre_stop: serde_json::from_str(get(PRE_STOP)).ok(),
    }
}

/// `/var/log/pods/<namespace>_<name>_<uid>`, relative to the root of pod logs.
pub fn pod_log_dir_name(pod: &Pod) -> String {
    format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid())
}

/// The symbolic link by which log collectors find a container's file (upstream: `LogSymlink`).
pub fn log_link_name(pod: &Pod, container: &str, id: &str) -> String {
    format!("{}_{}_{container}-{id}.log", pod.name(), pod.namespace())
}

/// Whether a container must be started anew because its definition differs from what runs.
pub fn definition_changed(container: &Container, info: &ContainerInfo) -> bool {
    info.hash.is_some_and(|hash| hash != container_hash(container))
}
