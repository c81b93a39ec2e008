//! API servers and their store under faults. Clients fight over a few objects, watches follow all of them, lists are taken;
//! meanwhile one fault after the other is drawn. At the end the histories must be linearizable, no watch may have missed or
//! repeated anything, lists must be what the changes lead to, and no object may have been served torn.

use super::checks::{self, Listed, Watched};
use super::clients::{self, Shared, recorded};
use super::history::{Answer, Call, History};
use super::http::{self, Following, Server};
use super::process::{children_of, send_signal, wait_until};
use super::stores::{Backend, Bench};
use super::wire::Mode;
use super::{Options, lock};
use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CLIENTS: usize = 8;
/// Objects are left for new ones after this many faults.
const FAULTS_PER_EPOCH: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// kill -9 of an API server.
    KillServer(usize),
    /// A server is told to end.
    StopServer(usize),
    /// A server is halted, and goes on later as if nothing had been.
    HaltServer(usize),
    /// kill -9 of the store's process.
    KillStore,
    /// Postgres' immediate shutdown.
    StopStoreAtOnce,
    /// kill -9 of one of Postgres' processes, after which it recovers from its log.
    KillStoreWorker,
    HaltStore,
    /// All connections of a server to the store end.
    Cut(usize),
    /// They end, and new ones are refused for a time.
    Refuse(usize),
    Stall(usize),
    Slow(usize),
    FullDisk,
    /// The wall clock of a server jumps.
    ServerClock(usize, i64),
    StoreClock(i64),
}

fn draw(rng: &mut StdRng, bench: &Bench) -> Fault {
    let node = rng.random_range(0..bench.nodes.len());
    let far = [-86_400, -3_600, -30, 30, 3_600, 86_400].choose(rng).copied().unwrap_or(0);
    let mut faults = vec![Fault::KillServer(node), Fault::StopServer(node), Fault::HaltServer(node)];
    if bench.backend == Backend::Embedded {
        // The server is the store.
        faults.extend([Fault::KillServer(node); 5]);
    } else {
        faults.extend([Fault::KillStore, Fault::KillStore, Fault::HaltStore]);
        faults.extend([Fault::Cut(node), Fault::Refuse(node), Fault::Stall(node), Fault::Slow(node)]);
    }
    if bench.backend == Backend::Postgres {
        faults.extend([Fault::StopStoreAtOnce, Fault::StopStoreAtOnce, Fault::KillStoreWorker]);
    }
    if bench.disk.is_some() {
        faults.push(Fault::FullDisk);
    }
    if bench.nodes[node].clock.is_some() {
        faults.push(Fault::ServerClock(node, far));
    }
    if bench.store_clock.is_some() {
        faults.push(Fault::StoreClock(far));
    }
    faults.choose(rng).copied().unwrap_or(Fault::KillServer(node))
}

