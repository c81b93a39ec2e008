//! The kubelet's parts and their life (upstream: `kubelet.go`): what all workers share, and the loop that follows the API's pods.

use crate::allocation::{self, Allocation};
use crate::backoff::Backoffs;
use crate::cgroups::{Cgroups, Driver};
use crate::config::Config;
use crate::cri::{Runtime, v1};
use crate::environment::{Lookup, Surroundings};
use crate::events::Events;
use crate::eviction;
use crate::garbage;
use crate::host_files;
use crate::images::Images;
use crate::machine::Machine;
use crate::node;
use crate::objects::Objects;
use crate::pleg;
use crate::pod::{self, PodExt};
use crate::pod_worker;
use crate::probes::{Prober, Results};
use crate::runtime_status::RuntimePod;
use crate::server;
use crate::static_pods;
use crate::status_manager;
use crate::volumes::token::Tokens;
use crate::{admission, labels};
use coxswain_client::events::EventRecorder;
use coxswain_client::{Event, Informers, Selection, Store};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus, Service};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

const CRASH_BACKOFF_INITIAL: Duration = Duration::from_secs(10);
const CRASH_BACKOFF_MAX: Duration = Duration::from_secs(300);
const RUNTIME_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("preparing the directories of the kubelet: {0}")]
    Directories(std::io::Error),
    #[error("preparing the control groups of pods: {0}")]
    Cgroups(std::io::Error),
    #[error("running the kubelet's server: {0}")]
    Server(String),
}

/// What workers, probes, server and node status share. Made once; its parts guard themselves.
pub struct Kubelet {
    pub config: Config,
    pub client: kube::Client,
    pub runtime: Arc<dyn Runtime>,
    pub runtime_version: v1::VersionResponse,
    pub events: Events,
    pub objects: Objects,
    pub tokens: Tokens,
    pub images: Images,
    pub cgroups: Cgroups,
    pub machine: Machine,
    pub host_dns: v1::DnsConfig,
    pub prober: Arc<Prober>,
    pub crash_backoff: Backoffs,
    pub node_ips: RwLock<Vec<String>>,
    /// This node as the API has it.
    pub node: Store<Node>,
    /// This node's pods as the API has them, mirrors included.
    pub api_pods: Store<Pod>,
    pub pods: RwLock<HashMap<String, Arc<PodHandle>>>,
    /// Held while it is decided whether there is room for a pod.
    pub admitting: Mutex<()>,
    /// Whether the runtime's network is ready, and why not.
    pub network_error: RwLock<Option<String>>,
    pub pressure: RwLock<eviction::Pressure>,
    pub shutdown: CancellationToken,
}

impl Kubelet {
    pub fn handle(&self, uid: &str) -> Option<Arc<PodHandle>> {
        self.pods.read().get(uid).cloned()
    }

    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<PodHandle>> {
        let pods = self.pods.read();
        pods.values()
            .find(|h| {
                let pod = h.pod();
                pod.name() == name && pod.namespace() == namespace
            })
            .cloned()
    }

    pub fn handles(&self) -> Vec<Arc<PodHandle>> {
        self.pods.read().values().cloned().collect()
    }

    pub fn lookup(&self) -> &dyn Lookup {
        &self.objects
    }

    pub fn node_object(&self) -> Option<Arc<Node>> {
        self.node.get("", &self.config.node_name)
    }

    pub fn allocatable(&self) -> crate::resources::ResourceList {
        node::allocatable(&self.config, &self.machine)
    }

    pub fn surroundings(&self, pod: &Pod, runtime: &RuntimePod) -> Surroundings {
        let host_ips = self.node_ips.read().clone();
        let mut pod_ips = runtime.ips();
        if pod::is_host_network(pod) && pod_ips.is_empty() {
            pod_ips = host_ips.clone();
        }
        Surroundings { node_name: self.config.node_name.clone(), host_ips, pod_ips, allocatable: self.allocatable() }
    }
}

/// Why a pod has to end, and how.
#[derive(Clone, Debug, Default)]
pub struct Termination {
    pub requested: bool,
    /// Shorter than the pod's own, as an eviction may want it.
    pub grace: Option<Duration>,
    /// Reason and message of the phase `Failed` for pods that the kubelet itself ends.
    pub failure: Option<(String, String)>,
    /// The object is gone from the API.
    pub removed: bool,
}

