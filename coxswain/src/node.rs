//! A node: containerd, pod network, kubelet and service proxy, as `up` and `join` both run it; and the commands of joining.

use crate::containerd::Containerd;
use crate::{cluster_setup, join, load_balancer_addresses, machine, node_network};
use anyhow::{Context, Result, bail};
use clap::{Arg, ArgMatches, Command};
use coxswain_client::{Client, Informers};
use coxswain_kubelet::cri::Runtime;
use coxswain_kubelet::cri::client::CriClient;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const RUNTIME_CALL_MAX: Duration = Duration::from_secs(120);

/// What a node is told.
pub struct Settings {
    pub data_dir: PathBuf,
    pub node_name: String,
    pub node_ip: IpAddr,
    /// A runtime that somebody else runs; its network is theirs too.
    pub runtime_endpoint: Option<String>,
    pub image_archives: Vec<PathBuf>,
    pub cluster_cidr: String,
    pub cluster_dns: IpAddr,
    pub cluster_domain: String,
    /// The authority whose clients the kubelet's server believes.
    pub client_ca: PathBuf,
    /// Below which free memory and disk pods are evicted, by upstream's signals.
    pub eviction_hard: BTreeMap<String, String>,
    /// The percentage of disk usage from which unused images are removed.
    pub image_gc_high_threshold: i32,
    /// Certificate and key of the kubelet's server; one of its own making without.
    pub serving: Option<(PathBuf, PathBuf)>,
}

/// The clients of a node's two parts, each with its own identity.
pub struct Clients {
    pub kubelet: Client,
    pub proxy: Client,
}

/// Runs the node until the shutdown. Pods go on running afterwards.
pub async fn run(settings: Settings, clients: Clients, shutdown: CancellationToken) -> Result<()> {
    let own = settings.runtime_endpoint.is_none();
    let containerd = Containerd::new(&settings.data_dir);
    let mut tasks = tokio::task::JoinSet::new();
    let endpoint = match &settings.runtime_endpoint {
        Some(endpoint) => endpoint.clone(),
        None => {
            containerd.ensure().await?;
            for archive in &settings.image_archives {
                containerd.import(archive).await?;
            }
            let (containerd, shutdown) = (containerd.clone(), shutdown.clone());
            tasks.spawn(async move { keep_containerd(containerd, shutdown).await });
            format!("unix://{}", containerd_socket(&settings.data_dir))
        }
    };
    let runtime: Arc<dyn Runtime> = Arc::new(CriClient::new(&endpoint, "", RUNTIME_CALL_MAX)?);
    if own {
        let informers = Informers::new(clients.kubelet.clone());
        let (name, conf, shutdown) = (settings.node_name.clone(), containerd.cni_conf.clone(), shutdown.clone());
        tasks.spawn(async move { node_network::run(&name, &conf, &informers, shutdown).await });
    }
    let config = kubelet_config(&settings, endpoint);
    let kubelet = coxswain_kubelet::run(config, clients.kubelet, runtime, shutdown.clone());
    tasks.spawn(async move { kubelet.await.context("kubelet") });
    {
        let informers = Informers::new(clients.proxy.clone());
        let (name, shutdown) = (settings.node_name.clone(), shutdown.clone());
        tasks.spawn(async move { load_balancer_addresses::run(&name, &informers, shutdown).await });
    }
    let proxy = coxswain_proxy::Config {
        node_name: settings.node_name.clone(),
        cluster_cidr: Some(settings.cluster_cidr.clone()),
        ..coxswain_proxy::Config::default()
    };
    let proxy = coxswain_proxy::run(proxy, clients.proxy, shutdown.clone());
    tasks.spawn(async move { proxy.await.context("kube-proxy") });
    while let Some(ended) = tasks.join_next().await {
        let outcome = ended.context("a part of the node panicked").and_then(|r| r);
        if !shutdown.is_cancelled() {
            outcome?;
            bail!("a part of the node ended");
        }
    }
    Ok(())
}

fn containerd_socket(data_dir: &Path) -> String {
    Containerd::new(data_dir).socket().display().to_string()
}

/// Starts containerd again when it dies. Its pods live on in their shims meanwhile.
async fn keep_containerd(containerd: Containerd, shutdown: CancellationToken) -> Result<()> {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        if !containerd.answers() {
            tracing::warn!("containerd does not answer; starting it again");
            if let Err(error) = containerd.ensure().await {
                tracing::error!(error = format!("{error:#}"), "containerd did not start");
            }
        }
    }
}

