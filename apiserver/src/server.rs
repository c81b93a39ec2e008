//! The server as a whole: made of its parts, started, served on a socket or called in process
//! (upstream: `kube-apiserver/app/server.go` and `genericapiserver`).

mod api_services;
pub mod bootstrap;
pub mod certificates;
mod coalesced;
pub mod conditions;
pub mod custom;
pub mod identity;
pub mod listen;
pub mod objects;

use crate::admission;
use crate::authentication::{self, Authentication, ConfigError};
use crate::authorization::{self, Authorization};
use crate::cache::Feed;
use crate::connect::{Dialer, KubeletConfig};
use crate::flow_control::FlowControl;
use crate::flow_control::in_flight::InFlight;
use crate::front::service::InProcess;
use crate::front::{Caller, Flow, Front};
use crate::health::Health;
use crate::objects::Objects;
use crate::registry::allocators::{ServiceNetwork, range::NodePorts};
use crate::registry::builtin;
use crate::registry::pipeline::Pipeline;
use crate::request::User;
use crate::resources::{Index, Resources, Served};
use crate::store::{Layout, Store};
use coxswain_api::Status;
use coxswain_api::catalogue::{self, ResourceType};
use coxswain_api::features::Feature;
use coxswain_storage::Storage;
use objects::ServerObjects;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// `--endpoint-reconciler-type`: how the endpoints of the `kubernetes` Service are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointReconciler {
    /// The servers that say that they are alive.
    Lease,
    /// As many as `--apiserver-count` says.
    MasterCount(usize),
    /// They are somebody else's business.
    None,
}

/// What upstream's flags say. The defaults are upstream's.
#[derive(Clone, Debug)]
pub struct Config {
    pub authentication: authentication::Config,
    pub authorization: authorization::Config,
    pub admission: admission::Config,
    /// `--service-cluster-ip-range`
    pub service_cluster_ip_range: String,
    /// `--service-node-port-range`: the first port and the last.
    pub service_node_port_range: (u16, u16),
    /// `--advertise-address`: where the endpoints of the `kubernetes` service point.
    pub advertise_address: IpAddr,
    /// `--secure-port`
    pub secure_port: u16,
    /// `--runtime-config`: `api/all`, `api/beta`, `group/version` or `group/version/resource`, and whether it is served.
    pub runtime_config: Vec<(String, bool)>,
    /// `--max-requests-inflight` and `--max-mutating-requests-inflight`
    pub requests_in_flight_max: usize,
    pub mutating_requests_in_flight_max: usize,
    /// `--enable-priority-and-fairness`: the sum of both is shared by the priority levels.
    pub priority_and_fairness: bool,
    /// `--request-timeout`
    pub request_timeout: Duration,
    pub elsewhere: Vec<Elsewhere>,
    /// `--goaway-chance`
    pub goaway_chance: f64,
    /// Every flag with its value, for `/flagz`.
    pub flags: Vec<(String, String)>,
    /// `--profiling`
    pub profiling: bool,
    pub kubelet: KubeletConfig,
    pub endpoint_reconciler: EndpointReconciler,
    /// The name of this host, by which the server is known among those of the cluster; none to be no one.
    pub hostname: Option<String>,
    /// How objects lie in the store.
    pub layout: Layout,
    /// `--etcd-healthcheck-timeout` and `--etcd-readycheck-timeout`: how long the store may take to answer.
    pub storage_health_timeout: Duration,
    pub storage_ready_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            authentication: authentication::Config::default(),
            authorization: authorization::Config::default(),
            admission: admission::Config::default(),
            service_cluster_ip_range: "10.0.0.0/24".into(),
            service_node_port_range: (30000, 32767),
            advertise_address: IpAddr::from([127, 0, 0, 1]),
            secure_port: 6443,
            runtime_config: Vec::new(),
            requests_in_flight_max: 400,
            mutating_requests_in_flight_max: 200,
            priority_and_fairness: true,
            request_timeout: Duration::from_secs(60),
            elsewhere: Vec::new(),
            goaway_chance: 0.0,
            flags: Vec::new(),
            profiling: true,
            kubelet: KubeletConfig::default(),
            endpoint_reconciler: EndpointReconciler::Lease,
            hostname: None,
            layout: Layout::default(),
            storage_health_timeout: Duration::from_secs(2),
            storage_ready_timeout: Duration::from_secs(2),
        }
    }
}

/// Resources that are kept in a store of their own (`--etcd-servers-overrides`). Their revisions are that store's.
#[derive(Clone)]
pub struct Elsewhere {
    /// Group and resource.
    pub resources: Vec<(String, String)>,
    pub storage: Arc<dyn Storage>,
}

impl std::fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.resources).finish()
    }
}

/// How long a server that ends tries to take itself out of the endpoints; without that it is one until its lease ends.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Other(String),
    #[error("filling the watch caches: {0}")]
    Caches(Status),
}