/// What others know of a pod's worker, and how they reach it.
pub struct PodHandle {
    pub uid: String,
    pod: RwLock<Arc<Pod>>,
    /// What the pod was granted, while it asks for something else.
    allocation: RwLock<Option<Allocation>>,
    /// The status to be published. Its watchers are the status sender and the probes.
    status: watch::Sender<Arc<PodStatus>>,
    wake: Notify,
    /// The runtime's state may differ from what the worker saw last.
    pub dirty: AtomicBool,
    /// Something other than the runtime wants the pod looked at.
    pub asked: AtomicBool,
    pub probes: Results,
    termination: watch::Sender<Termination>,
    runtime: RwLock<Arc<RuntimePod>>,
    /// Ids and states of the pod's sandboxes and containers as the worker saw them, for the lifecycle generator to compare.
    pub seen: Mutex<BTreeMap<String, i32>>,
    /// The pod's containers are gone and its object may go too.
    pub may_be_deleted: watch::Sender<bool>,
    /// Never started here, because the node did not admit it.
    pub rejected: AtomicBool,
    /// The worker has ended its containers.
    pub finished: AtomicBool,
}

impl PodHandle {
    pub fn new(pod: Arc<Pod>) -> Self {
        let status = Arc::new(pod.status().clone());
        let handle = PodHandle {
            uid: pod.uid().to_string(),
            pod: RwLock::new(pod.clone()),
            allocation: RwLock::new(Allocation::recovered(&pod)),
            status: watch::Sender::new(status),
            wake: Notify::new(),
            dirty: AtomicBool::new(true),
            asked: AtomicBool::new(false),
            probes: Results::default(),
            termination: watch::Sender::new(Termination::default()),
            runtime: RwLock::default(),
            seen: Mutex::default(),
            may_be_deleted: watch::Sender::new(false),
            rejected: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        };
        handle.update(pod);
        handle
    }

    pub fn pod(&self) -> Arc<Pod> {
        self.pod.read().clone()
    }

    /// The pod with the resources it was granted.
    pub fn allocated_pod(&self) -> Arc<Pod> {
        let pod = self.pod();
        allocation::granted(pod, self.allocation.read().as_ref())
    }

    pub fn allocation(&self) -> Option<Allocation> {
        self.allocation.read().clone()
    }

    /// The pod's wish is granted.
    pub fn allocate(&self) {
        *self.allocation.write() = None;
    }

    pub fn status(&self) -> Arc<PodStatus> {
        self.status.borrow().clone()
    }

    pub fn status_changes(&self) -> watch::Receiver<Arc<PodStatus>> {
        self.status.subscribe()
    }

    pub fn publish(&self, status: PodStatus) {
        self.status.send_if_modified(|present| {
            let changed = **present != status;
            if changed {
                *present = Arc::new(status);
            }
            changed
        });
    }

