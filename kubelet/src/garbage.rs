//! Housekeeping (upstream: `container_gc.go`, `image_gc_manager.go`, `container_log_manager.go`, `kubelet_volumes.go`): images nobody uses,
//! logs that have grown, and what is left of pods that are gone.

use crate::kubelet::Kubelet;
use crate::labels;
use crate::machine;
use crate::resources;
use crate::sandbox;
use crate::volumes;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const HOUSEKEEPING_PERIOD: Duration = Duration::from_secs(30);
const IMAGE_PERIOD: Duration = Duration::from_secs(300);

pub async fn run(kubelet: Arc<Kubelet>) {
    let work = async {
        tokio::join!(keep_house(&kubelet), collect_images(&kubelet), rotate_logs(&kubelet));
    };
    tokio::select! {
        () = work => {}
        () = kubelet.shutdown.cancelled() => {}
    }
}

async fn keep_house(kubelet: &Kubelet) {
    loop {
        tokio::time::sleep(HOUSEKEEPING_PERIOD).await;
        remove_orphaned_dirs(kubelet).await;
        let burstable: i64 = kubelet
            .handles()
            .iter()
            .map(|h| h.pod())
            .filter(|p| resources::qos_class(p) == resources::QosClass::Burstable)
            .map(|p| resources::pod_requests(&p).get("cpu").map_or(0, resources::milli_value))
            .sum();
        if let Err(error) = kubelet.cgroups.set_burstable_cpu(burstable) {
            tracing::debug!(%error, "the group of burstable pods could not be set");
        }
        kubelet.crash_backoff.collect_garbage(Timestamp::now());
        kubelet.images.collect_garbage();
    }
}

