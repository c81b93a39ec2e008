//! Runs the proxy alone against any cluster: `proxy KUBECONFIG NODE-NAME CLUSTER-CIDR [DNS-ADDRESS]`. With an address the
//! cluster's DNS answers there too.

use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kubeconfig, node_name, cidr, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: proxy KUBECONFIG NODE-NAME CLUSTER-CIDR [DNS-ADDRESS]")
    };
    let client = coxswain_client::connect::from_kubeconfig(std::path::Path::new(kubeconfig))?;
    let shutdown = CancellationToken::new();
    let ended = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        ended.cancel();
    });
    if let Some(address) = rest.first() {
        let config = coxswain_proxy::dns::Config { listen: vec![address.parse()?], ..Default::default() };
        let (client, shutdown) = (client.clone(), shutdown.clone());
        tokio::spawn(async move {
            if let Err(error) = coxswain_proxy::dns::run(config, client, shutdown).await {
                eprintln!("DNS: {error}");
            }
        });
    }
    let config = coxswain_proxy::Config {
        node_name: node_name.clone(),
        cluster_cidr: Some(cidr.clone()),
        ..coxswain_proxy::Config::default()
    };
    Ok(coxswain_proxy::run(config, client, shutdown).await?)
}
