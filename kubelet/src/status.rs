//! A pod's status as the API shows it, from what the runtime holds (upstream: `kubelet_pods.go: generateAPIPodStatus`, `status/generate.go`).
//!
//! Pure: the same inputs give the same status, apart from the time of a transition.

use crate::images::StartError;
use crate::pod::{self, ContainerKind, PodExt, condition, container_status, is_sidecar, now};
use crate::probes::{self, Results};
use crate::resources;
use crate::runtime_status::RuntimePod;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
    ResourceRequirements,
};
use std::collections::HashMap;

mod containers;

use containers::{statuses, terminated};

/// Conditions that the kubelet alone sets; others are left as they are.
pub const OWNED_CONDITIONS: [&str; 8] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
    ALL_RESTARTING,
];
/// Why a container waits that was removed for all to start anew.
pub const RESTARTING: &str = "RestartingAllContainers";
pub const ALL_RESTARTING: &str = "AllContainersRestarting";

/// What a status is made of besides the pod and the runtime's answer.
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    /// The status published last, or the API's after a restart.
    pub old: &'a PodStatus,
    pub runtime: &'a RuntimePod,
    /// Why containers could not be started, by name.
    pub reasons: &'a HashMap<String, StartError>,
    /// No container will ever be started again.
    pub terminal: bool,
    pub host_ips: &'a [String],
    /// `containerd` in `containerd://…`.
    pub runtime_name: &'a str,
    pub probes: &'a Results,
    /// Conditions about a resize under way.
    pub resize: &'a [PodCondition],
    /// The pod with the resources in force, while a resize is under way.
    pub in_force: Option<&'a Pod>,
    /// Resources in force where they are not those of the spec, by container name.
    pub actual_resources: &'a HashMap<String, ResourceRequirements>,
}

pub fn generate(inputs: &Inputs<'_>) -> PodStatus {
    let (pod, old) = (inputs.pod, inputs.old);
    let spec = pod.spec();
    let has_init = !pod::init_containers(spec).is_empty();
    let ephemeral: Vec<Container> = pod::ephemeral_containers(spec).iter().map(pod::ephemeral_as_container).collect();
    let some = |list: Vec<ContainerStatus>| (!list.is_empty()).then_some(list);
    let mut status = PodStatus {
        container_statuses: some(statuses(
            inputs,
            &spec.containers,
            &old.container_statuses,
            ContainerKind::Regular,
            has_init,
        )),
        init_container_statuses: some(statuses(
            inputs,
            pod::init_containers(spec),
            &old.init_container_statuses,
            ContainerKind::Init,
            has_init,
        )),
        ephemeral_container_statuses: some(statuses(
            inputs,
            &ephemeral,
            &old.ephemeral_container_statuses,
            ContainerKind::Ephemeral,
            has_init,
        )),
        qos_class: Some(resources::qos_class(pod).name().into()),
        observed_generation: pod.metadata.generation,
        start_time: old.start_time.clone().or_else(|| pod.status().start_time.clone()).or_else(|| Some(now())),
        ..Default::default()
    };
    set_ips(inputs, &mut status);
    set_resources(inputs, &mut status);

    // `started` decides whether a sidecar still holds the pod back, so probes come before the phase.
    probes::update_status(inputs.probes, pod, &mut status);
    let mut phase = phase(pod, &status, inputs.terminal, inputs.runtime.has_started_regular(pod));
    if !matches!(phase, "Failed" | "Succeeded") {
        for earlier in [old, pod.status()] {
            if let Some(terminal @ ("Failed" | "Succeeded")) = earlier.phase.as_deref() {
                phase = if terminal == "Failed" { "Failed" } else { "Succeeded" };
                break;
            }
        }
    }
    status.phase = Some(phase.into());
    if old.phase.as_deref() == Some(phase) {
        status.reason = old.reason.clone().or_else(|| pod.status().reason.clone());
        status.message = old.message.clone().or_else(|| pod.status().message.clone());
    }
    // A phase that the API shows as terminal can never be left.
    if pod::is_terminal(pod.status()) {
        status.phase = pod.status().phase.clone();
    }
    set_conditions(inputs, &mut status);
    status
}

