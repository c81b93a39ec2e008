//! `/containerLogs`: what `kubectl logs` shows (upstream: `server.go: getContainerLogs`, `kubelet_pods.go: validateContainerLogStatus`).

use super::{Body, Query, error, stream_body, text};
use crate::kubelet::Kubelet;
use crate::logs::{self, LogOptions};
use crate::pod::{self, PodExt};
use crate::probes::bare_id;
use crate::sandbox;
use http::{Response, StatusCode};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

const PIECES_MAX: usize = 16;

pub(super) async fn answer(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    pod_name: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let options = match options(query) {
        Ok(options) => options,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let Some(handle) = kubelet.find(namespace, pod_name) else {
        return error(
            StatusCode::NOT_FOUND,
            format!("pod does not exist: pod {pod_name:?} cannot be found - no logs available"),
        );
    };
    let pod = handle.pod();
    let known = pod::long_lived_containers(pod.spec()).any(|c| c.container.name == container)
        || pod::ephemeral_containers(pod.spec()).iter().any(|c| c.name == container);
    if !known {
        return error(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod_name:?}"));
    }
    let id = match container_id(&handle.status(), pod_name, container, query.flag("previous")) {
        Ok(id) => id,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let status = match kubelet.runtime.container_status(&id).await {
        Ok(status) => status,
        Err(e) => {
            return error(StatusCode::INTERNAL_SERVER_ERROR, format!("failed to get container status {id:?}: {e}"));
        }
    };
    let path = if Path::new(&status.log_path).is_absolute() {
        PathBuf::from(&status.log_path)
    } else {
        sandbox::pod_log_dir(&kubelet.config, &pod).join(&status.log_path)
    };
    if let Err(e) = std::fs::File::open(&path) {
        let message = match e.kind() {
            std::io::ErrorKind::NotFound => format!(
                "failed to try resolving symlinks in path {:?}: lstat {}: no such file or directory",
                path.display().to_string(),
                path.display()
            ),
            _ => format!("failed to open log file {:?}: {e}", path.display().to_string()),
        };
        return error(StatusCode::INTERNAL_SERVER_ERROR, message);
    }
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let kubelet = kubelet.clone();
    tokio::spawn(async move {
        let runs = || async {
            let status = kubelet.runtime.container_status(&id).await;
            status.is_ok_and(|s| s.state == crate::cri::v1::ContainerState::Running as i32)
        };
        if let Err(e) = logs::stream(path, options, sender.clone(), runs).await {
            let _ = sender.send(Err(e)).await;
        }
    });
    let mut response = Response::new(stream_body(receiver));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain"));
    response
}

fn options(query: &Query) -> Result<LogOptions, String> {
    let number = |name: &str| -> Result<Option<i64>, String> {
        match query.get(name).filter(|v| !v.is_empty()) {
            None => Ok(None),
            Some(text) => {
                text.parse().map(Some).map_err(|_| format!("Unable to decode query: {name}: {text:?} is not a number"))
            }
        }
    };
    let since = match (number("sinceSeconds")?, query.get("sinceTime").filter(|t| !t.is_empty())) {
        (Some(seconds), _) => Some(Timestamp::now() - jiff::SignedDuration::from_secs(seconds)),
        (None, Some(text)) => {
            Some(text.parse().map_err(|_| format!("Unable to decode query: sinceTime: {text:?} is not a time"))?)
        }
        (None, None) => None,
    };
    let stream = query.get("stream").filter(|s| matches!(*s, "Stdout" | "Stderr")).map(str::to_lowercase);
    Ok(LogOptions {
        follow: query.flag("follow"),
        timestamps: query.flag("timestamps"),
        tail_lines: number("tailLines")?.map(|n| n.max(0) as u64),
        since,
        limit_bytes: number("limitBytes")?.map(|n| n.max(0) as u64),
        stream,
    })
}

/// Which of a container's lives is meant, or why it has no log.
fn container_id(status: &PodStatus, pod: &str, name: &str, previous: bool) -> Result<String, String> {
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let Some(found) = lists.into_iter().find_map(|list| pod::container_status(list, name)) else {
        return Err(format!("container {name:?} in pod {pod:?} is not available"));
    };
    let state = found.state.clone().unwrap_or_default();
    let last = found.last_state.as_ref().and_then(|s| s.terminated.as_ref()).and_then(|t| t.container_id.clone());
    let ended = state.terminated.as_ref().and_then(|t| t.container_id.clone());
    let id = if previous {
        last.ok_or_else(|| format!("previous terminated container {name:?} in pod {pod:?} not found"))?
    } else if state.running.is_some() {
        found.container_id.clone().unwrap_or_default()
    } else if state.terminated.is_some() {
        ended.or(last).ok_or_else(|| format!("container {name:?} in pod {pod:?} is terminated"))?
    } else if let Some(id) = last {
        id
    } else {
        let reason = state.waiting.and_then(|w| w.reason).unwrap_or_default();
        let why = match reason.as_str() {
            "ErrImagePull" => "image can't be pulled",
            "ImagePullBackOff" => "trying and failing to pull image",
            other => other,
        };
        return Err(format!("container {name:?} in pod {pod:?} is waiting to start: {why}"));
    };
    Ok(bare_id(&id).to_string())
}
