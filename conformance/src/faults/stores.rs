//! What a fault run runs: an API server on the embedded store, or several on an etcd or a Postgres of their own, each behind a
//! wire that can be cut.

use super::http::Server;
use super::process::{Clock, Process, SmallDisk, wait_until};
use super::wire::Wire;
use anyhow::{Context, Result, bail, ensure};
use coxswain_testing::{ports, postgres};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const TOKEN: &str = "faults-token";
/// The embedded store holds 256 MiB in reserve; the others need some for their logs.
const DISK_MEBIBYTES: u32 = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    Embedded,
    Etcd,
    Postgres,
}

pub struct Node {
    pub server: Arc<Server>,
    pub process: Process,
    pub clock: Option<Clock>,
    /// To the store; the embedded store is in the process itself.
    pub wire: Option<Wire>,
}

pub struct Bench {
    pub backend: Backend,
    pub nodes: Vec<Node>,
    /// The store's own process.
    pub store: Option<Process>,
    pub store_clock: Option<Clock>,
    pub disk: Option<SmallDisk>,
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

impl Bench {
    /// With so many API servers, which are given these flags too.
    pub async fn start(
        backend: Backend,
        servers: usize,
        coxswain: &Path,
        directory: &Path,
        more_flags: &[&str],
    ) -> Result<Bench> {
        let disk = match std::env::var_os("COXSWAIN_NAMESPACE") {
            Some(_) => Some(SmallDisk::mount(directory.join("disk"), DISK_MEBIBYTES)?),
            None => None,
        };
        let data = directory.join("disk").join("data");
        let (mut store, mut store_clock, mut target) = (None, None, None);
        match backend {
            Backend::Embedded => {}
            Backend::Etcd => {
                let (process, address) = etcd(directory, &data)?;
                (store, target) = (Some(process), Some(address));
            }
            Backend::Postgres => {
                store_clock = Clock::in_directory(directory, "postgres")?;
                let (process, address) = postgres_server(directory, &data, store_clock.as_ref()).await?;
                (store, target) = (Some(process), Some(address));
            }
        }
        if let Some(store) = &mut store {
            store.start()?;
        }
        std::fs::write(directory.join("tokens.csv"), format!("{TOKEN},faults,faults,system:masters\n"))?;
        let mut nodes = Vec::new();
        for number in 0..servers {
            let wire = match target {
                Some(target) => Some(Wire::to(target).await?),
                None => None,
            };
            let mut flags = match (backend, &wire) {
                (Backend::Etcd, Some(wire)) => {
                    vec!["--storage-backend=etcd3".into(), format!("--etcd-servers=http://{}", wire.address)]
                }
                (Backend::Postgres, Some(wire)) => {
                    let url = format!("host=127.0.0.1 port={} user=coxswain dbname=postgres", wire.address.port());
                    vec!["--storage-backend=postgres".into(), format!("--postgres-url={url}")]
                }
                _ => vec![format!("--data-dir={}", data.display())],
            };
            flags.extend(strings(more_flags));
            nodes.push(node(number, coxswain, directory, flags, wire)?);
        }
        let mut bench = Bench { backend, nodes, store, store_clock, disk };
        // All at once, on one empty directory for their certificates.
        bench.start_nodes().await?;
        bench.nodes[0].server.make_namespace().await?;
        Ok(bench)
    }

    /// Starts whatever does not run, and waits until all servers say that they are ready.
    pub async fn start_nodes(&mut self) -> Result<()> {
        if let Some(store) = &mut self.store
            && !store.runs()
        {
            store.start()?;
        }
        for index in 0..self.nodes.len() {
            if !self.nodes[index].process.runs() {
                self.nodes[index].process.start()?;
            }
        }
        let ready = wait_until(Duration::from_secs(60), async || {
            // A store may refuse to start while what is left of its killed predecessor ends; a server, without a store.
            if let Some(store) = &mut self.store
                && !store.runs()
            {
                let _ = store.start();
            }
            let mut all = true;
            for node in &mut self.nodes {
                if !node.process.runs() {
                    let _ = node.process.start();
                    all = false;
                }
                all &= node.server.ready().await;
            }
            all
        });
        if !ready.await {
            bail!("the servers were not ready within 60 s:\n{}", self.logs());
        }
        Ok(())
    }