/// A running API server.
pub struct Server {
    front: Arc<Front>,
    objects: Arc<ServerObjects>,
    resources: Arc<Resources>,
    stop: tokio::sync::watch::Sender<bool>,
    /// True as soon as the server is known to end, while it still serves.
    ending: tokio::sync::watch::Sender<bool>,
    feeds: Vec<JoinHandle<()>>,
    bootstrap: Option<JoinHandle<JoinHandle<()>>>,
    /// Keeps what the bootstrap has made, and takes this server out of the endpoints at the end.
    keeper: Option<JoinHandle<()>>,
    identity: Option<JoinHandle<()>>,
    custom: JoinHandle<()>,
    conditions: JoinHandle<()>,
}

impl Server {
    /// Starts a server on a store: fills the caches, begins to serve in process, and creates what every cluster has.
    pub async fn start(config: Config, storage: Arc<dyn Storage>) -> Result<Server, StartError> {
        let feed = Feed::new(storage.clone(), config.layout.clone());
        let mut places = vec![(feed.clone(), storage.clone())];
        for elsewhere in &config.elsewhere {
            places.push((Feed::new(elsewhere.storage.clone(), config.layout.clone()), elsewhere.storage.clone()));
        }
        let resources = Arc::new(Resources::new(builtin_index(&config, &places)));
        let mut feeds = Vec::new();
        for (feed, _) in &places {
            let mut stores = resources.index().stores();
            stores.retain(|store| Arc::ptr_eq(store.feed(), feed));
            feeds.push(feed.start(stores).await.map_err(StartError::Caches)?);
        }
        let objects = Arc::new(ServerObjects::new(resources.clone()));
        let shared: Arc<dyn Objects> = objects.clone();
        let authentication = Arc::new(Authentication::new(&config.authentication, shared.clone())?);
        let authorization = Arc::new(Authorization::new(&config.authorization, shared.clone()));
        let mut virtuals = crate::registry::authorization::virtuals(&authentication, &authorization, &shared);
        virtuals.extend(crate::registry::subresources::virtuals());
        let plugins = admission::chain(&config.admission, shared.clone(), authorization.clone())?;
        let (stop, shutdown) = tokio::sync::watch::channel(false);
        let (ending, announced) = tokio::sync::watch::channel(false);
        let network = ServiceNetwork::parse(&config.service_cluster_ip_range, config.service_node_port_range)
            .map_err(StartError::Other)?;
        let node_ports = Arc::new(NodePorts::new(network.node_ports.clone(), storage.clone(), &config.layout));
        let pipeline = Pipeline {
            resources: resources.clone(),
            plugins,
            authorization: authorization.clone(),
            virtuals,
            network,
            node_ports,
        };
        let (reads, writes) = (config.requests_in_flight_max, config.mutating_requests_in_flight_max);
        let flow = match config.priority_and_fairness {
            true => Flow::Fair(FlowControl::new(reads.saturating_add(writes))),
            false => Flow::Plain(InFlight::new(reads, writes)),
        };
        let for_custom = storage.clone();
        let public_address = std::net::SocketAddr::new(config.advertise_address, config.secure_port).to_string();
        let front = Arc::new(Front {
            resources: resources.clone(),
            pipeline,
            authentication,
            authorization,
            impersonation: Default::default(),
            discovery: Default::default(),
            health: Health::new(storage, &bootstrap::HOOKS, announced)
                .with_timeouts(config.storage_health_timeout, config.storage_ready_timeout)
                .with_encryption(config.layout.encryption.clone()),
            metrics: Default::default(),
            flow,
            dialer: Dialer::new(&config.kubelet).map_err(StartError::Other)?,
            request_timeout: config.request_timeout,
            goaway_chance: config.goaway_chance,
            flags: config.flags.clone(),
            profiling: config.profiling,
            public_address,
            shutdown,
        });
        objects.attach(&front);
        let custom = tokio::spawn(custom::run(front.clone(), objects.clone(), for_custom));
        let conditions = tokio::spawn(conditions::run(front.clone(), objects.clone()));
        let identity = config.hostname.clone().map(|hostname| {
            let shared: Arc<dyn Objects> = objects.clone();
            tokio::spawn(identity::run(shared, hostname, front.shutdown.clone()))
        });
        let bootstrap = Some(tokio::spawn(bootstrap::run(front.clone(), objects.clone(), config)));
        Ok(Server {
            front,
            objects,
            resources,
            stop,
            ending,
            feeds,
            bootstrap,
            keeper: None,
            identity,
            custom,
            conditions,
        })
    }

    /// Waits until everything that every cluster has was created.
    pub async fn ready(&mut self) {
        // It ends only by finishing or with the runtime itself.
        if let Some(bootstrap) = &mut self.bootstrap {
            self.keeper = bootstrap.await.ok();
            self.bootstrap = None;
        }
    }

