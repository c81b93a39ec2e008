//! Keeps the node alive when it runs short (upstream: `kubelet/eviction`): pods that use more local storage than they may are evicted, and
//! when memory, disk or process ids fall below a threshold, the pod that matters least.

use crate::config::GoDuration;
use crate::garbage;
use crate::kubelet::{Kubelet, PodHandle};
use crate::machine;
use crate::node::threshold;
use crate::pod::{self, PodExt};
use crate::resources::{self, bytes_quantity};
use crate::sandbox;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(10);
/// Walking through all files of a large volume must not take all the time there is.
const FILES_MAX: usize = 200_000;

/// Which conditions the node is under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

/// What a threshold is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Memory,
    Disk,
    Inodes,
    Pids,
}

impl Resource {
    fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Disk => "ephemeral-storage",
            Resource::Inodes => "inodes",
            Resource::Pids => "pids",
        }
    }
}

struct Observation {
    signal: &'static str,
    resource: Resource,
    available: u64,
    capacity: u64,
}

/// A threshold that is crossed, with the quantity it stands for.
struct Crossed {
    resource: Resource,
    signal: &'static str,
    limit: u64,
    available: u64,
    /// From a soft threshold: pods get the time the configuration allows.
    soft: bool,
}

pub async fn run(kubelet: Arc<Kubelet>) {
    let mut soft_since: HashMap<&'static str, Instant> = HashMap::new();
    let mut last_seen: [Option<Instant>; 3] = [None; 3];
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = kubelet.shutdown.cancelled() => return,
        }
        if kubelet.config.settings.local_storage_capacity_isolation {
            evict_by_storage_limits(&kubelet).await;
        }
        let observations = observe(&kubelet).await;
        let crossed = crossed(&kubelet, &observations, &mut soft_since);
        // A condition stays for a while after the shortage, so that pods do not go back and forth.
        let transition = kubelet.config.settings.eviction_pressure_transition_period.0;
        let of = |wanted: &[Resource]| crossed.iter().any(|c| wanted.contains(&c.resource));
        let now = [of(&[Resource::Memory]), of(&[Resource::Disk, Resource::Inodes]), of(&[Resource::Pids])];
        for (seen, holds) in last_seen.iter_mut().zip(now) {
            if holds {
                *seen = Some(Instant::now());
            }
        }
        let recent = |i: usize| last_seen[i].is_some_and(|at| at.elapsed() < transition);
        *kubelet.pressure.write() = Pressure { memory: recent(0), disk: recent(1), pids: recent(2) };
        let Some(worst) = crossed.first() else { continue };
        kubelet.events.node(
            "Warning",
            "EvictionThresholdMet",
            format!("Attempting to reclaim {}", worst.resource.name()),
        );
        if matches!(worst.resource, Resource::Disk | Resource::Inodes)
            && garbage::remove_unused_images(&kubelet).await > 0
        {
            continue;
        }
        evict_one(&kubelet, worst).await;
    }
}

async fn observe(kubelet: &Kubelet) -> Vec<Observation> {
    let mut list = Vec::new();
    let capacity = kubelet.machine.memory_bytes.max(0) as u64;
    list.push(Observation {
        signal: "memory.available",
        resource: Resource::Memory,
        available: machine::meminfo("MemAvailable").max(0) as u64,
        capacity,
    });
    let mut disk = |fs: Option<machine::FileSystem>, bytes: &'static str, inodes: &'static str| {
        let Some(fs) = fs else { return };
        list.push(Observation {
            signal: bytes,
            resource: Resource::Disk,
            available: fs.available_bytes,
            capacity: fs.capacity_bytes,
        });
        if fs.inodes > 0 {
            list.push(Observation {
                signal: inodes,
                resource: Resource::Inodes,
                available: fs.inodes_free,
                capacity: fs.inodes,
            });
        }
    };
    disk(machine::file_system(&kubelet.config.root_dir), "nodefs.available", "nodefs.inodesFree");
    disk(garbage::image_file_system(kubelet).await, "imagefs.available", "imagefs.inodesFree");
    if kubelet.config.settings.eviction_hard.contains_key("pid.available") {
        let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u64>().ok());
        let max = number("/proc/sys/kernel/pid_max").unwrap_or(u64::MAX);
        let is_process =
            |e: &std::fs::DirEntry| e.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit);
        let used = std::fs::read_dir("/proc").map_or(0, |d| d.flatten().filter(is_process).count() as u64);
        list.push(Observation {
            signal: "pid.available",
            resource: Resource::Pids,
            available: max - used.min(max),
            capacity: max,
        });
    }
    list
}

