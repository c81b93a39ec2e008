//! Persistent volumes by their claims. Of the volumes behind them, those that are on the node already are known here: `hostPath`,
//! `local` and `nfs`; what CSI drivers provide is not.

use super::{Context, Mounted, host_path, is_mounted, ownership};
use crate::pod::PodExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Volume};
use std::fs;
use std::path::{Path, PathBuf};

pub(super) async fn set_up(context: &Context<'_>, volume: &Volume) -> Result<Mounted, String> {
    let namespace = context.pod.namespace();
    let (claim_name, read_only) = match &volume.persistent_volume_claim {
        Some(source) => (source.claim_name.clone(), source.read_only == Some(true)),
        None => (format!("{}-{}", context.pod.name(), volume.name), false),
    };
    let claims: kube::Api<PersistentVolumeClaim> = kube::Api::namespaced(context.client.clone(), namespace);
    let claim = claims.get(&claim_name).await.map_err(|e| {
        format!(
            "error processing PVC {namespace}/{claim_name}: failed to fetch PVC from API server: {}",
            crate::api_message(&e)
        )
    })?;
    if volume.ephemeral.is_some() {
        let owned = claim
            .metadata
            .owner_references
            .iter()
            .flatten()
            .any(|o| o.uid == context.pod.uid() && o.controller == Some(true));
        if !owned {
            return Err(format!(
                "PVC {namespace}/{claim_name} was not created for pod {namespace}/{} (pod is not owner)",
                context.pod.name()
            ));
        }
    }
    let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
    if name.is_empty() || claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
        return Err(format!("error processing PVC {namespace}/{claim_name}: PVC is not bound"));
    }
    let volumes: kube::Api<PersistentVolume> = kube::Api::all(context.client.clone());
    let found = volumes
        .get(&name)
        .await
        .map_err(|e| format!("failed to fetch PV {name} from API server: {}", crate::api_message(&e)))?;
    let spec = found.spec.unwrap_or_default();
    let bound_to = spec.claim_ref.as_ref().and_then(|r| r.uid.as_deref());
    if bound_to != claim.metadata.uid.as_deref() {
        return Err(format!(
            "PVC {namespace}/{claim_name} has no longer the volume {name}: it is bound to another claim"
        ));
    }
    if let Some(source) = &spec.host_path {
        host_path::check(source)?;
        return Ok(Mounted { path: PathBuf::from(&source.path), read_only, image: None });
    }
    if let Some(source) = &spec.local {
        let dir = context.volume_dir("kubernetes.io/local-volume", &name);
        bind(Path::new(&source.path), &dir, read_only)?;
        give(context, &dir, read_only).await?;
        return Ok(Mounted { path: dir, read_only, image: None });
    }
    if let Some(source) = &spec.nfs {
        let dir = context.volume_dir("kubernetes.io/nfs", &name);
        let read_only = read_only || source.read_only == Some(true);
        let mut options = spec.mount_options.clone().unwrap_or_default();
        if read_only {
            options.push("ro".into());
        }
        if !is_mounted(&dir) {
            fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
            let mut command = tokio::process::Command::new("mount");
            command.args(["-t", "nfs"]);
            if !options.is_empty() {
                command.args(["-o", &options.join(",")]);
            }
            let output = command.arg(format!("{}:{}", source.server, source.path)).arg(&dir).output().await;
            let output = output.map_err(|e| format!("mount failed: {e}"))?;
            if !output.status.success() {
                return Err(format!("mount failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
        }
        return Ok(Mounted { path: dir, read_only, image: None });
    }
    Err("no volume plugin matched".to_string())
}

fn bind(from: &Path, to: &Path, read_only: bool) -> Result<(), String> {
    use nix::mount::{MsFlags, mount};
    if is_mounted(to) {
        return Ok(());
    }
    if !from.exists() {
        return Err(format!("path {:?} does not exist", from.display().to_string()));
    }
    fs::create_dir_all(to).map_err(|e| format!("{}: {e}", to.display()))?;
    let failed = |e| format!("mount of {} failed: {e}", from.display());
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, to, None::<&str>, flags, None::<&str>).map_err(failed)?;
    }
    Ok(())
}

/// May take long on a large volume, so it leaves the worker's thread.
async fn give(context: &Context<'_>, dir: &Path, read_only: bool) -> Result<(), String> {
    let Some(group) = context.fs_group().filter(|_| !read_only) else { return Ok(()) };
    let policy = context.pod.spec().security_context.as_ref().and_then(|s| s.fs_group_change_policy.clone());
    let dir = dir.to_path_buf();
    let work = tokio::task::spawn_blocking(move || {
        ownership::give_to_group(&dir, group, false, policy.as_deref() == Some("OnRootMismatch"))
    });
    match work.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(format!("applying volume ownership failed: {e}")),
        Err(e) => Err(format!("applying volume ownership failed: {e}")),
    }
}
