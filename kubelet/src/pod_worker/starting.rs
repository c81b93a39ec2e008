//! Carrying out a plan: sandboxes and containers are made, started and killed (upstream: `kuberuntime_manager.go: SyncPod`,
//! `kuberuntime_container.go: startContainer`).

use super::pod_images::PodImages;
use super::{CRASH_LOOP, RETRY, RETRY_SOON, Worker};
use crate::actions::{Actions, KillReason};
use crate::container_config;
use crate::cri::v1;
use crate::environment;
use crate::hooks;
use crate::host_files;
use crate::images::{StartError, Wish, with_default_tag};
use crate::pod::{self, ContainerKind, ContainerRef, PodExt};
use crate::runtime_status::RuntimePod;
use crate::sandbox::{self, SandboxInputs};
use crate::status::RESTARTING;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

const SHORT_LIFE_NANOS: i64 = 1_000_000_000;
const SHORT_LIFE_TOLD: Duration = Duration::from_millis(2500);
/// How long a new sandbox without containers is not worth telling.
const SANDBOX_NEWS_DELAY: Duration = Duration::from_secs(1);

/// What carrying out a plan came to.
#[derive(Default)]
pub(super) struct Progress {
    /// Something is different now, so a new plan is worth making.
    pub changed: bool,
    /// The usual wait after a failure.
    failed: Option<Duration>,
    /// The time until the first container that ended may be started again.
    backing_off: Option<Duration>,
    /// A container began to back off whose end came so soon that the back-off is to be told before it is over.
    pub look_again: Option<Duration>,
}

impl Progress {
    fn retry_in(&mut self, wait: Duration) {
        self.failed = Some(self.failed.map_or(wait, |present| present.min(wait)));
    }

    fn back_off(&mut self, left: Duration) {
        self.backing_off = Some(self.backing_off.map_or(left, |present| present.min(left)));
    }

    pub fn is_backing_off(&self) -> bool {
        self.backing_off.is_some()
    }

    /// When to try again what could not be done (upstream: `completeWork`): the end of a back-off is waited for whatever else has failed.
    pub fn retry(&self) -> Option<Duration> {
        self.backing_off.or(self.failed)
    }
}

/// Where a container is to be started.
struct Place<'a> {
    runtime: &'a RuntimePod,
    sandbox_id: &'a str,
    sandbox: &'a v1::PodSandboxConfig,
    images: &'a PodImages,
}