/// Does it, and after a time undoes what does not end by itself.
async fn inflict(bench: &mut Bench, fault: Fault, rng: &mut StdRng) -> Result<()> {
    let some_time = Duration::from_millis(rng.random_range(50..2_000));
    match fault {
        Fault::KillServer(node) => {
            bench.nodes[node].process.end("KILL").await?;
            tokio::time::sleep(some_time / 8).await;
            bench.nodes[node].process.start()
        }
        Fault::StopServer(node) => {
            bench.nodes[node].process.end("TERM").await?;
            bench.nodes[node].process.start()
        }
        Fault::HaltServer(node) => {
            bench.nodes[node].process.signal("STOP")?;
            tokio::time::sleep(some_time).await;
            bench.nodes[node].process.signal("CONT")
        }
        Fault::KillStore | Fault::StopStoreAtOnce => {
            let store = bench.store.as_mut().context("no store")?;
            store.end(if fault == Fault::KillStore { "KILL" } else { "QUIT" }).await?;
            tokio::time::sleep(some_time / 4).await;
            store.start()
        }
        Fault::KillStoreWorker => {
            let workers = bench.store.as_ref().and_then(|s| s.id()).map(children_of).unwrap_or_default();
            workers.choose(rng).map_or(Ok(()), |worker| send_signal(*worker, "KILL"))
        }
        Fault::HaltStore => {
            // With all its processes: Postgres has one for each connection.
            let store = bench.store.as_ref().and_then(|s| s.id()).context("no store")?;
            let all: Vec<u32> = std::iter::once(store).chain(children_of(store)).collect();
            all.iter().try_for_each(|process| send_signal(*process, "STOP"))?;
            tokio::time::sleep(some_time).await;
            all.iter().try_for_each(|process| send_signal(*process, "CONT"))
        }
        Fault::Cut(node) | Fault::Refuse(node) | Fault::Stall(node) | Fault::Slow(node) => {
            let wire = bench.nodes[node].wire.as_ref().context("no wire")?;
            match fault {
                Fault::Refuse(_) => wire.set(Mode::Refuse),
                Fault::Stall(_) => wire.set(Mode::Stall),
                Fault::Slow(_) => {
                    wire.set(Mode::Slow { pause: Duration::from_millis(rng.random_range(1..60)), bytes: 700 })
                }
                _ => {}
            }
            if matches!(fault, Fault::Cut(_) | Fault::Refuse(_)) {
                wire.cut();
            }
            tokio::time::sleep(some_time).await;
            wire.set(Mode::Flow);
            // What has stalled for a while may never come back.
            if matches!(fault, Fault::Stall(_)) && rng.random_bool(0.5) {
                wire.cut();
            }
            Ok(())
        }
        Fault::FullDisk => full_disk(bench, some_time, rng).await,
        Fault::ServerClock(node, seconds) => {
            let clock = bench.nodes[node].clock.as_ref().context("no clock")?;
            clock.set(seconds)?;
            // The library looks at its file once a second.
            tokio::time::sleep(Duration::from_millis(1_100) + some_time).await;
            // Sometimes it stays wrong, until the next jump.
            if rng.random_bool(0.5) { clock.set(0) } else { Ok(()) }
        }
        Fault::StoreClock(seconds) => {
            let clock = bench.store_clock.as_ref().context("no clock")?;
            clock.set(seconds)?;
            tokio::time::sleep(Duration::from_millis(1_100) + some_time).await;
            if rng.random_bool(0.5) { clock.set(0) } else { Ok(()) }
        }
    }
}

async fn full_disk(bench: &mut Bench, some_time: Duration, rng: &mut StdRng) -> Result<()> {
    let left = if rng.random_bool(0.5) { 0 } else { rng.random_range(0..2 << 20) };
    let disk = bench.disk.as_ref().context("no disk")?;
    disk.fill(left)?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    if bench.backend == Backend::Embedded {
        // Reads go on. The server itself must not have ended either.
        let answer = bench.nodes[0].server.list(500).await?;
        ensure!(answer.is_some(), "a full disk ended reads:\n{}", bench.logs());
        ensure!(bench.nodes[0].process.runs(), "a full disk ended the server:\n{}", bench.logs());
    }
    tokio::time::sleep(some_time).await;
    bench.disk.as_ref().context("no disk")?.empty()
}

/// All servers take writes again. The writes are part of the histories.
async fn recover(bench: &mut Bench, history: &History, shared: &Shared, number: u32) -> Result<()> {
    bench.start_nodes().await?;
    for index in 0..bench.nodes.len() {
        let server = bench.nodes[index].server.clone();
        let mut tries = 0;
        let written = wait_until(Duration::from_secs(40), async || {
            tries += 1;
            let id = shared.ids.fetch_add(1, Ordering::SeqCst) + 1;
            let key = format!("object-probe-{number}-{index}-{tries}");
            matches!(recorded(&*server, history, &key, Call::Create(id)).await, Ok(Answer::Put(_)))
        });
        ensure!(written.await, "{} takes no writes 40 s after the fault:\n{}", server.name, bench.logs());
    }
    Ok(())
}

