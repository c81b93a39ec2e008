//! Servers that are restarted one after the other, as an upgrade does it, under clients that go to another server when one
//! turns them away. No call may fail, no answer may get lost, watches go on where they were.

use super::Options;
use super::clients::Register;
use super::history::{Answer, Call};
use super::http::Server;
use super::load::Load;
use super::process::wait_until;
use super::storage::keep_on_failure;
use super::stores::{Backend, Bench};
use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SERVERS: usize = 3;
/// Long enough for a balancer that looks at `/readyz` every few hundred milliseconds.
const DELAY: &str = "--shutdown-delay-duration=700ms";

/// All servers as one: a call goes to one, and to the next if the first does not take it.
struct AnyServer {
    servers: Vec<Arc<Server>>,
    turn: AtomicUsize,
    turned_away: AtomicU64,
}

impl Register for AnyServer {
    async fn call(&self, key: &str, call: &Call) -> Result<Answer> {
        let first = self.turn.fetch_add(1, Ordering::SeqCst);
        for turn in first..first + self.servers.len() {
            let server = &self.servers[turn % self.servers.len()];
            match server.call(key, call).await? {
                Answer::NeverSent => self.turned_away.fetch_add(1, Ordering::SeqCst),
                Answer::Unknown => bail!("{} left {call:?} of {key} without an answer", server.name),
                answer => return Ok(answer),
            };
        }
        bail!("no server took {call:?} of {key}")
    }
}

pub async fn run(backend: Backend, options: &Options, seed: u64) -> Result<()> {
    println!("{backend:?}: seed {seed}, {SERVERS} servers restarted in turn, {} restarts", options.rounds);
    ensure!(backend != Backend::Embedded, "one process has the embedded store; there is no other server to go to");
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir()?;
    let mut bench = Bench::start(backend, SERVERS, &options.coxswain, directory.path(), &[DELAY]).await?;
    let any = Arc::new(AnyServer {
        servers: bench.servers(),
        turn: AtomicUsize::default(),
        turned_away: AtomicU64::default(),
    });
    let load = Load::start(bench.servers(), vec![any.clone()], false, &mut rng);
    let begun = Instant::now();
    for number in 0..options.rounds {
        let node = number as usize % SERVERS;
        tokio::time::sleep(Duration::from_millis(500)).await;
        restart(&mut bench, node).await.with_context(|| format!("seed {seed}, restart {}", number + 1))?;
        load.next_epoch();
        if load.has_ended() {
            println!("  seed {seed}: something was found after restart {}", number + 1);
            break;
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let found = load.finish(&mut bench).await.with_context(|| format!("{backend:?}, seed {seed}"));
    println!(
        "  {} calls were turned away and went to another server, in {took:.0} s",
        any.turned_away.load(Ordering::SeqCst)
    );
    keep_on_failure(found, directory)
}

/// A server says that it ends while it still serves, then ends, and is started again.
async fn restart(bench: &mut Bench, index: usize) -> Result<()> {
    let node = &mut bench.nodes[index];
    node.process.signal("TERM")?;
    let told = wait_until(Duration::from_millis(600), async || !node.server.ready().await).await;
    let serves = node.server.list(500).await?.is_some();
    ensure!(told, "{} is ready 600 ms after it was told to end", node.server.name);
    ensure!(serves, "{} was to serve for another moment, and did not", node.server.name);
    let ended = wait_until(Duration::from_secs(20), async || !node.process.runs()).await;
    ensure!(ended, "{} did not end within 20 s:\n{}", node.server.name, node.process.log_tail());
    node.process.start()?;
    let ready = wait_until(Duration::from_secs(60), async || node.server.ready().await).await;
    ensure!(ready, "{} was not ready 60 s after its restart:\n{}", node.server.name, node.process.log_tail());
    Ok(())
}
