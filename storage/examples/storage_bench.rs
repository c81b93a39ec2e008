//! What each backend does on this machine: durable creates a second and how long they take, how long a change takes from its
//! commit to a reader, bytes on the disk, the start with many keys, memory.
//!
//!     cargo run --release -p coxswain-storage --example storage_bench -- [--directory DIR] [--seconds N] [--keys N] \
//!         [embedded] [etcd[=URL]] [postgres[=URL]]
//!
//! Without a URL an etcd or a Postgres of its own is started in DIR, and ended. Without a backend all three are measured.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use coxswain_storage::{Embedded, Etcd, Expect, ListOptions, Op, Postgres, Revision, Storage, Write};
use coxswain_storage::{embedded, etcd, postgres};
use coxswain_testing::{ports, postgres::command as postgres_command};
use futures::StreamExt;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const WRITERS: [usize; 4] = [1, 16, 64, 256];
/// Creates a second of the run that measures the delay of changes without a queue of writers.
const PACED: u64 = 200;
const VALUE_BYTES: usize = 2_048;
const FILL_BYTES: usize = 1_024;
/// etcd takes at most 128 operations in a transaction.
const FILL_BATCH: usize = 100;

struct Arguments {
    directory: PathBuf,
    run: Duration,
    keys: usize,
    backends: Vec<String>,
}

fn main() -> Result<()> {
    let mut arguments =
        Arguments { directory: std::env::temp_dir(), run: Duration::from_secs(4), keys: 1_000_000, backends: vec![] };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--directory" => arguments.directory = value()?.into(),
            "--seconds" => arguments.run = Duration::from_secs(value()?.parse()?),
            "--keys" => arguments.keys = value()?.parse()?,
            _ if word.starts_with('-') => bail!("unknown flag {word}"),
            _ => arguments.backends.push(word),
        }
    }
    if arguments.backends.is_empty() {
        arguments.backends = ["embedded", "etcd", "postgres"].map(str::to_owned).to_vec();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        for backend in &arguments.backends {
            measure(backend, &arguments).await.with_context(|| backend.clone())?;
        }
        Ok(())
    })
}

/// A backend with the process that it needs, which ends with this.
struct Bench {
    kind: String,
    /// Of a server that somebody else runs.
    url: Option<String>,
    directory: tempfile::TempDir,
    server: Option<(Child, String)>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

impl Bench {
    fn new(backend: &str, base: &Path) -> Result<Bench> {
        let (kind, url) = match backend.split_once('=') {
            Some((kind, url)) => (kind, Some(url.to_owned())),
            None => (backend, None),
        };
        ensure!(["embedded", "etcd", "postgres"].contains(&kind), "there is no backend {kind}");
        let directory = tempfile::tempdir_in(base)?;
        let data = directory.path().join("data");
        if kind == "postgres" && url.is_none() {
            std::fs::create_dir(&data)?;
            let _ = Command::new("chown").arg("-R").arg("postgres").arg(directory.path()).status();
            let made = postgres_command("initdb")
                .args(["--username=coxswain", "--auth=trust", "--encoding=UTF8", "--locale=C", "-D"])
                .arg(&data)
                .stdout(Stdio::null())
                .status()?;
            ensure!(made.success(), "initdb failed");
        }
        Ok(Bench { kind: kind.to_owned(), url, directory, server: None })
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Starts the server that the backend needs, if it needs one.
    fn start(&mut self) -> Result<()> {
        if self.url.is_some() || self.server.is_some() || self.kind == "embedded" {
            return Ok(());
        }
        let (mut command, url) = if self.kind == "etcd" {
            let (url, peers) =
                (format!("http://127.0.0.1:{}", ports::free()), format!("http://127.0.0.1:{}", ports::free()));
            let mut command = Command::new("etcd");
            command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peers]);
            command.args(["--initial-advertise-peer-urls", &peers, "--initial-cluster", &format!("default={peers}")]);
            command.args(["--quota-backend-bytes", "8589934592", "--data-dir"]).arg(self.data());
            (command, url)
        } else {
            let mut command = postgres_command("postgres");
            command.arg("-D").arg(self.data()).args(["-c", "listen_addresses=", "-k"]).arg(self.directory.path());
            (command, format!("host={} user=coxswain dbname=postgres", self.directory.path().display()))
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        self.server = Some((child, url));
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let Some((mut child, _)) = self.server.take() else { return Ok(()) };
        // Postgres' fast shutdown; etcd takes it for an interrupt too.
        Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
        child.wait()?;
        Ok(())
    }

