//! Resident memory: before, with all pods, and once they are gone.

use super::{Figure, PODS, delete_pods, each, figure, namespace, pod, pod_path};
use crate::load::{Call, Server, Settings};
use anyhow::{Result, bail};
use std::sync::Arc;
use std::time::Duration;

/// Memory that is given back takes a moment to be.
const SETTLE: Duration = Duration::from_secs(12);

pub async fn run(server: &Arc<Server>, load: &Settings) -> Result<Vec<Figure>> {
    if !server.processes.is_known() {
        bail!("the server's process is not on this machine; name it by --pid");
    }
    let megabytes = || server.processes.resident_bytes() as f64 / 1e6;
    namespace(server).await?;
    let before = megabytes();
    each(server, load.objects, |i| Call::post(PODS, pod(&format!("pod-{i:06}")).to_string().into_bytes())).await?;
    let peak = megabytes();
    tokio::time::sleep(SETTLE).await;
    let with = megabytes();
    let (_, size) = server.send(0, Call::get(pod_path(0))).await?;
    server.send(0, Call::get(PODS)).await?;
    let listed = megabytes();
    delete_pods(server, load.objects).await?;
    tokio::time::sleep(SETTLE).await;
    Ok(vec![
        figure("before", "MB", before),
        figure("pods", "", load.objects as f64),
        figure("a pod", "bytes", size as f64),
        figure("when the last was made", "MB", peak),
        figure("a moment later", "MB", with),
        figure("after a list", "MB", listed),
        figure("a moment after deletion", "MB", megabytes()),
    ])
}
