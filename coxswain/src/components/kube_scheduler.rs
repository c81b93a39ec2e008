//! `kube-scheduler`: the scheduler alone (upstream: `cmd/kube-scheduler`).

use super::{connect, read};
use crate::flags::Flags;
use crate::machine::on_signal;
use anyhow::{Context, Result};
use coxswain_scheduler::config::{Config, LeaderElection};
use serde_json::Value;
use std::path::Path;

pub async fn run(flags: &Flags) -> Result<()> {
    let (mut config, mut client) = (Config::default(), None);
    if let Some(path) = flags.path("config") {
        let file: Value =
            serde_yaml_ng::from_slice(&read(&path)?).with_context(|| format!("couldn't decode {}", path.display()))?;
        config = Config::from_value(&file).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
        if let Some(kubeconfig) = file["clientConnection"]["kubeconfig"].as_str().filter(|k| !k.is_empty()) {
            client = Some(coxswain_client::connect::from_kubeconfig(Path::new(kubeconfig))?);
        }
    }
    let client = match client {
        Some(client) => client,
        None => connect(flags)?,
    };
    // A configuration file says for itself whether to elect a leader; flags count without one.
    if !flags.is_set("config") && flags.bool("leader-elect")? {
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
