//! `cloud-controller-manager`: the controllers of the place that the cluster runs in (upstream: `cloud-provider/app`), with the provider
//! for bare metal.

use super::{connect, leader_election};
use crate::flags::Flags;
use crate::machine::on_signal;
use crate::secure_port::{self, Served};
use anyhow::{Context, Result, bail};
use coxswain_cloud::Config;
use coxswain_cloud::bare_metal::{BareMetal, Settings};
use serde_json::json;
use std::sync::Arc;

const PROVIDER: &str = "bare-metal";

pub async fn run(flags: &Flags) -> Result<()> {
    match flags.get("cloud-provider").as_deref() {
        None | Some(PROVIDER) => {}
        Some(other) => bail!("--cloud-provider {other}: the one provider here is {PROVIDER}"),
    }
    let settings = match flags.path("cloud-config") {
        Some(path) => {
            let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            Settings::parse(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?
        }
        None => Settings::default(),
    };
    let provider = BareMetal::new(&settings).map_err(|e| anyhow::anyhow!("--cloud-config: {e}"))?;
    let config = config(flags)?;
    let client = connect(flags)?;
    let shutdown = on_signal()?;
    let shown = json!({"Generic": {"Controllers": config.controllers},
        "KubeCloudShared": {"ClusterName": config.cluster_name, "CloudProvider": {"Name": PROVIDER}}});
    let served =
        Served { configz: ("cloudcontrollermanager.config.k8s.io", shown), profiling: flags.bool("profiling")? };
    secure_port::start(flags, &client, served, shutdown.clone()).await?;
    flags.warn_without_meaning();
    coxswain_cloud::run(config, Arc::new(provider), client, shutdown).await.context("cloud-controller-manager")
}

fn config(flags: &Flags) -> Result<Config> {
    let mut config = Config::default();
    let named = flags.list("controllers");
    if !named.is_empty() {
        config.controllers = named;
    }
    config.leader_election = leader_election(flags, "cloud-controller-manager")?;
    if let Some(name) = flags.get("cluster-name") {
        config.cluster_name = name;
    }
    for cidr in flags.list("cluster-cidr") {
        config
            .cluster_cidrs
            .push(cidr.parse().with_context(|| format!("invalid argument \"{cidr}\" for \"--cluster-cidr\" flag"))?);
    }
    config.allocate_node_cidrs = flags.bool("allocate-node-cidrs")?;
    config.configure_cloud_routes = flags.bool("configure-cloud-routes")?;
    for (flag, into) in [
        ("route-reconciliation-period", &mut config.route_reconciliation_period),
        ("node-monitor-period", &mut config.node_monitor_period),
        ("node-status-update-frequency", &mut config.node_status_update_frequency),
    ] {
        if let Some(duration) = flags.duration(flag)? {
            *into = duration;
        }
    }
    for (flag, into) in [
        ("concurrent-service-syncs", &mut config.concurrent_service_syncs),
        ("concurrent-node-syncs", &mut config.concurrent_node_syncs),
    ] {
        if let Some(count) = flags.parsed(flag)? {
            *into = std::cmp::max(count, 1);
        }
    }
    Ok(config)
}
