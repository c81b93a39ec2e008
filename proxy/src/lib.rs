//! The network of Services on a node: [`run`] is the counterpart of kube-proxy in its nftables mode, [`dns`] that of the
//! cluster's DNS server.

use std::net::SocketAddr;

use coxswain_client::Client;
use tokio_util::sync::CancellationToken;

pub mod conntrack;
pub mod dns;
pub mod endpoints;
pub mod health;
pub mod model;
pub mod nft;
pub mod proxier;
pub mod rules;
pub mod table;

#[derive(Clone, Debug)]
pub struct Config {
    /// Which node's endpoints are local.
    pub node_name: String,
    /// The addresses of pods. What leaves them for other addresses is masqueraded if [`Self::masquerade_pods`] says so, and
    /// what enters services from elsewhere is masqueraded.
    pub cluster_cidr: Option<String>,
    /// Whether pods reach the outside under the node's address.
    pub masquerade_pods: bool,
    /// Where `/healthz` and `/livez` answer; nowhere if absent.
    pub healthz: Option<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            cluster_cidr: None,
            masquerade_pods: true,
            healthz: Some(SocketAddr::from(([0, 0, 0, 0], 10256))),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nft failed: {0}")]
    Nft(String),
    #[error("cannot run nft: {0}")]
    Spawn(#[from] std::io::Error),
    #[error("{0}")]
    Config(String),
}

/// Keeps the node's rules as the services and their endpoints say, until the shutdown. The rules stay.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    proxier::run(config, client, shutdown).await
}

/// Removes all tables of the proxy.
pub async fn cleanup() -> Result<(), Error> {
    nft::delete_tables().await
}
