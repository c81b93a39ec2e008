//! The same load against our API server and another one, side by side: each case runs on both in turn, in the same process,
//! and the ratio is what counts.

mod cases;
mod load;

use anyhow::{Context, Result, bail};
use cases::{CASES, Figure};
use clap::Parser;
use load::Server;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "bench", about = "Measures an API server or a cluster, alone or side by side with another")]
struct Cli {
    /// The server to measure
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// Another server, measured in turn on the same machine
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Only the cases whose name contains this
    #[arg(long = "case", value_name = "CASE")]
    case: Option<String>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Pods that the list and memory cases work on
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    objects: usize,
    /// The image of pods that are started
    #[arg(long, value_name = "IMAGE", default_value = "registry.k8s.io/pause:3.10.2")]
    image: String,
    /// Seconds of load in each case
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    seconds: u64,
    /// Print the cases and end
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(Cli::parse())));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let wanted: Vec<_> = CASES.iter().filter(|c| cli.case.as_deref().is_none_or(|w| c.name.contains(w))).collect();
    if wanted.is_empty() {
        bail!("no case is named so; --list shows them all");
    }
    if cli.list {
        wanted.iter().for_each(|c| println!("{:<14} {}", c.name, c.about));
        return Ok(());
    }
    let load = load::Settings { objects: cli.objects, seconds: cli.seconds, image: cli.image.clone() };
    let mut servers = vec![("server", Server::connect(&cli.kubeconfig)?)];
    if let Some(against) = &cli.against {
        servers.push(("against", Server::connect(against)?));
    }
    let mut report = Vec::new();
    for case in wanted {
        let mut rows: Vec<Vec<Figure>> = Vec::new();
        for (_, server) in &servers {
            rows.push((case.run)(server, &load).await.with_context(|| format!("case {}", case.name))?);
        }
        for (i, figure) in rows[0].iter().enumerate() {
            let other = rows.get(1).and_then(|r| r.get(i));
            let ratio = other.map(|o| figure.value / o.value);
            let shown = ratio
                .map_or(String::new(), |r| format!("  against {:>12.2}  ratio {r:.2}", other.map_or(0.0, |o| o.value)));
            println!("{:<14} {:<28} {:>12.2} {}{shown}", case.name, figure.name, figure.value, figure.unit);
            report.push(json!({"case": case.name, "figure": figure.name, "unit": figure.unit, "value": figure.value,
                               "against": other.map(|o| o.value), "ratio": ratio}));
        }
    }
    if let Some(path) = &cli.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
