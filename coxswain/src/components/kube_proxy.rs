//! `kube-proxy`: the service proxy alone (upstream: `cmd/kube-proxy` in its nftables mode).

use super::connect;
use crate::flags::Flags;
use crate::machine::{hostname, on_signal};
use anyhow::{Context, Result};
use coxswain_proxy::Config;

pub async fn run(flags: &Flags) -> Result<()> {
    if flags.bool("cleanup")? {
        return coxswain_proxy::cleanup().await.context("removing the rules of Services");
    }
    let client = connect(flags)?;
    let node_name = match flags.get("hostname-override") {
        Some(name) => name,
        None => hostname()?,
    };
    let config = Config {
        node_name,
        cluster_cidr: flags.get("cluster-cidr"),
        // Beside a network plugin, pods' way to the outside is the plugin's.
        masquerade_pods: false,
        healthz: flags.parsed("healthz-bind-address")?,
    };
    flags.warn_without_meaning();
    coxswain_proxy::run(config, client, on_signal()?).await.context("kube-proxy")
}
