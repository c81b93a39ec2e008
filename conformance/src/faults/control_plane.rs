//! kill -9 of the whole control plane, at random moments and under load. After every restart nothing acknowledged may be
//! missing, running pods must not have been touched, and a watch must go on from where it was, without a gap.
//!
//! Random choices come from one seed, which is printed.

use super::{Options, lock};
use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

const NAMESPACE: &str = "faults";
const WRITERS: usize = 6;
const READY_SECONDS_MAX: u64 = 60;

/// What one writer knows of one object.
#[derive(Clone, Debug, PartialEq)]
enum Known {
    /// Acknowledged with this counter value.
    Value(u64),
    Gone,
    /// The answer was lost: either state is right.
    Either(Box<Known>, Box<Known>),
}

impl Known {
    fn allows(&self, found: Option<u64>) -> bool {
        match self {
            Known::Value(v) => found == Some(*v),
            Known::Gone => found.is_none(),
            Known::Either(a, b) => a.allows(found) || b.allows(found),
        }
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Every acknowledged write: object and resourceVersion.
    acknowledged: Mutex<BTreeSet<(String, u64)>>,
    /// Every change the watch saw.
    seen: Mutex<BTreeSet<(String, u64)>>,
    watched_to: AtomicU64,
}

pub async fn run(options: &Options, seed: u64) -> Result<()> {
    println!("seed {seed}, {} rounds", options.rounds);
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir()?;
    let mut server = start(options, dir.path()).await?;
    let client = connect(dir.path())?;
    prepare(&client).await?;
    let pods = if options.images.is_some() { run_pods(&client).await? } else { BTreeMap::new() };

    let shared = Arc::new(Shared::default());
    let watcher = tokio::spawn(watch(client.clone(), Arc::clone(&shared)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| tokio::spawn(write(client.clone(), w, StdRng::seed_from_u64(rng.random()), Arc::clone(&shared))))
        .collect();
    let mut slowest = Duration::ZERO;
    for round in 1..=options.rounds {
        tokio::time::sleep(Duration::from_millis(rng.random_range(20..900))).await;
        server.kill().await.context("killing the server")?;
        let restart = Instant::now();
        server = start(options, dir.path()).await.with_context(|| format!("round {round}"))?;
        slowest = slowest.max(restart.elapsed());
        ensure!(!watcher.is_finished(), "round {round}: the watch ended: {:?}", watcher.await);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    shared.stop.store(true, Ordering::SeqCst);
    let mut known = BTreeMap::new();
    for writer in writers {
        known.extend(writer.await??);
    }

    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let list = maps.list(&ListParams::default()).await?;
    let found: BTreeMap<String, u64> =
        list.items.iter().filter_map(|m| Some((m.metadata.name.clone()?, counter(m)?))).collect();
    for (name, known) in &known {
        let found = found.get(name).copied();
        ensure!(known.allows(found), "{name} should be {known:?}, and is {found:?}");
    }
    let last: u64 = list.metadata.resource_version.as_deref().unwrap_or("0").parse()?;
    let end = Instant::now() + Duration::from_secs(20);
    let missing = loop {
        let seen = lock(&shared.seen).clone();
        let missing: Vec<_> = lock(&shared.acknowledged).difference(&seen).cloned().collect();
        if missing.is_empty() || Instant::now() > end {
            break missing;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    ensure!(
        missing.is_empty(),
        "the watch, at {} of {last}, missed {} acknowledged changes, first {:?}",
        shared.watched_to.load(Ordering::SeqCst),
        missing.len(),
        missing[0]
    );
    watcher.abort();
    ensure!(
        pods == containers(&client).await?,
        "running containers were touched: {pods:?} became {:?}",
        containers(&client).await?
    );
    let count = lock(&shared.acknowledged).len();
    println!(
        "{count} acknowledged writes over {} restarts, slowest restart {:.2} s",
        options.rounds,
        slowest.as_secs_f64()
    );
    server.kill().await?;
    Ok(())
}

async fn start(options: &Options, dir: &Path) -> Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log"))?;
    let mut command = Command::new(&options.coxswain);
    command.arg("up").arg("--data-dir").arg(dir.join("data"));
    match &options.images {
        // However full the disk of the machine that runs the test is: evictions would look like lost pods.
        Some(images) => command.args(["--eviction-hard", "memory.available<50Mi"]).arg("--image-archive").arg(images),
        None => command.args(["--hollow-nodes", "1"]),
    };
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("starting {}", options.coxswain.display()))?;
    let end = Instant::now() + Duration::from_secs(READY_SECONDS_MAX);
    loop {
        let ready = async {
            let response = connect(dir)?.request_text(http_get("/readyz")?).await?;
            anyhow::Ok(response == "ok")
        };
        if ready.await.unwrap_or(false) {
            return Ok(child);
        }
        let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        if let Some(status) = child.try_wait()? {
            bail!("the server ended with {status}:\n{}", log());
        }
        ensure!(Instant::now() < end, "the server was not ready within {READY_SECONDS_MAX} s:\n{}", log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn connect(dir: &Path) -> Result<Client> {
    Ok(coxswain_client::connect::from_kubeconfig(&dir.join("data/admin.kubeconfig"))?)
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

async fn prepare(client: &Client) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let object = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    namespaces.create(&PostParams::default(), &object).await?;
    Ok(())
}

/// Three running pods, by container id and restart count.
async fn run_pods(client: &Client) -> Result<BTreeMap<String, (String, i32)>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    for i in 0..3 {
        let pod = json!({"metadata": {"name": format!("pod-{i}")},
            "spec": {"containers": [{"name": "app", "image": "coxswain.test/app:1",
                                     "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1}}]}});
        // The namespace's service account comes a moment after the namespace.
        let end = Instant::now() + Duration::from_secs(10);
        while let Err(e) = pods.create(&PostParams::default(), &serde_json::from_value(pod.clone())?).await {
            ensure!(Instant::now() < end, "creating a pod: {e}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let running = containers(client).await?;
        if running.len() == 3 {
            return Ok(running);
        }
        ensure!(Instant::now() < end, "the pods did not run: {running:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn containers(client: &Client) -> Result<BTreeMap<String, (String, i32)>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let list = pods.list(&ListParams::default()).await?;
    let one = |pod: &Pod| {
        let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?.clone();
        status.state.as_ref()?.running.as_ref()?;
        Some((pod.metadata.name.clone()?, (status.container_id?, status.restart_count)))
    };
    Ok(list.items.iter().filter_map(one).collect())
}

fn counter(map: &ConfigMap) -> Option<u64> {
    map.data.as_ref()?.get("n")?.parse().ok()
}

fn version(map: &ConfigMap) -> Result<u64> {
    Ok(map.metadata.resource_version.as_deref().context("no resourceVersion")?.parse()?)
}

/// Creates, patches and deletes objects of its own, and keeps book of what was acknowledged.
async fn write(client: Client, writer: usize, mut rng: StdRng, shared: Arc<Shared>) -> Result<BTreeMap<String, Known>> {
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    let mut n = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        n += 1;
        let name = format!("w{writer}-{}", rng.random_range(0..40));
        let before = known.get(&name).cloned().unwrap_or(Known::Gone);
        let delete = before != Known::Gone && rng.random_ratio(1, 5);
        let (wanted, outcome) = if delete {
            let outcome = maps.delete(&name, &DeleteParams::default()).await;
            (Known::Gone, outcome.map(|_| None))
        } else if before == Known::Gone {
            let map: ConfigMap =
                serde_json::from_value(json!({"metadata": {"name": name}, "data": {"n": n.to_string()}}))?;
            (Known::Value(n), maps.create(&PostParams::default(), &map).await.map(Some))
        } else {
            let patch = json!({"data": {"n": n.to_string()}});
            let outcome = maps.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
            (Known::Value(n), outcome.map(Some))
        };
        let now = match outcome {
            Ok(answer) => {
                if let Some(map) = answer {
                    lock(&shared.acknowledged).insert((name.clone(), version(&map)?));
                }
                wanted
            }
            // Refused: the write before, whose answer was lost, had come through after all, or had not.
            Err(kube::Error::Api(e)) if e.code == 409 || e.code == 404 => match maps.get_opt(&name).await {
                Ok(found) => found.as_ref().and_then(counter).map_or(Known::Gone, Known::Value),
                Err(_) => continue,
            },
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Known::Either(Box::new(before.clone()), Box::new(wanted))
            }
        };
        // What is found must be one of the states that were possible.
        if let (Known::Either(..), Known::Value(_) | Known::Gone) = (&before, &now) {
            let found = if let Known::Value(v) = now { Some(v) } else { None };
            let possible = before.allows(found) || found == Some(n) || delete;
            ensure!(possible, "{name} was {before:?} and is now {now:?}");
        }
        known.insert(name, now);
    }
    Ok(known)
}

/// One watch over all restarts. It never lists again: a gap would show.
async fn watch(client: Client, shared: Arc<Shared>) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let mut at = maps.list(&ListParams::default()).await?.metadata.resource_version.context("no resourceVersion")?;
    loop {
        let params = WatchParams::default().timeout(290);
        let Ok(stream) = maps.watch(&params, &at).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut stream = stream.boxed();
        while let Ok(Some(event)) = stream.try_next().await {
            let map = match event {
                WatchEvent::Added(map) | WatchEvent::Modified(map) | WatchEvent::Deleted(map) => map,
                WatchEvent::Bookmark(mark) => {
                    at = mark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(e) => bail!("the watch from {at} was refused: {e:?}"),
            };
            let (now, before) = (version(&map)?, at.parse::<u64>()?);
            ensure!(now > before, "the watch went from {before} to {now}");
            lock(&shared.seen).insert((map.metadata.name.clone().unwrap_or_default(), now));
            shared.watched_to.store(now, Ordering::SeqCst);
            at = now.to_string();
        }
    }
}
