//! What is measured. A case leaves the server as it found it.

use crate::load::{Server, Settings, get, request};
use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use http::Method;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub struct Figure {
    pub name: &'static str,
    pub unit: &'static str,
    pub value: f64,
}

fn figure(name: &'static str, unit: &'static str, value: f64) -> Figure {
    Figure { name, unit, value }
}

pub struct Case {
    pub name: &'static str,
    pub about: &'static str,
    pub run: for<'a> fn(&'a Server, &'a Settings) -> BoxFuture<'a, Result<Vec<Figure>>>,
}

pub const CASES: &[Case] = &[
    Case { name: "get", about: "GET of one pod", run: |s, l| Box::pin(get_one(s, l)) },
    Case { name: "create", about: "durable CREATE of config maps of 2 KB", run: |s, l| Box::pin(create(s, l)) },
    Case { name: "patch", about: "merge PATCH of pod status", run: |s, l| Box::pin(patch(s, l)) },
    Case { name: "list", about: "LIST of many pods: JSON, gzip, limit=500", run: |s, l| Box::pin(list(s, l)) },
    Case { name: "watch", about: "one writer, 1,000 watchers", run: |s, l| Box::pin(watch(s, l)) },
    Case {
        name: "pod-start",
        about: "pod create to Running, one after another",
        run: |s, l| Box::pin(pod_start(s, l)),
    },
    Case { name: "deployment", about: "Deployment of 30 until all are ready", run: |s, l| Box::pin(deployment(s, l)) },
];

const NAMESPACE: &str = "bench";
const WATCHERS: usize = 1000;

async fn namespace(client: &Client) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let object: Namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    match namespaces.create(&PostParams::default(), &object).await {
        Ok(_) => {}
        Err(kube::Error::Api(e)) if e.code == 409 => {}
        Err(e) => return Err(e).context("creating the namespace"),
    }
    // Where no controller runs, the service account that pods need is missing.
    let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
    let (code, body) = Server::send(client, post(&path, &body)?).await?;
    if code != 201 && code != 409 {
        bail!("creating the service account: {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

/// Deletes what a case made. Without a namespace controller the namespace itself stays, empty.
async fn clean(client: &Client, resource: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/{resource}?gracePeriodSeconds=0");
    let (code, body) = Server::send(client, request(Method::DELETE, &path, None, &[])).await?;
    if code >= 300 {
        bail!("deleting {resource}: {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

fn post(path: &str, body: &Value) -> Result<http::Request<kube::client::Body>> {
    Ok(request(Method::POST, path, Some(("application/json", serde_json::to_vec(body)?)), &[]))
}

/// A pod of about 4 KB that no scheduler takes.
fn pod(name: &str) -> Value {
    let env: Vec<Value> = (0..20)
        .map(|i| json!({"name": format!("VARIABLE_{i}"), "value": format!("the value of variable number {i}")}))
        .collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "bench", "tier": "backend"},
                     "annotations": {"description": "x".repeat(600)}},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "app", "image": "registry.example/app:1.2.3", "env": env,
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}}}]}})
}

async fn make_pods(server: &Server, count: usize) -> Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    server
        .drive_default(3600, move |i| {
            ((i as usize) < count).then(|| post(&path, &pod(&format!("pod-{i:06}"))).unwrap_or_else(|e| panic!("{e}")))
        })
        .await
        .context("making pods")?;
    Ok(())
}

async fn get_one(server: &Server, load: &Settings) -> Result<Vec<Figure>> {
    let client = server.client();
    namespace(&client).await?;
    make_pods(server, 100).await?;
    let outcome = server
        .drive_default(load.seconds, |i| Some(get(&format!("/api/v1/namespaces/{NAMESPACE}/pods/pod-{:06}", i % 100))))
        .await?;
    clean(&client, "pods").await?;
    Ok(vec![figure("requests", "/s", outcome.per_second), figure("p99", "ms", outcome.p99_ms)])
}

async fn create(server: &Server, load: &Settings) -> Result<Vec<Figure>> {
    let client = server.client();
    namespace(&client).await?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let text = "x".repeat(1800);
    let outcome = server
        .drive_default(load.seconds, move |i| {
            let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c-{i}")}, "data": {"k": text}});
            Some(post(&path, &body).unwrap_or_else(|e| panic!("{e}")))
        })
        .await?;
    clean(&client, "configmaps").await?;
    Ok(vec![figure("creates", "/s", outcome.per_second), figure("p99", "ms", outcome.p99_ms)])
}