impl Worker {
    pub(super) async fn carry_out(&mut self, pod: &Pod, runtime: &RuntimePod, plan: &Actions) -> Progress {
        let mut progress = Progress::default();
        if plan.create_sandbox && !plan.sandbox_id.is_empty() {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.kubelet.events.pod(pod, None, "Normal", "SandboxChanged", message);
        }
        if plan.kill_pod {
            if runtime.is_running() {
                progress.changed = true;
                if !self.kill_all(pod, runtime, None).await {
                    progress.retry_in(RETRY_SOON);
                    return progress;
                }
            }
            if plan.create_sandbox {
                // Init containers run again in a new sandbox; what is left of the old ones would look as if they had run.
                self.remove_init_containers(pod, runtime, None).await;
            }
        } else {
            for kill in &plan.kill {
                let grace = self.probe_grace(pod, &kill.name, kill.reason);
                self.kill_container(pod, runtime, &kill.id, &kill.name, &kill.message, grace, None).await;
                progress.changed = true;
            }
        }
        if !plan.reset.is_empty() {
            progress.changed = true;
            if !self.reset(pod, runtime, plan).await {
                progress.retry_in(RETRY);
            }
            return progress;
        }
        let mut sandbox_id = plan.sandbox_id.clone();
        let config = {
            let inputs = SandboxInputs {
                config: &self.kubelet.config,
                cgroups: &self.kubelet.cgroups,
                host_dns: &self.kubelet.host_dns,
            };
            sandbox::sandbox_config(pod, plan.attempt, &inputs)
        };
        let (sandbox_config, missing_dns) = match config {
            Ok(config) => config,
            Err(message) => {
                self.sandbox_failed(pod, &message);
                progress.retry_in(RETRY);
                return progress;
            }
        };
        if missing_dns && !self.missing_dns_told {
            self.missing_dns_told = true;
            let message = format!(
                "pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using {:?} policy. Falling back to \"Default\" policy.",
                pod.printed(),
                pod.spec().dns_policy.as_deref().unwrap_or("ClusterFirst")
            );
            self.kubelet.events.pod(pod, None, "Warning", "MissingClusterDNS", message);
        }
        let mut current = runtime.clone();
        if plan.create_sandbox {
            let handler = match self.runtime_handler(pod).await {
                Ok(handler) => handler,
                Err(message) => {
                    self.sandbox_failed(pod, &message);
                    progress.retry_in(RETRY);
                    return progress;
                }
            };
            match self.kubelet.runtime.run_pod_sandbox(sandbox_config.clone(), &handler).await {
                Ok(id) => sandbox_id = id,
                Err(e) => {
                    self.sandbox_failed(pod, &e.to_string());
                    progress.retry_in(RETRY);
                    return progress;
                }
            }
            progress.changed = true;
            // The pod's address is needed for what is started in it, and by whoever waits for the pod.
            match self.look_again().await {
                Ok(found) => current = (*found).clone(),
                Err(_) => {
                    progress.retry_in(RETRY_SOON);
                    return progress;
                }
            }
            // Its containers mostly run a moment later, and then that is the news (upstream sees both in one look at the runtime).
            let status = self.generate(pod, &current, false);
            self.handle.publish_unless_newer(status, SANDBOX_NEWS_DELAY);
        }
        let spec = pod.spec();
        let ephemeral: Vec<(Container, Option<String>)> = plan
            .start_ephemeral
            .iter()
            .map(|i| {
                let e = &pod::ephemeral_containers(spec)[*i];
                (pod::ephemeral_as_container(e), e.target_container_name.clone().filter(|t| !t.is_empty()))
            })
            .collect();
        let mut starts: Vec<(ContainerRef<'_>, Option<String>)> = Vec::new();
        for (container, target) in &ephemeral {
            starts.push((ContainerRef { kind: ContainerKind::Ephemeral, container }, target.clone()));
        }
        for i in &plan.start_init {
            starts.push((ContainerRef { kind: ContainerKind::Init, container: &pod::init_containers(spec)[*i] }, None));
        }
        for i in &plan.start {
            starts.push((ContainerRef { kind: ContainerKind::Regular, container: &spec.containers[*i] }, None));
        }
        let images = if starts.is_empty() { PodImages::default() } else { self.pod_images(pod, &sandbox_config).await };
        let place = Place { runtime: &current, sandbox_id: &sandbox_id, sandbox: &sandbox_config, images: &images };
        let mut to_resize = plan.resizes();
        for (reference, target) in starts {
            if reference.kind == ContainerKind::Regular && std::mem::take(&mut to_resize) {
                self.resize_in(pod, &current, plan, &mut progress).await;
            }
            let name = reference.container.name.clone();
            if let Some((left, error)) = self.backing_off(pod, reference, &current) {
                let before = self.reasons.insert(name, error);
                progress.back_off(left);
                progress.look_again = progress.look_again.or(told_soon(reference, before.as_ref(), &current));
                if reference.kind == ContainerKind::Init && !reference.is_sidecar() {
                    return progress;
                }
                continue;
            }
            match self.start(pod, reference, target, &place).await {
                Ok(()) => {
                    self.reasons.remove(&name);
                    progress.changed = true;
                }
                Err(error) => {
                    progress.retry_in(RETRY);
                    // A container that was made but did not start, or was ended at once, may be started again after its back-off.
                    progress.changed |= matches!(error.reason, "RunContainerError" | "PostStartHookError");
                    self.reasons.insert(name, error);
                    // What comes after an init container has to wait for it.
                    if reference.kind == ContainerKind::Init && !reference.is_sidecar() {
                        return progress;
                    }
                }
            }
        }
        if to_resize {
            self.resize_in(pod, &current, plan, &mut progress).await;
        }
        progress
    }

    async fn resize_in(&mut self, pod: &Pod, runtime: &RuntimePod, plan: &Actions, progress: &mut Progress) {
        if self.carry_out_resize(pod, runtime, plan).await {
            progress.changed = true;
        } else {
            progress.retry_in(RETRY);
        }
    }

    /// Removes all containers, and says whether that went well.
    async fn reset(&self, pod: &Pod, runtime: &RuntimePod, plan: &Actions) -> bool {
        let kubelet = &self.kubelet;
        for reset in &plan.reset {
            if reset.kill {
                self.kill_container(pod, runtime, &reset.id, &reset.name, "killing", Duration::ZERO, None).await;
            }
            if let Err(error) = kubelet.runtime.remove_container(&reset.id).await {
                tracing::debug!(pod = pod.name(), container = reset.name, %error, "a container could not be removed");
                return false;
            }
        }
        true
    }

    fn sandbox_failed(&self, pod: &Pod, message: &str) {
        let text = format!("Failed to create pod sandbox: {message}");
        self.kubelet.events.pod(pod, None, "Warning", "FailedCreatePodSandBox", text);
    }

    async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        let Some(name) = pod.spec().runtime_class_name.as_deref().filter(|n| !n.is_empty()) else {
            return Ok(String::new());
        };
        let classes: kube::Api<k8s_openapi::api::node::v1::RuntimeClass> = kube::Api::all(self.kubelet.client.clone());
        match classes.get_opt(name).await {
            Ok(Some(class)) => Ok(class.handler),
            Ok(None) => Err(format!("failed to get sandbox runtime: no runtime for {name:?} is configured")),
            Err(e) => Err(format!("failed to get sandbox runtime: {}", crate::api_message(&e))),
        }
    }

