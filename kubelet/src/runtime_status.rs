//! What the runtime holds of one pod (upstream: `kubecontainer.PodStatus`): its sandboxes and containers, newest first.

use crate::cri::v1::{self, ContainerState, PodSandboxState};
use crate::cri::{Result, Runtime};
use crate::labels::{self, ContainerInfo};
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// The text a container leaves when it ends is cut at these lengths (upstream: `MaxContainerTerminationMessage…`).
const MESSAGE_BYTES_MAX: usize = 4096;
const LOG_MESSAGE_BYTES_MAX: u64 = 2048;
const LOG_MESSAGE_LINES_MAX: usize = 80;

#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeContainer {
    pub id: String,
    pub name: String,
    pub state: ContainerState,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_ref: String,
    pub log_path: String,
    pub sandbox_attempt: u32,
    pub info: ContainerInfo,
    pub resources: Option<v1::LinuxContainerResources>,
    pub user: Option<v1::LinuxContainerUser>,
    pub stop_signal: i32,
}

impl RuntimeContainer {
    pub fn is_running(&self) -> bool {
        self.state == ContainerState::Running
    }

    pub fn has_exited(&self) -> bool {
        self.state == ContainerState::Exited
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimePod {
    /// Newest first.
    pub sandboxes: Vec<v1::PodSandboxStatus>,
    /// Newest first.
    pub containers: Vec<Arc<RuntimeContainer>>,
}

impl RuntimePod {
    /// The newest container of a name.
    pub fn find(&self, name: &str) -> Option<&Arc<RuntimeContainer>> {
        self.containers.iter().find(|c| c.name == name)
    }

    pub fn sandbox(&self) -> Option<&v1::PodSandboxStatus> {
        self.sandboxes.first()
    }

    pub fn ready_sandbox(&self) -> Option<&v1::PodSandboxStatus> {
        self.sandbox().filter(|s| is_ready(s))
    }

    pub fn is_running(&self) -> bool {
        self.containers.iter().any(|c| c.is_running() || c.state == ContainerState::Unknown)
            || self.sandboxes.iter().any(is_ready)
    }

    /// Addresses of the newest sandbox while it is ready.
    pub fn ips(&self) -> Vec<String> {
        let Some(network) = self.ready_sandbox().and_then(|s| s.network.as_ref()) else { return Vec::new() };
        let more = network.additional_ips.iter().map(|ip| ip.ip.clone());
        std::iter::once(network.ip.clone()).chain(more).filter(|ip| !ip.is_empty()).collect()
    }

    /// Whether any regular container has ever been started in the present sandbox's life.
    pub fn has_started_regular(&self, pod: &Pod) -> bool {
        use crate::pod::PodExt;
        pod.spec().containers.iter().any(|c| self.find(&c.name).is_some_and(|s| s.state != ContainerState::Created))
    }
}

pub fn is_ready(sandbox: &v1::PodSandboxStatus) -> bool {
    sandbox.state == PodSandboxState::Ready as i32
}

/// Asks the runtime for everything it has of a pod. `known` holds containers that have ended, which cannot change any more and need not
/// be asked for again; it is brought up to date.
pub async fn fetch(
    runtime: &dyn Runtime,
    uid: &str,
    log_root: &Path,
    known: &mut HashMap<String, Arc<RuntimeContainer>>,
) -> Result<RuntimePod> {
    let selector: HashMap<String, String> = [(labels::POD_UID.to_string(), uid.to_string())].into();
    let sandbox_filter = v1::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
    let container_filter = v1::ContainerFilter { label_selector: selector, ..Default::default() };
    let (sandboxes, containers) = tokio::try_join!(
        runtime.list_pod_sandboxes(Some(sandbox_filter)),
        runtime.list_containers(Some(container_filter))
    )?;

    let mut result = RuntimePod::default();
    for sandbox in sandboxes {
        match runtime.pod_sandbox_status(&sandbox.id).await {
            Ok(answer) => result.sandboxes.extend(answer.status),
            // It went away between the two calls.
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    result.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.created_at, s.metadata.as_ref().map(|m| m.attempt))));
    for container in containers {
        if let Some(ended) = known.get(&container.id) {
            result.containers.push(ended.clone());
            continue;
        }
        match runtime.container_status(&container.id).await {
            Ok(status) => {
                let converted = Arc::new(convert(status, runtime.is_real(), log_root));
                if converted.has_exited() {
                    known.insert(converted.id.clone(), converted.clone());
                }
                result.containers.push(converted);
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    known.retain(|id, _| result.containers.iter().any(|c| c.id == *id));
    // The restart count decides between containers created within the same tick of the clock.
    result.containers.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.info.restart_count)));
    Ok(result)
}

fn convert(status: v1::ContainerStatus, real: bool, log_root: &Path) -> RuntimeContainer {
    let info = labels::container_info(&status.annotations);
    let state = ContainerState::try_from(status.state).unwrap_or(ContainerState::Unknown);
    let metadata = status.metadata.clone().unwrap_or_default();
    let mut message = status.message.clone();
    if state == ContainerState::Exited && real {
        let text = termination_message(&status, &info, log_root);
        if !text.is_empty() {
            message = if message.is_empty() { text } else { format!("{message}: {text}") };
        }
    }
    let ended = state == ContainerState::Exited;
    let named_image = status
        .image
        .as_ref()
        .map(|i| if i.user_specified_image.is_empty() { i.image.clone() } else { i.user_specified_image.clone() });
    RuntimeContainer {
        id: status.id,
        name: metadata.name,
        state,
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: if ended { status.finished_at } else { 0 },
        exit_code: if ended { status.exit_code } else { 0 },
        reason: if ended { status.reason } else { String::new() },
        message: if ended { message } else { String::new() },
        image: named_image.unwrap_or_default(),
        image_ref: status.image_ref,
        log_path: status.log_path,
        sandbox_attempt: metadata.attempt,
        info,
        resources: status.resources.and_then(|r| r.linux),
        user: status.user.and_then(|u| u.linux),
        stop_signal: status.stop_signal,
    }
}

fn termination_message(status: &v1::ContainerStatus, info: &ContainerInfo, log_root: &Path) -> String {
    if info.termination_message_path.is_empty() {
        return String::new();
    }
    for mount in &status.mounts {
        if mount.container_path != info.termination_message_path {
            continue;
        }
        // The file's length is the container's choice: read no more than is shown.
        if let Ok(text) = read_tail(Path::new(&mount.host_path), MESSAGE_BYTES_MAX as u64)
            && !text.is_empty()
        {
            return text;
        }
    }
    let failed = status.exit_code != 0 || status.reason == "OOMKilled";
    if info.fallback_to_logs && failed && !status.log_path.is_empty() {
        let path = if Path::new(&status.log_path).is_absolute() {
            status.log_path.clone().into()
        } else {
            log_root.join(&status.log_path)
        };
        return crate::logs::tail_text(&path, LOG_MESSAGE_LINES_MAX, LOG_MESSAGE_BYTES_MAX);
    }
    String::new()
}

fn read_tail(path: &Path, bytes_max: u64) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