async fn patch(server: &Server, load: &Settings) -> Result<Vec<Figure>> {
    let client = server.client();
    namespace(&client).await?;
    make_pods(server, 200).await?;
    let outcome = server
        .drive_default(load.seconds, |i| {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/pod-{:06}/status", i % 200);
            let body = json!({"status": {"message": format!("message {i}")}}).to_string().into_bytes();
            Some(request(Method::PATCH, &path, Some(("application/merge-patch+json", body)), &[]))
        })
        .await?;
    clean(&client, "pods").await?;
    Ok(vec![figure("patches", "/s", outcome.per_second), figure("p99", "ms", outcome.p99_ms)])
}

async fn list(server: &Server, load: &Settings) -> Result<Vec<Figure>> {
    let client = server.client();
    namespace(&client).await?;
    make_pods(server, load.objects).await?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let mut figures = Vec::new();
    let all = path.clone();
    let json = server.drive(load.seconds, 4, move |_| Some(get(&all))).await?;
    figures.push(figure("JSON", "MB/s", json.bytes_per_second / 1e6));
    figures.push(figure("JSON lists", "/s", json.per_second));
    let all = path.clone();
    let gzip = server
        .drive(load.seconds, 4, move |_| Some(request(Method::GET, &all, None, &[("accept-encoding", "gzip")])))
        .await?;
    figures.push(figure("gzip lists", "/s", gzip.per_second));
    let all = path.clone();
    let protobuf = server
        .drive(load.seconds, 4, move |_| {
            Some(request(Method::GET, &all, None, &[("accept", "application/vnd.kubernetes.protobuf")]))
        })
        .await?;
    figures.push(figure("protobuf", "MB/s", protobuf.bytes_per_second / 1e6));
    let limited = server.drive(load.seconds, 8, move |_| Some(get(&format!("{path}?limit=500")))).await?;
    figures.push(figure("limit=500 lists", "/s", limited.per_second));
    figures.push(figure("limit=500 p99", "ms", limited.p99_ms));
    clean(&client, "pods").await?;
    Ok(figures)
}

async fn watch(server: &Server, load: &Settings) -> Result<Vec<Figure>> {
    let client = server.client();
    namespace(&client).await?;
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let version = maps.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    let epoch = Instant::now();
    let (seen, delays) = (Arc::new(AtomicU64::new(0)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let mut watchers = Vec::new();
    for i in 0..WATCHERS {
        // A connection carries at most 250 streams, as upstream's server allows.
        let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(server.client_of(i), NAMESPACE);
        let stream = maps.watch(&WatchParams::default().timeout(290), &version).await?;
        let (seen, delays) = (Arc::clone(&seen), Arc::clone(&delays));
        watchers.push(tokio::spawn(async move {
            let mut stream = stream.boxed();
            while let Ok(Some(event)) = stream.try_next().await {
                if let WatchEvent::Added(map) = event {
                    let sent = map.data.and_then(|d| d.get("at").and_then(|v| v.parse::<u64>().ok())).unwrap_or(0);
                    let delay = epoch.elapsed().as_micros() as u64 - sent;
                    seen.fetch_add(1, Ordering::Relaxed);
                    if let Ok(mut list) = delays.lock() {
                        list.push(delay);
                    }
                }
            }
        }));
    }
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let start = Instant::now();
    let mut writes = 0u64;
    // As fast as every watcher keeps up: the next write waits until nearly all have seen the one before.
    while start.elapsed() < Duration::from_secs(load.seconds) {
        let at = epoch.elapsed().as_micros() as u64;
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("w-{writes}")},
                          "data": {"at": at.to_string(), "fill": "x".repeat(1000)}});
        let (code, answer) = Server::send(&client, post(&path, &body)?).await?;
        if code != 201 {
            bail!("writing: {}", String::from_utf8_lossy(&answer));
        }
        writes += 1;
        while seen.load(Ordering::Relaxed) + 2 * (WATCHERS as u64) < writes * WATCHERS as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let took = start.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_millis(500)).await;
    watchers.iter().for_each(|w| w.abort());
    let mut delays = delays.lock().map(|d| d.clone()).unwrap_or_default();
    delays.sort_unstable();
    let p99 = delays.get(delays.len().saturating_sub(1) * 99 / 100).copied().unwrap_or(0) as f64 / 1000.0;
    clean(&client, "configmaps").await?;
    Ok(vec![figure("writes to 1,000 watchers", "/s", writes as f64 / took), figure("delay p99", "ms", p99)])
}

fn runnable(image: &str) -> Value {
    json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": image, "imagePullPolicy": "IfNotPresent"}]})
}

async fn pod_start(server: &Server, load: &Settings) -> Result<Vec<Figure>> {
    let client = server.client();
    namespace(&client).await?;
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

async fn deployment(server: &Server, load: &Settings) -> Result<Vec<Figure>> {
    const REPLICAS: i32 = 30;
    let client = server.client();
    namespace(&client).await?;
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
