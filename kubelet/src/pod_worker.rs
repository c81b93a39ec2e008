//! The life of one pod on this node (upstream: `pod_workers.go` and `SyncPod`, `SyncTerminatingPod`, `SyncTerminatedPod` of `kubelet.go`).
//!
//! A worker runs its pod until it has to end, ends its containers, cleans up, and waits for the object to go. The three parts follow each
//! other and never go back. Only the worker starts or stops anything of its pod, so nothing needs a lock.

mod ending;
mod pod_images;
mod resize;
mod starting;

use crate::actions::{self, Actions};
use crate::admission;
use crate::environment::Surroundings;
use crate::images::StartError;
use crate::kubelet::{Kubelet, PodHandle};
use crate::pod::{self, PodExt, now};
use crate::runtime_status::{self, RuntimeContainer, RuntimePod};
use crate::sandbox;
use crate::status;
use crate::volumes::{self, Mounted};
use crate::{probes, resources};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// After a failure a pod is tried again after this time (upstream: `backOffPeriod`), or sooner when the network is not ready.
const RETRY: Duration = Duration::from_secs(10);
const RETRY_SOON: Duration = Duration::from_secs(1);
/// Waits are lengthened by up to this part of themselves, so that pods that failed together are not tried again together.
const JITTER: f64 = 0.5;
const CRASH_LOOP: &str = "CrashLoopBackOff";
/// A back-off is only told of at the sync that ends it. That sync begins this much earlier, so that whoever polls can see it.
const BACK_OFF_SHOWN: Duration = Duration::from_secs(2);
/// Pods whose volumes are missing say so again at this interval (upstream: `podAttachAndMountTimeout`).
const MOUNT_TIMEOUT: Duration = Duration::from_secs(123);
const MOUNT_RETRY_MIN: Duration = Duration::from_millis(500);
/// No plan needs more rounds than containers; this only guards against a runtime whose answers contradict each other.
const ROUNDS_MAX: usize = 64;

pub async fn run(kubelet: Arc<Kubelet>, handle: Arc<PodHandle>) {
    let worker = Worker {
        host_files: String::new(),
        known: HashMap::new(),
        reasons: HashMap::new(),
        mounted: None,
        mount_failures: MountFailures::default(),
        volumes_at: None,
        resize: resize::Resize::default(),
        waited: false,
        linger: Duration::ZERO,
        prober_stop: CancellationToken::new(),
        probing: false,
        missing_dns_told: false,
        cgroup_ready: false,
        group_limits: None,
        kubelet,
        handle,
    };
    worker.live().await;
}

struct Worker {
    kubelet: Arc<Kubelet>,
    handle: Arc<PodHandle>,
    /// Containers that have ended, which the runtime need not be asked about again.
    known: HashMap<String, Arc<RuntimeContainer>>,
    /// Why containers could not be started.
    reasons: HashMap<String, StartError>,
    mounted: Option<HashMap<String, Mounted>>,
    mount_failures: MountFailures,
    /// When the volumes were brought up to date last.
    volumes_at: Option<Instant>,
    resize: resize::Resize,
    /// The present sync comes because its time has come.
    waited: bool,
    /// What is left then of the wait.
    linger: Duration,
    prober_stop: CancellationToken,
    probing: bool,
    missing_dns_told: bool,
    cgroup_ready: bool,
    /// What the pod's control group was last set to.
    group_limits: Option<resources::CgroupLimits>,
    /// The text last written as the pod's `/etc/hosts`.
    host_files: String,
}

#[derive(Default)]
struct MountFailures {
    since: Option<Instant>,
    wait: Duration,
}

/// What a round of syncing came to.
enum Synced {
    /// Nothing to do until something happens or the time has passed.
    Wait(Duration),
    /// The pod has to end.
    Ended,
}

impl Worker {
    async fn live(mut self) {
        if !self.handle.rejected.load(Ordering::Acquire) {
            self.sync_until_ended().await;
        }
        self.end().await;
        self.handle.finished.store(true, Ordering::Release);
        self.wait_for_removal().await;
        self.kubelet.pods.write().remove(&self.handle.uid);
    }

    async fn sync_until_ended(&mut self) {
        let mut termination = self.handle.termination();
        let handle = self.handle.clone();
        loop {
            if termination.borrow_and_update().requested {
                return;
            }
            let outcome = tokio::select! {
                biased;
                _ = termination.changed() => return,
                outcome = self.sync() => outcome,
            };
            let wait = match outcome {
                Synced::Ended => return,
                Synced::Wait(wait) => wait,
            };
            let until = tokio::time::Instant::now() + wait;
            loop {
                tokio::select! {
                    _ = termination.changed() => return,
                    _ = handle.woken() => {
                        if self.is_news().await {
                            break;
                        }
                    }
                    _ = tokio::time::sleep_until(until) => {
                        self.waited = true;
                        handle.dirty.store(true, Ordering::Release);
                        break;
                    }
                }
            }
        }
    }

