//! `coxswain up`: a whole cluster in one process.
//!
//! Every component has its own identity and the client that upstream's has; the transport is a call of the API server in
//! this process. What the cluster needs to be found again (keys, certificates, state) lies in the data directory.

use crate::pki::{Authority, Leaf, Use};
use crate::{cluster_setup, components, containerd, kubeconfig, machine, node, pki};
use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use coxswain_apiserver::request::User;
use coxswain_apiserver::server::listen::tls_config;
use coxswain_apiserver::server::{Config, Server};
use coxswain_client::Client;
use coxswain_client::k8s_openapi::api::core::v1::Node;
use coxswain_client::kube::Api;
use coxswain_storage::embedded::{Embedded, Options};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const NODE_READY_SECONDS_MAX: u64 = 120;

pub fn command() -> Command {
    node::node_arguments(Command::new("up").about("Runs a whole cluster in this process until it is told to end"))
        .arg(
            Arg::new("api-port")
                .long("api-port")
                .value_name("PORT")
                .value_parser(clap::value_parser!(u16))
                .default_value("6443")
                .help("The port of the API server"),
        )
        .arg(
            Arg::new("hollow-nodes")
                .long("hollow-nodes")
                .value_name("COUNT")
                .value_parser(clap::value_parser!(u16))
                .help("Instead of this machine, that many nodes whose containers only exist on paper; needs no root"),
        )
        .arg(
            Arg::new("cluster-cidr")
                .long("cluster-cidr")
                .value_name("CIDR")
                .default_value("10.244.0.0/16")
                .help("The addresses of pods"),
        )
        .arg(
            Arg::new("service-cidr")
                .long("service-cidr")
                .value_name("CIDR")
                .default_value("10.96.0.0/16")
                .help("The addresses of Services; the first is the API server's, the tenth the DNS's"),
        )
        .arg(
            Arg::new("load-balancer-addresses")
                .long("load-balancer-addresses")
                .value_name("RANGES")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help(
                    "Addresses for Services of type LoadBalancer, such as 192.168.1.240-192.168.1.250 or 192.168.1.240/28; \
                     one of the nodes answers for each [default: LoadBalancers get none]",
                ),
        )
        .arg(
            Arg::new("cluster-domain")
                .long("cluster-domain")
                .value_name("DOMAIN")
                .default_value("cluster.local")
                .help("The cluster's DNS domain"),
        )
        .arg(
            Arg::new("feature-gates")
                .long("feature-gates")
                .value_name("GATES")
                .action(ArgAction::Append)
                .help("Features to switch on or off, such as CBORServingAndStorage=true, by upstream's names"),
        )
        .arg(
            Arg::new("runtime-config")
                .long("runtime-config")
                .value_name("APIS")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help("APIs to serve or not, such as api/alpha=true or storagemigration.k8s.io/v1beta1=true"),
        )
        .arg(
            Arg::new("kubectl-context")
                .long("kubectl-context")
                .action(ArgAction::SetTrue)
                .help("Add a context `coxswain` to the kubeconfig that kubectl uses"),
        )
        .arg(
            Arg::new("stop-pods")
                .long("stop-pods")
                .action(ArgAction::SetTrue)
                .help("At the end, stop the pods of this node too"),
        )
}

/// What was asked for, understood.
struct Plan {
    data_dir: PathBuf,
    node_name: String,
    node_ip: IpAddr,
    port: u16,
    hollow_nodes: Option<u16>,
    runtime_endpoint: Option<String>,
    image_archives: Vec<PathBuf>,
    cluster_cidr: String,
    service_cidr: String,
    kubernetes_ip: IpAddr,
    dns_ip: IpAddr,
    cluster_domain: String,
    load_balancer_addresses: Vec<String>,
    runtime_config: Vec<(String, bool)>,
    kubectl_context: bool,
    stop_pods: bool,
    eviction_hard: BTreeMap<String, String>,
    image_gc_high_threshold: i32,
}

