//! What is measured. A case leaves the server as it found it.

mod cluster;
mod fanout;
mod lists;
mod memory;
mod requests;

use crate::load::{Call, IN_FLIGHT, Outcome, Server, Settings};
use anyhow::Result;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use std::sync::Arc;

pub struct Figure {
    pub name: &'static str,
    pub unit: &'static str,
    pub value: f64,
}

fn figure(name: &'static str, unit: &'static str, value: f64) -> Figure {
    Figure { name, unit, value }
}

type Run = for<'a> fn(&'a Arc<Server>, &'a Settings) -> BoxFuture<'a, Result<Vec<Figure>>>;

pub struct Case {
    pub name: &'static str,
    pub about: &'static str,
    pub run: Run,
}

pub const CASES: &[Case] = &[
    Case { name: "get", about: "GET of a pod of 4 KB", run: |s, l| Box::pin(requests::get(s, l)) },
    Case {
        name: "create",
        about: "durable CREATE of config maps of 2 KB",
        run: |s, l| Box::pin(requests::create(s, l)),
    },
    Case { name: "patch-status", about: "merge PATCH of a pod's status", run: |s, l| Box::pin(requests::patch(s, l)) },
    Case { name: "list-json", about: "LIST of all pods as JSON", run: |s, l| Box::pin(lists::whole(s, l, &[])) },
    Case {
        name: "list-gzip",
        about: "the same, compressed",
        run: |s, l| Box::pin(lists::whole(s, l, &[("accept-encoding", "gzip")])),
    },
    Case {
        name: "list-protobuf",
        about: "LIST of all pods as protobuf",
        run: |s, l| Box::pin(lists::whole(s, l, &[("accept", "application/vnd.kubernetes.protobuf")])),
    },
    Case { name: "list-limit", about: "LIST of the first 500 pods", run: |s, l| Box::pin(lists::limited(s, l)) },
    Case {
        name: "watch-fanout",
        about: "one writer, many watchers of its namespace",
        run: |s, l| Box::pin(fanout::run(s, l)),
    },
    Case {
        name: "memory",
        about: "resident memory with all pods (needs the server on this machine, or --pid)",
        run: |s, l| Box::pin(memory::run(s, l)),
    },
    Case {
        name: "pod-start",
        about: "pod create to Running, one after another (needs nodes)",
        run: |s, l| Box::pin(cluster::pod_start(s, l)),
    },
    Case {
        name: "deployment",
        about: "Deployment of 30 until all are ready (needs nodes)",
        run: |s, l| Box::pin(cluster::deployment(s, l)),
    },
];

/// Cases that need more than an API server: they run only when they are named.
pub const NEED_NODES: [&str; 2] = ["pod-start", "deployment"];

const NAMESPACE: &str = "bench";
const PODS: &str = "/api/v1/namespaces/bench/pods";
const CONFIG_MAPS: &str = "/api/v1/namespaces/bench/configmaps";

/// As long as it takes.
const NO_END: u64 = 24 * 3600;

async fn namespace(server: &Server) -> Result<()> {
    let body = json!({"metadata": {"name": NAMESPACE}}).to_string().into_bytes();
    server.send(0, Call::post("/api/v1/namespaces", body)).await?;
    // Where no controller runs, the service account that pods need is missing.
    let body = json!({"metadata": {"name": "default"}}).to_string().into_bytes();
    server.send(0, Call::post(format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts"), body)).await?;
    Ok(())
}

/// Sends one request for each of so many numbers.
async fn each(
    server: &Arc<Server>,
    count: usize,
    make: impl Fn(u64) -> Call + Send + Sync + 'static,
) -> Result<Outcome> {
    server.drive(NO_END, IN_FLIGHT, move |i| ((i as usize) < count).then(|| make(i))).await
}

fn pod_path(i: u64) -> String {
    format!("{PODS}/pod-{i:06}")
}

async fn make_pods(server: &Arc<Server>, count: usize) -> Result<()> {
    namespace(server).await?;
    each(server, count, |i| Call::post(PODS, pod(&format!("pod-{i:06}")).to_string().into_bytes())).await?;
    Ok(())
}

async fn delete_pods(server: &Arc<Server>, count: usize) -> Result<()> {
    each(server, count, |i| Call::delete(format!("{}?gracePeriodSeconds=0", pod_path(i)))).await?;
    Ok(())
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

/// Rate, delays, and what both sides spent on it.
fn figures_of(outcome: &Outcome) -> Vec<Figure> {
    let mut figures = vec![
        figure("requests", "/s", outcome.per_second()),
        figure("p50", "ms", outcome.p50_ms),
        figure("p99", "ms", outcome.p99_ms),
    ];
    figures.extend(costs_of(outcome));
    figures
}

fn costs_of(outcome: &Outcome) -> Vec<Figure> {
    let mut figures = Vec::new();
    if let Some(us) = outcome.server_us {
        figures.push(figure("server CPU a request", "us", us));
    }
    figures.push(figure("load generator", "cores", outcome.own_cores));
    figures
}
