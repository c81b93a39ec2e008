//! What the embedded store does on this machine: durable puts a second, the delay of changes, lists, the start with many
//! keys. `cargo run --release --example storage_bench [DIRECTORY]`

use bytes::Bytes;
use coxswain_storage::embedded::Options;
use coxswain_storage::{Embedded, Expect, ListOptions, Op, Revision, Storage, Write};
use futures::StreamExt;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const RUN: Duration = Duration::from_secs(4);
const MANY: usize = 1_000_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if let [flag, path] = &arguments[..]
        && flag == "--start"
    {
        return runtime.block_on(start(Path::new(path)));
    }
    let base = arguments.first().map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(base)?;
    for (name, updates) in [("create", false), ("update", true)] {
        for writers in [1, 16, 128, 256] {
            let path = directory.path().join(format!("{name}-{writers}"));
            runtime.block_on(puts(&path, name, writers, updates))?;
            std::fs::remove_dir_all(path)?;
        }
    }
    // The start and the memory of it are those of a process that has done nothing else.
    let path = directory.path().join("many");
    runtime.block_on(fill(&path))?;
    let status = std::process::Command::new(std::env::current_exe()?).arg("--start").arg(path).status()?;
    anyhow::ensure!(status.success());
    Ok(())
}

/// Something that compresses about as well as the bytes of an object.
fn sample(rng: &mut StdRng, length: usize) -> Bytes {
    let mut value = vec![b'a'; length];
    rng.fill_bytes(&mut value[..length / 3]);
    value.into()
}

async fn puts(path: &Path, name: &str, writers: usize, updates: bool) -> anyhow::Result<()> {
    let store = Arc::new(Embedded::open(path, Options::default())?);
    let mut changes = store.changes("/", Revision(0)).await?;
    let started = Instant::now();
    let delays = tokio::spawn(async move {
        let mut delays = Vec::new();
        while let Some(Ok(commit)) = changes.next().await {
            for change in commit.changes {
                let sent = change.value.map_or([0; 8], |e| e.value[..8].try_into().unwrap_or_default());
                delays.push(started.elapsed().as_micros() as u64 - u64::from_le_bytes(sent));
            }
        }
        delays
    });
    let tasks = (0..writers).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(writer as u64);
            let body = sample(&mut rng, 2_048);
            let mut latencies = Vec::new();
            while started.elapsed() < RUN {
                let number = if updates { latencies.len() % 100 } else { latencies.len() };
                let begun = Instant::now();
                let mut value = body.to_vec();
                value[..8].copy_from_slice(&(started.elapsed().as_micros() as u64).to_le_bytes());
                let op = Op::Put { value: value.into(), ttl: None };
                let key = format!("/registry/pods/namespace-{writer}/pod-{number}").into();
                store.commit(vec![Write { key, expect: Expect::Any, op }]).await?;
                latencies.push(begun.elapsed().as_micros() as u64);
            }
            anyhow::Ok(latencies)
        })
    });
    let mut latencies = Vec::new();
    for task in futures::future::join_all(tasks).await {
        latencies.extend(task??);
    }
    let rate = latencies.len() as f64 / started.elapsed().as_secs_f64();
    drop(store);
    let mut delays = delays.await?;
    let (p50, p99, max) = (rank(&mut latencies, 0.5), rank(&mut latencies, 0.99), rank(&mut latencies, 1.0));
    println!(
        "{name} 2 KB, {writers:3} writers: {rate:7.0} puts/s, commit p50 {p50} µs, p99 {p99} µs, max {max} µs; \
         from the call to the reader of changes p50 {} µs, p99 {} µs ({} read)",
        rank(&mut delays, 0.5),
        rank(&mut delays, 0.99),
        delays.len(),
    );
    Ok(())
}

fn rank(values: &mut [u64], share: f64) -> u64 {
    values.sort_unstable();
    values.get(((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1))).copied().unwrap_or(0)
}

async fn fill(path: &Path) -> anyhow::Result<()> {
    let store = Embedded::open(path, Options::default())?;
    let mut rng = StdRng::seed_from_u64(1);
    let begun = Instant::now();
    for chunk in 0..MANY / 1_000 {
        let write = |i| Write {
            key: format!("/registry/pods/namespace-{chunk}/pod-{i}").into(),
            expect: Expect::Absent,
            op: Op::Put { value: sample(&mut rng, 1_024), ttl: None },
        };
        store.commit((0..1_000).map(write).collect()).await?;
    }
    println!("{MANY} keys of 1 KB written in {:?}", begun.elapsed());
    Ok(())
}

async fn start(path: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    let store = Embedded::open(path, Options::default())?;
    println!("opened with {MANY} keys in {:?}, resident {}", begun.elapsed(), resident());
    for limit in [500, 10_000] {
        let begun = Instant::now();
        let page = store.list("/registry/pods/", ListOptions { limit: Some(limit), ..Default::default() }).await?;
        println!("list of {} in {:?}", page.entries.len(), begun.elapsed());
    }
    let begun = Instant::now();
    for i in 0..10_000 {
        let key = format!("/registry/pods/namespace-{}/pod-{}", i * 7 % 1_000, i % 1_000);
        anyhow::ensure!(store.get(&key, None).await?.0.is_some());
    }
    println!("get of one in {:?}, resident {}", begun.elapsed() / 10_000, resident());
    Ok(())
}

fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("unknown").trim().to_owned()
}