fn kubelet_config(settings: &Settings, endpoint: String) -> coxswain_kubelet::Config {
    let mut config = coxswain_kubelet::Config::new(&settings.node_name);
    config.node_ips = vec![settings.node_ip];
    config.root_dir = settings.data_dir.join("kubelet");
    config.cert_dir = settings.data_dir.join("pki");
    config.container_log_links_dir = None;
    let inner = &mut config.settings;
    inner.pod_logs_dir = settings.data_dir.join("pod-logs").display().to_string();
    inner.cluster_dns = vec![settings.cluster_dns.to_string()];
    inner.cluster_domain = settings.cluster_domain.clone();
    inner.container_runtime_endpoint = endpoint;
    inner.cgroup_root = cgroup_root(&settings.data_dir);
    inner.eviction_hard = settings.eviction_hard.clone();
    inner.image_gc_high_threshold_percent = settings.image_gc_high_threshold;
    inner.authentication.x509.client_ca_file = settings.client_ca.display().to_string();
    if let Some((cert, key)) = &settings.serving {
        inner.tls_cert_file = cert.display().to_string();
        inner.tls_private_key_file = key.display().to_string();
    }
    config
}

/// Each node has a cgroup of its own, so that several on one machine never clean up after each other.
pub fn cgroup_root(data_dir: &Path) -> String {
    let run = crate::containerd::run_dir(data_dir);
    format!("/coxswain-{}", run.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default())
}

pub fn data_dir_argument() -> Arg {
    Arg::new("data-dir")
        .long("data-dir")
        .value_name("DIR")
        .help("Where everything is kept [default: /var/lib/coxswain, without root ~/.local/share/coxswain]")
}

pub fn data_dir(matches: &ArgMatches) -> Result<PathBuf> {
    if let Some(dir) = matches.get_one::<String>("data-dir") {
        return Ok(std::path::absolute(dir)?);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/coxswain".into());
    }
    let home = std::env::var_os("HOME").context("neither --data-dir nor HOME says where to keep data")?;
    Ok(Path::new(&home).join(".local/share/coxswain"))
}

/// Held as long as a process works with a data directory.
pub struct Lock(#[allow(dead_code, reason = "the lock lives as long as the file is open")] fs::File);

/// Refuses a data directory that another process works with.
pub fn lock(data_dir: &Path) -> Result<Lock> {
    fs::create_dir_all(data_dir).with_context(|| format!("creating {}", data_dir.display()))?;
    let path = data_dir.join("lock");
    let file = fs::OpenOptions::new().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(fs::TryLockError::WouldBlock) => {
            bail!("another coxswain works with {}; end it first, or use another --data-dir", data_dir.display())
        }
        Err(fs::TryLockError::Error(e)) => Err(e).with_context(|| format!("locking {}", path.display())),
    }
}

/// Arguments that every node takes.
pub fn node_arguments(command: Command) -> Command {
    command
        .arg(data_dir_argument())
        .arg(
            Arg::new("node-name").long("node-name").value_name("NAME").help("The node's name [default: the host name]"),
        )
        .arg(
            Arg::new("node-ip")
                .long("node-ip")
                .value_name("IP")
                .value_parser(clap::value_parser!(IpAddr))
                .help("The address of this machine [default: that of the default route]"),
        )
        .arg(Arg::new("container-runtime-endpoint").long("container-runtime-endpoint").value_name("SOCKET").help(
            "A container runtime that already runs, such as unix:///run/containerd/containerd.sock; \
                       its network is yours to set up [default: a containerd of its own]",
        ))
        .arg(
            Arg::new("image-gc-high-threshold")
                .long("image-gc-high-threshold")
                .value_name("PERCENT")
                .default_value("85")
                .value_parser(clap::value_parser!(i32).range(0..=100))
                .help("Disk usage from which images that no container uses are removed; 100 keeps them all"),
        )
        .arg(
            Arg::new("eviction-hard")
                .long("eviction-hard")
                .value_name("SIGNAL<AMOUNT,…")
                // A machine that is not a node alone is often fuller than upstream's 15 % of free disk allow.
                .default_value("memory.available<100Mi,nodefs.available<5%,imagefs.available<5%,nodefs.inodesFree<5%")
                .help("Below which free memory and disk pods are evicted"),
        )
        .arg(
            Arg::new("image-archive")
                .long("image-archive")
                .value_name("FILE")
                .action(clap::ArgAction::Append)
                .help("An image archive to import for pods to use"),
        )
        .arg(
            Arg::new("v")
                .short('v')
                .long("v")
                .value_name("LEVEL")
                .value_parser(clap::value_parser!(u8))
                .default_value("1")
                .help("How much to log, as upstream's -v"),
        )
}

pub fn node_name(matches: &ArgMatches) -> Result<String> {
    matches.get_one::<String>("node-name").map_or_else(machine::hostname, |n| Ok(n.clone()))
}

pub fn node_ip(matches: &ArgMatches) -> Result<IpAddr> {
    matches.get_one::<IpAddr>("node-ip").map_or_else(machine::default_ip, |ip| Ok(*ip))
}