    /// The time still to wait before a container that has ended may start again.
    fn backing_off(
        &self,
        pod: &Pod,
        reference: ContainerRef<'_>,
        runtime: &RuntimePod,
    ) -> Option<(Duration, StartError)> {
        let container = reference.container;
        // The newest that has ended: one that was killed a moment ago still counts as running.
        let ended = runtime.containers.iter().find(|c| c.name == container.name && c.has_exited())?;
        let key = format!("{}_{}_{}", pod.uid(), container.name, crate::labels::container_hash(container));
        let at = Timestamp::from_nanosecond(i128::from(ended.finished_at)).unwrap_or_default();
        let now = Timestamp::now();
        let Some((left, whole)) = self.kubelet.crash_backoff.remaining(&key, at, now) else {
            self.kubelet.crash_backoff.next(&key, at, now);
            return None;
        };
        let printed = pod.printed();
        let message = format!("Back-off restarting failed container {} in pod {printed}", container.name);
        self.kubelet.events.pod(pod, Some(&reference.field_path()), "Warning", "BackOff", message);
        let whole = crate::config::GoDuration(whole);
        let text = format!("back-off {whole} restarting failed container={} pod={printed}", container.name);
        Some((left, StartError::new(CRASH_LOOP, text)))
    }

    async fn start(
        &mut self,
        pod: &Pod,
        reference: ContainerRef<'_>,
        target: Option<String>,
        place: &Place<'_>,
    ) -> Result<(), StartError> {
        let Place { runtime, sandbox_id, sandbox, .. } = *place;
        let kubelet = self.kubelet.clone();
        let container = reference.container;
        let field = reference.field_path();
        let event =
            |kind: &str, reason: &str, message: String| kubelet.events.pod(pod, Some(&field), kind, reason, message);

        let image_volumes = place.images.of(container).map_err(|failed| {
            failed.iter().for_each(|error| event("Warning", "Failed", format!("Error: {}", error.reason)));
            failed[failed.len() - 1].clone()
        })?;
        let wish = Wish {
            pod,
            field: Some(&field),
            requested: container.image.as_deref().unwrap_or_default(),
            policy: container.image_pull_policy.as_deref().unwrap_or("IfNotPresent"),
            sandbox,
            secrets: &place.images.secrets,
        };
        let image_ref = match kubelet.images.ensure(&wish).await {
            Ok(image_ref) => image_ref,
            Err(error) => {
                event("Warning", "Failed", format!("Error: {}", error.reason));
                return Err(error);
            }
        };
        let restart_count = match runtime.find(&container.name) {
            Some(before) => before.info.restart_count + 1,
            None => self.restart_count_without_container(pod, container, reference.kind),
        };
        let fail = |reason: &'static str, message: String| {
            event("Warning", "Failed", format!("Error: {message}"));
            StartError::new(reason, message)
        };
        let config =
            self.container_config(pod, reference, target, runtime, (image_ref, &image_volumes), restart_count).await;
        let config = config.map_err(|message| fail("CreateContainerConfigError", message))?;
        if let Some(path) =
            kubelet.runtime.is_real().then(|| sandbox::pod_log_dir(&kubelet.config, pod).join(&container.name))
        {
            std::fs::create_dir_all(&path).map_err(|e| {
                fail(
                    "CreateContainerError",
                    format!("create container log directory for container {} failed: {e}", container.name),
                )
            })?;
        }
        // An earlier try of the same attempt that was cut short must not be in the way.
        if let Some(stale) = runtime.find(&container.name).filter(|c| c.state == v1::ContainerState::Created) {
            let _ = kubelet.runtime.remove_container(&stale.id).await;
        }
        let created = kubelet.runtime.create_container(sandbox_id, config, sandbox.clone()).await;
        let id = created.map_err(|e| fail("CreateContainerError", e.message))?;
        event("Normal", "Created", "Container created".into());
        kubelet.runtime.start_container(&id).await.map_err(|e| fail("RunContainerError", e.message))?;
        event("Normal", "Started", "Container started".into());
        self.resize.started(pod, reference, &id);
        self.link_log(pod, &container.name, &id, restart_count);
        self.prune(pod, runtime, &container.name).await;

