//! The statuses of a pod's containers (upstream: `kubelet_pods.go: convertToAPIContainerStatuses`): what the runtime has of each, what was
//! there before, and why one could not start.

use super::{Inputs, RESTARTING};
use crate::actions;
use crate::cri::v1::{self, ContainerState as State};
use crate::pod::{ContainerKind, container_status, time_of_nanos};
use crate::runtime_status::RuntimeContainer;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, VolumeMountStatus,
};

fn waiting(reason: &str, message: &str) -> ContainerState {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_string());
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: text(reason), message: text(message) }),
        ..Default::default()
    }
}

pub(super) fn terminated(exit_code: i32, reason: &str, message: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code,
        reason: Some(reason.into()),
        message: Some(message.into()),
        ..Default::default()
    }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let list: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|r| *r),
            recursive_read_only: (mount.read_only == Some(true)).then(|| "Disabled".to_string()),
            ..Default::default()
        })
        .collect();
    (!list.is_empty()).then_some(list)
}

fn state_of(found: &RuntimeContainer, old: Option<&ContainerStatus>, id: &str) -> ContainerState {
    match found.state {
        State::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(time_of_nanos(found.started_at)) }),
            ..Default::default()
        },
        State::Exited => {
            let text = |s: &str| (!s.is_empty()).then(|| s.to_string());
            ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: found.exit_code,
                    reason: text(&found.reason),
                    message: text(&found.message),
                    started_at: Some(time_of_nanos(found.started_at)),
                    finished_at: Some(time_of_nanos(found.finished_at)),
                    container_id: Some(id.into()),
                    ..Default::default()
                }),
                ..Default::default()
            }
        }
        State::Unknown if old.is_some_and(|o| o.state.as_ref().is_some_and(|s| s.running.is_some())) => {
            ContainerState {
                terminated: Some(terminated(
                    137,
                    "ContainerStatusUnknown",
                    "The container could not be located when the pod was terminated",
                )),
                ..Default::default()
            }
        }
        _ => waiting("", ""),
    }
}

pub(super) fn statuses(
    inputs: &Inputs<'_>,
    containers: &[Container],
    old_list: &Option<Vec<ContainerStatus>>,
    kind: ContainerKind,
    has_init: bool,
) -> Vec<ContainerStatus> {
    let default_reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let restarting = super::restarts_all(inputs);
    containers
        .iter()
        .map(|container| {
            let old = container_status(old_list, &container.name);
            let mut result = ContainerStatus {
                name: container.name.clone(),
                image: container.image.clone().unwrap_or_default(),
                state: Some(waiting(default_reason, "")),
                last_state: Some(ContainerState::default()),
                volume_mounts: volume_mounts(container),
                ..Default::default()
            };
            let mut seen = inputs.runtime.containers.iter().filter(|c| c.name == container.name);
            match seen.next() {
                Some(newest) => {
                    let id = format!("{}://{}", inputs.runtime_name, newest.id);
                    result.state = Some(state_of(newest, old, &id));
                    result.restart_count = restart_count(newest, old);
                    result.image = newest.image.clone();
                    result.image_id = newest.image_ref.clone();
                    result.container_id = Some(id);
                    let own = container.resources.clone().unwrap_or_default();
                    result.resources = Some(match inputs.actual_resources.get(&container.name) {
                        Some(actual) if newest.is_running() => actual.clone(),
                        _ => own.clone(),
                    });
                    // What a resize asks for is allocated when it is granted.
                    result.allocated_resources = match inputs.actual_resources.get(&container.name) {
                        Some(actual) if newest.is_running() => actual.requests.clone(),
                        _ => own.requests,
                    };
                    result.user = newest.user.as_ref().map(container_user);
                    result.stop_signal = v1::Signal::try_from(newest.stop_signal)
                        .ok()
                        .filter(|s| *s != v1::Signal::RuntimeDefault)
                        .map(v1::Signal::posix_name);
                    if let Some(before) = seen.next() {
                        let id = format!("{}://{}", inputs.runtime_name, before.id);
                        result.last_state = Some(state_of(before, old, &id));
                    } else if let Some(old) = old {
                        // The one before may have been cleaned up already.
                        let ended = old.state.as_ref().filter(|s| s.terminated.is_some());
                        let ended = ended.filter(|_| old.container_id != result.container_id);
                        result.last_state = Some(ended.or(old.last_state.as_ref()).cloned().unwrap_or_default());
                    }
                }
                None if kind != ContainerKind::Ephemeral && restarting && removed_for_restart(old, &mut result) => {}
                None => absent(inputs, old, &mut result, default_reason),
            }
            with_start_error(inputs, container, kind, &mut result);
            if kind == ContainerKind::Ephemeral {
                result.ready = false;
                result.started = None;
            }
            result
        })
        .collect()
}

