//! The scheduler: finds a node for every pod that has none, the counterpart of kube-scheduler.
//!
//! [`scheduler`] is the one task that holds the state and decides; [`cycle`] is a decision, free of I/O; [`plugins`] are
//! its reasons; [`queue`] says which pod is next; [`calls`] carries decisions out.

use coxswain_client::Client;
use coxswain_client::leader::LeaderElector;
use tokio_util::sync::CancellationToken;

pub mod calls;
pub mod cluster;
pub mod config;
pub mod cycle;
pub mod events;
pub mod framework;
pub mod node;
pub mod plugins;
pub mod pod;
pub mod profile;
pub mod queue;
pub mod resources;
pub mod scheduler;
pub mod selector;
pub mod volumes;
pub mod workloads;

pub use config::Config;

/// Why the scheduler did not run, or ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("leadership was lost")]
    LeadershipLost,
    #[error("two profiles have the scheduler name {0:?}")]
    DuplicateProfile(String),
    #[error("no profile is configured")]
    NoProfile,
}

/// Schedules pods until `shutdown`.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let mut names = std::collections::HashSet::new();
    if let Some(profile) = config.profiles.iter().find(|p| !names.insert(&p.scheduler_name)) {
        return Err(Error::DuplicateProfile(profile.scheduler_name.clone()));
    }
    if config.profiles.is_empty() {
        return Err(Error::NoProfile);
    }
    let Some(election) = config.leader_election.clone() else {
        scheduler::run(config, client, shutdown).await;
        return Ok(());
    };
    let elector = LeaderElector::new(client.clone(), &election, LeaderElector::identity());
    let ended = elector.run(shutdown, move |leading| scheduler::run(config, client, leading)).await;
    if ended { Ok(()) } else { Err(Error::LeadershipLost) }
}