    /// Whether there is a reason for another sync. That the runtime changed while the worker itself was changing it is none: the worker has
    /// seen it since, and another sync would show what the last one found out before its time.
    async fn is_news(&mut self) -> bool {
        if self.handle.asked.swap(false, Ordering::AcqRel) {
            return true;
        }
        let before = self.handle.seen.lock().clone();
        self.look().await.is_err() || crate::pleg::worth_a_sync(&before, &self.handle.seen.lock())
    }

    /// What the runtime holds of the pod now.
    async fn look(&mut self) -> Result<Arc<RuntimePod>, crate::cri::RuntimeError> {
        if !self.handle.dirty.swap(false, Ordering::AcqRel) {
            return Ok(self.handle.runtime());
        }
        let log_dir = sandbox::pod_log_dir(&self.kubelet.config, &self.handle.pod());
        match runtime_status::fetch(&*self.kubelet.runtime, &self.handle.uid, &log_dir, &mut self.known).await {
            Ok(found) => {
                let found = Arc::new(found);
                self.handle.set_runtime(found.clone());
                Ok(found)
            }
            Err(e) => {
                self.handle.dirty.store(true, Ordering::Release);
                Err(e)
            }
        }
    }

    async fn look_again(&mut self) -> Result<Arc<RuntimePod>, crate::cri::RuntimeError> {
        self.handle.dirty.store(true, Ordering::Release);
        self.look().await
    }

    fn generate(&self, pod: &Pod, runtime: &RuntimePod, terminal: bool) -> PodStatus {
        let actual = self.resize.still_in_force(pod, runtime);
        let in_force = self.resize.actuated.pod_in_force(pod, &actual);
        let host_ips = self.kubelet.node_ips.read().clone();
        status::generate(&status::Inputs {
            pod,
            old: &self.handle.status(),
            runtime,
            reasons: &self.reasons,
            terminal,
            host_ips: &host_ips,
            runtime_name: &self.kubelet.runtime_version.runtime_name,
            probes: &self.handle.probes,
            resize: &self.resize.conditions(),
            in_force: in_force.as_ref(),
            actual_resources: &actual,
        })
    }

    async fn sync(&mut self) -> Synced {
        self.allocate();
        let pod = self.handle.allocated_pod();
        let mut runtime = match self.look().await {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::debug!(pod = pod.name(), %error, "the runtime could not be asked");
                return Synced::Wait(RETRY_SOON);
            }
        };
        self.follow_resize(&pod, &runtime);
        let status = self.generate(&pod, &runtime, false);
        if pod::is_terminal(&status) {
            self.handle.publish(status);
            return Synced::Ended;
        }
        if let Some(message) = past_deadline(&pod, &status) {
            self.kubelet.events.pod(&pod, None, "Normal", "DeadlineExceeded", message);
            self.handle.publish(status);
            self.handle.terminate(None, Some(("DeadlineExceeded".into(), message.into())));
            return Synced::Ended;
        }
        self.handle.publish(status);

