//! Runs one kubelet against a cluster: `node KUBECONFIG NAME ROOT CRI-SOCKET [CONFIG.json]`, or many
//! hollow ones: `node KUBECONFIG NAME ROOT NUMBER`.

use coxswain_kubelet::{Config, CriClient, HollowRuntime, Runtime, run};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kubeconfig, name, root, socket, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("node KUBECONFIG NAME ROOT CRI-SOCKET|NUMBER [CONFIG.json]")
    };
    let client = coxswain_client::connect::from_kubeconfig(kubeconfig.as_ref())?;
    let mut config = Config::new(name);
    if let Some(file) = rest.first() {
        config.settings = serde_json::from_slice(&std::fs::read(file)?)?;
    }
    config.root_dir = root.into();
    config.cert_dir = config.root_dir.join("pki");
    config.container_log_links_dir = None;
    config.settings.pod_logs_dir = config.root_dir.join("logs").display().to_string();
    config.settings.cluster_domain = "cluster.local".into();
    config.settings.cluster_dns = vec!["10.96.0.10".into()];
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    if let Ok(number) = socket.parse::<u32>() {
        let nodes = (0..number).map(|i| {
            let mut config = config.clone();
            config.node_name = format!("{name}-{i}");
            let runtime: Arc<dyn Runtime> = Arc::new(HollowRuntime::new(i));
            tokio::spawn(run(config, client.clone(), runtime, shutdown.clone()))
        });
        futures::future::join_all(nodes).await;
        return Ok(());
    }
    let runtime = Arc::new(CriClient::new(socket, "", Duration::from_secs(120))?);
    Ok(run(config, client, runtime, shutdown).await?)
}
