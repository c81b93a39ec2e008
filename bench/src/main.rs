//! The same load against our API server and another one, side by side: each case runs on both in turn, in the same process,
//! and the ratio is what counts.

mod cases;
mod load;
mod process;

use anyhow::{Context, Result, bail};
use cases::{CASES, Case, Figure, NEED_NODES};
use clap::Parser;
use load::Server;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures an API server or a whole cluster, alone or side by side with another.
///
/// Each case makes the objects it needs in the namespace "bench" and removes them again. The load is closed: 64 requests in
/// flight over 8 HTTP/2 connections, 4 for whole lists. Where the server runs on this machine its CPU time and memory
/// are reported too, and what the load generator itself used.
#[derive(Parser)]
#[command(
    name = "bench",
    after_help = "With --against, each case runs on both servers in turn, and the ratio is that of the first to the second."
)]
struct Cli {
    /// The server to measure
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    kubeconfig: Option<PathBuf>,
    /// Another server, measured in turn on the same machine
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Only these cases; --list shows them [default: all but those that need nodes]
    #[arg(long = "case", value_name = "CASE", value_delimiter = ',')]
    case: Vec<String>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Pods that the list and memory cases work on
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    objects: usize,
    /// Seconds of load in each case
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    seconds: u64,
    /// Watchers of the case watch-fanout
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    watchers: usize,
    /// Writes a second of the case watch-fanout
    #[arg(long, value_name = "RATE", default_value_t = 300.0)]
    writes: f64,
    /// The image of pods that are started
    #[arg(long, value_name = "IMAGE", default_value = "registry.k8s.io/pause:3.10.2")]
    image: String,
    /// Processes of the server, such as the API server's and etcd's [default: who listens on its port]
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pid: Vec<u32>,
    /// Processes of the other server
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    against_pid: Vec<u32>,
    /// Print the cases and end
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads()).enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(Cli::parse())));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Half of the machine: the other half is the server's.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| (n.get() / 2).max(1))
}

fn wanted(names: &[String]) -> Result<Vec<&'static Case>> {
    if names.is_empty() {
        return Ok(CASES.iter().filter(|c| !NEED_NODES.contains(&c.name)).collect());
    }
    let find = |name: &String| CASES.iter().find(|c| c.name == name);
    names.iter().map(|n| find(n).with_context(|| format!("no case is named {n}; --list shows them all"))).collect()
}

async fn run(cli: Cli) -> Result<()> {
    if cli.list {
        CASES.iter().for_each(|c| println!("{:<14} {}", c.name, c.about));
        return Ok(());
    }
    let Some(kubeconfig) = &cli.kubeconfig else { bail!("--kubeconfig names the server to measure") };
    if cli.writes <= 0.0 {
        bail!("--writes is a rate above 0");
    }
    let load = load::Settings {
        objects: cli.objects,
        seconds: cli.seconds,
        image: cli.image.clone(),
        watchers: cli.watchers,
        writes_per_second: cli.writes,
    };
    let mut servers = vec![Arc::new(Server::connect(kubeconfig, &cli.pid).await?)];
    if let Some(against) = &cli.against {
        servers.push(Arc::new(Server::connect(against, &cli.against_pid).await?));
    }
    let mut report = Vec::new();
    for case in wanted(&cli.case)? {
        let mut rows: Vec<Vec<Figure>> = Vec::new();
        for server in &servers {
            rows.push((case.run)(server, &load).await.with_context(|| format!("case {}", case.name))?);
        }
        for figure in &rows[0] {
            let other = rows.get(1).and_then(|row| row.iter().find(|f| f.name == figure.name)).map(|f| f.value);
            let ratio = other.map(|o| figure.value / o);
            let shown = match (other, ratio) {
                (Some(other), Some(ratio)) => format!("  against {other:>12.2}  ratio {ratio:.2}"),
                _ => String::new(),
            };
            println!("{:<14} {:<24} {:>12.2} {}{shown}", case.name, figure.name, figure.value, figure.unit);
            report.push(json!({"case": case.name, "figure": figure.name, "unit": figure.unit, "value": figure.value,
                               "against": other, "ratio": ratio}));
        }
    }
    if let Some(path) = &cli.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
