//! The components by themselves, each as a process of its own under upstream's name and flags.

mod cloud_controller_manager;
mod kube_apiserver;
mod kube_controller_manager;
mod kube_proxy;
mod kube_scheduler;
mod kubelet;

use crate::flags::{Component, Flags};
use anyhow::{Context, Result};
use coxswain_client::Client;
use coxswain_client::connect::{Target, default_user_agent, from_target, target_in_cluster, target_of_file};
use coxswain_client::leader::LeaderElection;
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
            Component::CloudControllerManager => cloud_controller_manager::run(&flags).await,
            Component::Scheduler => kube_scheduler::run(&flags).await,
            Component::Kubelet => kubelet::run(&flags).await,
            Component::Proxy => kube_proxy::run(&flags).await,
        }
    })
}

/// Connects as `--kubeconfig` (or `--master`) says, or as a pod of the cluster.
fn connect(flags: &Flags) -> Result<Client> {
    Ok(from_target(target(flags)?, default_user_agent())?)
}

/// The API server and the identity that [`connect`] uses.
fn target(flags: &Flags) -> Result<Target> {
    match flags.path("kubeconfig") {
        Some(path) => Ok(target_of_file(&path)?),
        None => target_in_cluster().context("no --kubeconfig was given"),
    }
}

/// What the flags say of electing a leader; none where they say that none is to be.
fn leader_election(flags: &Flags, default_name: &str) -> Result<Option<LeaderElection>> {
    if !flags.bool("leader-elect")? {
        return Ok(None);
    }
    let mut election = LeaderElection::named(default_name);
    if let Some(name) = flags.get("leader-elect-resource-name") {
        election.name = name;
    }
    if let Some(namespace) = flags.get("leader-elect-resource-namespace") {
        election.namespace = namespace;
    }
    for (flag, into) in [
        ("leader-elect-lease-duration", &mut election.lease_duration),
        ("leader-elect-renew-deadline", &mut election.renew_deadline),
        ("leader-elect-retry-period", &mut election.retry_period),
    ] {
        if let Some(duration) = flags.duration(flag)? {
            *into = duration;
        }
    }
    Ok(Some(election))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}