impl Plan {
    fn new(matches: &ArgMatches) -> Result<Self> {
        let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
        let texts = |name: &str| matches.get_many::<String>(name).into_iter().flatten().cloned().collect::<Vec<_>>();
        let service_cidr = text("service-cidr");
        let (base, _) =
            service_cidr.split_once('/').with_context(|| format!("--service-cidr {service_cidr}: no CIDR"))?;
        let base: Ipv4Addr = base.parse().with_context(|| format!("--service-cidr {service_cidr}"))?;
        let nth = |n: u32| IpAddr::V4(Ipv4Addr::from(u32::from(base) + n));
        let node_ip = node::node_ip(matches)?;
        if node_ip.is_loopback() {
            bail!("pods and other nodes cannot reach {node_ip}: name another address of this machine with --node-ip");
        }
        Ok(Self {
            data_dir: node::data_dir(matches)?,
            node_name: node::node_name(matches)?,
            node_ip,
            port: matches.get_one("api-port").copied().unwrap_or(6443),
            hollow_nodes: matches.get_one("hollow-nodes").copied(),
            runtime_endpoint: matches.get_one::<String>("container-runtime-endpoint").cloned(),
            image_archives: node::image_archives(matches),
            cluster_cidr: text("cluster-cidr"),
            kubernetes_ip: nth(1),
            dns_ip: nth(10),
            service_cidr,
            cluster_domain: text("cluster-domain"),
            load_balancer_addresses: texts("load-balancer-addresses"),
            runtime_config: components::runtime_config(&texts("runtime-config"))?,
            kubectl_context: matches.get_flag("kubectl-context"),
            stop_pods: matches.get_flag("stop-pods"),
            eviction_hard: node::eviction_hard(matches)?,
            image_gc_high_threshold: node::image_gc_high_threshold(matches),
        })
    }

    fn server_url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.node_ip, self.port))
    }
}

/// The cluster's keys and certificates.
struct Keys {
    authority: Authority,
    serving: Leaf,
    admin: Leaf,
    kubelet_client: Leaf,
    kubelet_serving: Leaf,
    account_private: PathBuf,
    account_public: PathBuf,
}

impl Keys {
    fn open(plan: &Plan) -> Result<Self> {
        let dir = plan.data_dir.join("pki");
        let authority = Authority::open_or_create(&dir, "ca", "kubernetes")?;
        let (account_private, account_public) = pki::service_account_keys(&dir)?;
        let mut dns: Vec<String> =
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).into();
        dns.push(format!("kubernetes.default.svc.{}", plan.cluster_domain));
        dns.push(plan.node_name.clone());
        let mut ips = vec![IpAddr::from([127, 0, 0, 1]), plan.kubernetes_ip];
        if !ips.contains(&plan.node_ip) {
            ips.push(plan.node_ip);
        }
        let serving = Use::Server { name: "kube-apiserver".into(), groups: vec![], dns, ips };
        let client = |name: &str, group: &str| Use::Client { name: name.into(), groups: vec![group.into()] };
        let kubelet_serving = Use::Server {
            name: format!("system:node:{}", plan.node_name),
            groups: vec!["system:nodes".into()],
            dns: vec![plan.node_name.clone()],
            ips: vec![plan.node_ip],
        };
        Ok(Self {
            serving: authority.leaf(&dir, "apiserver", &serving)?,
            admin: authority.leaf(&dir, "admin", &client("kubernetes-admin", "system:masters"))?,
            kubelet_client: authority.leaf(
                &dir,
                "apiserver-kubelet-client",
                &client("kube-apiserver-kubelet-client", "system:masters"),
            )?,
            kubelet_serving: authority.leaf(&dir, "kubelet", &kubelet_serving)?,
            account_private,
            account_public,
            authority,
        })
    }
}

pub fn main(matches: &ArgMatches) -> Result<()> {
    let start = Instant::now();
    crate::logging::init(matches.get_one::<u8>("v").copied().unwrap_or(1));
    let plan = Plan::new(matches)?;
    let gates: Vec<String> = matches.get_many("feature-gates").into_iter().flatten().cloned().collect();
    components::install_feature_gates(Default::default(), &gates)?;
    if plan.hollow_nodes.is_none() {
        let missing = containerd::missing(plan.runtime_endpoint.is_none());
        if !missing.is_empty() {
            bail!("{missing}");
        }
    }
    let _lock = node::lock(&plan.data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(plan, start))
}

