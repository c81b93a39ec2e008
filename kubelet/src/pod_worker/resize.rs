//! In-place resize: limits of running containers follow the spec where the node has room (upstream: `kubelet/allocation`,
//! `kuberuntime_manager.go: doPodResizeAction`).

use super::{RETRY, Worker};
use crate::admission;
use crate::container_config;
use crate::cri::v1;
use crate::pod::{self, ContainerRef, PodExt, now};
use crate::resources;
use crate::runtime_status::RuntimePod;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, ResourceRequirements};
use std::collections::HashMap;
use std::time::Duration;

impl Worker {
    /// Changes the limits of running containers whose spec has changed. Says when to try again what failed.
    pub(super) async fn resize_containers(&mut self, pod: &Pod, runtime: &RuntimePod) -> Option<Duration> {
        let kubelet = self.kubelet.clone();
        let mut retry = None;
        let changed: Vec<ContainerRef<'_>> = pod::long_lived_containers(pod.spec())
            .filter(|c| {
                runtime
                    .find(&c.container.name)
                    .is_some_and(|r| r.is_running() && self.resize.differs(c.container, &r.id))
            })
            .collect();
        if changed.is_empty() {
            // Also when the wish was taken back.
            if self.resize.pending.take().is_some() {
                let status = self.generate(pod, runtime, false);
                self.handle.publish(status);
            }
            return None;
        }
        if let Err((reason, message)) = admission::resize_verdict(&kubelet, pod) {
            if self.resize.pend(pod, reason, &message) {
                let summary = resize_summary(pod, Some(&message));
                kubelet.events.pod(
                    pod,
                    None,
                    "Warning",
                    &format!("Resize{reason}"),
                    format!("Pod resize {reason}: {summary}"),
                );
                let status = self.generate(pod, runtime, false);
                self.handle.publish(status);
            }
            // Room may come when others go.
            return (reason == "Deferred").then_some(RETRY);
        }
        self.resize.pending = None;
        let summary = resize_summary(pod, None);
        kubelet.events.pod(pod, None, "Normal", "ResizeStarted", format!("Pod resize started: {summary}"));
        let settings = &kubelet.config.settings;
        let period = settings.cpu_cfs_quota_period.0.as_micros() as i64;
        // A growing pod's group grows before its containers do, and a shrinking one's shrinks after: setting it twice does both.
        let limits = resources::pod_cgroup_limits(pod, settings.cpu_cfs_quota, period, settings.pod_pids_limit);
        let _ = kubelet.cgroups.ensure_pod(pod, &limits);
        for reference in changed {
            let container = reference.container;
            let Some(running) = runtime.find(&container.name) else { continue };
            let wanted = container_config::limits_of(
                pod,
                container,
                &kubelet.config,
                kubelet.machine.memory_bytes,
                kubelet.cgroups.version(),
            );
            match kubelet.runtime.update_container_resources(&running.id, wanted.clone()).await {
                Ok(()) => self.resize.applied(&container.name, &running.id, Some(wanted), container.resources.clone()),
                Err(error) => {
                    self.resize.failed(&error.message);
                    retry = Some(RETRY);
                }
            }
        }
        if retry.is_none() {
            let _ = kubelet.cgroups.ensure_pod(pod, &limits);
            self.resize.error = None;
            kubelet.events.pod(pod, None, "Normal", "ResizeCompleted", format!("Pod resize completed: {summary}"));
        }
        let status = self.generate(pod, runtime, false);
        self.handle.publish(status);
        retry
    }
}

/// Resources in force, where the kubelet has set them itself.
#[derive(Default)]
pub(super) struct Resize {
    applied: HashMap<String, Applied>,
    error: Option<String>,
    /// Why a resize has not been granted.
    pending: Option<PodCondition>,
}

struct Applied {
    id: String,
    limits: Option<v1::LinuxContainerResources>,
    spec: ResourceRequirements,
}

impl Resize {
    pub(super) fn applied(
        &mut self,
        name: &str,
        id: &str,
        limits: Option<v1::LinuxContainerResources>,
        spec: Option<ResourceRequirements>,
    ) {
        self.applied.insert(name.into(), Applied { id: id.into(), limits, spec: spec.unwrap_or_default() });
    }

    /// Says whether this is news.
    fn pend(&mut self, pod: &Pod, reason: &str, message: &str) -> bool {
        let same = |c: &PodCondition| {
            c.reason.as_deref() == Some(reason)
                && c.message.as_deref() == Some(message)
                && c.observed_generation == pod.metadata.generation
        };
        if self.pending.as_ref().is_some_and(same) {
            return false;
        }
        self.pending = Some(PodCondition {
            type_: "PodResizePending".into(),
            status: "True".into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            observed_generation: pod.metadata.generation,
            last_transition_time: Some(now()),
            last_probe_time: None,
        });
        true
    }

    fn failed(&mut self, message: &str) {
        self.error = Some(message.to_string());
    }

    /// Whether a running container was started, or last changed, with other resources than its spec has now. Of containers that an earlier
    /// kubelet started nothing is known; they are taken to be as they should.
    fn differs(&mut self, container: &Container, id: &str) -> bool {
        let now = container.resources.clone().unwrap_or_default();
        match self.applied.get(&container.name) {
            Some(applied) if applied.id == id => applied.spec != now,
            _ => {
                self.applied.insert(container.name.clone(), Applied { id: id.into(), limits: None, spec: now });
                false
            }
        }
    }

    /// Resources of running containers that are not (yet) those of the spec.
    pub(super) fn actual(&self, pod: &Pod, runtime: &RuntimePod) -> HashMap<String, ResourceRequirements> {
        let mut result = HashMap::new();
        for reference in pod::long_lived_containers(pod.spec()) {
            let name = &reference.container.name;
            let running = runtime.find(name).filter(|c| c.is_running());
            if let (Some(applied), Some(running)) = (self.applied.get(name), running)
                && applied.id == running.id
                && applied.limits.is_some()
                && Some(&applied.spec) != reference.container.resources.as_ref()
            {
                result.insert(name.clone(), applied.spec.clone());
            }
        }
        result
    }

    pub(super) fn conditions(&self, pod: &Pod) -> Vec<PodCondition> {
        if let Some(pending) = &self.pending {
            return vec![pending.clone()];
        }
        let Some(error) = &self.error else { return Vec::new() };
        vec![PodCondition {
            type_: "PodResizeInProgress".into(),
            status: "True".into(),
            reason: Some("Error".into()),
            message: Some(error.clone()),
            observed_generation: pod.metadata.generation,
            last_transition_time: Some(now()),
            last_probe_time: None,
        }]
    }
}

/// What a resize is about, as it stands in events: the resources of every container, and the generation.
fn resize_summary(pod: &Pod, error: Option<&str>) -> String {
    let list = |containers: &[Container]| -> Vec<serde_json::Value> {
        containers.iter().map(|c| serde_json::json!({"name": c.name, "resources": c.resources})).collect()
    };
    let mut summary = serde_json::Map::new();
    summary.insert("containers".into(), list(&pod.spec().containers).into());
    summary.insert("generation".into(), pod.generation().into());
    if let Some(error) = error {
        summary.insert("error".into(), error.into());
    }
    let init: Vec<Container> =
        pod::init_containers(pod.spec()).iter().filter(|c| pod::is_sidecar(c)).cloned().collect();
    if !init.is_empty() {
        summary.insert("initContainers".into(), list(&init).into());
    }
    serde_json::Value::Object(summary).to_string()
}
