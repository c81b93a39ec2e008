//! `kube-apiserver`: the API server alone (upstream: `cmd/kube-apiserver`). It runs no controllers.

use super::read;
use crate::flags::Flags;
use crate::machine::{default_ip, on_signal};
use crate::pki::{Authority, Use};
use anyhow::{Context, Result, bail};
use coxswain_api::codec::Format;
use coxswain_apiserver::authorization::Mode;
use coxswain_apiserver::server::certificates::tls_config_of_files;
use coxswain_apiserver::server::listen::tls_config;
use coxswain_apiserver::server::{Config, Elsewhere, EndpointReconciler, Server};
use coxswain_apiserver::store::Layout;
use coxswain_storage::Storage;
use coxswain_storage::embedded::{self, Embedded};
use coxswain_storage::encryption::Encryption;
use coxswain_storage::etcd::{self, Etcd};
use coxswain_storage::postgres::{self, Postgres};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

pub async fn run(flags: &Flags) -> Result<()> {
    let bind = flags.ip("bind-address")?.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let port: u16 = flags.parsed("secure-port")?.unwrap_or(6443);
    let advertise = match flags.ip("advertise-address")? {
        Some(address) => address,
        // As upstream: an address that other machines cannot use is not advertised.
        None if bind.is_unspecified() || bind.is_loopback() => default_ip()?,
        None => bind,
    };
    let mut config = config(flags, advertise, port)?;
    let tls = serving_certificate(flags, advertise)?;
    let backend = backend(flags)?;
    config.layout = layout(flags, backend).await?;
    let opened = open(flags, backend, &config.layout).await?;
    config.elsewhere = elsewhere(flags, &config.layout).await?;
    let switch = crate::storage_command::in_use(opened, keep_history(flags)?).await?;
    let storage: Arc<dyn Storage> = switch.clone();
    let _admin = match (backend, flags.path("data-dir")) {
        (Backend::Embedded, Some(dir)) => crate::admin::listen(&dir, switch),
        _ => None,
    };
    let delay = flags.duration("shutdown-delay-duration")?.unwrap_or_default();
    let debug_socket = flags.path("debug-socket-path");
    flags.warn_without_meaning();
    let address = SocketAddr::new(bind, port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("failed to create listener: {address}"))?;
    let shutdown = on_signal()?;
    if let Some(path) = debug_socket {
        crate::debug_socket::start(&path, shutdown.clone());
    }
    let mut server = Server::start(config, storage).await?;
    tokio::select! {
        () = server.ready() => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    tokio::select! {
        () = server.listen(listener, tls) => {}
        () = async {
            shutdown.cancelled().await;
            // Balancers are to see it before connections are refused.
            server.announce_shutdown();
            tokio::time::sleep(delay).await;
            server.begin_shutdown();
            std::future::pending().await
        } => {}
    }
    server.stop().await;
    Ok(())
}

fn config(flags: &Flags, advertise: IpAddr, port: u16) -> Result<Config> {
    let mut config = Config { advertise_address: advertise, secure_port: port, ..Config::default() };
    if let Some(range) = flags.list("service-cluster-ip-range").into_iter().next() {
        config.service_cluster_ip_range = range;
    }
    if let Some(range) = flags.get("service-node-port-range") {
        config.service_node_port_range = port_range(&range)
            .with_context(|| format!("invalid argument \"{range}\" for \"--service-node-port-range\" flag"))?;
    }
    config.runtime_config = super::runtime_config(&flags.list("runtime-config"))?;
    if let Some(timeout) = flags.duration("request-timeout")? {
        config.request_timeout = timeout;
    }
    config.storage_health_timeout =
        flags.duration("etcd-healthcheck-timeout")?.unwrap_or(config.storage_health_timeout);
    config.storage_ready_timeout = flags.duration("etcd-readycheck-timeout")?.unwrap_or(config.storage_ready_timeout);
    config.goaway_chance = flags.parsed("goaway-chance")?.unwrap_or(0.0);
    if !(0.0..=0.02).contains(&config.goaway_chance) {
        bail!("--goaway-chance can not be less than 0 or greater than 0.02");
    }
    config.flags = flags.all();
    config.profiling = flags.bool("profiling")?;
    config.requests_in_flight_max = flags.parsed("max-requests-inflight")?.unwrap_or(400);
    config.mutating_requests_in_flight_max = flags.parsed("max-mutating-requests-inflight")?.unwrap_or(200);
    config.priority_and_fairness = flags.bool("enable-priority-and-fairness")?;
    if config.priority_and_fairness
        && config.requests_in_flight_max.saturating_add(config.mutating_requests_in_flight_max) == 0
    {
        bail!(
            "--max-requests-inflight and --max-mutating-requests-inflight may not both be 0 with --enable-priority-and-fairness"
        );
    }

    config.endpoint_reconciler = match flags.get("endpoint-reconciler-type").as_deref() {
        None | Some("lease") => EndpointReconciler::Lease,
        Some("master-count") => EndpointReconciler::MasterCount(flags.parsed("apiserver-count")?.unwrap_or(1)),
        Some("none") => EndpointReconciler::None,
        Some(other) => bail!("--endpoint-reconciler-type {other:?} invalid, allowed values: lease, master-count, none"),
    };
    config.hostname = crate::machine::hostname().ok();

    let modes = flags.list("authorization-mode");
    if modes.is_empty() {
        // Upstream's default; the recordings and every real cluster set it.
        config.authorization.modes = vec![Mode::AlwaysAllow];
    } else {
        let modes: Result<Vec<Mode>, _> = modes.iter().map(|m| m.parse()).collect();
        config.authorization.modes = modes?;
    }
    config.admission.enable = flags.list("enable-admission-plugins");
    config.admission.disable = flags.list("disable-admission-plugins");
    config.admission.not_ready_toleration_seconds = flags.parsed("default-not-ready-toleration-seconds")?;
    config.admission.unreachable_toleration_seconds = flags.parsed("default-unreachable-toleration-seconds")?;

    let authentication = &mut config.authentication;
    authentication.anonymous = flags.bool("anonymous-auth")?;
    authentication.client_ca_file = flags.path("client-ca-file");
    authentication.token_auth_file = flags.path("token-auth-file");
    authentication.bootstrap_tokens = flags.bool("enable-bootstrap-token-auth")?;
    let accounts = &mut authentication.service_accounts;
    accounts.key_files = flags.list("service-account-key-file").into_iter().map(Into::into).collect();
    accounts.signing_key_file = flags.path("service-account-signing-key-file");
    accounts.issuers = flags.list("service-account-issuer");
    accounts.audiences = flags.list("api-audiences");
    accounts.extend_expiration = flags.bool("service-account-extend-token-expiration")?;
    accounts.lookup = flags.bool("service-account-lookup")?;
    accounts.jwks_uri = flags.get("service-account-jwks-uri");
    let longest = flags.duration("service-account-max-token-expiration")?;
    accounts.max_expiration_seconds = longest.filter(|d| !d.is_zero()).map(|d| d.as_secs() as i64);
    let host = flags.get("external-hostname").unwrap_or_else(|| advertise.to_string());
    accounts.external_address = format!("{host}:{port}");
    if accounts.signing_key_file.is_none() || accounts.key_files.is_empty() {
        // Upstream insists on keys; a server tried out alone makes its own beside its certificate.
        if !flags.is_set("cert-dir") {
            bail!(
                "service-account-signing-key-file and service-account-key-file are required, or --cert-dir to make them in"
            );
        }
        let (private, public) = crate::pki::service_account_keys(Path::new(&cert_dir(flags)))?;
        accounts.signing_key_file.get_or_insert(private);
        if accounts.key_files.is_empty() {
            accounts.key_files = vec![public];
        }
    }
    if accounts.issuers.is_empty() {
        accounts.issuers = vec!["https://kubernetes.default.svc.cluster.local".into()];
    }

    let kubelet = &mut config.kubelet;
    for (flag, into) in [
        ("kubelet-client-certificate", &mut kubelet.client_certificate_pem),
        ("kubelet-client-key", &mut kubelet.client_key_pem),
        ("kubelet-certificate-authority", &mut kubelet.ca_pem),
    ] {
        if let Some(path) = flags.path(flag) {
            *into = read(&path)?;
        }
    }
    if flags.is_set("kubelet-preferred-address-types") {
        kubelet.preferred_address_types = flags.list("kubelet-preferred-address-types");
    }
    Ok(config)
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    if let Some((first, last)) = text.split_once('-') {
        return Some((first.parse().ok()?, last.parse().ok()?));
    }
    let (first, size) = text.split_once('+')?;
    let first: u16 = first.parse().ok()?;
    Some((first, first.checked_add(size.parse().ok()?)?))
}

fn cert_dir(flags: &Flags) -> String {
    flags.get("cert-dir").unwrap_or_else(|| "/var/run/kubernetes".into())
}

/// The configured certificate, or one made in `--cert-dir` as upstream does where none is given.
fn serving_certificate(flags: &Flags, advertise: IpAddr) -> Result<Arc<rustls::ServerConfig>> {
    let (cert, key) = match (flags.path("tls-cert-file"), flags.path("tls-private-key-file")) {
        (Some(cert), Some(key)) => return Ok(tls_config_of_files(cert, key)?),
        (None, None) => {
            let dir = cert_dir(flags);
            let authority = Authority::open_or_create(Path::new(&dir), "apiserver-ca", "apiserver-ca")?;
            let mut ips = vec![advertise, IpAddr::from([127, 0, 0, 1])];
            ips.dedup();
            let dns = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
            let purpose = Use::Server {
                name: "apiserver".into(),
                groups: vec![],
                dns: dns.iter().map(|n| (*n).to_owned()).collect(),
                ips,
            };
            let leaf = authority.leaf(Path::new(&dir), "apiserver", &purpose)?;
            (leaf.cert_pem.into_bytes(), leaf.key_pem.into_bytes())
        }
        _ => bail!("--tls-cert-file and --tls-private-key-file must be given together"),
    };
    Ok(tls_config(&cert, &key)?)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Embedded,
    Etcd,
    Postgres,
}

fn backend(flags: &Flags) -> Result<Backend> {
    let default = if flags.is_set("etcd-servers") { "etcd3" } else { "embedded" };
    let backend = flags.get("storage-backend").unwrap_or_else(|| default.into());
    Ok(match backend.as_str() {
        "embedded" => Backend::Embedded,
        "etcd3" => Backend::Etcd,
        "postgres" => Backend::Postgres,
        other => bail!("--storage-backend {other:?} invalid, allowed values: embedded, etcd3, postgres"),
    })
}

async fn layout(flags: &Flags, backend: Backend) -> Result<Layout> {
    // Etcd may be shared with or handed to upstream's server; the others keep what is served fastest.
    let asked = match (backend, flags.is_set("storage-media-type")) {
        (Backend::Etcd, _) | (_, true) => flags.get("storage-media-type"),
        _ => None,
    };
    let asked = asked.unwrap_or_else(|| Format::Json.media_type().into());
    let known = |f: &Format| [Format::Json, Format::Yaml, Format::Protobuf].contains(f);
    let Some(format) = Format::of_media_type(&asked).filter(known) else {
        bail!(
            "--storage-media-type {asked:?} invalid, allowed values: application/json, application/vnd.kubernetes.protobuf, application/yaml"
        )
    };
    let mut layout = Layout::new(&flags.get("etcd-prefix").unwrap_or_default(), format);
    if let Some(ttl) = flags.duration("event-ttl")? {
        layout.event_ttl = ttl;
    }
    let reload = flags.bool("encryption-provider-config-automatic-reload")?;
    match flags.path("encryption-provider-config") {
        Some(path) => {
            let identity = nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            layout.encryption = Some(Arc::new(Encryption::load(&path, reload, &identity).await?));
        }
        None if reload => {
            bail!("--encryption-provider-config-automatic-reload must be set with --encryption-provider-config")
        }
        None => {}
    }
    Ok(layout)
}

fn keep_history(flags: &Flags) -> Result<Duration> {
    Ok(flags.duration("etcd-compaction-interval")?.unwrap_or(Duration::from_secs(300)))
}

async fn open(flags: &Flags, backend: Backend, layout: &Layout) -> Result<Arc<dyn Storage>> {
    let keep_history = keep_history(flags)?;
    // A store's own sentence says it all; its chain of causes would say it twice.
    let plain = |e: coxswain_storage::Error| anyhow::anyhow!("{e}");
    match backend {
        Backend::Embedded => {
            let dir = flags.path("data-dir").context("--data-dir says where the embedded store keeps its files")?;
            let options = embedded::Options { keep_history, ..embedded::Options::default() };
            Ok(Arc::new(Embedded::open(&dir, options).map_err(plain)?))
        }
        Backend::Etcd => {
            let servers = flags.list("etcd-servers");
            if servers.is_empty() {
                bail!("--etcd-servers must be specified");
            }
            Ok(Arc::new(Etcd::open(&servers, etcd_options(flags, layout)?).await.map_err(plain)?))
        }
        Backend::Postgres => {
            let url = flags.get("postgres-url").context("--postgres-url says where the database is")?;
            let options = postgres::Options { keep_history, ..postgres::Options::default() };
            Ok(Arc::new(Postgres::open(&url, options).await.map_err(plain)?))
        }
    }
}

/// How any etcd is reached.
fn etcd_options(flags: &Flags, layout: &Layout) -> Result<etcd::Options> {
    let user = match flags.get("etcd-username") {
        Some(name) => {
            let path = flags.path("etcd-password-file").context("--etcd-username needs --etcd-password-file")?;
            let password = String::from_utf8(read(&path)?).context("the password of etcd's user is not text")?;
            Some((name, password.trim_end_matches(['\r', '\n']).to_owned()))
        }
        None => None,
    };
    let access = etcd::Access {
        ca_file: flags.path("etcd-cafile"),
        cert_file: flags.path("etcd-certfile"),
        key_file: flags.path("etcd-keyfile"),
        user,
    };
    let keep_history = keep_history(flags)?;
    let mut options =
        etcd::Options { keep_history, access, root: layout.root().to_owned(), ..etcd::Options::default() };
    if let Some(seconds) = flags.parsed("lease-reuse-duration-seconds")? {
        options.lease_reuse = Duration::from_secs(seconds);
    }
    Ok(options)
}

/// What `--etcd-servers-overrides` keeps in an etcd of its own, whatever has the rest.
async fn elsewhere(flags: &Flags, layout: &Layout) -> Result<Vec<Elsewhere>> {
    let mut by_servers: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for entry in flags.list("etcd-servers-overrides") {
        let parts = entry.split_once('#').and_then(|(what, servers)| Some((what.split_once('/')?, servers)));
        let Some(((group, resource), servers)) = parts.filter(|(_, servers)| !servers.is_empty()) else {
            bail!(
                "--etcd-servers-overrides invalid, must be of format: group/resource#servers, where servers are URLs, \
                 semicolon separated"
            );
        };
        by_servers.entry(servers.to_owned()).or_default().push((group.to_owned(), resource.to_owned()));
    }
    let mut all = Vec::new();
    for (servers, resources) in by_servers {
        let servers: Vec<String> = servers.split(';').map(str::to_owned).collect();
        let opened = Etcd::open(&servers, etcd_options(flags, layout)?).await;
        let storage: Arc<dyn Storage> = Arc::new(opened.map_err(|e| anyhow::anyhow!("{e}"))?);
        all.push(Elsewhere { resources, storage });
    }
    Ok(all)
}
