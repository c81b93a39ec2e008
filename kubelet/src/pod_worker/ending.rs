//! The end of a pod: its containers are stopped in order, its volumes and groups removed, its object released (upstream: `killPod`,
//! `SyncTerminatingPod`, `SyncTerminatedPod`, `kuberuntime_termination_order.go`).

use super::{RETRY_SOON, Worker};
use crate::hooks;
use crate::pod::{self, ContainerRef, PodExt};
use crate::runtime_status::{RuntimeContainer, RuntimePod};
use crate::status;
use crate::volumes;
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// No container gets less time than this (upstream: `minimumGracePeriodInSeconds`).
const GRACE_MIN: Duration = Duration::from_secs(2);
const CLEANUP_RETRY: Duration = Duration::from_millis(100);
const GROUP_TRIES: usize = 3;
/// A cleanup that still fails after this is left to the housekeeping.
const CLEANUP_TRIES: usize = 50;

impl Worker {
    /// Stops whatever runs, then cleans up. Returns when nothing of the pod is left but ended containers and their logs.
    pub(super) async fn end(&mut self) {
        self.stop_containers().await;
        self.prober_stop.cancel();
        self.clean_up().await;
        if !self.handle.rejected.load(Ordering::Acquire) {
            let failure = self.handle.termination().borrow().failure.clone();
            let pod = self.handle.allocated_pod();
            let runtime = self.handle.runtime();
            let mut status = self.generate(&pod, &runtime, true);
            status::terminate(&pod, &mut status);
            let failed = failure.or_else(|| kept_failure(&status));
            let status = self.with_failure(&pod, &runtime, status.clone(), failed);
            self.handle.publish(status);
        }
    }

    async fn stop_containers(&mut self) {
        let mut termination = self.handle.termination();
        let handle = self.handle.clone();
        // Containers that have been told to stop: their event is not repeated when the grace is shortened.
        let told = parking_lot::Mutex::new(HashSet::new());
        self.handle.dirty.store(true, Ordering::Release);
        let mut started = false;
        loop {
            let request = termination.borrow_and_update().clone();
            let pod = self.handle.allocated_pod();
            let runtime = match self.look().await {
                Ok(runtime) => runtime,
                Err(_) => {
                    tokio::time::sleep(RETRY_SOON).await;
                    continue;
                }
            };
            if !started && !self.handle.rejected.load(Ordering::Acquire) {
                let status = self.generate(&pod, &runtime, false);
                let status = self.with_failure(&pod, &runtime, status, request.failure.clone());
                self.handle.publish(status);
                started = true;
            }
            if !runtime.is_running() {
                return;
            }
            let own = Duration::from_secs(pod.spec().termination_grace_period_seconds.unwrap_or(30).max(0) as u64);
            let grace = request.grace.unwrap_or(own);
            let done = tokio::select! {
                done = self.kill_all_within(&pod, &runtime, grace, Some(&told)) => done,
                // A second deletion with less patience begins anew; what has been told to stop is told again.
                _ = shorter(&mut termination, grace) => true,
            };
            handle.dirty.store(true, Ordering::Release);
            if !done {
                tokio::time::sleep(RETRY_SOON).await;
            }
        }
    }

    /// Kills the pod's containers with their own grace. Says whether all went well.
    pub(super) async fn kill_all(&self, pod: &Pod, runtime: &RuntimePod, grace: Option<Duration>) -> bool {
        self.kill_all_within(pod, runtime, grace.unwrap_or_else(|| pod::grace_period(pod)), None).await
    }

    async fn kill_all_within(
        &self,
        pod: &Pod,
        runtime: &RuntimePod,
        grace: Duration,
        told: Option<&parking_lot::Mutex<HashSet<String>>>,
    ) -> bool {
        let started = Instant::now();
        let sidecar = |c: &RuntimeContainer| {
            pod::init_containers(pod.spec()).iter().position(|i| i.name == c.name && pod::is_sidecar(i))
        };
        let alive = |c: &&Arc<RuntimeContainer>| !c.has_exited();
        let (sidecars, others): (Vec<_>, Vec<_>) =
            runtime.containers.iter().filter(alive).cloned().partition(|c| sidecar(c).is_some());
        let stop = |c: Arc<RuntimeContainer>, grace: Duration| async move {
            let message = format!("Stopping container {}", c.name);
            self.kill_container(pod, runtime, &c.id, &c.name, &message, grace, told).await
        };
        let mut fine =
            futures::future::join_all(others.into_iter().map(|c| stop(c, grace))).await.into_iter().all(|ok| ok);
        // Sidecars go when what they serve is gone, the last one first, within what is left of the time.
        let mut sidecars = sidecars;
        sidecars.sort_by_key(|c| std::cmp::Reverse(sidecar(c)));
        for c in sidecars {
            fine &= stop(c, grace.saturating_sub(started.elapsed())).await;
        }
        for sandbox in &runtime.sandboxes {
            match self.kubelet.runtime.stop_pod_sandbox(&sandbox.id).await {
                Err(e) if !e.is_not_found() => {
                    self.kubelet.events.pod(pod, None, "Warning", "FailedKillPod", format!("error killing pod: failed to \"KillPodSandbox\" for {:?} with KillPodSandboxError: \"{e}\"", pod.uid()));
                    fine = false;
                }
                _ => {}
            }
        }
        fine
    }

