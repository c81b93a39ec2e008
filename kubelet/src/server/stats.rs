//! What pods and the node use (upstream: `kubelet/server/stats`, `kubelet/stats/cri_stats_provider.go`): containers as the runtime reports
//! them, pods and the node from their control groups.

use crate::cgroups::Usage;
use crate::cri::v1;
use crate::garbage;
use crate::kubelet::Kubelet;
use crate::labels;
use crate::machine::{self, FileSystem};
use crate::pod::PodExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Instant;

/// Cumulative CPU nanoseconds seen last, to tell the present rate from. Bounded by what has been asked for lately.
static SAMPLES: LazyLock<Mutex<HashMap<String, Sample>>> = LazyLock::new(Mutex::default);
const SAMPLES_MAX: usize = 8192;

struct Sample {
    cpu_nanos: u64,
    at: Instant,
    rate: Option<u64>,
}

/// Nanoseconds of CPU a second since the last look, which is kept a while so that two askers do not spoil each other's answers.
fn rate(key: &str, cpu_nanos: u64) -> Option<u64> {
    let mut samples = SAMPLES.lock();
    if samples.len() >= SAMPLES_MAX {
        samples.retain(|_, s| s.at.elapsed().as_secs() < 300);
    }
    match samples.get_mut(key) {
        Some(sample) if cpu_nanos >= sample.cpu_nanos => {
            let seconds = sample.at.elapsed().as_secs_f64();
            if seconds >= 5.0 || sample.rate.is_none() && seconds >= 0.5 {
                sample.rate = Some(((cpu_nanos - sample.cpu_nanos) as f64 / seconds) as u64);
                (sample.cpu_nanos, sample.at) = (cpu_nanos, Instant::now());
            }
            sample.rate
        }
        _ => {
            samples.insert(key.into(), Sample { cpu_nanos, at: Instant::now(), rate: None });
            None
        }
    }
}

fn value(v: &Option<v1::UInt64Value>) -> Option<u64> {
    v.as_ref().map(|v| v.value)
}

fn put(map: &mut Map<String, Value>, name: &str, value: Option<u64>) {
    if let Some(value) = value {
        map.insert(name.into(), value.into());
    }
}

fn cpu(key: &str, cpu_nanos: u64, told: Option<u64>, time: &str) -> Value {
    let mut map = Map::new();
    map.insert("time".into(), time.into());
    put(&mut map, "usageNanoCores", told.or_else(|| rate(key, cpu_nanos)));
    map.insert("usageCoreNanoSeconds".into(), cpu_nanos.into());
    Value::Object(map)
}

fn memory(usage: &Usage, time: &str) -> Value {
    json!({"time": time, "usageBytes": usage.memory_bytes, "workingSetBytes": usage.working_set_bytes, "rssBytes": usage.rss_bytes,
        "pageFaults": usage.page_faults, "majorPageFaults": usage.major_page_faults})
}

fn fs(fs: &FileSystem, time: &str) -> Value {
    json!({"time": time, "availableBytes": fs.available_bytes, "capacityBytes": fs.capacity_bytes, "usedBytes": fs.used_bytes,
        "inodesFree": fs.inodes_free, "inodes": fs.inodes, "inodesUsed": fs.inodes - fs.inodes_free})
}

/// The containers' own reports, by pod.
pub(super) async fn containers(kubelet: &Kubelet) -> HashMap<String, Vec<v1::ContainerStats>> {
    let mut by_pod: HashMap<String, Vec<v1::ContainerStats>> = HashMap::new();
    for stats in kubelet.runtime.list_container_stats(None).await.unwrap_or_default() {
        let uid = stats.attributes.as_ref().and_then(|a| a.labels.get(labels::POD_UID)).cloned();
        if let Some(uid) = uid {
            by_pod.entry(uid).or_default().push(stats);
        }
    }
    by_pod
}

/// The whole machine, which is the root of all groups.
pub(super) fn node_usage(kubelet: &Kubelet) -> Usage {
    let mut usage = kubelet.cgroups.usage(Path::new("")).unwrap_or_default();
    if usage.memory_bytes == 0 {
        let used = machine::meminfo("MemTotal") - machine::meminfo("MemAvailable");
        (usage.memory_bytes, usage.working_set_bytes) = (used.max(0) as u64, used.max(0) as u64);
    }
    usage
}

fn network(pid_path: &str, time: &str) -> Option<Value> {
    let text = std::fs::read_to_string(pid_path).ok()?;
    let interfaces: Vec<Value> = text
        .lines()
        .skip(2)
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let numbers: Vec<u64> = rest.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            let name = name.trim();
            (name != "lo" && numbers.len() >= 11).then(|| {
                json!({"name": name, "rxBytes": numbers[0], "rxErrors": numbers[2], "txBytes": numbers[8], "txErrors": numbers[10]})
            })
        })
        .collect();
    let first = interfaces.iter().find(|i| i["name"] == "eth0").or(interfaces.first())?;
    let mut result = first.clone();
    result["time"] = time.into();
    result["interfaces"] = interfaces.clone().into();
    Some(result)
}