/// Thresholds below which the node is, memory first.
fn crossed(
    kubelet: &Kubelet,
    observations: &[Observation],
    soft_since: &mut HashMap<&'static str, Instant>,
) -> Vec<Crossed> {
    let settings = &kubelet.config.settings;
    let limit = |thresholds: &BTreeMap<String, String>, o: &Observation| {
        (threshold(thresholds, o.signal, i128::from(o.capacity) * 1_000_000_000) / 1_000_000_000) as u64
    };
    let mut list = Vec::new();
    for o in observations {
        let make = |limit: u64, soft: bool| Crossed {
            resource: o.resource,
            signal: o.signal,
            limit,
            available: o.available,
            soft,
        };
        let hard = limit(&settings.eviction_hard, o);
        if o.available < hard {
            list.push(make(hard, false));
            continue;
        }
        let soft = limit(&settings.eviction_soft, o);
        if o.available >= soft {
            soft_since.remove(o.signal);
            continue;
        }
        let since = *soft_since.entry(o.signal).or_insert_with(Instant::now);
        let grace =
            settings.eviction_soft_grace_period.get(o.signal).and_then(|t| GoDuration::parse(t)).unwrap_or_default();
        if since.elapsed() >= grace.0 {
            list.push(make(soft, true));
        }
    }
    list
}

/// What a pod uses of a resource, and what it asked for.
fn usage_and_request(kubelet: &Kubelet, handle: &PodHandle, pod: &Pod, resource: Resource) -> (i64, i64) {
    match resource {
        Resource::Memory => {
            let used = kubelet.cgroups.pod_usage(pod).map_or(0, |u| u.working_set_bytes as i64);
            (used, resources::pod_requests(pod).get("memory").map_or(0, resources::value))
        }
        Resource::Disk | Resource::Inodes => {
            let used = storage_of(kubelet, handle).total() as i64;
            (used, resources::pod_requests(pod).get("ephemeral-storage").map_or(0, resources::value))
        }
        Resource::Pids => (0, 0),
    }
}

/// Those above their request go first, then those of lower priority, then those furthest above.
async fn evict_one(kubelet: &Kubelet, shortage: &Crossed) {
    let mut candidates: Vec<(Arc<PodHandle>, Arc<Pod>, i64, i64)> = kubelet
        .handles()
        .into_iter()
        .filter(|h| !h.finished.load(Ordering::Acquire) && h.runtime().is_running())
        .map(|h| (h.clone(), h.pod()))
        .filter(|(_, pod)| !pod::is_critical(pod) && pod.metadata.deletion_timestamp.is_none())
        .map(|(handle, pod)| {
            let (used, request) = usage_and_request(kubelet, &handle, &pod, shortage.resource);
            (handle, pod, used, request)
        })
        .collect();
    candidates
        .sort_by_key(|(_, pod, used, request)| (used <= request, pod.spec().priority.unwrap_or(0), -(used - request)));
    let Some((handle, pod, used, request)) = candidates.into_iter().next() else { return };
    let quantity = |n: u64| match shortage.resource {
        Resource::Memory | Resource::Disk => bytes_quantity(n as i64).0,
        _ => n.to_string(),
    };
    let mut message = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        shortage.resource.name(),
        quantity(shortage.limit),
        quantity(shortage.available / 1024 * 1024)
    );
    if used > request && shortage.resource != Resource::Pids {
        for container in &pod.spec().containers {
            let asked = resources::request_of(container, shortage.resource.name())
                .map_or("0".into(), |n| bytes_quantity((n / 1_000_000_000) as i64).0);
            message.push_str(&format!(
                "Container {} was using {}, request is {asked}, has larger consumption of {}. ",
                container.name,
                bytes_quantity(used / 1024 * 1024).0,
                shortage.resource.name()
            ));
        }
    }
    let grace = if shortage.soft {
        Duration::from_secs(kubelet.config.settings.eviction_max_pod_grace_period.max(0) as u64)
    } else {
        Duration::from_secs(1)
    };
    tracing::info!(pod = pod.name(), signal = shortage.signal, "evicting a pod");
    evict(kubelet, &handle, &pod, message, grace);
}

fn evict(kubelet: &Kubelet, handle: &PodHandle, pod: &Pod, message: String, grace: Duration) {
    kubelet.events.pod(pod, None, "Warning", "Evicted", message.clone());
    handle.terminate(Some(grace), Some(("Evicted".into(), message)));
}

/// Bytes of a pod's local storage.
#[derive(Default)]
struct Storage {
    /// Disk-backed emptyDirs, by name.
    empty_dirs: BTreeMap<String, u64>,
    /// Log files and writable layers, by container.
    containers: BTreeMap<String, u64>,
}

