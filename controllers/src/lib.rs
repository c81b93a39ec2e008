//! The controllers that keep a cluster as its objects say it should be, the counterpart of kube-controller-manager.
//!
//! Each controller has a folder, and one line in [`table`]. It reads from shared informers, plans from what it finds there,
//! and acts through a client under its own identity. Nothing is kept that cannot be found again from the API server.

use std::sync::Arc;

use coxswain_client::leader::LeaderElector;
use coxswain_client::{Client, Informers};
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

pub mod common;
pub mod config;
pub mod context;
pub mod table;

mod bootstrap;
mod certificates;
mod clusterroleaggregation;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod garbagecollector;
mod job;
mod namespace;
mod nodeipam;
mod nodelifecycle;
mod podautoscaler;
mod podgc;
mod podgroupprotection;
mod replicaset;
mod resourcequota;
mod serviceaccount;
mod servicecidrs;
mod statefulset;
mod ttl;
mod ttlafterfinished;
mod volume;

pub use config::Config;
pub use context::Context;

/// Makes the client under which the named controller acts, such as that of its service account in `kube-system`.
pub type ClientFactory = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// Why the controllers did not run, or ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("leadership was lost")]
    LeadershipLost,
    #[error("{0:?} is not in the list of known controllers")]
    UnknownController(String),
}

/// Runs the enabled controllers until `shutdown`. `client` is the manager's own identity, for reading and for its lease;
/// without `identities` the controllers act under it as well.
pub async fn run(
    config: Config,
    client: Client,
    identities: Option<ClientFactory>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    config.check_names()?;
    let Some(election) = config.leader_election.clone() else {
        run_controllers(config, client, identities, shutdown).await;
        return Ok(());
    };
    let elector = LeaderElector::new(client.clone(), &election, LeaderElector::identity());
    let ended = elector.run(shutdown, move |leading| run_controllers(config, client, identities, leading)).await;
    if ended { Ok(()) } else { Err(Error::LeadershipLost) }
}

async fn run_controllers(
    config: Config,
    client: Client,
    identities: Option<ClientFactory>,
    shutdown: CancellationToken,
) {
    let config = Arc::new(config);
    let informers = Informers::new(client.clone());
    let discovery = Arc::<common::discovery::Cache>::default();
    let mut running = tokio::task::JoinSet::new();
    for controller in table::CONTROLLERS {
        if !config.enables(controller) {
            continue;
        }
        let own = match &identities {
            Some(identities) if !controller.identity.is_empty() => identities(controller.identity),
            _ => client.clone(),
        };
        let context =
            Context::new(config.clone(), informers.clone(), discovery.clone(), own, controller, shutdown.clone());
        let name = controller.name;
        running.spawn((controller.start)(context).map(move |()| name));
    }
    while let Some(ended) = running.join_next().await {
        match ended {
            Ok(name) if !shutdown.is_cancelled() => tracing::warn!(controller = name, "ended early"),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "a controller ended by a panic"),
        }
    }
    // Controllers that have nothing to do may all have ended; the manager stays until it is told to go.
    shutdown.cancelled().await;
    informers.stop();
}
