//! An API server by itself, for trying out and for replaying recordings: `serve DIR PORT`. Keeps its state and its keys in
//! DIR; the bearer token `T` is an administrator's.

use anyhow::{Context, Result};
use coxswain_apiserver::server::listen::tls_config;
use coxswain_apiserver::server::{Config, Server};
use coxswain_storage::embedded::{Embedded, Options};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().context("usage: serve DIR PORT")?);
    let port: u16 = args.next().context("usage: serve DIR PORT")?.parse()?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(dir, port))
}

async fn serve(dir: PathBuf, port: u16) -> Result<()> {
    std::fs::create_dir_all(&dir)?;
    let tokens = dir.join("tokens.csv");
    std::fs::write(&tokens, "T,golden-admin,golden-admin-uid,\"system:masters\"\n")?;
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()])?;
    let account_key = rcgen::KeyPair::generate()?;
    let (private, public) = (dir.join("sa.key"), dir.join("sa.pub"));
    std::fs::write(&private, account_key.serialize_pem())?;
    std::fs::write(&public, account_key.public_key_pem())?;

    let mut config = Config {
        service_cluster_ip_range: "10.96.0.0/16".into(),
        advertise_address: [192, 0, 2, 2].into(),
        secure_port: port,
        ..Config::default()
    };
    config.authentication.token_auth_file = Some(tokens);
    let accounts = &mut config.authentication.service_accounts;
    accounts.key_files = vec![public];
    accounts.signing_key_file = Some(private);
    accounts.issuers = vec!["https://kubernetes.default.svc.cluster.local".into()];
    accounts.external_address = format!("192.0.2.2:{port}");

    let storage = Arc::new(Embedded::open(&dir.join("data"), Options::default())?);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let tls = tls_config(cert.pem().as_bytes(), signing_key.serialize_pem().as_bytes())?;
    let started = std::time::Instant::now();
    let mut server = Server::start(config, storage).await?;
    server.ready().await;
    println!("ready after {:?} on port {port}", started.elapsed());
    tokio::select! {
        () = server.listen(listener, tls) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    server.stop().await;
    Ok(())
}