pub async fn summary(kubelet: &Kubelet, only_cpu_and_memory: bool) -> Value {
    let time = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
    let usage = node_usage(kubelet);
    let node_fs = machine::file_system(&kubelet.config.root_dir).unwrap_or_default();
    let mut node_memory = memory(&usage, &time);
    node_memory["availableBytes"] = machine::meminfo("MemAvailable").into();
    let mut node = json!({"nodeName": kubelet.config.node_name, "startTime": boot_time(), "cpu": cpu("node", usage.cpu_nanos, None, &time), "memory": node_memory});
    if !only_cpu_and_memory {
        node["fs"] = fs(&node_fs, &time);
        if let Some(images) = garbage::image_file_system(kubelet).await {
            node["runtime"] = json!({"imageFs": fs(&images, &time), "containerFs": fs(&images, &time)});
        }
        if let Some(network) = network("/proc/net/dev", &time) {
            node["network"] = network;
        }
        let (max, current) = (number("/proc/sys/kernel/pid_max"), number("/proc/loadavg"));
        node["rlimit"] = json!({"time": time, "maxpid": max, "curproc": current});
    }
    let mut stats = containers(kubelet).await;
    let mut pods = Vec::new();
    for handle in kubelet.handles() {
        let pod = handle.pod();
        let runtime = handle.runtime();
        if !runtime.is_running() {
            continue;
        }
        let mut sum = Usage::default();
        let mut list = Vec::new();
        for own in stats.remove(&handle.uid).unwrap_or_default() {
            let Some(attributes) = &own.attributes else { continue };
            let Some(running) = runtime.containers.iter().find(|c| c.id == attributes.id && c.is_running()) else {
                continue;
            };
            let cpu_nanos = own.cpu.as_ref().and_then(|c| value(&c.usage_core_nano_seconds)).unwrap_or(0);
            let m = own.memory.clone().unwrap_or_default();
            let container_usage = Usage {
                cpu_nanos,
                memory_bytes: value(&m.usage_bytes).unwrap_or(0),
                working_set_bytes: value(&m.working_set_bytes).unwrap_or(0),
                rss_bytes: value(&m.rss_bytes).unwrap_or(0),
                page_faults: value(&m.page_faults).unwrap_or(0),
                major_page_faults: value(&m.major_page_faults).unwrap_or(0),
            };
            sum.cpu_nanos += cpu_nanos;
            sum.memory_bytes += container_usage.memory_bytes;
            sum.working_set_bytes += container_usage.working_set_bytes;
            sum.rss_bytes += container_usage.rss_bytes;
            let told = own.cpu.as_ref().and_then(|c| value(&c.usage_nano_cores));
            let started = Timestamp::from_second(running.started_at / 1_000_000_000).unwrap_or_default().to_string();
            let mut entry = json!({"name": running.name, "startTime": started, "cpu": cpu(&running.id, cpu_nanos, told, &time),
                "memory": memory(&container_usage, &time)});
            if !only_cpu_and_memory {
                let used = own.writable_layer.as_ref().and_then(|w| value(&w.used_bytes));
                let mut rootfs = json!({"time": time, "availableBytes": node_fs.available_bytes, "capacityBytes": node_fs.capacity_bytes});
                if let Some(used) = used {
                    rootfs["usedBytes"] = used.into();
                }
                entry["rootfs"] = rootfs;
                entry["logs"] = fs(&node_fs, &time);
                entry["logs"]["usedBytes"] = std::fs::metadata(&running.log_path).map_or(0, |m| m.len()).into();
            }
            list.push(entry);
        }
        let whole = kubelet.cgroups.pod_usage(&pod).unwrap_or(sum);
        let started = pod.status().start_time.as_ref().map(|t| t.0.to_string());
        let mut entry = json!({"podRef": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()}, "startTime": started,
            "containers": list, "cpu": cpu(pod.uid(), whole.cpu_nanos, None, &time), "memory": memory(&whole, &time)});
        if !only_cpu_and_memory {
            entry["ephemeral-storage"] = json!({"time": time, "availableBytes": node_fs.available_bytes, "capacityBytes": node_fs.capacity_bytes});
        }
        pods.push(entry);
    }
    json!({"node": node, "pods": pods})
}

/// The number of processes, from the fourth field of the load average, or a plain number.
fn number(path: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let field = text.split_whitespace().nth(3).and_then(|f| f.split_once('/')).map(|(_, all)| all.to_string());
    field.unwrap_or_else(|| text.trim().to_string()).parse().unwrap_or(0)
}

fn boot_time() -> String {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let seconds =
        text.lines().find_map(|l| l.strip_prefix("btime ")).and_then(|s| s.trim().parse::<i64>().ok()).unwrap_or(0);
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}
