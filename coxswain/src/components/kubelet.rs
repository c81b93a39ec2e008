//! `kubelet`: the node agent alone (upstream: `cmd/kubelet`). Flags override the configuration file.

use super::{connect, read};
use crate::flags::Flags;
use crate::machine::{hostname, on_signal};
use anyhow::{Context, Result, bail};
use coxswain_kubelet::{Config, CriClient, KubeletConfiguration};
use std::sync::Arc;
use std::time::Duration;

const RUNTIME_CALL_MAX: Duration = Duration::from_secs(120);

pub async fn run(flags: &Flags) -> Result<()> {
    let client = connect(flags)?;
    let config = config(flags)?;
    let endpoint = config.settings.container_runtime_endpoint.clone();
    if endpoint.is_empty() {
        bail!(
            "the container runtime endpoint address was not specified or empty, use --container-runtime-endpoint to set"
        );
    }
    flags.warn_without_meaning();
    let runtime = Arc::new(CriClient::new(&endpoint, &config.settings.image_service_endpoint, RUNTIME_CALL_MAX)?);
    coxswain_kubelet::run(config, client, runtime, on_signal()?).await.context("kubelet")
}

fn config(flags: &Flags) -> Result<Config> {
    let name = match flags.get("hostname-override") {
        Some(name) => name,
        None => hostname()?,
    };
    let mut config = Config::new(name);
    if let Some(path) = flags.path("config") {
        let text = read(&path)?;
        config.settings = serde_yaml_ng::from_slice::<KubeletConfiguration>(&text)
            .with_context(|| format!("failed to load kubelet config file, path: {}", path.display()))?;
    }
    for ip in flags.list("node-ip") {
        config.node_ips.push(ip.parse().with_context(|| format!("invalid argument \"{ip}\" for \"--node-ip\" flag"))?);
    }
    if let Some(dir) = flags.path("root-dir") {
        config.root_dir = dir;
    }
    if let Some(dir) = flags.path("cert-dir") {
        config.cert_dir = dir;
    }
    for label in flags.list("node-labels") {
        let (key, value) = label.split_once('=').unwrap_or((&label, ""));
        config.node_labels.insert(key.to_owned(), value.to_owned());
    }
    config.cloud_provider_external = flags.get("cloud-provider").as_deref() == Some("external");

    let settings = &mut config.settings;
    for (flag, into) in [
        ("container-runtime-endpoint", &mut settings.container_runtime_endpoint),
        ("image-service-endpoint", &mut settings.image_service_endpoint),
        ("cluster-domain", &mut settings.cluster_domain),
        ("cgroup-driver", &mut settings.cgroup_driver),
        ("cgroup-root", &mut settings.cgroup_root),
        ("pod-cidr", &mut settings.pod_cidr),
        ("resolv-conf", &mut settings.resolv_conf),
        ("tls-cert-file", &mut settings.tls_cert_file),
        ("tls-private-key-file", &mut settings.tls_private_key_file),
        ("client-ca-file", &mut settings.authentication.x509.client_ca_file),
        ("address", &mut settings.address),
        ("pod-manifest-path", &mut settings.static_pod_path),
    ] {
        if flags.is_set(flag) {
            *into = flags.get(flag).unwrap_or_default();
        }
    }
    if flags.is_set("cluster-dns") {
        settings.cluster_dns = flags.list("cluster-dns");
    }
    if flags.is_set("port") {
        settings.port = flags.parsed("port")?.unwrap_or(settings.port);
    }
    if flags.is_set("max-pods") {
        settings.max_pods = flags.parsed("max-pods")?.unwrap_or(settings.max_pods);
    }
    Ok(config)
}