/// After a change by hand (such as an eviction), the conditions that depend on the phase.
pub fn set_conditions(inputs: &Inputs<'_>, status: &mut PodStatus) {
    let pod = inputs.pod;
    let mut conditions: Vec<PodCondition> = pod
        .status()
        .conditions
        .iter()
        .flatten()
        .filter(|c| !OWNED_CONDITIONS.contains(&c.type_.as_str()))
        .cloned()
        .collect();
    if let Some(disruption) = condition(inputs.old, "DisruptionTarget") {
        conditions.retain(|c| c.type_ != "DisruptionTarget");
        conditions.push(disruption.clone());
    }
    conditions.extend(inputs.resize.iter().cloned());
    let phase = status.phase.as_deref().unwrap_or_default();
    let containers_ready = containers_ready(pod, status, phase);
    let ready = ready(pod, &conditions, &containers_ready);
    let sandbox_ready =
        inputs.runtime.ready_sandbox().is_some() && (pod::is_host_network(pod) || !inputs.runtime.ips().is_empty());
    let verdicts = [
        ("PodReadyToStartContainers", Verdict::plain(sandbox_ready)),
        ("Initialized", initialized(pod, status, phase)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::plain(true)),
    ];
    for (kind, verdict) in verdicts {
        conditions.push(verdict.condition(kind, pod, inputs.old));
    }
    if pod::could_restart_all(pod) {
        let mut restarting = all_restarting(inputs, phase).condition(ALL_RESTARTING, pod, inputs.old);
        // Upstream does not say here which generation it has seen.
        restarting.observed_generation = None;
        conditions.push(restarting);
    }
    status.conditions = Some(conditions);
}

#[derive(Clone, Debug, Default)]
struct Verdict {
    holds: bool,
    reason: Option<String>,
    message: Option<String>,
}

impl Verdict {
    fn plain(holds: bool) -> Self {
        Verdict { holds, ..Default::default() }
    }

    fn because(holds: bool, reason: &str, message: Option<String>) -> Self {
        Verdict { holds, reason: Some(reason.into()), message }
    }

    fn condition(self, kind: &str, pod: &Pod, old: &PodStatus) -> PodCondition {
        let status = if self.holds { "True" } else { "False" };
        let before = condition(old, kind).or_else(|| condition(pod.status(), kind)).filter(|c| c.status == status);
        PodCondition {
            type_: kind.into(),
            status: status.into(),
            reason: self.reason,
            message: self.message,
            observed_generation: pod.metadata.generation,
            last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(now())),
            last_probe_time: None,
        }
    }
}

/// Names of containers as Go prints a list.
fn lists(parts: [(&str, &[&str]); 2]) -> Option<String> {
    let texts: Vec<String> = parts
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("containers with {what} status: [{}]", names.join(" ")))
        .collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