        let post_start = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
        if let Some(handler) = post_start {
            let pod_ip = runtime.ips().first().cloned().unwrap_or_default();
            if let Err(message) = hooks::run(&*kubelet.runtime, handler, container, &id, pod, &pod_ip).await {
                event("Warning", "FailedPostStartHook", "PostStartHook failed".into());
                tracing::debug!(pod = pod.name(), container = container.name, message, "a hook after the start failed");
                let grace =
                    Duration::from_secs(pod.spec().termination_grace_period_seconds.unwrap_or(30).max(0) as u64);
                self.kill_container(pod, runtime, &id, &container.name, "FailedPostStartHook", grace, None).await;
                return Err(StartError::new("PostStartHookError", message));
            }
        }
        Ok(())
    }

    /// After a new sandbox the containers of the old one may be gone; the log files still tell how often one was started.
    fn restart_count_without_container(&self, pod: &Pod, container: &Container, kind: ContainerKind) -> i32 {
        let status = self.handle.status();
        let list = match kind {
            ContainerKind::Init => &status.init_container_statuses,
            ContainerKind::Regular => &status.container_statuses,
            ContainerKind::Ephemeral => &status.ephemeral_container_statuses,
        };
        let told = pod::container_status(list, &container.name)
            .filter(|s| s.container_id.is_some())
            // A container that was removed for all to start anew has been counted then.
            .map(|s| s.restart_count + i32::from(!is_restarting(s)));
        let dir = sandbox::pod_log_dir(&self.kubelet.config, pod).join(&container.name);
        let logged = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.split('.').next()?.parse::<i32>().ok().map(|n| n + 1));
        logged.chain(told).max().unwrap_or(0)
    }

    /// `images` are what the runtime knows the container's image by, and those of the volumes it mounts.
    async fn container_config(
        &mut self,
        pod: &Pod,
        reference: ContainerRef<'_>,
        target: Option<String>,
        runtime: &RuntimePod,
        images: (String, &HashMap<String, String>),
        restart_count: i32,
    ) -> Result<v1::ContainerConfig, String> {
        let kubelet = self.kubelet.clone();
        let real = kubelet.runtime.is_real();
        let container = reference.container;
        let around = kubelet.surroundings(pod, runtime);
        let variables =
            if real { environment::variables(pod, container, &around, kubelet.lookup()).await? } else { Vec::new() };
        let name = with_default_tag(container.image.as_deref().unwrap_or_default());
        let image = kubelet.runtime.image_status(&name).await.ok().flatten().unwrap_or_default();
        let hosts_file =
            if real && !around.pod_ips.is_empty() { Some(self.write_hosts_file(pod, &around.pod_ips)?) } else { None };
        let target_id = match target {
            Some(name) => {
                let found = runtime.find(&name);
                Some(found.map(|c| c.id.clone()).ok_or_else(|| format!("unable to find target container {name}"))?)
            }
            None => None,
        };
        let none = HashMap::new();
        container_config::build(&container_config::Inputs {
            config: &kubelet.config,
            pod,
            container: reference,
            restart_count,
            image: &image,
            image_ref: images.0,
            variables,
            mounted: self.mounted.as_ref().unwrap_or(&none),
            image_volumes: images.1,
            hosts_file,
            target_id,
            memory_capacity: kubelet.machine.memory_bytes,
            cgroup_version: kubelet.cgroups.version(),
            real,
        })
    }

    fn write_hosts_file(&mut self, pod: &Pod, ips: &[String]) -> Result<PathBuf, String> {
        let path = self.kubelet.config.pod_dir(pod.uid()).join("etc-hosts");
        let host = if pod::is_host_network(pod) {
            std::fs::read_to_string("/etc/hosts").unwrap_or_default()
        } else {
            String::new()
        };
        let text = host_files::hosts_file(pod, ips, &self.kubelet.config.settings.cluster_domain, &host);
        if text != self.host_files || !path.exists() {
            // Written in place: running containers have the file itself mounted.
            std::fs::write(&path, &text).map_err(|e| format!("{}: {e}", path.display()))?;
            self.host_files = text;
        }
        Ok(path)
    }

    fn link_log(&self, pod: &Pod, container: &str, id: &str, restart_count: i32) {
        let Some(dir) = self.kubelet.config.container_log_links_dir.as_ref().filter(|_| self.kubelet.runtime.is_real())
        else {
            return;
        };
        let target =
            sandbox::pod_log_dir(&self.kubelet.config, pod).join(container).join(format!("{restart_count}.log"));
        let link = dir.join(crate::labels::log_link_name(pod, container, id));
        let made = std::fs::create_dir_all(dir).and_then(|()| std::os::unix::fs::symlink(target, link));
        if let Err(e) = made {
            tracing::debug!(pod = pod.name(), container, error = %e, "no link for log collectors");
        }
    }

    /// Removes all but the newest ended containers of a name, now that a newer one runs (upstream keeps one a container).
    async fn prune(&self, pod: &Pod, runtime: &RuntimePod, name: &str) {
        for old in runtime.containers.iter().filter(|c| c.name == name && c.has_exited()).skip(1) {
            self.remove_container(pod, old).await;
        }
    }

    pub(super) async fn remove_init_containers(&self, pod: &Pod, runtime: &RuntimePod, keep: Option<&str>) {
        for container in pod::init_containers(pod.spec()) {
            for old in runtime
                .containers
                .iter()
                .filter(|c| c.name == container.name && !c.is_running() && Some(c.id.as_str()) != keep)
            {
                self.remove_container(pod, old).await;
            }
        }
    }

    pub(super) async fn remove_container(&self, pod: &Pod, old: &crate::runtime_status::RuntimeContainer) {
        if let Err(error) = self.kubelet.runtime.remove_container(&old.id).await {
            tracing::debug!(pod = pod.name(), container = old.name, %error, "an ended container could not be removed");
            return;
        }
        if !self.kubelet.runtime.is_real() {
            return;
        }
        let log = std::path::Path::new(&old.log_path);
        if log.is_absolute() {
            let _ = std::fs::remove_file(log);
        }
        if let Some(dir) = &self.kubelet.config.container_log_links_dir {
            let _ = std::fs::remove_file(dir.join(crate::labels::log_link_name(pod, &old.name, &old.id)));
        }
    }

    /// The grace of a container that a probe has given up on.
    fn probe_grace(&self, pod: &Pod, name: &str, reason: KillReason) -> Duration {
        let found = pod::long_lived_containers(pod.spec()).find(|c| c.container.name == name);
        let probe = found.and_then(|c| match reason {
            KillReason::Liveness => c.container.liveness_probe.clone(),
            KillReason::Startup => c.container.startup_probe.clone(),
            _ => None,
        });
        let own = pod.spec().termination_grace_period_seconds.unwrap_or(30);
        Duration::from_secs(probe.and_then(|p| p.termination_grace_period_seconds).unwrap_or(own).max(0) as u64)
    }
}