impl Storage {
    fn total(&self) -> u64 {
        self.empty_dirs.values().chain(self.containers.values()).sum()
    }
}

fn storage_of(kubelet: &Kubelet, handle: &PodHandle) -> Storage {
    let pod = handle.pod();
    let mut storage = Storage::default();
    let volumes = kubelet.config.pod_dir(pod.uid()).join("volumes/kubernetes.io~empty-dir");
    for volume in pod.spec().volumes.iter().flatten() {
        if let Some(source) = &volume.empty_dir {
            let used = disk_usage(&volumes.join(&volume.name));
            // What is in memory counts as memory, but its own limit still holds.
            if source.medium.as_deref().unwrap_or_default().is_empty() || source.size_limit.is_some() {
                storage.empty_dirs.insert(volume.name.clone(), used);
            }
        }
    }
    let logs = sandbox::pod_log_dir(&kubelet.config, &pod);
    for container in &pod.spec().containers {
        storage.containers.insert(container.name.clone(), disk_usage(&logs.join(&container.name)));
    }
    storage
}

fn disk_usage(root: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut pending = vec![root.to_path_buf()];
    let (mut total, mut files) = (0, 0);
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            files += 1;
            if files > FILES_MAX {
                return total;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            }
            total += metadata.blocks() * 512;
        }
    }
    total
}

/// Upstream: `localStorageEviction`.
async fn evict_by_storage_limits(kubelet: &Arc<Kubelet>) {
    let limited: Vec<Arc<PodHandle>> = kubelet
        .handles()
        .into_iter()
        .filter(|h| !h.finished.load(Ordering::Acquire) && h.runtime().is_running() && has_storage_limit(&h.pod()))
        .collect();
    if limited.is_empty() {
        return;
    }
    let mut layers: HashMap<String, u64> = HashMap::new();
    for stats in kubelet.runtime.list_container_stats(None).await.unwrap_or_default() {
        let used = stats.writable_layer.as_ref().and_then(|w| w.used_bytes.as_ref()).map_or(0, |v| v.value);
        if let Some(attributes) = stats.attributes {
            layers.insert(attributes.id, used);
        }
    }
    for handle in limited {
        let (for_thread, of) = (kubelet.clone(), handle.clone());
        let Ok(mut storage) = tokio::task::spawn_blocking(move || storage_of(&for_thread, &of)).await else { continue };
        for container in handle.runtime().containers.iter().filter(|c| c.is_running()) {
            if let Some(used) = storage.containers.get_mut(&container.name) {
                *used += layers.get(&container.id).copied().unwrap_or(0);
            }
        }
        let pod = handle.pod();
        if let Some(message) = over_limit(&pod, &storage) {
            evict(kubelet, &handle, &pod, message, Duration::from_secs(1));
        }
    }
}

fn has_storage_limit(pod: &Pod) -> bool {
    let dirs = pod.spec().volumes.iter().flatten().filter_map(|v| v.empty_dir.as_ref());
    dirs.into_iter().any(|d| d.size_limit.is_some()) || resources::pod_limits(pod).contains_key("ephemeral-storage")
}

fn over_limit(pod: &Pod, storage: &Storage) -> Option<String> {
    for volume in pod.spec().volumes.iter().flatten() {
        let limit = volume.empty_dir.as_ref().and_then(|d| d.size_limit.as_ref());
        let used = storage.empty_dirs.get(&volume.name).copied().unwrap_or(0);
        if let Some(limit) = limit.filter(|l| resources::value(l) > 0 && used > resources::value(l) as u64) {
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.0));
        }
    }
    let whole = resources::pod_limits(pod);
    if let Some(limit) = whole.get("ephemeral-storage").filter(|l| storage.total() > resources::value(l) as u64) {
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {}. ", limit.0));
    }
    for container in &pod.spec().containers {
        let limit = resources::limits(container).and_then(|l| l.get("ephemeral-storage"));
        let used = storage.containers.get(&container.name).copied().unwrap_or(0);
        if let Some(limit) = limit.filter(|l| used > resources::value(l) as u64) {
            return Some(format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                container.name, limit.0
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_over_their_storage_limits_are_told_which_one() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "1Mi"}}}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Ki"}}]}}))
        .unwrap();
        let storage = |dir: u64, container: u64| Storage {
            empty_dirs: [("v".to_string(), dir)].into(),
            containers: [("c".to_string(), container)].into(),
        };
        assert_eq!(over_limit(&pod, &storage(512, 512)), None);
        assert_eq!(
            over_limit(&pod, &storage(2048, 0)).unwrap(),
            "Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\". "
        );
        assert_eq!(
            over_limit(&pod, &storage(0, 2 << 20)).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "
        );
    }
}