/// Containers that were removed for all to start anew, and their logs with them, still count.
fn restart_count(newest: &RuntimeContainer, old: Option<&ContainerStatus>) -> i32 {
    let own = newest.info.restart_count;
    let Some(old) = old else { return own };
    let had_ended = old.state.as_ref().is_some_and(|s| s.terminated.is_some());
    if newest.is_running() && had_ended && old.restart_count >= own {
        return old.restart_count + 1;
    }
    own.max(old.restart_count)
}

/// A container that was removed for all to start anew. Says whether this is news; once it is told, the container waits as a new one does.
fn removed_for_restart(old: Option<&ContainerStatus>, result: &mut ContainerStatus) -> bool {
    let Some(old) = old.filter(|o| o.state.as_ref().is_some_and(|s| s.waiting.is_none())) else { return false };
    const MESSAGE: &str = "The container is removed because RestartAllContainers in place";
    if old.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
        *result = old.clone();
    }
    result.state = Some(waiting(RESTARTING, MESSAGE));
    result.last_state =
        Some(ContainerState { terminated: Some(terminated(137, RESTARTING, MESSAGE)), ..Default::default() });
    result.restart_count = old.restart_count + 1;
    true
}

fn container_user(user: &v1::LinuxContainerUser) -> ContainerUser {
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: (!user.supplemental_groups.is_empty()).then(|| user.supplemental_groups.clone()),
        }),
    }
}

/// A container that the runtime does not have: never made, or gone.
fn absent(inputs: &Inputs<'_>, old: Option<&ContainerStatus>, result: &mut ContainerStatus, default_reason: &str) {
    let Some(old) = old else { return };
    let state = old.state.clone().unwrap_or_default();
    if state.terminated.is_some() {
        *result = old.clone();
        return;
    }
    result.restart_count = old.restart_count;
    result.last_state = Some(old.last_state.clone().unwrap_or_default());
    let still_default = result.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.as_deref())
        == Some(default_reason);
    let ended_before = result.last_state.as_ref().is_some_and(|s| s.terminated.is_some());
    if state.running.is_some() && still_default && !ended_before {
        // It ran, so it ended, even though nobody saw how. Otherwise the pod would be taken for one that has never run.
        let message = "The container could not be located when the pod was deleted.  The container used to be Running";
        result.last_state = Some(ContainerState {
            terminated: Some(terminated(137, "ContainerStatusUnknown", message)),
            ..Default::default()
        });
        if inputs.pod.metadata.deletion_timestamp.is_none() {
            result.restart_count += 1;
        }
    }
}

/// A container that should be started but could not be is waiting, with the reason.
fn with_start_error(inputs: &Inputs<'_>, container: &Container, kind: ContainerKind, result: &mut ContainerStatus) {
    let Some(error) = inputs.reasons.get(&container.name) else { return };
    let found = inputs.runtime.find(&container.name);
    if kind == ContainerKind::Init && found.is_some_and(|c| c.has_exited() && c.exit_code == 0) {
        return;
    }
    if !actions::should_start(container, inputs.pod, inputs.runtime) {
        return;
    }
    if result.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
        result.last_state = result.state.take();
    }
    result.state = Some(waiting(error.reason, &error.message));
}