fn is_restarting(status: &ContainerStatus) -> bool {
    let waiting = status.state.as_ref().and_then(|s| s.waiting.as_ref());
    waiting.is_some_and(|w| w.reason.as_deref() == Some(RESTARTING))
}

/// Upstream learns of a container's start and of its end one after the other. Where both came within one look of it, it syncs once more for
/// the second, and so tells of the back-off at once instead of at its end.
fn told_soon(reference: ContainerRef<'_>, before: Option<&StartError>, runtime: &RuntimePod) -> Option<Duration> {
    match before.map(|error| error.reason) {
        Some(CRASH_LOOP) => None,
        Some("PostStartHookError") => Some(RETRY_SOON),
        _ => {
            let ended = runtime.find(&reference.container.name)?;
            let lived = ended.finished_at - ended.started_at;
            (ended.started_at > 0 && lived < SHORT_LIFE_NANOS).then_some(SHORT_LIFE_TOLD)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_back_off_is_waited_for_whatever_else_has_failed() {
        let seconds = Duration::from_secs;
        let mut progress = Progress::default();
        assert_eq!(progress.retry(), None);
        progress.retry_in(RETRY);
        assert_eq!(progress.retry(), Some(RETRY));
        progress.back_off(seconds(40));
        progress.back_off(seconds(20));
        assert_eq!(progress.retry(), Some(seconds(20)));
    }
}