async fn run(plan: Plan, start: Instant) -> Result<()> {
    let shutdown = machine::on_signal()?;
    let keys = Keys::open(&plan)?;
    let address = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), plan.port);
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("the API server cannot listen on {address}"))?;
    let store_dir = plan.data_dir.join("storage");
    let options = Options::default();
    let keep_history = options.keep_history;
    let opened = Embedded::open(&store_dir, options).map_err(|e| anyhow::anyhow!("{e}"))?;
    let switch = crate::storage_command::in_use(Arc::new(opened), keep_history).await?;
    let _admin = crate::admin::listen(&store_dir, switch.clone());
    let mut server = Server::start(api_server_config(&plan, &keys), switch).await?;
    let tls = tls_config(keys.serving.cert_pem.as_bytes(), keys.serving.key_pem.as_bytes())?;
    server.ready().await;
    let server = Arc::new(server);
    let listening = tokio::spawn({
        let server = Arc::clone(&server);
        async move { server.listen(listener, tls).await }
    });

    let document = kubeconfig::document(&plan.server_url(), &keys.authority.cert_pem, "kubernetes-admin", &keys.admin);
    let admin_path = plan.data_dir.join("admin.kubeconfig");
    kubeconfig::write(&admin_path, &document)?;
    pki::write_atomic(&plan.data_dir.join("server-address"), plan.server_url().as_bytes(), 0o644)?;
    if plan.kubectl_context {
        kubeconfig::merge_into(&kubectl_config()?, &document)?;
    }
    println!("control plane ready in {:.2} s", start.elapsed().as_secs_f64());
    println!("kubeconfig: {}", admin_path.display());

    let work = CancellationToken::new();
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    let admin = client(&server, "coxswain", "kubernetes-admin", &["system:masters"]);
    start_controllers(&plan, &keys, &server, &work, &mut tasks)?;
    start_scheduler(&server, &work, &mut tasks);
    start_cloud(&plan, &server, &work, &mut tasks)?;
    let token = cluster_setup::bootstrap_token(&plan.data_dir)?;
    let setup = cluster_setup::Setup {
        server: &plan.server_url(),
        authority_pem: &keys.authority.cert_pem,
        dns_service_ip: plan.dns_ip,
        dns_node_ip: plan.hollow_nodes.is_none().then_some(plan.node_ip),
        bootstrap_token: &token,
    };
    cluster_setup::apply(&admin, &setup).await?;
    let nodes = start_nodes(&plan, &keys, &server, &work, &mut tasks)?;
    let ready = wait_for_nodes(&admin, &nodes);
    tokio::select! {
        outcome = ready => {
            outcome?;
            println!("ready in {:.2} s: {}", start.elapsed().as_secs_f64(), describe(&nodes));
        }
        () = shutdown.cancelled() => {}
        Some(ended) = tasks.join_next() => return Err(early(ended)),
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        Some(ended) = tasks.join_next() => return Err(early(ended)),
    }

    println!("ending");
    work.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(10), async { while tasks.join_next().await.is_some() {} }).await;
    if plan.stop_pods && plan.hollow_nodes.is_none() && plan.runtime_endpoint.is_none() {
        crate::reset::remove_pods(&containerd::Containerd::new(&plan.data_dir)).await?;
    }
    server.begin_shutdown();
    let _ = tokio::time::timeout(Duration::from_secs(10), listening).await;
    if let Ok(server) = Arc::try_unwrap(server) {
        server.stop().await;
    }
    Ok(())
}

/// The error of a component that ended without being told to.
fn early(ended: Result<Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow::anyhow!("a component ended without being told to"),
        Ok(Err(error)) => error,
        Err(panic) => anyhow::anyhow!("a component panicked: {panic}"),
    }
}

fn describe(nodes: &[String]) -> String {
    match nodes {
        [one] => format!("node {one} is Ready"),
        many => format!("{} nodes are Ready", many.len()),
    }
}

fn api_server_config(plan: &Plan, keys: &Keys) -> Config {
    let mut config = Config {
        advertise_address: plan.node_ip,
        secure_port: plan.port,
        service_cluster_ip_range: plan.service_cidr.clone(),
        hostname: machine::hostname().ok(),
        runtime_config: plan.runtime_config.clone(),
        ..Config::default()
    };
    config.authentication.client_ca_pem = keys.authority.cert_pem.clone().into_bytes();
    config.authentication.bootstrap_tokens = true;
    let accounts = &mut config.authentication.service_accounts;
    accounts.key_files = vec![keys.account_public.clone()];
    accounts.signing_key_file = Some(keys.account_private.clone());
    accounts.issuers = vec![format!("https://kubernetes.default.svc.{}", plan.cluster_domain)];
    accounts.external_address = SocketAddr::new(plan.node_ip, plan.port).to_string();
    config.admission.enable = vec!["NodeRestriction".into()];
    config.kubelet.client_certificate_pem = keys.kubelet_client.cert_pem.clone().into_bytes();
    config.kubelet.client_key_pem = keys.kubelet_client.key_pem.clone().into_bytes();
    // Nodes are known to each other by address; nobody need resolve their names.
    config.kubelet.preferred_address_types = ["InternalIP", "ExternalIP", "Hostname"].map(str::to_owned).into();
    config
}

