//! `kube-controller-manager`: the controllers alone (upstream: `cmd/kube-controller-manager`).

use super::{connect, leader_election, read, target};
use crate::flags::Flags;
use crate::machine::on_signal;
use crate::secure_port::{self, Served};
use anyhow::{Context, Result};
use coxswain_client::Client;
use coxswain_client::connect::{Identity, Target, as_service_account, default_user_agent, from_target};
use coxswain_controllers::{ClientFactory, Config};
use serde_json::json;
use std::sync::Arc;

pub async fn run(flags: &Flags) -> Result<()> {
    let client = connect(flags)?;
    let config = config(flags)?;
    let identities = if flags.bool("use-service-account-credentials")? {
        Some(service_accounts(target(flags)?, &client)?)
    } else {
        None
    };
    let shutdown = on_signal()?;
    let shown = json!({"Generic": {"Controllers": config.controllers,
            "LeaderElection": {"LeaderElect": config.leader_election.is_some()}},
        "KubeCloudShared": {"AllocateNodeCIDRs": config.allocate_node_cidrs,
            "UseServiceAccountCredentials": identities.is_some()}});
    let served =
        Served { configz: ("kubecontrollermanager.config.k8s.io", shown), profiling: flags.bool("profiling")? };
    secure_port::start(flags, &client, served, shutdown.clone()).await?;
    flags.warn_without_meaning();
    coxswain_controllers::run(config, client, identities, shutdown).await.context("kube-controller-manager")
}

/// Each controller acts as its own service account in `kube-system`, by tokens that the manager asks for.
fn service_accounts(target: Target, manager: &Client) -> Result<ClientFactory> {
    let nobody = Target { identity: Identity::default(), ..target };
    let anonymous = from_target(nobody, default_user_agent())?;
    let manager = manager.clone();
    Ok(Arc::new(move |name: &str| {
        if name.is_empty() {
            return manager.clone();
        }
        as_service_account(anonymous.clone(), manager.clone(), "kube-system", name)
    }))
}

fn config(flags: &Flags) -> Result<Config> {
    let mut config = Config::default();
    let named = flags.list("controllers");
    if !named.is_empty() {
        config.controllers = named;
    }
    config.leader_election = leader_election(flags, "kube-controller-manager")?;
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
