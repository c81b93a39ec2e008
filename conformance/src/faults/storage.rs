//! API servers and their store under faults. Clients fight over a few objects, watches follow all of them, lists are taken;
//! meanwhile one fault after the other is drawn. At the end the histories must be linearizable, no watch may have missed or
//! repeated anything, lists must be what the changes lead to, and no object may have been served torn.

use super::Options;
use super::history::Answer;
use super::load::Load;
use super::process::{children_of, send_signal, wait_until};
use super::stores::{Backend, Bench};
use super::wire::Mode;
use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

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
async fn recover(bench: &mut Bench, load: &Load, number: u32) -> Result<()> {
    bench.start_nodes().await?;
    for index in 0..bench.nodes.len() {
        let server = bench.nodes[index].server.clone();
        let mut tries = 0;
        let written = wait_until(Duration::from_secs(40), async || {
            tries += 1;
            let key = format!("object-probe-{number}-{index}-{tries}");
            matches!(load.create(&server, &key).await, Ok(Answer::Put(_)))
        });
        ensure!(written.await, "{} takes no writes 40 s after the fault:\n{}", server.name, bench.logs());
    }
    Ok(())
}

pub async fn run(backend: Backend, options: &Options, seed: u64) -> Result<()> {
    println!("{backend:?}: seed {seed}, {} faults", options.rounds);
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir()?;
    let servers = if backend == Backend::Embedded { 1 } else { 2 };
    let mut bench = Bench::start(backend, servers, &options.coxswain, directory.path(), &[]).await?;
    if bench.disk.is_none() {
        println!("  no full disks: they need root and dev/in-namespace.sh");
    }
    if bench.nodes[0].clock.is_none() {
        println!("  no clocks that jump: they need Debian's package faketime");
    }
    // History is kept by the store's own clock, and a jump of a day makes all of it old.
    let may_expire = bench.nodes[0].clock.is_some();
    let load = Load::start(bench.servers(), bench.servers(), may_expire, &mut rng);

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
            recover(&mut bench, &load, number).await.map_err(at)?;
        } else {
            // What has died of the fault by itself must run for the next one to have something to hit.
            for node in &mut bench.nodes {
                if !node.process.runs() {
                    node.process.start()?;
                }
            }
        }
        if number % FAULTS_PER_EPOCH == 0 {
            load.next_epoch();
        }
        if load.has_ended() {
            println!("  seed {seed}: something was found after fault {number} ({fault:?})");
            break;
        }
    }
    let found = load.finish(&mut bench).await.with_context(|| format!("{backend:?}, seed {seed}"));
    let kinds: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    println!("  {}, in {:.0} s", kinds.join(", "), begun.elapsed().as_secs_f64());
    keep_on_failure(found, directory)
}

/// What was found, and the logs if something was.
pub fn keep_on_failure(found: Result<String>, directory: tempfile::TempDir) -> Result<()> {
    match found {
        Ok(summary) => {
            println!("  {summary}");
            Ok(())
        }
        Err(wrong) => {
            let kept = directory.keep();
            Err(wrong.context(format!("logs in {}", kept.display())))
        }
    }
}
