//! Runs the scheduler alone against any cluster: `schedule KUBECONFIG`.

use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("usage: schedule KUBECONFIG"))?;
    let client = coxswain_client::connect::from_kubeconfig(std::path::Path::new(&path))?;
    let shutdown = CancellationToken::new();
    let ended = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        ended.cancel();
    });
    coxswain_scheduler::run(coxswain_scheduler::Config::default(), client, shutdown).await?;
    Ok(())
}
