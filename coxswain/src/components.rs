//! The components by themselves, each as a process of its own under upstream's name and flags.

mod cloud_controller_manager;
mod kube_apiserver;
mod kube_controller_manager;
mod kube_proxy;
mod kube_scheduler;
mod kubelet;

use crate::flags::{Component, Flags};
use anyhow::{Context, Result, bail};
use coxswain_api::catalogue;
use coxswain_api::features::{self, Gates};
use coxswain_client::Client;
use coxswain_client::connect::{Target, default_user_agent, from_target, target_in_cluster, target_of_file};
use coxswain_client::leader::LeaderElection;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub fn run(flags: Flags) -> Result<()> {
    if flags.bool("version")? {
        println!("Kubernetes {}", coxswain_apiserver::version::GIT_VERSION);
        return Ok(());
    }
    crate::logging::init(flags.parsed::<u8>("v")?.unwrap_or(0).max(1));
    install_feature_gates(configured_feature_gates(&flags), &flags.list("feature-gates"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match flags.component() {
            Component::ApiServer => kube_apiserver::run(&flags).await,
            Component::ControllerManager => kube_controller_manager::run(&flags).await,
            Component::CloudControllerManager => cloud_controller_manager::run(&flags).await,
            Component::Scheduler => kube_scheduler::run(&flags).await,
            Component::Kubelet => kubelet::run(&flags).await,
            Component::Proxy => kube_proxy::run(&flags).await,
        }
    })
}

/// The gates that a configuration file sets. The component itself reports a file that cannot be read.
fn configured_feature_gates(flags: &Flags) -> BTreeMap<String, bool> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Configuration {
        feature_gates: BTreeMap<String, bool>,
    }
    // The other components have no configuration file, or none with gates in it.
    if !matches!(flags.component(), Component::Kubelet | Component::Proxy) {
        return BTreeMap::new();
    }
    let file = flags.path("config").and_then(|path| std::fs::read(path).ok());
    let configured = file.and_then(|text| serde_yaml_ng::from_slice::<Configuration>(&text).ok());
    configured.unwrap_or_default().feature_gates
}

/// Sets the gates of this process; of those that are configured and those of the flag, the flag has the last word.
pub fn install_feature_gates(configured: BTreeMap<String, bool>, flag: &[String]) -> Result<()> {
    let mut settings = configured;
    settings.extend(features::settings(flag)?);
    let gates = Gates::new(settings)?;
    gates.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    gates.install();
    Ok(())
}

/// Reads `--runtime-config` (upstream: `apiserver/pkg/server/resourceconfig`).
pub fn runtime_config(entries: &[String]) -> Result<Vec<(String, bool)>> {
    const ALL: &str = "api/all";
    let catalogue = catalogue::builtin();
    let versions = || catalogue.resources().map(|ty| &ty.group_version);
    let mut said = Vec::new();
    let mut unknown = BTreeSet::new();
    for entry in entries {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        let on = match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            "" if !LEVELS.contains(&key) => true,
            _ if LEVELS.contains(&key) => bail!("invalid value {key}={value}"),
            _ => bail!("invalid value of {key}: {value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax"),
        };
        if !LEVELS.contains(&key)
            && let Some((group, rest)) = key.split_once('/')
        {
            let (version, resource) = rest.split_once('/').unwrap_or((rest, ""));
            if !versions().any(|gv| *gv.group == *group) {
                unknown.insert(format!("{group}/{version}"));
            } else if !versions().any(|gv| (&*gv.group, &*gv.version) == (group, version)) {
                bail!("group version {group}/{version} that has not been registered");
            } else if resource != resource.to_lowercase() {
                bail!(
                    "invalid key {key}: group/version/resource and resource is always lowercase plural, not {resource:?}"
                );
            }
        }
        said.push((key.to_owned(), on));
    }
    if !unknown.is_empty() {
        bail!("unknown api groups {}", unknown.into_iter().collect::<Vec<_>>().join(","));
    }
    if said.as_slice() == [(ALL.to_owned(), false)] {
        bail!("invalid runtime-config with only {ALL}=false");
    }
    Ok(said)
}

/// What `--runtime-config` can say of many APIs at once.
const LEVELS: [&str; 4] = ["api/all", "api/ga", "api/beta", "api/alpha"];

/// Connects as `--kubeconfig` (or `--master`) says, or as a pod of the cluster.
fn connect(flags: &Flags) -> Result<Client> {
    Ok(from_target(target(flags)?, default_user_agent())?)
}

/// The API server and the identity that [`connect`] uses.
fn target(flags: &Flags) -> Result<Target> {
    match flags.path("kubeconfig") {
        Some(path) => Ok(target_of_file(&path)?),
        None => target_in_cluster().context("no --kubeconfig was given"),
    }
}

/// What the flags say of electing a leader; none where they say that none is to be.
fn leader_election(flags: &Flags, default_name: &str) -> Result<Option<LeaderElection>> {
    if !flags.bool("leader-elect")? {
        return Ok(None);
    }
    let mut election = LeaderElection::named(default_name);
    if let Some(name) = flags.get("leader-elect-resource-name") {
        election.name = name;
    }
    if let Some(namespace) = flags.get("leader-elect-resource-namespace") {
        election.namespace = namespace;
    }
    for (flag, into) in [
        ("leader-elect-lease-duration", &mut election.lease_duration),
        ("leader-elect-renew-deadline", &mut election.renew_deadline),
        ("leader-elect-retry-period", &mut election.retry_period),
    ] {
        if let Some(duration) = flags.duration(flag)? {
            *into = duration;
        }
    }
    Ok(Some(election))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{Component, Flags, configured_feature_gates, runtime_config};

    #[test]
    fn every_component_has_feature_gates() {
        for component in Component::ALL {
            let line = [component.name(), "--feature-gates=CBORServingAndStorage=true"];
            let flags = Flags::new(component, component.command().try_get_matches_from(line).unwrap());
            assert!(configured_feature_gates(&flags).is_empty());
            assert_eq!(flags.list("feature-gates"), ["CBORServingAndStorage=true"]);
        }
    }

    #[test]
    fn apis_that_nobody_knows_are_refused_in_upstreams_words() {
        let of = |entries: &[&str]| {
            runtime_config(&entries.iter().map(|e| (*e).to_owned()).collect::<Vec<_>>()).map_err(|e| e.to_string())
        };
        assert_eq!(
            of(&["api/all=true", "batch/v1=false", "apps/v1/deployments"]),
            Ok(vec![("api/all".into(), true), ("batch/v1".into(), false), ("apps/v1/deployments".into(), true)])
        );
        for (entry, message) in [
            ("foo/v1=false", "unknown api groups foo/v1"),
            ("apps/v9", "group version apps/v9 that has not been registered"),
            ("api/all=foo", "invalid value api/all=foo"),
            ("apps/v1=foo", "invalid value of apps/v1: foo, err: strconv.ParseBool: parsing \"foo\": invalid syntax"),
            ("api/all=false", "invalid runtime-config with only api/all=false"),
            (
                "apps/v1/Deployments=true",
                "invalid key apps/v1/Deployments: group/version/resource and resource is always lowercase plural, not \"Deployments\"",
            ),
        ] {
            assert_eq!(of(&[entry]), Err(message.to_owned()));
        }
    }
}