    /// The server as `user` calls it in this process: the transport of a client.
    pub fn service_for(&self, user: User) -> InProcess {
        let user = authentication::with_authenticated_group(user);
        InProcess::new(self.front.clone(), Caller::User(Arc::new(user)))
    }

    pub fn objects(&self) -> Arc<dyn Objects> {
        self.objects.clone()
    }

    pub fn resources(&self) -> &Arc<Resources> {
        &self.resources
    }

    pub fn front(&self) -> &Arc<Front> {
        &self.front
    }

    /// Ends watches and the work behind the server; requests that run may finish.
    pub async fn stop(self) {
        self.begin_shutdown();
        if let Some(bootstrap) = self.bootstrap {
            bootstrap.abort();
        }
        if let Some(keeper) = self.keeper {
            let _ = tokio::time::timeout(LEAVE_TIMEOUT, keeper).await;
        }
        if let Some(identity) = self.identity {
            identity.abort();
        }
        self.custom.abort();
        self.conditions.abort();
        // Requests under way still read from the caches for a moment.
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.feeds.iter().for_each(JoinHandle::abort);
    }

    /// `/readyz` fails from now on, so that balancers send their clients elsewhere; nothing else changes.
    pub fn announce_shutdown(&self) {
        let _ = self.ending.send(true);
    }

    /// Begins the end: no connection is accepted any more, watches end, and requests under way are still served.
    pub fn begin_shutdown(&self) {
        self.announce_shutdown();
        let _ = self.stop.send(true);
    }
}

/// Every built-in resource that is served, with a store for each that has one. The first place is for all that are not kept
/// elsewhere.
fn builtin_index(config: &Config, places: &[(Arc<Feed>, Arc<dyn Storage>)]) -> Index {
    let catalogue = catalogue::builtin();
    let mut stores: HashMap<(Arc<str>, Arc<str>), Arc<Store>> = HashMap::new();
    let mut index = Index::default();
    for ty in catalogue.resources() {
        if !is_served(config, ty) {
            continue;
        }
        let group = &ty.group_version.group;
        let strategy = builtin::strategy(group, &ty.plural);
        // Events of both groups are the same objects, stored as those of the core group.
        let hub_group = if &**group == "events.k8s.io" { "" } else { group };
        let store = is_stored(ty).then(|| {
            let key = (Arc::from(hub_group), ty.plural.clone());
            let new = || {
                let version = if hub_group.is_empty() { "v1" } else { &*ty.storage_version };
                let hub = catalogue.resource(hub_group, version, &ty.plural).unwrap_or(ty).clone();
                let kept_here = |e: &Elsewhere| e.resources.iter().any(|(g, r)| g == hub_group && **r == *ty.plural);
                let place = config.elsewhere.iter().position(kept_here).map_or(0, |at| at + 1);
                let (feed, storage) = &places[place];
                Arc::new(Store::new(hub, strategy.clone(), storage.clone(), feed.clone(), false))
            };
            stores.entry(key).or_insert_with(new).clone()
        });
        let strategy = store.as_ref().map_or(strategy, |s| s.strategy.clone());
        index.insert(Arc::new(Served { ty: ty.clone(), strategy, store, custom: false }));
    }
    index
}

/// Resources that can be read or deleted have objects; reviews and bindings are only created.
fn is_stored(ty: &ResourceType) -> bool {
    ty.allows("delete")
}

/// Resources that are there only while a gate is open, whatever `--runtime-config` says.
const GATED: [(&str, &str, Feature); 5] = [
    ("certificates.k8s.io", "clustertrustbundles", Feature::ClusterTrustBundle),
    ("certificates.k8s.io", "podcertificaterequests", Feature::PodCertificateRequest),
    ("scheduling.k8s.io", "podgroups", Feature::GenericWorkload),
    ("scheduling.k8s.io", "workloads", Feature::GenericWorkload),
    ("storagemigration.k8s.io", "storageversionmigrations", Feature::StorageVersionMigrator),
];

/// What `--runtime-config` says of a resource; the most specific line wins.
fn is_served(config: &Config, ty: &ResourceType) -> bool {
    let place = (&*ty.group_version.group, &*ty.plural);
    if GATED.iter().any(|(group, plural, gate)| (*group, *plural) == place && !gate.enabled()) {
        return false;
    }
    let said = |key: &str| config.runtime_config.iter().rev().find(|(k, _)| k == key).map(|(_, on)| *on);
    let version = ty.group_version.api_version();
    let level = match () {
        () if ty.group_version.version.contains("alpha") => "api/alpha",
        () if ty.group_version.version.contains("beta") => "api/beta",
        () => "api/ga",
    };
    said(&format!("{version}/{}", ty.plural))
        .or_else(|| said(&version))
        .or_else(|| said(level))
        .or_else(|| said("api/all"))
        .unwrap_or(ty.served_by_default)
}