        let mut plan = self.plan(&pod, &runtime);
        let mut wait = jittered(self.sync_frequency());
        if (!plan.is_empty() || self.volumes_due())
            && let Err(retry) = self.prepare(&pod, &runtime, &plan).await
        {
            return Synced::Wait(retry);
        }
        if std::mem::take(&mut self.waited) && !plan.is_empty() {
            tokio::time::sleep(std::mem::take(&mut self.linger)).await;
        }
        if !self.probing {
            // Whatever runs already is probed, also after a restart of the kubelet.
            probes::start_all(&self.kubelet.prober, &self.handle, &self.prober_stop);
            self.probing = true;
        }
        for _ in 0..ROUNDS_MAX {
            if plan.is_empty() {
                break;
            }
            let before = self.handle.seen.lock().clone();
            let progress = self.carry_out(&pod, &runtime, &plan).await;
            wait = jittered(progress.retry().unwrap_or(self.sync_frequency()).min(self.sync_frequency()));
            self.linger = if progress.is_backing_off() { BACK_OFF_SHOWN.min(wait) } else { Duration::ZERO };
            wait -= self.linger;
            if let Some(soon) = progress.look_again {
                (wait, self.linger) = (soon, Duration::ZERO);
            }
            runtime = match self.look_again().await {
                Ok(runtime) => runtime,
                Err(_) => return Synced::Wait(RETRY_SOON),
            };
            // What a round has merely found out, such as a back-off, is told at the beginning of the next sync: until then the pod's last
            // event is the news. Each round that changed something, or during which something changed, is followed by another.
            if !progress.changed && !crate::pleg::worth_a_sync(&before, &self.handle.seen.lock()) {
                break;
            }
            self.follow_resize(&pod, &runtime);
            let status = self.generate(&pod, &runtime, false);
            let ended = pod::is_terminal(&status);
            self.handle.publish(status);
            if ended {
                return Synced::Ended;
            }
            plan = self.plan(&pod, &runtime);
        }
        if self.resize_deferred() {
            wait = wait.min(RETRY);
        }
        if let Some(left) = until_deadline(&pod, &self.handle.status()) {
            wait = wait.min(left);
        }
        Synced::Wait(wait)
    }

    /// What to do next, after the status was published.
    fn plan(&self, pod: &Pod, runtime: &RuntimePod) -> Actions {
        let status = self.handle.status();
        if pod::condition(&status, status::ALL_RESTARTING).is_some_and(|c| c.status == "True") {
            return actions::compute_reset(pod, runtime);
        }
        actions::compute(pod, runtime, &self.handle.probes, &self.resize.actuated)
    }

    /// Every pod looks after itself at this interval.
    fn sync_frequency(&self) -> Duration {
        self.kubelet.config.settings.sync_frequency.0
    }

    fn volumes_due(&self) -> bool {
        self.volumes_at.is_some_and(|at| at.elapsed() >= self.sync_frequency())
    }

    /// Makes ready what containers need: control group, directories, volumes. An error is the time to wait.
    async fn prepare(&mut self, pod: &Pod, runtime: &RuntimePod, plan: &Actions) -> Result<(), Duration> {
        let kubelet = self.kubelet.clone();
        let starts = plan.create_sandbox
            || !plan.start.is_empty()
            || !plan.start_init.is_empty()
            || !plan.start_ephemeral.is_empty();
        if !kubelet.runtime.is_real() {
            self.mounted.get_or_insert_default();
            return Ok(());
        }
        if starts && !pod::is_host_network(pod) {
            let error = kubelet.network_error.read().clone();
            if let Some(error) = error {
                kubelet.events.pod(pod, None, "Warning", "NetworkNotReady", format!("network is not ready: {error}"));
                return Err(RETRY_SOON);
            }
        }
        if starts && !self.cgroup_ready {
            let settings = &kubelet.config.settings;
            let period = settings.cpu_cfs_quota_period.0.as_micros() as i64;
            let limits = resources::pod_cgroup_limits(pod, settings.cpu_cfs_quota, period, settings.pod_pids_limit);
            if let Err(e) = kubelet.cgroups.ensure_pod(pod, &limits) {
                let message = format!("unable to ensure pod container exists: {e}");
                kubelet.events.pod(pod, None, "Warning", "FailedCreatePodContainer", message);
                return Err(RETRY);
            }
            self.group_limits = Some(limits);
            self.cgroup_ready = true;
            let dir = kubelet.config.pod_dir(pod.uid());
            for sub in ["volumes", "plugins", "containers"] {
                if let Err(e) = std::fs::create_dir_all(dir.join(sub)) {
                    kubelet.events.pod(
                        pod,
                        None,
                        "Warning",
                        "Failed",
                        format!("error making pod data directories: {e}"),
                    );
                    return Err(RETRY);
                }
            }
            if let Err(e) = std::fs::create_dir_all(sandbox::pod_log_dir(&kubelet.config, pod)) {
                tracing::warn!(pod = pod.name(), error = %e, "the pod's log directory could not be made");
            }
        }
        if !starts && self.mounted.is_some() && !self.volumes_due() {
            return Ok(());
        }
        let around = kubelet.surroundings(pod, runtime);
        self.set_up_volumes(pod, &around).await
    }

    async fn set_up_volumes(&mut self, pod: &Pod, around: &Surroundings) -> Result<(), Duration> {
        let kubelet = self.kubelet.clone();
        let context = volumes::Context {
            config: &kubelet.config,
            pod,
            lookup: kubelet.lookup(),
            around,
            tokens: &kubelet.tokens,
            client: &kubelet.client,
            memory_capacity: kubelet.machine.memory_bytes,
        };
        match volumes::set_up_all(&context).await {
            Ok(mounted) => {
                self.mounted = Some(mounted);
                self.mount_failures = MountFailures::default();
                self.volumes_at = Some(Instant::now());
                Ok(())
            }
            Err(failed) => Err(self.tell_mount_failures(pod, &failed)),
        }
    }

    /// Containers that run already keep their volumes; a source that has gone since is told, and tried again.
    fn tell_mount_failures(&mut self, pod: &Pod, failed: &BTreeMap<String, String>) -> Duration {
        let events = &self.kubelet.events;
        let unprocessed: Vec<_> = failed.iter().filter(|(_, m)| m.starts_with(volumes::UNPROCESSED)).collect();
        if !unprocessed.is_empty() {
            // These are not even tried, so nothing is waited for.
            let names = unprocessed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ");
            let unmounted = failed.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
            let messages: Vec<&str> = unprocessed.iter().map(|(_, message)| message.as_str()).collect();
            let message = match messages.as_slice() {
                [one] => one.to_string(),
                all => format!("[{}]", all.join(", ")),
            };
            let text = format!(
                "Unable to attach or mount volumes: unmounted volumes=[{unmounted}], unattached volumes=[], failed to process volumes=[{names}]: {message}"
            );
            events.pod(pod, None, "Warning", "FailedMount", text);
        }
        for (name, message) in failed.iter().filter(|(_, m)| !m.starts_with(volumes::UNPROCESSED)) {
            events.pod(
                pod,
                None,
                "Warning",
                "FailedMount",
                format!("MountVolume.SetUp failed for volume {name:?} : {message}"),
            );
        }
        let failures = &mut self.mount_failures;
        let since = *failures.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= MOUNT_TIMEOUT {
            let names: Vec<&str> = failed.keys().map(String::as_str).collect();
            let message = format!(
                "Unable to attach or mount volumes: unmounted volumes=[{}], unattached volumes=[], failed to process volumes=[]: context deadline exceeded",
                names.join(" ")
            );
            events.pod(pod, None, "Warning", "FailedMount", message);
            failures.since = Some(Instant::now());
        }
        if !unprocessed.is_empty() {
            return jittered(RETRY);
        }
        failures.wait = (failures.wait * 2).clamp(MOUNT_RETRY_MIN, MOUNT_TIMEOUT);
        failures.wait
    }

    /// A status of the phase `Failed` that the kubelet itself decided on.
    fn with_failure(
        &self,
        pod: &Pod,
        runtime: &RuntimePod,
        mut status: PodStatus,
        failure: Option<(String, String)>,
    ) -> PodStatus {
        let Some((reason, message)) = failure else { return status };
        status.phase = Some("Failed".into());
        status.reason = Some(reason.clone());
        status.message = Some(message.clone());
        let disrupted = match reason.as_str() {
            "Evicted" => Some(message.clone()),
            admission::PREEMPTING => Some("Pod was preempted by Kubelet to accommodate a critical pod.".to_string()),
            _ => None,
        };
        if let Some(message) = disrupted {
            let condition = k8s_openapi::api::core::v1::PodCondition {
                type_: "DisruptionTarget".into(),
                status: "True".into(),
                reason: Some("TerminationByKubelet".into()),
                message: Some(message),
                observed_generation: pod.metadata.generation,
                last_transition_time: Some(now()),
                last_probe_time: None,
            };
            let conditions = status.conditions.get_or_insert_default();
            conditions.retain(|c| c.type_ != "DisruptionTarget");
            conditions.push(condition);
        }
        let disruption = status.conditions.iter().flatten().find(|c| c.type_ == "DisruptionTarget").cloned();
        let mut old = (*self.handle.status()).clone();
        if let Some(disruption) = disruption
            && pod::condition(&old, "DisruptionTarget").is_none()
        {
            old.conditions.get_or_insert_default().push(disruption);
        }
        status::set_conditions(
            &status::Inputs {
                pod,
                old: &old,
                runtime,
                reasons: &self.reasons,
                terminal: true,
                host_ips: &[],
                runtime_name: "",
                probes: &self.handle.probes,
                resize: &[],
                in_force: None,
                actual_resources: &HashMap::new(),
            },
            &mut status,
        );
        status
    }
}

fn jittered(wait: Duration) -> Duration {
    wait + wait.mul_f64(rand::random_range(0.0..JITTER))
}

const DEADLINE_MESSAGE: &str = "Pod was active on the node longer than the specified deadline";

fn past_deadline(pod: &Pod, status: &PodStatus) -> Option<&'static str> {
    until_deadline(pod, status).filter(|left| left.is_zero()).map(|_| DEADLINE_MESSAGE)
}

fn until_deadline(pod: &Pod, status: &PodStatus) -> Option<Duration> {
    let deadline = pod.spec().active_deadline_seconds?;
    let started = status.start_time.as_ref()?;
    Some(Duration::from_secs((deadline - crate::kubelet::seconds_since(started)).max(0) as u64))
}