/// A client of the API server in this process. `program` is what upstream's user agent begins with, which managed fields
/// show as the manager.
fn client(server: &Server, program: &str, name: &str, groups: &[&str]) -> Client {
    let user = User { name: name.into(), groups: groups.iter().map(|g| (*g).to_owned()).collect(), ..User::default() };
    let client = Client::new(server.service_for(user), "default");
    let agent = format!("{program}/v1.36.2 ({}/{}) coxswain", std::env::consts::OS, std::env::consts::ARCH);
    coxswain_client::connect::with_user_agent(client, &agent)
}

fn start_controllers(
    plan: &Plan,
    keys: &Keys,
    server: &Arc<Server>,
    work: &CancellationToken,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let config = coxswain_controllers::Config {
        // Machines join by bootstrap tokens here, as they do in kubeadm's clusters.
        controllers: ["*", "bootstrapsigner", "tokencleaner"].map(str::to_owned).into(),
        root_ca: Some(keys.authority.cert_pem.clone().into_bytes()),
        service_account_key: Some(read(&keys.account_private)?),
        service_account_issuer: format!("https://kubernetes.default.svc.{}", plan.cluster_domain),
        cluster_signing: Some((keys.authority.cert_pem.clone().into_bytes(), read(&keys.authority.key_path)?)),
        allocate_node_cidrs: true,
        cluster_cidrs: vec![
            plan.cluster_cidr.parse().with_context(|| format!("--cluster-cidr {}", plan.cluster_cidr))?,
        ],
        ..coxswain_controllers::Config::default()
    };
    let manager = client(server, "kube-controller-manager", "system:kube-controller-manager", &[]);
    let identities: coxswain_controllers::ClientFactory = {
        let server = Arc::clone(server);
        let own = manager.clone();
        Arc::new(move |name: &str| {
            if name.is_empty() {
                return own.clone();
            }
            let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
            client(&server, "kube-controller-manager", &format!("system:serviceaccount:kube-system:{name}"), &groups)
        })
    };
    let work = work.clone();
    tasks.spawn(async move {
        coxswain_controllers::run(config, manager, Some(identities), work).await.context("kube-controller-manager")
    });
    Ok(())
}

fn start_scheduler(server: &Server, work: &CancellationToken, tasks: &mut JoinSet<Result<()>>) {
    let scheduler = client(server, "kube-scheduler", "system:kube-scheduler", &[]);
    let work = work.clone();
    tasks.spawn(async move {
        coxswain_scheduler::run(coxswain_scheduler::Config::default(), scheduler, work).await.context("kube-scheduler")
    });
}

/// Without addresses to hand out there is nothing that the machines themselves do not know better.
fn start_cloud(plan: &Plan, server: &Server, work: &CancellationToken, tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    if plan.load_balancer_addresses.is_empty() {
        return Ok(());
    }
    let settings = coxswain_cloud::bare_metal::Settings {
        load_balancer_addresses: plan.load_balancer_addresses.clone(),
        ..Default::default()
    };
    let provider = coxswain_cloud::bare_metal::BareMetal::new(&settings)
        .map_err(|error| anyhow::anyhow!("--load-balancer-addresses: {error}"))?;
    // The kubelets are not told to wait for a cloud, so its other controllers have nothing to do.
    let config = coxswain_cloud::Config {
        controllers: vec!["service-lb-controller".into()],
        ..coxswain_cloud::Config::default()
    };
    // The account that upstream's roles are for.
    let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
    let name = "system:serviceaccount:kube-system:service-controller";
    let cloud = client(server, "cloud-controller-manager", name, &groups);
    let work = work.clone();
    tasks.spawn(async move {
        coxswain_cloud::run(config, Arc::new(provider), cloud, work).await.context("cloud-controller-manager")
    });
    Ok(())
}