    /// Runs the hook before the stop, then stops. Says whether the container is gone.
    pub(super) async fn kill_container(
        &self,
        pod: &Pod,
        runtime: &RuntimePod,
        id: &str,
        name: &str,
        message: &str,
        grace: Duration,
        told: Option<&parking_lot::Mutex<HashSet<String>>>,
    ) -> bool {
        let reference = pod::long_lived_containers(pod.spec()).find(|c| c.container.name == name);
        let field = reference.as_ref().map_or_else(|| ephemeral_field(pod, name), ContainerRef::field_path);
        let first = told.is_none_or(|t| t.lock().insert(id.to_string()));
        if first {
            self.kubelet.events.pod(pod, Some(&field), "Normal", "Killing", message);
        }
        let started = Instant::now();
        let hook = reference.and_then(|c| Some((c, c.container.lifecycle.as_ref()?.pre_stop.as_ref()?)));
        if let Some((c, handler)) = hook.filter(|_| first && grace > Duration::ZERO) {
            let pod_ip = runtime.ips().first().cloned().unwrap_or_default();
            match tokio::time::timeout(
                grace,
                hooks::run(&*self.kubelet.runtime, handler, c.container, id, pod, &pod_ip),
            )
            .await
            {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(pod = pod.name(), container = name, error, "a hook before the stop failed");
                    self.kubelet.events.pod(pod, Some(&field), "Warning", "FailedPreStopHook", "PreStopHook failed");
                }
                Err(_) => {
                    self.kubelet.events.pod(pod, Some(&field), "Warning", "FailedPreStopHook", "PreStopHook failed")
                }
            }
        }
        let left =
            grace.saturating_sub(started.elapsed()).max(if grace.is_zero() { Duration::ZERO } else { GRACE_MIN });
        match self.kubelet.runtime.stop_container(id, left).await {
            Err(e) if !e.is_not_found() => {
                tracing::debug!(pod = pod.name(), container = name, error = %e, "a container could not be stopped");
                false
            }
            _ => true,
        }
    }

    async fn clean_up(&mut self) {
        let pod = self.handle.pod();
        if !self.kubelet.runtime.is_real() || self.handle.rejected.load(Ordering::Acquire) {
            return;
        }
        for attempt in 0..CLEANUP_TRIES {
            let volumes = volumes::tear_down_all(&self.kubelet.config, pod.uid());
            // A group that stays busy hinders nobody; the housekeeping removes it later.
            let groups =
                self.kubelet.cgroups.remove_pod(&pod).or_else(|e| if attempt < GROUP_TRIES { Err(e) } else { Ok(()) });
            match volumes.and(groups) {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(pod = pod.name(), %error, "cleaning up after a pod failed");
                    tokio::time::sleep(CLEANUP_RETRY).await;
                }
            }
        }
    }

    /// Lets the object go once it is to be deleted, and when it has gone, removes what is left.
    pub(super) async fn wait_for_removal(&mut self) {
        let mut termination = self.handle.termination();
        let handle = self.handle.clone();
        loop {
            if termination.borrow_and_update().removed {
                break;
            }
            if handle.pod().metadata.deletion_timestamp.is_some() && !*handle.may_be_deleted.borrow() {
                handle.may_be_deleted.send_replace(true);
            }
            tokio::select! {
                _ = termination.changed() => {}
                _ = handle.woken() => {}
            }
        }
        let pod = self.handle.pod();
        for _ in 0..CLEANUP_TRIES {
            if self.remove_everything(&pod).await {
                break;
            }
            tokio::time::sleep(CLEANUP_RETRY).await;
        }
        self.kubelet.tokens.forget(pod.uid());
    }

    async fn remove_everything(&mut self, pod: &Pod) -> bool {
        let Ok(runtime) = self.look_again().await else { return false };
        for container in &runtime.containers {
            self.remove_container(pod, container).await;
        }
        let mut gone = true;
        for sandbox in &runtime.sandboxes {
            gone &= self.kubelet.runtime.remove_pod_sandbox(&sandbox.id).await.is_ok();
        }
        if self.kubelet.runtime.is_real() {
            gone &= volumes::remove_pod_dir(&self.kubelet.config, pod.uid()).is_ok();
            let _ = std::fs::remove_dir_all(crate::sandbox::pod_log_dir(&self.kubelet.config, pod));
        }
        gone
    }
}

fn ephemeral_field(pod: &Pod, name: &str) -> String {
    if pod::ephemeral_containers(pod.spec()).iter().any(|c| c.name == name) {
        format!("spec.ephemeralContainers{{{name}}}")
    } else {
        format!("spec.containers{{{name}}}")
    }
}

/// The kubelet's own verdict in a status that has been published, which must survive its later versions.
fn kept_failure(status: &k8s_openapi::api::core::v1::PodStatus) -> Option<(String, String)> {
    match (status.phase.as_deref(), &status.reason, &status.message) {
        (Some("Failed"), Some(reason), Some(message)) => Some((reason.clone(), message.clone())),
        _ => None,
    }
}

async fn shorter(termination: &mut tokio::sync::watch::Receiver<crate::kubelet::Termination>, than: Duration) {
    loop {
        if termination.changed().await.is_err() {
            return std::future::pending().await;
        }
        if termination.borrow_and_update().grace.is_some_and(|grace| grace < than) {
            return;
        }
    }
}
