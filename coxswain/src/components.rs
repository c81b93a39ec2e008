//! The components by themselves, each as a process of its own under upstream's name and flags.

mod kube_apiserver;

use crate::flags::{Component, Flags};
use anyhow::Result;

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
            other => anyhow::bail!("{} does not run by itself yet; `coxswain up` runs it", other.name()),
        }
    })
}
