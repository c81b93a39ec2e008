//! Volumes of pods on this node (upstream: `kubelet/volumemanager` and `pkg/volume`).
//!
//! A pod's worker sets its volumes up before it starts containers, again at every periodic sync so that changed objects reach running
//! containers, and tears them down when the last container is gone. The directories under `pods/<uid>/volumes` are the state; nothing is
//! remembered that could be lost. Each kind of volume is one file; [`plugin`] is the table.

pub mod atomic_writer;
mod config_map;
mod downward_api;
mod empty_dir;
mod host_path;
mod ownership;
mod persistent;
mod projected;
mod secret;
pub mod sub_path;
pub mod token;

use crate::config::Config;
use crate::environment::{Lookup, Surroundings};
use crate::pod::PodExt;
use k8s_openapi::api::core::v1::{Pod, Volume};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Everything a plugin may use. Plugins keep no state of their own.
pub struct Context<'a> {
    pub config: &'a Config,
    pub pod: &'a Pod,
    pub lookup: &'a dyn Lookup,
    pub around: &'a Surroundings,
    pub tokens: &'a token::Tokens,
    pub client: &'a kube::Client,
    /// Bytes of memory of the node, the bound of in-memory volumes.
    pub memory_capacity: i64,
}

impl Context<'_> {
    fn volume_dir(&self, plugin: &str, name: &str) -> PathBuf {
        self.config.pod_dir(self.pod.uid()).join("volumes").join(plugin.replace('/', "~")).join(name)
    }

    fn fs_group(&self) -> Option<i64> {
        self.pod.spec().security_context.as_ref().and_then(|s| s.fs_group)
    }
}

/// How messages begin about claims that are no volumes (yet).
pub const UNPROCESSED: &str = "error processing PVC";

/// Where a volume is on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounted {
    pub path: PathBuf,
    pub read_only: bool,
    /// An OCI image to be mounted by the runtime instead of a path.
    pub image: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    EmptyDir,
    ConfigMap,
    Secret,
    DownwardApi,
    Projected,
    HostPath,
    Persistent,
    Image,
}

/// Which kind of volume this is. `None`: none that this kubelet has.
fn plugin(volume: &Volume) -> Option<Plugin> {
    let table = [
        (volume.empty_dir.is_some(), Plugin::EmptyDir),
        (volume.config_map.is_some(), Plugin::ConfigMap),
        (volume.secret.is_some(), Plugin::Secret),
        (volume.downward_api.is_some(), Plugin::DownwardApi),
        (volume.projected.is_some(), Plugin::Projected),
        (volume.host_path.is_some(), Plugin::HostPath),
        (volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some(), Plugin::Persistent),
        (volume.image.is_some(), Plugin::Image),
    ];
    table.into_iter().find(|(is, _)| *is).map(|(_, plugin)| plugin)
}

/// Idempotent: makes the volume, or brings its content up to date.
async fn set_up(context: &Context<'_>, volume: &Volume) -> Result<Mounted, String> {
    match plugin(volume) {
        Some(Plugin::EmptyDir) => empty_dir::set_up(context, volume).await,
        Some(Plugin::ConfigMap) => config_map::set_up(context, volume).await,
        Some(Plugin::Secret) => secret::set_up(context, volume).await,
        Some(Plugin::DownwardApi) => downward_api::set_up(context, volume).await,
        Some(Plugin::Projected) => projected::set_up(context, volume).await,
        Some(Plugin::HostPath) => host_path::set_up(context, volume),
        Some(Plugin::Persistent) => persistent::set_up(context, volume).await,
        Some(Plugin::Image) => {
            let image = volume.image.as_ref().and_then(|i| i.reference.clone()).unwrap_or_default();
            Ok(Mounted { image: Some(image), read_only: true, ..Default::default() })
        }
        None => Err("no volume plugin matched".to_string()),
    }
}

/// Sets up all volumes of a pod. Fails with one message for each volume that could not be.
pub async fn set_up_all(context: &Context<'_>) -> Result<HashMap<String, Mounted>, BTreeMap<String, String>> {
    let volumes = context.pod.spec().volumes.as_deref().unwrap_or_default();
    let results = futures::future::join_all(
        volumes.iter().map(|volume| async move { (volume.name.clone(), set_up(context, volume).await) }),
    )
    .await;
    let mut mounted = HashMap::new();
    let mut failed = BTreeMap::new();
    for (name, result) in results {
        match result {
            Ok(place) => {
                mounted.insert(name, place);
            }
            Err(message) => {
                failed.insert(name, message);
            }
        }
    }
    if failed.is_empty() { Ok(mounted) } else { Err(failed) }
}

/// Unmounts and removes everything below a pod's directory that volumes made. Data of hostPath and persistent volumes is only unmounted.
pub fn tear_down_all(config: &Config, uid: &str) -> std::io::Result<()> {
    let pod_dir = config.pod_dir(uid);
    unmount_below(&pod_dir)?;
    for sub in ["volumes", "volume-subpaths"] {
        remove_if_there(&pod_dir.join(sub))?;
    }
    Ok(())
}

/// Removes a pod's whole directory after its volumes are torn down.
pub fn remove_pod_dir(config: &Config, uid: &str) -> std::io::Result<()> {
    tear_down_all(config, uid)?;
    remove_if_there(&config.pod_dir(uid))
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Mount points at or below a directory, deepest first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")))
        .filter(|path| path.starts_with(dir))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}

fn unmount_below(dir: &Path) -> std::io::Result<()> {
    for point in mounts_below(dir) {
        // Lazily: a process that still has a file open must not keep the pod from going.
        nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH)
            .map_err(|e| std::io::Error::other(format!("unmounting {}: {e}", point.display())))?;
    }
    Ok(())
}

pub fn is_mounted(path: &Path) -> bool {
    mounts_below(path).iter().any(|point| point == path)
}

/// Mounts a tmpfs of at most `bytes` unless one is there.
fn mount_tmpfs(path: &Path, bytes: Option<i64>) -> Result<(), String> {
    if is_mounted(path) {
        return Ok(());
    }
    let options = bytes.filter(|b| *b > 0).map(|b| format!("size={b}"));
    nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), nix::mount::MsFlags::empty(), options.as_deref())
        .map_err(|e| format!("mounting tmpfs on {}: {e}", path.display()))
}