    pub fn servers(&self) -> Vec<Arc<Server>> {
        self.nodes.iter().map(|node| node.server.clone()).collect()
    }

    pub fn logs(&self) -> String {
        let store = self.store.iter().map(|s| format!("--- the store\n{}", s.log_tail()));
        let nodes = self.nodes.iter().map(|n| format!("--- {}\n{}", n.server.name, n.process.log_tail()));
        store.chain(nodes).collect::<Vec<_>>().join("\n")
    }

    pub async fn stop(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.process.end("TERM").await?;
        }
        if let Some(store) = &mut self.store {
            store.end(if self.backend == Backend::Postgres { "INT" } else { "TERM" }).await?;
        }
        Ok(())
    }
}

fn node(number: usize, coxswain: &Path, directory: &Path, flags: Vec<String>, wire: Option<Wire>) -> Result<Node> {
    let name = format!("server {}", number + 1);
    let port = ports::free();
    let clock = Clock::in_directory(directory, &format!("server-{number}"))?;
    // One directory for both, so that they share the keys that they sign with.
    let mut arguments = strings(&["kube-apiserver", "--bind-address=127.0.0.1", "--authorization-mode=AlwaysAllow"]);
    arguments.push(format!("--secure-port={port}"));
    arguments.push(format!("--cert-dir={}", directory.join("certs").display()));
    arguments.push(format!("--token-auth-file={}", directory.join("tokens.csv").display()));
    arguments.push("--advertise-address=192.0.2.1".to_owned());
    arguments.extend(flags);
    let log = directory.join(format!("server-{}.log", number + 1));
    let process = Process::new(coxswain, arguments, log).with_clock(clock.as_ref());
    let server = Arc::new(Server::new(name, port, TOKEN)?);
    Ok(Node { server, process, clock, wire })
}

fn etcd(directory: &Path, data: &Path) -> Result<(Process, SocketAddr)> {
    let (port, peers) = (ports::free(), format!("http://127.0.0.1:{}", ports::free()));
    let url = format!("http://127.0.0.1:{port}");
    let mut arguments = strings(&["--listen-client-urls", &url, "--advertise-client-urls", &url]);
    arguments.extend(strings(&["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]));
    arguments.extend(["--initial-cluster".to_owned(), format!("default={peers}"), "--data-dir".to_owned()]);
    arguments.push(data.display().to_string());
    let process = Process::new("etcd", arguments, directory.join("etcd.log"));
    Ok((process, SocketAddr::from(([127, 0, 0, 1], port))))
}

async fn postgres_server(directory: &Path, data: &Path, clock: Option<&Clock>) -> Result<(Process, SocketAddr)> {
    let is_root = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)?;
    std::fs::create_dir_all(data)?;
    if is_root {
        // Postgres refuses to run as root; its user must reach its data and its clock.
        let paths = [data, directory];
        for path in paths {
            let owned = std::process::Command::new("chown").arg("postgres").arg(path).status()?;
            ensure!(owned.success(), "{} could not be given to the user postgres", path.display());
        }
    }
    let make = |program: PathBuf, arguments: Vec<String>, log: &str| {
        let process = Process::new(program, arguments, directory.join(log)).with_clock(clock);
        if is_root { process.run_by("postgres") } else { process }
    };
    let mut arguments = strings(&["--username=coxswain", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]);
    arguments.extend(["-D".to_owned(), data.display().to_string()]);
    let mut initdb = make(postgres::program("initdb"), arguments, "initdb.log");
    initdb.run().await.with_context(|| format!("initdb: {}", initdb.log_tail()))?;
    let port = ports::free();
    let mut arguments = vec!["-D".to_owned(), data.display().to_string(), "-p".to_owned(), port.to_string()];
    for setting in [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "shared_buffers=32MB",
        "max_wal_size=64MB",
        "restart_after_crash=on",
    ] {
        arguments.extend(["-c".to_owned(), setting.to_owned()]);
    }
    let process = make(postgres::program("postgres"), arguments, "postgres.log");
    Ok((process, SocketAddr::from(([127, 0, 0, 1], port))))
}