fn initialized(pod: &Pod, status: &PodStatus, phase: &str) -> Verdict {
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in pod::init_containers(pod.spec()) {
        match container_status(&status.init_container_statuses, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(s) if is_sidecar(container) && s.started != Some(true) => incomplete.push(container.name.as_str()),
            Some(s) if !is_sidecar(container) && !s.ready => incomplete.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return Verdict::because(true, "PodCompleted", None);
    }
    // Once a regular container has run, restarting sidecars do not make the pod uninitialized again.
    let ran = status.container_statuses.iter().flatten().any(|c| {
        c.started == Some(true)
            || c.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
            || c.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
    });
    match lists([("unknown", &unknown), ("incomplete", &incomplete)]) {
        Some(message) if !ran => Verdict::because(false, "ContainersNotInitialized", Some(message)),
        _ => Verdict::plain(true),
    }
}

fn containers_ready(pod: &Pod, status: &PodStatus, phase: &str) -> Verdict {
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for reference in pod::long_lived_containers(pod.spec()) {
        let list = match reference.kind {
            ContainerKind::Init if !reference.is_sidecar() => continue,
            ContainerKind::Init => &status.init_container_statuses,
            _ => &status.container_statuses,
        };
        match container_status(list, &reference.container.name) {
            None => unknown.push(reference.container.name.as_str()),
            Some(s) if !s.ready => unready.push(reference.container.name.as_str()),
            Some(_) => {}
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return Verdict::because(false, "PodCompleted", None);
    }
    if phase == "Failed" {
        return Verdict::because(false, "PodFailed", None);
    }
    match lists([("unknown", &unknown), ("unready", &unready)]) {
        Some(message) => Verdict::because(false, "ContainersNotReady", Some(message)),
        None => Verdict::plain(true),
    }
}

fn ready(pod: &Pod, conditions: &[PodCondition], containers: &Verdict) -> Verdict {
    if !containers.holds {
        return containers.clone();
    }
    let mut messages = Vec::new();
    for gate in pod.spec().readiness_gates.iter().flatten() {
        match conditions.iter().find(|c| c.type_ == gate.condition_type) {
            None => messages.push(format!(
                "corresponding condition of pod readiness gate {:?} does not exist.",
                gate.condition_type
            )),
            Some(c) if c.status != "True" => {
                messages.push(format!(
                    "the status of pod readiness gate {:?} is not \"True\", but {}",
                    gate.condition_type, c.status
                ));
            }
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        Verdict::plain(true)
    } else {
        Verdict::because(false, "ReadinessGatesNotReady", Some(messages.join(", ")))
    }
}

/// Whether the containers are being removed for all of them to start anew. That ends with the last one's removal.
fn all_restarting(inputs: &Inputs<'_>, phase: &str) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::because(false, "PodCompleted", None),
        "Failed" => return Verdict::because(false, "PodFailed", None),
        _ => {}
    }
    let left = pod::long_lived_containers(inputs.pod.spec()).any(|c| inputs.runtime.find(&c.container.name).is_some());
    if left && restarts_all(inputs) {
        let message = "container exited with restart policy rule".to_string();
        return Verdict::because(true, "RestartAllContainersStarted", Some(message));
    }
    Verdict::plain(false)
}

/// Whether a container has ended so that all are to start anew, or that was begun already (upstream: `ShouldAllContainersRestart`).
fn restarts_all(inputs: &Inputs<'_>) -> bool {
    let pod = inputs.pod;
    if condition(inputs.old, ALL_RESTARTING).is_some_and(|c| c.status == "True") {
        return true;
    }
    pod::could_restart_all(pod)
        && pod::long_lived_containers(pod.spec()).any(|c| {
            let ended = inputs.runtime.find(&c.container.name).filter(|found| found.has_exited());
            ended.is_some_and(|found| pod::restarts_all(c.container, found.exit_code))
        })
}

fn set_ips(inputs: &Inputs<'_>, status: &mut PodStatus) {
    let host_ip = |ip: &String| HostIP { ip: ip.clone() };
    status.host_ip = inputs.host_ips.first().cloned();
    status.host_ips = (!inputs.host_ips.is_empty()).then(|| inputs.host_ips.iter().map(host_ip).collect());
    let mut ips = inputs.runtime.ips();
    let primary_is_v6 = inputs.host_ips.first().is_some_and(|ip| ip.contains(':'));
    // One address of each family, the node's family first.
    let (mut first, mut second): (Vec<String>, Vec<String>) =
        ips.drain(..).partition(|ip| ip.contains(':') == primary_is_v6);
    first.truncate(1);
    second.truncate(1);
    first.append(&mut second);
    if first.is_empty() && pod::is_host_network(inputs.pod) {
        first = inputs.host_ips.to_vec();
    }
    if first.is_empty() {
        // The addresses of a pod whose sandbox has ended stay visible.
        status.pod_ip = inputs.old.pod_ip.clone();
        status.pod_ips = inputs.old.pod_ips.clone();
    } else {
        status.pod_ip = first.first().cloned();
        status.pod_ips = Some(first.into_iter().map(|ip| PodIP { ip }).collect());
    }
}

fn set_resources(inputs: &Inputs<'_>, status: &mut PodStatus) {
    let some = |list: resources::ResourceList| (!list.is_empty()).then_some(list);
    status.allocated_resources = some(resources::pod_requests(inputs.pod));
    let pod = inputs.in_force.unwrap_or(inputs.pod);
    let (requests, limits) = (resources::pod_requests(pod), resources::pod_limits(pod));
    if !requests.is_empty() || !limits.is_empty() {
        status.resources =
            Some(ResourceRequirements { requests: some(requests), limits: some(limits), ..Default::default() });
    }
}

/// Upstream: `getPhase`. Expects `started` of sidecars to be set.
fn phase(pod: &Pod, status: &PodStatus, terminal: bool, has_run: bool) -> &'static str {
    let spec = pod.spec();
    let policy = pod::restart_policy(pod);
    let (mut pending_init, mut pending_sidecars, mut failed_init) = (0, 0, 0);
    let (mut unknown, mut running, mut waiting, mut stopped, mut stopped_for_good, mut succeeded) = (0, 0, 0, 0, 0, 0);
    fn ended(state: &Option<ContainerState>) -> Option<&ContainerStateTerminated> {
        state.as_ref().and_then(|s| s.terminated.as_ref())
    }
    // What was removed for all to start anew will be started, whatever its policy says.
    let restarts = |container: &Container, end: &ContainerStateTerminated| {
        end.reason.as_deref() == Some(RESTARTING) || pod::restarts_after_exit(container, policy, end.exit_code)
    };
    for container in pod::init_containers(spec) {
        let found = container_status(&status.init_container_statuses, &container.name);
        let state = found.and_then(|f| f.state.as_ref());
        let last = found.and_then(|f| ended(&f.last_state));
        if is_sidecar(container) {
            match (found, state) {
                (Some(f), Some(s)) if s.running.is_some() => {
                    pending_sidecars += u32::from(f.started != Some(true));
                    running += 1;
                }
                (Some(_), Some(s)) if s.terminated.is_some() => {}
                (Some(_), Some(s)) if s.waiting.is_some() => {
                    if last.is_none() {
                        pending_sidecars += 1;
                        waiting += 1;
                    }
                }
                _ => unknown += 1,
            }
            continue;
        }
        let end = match state {
            Some(s) if s.terminated.is_some() => s.terminated.as_ref(),
            Some(s) if s.waiting.is_some() => last,
            _ => None,
        };
        match end {
            None => pending_init += 1,
            Some(end) if end.exit_code == 0 => {}
            Some(end) => failed_init += u32::from(!restarts(container, end)),
        }
    }
    for container in &spec.containers {
        let found = container_status(&status.container_statuses, &container.name);
        let Some(state) = found.and_then(|f| f.state.as_ref()) else {
            unknown += 1;
            continue;
        };
        let last = found.and_then(|f| ended(&f.last_state));
        if state.running.is_some() {
            running += 1;
        } else if let Some(end) = &state.terminated {
            stopped += 1;
            stopped_for_good += u32::from(!restarts(container, end));
            succeeded += u32::from(end.exit_code == 0);
        } else if let Some(end) = last {
            stopped += 1;
            stopped_for_good += u32::from(!restarts(container, end));
        } else {
            waiting += 1;
        }
    }
    if failed_init > 0 {
        return "Failed";
    }
    if pending_init > 0 || pending_sidecars > 0 && !has_run || waiting > 0 {
        return "Pending";
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        if terminal {
            return if stopped == succeeded { "Succeeded" } else { "Failed" };
        }
        if stopped != stopped_for_good {
            return "Running";
        }
        return if stopped == succeeded { "Succeeded" } else { "Failed" };
    }
    "Pending"
}

/// The last word on a pod whose containers are all gone (upstream: `status_manager.go: TerminatePod`).
pub fn terminate(pod: &Pod, status: &mut PodStatus) {
    let end = |c: &mut ContainerStatus| {
        if c.state.as_ref().is_none_or(|s| s.terminated.is_none()) {
            let text = "The container could not be located when the pod was terminated";
            c.state = Some(ContainerState {
                terminated: Some(terminated(137, "ContainerStatusUnknown", text)),
                ..Default::default()
            });
        }
    };
    // Once a pod has been initialized, a container without an end counts as failed.
    if has_initialized(pod) {
        status.container_statuses.iter_mut().flatten().for_each(end);
    }
    if let Some(list) = &mut status.init_container_statuses {
        // All but the last ones, which give no sign of ever having been started; the first one at least.
        let started = |c: &ContainerStatus| {
            c.state.as_ref().is_none_or(|s| s.waiting.is_none())
                || c.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
        };
        let last = list.iter().rposition(started).unwrap_or(0);
        list.iter_mut().take(last + 1).for_each(end);
    }
    for c in status.container_statuses.iter_mut().flatten().chain(status.init_container_statuses.iter_mut().flatten()) {
        if c.state.as_ref().is_some_and(|s| s.running.is_none()) {
            c.started = Some(false);
        }
    }
    if !pod::is_terminal(status) {
        status.phase = Some("Failed".into());
    }
}

/// Whether the status that the API has shows that the pod's regular containers could be started.
fn has_initialized(pod: &Pod) -> bool {
    let Some(last) = pod::init_containers(pod.spec()).last() else { return true };
    let told = pod.status();
    let moved = |c: &ContainerStatus| {
        c.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
            || c.state.as_ref().is_none_or(|s| s.waiting.is_none())
    };
    if told.container_statuses.iter().flatten().any(moved) {
        return true;
    }
    let Some(found) = container_status(&told.init_container_statuses, &last.name) else { return false };
    if is_sidecar(last) {
        return found.started == Some(true) && found.state.as_ref().is_some_and(|s| s.running.is_some());
    }
    let succeeded =
        |s: &Option<ContainerState>| s.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0);
    succeeded(&found.last_state) || succeeded(&found.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase_of(spec: serde_json::Value, status: serde_json::Value, terminal: bool) -> &'static str {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": spec})).unwrap();
        phase(&pod, &serde_json::from_value(status).unwrap(), terminal, false)
    }

    #[test]
    fn phases_follow_container_states() {
        use serde_json::json;
        let one = |policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "c"}]});
        let state = |state: serde_json::Value, last: serde_json::Value| json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state, "lastState": last}]});
        let end = |code: i32| json!({"terminated": {"exitCode": code}});
        assert_eq!(phase_of(one("Always"), json!({}), false), "Pending");
        assert_eq!(phase_of(one("Always"), state(json!({"waiting": {}}), json!({})), false), "Pending");
        assert_eq!(phase_of(one("Always"), state(json!({"running": {}}), json!({})), false), "Running");
        assert_eq!(phase_of(one("Always"), state(json!({"waiting": {}}), end(1)), false), "Running");
        assert_eq!(phase_of(one("Always"), state(end(0), json!({})), true), "Succeeded");
        assert_eq!(phase_of(one("OnFailure"), state(end(0), json!({})), false), "Succeeded");
        assert_eq!(phase_of(one("OnFailure"), state(end(1), json!({})), false), "Running");
        assert_eq!(phase_of(one("Never"), state(end(1), json!({})), false), "Failed");
    }

    #[test]
    fn containers_removed_for_a_restart_do_not_fail_their_pod() {
        use serde_json::json;
        let state = |reason: &str| {
            json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                "state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": 137, "reason": reason}}}]})
        };
        let never = json!({"restartPolicy": "Never", "containers": [{"name": "c"}]});
        assert_eq!(phase_of(never.clone(), state(RESTARTING), false), "Running");
        assert_eq!(phase_of(never, state("Error"), false), "Failed");
    }

    #[test]
    fn containers_that_never_ran_end_with_their_pod_once_it_was_initialized() {
        use serde_json::json;
        let waiting = json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull"}}}]);
        let ended = |spec: serde_json::Value| {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let mut status: PodStatus = serde_json::from_value(json!({"containerStatuses": waiting})).unwrap();
            terminate(&pod, &mut status);
            let state = status.container_statuses.unwrap().remove(0).state.unwrap();
            (status.phase.unwrap(), state.terminated.map(|t| t.exit_code))
        };
        assert_eq!(ended(json!({"containers": [{"name": "c"}]})), ("Failed".into(), Some(137)));
        let with_init = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]});
        assert_eq!(ended(with_init), ("Failed".into(), None));
    }
}
