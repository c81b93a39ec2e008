//! `kube-controller-manager`: the controllers alone (upstream: `cmd/kube-controller-manager`).

use super::{connect, read};
use crate::flags::Flags;
use crate::machine::on_signal;
use anyhow::{Context, Result};
use coxswain_controllers::{Config, LeaderElection};

pub async fn run(flags: &Flags) -> Result<()> {
    let client = connect(flags)?;
    let config = config(flags)?;
    if flags.bool("use-service-account-credentials")? {
        // Tokens for each controller's own account are asked for with the manager's rights.
        tracing::info!("all controllers act under the manager's own identity");
    }
    flags.warn_without_meaning();
    coxswain_controllers::run(config, client, None, on_signal()?).await.context("kube-controller-manager")
}

fn config(flags: &Flags) -> Result<Config> {
    let mut config = Config::default();
    let named = flags.list("controllers");
    if !named.is_empty() {
        config.controllers = named;
    }
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
    if let Some(path) = flags.path("root-ca-file") {
        config.root_ca = Some(read(&path)?);
    }
    if let Some(path) = flags.path("service-account-private-key-file") {
        config.service_account_key = Some(read(&path)?);
    }
    if let (Some(cert), Some(key)) = (flags.path("cluster-signing-cert-file"), flags.path("cluster-signing-key-file")) {
        config.cluster_signing = Some((read(&cert)?, read(&key)?));
    }
    config.allocate_node_cidrs = flags.bool("allocate-node-cidrs")?;
    for cidr in flags.list("cluster-cidr") {
        config
            .cluster_cidrs
            .push(cidr.parse().with_context(|| format!("invalid argument \"{cidr}\" for \"--cluster-cidr\" flag"))?);
    }
    if let Some(size) = flags.parsed::<u8>("node-cidr-mask-size-ipv4")?.filter(|s| *s > 0) {
        config.node_cidr_mask_size_ipv4 = size;
    }
    for (flag, into) in [
        ("cluster-signing-duration", &mut config.cluster_signing_duration),
        ("node-monitor-grace-period", &mut config.node_monitor_grace_period),
        ("node-monitor-period", &mut config.node_monitor_period),
        ("node-startup-grace-period", &mut config.node_startup_grace_period),
        ("resource-quota-sync-period", &mut config.resource_quota_sync_period),
        ("horizontal-pod-autoscaler-sync-period", &mut config.hpa.sync_period),
    ] {
        if let Some(duration) = flags.duration(flag)? {
            *into = duration;
        }
    }
    if let Some(threshold) = flags.parsed("terminated-pod-gc-threshold")? {
        config.terminated_pod_gc_threshold = threshold;
    }
    if let Some(most) = flags.parsed("max-endpoints-per-slice")? {
        config.endpoints_per_slice_max = most;
    }
    Ok(config)
}
