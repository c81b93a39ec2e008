//! Runs the controllers against the API server of a kubeconfig, each under its own service account by impersonation:
//! `run_controllers KUBECONFIG [NAME,NAME… [SERVICE-ACCOUNT-KEY]]`.

use std::path::Path;
use std::sync::Arc;

use coxswain_controllers::Config;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_else(|| "admin.kubeconfig".to_owned());
    let target = coxswain_client::connect::target_of_file(Path::new(&path))?;
    let mut config = Config { root_ca: target.cluster.certificate_authority.clone(), ..Config::default() };
    if let Some(names) = args.next() {
        config.controllers = names.split(',').map(str::to_owned).collect();
    }
    if let Some(key) = args.next() {
        config.service_account_key = Some(std::fs::read(key)?);
    }
    let own = target.clone();
    let identities: coxswain_controllers::ClientFactory = Arc::new(move |name| {
        let mut target = own.clone();
        target.identity.impersonate = Some(format!("system:serviceaccount:kube-system:{name}"));
        target.identity.impersonate_groups =
            vec!["system:serviceaccounts".to_owned(), "system:serviceaccounts:kube-system".to_owned()];
        coxswain_client::connect::from_target(target, format!("kube-controller-manager/{name}"))
            .expect("the same target was valid before")
    });
    let client = coxswain_client::connect::from_target(target, "kube-controller-manager/v1.36.2".to_owned())?;
    let shutdown = CancellationToken::new();
    let signalled = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        signalled.cancel();
    });
    coxswain_controllers::run(config, client, Some(identities), shutdown).await?;
    Ok(())
}
