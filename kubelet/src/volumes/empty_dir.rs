//! `emptyDir`: a directory, or memory, that lives as long as the pod.

use super::{Context, Mounted, mount_tmpfs, ownership};
use crate::pod::PodExt;
use crate::resources;
use k8s_openapi::api::core::v1::Volume;
use std::fs;
use std::os::unix::fs::PermissionsExt;

pub(super) async fn set_up(context: &Context<'_>, volume: &Volume) -> Result<Mounted, String> {
    let source = volume.empty_dir.as_ref().ok_or("not an emptyDir")?;
    let path = context.volume_dir("kubernetes.io/empty-dir", &volume.name);
    // The directory outlives the kubelet: once it is ready it is never touched again, as it belongs to the pod.
    let ready = context
        .config
        .pod_dir(context.pod.uid())
        .join("plugins/kubernetes.io~empty-dir")
        .join(&volume.name)
        .join("ready");
    let in_memory = match source.medium.as_deref().unwrap_or_default() {
        "" => false,
        "Memory" => true,
        medium => return Err(format!("unknown storage medium {medium:?}")),
    };
    if ready.exists() && path.is_dir() && (!in_memory || super::is_mounted(&path)) {
        return Ok(Mounted { path, ..Default::default() });
    }
    let io = |e: std::io::Error| format!("{}: {e}", path.display());
    fs::create_dir_all(&path).map_err(io)?;
    if in_memory {
        let limit = source.size_limit.as_ref().map(resources::value).filter(|v| *v > 0);
        let pod_limit = resources::pod_limits(context.pod).get("memory").map(resources::value).filter(|v| *v > 0);
        let bound = [limit, pod_limit, Some(context.memory_capacity)].into_iter().flatten().min();
        mount_tmpfs(&path, bound)?;
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).map_err(io)?;
    if let Some(group) = context.fs_group() {
        ownership::give_to_group(&path, group, false, false).map_err(io)?;
    }
    if let Some(parent) = ready.parent() {
        fs::create_dir_all(parent).map_err(io)?;
    }
    fs::write(&ready, b"").map_err(io)?;
    Ok(Mounted { path, ..Default::default() })
}
