//! What a whole cluster does: pods that start, a Deployment that rolls out.

use super::{Figure, NAMESPACE, figure, namespace};
use crate::load::{Server, Settings};
use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn runnable(image: &str) -> Value {
    json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": image, "imagePullPolicy": "IfNotPresent"}]})
}

pub async fn pod_start(server: &Server, load: &Settings) -> Result<Vec<Figure>> {
    let client = server.client();
    namespace(server).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let mut times = Vec::new();
    for i in 0..10 {
        let name = format!("start-{i}");
        let object: Pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": runnable(&load.image)}))?;
        let start = Instant::now();
        let made = pods.create(&PostParams::default(), &object).await?;
        let version = made.metadata.resource_version.unwrap_or_default();
        let only = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut events = pods.watch(&only, &version).await?.boxed();
        loop {
            match tokio::time::timeout(Duration::from_secs(60), events.try_next())
                .await
                .context("the pod never ran")??
            {
                Some(WatchEvent::Modified(pod))
                    if pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Running")) =>
                {
                    break;
                }
                Some(_) => {}
                None => bail!("the watch ended"),
            }
        }
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    times.sort_by(f64::total_cmp);
    Ok(vec![
        figure("create to Running, median", "ms", times[times.len() / 2]),
        figure("slowest of 10", "ms", times[times.len() - 1]),
    ])
}

pub async fn deployment(server: &Server, load: &Settings) -> Result<Vec<Figure>> {
    const REPLICAS: i32 = 30;
    let client = server.client();
    namespace(server).await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let object: Deployment =
        serde_json::from_value(json!({"metadata": {"name": "thirty"}, "spec": {"replicas": REPLICAS,
        "selector": {"matchLabels": {"app": "thirty"}},
        "template": {"metadata": {"labels": {"app": "thirty"}}, "spec": runnable(&load.image)}}}))?;
    let start = Instant::now();
    let made = deployments.create(&PostParams::default(), &object).await?;
    let version = made.metadata.resource_version.unwrap_or_default();
    let only = WatchParams::default().fields("metadata.name=thirty");
    let mut events = deployments.watch(&only, &version).await?.boxed();
    loop {
        match tokio::time::timeout(Duration::from_secs(180), events.try_next()).await.context("never all ready")?? {
            Some(WatchEvent::Modified(d)) if d.status.as_ref().and_then(|s| s.ready_replicas) == Some(REPLICAS) => {
                break;
            }
            Some(_) => {}
            None => bail!("the watch ended"),
        }
    }
    let took = start.elapsed().as_secs_f64();
    deployments.delete("thirty", &DeleteParams::foreground()).await?;
    Ok(vec![figure("create to 30 ready", "s", took)])
}