async fn take_lists(
    servers: Vec<Arc<Server>>,
    following: Arc<Following>,
    lists: Arc<Mutex<Vec<Listed>>>,
) -> Result<()> {
    let mut turn = 0;
    while !following.stop.load(Ordering::SeqCst) {
        turn += 1;
        let page = if turn % 3 == 0 { 7 } else { 500 };
        if let Some(list) = servers[turn % servers.len()].list(page).await? {
            lock(&lists).push(list);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

pub async fn run(backend: Backend, options: &Options, seed: u64) -> Result<()> {
    println!("{backend:?}: seed {seed}, {} faults", options.rounds);
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir()?;
    let mut bench = Bench::start(backend, &options.coxswain, directory.path()).await?;
    if bench.disk.is_none() {
        println!("  no full disks: they need root and dev/in-namespace.sh");
    }
    if bench.nodes[0].clock.is_none() {
        println!("  no clocks that jump: they need Debian's package faketime");
    }
    let servers: Vec<Arc<Server>> = bench.nodes.iter().map(|n| n.server.clone()).collect();
    let (history, shared) = (Arc::new(History::new()), Arc::new(Shared::default()));
    // History is kept by the store's own clock, and a jump of a day makes all of it old.
    let following = Arc::new(Following { may_expire: bench.nodes[0].clock.is_some(), ..Following::default() });
    let mut watches = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        let name = format!("the watch of server {}", index + 1);
        watches.push(tokio::spawn(http::watch(vec![server.clone()], name, following.clone())));
    }
    if servers.len() > 1 {
        let name = "the watch of both servers".to_owned();
        watches.push(tokio::spawn(http::watch(servers.clone(), name, following.clone())));
    }
    let lists = Arc::new(Mutex::new(Vec::new()));
    let lister = tokio::spawn(take_lists(servers.clone(), following.clone(), lists.clone()));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(clients::work(servers.clone(), history.clone(), shared.clone(), rng.random())))
        .collect();

    let begun = Instant::now();
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for number in 1..=options.rounds {
        tokio::time::sleep(Duration::from_millis(rng.random_range(20..700))).await;
        let fault = draw(&mut rng, &bench);
        let kind = format!("{fault:?}");
        *counts.entry(kind.split('(').next().unwrap_or_default().to_owned()).or_default() += 1;
        tracing::info!(number, ?fault);
        let at = |e: anyhow::Error| e.context(format!("seed {seed}, fault {number} ({fault:?})"));
        inflict(&mut bench, fault, &mut rng).await.map_err(at)?;
        // Often the next fault comes before this one is got over.
        if rng.random_bool(0.7) || number == options.rounds {
            recover(&mut bench, &history, &shared, number).await.map_err(at)?;
        } else {
            // What has died of the fault by itself must run for the next one to have something to hit.
            for node in &mut bench.nodes {
                if !node.process.runs() {
                    node.process.start()?;
                }
            }
        }
        if number % FAULTS_PER_EPOCH == 0 {
            shared.epoch.fetch_add(1, Ordering::SeqCst);
        }
        let ended = lister.is_finished() || watches.iter().any(|w| w.is_finished());
        if ended || clients.iter().any(|c| c.is_finished()) {
            println!("  seed {seed}: something was found after fault {number} ({fault:?})");
            break;
        }
    }
    shared.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await?.with_context(|| format!("seed {seed}"))?;
    }
    let mut histories = history.take();
    // What everything has come to, as each server tells it, belongs to the histories.
    for server in &servers {
        for key in histories.keys() {
            recorded(&**server, &history, key, Call::Get).await.with_context(|| format!("seed {seed}"))?;
        }
    }
    for (key, operations) in history.take() {
        histories.entry(key).or_default().extend(operations);
    }
    let newest = newest_revision(&histories);
    let caught_up = wait_until(Duration::from_secs(60), async || following.reached.load(Ordering::SeqCst) >= newest);
    let caught_up = caught_up.await;
    following.stop.store(true, Ordering::SeqCst);
    let mut stories: Vec<Watched> = Vec::new();
    for watch in watches {
        stories.extend(watch.await?.with_context(|| format!("seed {seed}"))?);
    }
    lister.await?.with_context(|| format!("seed {seed}"))?;
    ensure!(caught_up, "seed {seed}: no watch reached revision {newest} within 60 s:\n{}", bench.logs());
    bench.stop().await?;

    let kinds: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    println!("  {}, in {:.0} s", kinds.join(", "), begun.elapsed().as_secs_f64());
    let lists = std::mem::take(&mut *lock(&lists));
    match checks::check(&histories, &stories, &lists) {
        Ok(summary) => {
            println!(
                "  {} calls ({} acknowledged writes, {} answers lost) of {} objects; {} changes watched in {} stories; {} lists: \
                 all linearizable, nothing lost, nothing missed",
                summary.operations,
                summary.acknowledged,
                summary.unknown,
                summary.objects,
                summary.events,
                stories.len(),
                summary.lists
            );
            Ok(())
        }
        Err(wrong) => {
            let kept = directory.keep();
            bail!(
                "{backend:?}, seed {seed}: {} findings, logs in {}; the first:\n{}",
                wrong.len(),
                kept.display(),
                wrong[..wrong.len().min(8)].join("\n")
            )
        }
    }
}

fn newest_revision(histories: &BTreeMap<String, Vec<super::history::Operation>>) -> u64 {
    let revisions = histories.values().flatten().filter_map(|o| match o.answer {
        Answer::Put(version) => Some(version.revision),
        _ => None,
    });
    revisions.max().unwrap_or_default()
}
