//! What to do next for a pod, from its spec and what the runtime holds (upstream: `computePodActions` of `kuberuntime_manager.go`).
//!
//! A pure function: the pod's worker carries the plan out, looks at the runtime again, and asks for the next plan, until nothing is left.

use crate::allocation::{Actuated, Change};
use crate::cri::v1::{ContainerState, NamespaceMode};
use crate::labels;
use crate::pod::{self, PodExt, is_sidecar};
use crate::runtime_status::{RuntimeContainer, RuntimePod, is_ready};
use k8s_openapi::api::core::v1::{Container, Pod};

/// What probes have found out about a running container. The defaults hold where there is no probe.
pub trait Health {
    fn liveness_failed(&self, container_id: &str) -> bool;
    fn startup_failed(&self, container_id: &str) -> bool;
    /// Whether the container has no startup probe or has passed it.
    fn has_started(&self, container: &Container, container_id: &str) -> bool;
}

/// Why a container is killed, for the grace period of its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    Unknown,
    DefinitionChanged,
    Liveness,
    Startup,
    Resize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    pub message: String,
    pub reason: KillReason,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Reset {
    pub id: String,
    pub name: String,
    /// It has not ended by itself.
    pub kill: bool,
}

/// Indexes refer to the spec's lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actions {
    pub kill_pod: bool,
    pub create_sandbox: bool,
    pub sandbox_id: String,
    pub attempt: u32,
    pub kill: Vec<Kill>,
    pub start_init: Vec<usize>,
    pub start_ephemeral: Vec<usize>,
    pub start: Vec<usize>,
    /// Names of running containers whose resources are to be changed in place.
    pub update: Vec<String>,
    /// Containers to be removed for all to start anew: those that did not ask for it first, so that a kubelet that ends in between goes on.
    pub reset: Vec<Reset>,
    /// The pod's control group needs other limits.
    pub update_pod: bool,
}

impl Actions {
    pub fn is_empty(&self) -> bool {
        !self.kill_pod
            && !self.create_sandbox
            && self.kill.is_empty()
            && self.start_init.is_empty()
            && self.start_ephemeral.is_empty()
            && self.start.is_empty()
            && self.reset.is_empty()
            && !self.resizes()
    }

    pub fn resizes(&self) -> bool {
        self.update_pod || !self.update.is_empty()
    }
}

/// Whether the sandbox has to be made (again), with the attempt number to use and the sandbox there is.
fn sandbox_changed(pod: &Pod, status: &RuntimePod) -> (bool, u32, String) {
    let Some(newest) = status.sandbox() else { return (true, 0, String::new()) };
    let attempt = newest.metadata.as_ref().map_or(0, |m| m.attempt);
    if status.sandboxes.iter().filter(|s| is_ready(s)).count() > 1 || !is_ready(newest) {
        return (true, attempt + 1, newest.id.clone());
    }
    let options = newest.linux.as_ref().and_then(|l| l.namespaces.as_ref()).and_then(|n| n.options.as_ref());
    let wanted = if pod::is_host_network(pod) { NamespaceMode::Node } else { NamespaceMode::Pod };
    if options.is_some_and(|o| o.network != wanted as i32) {
        return (true, attempt + 1, String::new());
    }
    if !pod::is_host_network(pod) && newest.network.as_ref().is_none_or(|n| n.ip.is_empty()) {
        return (true, attempt + 1, newest.id.clone());
    }
    (false, attempt, newest.id.clone())
}

/// Whether a container that does not run has to be started (upstream: `ShouldContainerBeRestarted`).
pub fn should_start(container: &Container, pod: &Pod, status: &RuntimePod) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    match status.find(&container.name) {
        None => true,
        Some(c) => match c.state {
            ContainerState::Running => false,
            ContainerState::Unknown | ContainerState::Created => true,
            ContainerState::Exited => pod::restarts_after_exit(container, pod::restart_policy(pod), c.exit_code),
        },
    }
}

