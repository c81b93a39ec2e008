//! `projected` volumes: several sources in one directory, service account tokens among them.

use super::atomic_writer::{self, File, Payload};
use super::{Context, Mounted, config_map, downward_api, mount_tmpfs, ownership, secret};
use crate::pod::{self, PodExt};
use k8s_openapi::api::core::v1::{Volume, VolumeProjection};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

pub(super) async fn set_up(context: &Context<'_>, volume: &Volume) -> Result<Mounted, String> {
    let source = volume.projected.as_ref().ok_or("not a projected volume")?;
    let mut payload = Payload::new();
    // All that is missing is told at once, so that nobody has to mend one after the other.
    let mut errors: Vec<String> = Vec::new();
    for part in source.sources.iter().flatten() {
        match content(context, part, source.default_mode).await {
            Ok(files) => payload.extend(files),
            Err(e) if errors.contains(&e) => {}
            Err(e) => errors.push(e),
        }
    }
    match errors.len() {
        0 => {}
        1 => return Err(errors.remove(0)),
        _ => return Err(format!("[{}]", errors.join(", "))),
    }
    publish(context, context.volume_dir("kubernetes.io/projected", &volume.name), payload, true)
}

/// The files of one source.
async fn content(context: &Context<'_>, part: &VolumeProjection, mode: Option<i32>) -> Result<Payload, String> {
    if let Some(part) = &part.secret {
        return secret::payload(context, &part.name, part.items.as_deref(), part.optional == Some(true), mode).await;
    }
    if let Some(part) = &part.config_map {
        return config_map::payload(context, &part.name, part.items.as_deref(), part.optional == Some(true), mode)
            .await;
    }
    if let Some(part) = &part.downward_api {
        return downward_api::payload(context, part.items.as_deref().unwrap_or_default(), mode);
    }
    let Some(part) = &part.service_account_token else {
        return Err("projected volume source is not supported by this kubelet".to_string());
    };
    let token =
        context.tokens.get(context.client, context.pod, part.audience.as_deref(), part.expiration_seconds).await?;
    let user = single_user(context);
    // A token that a group or one user is to read is nobody else's.
    let restricted = user.is_some() || context.fs_group().is_some();
    let mode = if restricted { 0o600 } else { mode.unwrap_or(0o644) as u32 };
    Ok([(part.path.clone(), File { data: token.into_bytes(), mode, uid: user })].into())
}

/// The user all containers run as, if that is said and the same everywhere.
fn single_user(context: &Context<'_>) -> Option<u32> {
    let spec = context.pod.spec();
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = pod::long_lived_containers(spec)
        .map(|c| c.container.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first as u32)
}

/// Makes the directory, in memory if it holds secrets, and puts the payload there.
pub(super) fn publish(
    context: &Context<'_>,
    dir: PathBuf,
    payload: Payload,
    in_memory: bool,
) -> Result<Mounted, String> {
    let io = |e: std::io::Error| format!("{}: {e}", dir.display());
    if !dir.is_dir() {
        fs::create_dir_all(&dir).map_err(io)?;
    }
    if in_memory {
        mount_tmpfs(&dir, Some(context.memory_capacity))?;
    }
    let group = context.fs_group();
    // As a tmpfs or an emptyDir would be, and below fsGroup inherited by what is made in it.
    let mode = if in_memory { 0o1777 } else { 0o777 } | if group.is_some() { 0o2000 } else { 0 };
    if let Some(group) = group {
        std::os::unix::fs::chown(&dir, None, Some(group as u32)).map_err(io)?;
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).map_err(io)?;
    atomic_writer::write(&dir, &payload, |fresh| match group {
        Some(group) => ownership::give_to_group(fresh, group, true, false),
        None => Ok(()),
    })
    .map_err(io)?;
    Ok(Mounted { path: dir, read_only: false, image: None })
}
