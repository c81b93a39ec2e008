//! `kube-scheduler`: the scheduler alone (upstream: `cmd/kube-scheduler`).

use super::connect;
use crate::flags::Flags;
use crate::machine::on_signal;
use anyhow::{Context, Result};
use coxswain_scheduler::config::{Config, LeaderElection};

pub async fn run(flags: &Flags) -> Result<()> {
    let client = connect(flags)?;
    let mut config = Config::default();
    if flags.bool("leader-elect")? {
        let mut election = LeaderElection::default();
        if let Some(name) = flags.get("leader-elect-resource-name") {
            election.name = name;
        }
        if let Some(namespace) = flags.get("leader-elect-resource-namespace") {
            election.namespace = namespace;
        }
        for (flag, into) in [
            ("leader-elect-lease-duration", &mut election.lease_duration),
            ("leader-elect-renew-deadline", &mut election.renew_deadline),
            ("leader-elect-retry-period", &mut election.retry_period),
        ] {
            if let Some(duration) = flags.duration(flag)? {
                *into = duration;
            }
        }
        config.leader_election = Some(election);
    }
    flags.warn_without_meaning();
    coxswain_scheduler::run(config, client, on_signal()?).await.context("kube-scheduler")
}