pub fn compute(pod: &Pod, status: &RuntimePod, health: &dyn Health, actuated: &Actuated) -> Actions {
    let spec = pod.spec();
    let (create_sandbox, attempt, sandbox_id) = sandbox_changed(pod, status);
    let mut plan = Actions { kill_pod: create_sandbox, create_sandbox, attempt, sandbox_id, ..Default::default() };

    if create_sandbox {
        // A pod that is not restarted keeps its ended containers; a new sandbox would run them twice.
        if !pod::restarts_on_failure(pod) && attempt != 0 && !status.containers.is_empty() {
            plan.create_sandbox = false;
            return plan;
        }
        let succeeded = |c: &Container| status.find(&c.name).is_some_and(|s| s.has_exited() && s.exit_code == 0);
        let start: Vec<usize> = (0..spec.containers.len())
            .filter(|i| !(pod::restart_policy(pod) == "OnFailure" && succeeded(&spec.containers[*i])))
            .collect();
        if start.is_empty() && spec.containers.iter().any(|c| status.find(&c.name).is_some()) {
            plan.create_sandbox = false;
            return plan;
        }
        if pod::init_containers(spec).is_empty() {
            plan.start = start;
        } else {
            plan.start_init = vec![0];
        }
        return plan;
    }

    plan.start_ephemeral = (0..pod::ephemeral_containers(spec).len())
        .filter(|i| status.find(&pod::ephemeral_containers(spec)[*i].name).is_none())
        .collect();

    let initialized = plan_init(pod, status, health, actuated, &mut plan);
    if plan.kill_pod || !initialized {
        return plan;
    }

    let mut kept = 0;
    for (i, container) in spec.containers.iter().enumerate() {
        let Some(running) = status.find(&container.name).filter(|c| c.is_running()) else {
            if should_start(container, pod, status) {
                plan.start.push(i);
                if let Some(c) = status.find(&container.name).filter(|c| c.state == ContainerState::Unknown) {
                    plan.kill.push(kill_unknown(c));
                }
            }
            continue;
        };
        match unhealthy(pod, container, running, health) {
            Some((kill, restart)) => {
                if restart {
                    plan.start.push(i);
                }
                plan.kill.push(kill);
            }
            None if plan_resize(pod, container, running, actuated, &mut plan) => plan.start.push(i),
            None => kept += 1,
        }
    }
    if kept == 0 && plan.start.is_empty() {
        plan.kill_pod = true;
        // Sidecars end with the containers they serve.
        plan.start_init.clear();
    }
    plan.update_pod |= actuated.pod_differs(pod);
    plan
}

/// The removal of all containers, after which they start anew from the first init container on (upstream: `getContainersToReset`).
pub fn compute_reset(pod: &Pod, status: &RuntimePod) -> Actions {
    let (_, attempt, sandbox_id) = sandbox_changed(pod, status);
    let mut plan = Actions { attempt, sandbox_id, ..Default::default() };
    let (mut sources, mut targets) = (Vec::new(), Vec::new());
    let spec = pod.spec();
    for container in spec.containers.iter().chain(pod::init_containers(spec)) {
        for found in status.containers.iter().filter(|c| c.name == container.name) {
            let reset = Reset { id: found.id.clone(), name: found.name.clone(), kill: !found.has_exited() };
            let asked = found.has_exited() && pod::restarts_all(container, found.exit_code);
            if asked { sources.push(reset) } else { targets.push(reset) }
        }
    }
    plan.reset = targets;
    plan.reset.extend(sources);
    plan
}

/// Plans what a running container needs for its resources to be those that were granted; says whether it has to be started anew.
fn plan_resize(
    pod: &Pod,
    container: &Container,
    running: &RuntimeContainer,
    actuated: &Actuated,
    plan: &mut Actions,
) -> bool {
    match actuated.change(pod, container, &running.id) {
        Change::None => false,
        Change::InPlace => {
            plan.update.push(container.name.clone());
            false
        }
        Change::Restart => {
            plan.kill.push(Kill {
                id: running.id.clone(),
                name: container.name.clone(),
                message: format!("Container {} resize requires restart", container.name),
                reason: KillReason::Resize,
            });
            plan.update_pod = true;
            true
        }
    }
}

