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
mod transcript;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use futures::StreamExt;
use futures::stream;
use harness::{Body, Case, Cluster};
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
    /// Only the cases whose name contains this; repeat it for more
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// All but the cases whose name contains this; repeat it for more
    #[arg(long, value_name = "TEXT")]
    skip: Vec<String>,
    /// The kubectl to drive; repeat it to run the suite with each
    #[arg(long, value_name = "PATH", default_value = "kubectl")]
    kubectl: Vec<PathBuf>,
    /// Print the cases and end
    #[arg(long)]
    list: bool,
    /// Write a JUnit report
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// How many cases run at once, where they leave each other alone
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Run what failed once more at the end, one case after the other: sessions wait by clocks of their own, and a machine
    /// that many of them share can be too slow for one
    #[arg(long)]
    again: bool,
    /// Print what the commands of shell sessions print
    #[arg(long)]
    show: bool,
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
            && (run.only.is_empty() || run.only.iter().any(|o| case.name.contains(o.as_str())))
            && !run.skip.iter().any(|s| case.name.contains(s.as_str()))
    };
    let cases: Vec<&Case> = cases::all().filter(wanted).collect();
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
    let clusters = run.kubectl.iter().map(|kubectl| Cluster::connect(&kubeconfig, kubectl, run.show));
    let clusters = clusters.collect::<Result<Vec<_>>>()?;
    let all = clusters.iter().flat_map(|cluster| cases.iter().map(move |case| (cluster, *case)));
    let (alone, together): (Vec<_>, Vec<_>) = all.partition(|(_, case)| case.alone);
    let one = |(cluster, case)| async move { ((cluster, case), outcome(cluster, case, run.keep).await) };
    let mut report: Vec<_> = stream::iter(together).map(one).buffer_unordered(run.jobs.max(1)).collect().await;
    report.extend(stream::iter(alone).then(one).collect::<Vec<_>>().await);
    for (which, last) in report.iter_mut().filter(|(_, o)| run.again && o.failure.is_some()) {
        println!("  again: {}", last.name);
        *last = one(*which).await.1;
    }
    let report: Vec<_> = report.into_iter().map(|(_, outcome)| outcome).collect();
    if let Some(path) = &run.junit {
        junit::write(path, &report)?;
    }
    let failed = report.iter().filter(|o| o.failure.is_some()).count();
    let passed = report.len() - failed;
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// Runs one case and prints how it went.
async fn outcome(cluster: &Cluster, case: &Case, keep: bool) -> junit::Outcome {
    let start = Instant::now();
    let outcome = cluster.run(case, keep).await;
    let took = start.elapsed();
    let mut name = format!("{}/{}, kubectl {}", case.group, case.name, cluster.kubectl_version);
    if let Body::Transcript(text) = case.body {
        name = format!("{name}, {} commands", transcript::commands(text));
    }
    match &outcome {
        Ok(()) => println!("  ok    {name} ({:.1} s)", took.as_secs_f64()),
        Err(e) => println!("  FAIL  {name} ({:.1} s)\n{}", took.as_secs_f64(), indent(&format!("{e:#}"))),
    }
    junit::Outcome {
        name,
        took: Duration::from_millis(took.as_millis() as u64),
        failure: outcome.err().map(|e| format!("{e:#}")),
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|l| format!("        {l}\n")).collect()
}