/// Directories, groups and links of pods that neither the API nor the runtime knows.
async fn remove_orphaned_dirs(kubelet: &Kubelet) {
    let Ok(sandboxes) = kubelet.runtime.list_pod_sandboxes(None).await else { return };
    let held: HashSet<String> = sandboxes.iter().filter_map(|s| s.labels.get(labels::POD_UID).cloned()).collect();
    let known = |uid: &str| held.contains(uid) || kubelet.handle(uid).is_some();
    for entry in std::fs::read_dir(kubelet.config.pods_dir()).into_iter().flatten().flatten() {
        if let Ok(uid) = entry.file_name().into_string()
            && !known(&uid)
            && let Err(error) = volumes::remove_pod_dir(&kubelet.config, &uid)
        {
            tracing::debug!(uid, %error, "the directory of a pod that is gone could not be removed");
        }
    }
    for (uid, path) in kubelet.cgroups.pods_on_disk() {
        if !known(&uid) {
            let _ = kubelet.cgroups.remove_path(&path);
        }
    }
    for entry in std::fs::read_dir(kubelet.config.pod_logs_root()).into_iter().flatten().flatten() {
        if let Ok(name) = entry.file_name().into_string()
            && let Some(uid) = name.rsplit('_').next()
            && uid.len() >= 32
            && !known(uid)
        {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    if let Some(dir) = &kubelet.config.container_log_links_dir {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let ours =
                std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(kubelet.config.pod_logs_root()));
            if ours && !entry.path().exists() {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// When the disk is fuller than the high threshold, images that have been unused longest go until the low threshold is reached.
async fn collect_images(kubelet: &Kubelet) {
    let settings = &kubelet.config.settings;
    let mut unused_since: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(IMAGE_PERIOD).await;
        let (Ok(images), Ok(containers)) =
            (kubelet.runtime.list_images().await, kubelet.runtime.list_containers(None).await)
        else {
            continue;
        };
        let in_use: HashSet<&str> =
            containers.iter().flat_map(|c| [c.image_ref.as_str(), c.image_id.as_str()]).collect();
        let candidates: Vec<_> = images.into_iter().filter(|i| !is_used(i, &in_use)).collect();
        unused_since.retain(|id, _| candidates.iter().any(|i| i.id == *id));
        for image in &candidates {
            unused_since.entry(image.id.clone()).or_insert_with(Instant::now);
        }
        let Some(disk) = image_file_system(kubelet).await else { continue };
        let used_percent = 100 - (disk.available_bytes * 100 / disk.capacity_bytes.max(1)) as i32;
        // 100 means never, as upstream has it.
        let threshold = settings.image_gc_high_threshold_percent;
        if used_percent < threshold || threshold == 100 {
            continue;
        }
        let wanted_free =
            disk.capacity_bytes * (100 - settings.image_gc_low_threshold_percent.clamp(0, 100)) as u64 / 100;
        let mut to_free = wanted_free.saturating_sub(disk.available_bytes) as i64;
        let mut oldest: Vec<_> =
            candidates.iter().filter(|i| unused_since[&i.id].elapsed() >= settings.image_minimum_gc_age.0).collect();
        oldest.sort_by_key(|i| unused_since[&i.id]);
        let mut freed = 0;
        for image in oldest {
            if to_free <= 0 {
                break;
            }
            if kubelet.runtime.remove_image(&image.id).await.is_ok() {
                to_free -= image.size as i64;
                freed += image.size;
            }
        }
        if to_free > 0 {
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {} bytes, but only found {freed} bytes eligible to free.",
                to_free + freed as i64
            );
            kubelet.events.node("Warning", "FreeDiskSpaceFailed", message);
        }
    }
}

/// Removes every image that no container uses, when the disk is needed now. Returns the bytes that were theirs.
pub async fn remove_unused_images(kubelet: &Kubelet) -> u64 {
    let (Ok(images), Ok(containers)) =
        (kubelet.runtime.list_images().await, kubelet.runtime.list_containers(None).await)
    else {
        return 0;
    };
    let in_use: HashSet<&str> = containers.iter().flat_map(|c| [c.image_ref.as_str(), c.image_id.as_str()]).collect();
    let mut freed = 0;
    for image in images.iter().filter(|i| !is_used(i, &in_use)) {
        if kubelet.runtime.remove_image(&image.id).await.is_ok() {
            freed += image.size;
        }
    }
    freed
}

fn is_used(image: &crate::cri::v1::Image, in_use: &HashSet<&str>) -> bool {
    let sandbox = image.repo_tags.iter().any(|tag| tag.contains("/pause:"));
    image.pinned
        || sandbox
        || in_use.contains(image.id.as_str())
        || image.repo_digests.iter().any(|d| in_use.contains(d.as_str()))
}

pub async fn image_file_system(kubelet: &Kubelet) -> Option<machine::FileSystem> {
    let info = kubelet.runtime.image_fs_info().await.ok()?;
    let place = info.image_filesystems.first()?.fs_id.as_ref()?.mountpoint.clone();
    machine::file_system(Path::new(&place))
}

/// Log files that have reached their size are renamed; of those the oldest go (upstream keeps `containerLogMaxFiles` in all, compressed).
async fn rotate_logs(kubelet: &Kubelet) {
    let settings = &kubelet.config.settings;
    let size_max = resources::value(&Quantity(settings.container_log_max_size.clone()));
    let files_max = settings.container_log_max_files.max(2) as usize;
    loop {
        tokio::time::sleep(settings.container_log_monitor_interval.0.max(Duration::from_secs(3))).await;
        if size_max <= 0 {
            continue;
        }
        for handle in kubelet.handles() {
            let dir = sandbox::pod_log_dir(&kubelet.config, &handle.pod());
            for container in handle.runtime().containers.iter().filter(|c| c.is_running()) {
                let path = if Path::new(&container.log_path).is_absolute() {
                    PathBuf::from(&container.log_path)
                } else {
                    dir.join(&container.log_path)
                };
                if std::fs::metadata(&path).is_ok_and(|m| m.len() as i64 >= size_max)
                    && let Err(error) = rotate(kubelet, &path, &container.id, files_max).await
                {
                    tracing::debug!(path = %path.display(), %error, "a log file could not be rotated");
                }
            }
        }
    }
}

async fn rotate(kubelet: &Kubelet, path: &Path, id: &str, files_max: usize) -> std::io::Result<()> {
    let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else { return Ok(()) };
    let prefix = format!("{name}.");
    let mut older: Vec<PathBuf> = std::fs::read_dir(dir)?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&prefix)))
        .collect();
    older.sort();
    // The current file and the one about to be made count too.
    let keep = files_max.saturating_sub(2);
    for extra in &older[..older.len().saturating_sub(keep)] {
        std::fs::remove_file(extra)?;
    }
    let rotated = dir.join(format!("{prefix}{stamp}"));
    std::fs::rename(path, &rotated)?;
    if let Err(e) = kubelet.runtime.reopen_container_log(id).await {
        // The runtime still writes to the renamed file: undo, so that nothing is lost from view.
        std::fs::rename(&rotated, path)?;
        return Err(std::io::Error::other(e));
    }
    Ok(())
}