fn kill_unknown(c: &RuntimeContainer) -> Kill {
    Kill {
        id: c.id.clone(),
        name: c.name.clone(),
        message: "Container is in \"unknown\" state, try killing it before restart".into(),
        reason: KillReason::Unknown,
    }
}

const RESTARTED: &str = ", will be restarted";

/// Whether a running container must be killed, and then started again.
fn unhealthy(
    pod: &Pod,
    container: &Container,
    running: &RuntimeContainer,
    health: &dyn Health,
) -> Option<(Kill, bool)> {
    let mut restart = pod::restarts_after_exit(container, pod::restart_policy(pod), 1);
    let (text, reason) = if labels::definition_changed(container, &running.info) {
        restart = true;
        ("definition changed", KillReason::DefinitionChanged)
    } else if health.liveness_failed(&running.id) {
        ("failed liveness probe", KillReason::Liveness)
    } else if health.startup_failed(&running.id) {
        ("failed startup probe", KillReason::Startup)
    } else {
        return None;
    };
    let mut message = format!("Container {} {text}", container.name);
    if restart {
        message.push_str(RESTARTED);
    }
    Some((Kill { id: running.id.clone(), name: container.name.clone(), message, reason }, restart))
}

/// Plans init containers; says whether regular containers may be looked at.
fn plan_init(pod: &Pod, status: &RuntimePod, health: &dyn Health, actuated: &Actuated, plan: &mut Actions) -> bool {
    let spec = pod.spec();
    let list = pod::init_containers(spec);
    // Once a regular container has been created, init containers that are gone from the runtime have merely been cleaned up.
    let initialized = spec.containers.iter().any(|c| status.find(&c.name).is_some());
    for (i, container) in list.iter().enumerate() {
        let sidecar = is_sidecar(container);
        if initialized && !sidecar {
            continue;
        }
        let Some(found) = status.find(&container.name) else {
            plan.start_init.push(i);
            if initialized {
                continue;
            }
            return false;
        };
        let later_exist = initialized || list[i + 1..].iter().any(|c| status.find(&c.name).is_some());
        match found.state {
            ContainerState::Unknown => {
                plan.kill.push(kill_unknown(found));
                plan.start_init.push(i);
                if !later_exist {
                    return false;
                }
            }
            // Made, but never started: the kubelet ended in between, or starting failed.
            ContainerState::Created => {
                plan.start_init.push(i);
                if !later_exist || !sidecar {
                    return false;
                }
            }
            ContainerState::Running if sidecar => {
                if let Some((mut kill, _)) = unhealthy(pod, container, found, health) {
                    kill.message = kill.message.replacen("Container", "Init container", 1);
                    if let Some(text) = kill.message.strip_suffix(RESTARTED) {
                        kill.message = text.into();
                    }
                    plan.kill.push(kill);
                    plan.start_init.push(i);
                    if !later_exist {
                        return false;
                    }
                } else if !health.has_started(container, &found.id) && !later_exist {
                    return false;
                } else if plan_resize(pod, container, found, actuated, plan) {
                    plan.start_init.push(i);
                }
            }
            ContainerState::Running => {
                if plan_resize(pod, container, found, actuated, plan) {
                    plan.start_init.push(i);
                }
                return false;
            }
            ContainerState::Exited if sidecar => {
                plan.start_init.push(i);
                if !later_exist {
                    return false;
                }
            }
            ContainerState::Exited if found.exit_code == 0 => {}
            ContainerState::Exited => {
                if pod::restarts_after_exit(container, pod::restart_policy(pod), found.exit_code) {
                    plan.start_init.push(i);
                } else {
                    plan.kill_pod = true;
                    plan.start_init.clear();
                }
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::v1;
    use std::sync::Arc;

    struct Healthy;

    impl Health for Healthy {
        fn liveness_failed(&self, _: &str) -> bool {
            false
        }
        fn startup_failed(&self, _: &str) -> bool {
            false
        }
        fn has_started(&self, _: &Container, _: &str) -> bool {
            true
        }
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec})).unwrap()
    }

    fn sandbox() -> v1::PodSandboxStatus {
        v1::PodSandboxStatus {
            id: "s".into(),
            metadata: Some(Default::default()),
            network: Some(v1::PodSandboxNetworkStatus { ip: "10.0.0.1".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn status(containers: &[(&str, ContainerState, i32)]) -> RuntimePod {
        let container = |(name, state, exit_code): &(&str, ContainerState, i32)| {
            Arc::new(RuntimeContainer {
                id: format!("id-{name}"),
                name: name.to_string(),
                state: *state,
                exit_code: *exit_code,
                created_at: 0,
                started_at: 0,
                finished_at: 0,
                reason: String::new(),
                message: String::new(),
                image: String::new(),
                image_ref: String::new(),
                log_path: String::new(),
                sandbox_attempt: 0,
                info: Default::default(),
                resources: None,
                user: None,
                stop_signal: 0,
            })
        };
        RuntimePod { sandboxes: vec![sandbox()], containers: containers.iter().map(container).collect() }
    }

    use ContainerState::{Exited, Running};

    #[test]
    fn a_new_pod_gets_a_sandbox_and_starts_from_its_first_init_container() {
        let pod = pod(serde_json::json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c"}]}));
        let plan = compute(&pod, &RuntimePod::default(), &Healthy, &Actuated::default());
        assert!(plan.create_sandbox && plan.start.is_empty());
        assert_eq!(plan.start_init, [0]);
    }

    #[test]
    fn init_containers_run_one_after_the_other_and_sidecars_stay() {
        let pod = pod(serde_json::json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}], "containers": [{"name": "c"}]}));
        let next = |list: &[_]| {
            let plan = compute(&pod, &status(list), &Healthy, &Actuated::default());
            (plan.start_init, plan.start)
        };
        assert_eq!(next(&[("s", Running, 0)]), (vec![1], vec![]));
        assert_eq!(next(&[("s", Running, 0), ("i", Running, 0)]), (vec![], vec![]));
        assert_eq!(next(&[("s", Running, 0), ("i", Exited, 0)]), (vec![], vec![0]));
        assert_eq!(next(&[("s", Exited, 0), ("i", Exited, 0), ("c", Running, 0)]), (vec![0], vec![]));
    }

    #[test]
    fn a_pod_whose_containers_are_done_is_killed_with_its_sidecars() {
        let pod = pod(serde_json::json!({"restartPolicy": "Never",
            "initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "c"}]}));
        let plan = compute(&pod, &status(&[("s", Exited, 0), ("c", Exited, 0)]), &Healthy, &Actuated::default());
        assert!(plan.kill_pod && plan.start_init.is_empty());
    }

    #[test]
    fn whoever_asked_for_a_restart_of_all_is_removed_last() {
        let rule =
            serde_json::json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [9]}}]);
        let pod = pod(serde_json::json!({"initContainers": [{"name": "i"}],
            "containers": [{"name": "c", "restartPolicy": "Never", "restartPolicyRules": rule}, {"name": "d"}]}));
        let plan = compute_reset(&pod, &status(&[("i", Exited, 0), ("c", Exited, 9), ("d", Running, 0)]));
        let order: Vec<(&str, bool)> = plan.reset.iter().map(|r| (r.name.as_str(), r.kill)).collect();
        assert_eq!(order, [("d", true), ("i", false), ("c", false)]);
        assert!(!plan.create_sandbox && plan.start.is_empty() && plan.start_init.is_empty());
    }

    #[test]
    fn restart_policies_decide_about_ended_containers() {
        for (policy, code, starts) in
            [("Always", 0, true), ("OnFailure", 0, false), ("OnFailure", 1, true), ("Never", 1, false)]
        {
            let pod = pod(serde_json::json!({"restartPolicy": policy, "containers": [{"name": "c"}, {"name": "d"}]}));
            let plan =
                compute(&pod, &status(&[("c", Exited, code), ("d", Running, 0)]), &Healthy, &Actuated::default());
            assert_eq!(plan.start, if starts { vec![0] } else { vec![] }, "{policy} {code}");
        }
    }
}
