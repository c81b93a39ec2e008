//! Questions that many parts of the kubelet ask about a pod (upstream: `pkg/api/v1/pod`, `kubelet/types`, `kubelet/container/helpers.go`).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, ContainerStatus, EphemeralContainer, Pod, PodCondition, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::time::Duration;

/// Read access that never fails: objects from the API server always have these fields.
pub trait PodExt {
    fn name(&self) -> &str;
    fn namespace(&self) -> &str;
    fn uid(&self) -> &str;
    fn spec(&self) -> &PodSpec;
    fn status(&self) -> &PodStatus;
    fn generation(&self) -> i64;

    /// `name_namespace(uid)`, as upstream's `format.Pod` prints pods in messages.
    fn printed(&self) -> String {
        format!("{}_{}({})", self.name(), self.namespace(), self.uid())
    }
}

static EMPTY_SPEC: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
static EMPTY_STATUS: std::sync::LazyLock<PodStatus> = std::sync::LazyLock::new(PodStatus::default);

impl PodExt for Pod {
    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    fn spec(&self) -> &PodSpec {
        self.spec.as_ref().unwrap_or(&EMPTY_SPEC)
    }

    fn status(&self) -> &PodStatus {
        self.status.as_ref().unwrap_or(&EMPTY_STATUS)
    }

    fn generation(&self) -> i64 {
        self.metadata.generation.unwrap_or_default()
    }
}

/// The three lists a container can stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContainerKind {
    Init,
    Regular,
    Ephemeral,
}

/// A container of a pod's spec together with the list it stands in.
#[derive(Clone, Copy)]
pub struct ContainerRef<'a> {
    pub kind: ContainerKind,
    pub container: &'a Container,
}

impl ContainerRef<'_> {
    /// The path by which events refer to it, such as `spec.containers{web}`.
    pub fn field_path(&self) -> String {
        let list = match self.kind {
            ContainerKind::Init => "initContainers",
            ContainerKind::Regular => "containers",
            ContainerKind::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", self.container.name)
    }

    /// An init container with restart policy `Always`: a sidecar.
    pub fn is_sidecar(&self) -> bool {
        self.kind == ContainerKind::Init && is_sidecar(self.container)
    }
}

pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// An ephemeral container is an ordinary one without ports, probes and resources.
pub fn ephemeral_as_container(e: &EphemeralContainer) -> Container {
    Container {
        args: e.args.clone(),
        command: e.command.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        lifecycle: e.lifecycle.clone(),
        name: e.name.clone(),
        ports: e.ports.clone(),
        resources: e.resources.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        tty: e.tty,
        volume_devices: e.volume_devices.clone(),
        volume_mounts: e.volume_mounts.clone(),
        working_dir: e.working_dir.clone(),
        ..Default::default()
    }
}

pub fn init_containers(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

pub fn ephemeral_containers(spec: &PodSpec) -> &[EphemeralContainer] {
    spec.ephemeral_containers.as_deref().unwrap_or_default()
}

/// Init and regular containers, in the order of the spec.
pub fn long_lived_containers(spec: &PodSpec) -> impl Iterator<Item = ContainerRef<'_>> {
    let init = init_containers(spec).iter().map(|container| ContainerRef { kind: ContainerKind::Init, container });
    init.chain(spec.containers.iter().map(|container| ContainerRef { kind: ContainerKind::Regular, container }))
}

pub fn is_host_network(pod: &Pod) -> bool {
    pod.spec().host_network == Some(true)
}

pub fn restart_policy(pod: &Pod) -> &str {
    pod.spec().restart_policy.as_deref().unwrap_or("Always")
}

/// What a container's own rules say about an exit with this code: the action of the first that applies.
fn action_after_exit(container: &Container, exit_code: i32) -> Option<&str> {
    let applies = |rule: &&ContainerRestartRule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
            match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        })
    };
    container.restart_policy_rules.iter().flatten().find(applies).map(|rule| rule.action.as_str())
}

/// Whether a container that exited with this code takes the whole pod with it into a new start.
pub fn restarts_all(container: &Container, exit_code: i32) -> bool {
    action_after_exit(container, exit_code) == Some(RESTART_ALL)
}

/// Whether any container of the pod could do so.
pub fn could_restart_all(pod: &Pod) -> bool {
    long_lived_containers(pod.spec())
        .flat_map(|c| c.container.restart_policy_rules.iter().flatten())
        .any(|rule| rule.action == RESTART_ALL)
}

/// Whether a container that exited with this code is to be started again (upstream: `podutil.ContainerShouldRestart`). A container's
/// own rules go before its own policy, which goes before the pod's.
pub fn restarts_after_exit(container: &Container, pod_policy: &str, exit_code: i32) -> bool {
    if let Some("Restart" | RESTART_ALL) = action_after_exit(container, exit_code) {
        return true;
    }
    match container.restart_policy.as_deref().unwrap_or(pod_policy) {
        "Always" => true,
        "OnFailure" => exit_code != 0,
        _ => false,
    }
}

const RESTART_ALL: &str = "RestartAllContainers";

/// Whether failed containers of this pod are ever started again.
pub fn restarts_on_failure(pod: &Pod) -> bool {
    restart_policy(pod) != "Never"
}

pub fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

pub fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

pub fn container_status<'a>(list: &'a Option<Vec<ContainerStatus>>, name: &str) -> Option<&'a ContainerStatus> {
    list.iter().flatten().find(|s| s.name == name)
}

/// Static pods come from a file or URL; the API server only has a mirror of them.
pub fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get("kubernetes.io/config.source")).is_some_and(|source| source != "api")
}

pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"))
}

/// Static pods and those of the system's critical priorities are admitted ahead of others and evicted last.
pub fn is_critical(pod: &Pod) -> bool {
    is_static(pod) || is_mirror(pod) || pod.spec().priority.is_some_and(|p| p >= 2_000_000_000)
}

pub fn grace_period(pod: &Pod) -> Duration {
    let seconds =
        pod.metadata.deletion_grace_period_seconds.or(pod.spec().termination_grace_period_seconds).unwrap_or(30);
    Duration::from_secs(seconds.max(0) as u64)
}

pub fn now() -> Time {
    // The API keeps whole seconds; rounding here lets a status be compared with what comes back.
    Time(Timestamp::from_second(Timestamp::now().as_second()).expect("the present is a valid time"))
}

/// A time of the runtime, in nanoseconds since 1970. Zero means unset and prints as the beginning of 1970, as upstream's does.
pub fn time_of_nanos(nanos: i64) -> Time {
    Time(Timestamp::from_second(nanos.div_euclid(1_000_000_000)).unwrap_or(Timestamp::UNIX_EPOCH))
}
