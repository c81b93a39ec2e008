//! The cluster's DNS server, the counterpart of CoreDNS with its `kubernetes` and `forward` plugins.

use std::net::SocketAddr;

use coxswain_client::{Client, Informers};
use tokio_util::sync::CancellationToken;

use crate::Error;

#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses that answer over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    pub cluster_domain: String,
    /// Who answers for names outside the cluster.
    pub upstream: Vec<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            upstream: resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        }
    }
}

/// The name servers of a resolv.conf.
fn resolvers(conf: &str) -> Vec<SocketAddr> {
    let servers = conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|rest| rest.trim().parse().ok().map(|ip| SocketAddr::new(ip, 53))).collect()
}

/// Answers until the shutdown.
pub async fn run(_config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let informers = Informers::new(client);
    shutdown.cancelled().await;
    informers.stop();
    Ok(())
}
