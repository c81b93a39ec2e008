//! Runs one kubelet against a cluster: `node KUBECONFIG NAME ROOT [CRI-SOCKET [CONFIG.json]]`; without a
//! socket the node is hollow.

use coxswain_kubelet::{Config, CriClient, HollowRuntime, Runtime, run};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kubeconfig, name, root, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("node KUBECONFIG NAME ROOT [CRI-SOCKET]")
    };
    let client = coxswain_client::connect::from_kubeconfig(kubeconfig.as_ref())?;
    let mut config = Config::new(name);
    if let Some(file) = rest.get(1) {
        config.settings = serde_json::from_slice(&std::fs::read(file)?)?;
    }
    config.root_dir = root.into();
    config.cert_dir = config.root_dir.join("pki");
    config.container_log_links_dir = None;
    config.settings.pod_logs_dir = config.root_dir.join("logs").display().to_string();
    config.settings.cluster_domain = "cluster.local".into();
    config.settings.cluster_dns = vec!["10.96.0.10".into()];
    let runtime: Arc<dyn Runtime> = match rest.first() {
        Some(socket) => Arc::new(CriClient::new(socket, "", Duration::from_secs(120))?),
        None => Arc::new(HollowRuntime::new(0)),
    };
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    Ok(run(config, client, runtime, shutdown).await?)
}
