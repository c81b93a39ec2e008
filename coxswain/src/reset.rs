//! `coxswain reset`: removes every trace of a cluster or node from this machine: pods, mounts, network, rules, cgroups, data.

use crate::containerd::{Containerd, run_dir};
use crate::{load_balancer_addresses, node, node_network};
use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use coxswain_kubelet::cri::Runtime;
use coxswain_kubelet::cri::client::CriClient;
use std::fs;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const STOP_SECONDS_MAX: u64 = 60;

pub fn command() -> Command {
    Command::new("reset")
        .about("Removes every trace of the cluster in a data directory: pods, mounts, network, rules, data")
        .arg(node::data_dir_argument())
        .arg(Arg::new("yes").long("yes").short('y').action(ArgAction::SetTrue).help("Do not ask"))
}

pub fn main(matches: &ArgMatches) -> Result<()> {
    crate::logging::init(1);
    let data_dir = node::data_dir(matches)?;
    if !data_dir.exists() {
        println!("{} does not exist: nothing to remove", data_dir.display());
        return Ok(());
    }
    if !data_dir.join("pki").exists() && !data_dir.join("containerd").exists() {
        bail!("{} does not look like a data directory of coxswain; nothing was removed", data_dir.display());
    }
    let _lock = node::lock(&data_dir)?;
    if !matches.get_flag("yes") && !confirmed(&data_dir)? {
        bail!("nothing was removed");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(reset(&data_dir))
}

fn confirmed(data_dir: &Path) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("this removes {} and all pods of its node; say --yes to do so without being asked", data_dir.display());
    }
    print!("This removes {} and all pods of its node. Go on? [y/N] ", data_dir.display());
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn reset(data_dir: &Path) -> Result<()> {
    let containerd = Containerd::new(data_dir);
    let had_node = data_dir.join("containerd").exists();
    if had_node {
        // A containerd that is gone is started once more: only it knows how to take its pods apart.
        containerd.ensure().await.context("starting containerd to remove its pods")?;
        remove_pods(&containerd).await?;
        stop_containerd(&containerd).await;
    }
    unmount_below(&[data_dir.to_owned(), run_dir(data_dir)]);
    if had_node {
        node_network::reset().await?;
        load_balancer_addresses::reset().await?;
        coxswain_proxy::cleanup().await.context("removing the rules of Services")?;
        remove_cgroups(data_dir);
    }
    for dir in [run_dir(data_dir), data_dir.to_owned()] {
        match fs::remove_dir_all(&dir) {
            Ok(()) => println!("removed {}", dir.display()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("removing {}", dir.display())),
        }
    }
    Ok(())
}

/// Stops and removes every pod sandbox, and with them containers, networks and port mappings.
pub async fn remove_pods(containerd: &Containerd) -> Result<()> {
    let endpoint = format!("unix://{}", containerd.socket().display());
    let runtime = CriClient::new(&endpoint, "", Duration::from_secs(STOP_SECONDS_MAX))?;
    for container in runtime.list_containers(None).await? {
        runtime.stop_container(&container.id, Duration::ZERO).await.ok();
    }
    let sandboxes = runtime.list_pod_sandboxes(None).await?;
    let count = sandboxes.len();
    for sandbox in sandboxes {
        runtime.stop_pod_sandbox(&sandbox.id).await.with_context(|| format!("stopping pod sandbox {}", sandbox.id))?;
        runtime
            .remove_pod_sandbox(&sandbox.id)
            .await
            .with_context(|| format!("removing pod sandbox {}", sandbox.id))?;
    }
    if count > 0 {
        println!("removed {count} pods");
    }
    Ok(())
}

async fn stop_containerd(containerd: &Containerd) {
    let Some(pid) = containerd.pid() else { return };
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    let end = Instant::now() + Duration::from_secs(10);
    while containerd.pid().is_some() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Unmounts whatever lies below these directories, the deepest first.
fn unmount_below(dirs: &[PathBuf]) {
    let dirs: Vec<PathBuf> = dirs.iter().map(|d| fs::canonicalize(d).unwrap_or_else(|_| d.clone())).collect();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(unescape);
    let mut points: Vec<PathBuf> = points.filter(|p| dirs.iter().any(|d| p.starts_with(d))).collect();
    points.sort();
    for point in points.iter().rev() {
        if let Err(error) = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH) {
            tracing::warn!(path = %point.display(), %error, "not unmounted");
        }
    }
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(text: &str) -> PathBuf {
    let mut out = text.to_owned();
    for (octal, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(octal, plain);
    }
    PathBuf::from(out)
}

/// Empty cgroups of pods; those that still hold processes of somebody else stay.
fn remove_cgroups(data_dir: &Path) {
    let root = node::cgroup_root(data_dir);
    for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        remove_cgroup(&controller.path().join(root.trim_start_matches('/')));
    }
    remove_cgroup(&Path::new("/sys/fs/cgroup").join(root.trim_start_matches('/')));
}

fn remove_cgroup(dir: &Path) {
    for child in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        remove_cgroup(&child.path());
    }
    let _ = fs::remove_dir(dir);
}
