//! Resizing a pod while it runs: wishes are granted where the node has room, then carried out on containers and control groups (upstream:
//! `allocation_manager.go: handlePodResourcesResize`, `kuberuntime_manager.go: doPodResizeAction`).

use super::Worker;
use crate::actions::Actions;
use crate::admission;
use crate::allocation::{self, Actuated, Amounts};
use crate::container_config;
use crate::pod::{self, ContainerKind, ContainerRef, PodExt, now};
use crate::resources;
use crate::runtime_status::RuntimePod;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, ResourceRequirements};
use std::collections::{BTreeMap, HashMap};

/// Where a pod's resize stands.
#[derive(Default)]
pub(super) struct Resize {
    pub(super) actuated: Actuated,
    /// Why a wish has not been granted.
    pending: Option<PodCondition>,
    /// What has been granted and is not in force yet.
    in_progress: Option<PodCondition>,
}

impl Worker {
    /// Decides on what the pod asks for beyond what it was granted.
    pub(super) fn allocate(&mut self) {
        let pod = self.handle.pod();
        let Some(held) = self.handle.allocation() else {
            self.resize.pending = None;
            return;
        };
        if held.is_asked_by(&pod) {
            // The wish was taken back.
            self.handle.allocate();
            self.resize.pending = None;
            return;
        }
        let kubelet = self.kubelet.clone();
        let generation = pod.generation();
        let deciding = kubelet.admitting.lock();
        match admission::resize_verdict(&kubelet, &pod) {
            Ok(()) => {
                self.handle.allocate();
                drop(deciding);
                self.resize.pending = None;
                self.resize.in_progress = Some(condition("PodResizeInProgress", None, generation, "", ""));
                let summary = allocation::summary(&pod, generation, None);
                kubelet.events.pod(&pod, None, "Normal", "ResizeStarted", format!("Pod resize started: {summary}"));
            }
            Err(rejection) => {
                drop(deciding);
                let message = rejection.message;
                let reason = if rejection.reason == "Infeasible" { "Infeasible" } else { "Deferred" };
                let before = self.resize.pending.take();
                let news = before.as_ref().is_none_or(|c| {
                    c.reason.as_deref() != Some(reason) || c.observed_generation != pod.metadata.generation
                });
                if news {
                    let summary = allocation::summary(&pod, generation, Some(&message));
                    let text = format!("Pod resize {}: {summary}", rejection.reason);
                    kubelet.events.pod(&pod, None, "Warning", &format!("Resize{reason}"), text);
                }
                self.resize.pending =
                    Some(condition("PodResizePending", before.as_ref(), generation, reason, &message));
            }
        }
    }

    /// Room may come when others go.
    pub(super) fn resize_deferred(&self) -> bool {
        self.resize.pending.as_ref().is_some_and(|c| c.reason.as_deref() == Some("Deferred"))
    }

    /// Notices the beginning and the end of what was granted.
    pub(super) fn follow_resize(&mut self, pod: &Pod, runtime: &RuntimePod) {
        self.resize.actuated.learn(pod, running(pod, runtime));
        let actuated = &self.resize.actuated;
        let under_way = actuated.pod_differs(pod)
            || running(pod, runtime).any(|(c, id)| actuated.amounts(pod, c.container, id).is_some());
        if under_way {
            let begin = || condition("PodResizeInProgress", None, pod.generation(), "", "");
            self.resize.in_progress.get_or_insert_with(begin);
        } else if let Some(done) = self.resize.in_progress.take() {
            let generation = done.observed_generation.unwrap_or_default();
            let summary = allocation::summary(pod, generation, None);
            self.kubelet.events.pod(pod, None, "Normal", "ResizeCompleted", format!("Pod resize completed: {summary}"));
        }
    }

    /// Brings groups and running containers to what was granted. A failure is told as a condition and an event, and tried again.
    pub(super) async fn carry_out_resize(&mut self, pod: &Pod, runtime: &RuntimePod, plan: &Actions) -> bool {
        let Err(error) = self.try_resize(pod, runtime, plan).await else { return true };
        let before = self.resize.in_progress.take();
        let generation = before.as_ref().and_then(|c| c.observed_generation).unwrap_or(pod.generation());
        let text = |c: &PodCondition| c.message.clone().unwrap_or_default();
        if before.as_ref().is_none_or(|c| text(c) != error) {
            let summary = allocation::summary(pod, generation, Some(&error));
            let text = format!("Pod resize error: {summary}");
            self.kubelet.events.pod(pod, None, "Warning", "ResizeError", text);
        }
        self.resize.in_progress = Some(condition("PodResizeInProgress", before.as_ref(), generation, "Error", &error));
        false
    }

