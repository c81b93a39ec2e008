//! `kube-scheduler`: the scheduler alone (upstream: `cmd/kube-scheduler`).

use super::{connect, leader_election, read};
use crate::flags::Flags;
use crate::machine::on_signal;
use crate::secure_port::{self, Served};
use anyhow::{Context, Result};
use coxswain_scheduler::config::Config;
use serde_json::{Value, json};
use std::path::Path;

pub async fn run(flags: &Flags) -> Result<()> {
    let (mut config, mut client) = (Config::default(), None);
    let mut profiling = flags.bool("profiling")?;
    if let Some(path) = flags.path("config") {
        let file: Value =
            serde_yaml_ng::from_slice(&read(&path)?).with_context(|| format!("couldn't decode {}", path.display()))?;
        // As with the leader: the flag counts without a file only.
        profiling = file["enableProfiling"].as_bool().unwrap_or(true);
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
    if !flags.is_set("config") {
        config.leader_election = leader_election(flags, "kube-scheduler")?;
    }
    let shutdown = on_signal()?;
    let shown = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "enableProfiling": profiling,
        "leaderElection": {"leaderElect": config.leader_election.is_some()},
        "percentageOfNodesToScore": config.percentage_of_nodes_to_score,
        "podInitialBackoffSeconds": config.initial_backoff.as_secs(), "podMaxBackoffSeconds": config.backoff_max.as_secs(),
        "profiles": config.profiles.iter().map(|p| json!({"schedulerName": p.scheduler_name})).collect::<Vec<_>>()});
    let served = Served { configz: ("componentconfig", shown), profiling };
    secure_port::start(flags, &client, served, shutdown.clone()).await?;
    flags.warn_without_meaning();
    coxswain_scheduler::run(config, client, shutdown).await.context("kube-scheduler")
}
