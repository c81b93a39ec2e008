//! Metrics in Prometheus' text form (upstream: `kubelet/metrics`, `kubelet/metrics/collectors/resource_metrics.go`, cAdvisor).

use super::stats;
use super::{Body, text};
use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use crate::probes::{Outcome, ProbeKind};
use http::{Response, StatusCode};
use std::fmt::Write;

/// One family at a time: all its samples stand together.
struct Families(String);

impl Families {
    fn family(&mut self, name: &str, help: &str, kind: &str, samples: impl IntoIterator<Item = (String, String)>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = if labels.is_empty() {
                writeln!(self.0, "{name} {value}")
            } else {
                writeln!(self.0, "{name}{{{labels}}} {value}")
            };
        }
    }

    fn answer(self) -> Response<Body> {
        let mut response = text(StatusCode::OK, self.0);
        response
            .headers_mut()
            .insert("content-type", http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
        response
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

pub(super) fn own(kubelet: &Kubelet) -> Response<Body> {
    let mut out = Families(String::new());
    let handles = kubelet.handles();
    let running = handles.iter().filter(|h| h.runtime().ready_sandbox().is_some()).count();
    out.family(
        "kubelet_node_name",
        "[ALPHA] The node's name. The count is always 1.",
        "gauge",
        [(format!("node={:?}", kubelet.config.node_name), "1".into())],
    );
    out.family(
        "kubelet_running_pods",
        "[BETA] Number of pods that have a running pod sandbox",
        "gauge",
        [(String::new(), running.to_string())],
    );
    let mut states = std::collections::BTreeMap::new();
    for handle in &handles {
        for container in &handle.runtime().containers {
            *states.entry(format!("{:?}", container.state).to_lowercase()).or_insert(0u64) += 1;
        }
    }
    out.family(
        "kubelet_running_containers",
        "[BETA] Number of containers currently running",
        "gauge",
        states.into_iter().map(|(state, count)| (format!("container_state={state:?}"), count.to_string())),
    );
    out.family("kubelet_desired_pods", "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.", "gauge", [("static=\"\"".into(), handles.len().to_string())]);
    out.answer()
}

pub(super) async fn resource(kubelet: &Kubelet) -> Response<Body> {
    let now = jiff::Timestamp::now().as_millisecond();
    let at = |value: f64| format!("{value} {now}");
    let mut by_pod = stats::containers(kubelet).await;
    let (mut cpu, mut memory, mut start, mut pod_cpu, mut pod_memory) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for handle in kubelet.handles() {
        let (pod, runtime) = (handle.pod(), handle.runtime());
        let place = format!("namespace={:?},pod={:?}", pod.namespace(), pod.name());
        let (mut cpu_sum, mut memory_sum) = (0, 0);
        for own in by_pod.remove(&handle.uid).unwrap_or_default() {
            let id = own.attributes.as_ref().map(|a| a.id.as_str()).unwrap_or_default();
            let Some(running) = runtime.containers.iter().find(|c| c.id == id && c.is_running()) else { continue };
            let labels = format!("container={:?},{place}", running.name);
            let nanos = own.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds.as_ref()).map_or(0, |v| v.value);
            let bytes = own.memory.as_ref().and_then(|m| m.working_set_bytes.as_ref()).map_or(0, |v| v.value);
            cpu_sum += nanos;
            memory_sum += bytes;
            cpu.push((labels.clone(), at(seconds(nanos))));
            memory.push((labels.clone(), at(bytes as f64)));
            start.push((labels, format!("{}", running.started_at as f64 / 1e9)));
        }
        if !runtime.is_running() {
            continue;
        }
        let usage = kubelet.cgroups.pod_usage(&pod);
        pod_cpu.push((place.clone(), at(seconds(usage.map_or(cpu_sum, |u| u.cpu_nanos)))));
        pod_memory.push((place, at(usage.map_or(memory_sum, |u| u.working_set_bytes) as f64)));
    }
    let node = stats::node_usage(kubelet);
    let mut out = Families(String::new());
    out.family(
        "container_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        "counter",
        cpu,
    );
    out.family(
        "container_memory_working_set_bytes",
        "[STABLE] Current working set of the container in bytes",
        "gauge",
        memory,
    );
    out.family(
        "container_start_time_seconds",
        "[STABLE] Start time of the container since unix epoch in seconds",
        "gauge",
        start,
    );
    out.family(
        "node_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        "counter",
        [(String::new(), at(seconds(node.cpu_nanos)))],
    );
    out.family(
        "node_memory_working_set_bytes",
        "[STABLE] Current working set of the node in bytes",
        "gauge",
        [(String::new(), at(node.working_set_bytes as f64))],
    );
    out.family(
        "pod_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        "counter",
        pod_cpu,
    );
    out.family("pod_memory_working_set_bytes", "[STABLE] Current working set of the pod in bytes", "gauge", pod_memory);
    out.family(
        "resource_scrape_error",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
        "gauge",
        [(String::new(), "0".into())],
    );
    out.answer()
}

pub(super) async fn cadvisor(kubelet: &Kubelet) -> Response<Body> {
    let mut by_pod = stats::containers(kubelet).await;
    let (mut cpu, mut usage, mut working_set, mut rss) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for handle in kubelet.handles() {
        let (pod, runtime) = (handle.pod(), handle.runtime());
        for own in by_pod.remove(&handle.uid).unwrap_or_default() {
            let id = own.attributes.as_ref().map(|a| a.id.clone()).unwrap_or_default();
            let Some(running) = runtime.containers.iter().find(|c| c.id == id && c.is_running()) else { continue };
            let labels = format!(
                "container={:?},id={:?},image={:?},name={id:?},namespace={:?},pod={:?}",
                running.name,
                format!("{}/{id}", kubelet.cgroups.parent_of(&pod)),
                running.image_ref,
                pod.namespace(),
                pod.name()
            );
            let value = |v: Option<&crate::cri::v1::UInt64Value>| v.map_or(0, |v| v.value);
            let m = own.memory.clone().unwrap_or_default();
            cpu.push((
                labels.clone(),
                seconds(value(own.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds.as_ref()))).to_string(),
            ));
            usage.push((labels.clone(), value(m.usage_bytes.as_ref()).to_string()));
            working_set.push((labels.clone(), value(m.working_set_bytes.as_ref()).to_string()));
            rss.push((labels, value(m.rss_bytes.as_ref()).to_string()));
        }
    }
    let mut out = Families(String::new());
    out.family("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", "counter", cpu);
    out.family("container_memory_rss", "Size of RSS in bytes.", "gauge", rss);
    out.family(
        "container_memory_usage_bytes",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        "gauge",
        usage,
    );
    out.family("container_memory_working_set_bytes", "Current working set in bytes.", "gauge", working_set);
    out.family(
        "machine_cpu_cores",
        "Number of logical CPU cores.",
        "gauge",
        [(String::new(), kubelet.machine.cpus.to_string())],
    );
    out.family(
        "machine_memory_bytes",
        "Amount of memory installed on the machine.",
        "gauge",
        [(String::new(), kubelet.machine.memory_bytes.to_string())],
    );
    out.answer()
}

/// The present verdict of each probe.
pub(super) fn probes(kubelet: &Kubelet) -> Response<Body> {
    let mut samples = Vec::new();
    for handle in kubelet.handles() {
        let (pod, runtime) = (handle.pod(), handle.runtime());
        for container in runtime.containers.iter().filter(|c| c.is_running()) {
            for kind in [ProbeKind::Liveness, ProbeKind::Readiness, ProbeKind::Startup] {
                let Some(outcome) = handle.probes.get(&container.id, kind) else { continue };
                let labels = format!(
                    "container={:?},namespace={:?},pod={:?},pod_uid={:?},probe_type=\"{kind:?}\"",
                    container.name,
                    pod.namespace(),
                    pod.name(),
                    pod.uid()
                );
                samples.push((labels, if outcome == Outcome::Success { "1" } else { "0" }.to_string()));
            }
        }
    }
    let mut out = Families(String::new());
    out.family(
        "prober_probe_result",
        "[ALPHA] The present result of a probe of a container: 1 is success.",
        "gauge",
        samples,
    );
    out.answer()
}