    /// Publishes the status if nothing newer comes up within `wait`: what is about to change need not be told.
    pub fn publish_unless_newer(self: &Arc<Self>, status: PodStatus, wait: Duration) {
        let (handle, before) = (self.clone(), self.status());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            if Arc::ptr_eq(&handle.status(), &before) {
                handle.publish(status);
            }
        });
    }

    /// Makes the status known once more, as if it had changed.
    pub fn tell_again(&self) {
        self.status.send_modify(|_| {});
    }

    pub fn runtime(&self) -> Arc<RuntimePod> {
        self.runtime.read().clone()
    }

    pub fn set_runtime(&self, runtime: Arc<RuntimePod>) {
        let seen = runtime
            .sandboxes
            .iter()
            .map(|s| (s.id.clone(), s.state))
            .chain(runtime.containers.iter().map(|c| (c.id.clone(), c.state as i32)))
            .collect();
        *self.seen.lock() = seen;
        *self.runtime.write() = runtime;
    }

    /// A newer version of the object. Older ones, which a fresh list may bring after a patch's answer, are ignored.
    pub fn update(&self, pod: Arc<Pod>) {
        let version = |p: &Pod| p.metadata.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        let matters = {
            let mut present = self.pod.write();
            if version(&pod) < version(&present) {
                return;
            }
            let matters = concerns_worker(&present, &pod);
            if matters {
                let held = Allocation::of(&present);
                if !held.is_asked_by(&pod) {
                    self.allocation.write().get_or_insert(held);
                }
            }
            *present = pod.clone();
            matters
        };
        if pod.metadata.deletion_timestamp.is_some() {
            self.terminate(Some(pod::grace_period(&pod)), None);
        }
        if matters {
            self.wake();
        }
    }

    /// Asks the worker to look at the pod.
    pub fn wake(&self) {
        self.asked.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Tells the worker that the runtime holds something else than it saw last.
    pub fn runtime_changed(&self) {
        self.dirty.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Asks for the pod's end. A shorter grace period than before takes effect at once; a longer one never does.
    pub fn terminate(&self, grace: Option<Duration>, failure: Option<(String, String)>) {
        self.termination.send_if_modified(|t| {
            let shorter = match (grace, t.grace) {
                (Some(new), Some(old)) => new < old,
                (Some(_), None) => true,
                (None, _) => false,
            };
            let changed = !t.requested || shorter;
            t.requested = true;
            if shorter {
                t.grace = grace;
            }
            if t.failure.is_none() {
                t.failure = failure;
            }
            changed
        });
        self.wake();
    }

    pub fn removed(&self) {
        let grace = pod::grace_period(&self.pod());
        self.terminate(Some(grace), None);
        self.termination.send_modify(|t| t.removed = true);
        self.wake();
    }

    pub fn termination(&self) -> watch::Receiver<Termination> {
        self.termination.subscribe()
    }
}

/// Whether a newer version of a pod is more than the echo of the kubelet's own status. An echo must not make a worker try again at once
/// what has just failed.
fn concerns_worker(old: &Pod, new: &Pod) -> bool {
    let (a, b) = (&old.metadata, &new.metadata);
    let foreign = |pod: &Pod| {
        let conditions = pod.status().conditions.iter().flatten();
        let others = conditions.filter(|c| !crate::status::OWNED_CONDITIONS.contains(&c.type_.as_str()));
        others.map(|c| (c.type_.clone(), c.status.clone())).collect::<Vec<_>>()
    };
    a.generation != b.generation
        || a.deletion_timestamp != b.deletion_timestamp
        || a.deletion_grace_period_seconds != b.deletion_grace_period_seconds
        || a.labels != b.labels
        || a.annotations != b.annotations
        || pod::is_terminal(old.status()) != pod::is_terminal(new.status())
        || foreign(old) != foreign(new)
}

/// Runs a kubelet until `shutdown`, when it leaves its pods running, as upstream does.
pub async fn run(
    config: Config,
    client: kube::Client,
    runtime: Arc<dyn Runtime>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let real = runtime.is_real();
    if real {
        for dir in [config.root_dir.clone(), config.pods_dir(), config.pod_logs_root()] {
            std::fs::create_dir_all(&dir).map_err(Error::Directories)?;
        }
    }
    let Some(version) = wait_for_runtime(&*runtime, &shutdown).await else { return Ok(()) };
    let driver = cgroup_driver(&config, &*runtime).await;
    let machine = if real { Machine::detect() } else { crate::hollow::machine() };
    let cgroups = Cgroups::detect(driver, &config.settings.cgroup_root, real && config.settings.cgroups_per_qos);
    let offered = node::allocatable(&config, &machine);
    cgroups
        .prepare(
            offered.get("cpu").map_or(0, crate::resources::milli_value),
            offered.get("memory").map(crate::resources::value),
        )
        .map_err(Error::Cgroups)?;

    let events = Events::new(EventRecorder::new(client.clone(), "kubelet", Some(&config.node_name)), &config.node_name);
    let informers = Informers::new(client.clone());
    // Hollow nodes start nothing that could read the addresses of services.
    let services: Store<Service> = if real { informers.informer::<Service>().store() } else { Store::new() };
    let node_informer =
        informers.informer_with::<Node>(Selection::fields(format!("metadata.name={}", config.node_name)));
    let pod_informer = informers.informer_with::<Pod>(Selection::fields(format!("spec.nodeName={}", config.node_name)));
    let crash_max = config.settings.crash_loop_back_off.max_container_restart_period.map_or(CRASH_BACKOFF_MAX, |d| d.0);
    let kubelet = Arc::new(Kubelet {
        objects: Objects::new(client.clone(), services),
        images: Images::new(&config, runtime.clone(), events.clone()),
        prober: Arc::new(Prober {
            runtime: runtime.clone(),
            events: events.clone(),
            started: tokio::time::Instant::now(),
        }),
        host_dns: if real { host_files::read_resolv_conf(&config.settings.resolv_conf) } else { Default::default() },
        node_ips: RwLock::new(node::addresses(&config)),
        node: node_informer.store(),
        api_pods: pod_informer.store(),
        crash_backoff: Backoffs::new(CRASH_BACKOFF_INITIAL.min(crash_max), crash_max),
        tokens: Tokens::default(),
        pods: RwLock::default(),
        admitting: Mutex::new(()),
        network_error: RwLock::new(None),
        pressure: RwLock::default(),
        runtime_version: version,
        shutdown: shutdown.clone(),
        config,
        client,
        runtime,
        events,
        cgroups,
        machine,
    });
    // In a node's own words its start comes first.
    kubelet.events.node("Normal", "Starting", "Starting kubelet.");

    let listening = if kubelet.config.settings.enable_server && real {
        Some(server::start(kubelet.clone()).await.map_err(Error::Server)?)
    } else {
        None
    };
    tokio::spawn(node::run(kubelet.clone(), listening));
    pod_informer.synced().await;
    let held = pods_in_runtime(&kubelet).await;
    let (for_static, held_static) = (kubelet.clone(), held.clone());
    tokio::spawn(static_pods::run(kubelet.clone(), move |pod| add(&for_static, pod, &held_static)));
    tokio::spawn(pleg::run(kubelet.clone()));
    if real {
        tokio::spawn(garbage::run(kubelet.clone()));
        tokio::spawn(eviction::run(kubelet.clone()));
    }

    let mut subscription = pod_informer.subscribe();
    // Pods that run already were admitted by an earlier kubelet on this node; they go before the new ones.
    let mut first: Vec<Arc<Pod>> = pod_informer.store().list();
    first.sort_by_key(|p| (!held.contains(p.uid()), !pod::is_critical(p), p.metadata.creation_timestamp.clone()));
    for pod in first {
        add(&kubelet, pod, &held);
    }
    loop {
        let event = tokio::select! {
            event = subscription.next() => event,
            _ = shutdown.cancelled() => break,
        };
        match event {
            Some(Event::Added(pod)) => add(&kubelet, pod, &held),
            Some(Event::Updated { old, new }) => {
                // Deleted and created again under the same name between two looks.
                if old.uid() != new.uid()
                    && let Some(handle) = kubelet.handle(old.uid())
                {
                    handle.removed();
                }
                add(&kubelet, new, &held);
            }
            Some(Event::Deleted(pod)) if pod::is_mirror(&pod) => {
                // A static pod cannot be deleted through the API: its mirror comes back.
                if let Some(handle) = kubelet.find(pod.namespace(), pod.name()) {
                    handle.tell_again();
                }
            }
            Some(Event::Deleted(pod)) => {
                if let Some(handle) = kubelet.handle(pod.uid()) {
                    handle.update(pod);
                    handle.removed();
                }
            }
            None => break,
        }
    }
    informers.stop();
    Ok(())
}

async fn wait_for_runtime(runtime: &dyn Runtime, shutdown: &CancellationToken) -> Option<v1::VersionResponse> {
    let mut told = false;
    loop {
        match runtime.version().await {
            Ok(version) => return Some(version),
            Err(error) if !told => {
                tracing::warn!(%error, "the container runtime does not answer yet");
                told = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            _ = tokio::time::sleep(RUNTIME_WAIT) => {}
            _ = shutdown.cancelled() => return None,
        }
    }
}

/// The runtime knows best which driver it uses; one that cannot tell is taken to use what is configured.
async fn cgroup_driver(config: &Config, runtime: &dyn Runtime) -> Driver {
    let told = runtime.runtime_config().await.ok().and_then(|c| c.linux).map(|l| l.cgroup_driver);
    match told {
        Some(driver) if driver == v1::CgroupDriver::Systemd as i32 => Driver::Systemd,
        Some(_) => Driver::Cgroupfs,
        None if config.settings.cgroup_driver == "systemd" => Driver::Systemd,
        None => Driver::Cgroupfs,
    }
}

/// Uids of pods the runtime holds anything of.
async fn pods_in_runtime(kubelet: &Kubelet) -> HashSet<String> {
    let mut uids = HashSet::new();
    for sandbox in kubelet.runtime.list_pod_sandboxes(None).await.unwrap_or_default() {
        uids.extend(sandbox.labels.get(labels::POD_UID).cloned());
    }
    uids
}

/// A pod of the API: a new one gets a worker, a known one's worker learns of the change.
fn add(kubelet: &Arc<Kubelet>, pod: Arc<Pod>, held: &HashSet<String>) {
    if let Some(handle) = kubelet.handle(pod.uid()) {
        handle.update(pod);
        return;
    }
    if pod::is_mirror(&pod) {
        if pod.metadata.deletion_timestamp.is_some()
            && let Some(handle) = kubelet.find(pod.namespace(), pod.name())
        {
            handle.tell_again();
        }
        return;
    }
    let handle = Arc::new(PodHandle::new(pod.clone()));
    let is_new =
        !held.contains(pod.uid()) && pod.metadata.deletion_timestamp.is_none() && !pod::is_terminal(pod.status());
    let deciding = kubelet.admitting.lock();
    if is_new && let Err(rejection) = admission::admit(kubelet, &pod) {
        kubelet.events.pod(&pod, None, "Warning", &rejection.reason, rejection.message.clone());
        handle.rejected.store(true, Ordering::Release);
        handle.publish(admission::rejected_status(&pod, &rejection));
    }
    kubelet.pods.write().insert(pod.uid().to_string(), handle.clone());
    drop(deciding);
    tokio::spawn(status_manager::run(kubelet.clone(), handle.clone()));
    tokio::spawn(pod_worker::run(kubelet.clone(), handle));
}

/// The age of a deletion or start, for deadlines.
pub fn seconds_since(time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time) -> i64 {
    Timestamp::now().as_second() - time.0.as_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(extra: serde_json::Value) -> Arc<Pod> {
        let mut value =
            serde_json::json!({"metadata": {"name": "p", "uid": "u", "generation": 1, "resourceVersion": "5"}});
        for (name, part) in extra.as_object().unwrap() {
            for (key, v) in part.as_object().unwrap() {
                value[name][key] = v.clone();
            }
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[tokio::test]
    async fn an_echo_of_the_own_status_wakes_nobody() {
        let handle = PodHandle::new(pod(serde_json::json!({})));
        let woken =
            async |handle: &PodHandle| tokio::time::timeout(Duration::from_millis(1), handle.woken()).await.is_ok();
        let condition = |kind: &str| serde_json::json!({"conditions": [{"type": kind, "status": "True"}]});
        handle.update(pod(serde_json::json!({"metadata": {"resourceVersion": "6"}, "status": condition("Ready")})));
        assert!(!woken(&handle).await);
        handle.update(pod(
            serde_json::json!({"metadata": {"resourceVersion": "7"}, "status": condition("example.com/gate")}),
        ));
        assert!(woken(&handle).await);
        handle.update(pod(serde_json::json!({"metadata": {"resourceVersion": "3", "generation": 9}})));
        assert!(!woken(&handle).await && handle.pod().generation() == 1);
    }

    #[test]
    fn a_grace_period_can_only_become_shorter() {
        let handle = PodHandle::new(pod(serde_json::json!({})));
        let grace = |seconds| Some(Duration::from_secs(seconds));
        handle.terminate(grace(30), None);
        handle.terminate(grace(60), None);
        assert_eq!(handle.termination().borrow().grace, grace(30));
        handle.terminate(grace(1), None);
        assert_eq!(handle.termination().borrow().grace, grace(1));
    }
}