    async fn try_resize(&mut self, pod: &Pod, runtime: &RuntimePod, plan: &Actions) -> Result<(), String> {
        let kubelet = self.kubelet.clone();
        let settings = &kubelet.config.settings;
        let updates: Vec<(ContainerRef<'_>, &str, Amounts, Amounts)> = running(pod, runtime)
            .filter(|(c, _)| plan.update.contains(&c.container.name))
            .filter_map(|(c, id)| {
                let (before, after) = self.resize.actuated.amounts(pod, c.container, id)?;
                Some((c, id, before, after))
            })
            .collect();
        let period = settings.cpu_cfs_quota_period.0.as_micros() as i64;
        let wanted = resources::pod_cgroup_limits(pod, settings.cpu_cfs_quota, period, settings.pod_pids_limit);
        let held = self.group_limits.clone().unwrap_or_else(|| wanted.clone());
        self.check_memory(pod, held.memory_bytes, wanted.memory_bytes, &updates).await?;
        // A growing pod's group grows before its containers do, and a shrinking one's shrinks after.
        kubelet.cgroups.ensure_pod(pod, &wanted.widened(&held)).map_err(|e| e.to_string())?;
        // Whoever gives something up goes before those who take it.
        let mut updates = updates;
        updates.sort_by_key(|(_, _, before, after)| after.memory_limit >= before.memory_limit);
        for (reference, id, ..) in updates {
            let container = reference.container;
            let (capacity, version) = (kubelet.machine.memory_bytes, kubelet.cgroups.version());
            let limits = container_config::limits_of(pod, container, &kubelet.config, capacity, version);
            kubelet.runtime.update_container_resources(id, limits).await.map_err(|e| e.to_string())?;
            self.resize.actuated.set_container(pod, container, id);
        }
        kubelet.cgroups.ensure_pod(pod, &wanted).map_err(|e| e.to_string())?;
        self.group_limits = Some(wanted);
        self.resize.actuated.set_pod(pod);
        Ok(())
    }

    /// A limit below what is used would have the kernel kill processes.
    async fn check_memory(
        &self,
        pod: &Pod,
        held: Option<i64>,
        wanted: Option<i64>,
        updates: &[(ContainerRef<'_>, &str, Amounts, Amounts)],
    ) -> Result<(), String> {
        let lowered = |before: i64, after: i64| after > 0 && (before == 0 || after < before);
        let of_pod = wanted.filter(|after| lowered(held.unwrap_or(0), *after));
        let of_containers: Vec<_> =
            updates.iter().filter(|(_, _, before, after)| lowered(before.memory_limit, after.memory_limit)).collect();
        if of_pod.is_none() && of_containers.is_empty() {
            return Ok(());
        }
        let stats = self.kubelet.runtime.list_container_stats(None).await.unwrap_or_default();
        let used: BTreeMap<String, u64> = stats
            .into_iter()
            .filter_map(|s| {
                let usage = s.memory.as_ref()?.usage_bytes.as_ref()?.value;
                Some((s.attributes?.id, usage))
            })
            .collect();
        let group = self.kubelet.cgroups.pod_usage(pod).map(|u| u.memory_bytes);
        let of_all = group.unwrap_or_else(|| updates.iter().filter_map(|(_, id, ..)| used.get(*id)).sum());
        let mut errors = Vec::new();
        if let Some(limit) = of_pod.filter(|limit| of_all >= *limit as u64) {
            errors.push(format!("attempting to set pod memory limit ({limit}) below current usage ({of_all})"));
        }
        for (reference, id, _, after) in of_containers {
            let (name, limit) = (&reference.container.name, after.memory_limit);
            match used.get(*id) {
                None => errors.push(format!("missing container {name:?} memory usage")),
                // Upstream prints what the pod uses.
                Some(used) if *used >= limit as u64 => errors.push(format!(
                    "attempting to set container {name:?} memory limit ({limit}) below current usage ({of_all})"
                )),
                Some(_) => {}
            }
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(format!("cannot decrease memory limits: {}", errors[0])),
            _ => Err(format!("cannot decrease memory limits: [{}]", errors.join(", "))),
        }
    }
}

/// Containers that run and can be resized, with their ids.
fn running<'a>(pod: &'a Pod, runtime: &'a RuntimePod) -> impl Iterator<Item = (ContainerRef<'a>, &'a str)> {
    pod::long_lived_containers(pod.spec()).filter_map(|c| {
        let found = runtime.find(&c.container.name).filter(|r| r.is_running())?;
        Some((c, found.id.as_str()))
    })
}

impl Resize {
    pub(super) fn started(&mut self, pod: &Pod, reference: ContainerRef<'_>, id: &str) {
        if reference.kind != ContainerKind::Ephemeral {
            self.actuated.set_container(pod, reference.container, id);
        }
    }

    /// Resources of running containers that are not yet those of the spec.
    pub(super) fn still_in_force(&self, pod: &Pod, runtime: &RuntimePod) -> HashMap<String, ResourceRequirements> {
        let still = |(c, id): (ContainerRef<'_>, &str)| {
            let container: &Container = c.container;
            Some((container.name.clone(), self.actuated.still(pod, container, id)?))
        };
        running(pod, runtime).filter_map(still).collect()
    }

    pub(super) fn conditions(&self) -> Vec<PodCondition> {
        self.pending.iter().chain(&self.in_progress).cloned().collect()
    }
}

fn condition(kind: &str, before: Option<&PodCondition>, generation: i64, reason: &str, message: &str) -> PodCondition {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_string());
    let same = before.filter(|c| c.reason == text(reason));
    // An unchanged condition keeps its times: a status that differs in them alone need not be told.
    let unchanged = same.filter(|c| c.message == text(message) && c.observed_generation == Some(generation));
    PodCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: text(reason),
        message: text(message),
        observed_generation: Some(generation),
        last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(now())),
        last_probe_time: unchanged.and_then(|c| c.last_probe_time.clone()).or_else(|| Some(now())),
    }
}