/// Starts this machine's node, or the hollow ones. Returns their names.
fn start_nodes(
    plan: &Plan,
    keys: &Keys,
    server: &Server,
    work: &CancellationToken,
    tasks: &mut JoinSet<Result<()>>,
) -> Result<Vec<String>> {
    let node_client = |name: &str| client(server, "kubelet", &format!("system:node:{name}"), &["system:nodes"]);
    if let Some(count) = plan.hollow_nodes {
        let names: Vec<String> = (0..count).map(|i| format!("hollow-{i}")).collect();
        for (i, name) in names.iter().enumerate() {
            let mut config = coxswain_kubelet::Config::new(name);
            config.root_dir = plan.data_dir.join("hollow").join(name);
            config.cert_dir = config.root_dir.join("pki");
            config.container_log_links_dir = None;
            config.node_ips = vec![IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + 1 + i as u32))];
            config.settings.enable_server = false;
            config.settings.cluster_dns = vec![plan.dns_ip.to_string()];
            config.settings.cluster_domain = plan.cluster_domain.clone();
            let runtime = Arc::new(coxswain_kubelet::hollow::HollowRuntime::new(i as u32));
            let kubelet = coxswain_kubelet::run(config, node_client(name), runtime, work.clone());
            tasks.spawn(async move { kubelet.await.context("kubelet") });
        }
        return Ok(names);
    }
    let settings = node::Settings {
        data_dir: plan.data_dir.clone(),
        node_name: plan.node_name.clone(),
        node_ip: plan.node_ip,
        runtime_endpoint: plan.runtime_endpoint.clone(),
        image_archives: plan.image_archives.clone(),
        cluster_cidr: plan.cluster_cidr.clone(),
        cluster_dns: plan.dns_ip,
        cluster_domain: plan.cluster_domain.clone(),
        client_ca: keys.authority.cert_path.clone(),
        eviction_hard: plan.eviction_hard.clone(),
        image_gc_high_threshold: plan.image_gc_high_threshold,
        serving: Some((keys.kubelet_serving.cert_path.clone(), keys.kubelet_serving.key_path.clone())),
    };
    let clients = node::Clients {
        kubelet: node_client(&plan.node_name),
        proxy: client(server, "kube-proxy", "system:kube-proxy", &["system:node-proxiers"]),
    };
    tasks.spawn(node::run(settings, clients, work.clone()));
    let dns = coxswain_proxy::dns::Config {
        listen: vec![SocketAddr::new(plan.node_ip, cluster_setup::DNS_PORT)],
        cluster_domain: plan.cluster_domain.clone(),
        ..coxswain_proxy::dns::Config::default()
    };
    let dns = coxswain_proxy::dns::run(
        dns,
        client(server, "coredns", "system:serviceaccount:kube-system:kube-dns", &[]),
        work.clone(),
    );
    tasks.spawn(async move { dns.await.context("DNS") });
    Ok(vec![plan.node_name.clone()])
}

async fn wait_for_nodes(admin: &Client, names: &[String]) -> Result<()> {
    let nodes: Api<Node> = Api::all(admin.clone());
    let end = Instant::now() + Duration::from_secs(NODE_READY_SECONDS_MAX);
    for name in names {
        loop {
            let node = nodes.get_opt(name).await?;
            let conditions = node.and_then(|n| n.status).and_then(|s| s.conditions).unwrap_or_default();
            let ready = conditions.iter().find(|c| c.type_ == "Ready");
            if ready.is_some_and(|c| c.status == "True") {
                break;
            }
            if Instant::now() > end {
                let why = ready.and_then(|c| c.message.clone()).unwrap_or_else(|| "it never registered".into());
                bail!("node {name} was not ready within {NODE_READY_SECONDS_MAX} s: {why}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// The kubeconfig that kubectl reads: the first of KUBECONFIG, or the one in the home directory.
fn kubectl_config() -> Result<PathBuf> {
    if let Some(first) = std::env::var_os("KUBECONFIG").and_then(|v| std::env::split_paths(&v).next()) {
        return Ok(first);
    }
    let home = std::env::var_os("HOME").context("neither KUBECONFIG nor HOME says where kubectl's configuration is")?;
    Ok(Path::new(&home).join(".kube/config"))
}
