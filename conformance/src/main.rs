//! A black-box suite over a kubeconfig: it drives the real kubectl and the cluster's own traffic, and runs unchanged against
//! an upstream cluster.
//!
//! The closing line is `N passed, M failed`. Node-level cases (ClusterIP, NodePort) want to run on a node's network.

mod cases;
mod faults;
mod harness;
mod images;
mod junit;
mod openapi;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use harness::{Case, Cluster};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Parser)]
#[command(name = "conformance", about = "Drives a Kubernetes cluster from outside and says what differs from upstream")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Args)]
struct Run {
    /// The cluster to drive
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Only the cases of this group
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Only the cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The kubectl to drive; repeat it to run the suite with each
    #[arg(long, value_name = "PATH", default_value = "kubectl")]
    kubectl: Vec<PathBuf>,
    /// Print the cases and end
    #[arg(long)]
    list: bool,
    /// Write a JUnit report
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Leave the namespaces of failed cases for inspection
    #[arg(long)]
    keep: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Make the archive of images that the cases use
    Images {
        /// The archive to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The statically linked test application
        #[arg(long, value_name = "FILE")]
        app: PathBuf,
        /// A static busybox, for the cases that need a shell
        #[arg(long, value_name = "FILE")]
        busybox: Option<PathBuf>,
    },
    /// Kill the whole control plane again and again, and check that nothing is lost
    Faults(faults::Options),
    /// Compare a server's OpenAPI documents with those of another
    Openapi(openapi::Options),
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("conformance: {e}");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(run(Cli::parse())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("conformance: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether every case passed.
async fn run(cli: Cli) -> Result<bool> {
    match cli.command {
        Some(Command::Images { out, app, busybox }) => {
            images::build(&out, &app, busybox.as_deref())?.iter().for_each(|name| println!("{name}"));
            return Ok(true);
        }
        Some(Command::Faults(options)) => {
            faults::run(options).await?;
            return Ok(true);
        }
        Some(Command::Openapi(options)) => return openapi::run(options).await,
        None => {}
    }
    let run = cli.run;
    let wanted = |case: &&Case| {
        run.group.as_deref().is_none_or(|g| case.group == g)
            && run.only.as_deref().is_none_or(|o| case.name.contains(o))
    };
    let cases: Vec<&Case> = cases::ALL.iter().filter(wanted).collect();
    if cases.is_empty() {
        bail!("no case is of that group and name; --list shows them all");
    }
    if run.list {
        for case in cases {
            println!("{}/{}", case.group, case.name);
        }
        return Ok(true);
    }
    let kubeconfig = run.kubeconfig.context("--kubeconfig says which cluster to drive")?;
    let (mut passed, mut report) = (0, Vec::new());
    for kubectl in &run.kubectl {
        let cluster = Cluster::connect(&kubeconfig, kubectl)?;
        println!("kubectl {}", cluster.kubectl_version);
        for case in &cases {
            let start = Instant::now();
            let outcome = cluster.run(case, run.keep).await;
            let took = start.elapsed();
            let name = format!("{}/{}", case.group, case.name);
            match &outcome {
                Ok(()) => {
                    passed += 1;
                    println!("  ok    {name} ({:.1} s)", took.as_secs_f64());
                }
                Err(e) => println!("  FAIL  {name} ({:.1} s)\n{}", took.as_secs_f64(), indent(&format!("{e:#}"))),
            }
            report.push(junit::Outcome {
                name: format!("{name} [kubectl {}]", cluster.kubectl_version),
                took: Duration::from_millis(took.as_millis() as u64),
                failure: outcome.err().map(|e| format!("{e:#}")),
            });
        }
    }
    if let Some(path) = &run.junit {
        junit::write(path, &report)?;
    }
    let failed = report.len() - passed;
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

fn indent(text: &str) -> String {
    text.lines().map(|l| format!("        {l}\n")).collect()
}