pub fn image_archives(matches: &ArgMatches) -> Vec<PathBuf> {
    matches.get_many::<String>("image-archive").into_iter().flatten().map(PathBuf::from).collect()
}

pub fn image_gc_high_threshold(matches: &ArgMatches) -> i32 {
    matches.get_one::<i32>("image-gc-high-threshold").copied().unwrap_or(85)
}

/// `--eviction-hard` as upstream's kubelet takes it.
pub fn eviction_hard(matches: &ArgMatches) -> Result<BTreeMap<String, String>> {
    let text = matches.get_one::<String>("eviction-hard").cloned().unwrap_or_default();
    let entries = text.split(',').filter(|e| !e.is_empty()).map(|entry| {
        let (signal, amount) = entry.split_once('<').with_context(|| {
            format!("invalid argument \"{text}\" for \"--eviction-hard\" flag: \"{entry}\" is not SIGNAL<AMOUNT")
        })?;
        Ok((signal.to_owned(), amount.to_owned()))
    });
    entries.collect()
}

pub fn join_command() -> Command {
    node_arguments(Command::new("join").about("Makes this machine a node of a running cluster"))
        .arg(Arg::new("server").long("server").value_name("URL").required(true).help("The API server"))
        .arg(Arg::new("token").long("token").value_name("TOKEN").required(true).help("The cluster's join token"))
        .arg(
            Arg::new("discovery-token-ca-cert-hash")
                .long("discovery-token-ca-cert-hash")
                .value_name("HASH")
                .required(true)
                .help("The hash of the cluster's authority, sha256:…"),
        )
        .arg(
            Arg::new("cluster-cidr")
                .long("cluster-cidr")
                .value_name("CIDR")
                .default_value("10.244.0.0/16")
                .help("The addresses of pods"),
        )
        .arg(
            Arg::new("cluster-dns")
                .long("cluster-dns")
                .value_name("IP")
                .value_parser(clap::value_parser!(IpAddr))
                .default_value("10.96.0.10")
                .help("The address of the cluster's DNS"),
        )
        .arg(
            Arg::new("cluster-domain")
                .long("cluster-domain")
                .value_name("DOMAIN")
                .default_value("cluster.local")
                .help("The cluster's DNS domain"),
        )
}

pub fn print_join_command() -> Command {
    Command::new("join-command")
        .about("Prints the command that makes another machine a node of this cluster")
        .arg(data_dir_argument())
}

/// Prints the arguments after `coxswain`, for a person or a script to run on the other machine.
pub fn print_join(matches: &ArgMatches) -> Result<()> {
    let dir = data_dir(matches)?;
    let read = |file: &str| {
        fs::read_to_string(dir.join(file))
            .with_context(|| format!("{} is not the directory of a cluster", dir.display()))
    };
    let authority = read("pki/ca.crt")?;
    let server = read("server-address")?;
    let token = cluster_setup::bootstrap_token(&dir)?;
    let hash = join::authority_hash(&authority)?;
    println!("join --server {} --token {token} --discovery-token-ca-cert-hash {hash}", server.trim());
    Ok(())
}

pub fn join(matches: &ArgMatches) -> Result<()> {
    crate::logging::init(matches.get_one::<u8>("v").copied().unwrap_or(1));
    let data_dir = data_dir(matches)?;
    let endpoint = matches.get_one::<String>("container-runtime-endpoint").cloned();
    let missing = crate::containerd::missing(endpoint.is_none());
    if !missing.is_empty() {
        bail!("{missing}");
    }
    let _lock = lock(&data_dir)?;
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    let (server, token, hash) = (text("server"), text("token"), text("discovery-token-ca-cert-hash"));
    let name = node_name(matches)?;
    let settings = Settings {
        node_ip: node_ip(matches)?,
        node_name: name.clone(),
        runtime_endpoint: endpoint,
        image_archives: image_archives(matches),
        cluster_cidr: text("cluster-cidr"),
        cluster_dns: matches.get_one::<IpAddr>("cluster-dns").copied().context("--cluster-dns")?,
        cluster_domain: text("cluster-domain"),
        client_ca: data_dir.join("pki/ca.crt"),
        eviction_hard: eviction_hard(matches)?,
        image_gc_high_threshold: image_gc_high_threshold(matches),
        serving: None,
        data_dir: data_dir.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = machine::on_signal()?;
        let invitation = join::Invitation { server: &server, token: &token, authority_hash: &hash };
        let joined = join::identity(&data_dir, &name, &invitation).await?;
        let client = coxswain_client::connect::from_kubeconfig(&joined.kubeconfig)?;
        println!("joined {server} as {name}");
        run(settings, Clients { kubelet: client.clone(), proxy: client }, shutdown).await
    })
}
