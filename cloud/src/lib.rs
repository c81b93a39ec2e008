//! The controllers that tell a cluster about the place it runs in, the counterpart of cloud-controller-manager.
//!
//! What the place can do is behind [`provider::Provider`]; the one provider here is [`bare_metal`], for machines that nobody
//! else manages. Each controller is a file and one line in [`CONTROLLERS`]. Nothing is kept that cannot be found again from the
//! API server.

use std::sync::Arc;
use std::time::Duration;

use coxswain_client::events::EventRecorder;
use coxswain_client::leader::{LeaderElection, LeaderElector};
use coxswain_client::{Client, Informers};
use futures::FutureExt;
use futures::future::BoxFuture;
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

pub mod bare_metal;
pub mod provider;

mod node;
mod node_lifecycle;
mod objects;
mod route;
mod service;

use provider::Provider;

/// What the manager can be told, the counterpart of `CloudControllerManagerConfiguration`.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--controllers`: names to enable, `-NAME` to disable, `*` for all.
    pub controllers: Vec<String>,
    pub leader_election: Option<LeaderElection>,
    pub cluster_name: String,
    pub cluster_cidrs: Vec<IpNet>,
    /// Both must be set for routes to be made.
    pub allocate_node_cidrs: bool,
    pub configure_cloud_routes: bool,
    pub route_reconciliation_period: Duration,
    pub node_monitor_period: Duration,
    pub node_status_update_frequency: Duration,
    pub concurrent_service_syncs: usize,
    pub concurrent_node_syncs: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controllers: vec!["*".to_owned()],
            leader_election: None,
            cluster_name: "kubernetes".to_owned(),
            cluster_cidrs: Vec::new(),
            allocate_node_cidrs: false,
            configure_cloud_routes: true,
            route_reconciliation_period: Duration::from_secs(10),
            node_monitor_period: Duration::from_secs(5),
            node_status_update_frequency: Duration::from_secs(5 * 60),
            concurrent_service_syncs: 1,
            concurrent_node_syncs: 1,
        }
    }
}

/// Why the controllers did not run, or ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("leadership was lost")]
    LeadershipLost,
    #[error("{0:?} is not in the list of known controllers")]
    UnknownController(String),
}

/// What a controller is given.
#[derive(Clone)]
struct Context {
    config: Arc<Config>,
    provider: Arc<dyn Provider>,
    client: Client,
    informers: Informers,
    recorder: EventRecorder,
    shutdown: CancellationToken,
}

struct Controller {
    name: &'static str,
    /// The name it had before v1.28, which is still taken.
    alias: &'static str,
    event_source: &'static str,
    start: fn(Context) -> BoxFuture<'static, ()>,
}

#[rustfmt::skip]
const CONTROLLERS: &[Controller] = &[
    Controller { name: "cloud-node-controller", alias: "cloud-node", event_source: "cloud-node-controller", start: |c| Box::pin(node::run(c)) },
    Controller { name: "cloud-node-lifecycle-controller", alias: "cloud-node-lifecycle", event_source: "cloud-node-lifecycle-controller", start: |c| Box::pin(node_lifecycle::run(c)) },
    Controller { name: "service-lb-controller", alias: "service", event_source: "service-controller", start: |c| Box::pin(service::run(c)) },
    Controller { name: "node-route-controller", alias: "route", event_source: "route_controller", start: |c| Box::pin(route::run(c)) },
];

impl Config {
    /// The first pattern about a controller decides.
    fn enables(&self, controller: &Controller) -> bool {
        let named = |name: &str| name == controller.name || name == controller.alias;
        let decided = self.controllers.iter().find_map(|pattern| match pattern.strip_prefix('-') {
            None => named(pattern).then_some(true),
            Some(name) => named(name).then_some(false),
        });
        decided.unwrap_or_else(|| self.controllers.iter().any(|pattern| pattern == "*"))
    }

    fn check_names(&self) -> Result<(), Error> {
        for pattern in &self.controllers {
            let name = pattern.strip_prefix('-').unwrap_or(pattern);
            if name != "*" && !CONTROLLERS.iter().any(|c| c.name == name || c.alias == name) {
                return Err(Error::UnknownController(name.to_owned()));
            }
        }
        Ok(())
    }
}

/// Runs the enabled controllers until `shutdown`.
pub async fn run(
    config: Config,
    provider: Arc<dyn Provider>,
    client: Client,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    config.check_names()?;
    let Some(election) = config.leader_election.clone() else {
        run_controllers(config, provider, client, shutdown).await;
        return Ok(());
    };
    let elector = LeaderElector::new(client.clone(), &election, LeaderElector::identity());
    let work = move |leading| run_controllers(config, provider, client, leading);
    if elector.run(shutdown, work).await { Ok(()) } else { Err(Error::LeadershipLost) }
}

async fn run_controllers(config: Config, provider: Arc<dyn Provider>, client: Client, shutdown: CancellationToken) {
    let config = Arc::new(config);
    let informers = Informers::new(client.clone());
    provider.initialize(&client, &informers).await;
    let mut running = tokio::task::JoinSet::new();
    for controller in CONTROLLERS.iter().filter(|c| config.enables(c)) {
        let context = Context {
            config: config.clone(),
            provider: provider.clone(),
            client: client.clone(),
            informers: informers.clone(),
            recorder: EventRecorder::new(client.clone(), controller.event_source, None),
            shutdown: shutdown.clone(),
        };
        let name = controller.name;
        running.spawn((controller.start)(context).map(move |()| name));
    }
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok(name) if !shutdown.is_cancelled() => tracing::info!(controller = name, "has nothing to do here"),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "a controller ended by a panic"),
        }
    }
    // Controllers that the provider has no use for end at once; the manager stays until it is told to go.
    shutdown.cancelled().await;
    informers.stop();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_go_by_their_new_and_old_names() {
        let enabled = |patterns: &[&str]| -> Vec<&str> {
            let config =
                Config { controllers: patterns.iter().map(|p| (*p).to_owned()).collect(), ..Config::default() };
            config.check_names().unwrap();
            CONTROLLERS.iter().filter(|c| config.enables(c)).map(|c| c.name).collect()
        };
        assert_eq!(enabled(&["*"]).len(), 4);
        assert_eq!(enabled(&["service"]), ["service-lb-controller"]);
        assert_eq!(
            enabled(&["*", "-route", "-cloud-node-controller", "-service"]),
            ["cloud-node-lifecycle-controller"]
        );
        let unknown = Config { controllers: vec!["nosuch".to_owned()], ..Config::default() };
        assert!(unknown.check_names().is_err());
    }
}