    async fn open(&self) -> Result<Arc<dyn Storage>> {
        let url = self.url.clone().or(self.server.as_ref().map(|(_, url)| url.clone())).unwrap_or_default();
        let begun = Instant::now();
        loop {
            let opened: Result<Arc<dyn Storage>, coxswain_storage::Error> = match self.kind.as_str() {
                "embedded" => Embedded::open(&self.data(), embedded::Options::default()).map(|s| Arc::new(s) as _),
                "etcd" => {
                    let options = etcd::Options { root: "/".to_owned(), ..etcd::Options::default() };
                    Etcd::open(std::slice::from_ref(&url), options).await.map(|s| Arc::new(s) as _)
                }
                _ => Postgres::open(&url, postgres::Options::default()).await.map(|s| Arc::new(s) as _),
            };
            match opened {
                Ok(store) => return Ok(store),
                Err(error) if begun.elapsed() > Duration::from_secs(60) => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn disk_bytes(&self) -> Result<u64> {
        let output = Command::new("du").args(["-s", "-B1"]).arg(self.data()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().next().and_then(|n| n.parse().ok()).context("du says nothing")
    }

    /// Memory of the server and its children, in MB; shared pages of Postgres' processes count once.
    fn server_mb(&self) -> u64 {
        let Some((child, _)) = &self.server else { return 0 };
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let all = std::iter::once(child.id().to_string()).chain(children.split_whitespace().map(str::to_owned));
        all.map(|id| memory_kb(&format!("/proc/{id}/smaps_rollup"), "Pss:")).sum::<u64>() / 1_024
    }
}

async fn measure(backend: &str, arguments: &Arguments) -> Result<()> {
    println!("{backend}");
    for writers in WRITERS {
        let mut bench = Bench::new(backend, &arguments.directory)?;
        bench.start()?;
        let store = bench.open().await?;
        let load = creates(&store, writers, arguments.run, None).await?;
        println!("  {writers:3} writers: {load}");
    }
    let mut bench = Bench::new(backend, &arguments.directory)?;
    bench.start()?;
    let store = bench.open().await?;
    let load = creates(&store, 8, arguments.run, Some(PACED)).await?;
    println!("  {PACED} a second: {load}");
    drop(store);
    drop(bench);

    let mut bench = Bench::new(backend, &arguments.directory)?;
    bench.start()?;
    let store = bench.open().await?;
    let begun = Instant::now();
    fill(&store, arguments.keys).await?;
    println!("  {} keys of {FILL_BYTES} bytes written in {:.1} s", arguments.keys, begun.elapsed().as_secs_f64());
    let server_mb = bench.server_mb();
    drop(store);
    bench.stop()?;
    println!("  {} bytes on disk for each", bench.disk_bytes()? / arguments.keys as u64);
    let begun = Instant::now();
    bench.start()?;
    let store = bench.open().await?;
    ensure!(store.get(&key(0), None).await?.0.is_some(), "the first key is gone");
    let own = memory_kb("/proc/self/status", "VmRSS:") / 1_024;
    println!(
        "  start and first read in {:.2} s; memory: {own} MB here, {} MB the server ({server_mb} MB after writing)",
        begun.elapsed().as_secs_f64(),
        bench.server_mb()
    );
    for limit in [500, 10_000] {
        let begun = Instant::now();
        let page = store.list("/registry/", ListOptions { limit: Some(limit), ..Default::default() }).await?;
        println!("  list of {} in {:.1} ms", page.entries.len(), begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

struct Load {
    rate: f64,
    commits: Vec<u64>,
    delays: Vec<u64>,
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |values: &[u64], share: f64| {
            let at = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
            values.get(at).copied().unwrap_or(0) as f64 / 1e3
        };
        write!(
            f,
            "{:6.0} creates/s, commit p50 {:.1} ms, p99 {:.1} ms; change delay p50 {:.2} ms, p99 {:.1} ms",
            self.rate,
            ms(&self.commits, 0.5),
            ms(&self.commits, 0.99),
            ms(&self.delays, 0.5),
            ms(&self.delays, 0.99)
        )
    }
}

/// Something that compresses about as well as the bytes of an object.
fn sample(rng: &mut StdRng, length: usize) -> Bytes {
    let mut value = vec![b'a'; length];
    rng.fill_bytes(&mut value[..length / 3]);
    value.into()
}

/// Writers create objects, as fast as they can or at a pace; a reader follows. The delay is the time from the moment that a
/// writer is told of its commit to the moment that the reader has the change.
async fn creates(store: &Arc<dyn Storage>, writers: usize, run: Duration, pace: Option<u64>) -> Result<Load> {
    let mut changes = store.changes("/registry/", store.current_revision().await?).await?;
    let reader = tokio::spawn(async move {
        let mut seen: Vec<(Revision, Instant)> = Vec::new();
        while let Some(Ok(commit)) = changes.next().await {
            if !commit.changes.is_empty() {
                seen.push((commit.revision, Instant::now()));
            }
            if commit.changes.iter().any(|c| &*c.key == "/registry/end") {
                break;
            }
        }
        seen
    });
    let begun = Instant::now();
    let tasks = (0..writers).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let body = sample(&mut StdRng::seed_from_u64(writer as u64), VALUE_BYTES);
            let mut told = Vec::new();
            let mut turn = pace.map(|pace| tokio::time::interval(Duration::from_secs(writers as u64) / pace as u32));
            while begun.elapsed() < run {
                if let Some(turn) = &mut turn {
                    turn.tick().await;
                }
                let called = Instant::now();
                let op = Op::Put { value: body.clone(), ttl: None };
                let key = format!("/registry/pods/namespace-{writer}/pod-{}", told.len()).into();
                let revision = store.commit(vec![Write { key, expect: Expect::Absent, op }]).await?;
                told.push((revision, called, Instant::now()));
            }
            anyhow::Ok(told)
        })
    });
    let mut told = Vec::new();
    for task in futures::future::join_all(tasks).await {
        told.extend(task??);
    }
    let rate = told.len() as f64 / begun.elapsed().as_secs_f64();
    let end = Write { key: "/registry/end".into(), expect: Expect::Any, op: Op::Put { value: "e".into(), ttl: None } };
    store.commit(vec![end]).await?;
    let seen: std::collections::HashMap<Revision, Instant> = reader.await?.into_iter().collect();
    let mut load = Load { rate, commits: Vec::new(), delays: Vec::new() };
    for (revision, called, answered) in told {
        load.commits.push((answered - called).as_micros() as u64);
        let seen = seen.get(&revision).with_context(|| format!("revision {revision} was not seen"))?;
        load.delays.push(seen.saturating_duration_since(answered).as_micros() as u64);
    }
    load.commits.sort_unstable();
    load.delays.sort_unstable();
    Ok(load)
}

fn key(number: usize) -> String {
    format!("/registry/pods/namespace-{}/pod-{number}", number / 1_000)
}

async fn fill(store: &Arc<dyn Storage>, keys: usize) -> Result<()> {
    let tasks = (0..4).map(|part| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(part as u64);
            let mut first = part * FILL_BATCH;
            while first < keys {
                let write = |number| Write {
                    key: key(number).into(),
                    expect: Expect::Absent,
                    op: Op::Put { value: sample(&mut rng, FILL_BYTES), ttl: None },
                };
                store.commit((first..(first + FILL_BATCH).min(keys)).map(write).collect()).await?;
                first += 4 * FILL_BATCH;
            }
            anyhow::Ok(())
        })
    });
    for task in futures::future::join_all(tasks).await {
        task??;
    }
    Ok(())
}

fn memory_kb(file: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}
