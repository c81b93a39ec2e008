//! The components by themselves, each as a process of its own under upstream's name and flags.

mod kube_apiserver;
mod kube_controller_manager;
mod kube_proxy;
mod kube_scheduler;
mod kubelet;

use crate::flags::{Component, Flags};
use anyhow::{Context, Result};
use coxswain_client::Client;
use std::path::Path;

pub fn run(flags: Flags) -> Result<()> {
    if flags.bool("version")? {
        println!("Kubernetes {}", coxswain_apiserver::version::GIT_VERSION);
        return Ok(());
    }
    crate::logging::init(flags.parsed::<u8>("v")?.unwrap_or(0).max(1));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match flags.component() {
            Component::ApiServer => kube_apiserver::run(&flags).await,
            Component::ControllerManager => kube_controller_manager::run(&flags).await,
            Component::Scheduler => kube_scheduler::run(&flags).await,
            Component::Kubelet => kubelet::run(&flags).await,
            Component::Proxy => kube_proxy::run(&flags).await,
        }
    })
}

/// Connects as `--kubeconfig` (or `--master`) says, or as a pod of the cluster.
fn connect(flags: &Flags) -> Result<Client> {
    let client = match flags.path("kubeconfig") {
        Some(path) => coxswain_client::connect::from_kubeconfig(&path)?,
        None => coxswain_client::connect::in_cluster().context("no --kubeconfig was given")?,
    };
    Ok(client)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}
