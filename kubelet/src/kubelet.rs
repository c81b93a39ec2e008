//! The kubelet's parts and their life (upstream: `kubelet.go`): what all workers share, and the loop that follows the API's pods.

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
use crate::probes::Prober;
use crate::runtime_status::RuntimePod;
use crate::server;
use crate::static_pods;
use crate::status_manager;
use crate::volumes::token::Tokens;
use crate::{admission, labels};
use coxswain_client::events::EventRecorder;
use coxswain_client::{Event, Informers, Selection, Store};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

mod pod_handle;

pub use pod_handle::{PodHandle, Termination};

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
