//! A container as the runtime is asked for it (upstream: `kuberuntime_container.go`, `kuberuntime_container_linux.go`, `security_context.go`,
//! `kubelet_pods.go: makeMounts`).

use crate::cgroups::Version;
use crate::config::Config;
use crate::cri::v1;
use crate::environment;
use crate::labels;
use crate::pod::{ContainerRef, PodExt};
use crate::resources;
use crate::sandbox;
use crate::volumes::{Mounted, sub_path};
use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext, VolumeMount};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Paths of the kernel that an ordinary container must not see, or not write (upstream: `securitycontext/util.go`).
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub struct Inputs<'a> {
    pub config: &'a Config,
    pub pod: &'a Pod,
    pub container: ContainerRef<'a>,
    pub restart_count: i32,
    pub image: &'a v1::Image,
    pub image_ref: String,
    pub variables: Vec<(String, String)>,
    pub mounted: &'a HashMap<String, Mounted>,
    /// What the runtime knows the images of `image` volumes by.
    pub image_volumes: &'a HashMap<String, String>,
    /// The pod's own `/etc/hosts`, if it has one.
    pub hosts_file: Option<PathBuf>,
    /// The container whose processes an ephemeral container is to see.
    pub target_id: Option<String>,
    pub memory_capacity: i64,
    pub cgroup_version: Version,
    pub real: bool,
}

/// Errors are messages for a waiting state of reason `CreateContainerConfigError`.
pub fn build(inputs: &Inputs<'_>) -> Result<v1::ContainerConfig, String> {
    let container = inputs.container.container;
    verify_non_root(inputs)?;
    let variables: HashMap<&str, &str> = inputs.variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        let known = |name: &str| variables.get(name).map(|v| v.to_string());
        list.iter().flatten().map(|text| environment::expand(text, known)).collect()
    };
    let mounts = if inputs.real { mounts(inputs, &variables)? } else { Vec::new() };
    let stop_signal = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    let stop_signal = stop_signal.and_then(v1::Signal::from_posix_name);
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: container.name.clone(), attempt: inputs.restart_count as u32 }),
        image: Some(v1::ImageSpec {
            image: inputs.image_ref.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: inputs
            .variables
            .iter()
            .map(|(key, value)| v1::KeyValue { key: key.clone(), value: value.clone().into_bytes() })
            .collect(),
        mounts,
        labels: labels::container_labels(inputs.pod, container),
        annotations: labels::container_annotations(inputs.pod, container, inputs.restart_count),
        log_path: format!("{}/{}.log", container.name, inputs.restart_count),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(linux_resources(inputs.pod, container, inputs)),
            security_context: Some(security(inputs)),
        }),
        stop_signal: stop_signal.unwrap_or(v1::Signal::RuntimeDefault) as i32,
        ..Default::default()
    })
}

fn verify_non_root(inputs: &Inputs<'_>) -> Result<(), String> {
    let own = inputs.container.container.security_context.as_ref();
    let pods = inputs.pod.spec().security_context.as_ref();
    if own.and_then(|s| s.run_as_non_root).or(pods.and_then(|s| s.run_as_non_root)) != Some(true) {
        return Ok(());
    }
    let place = format!("(pod: {:?}, container: {})", inputs.pod.printed(), inputs.container.container.name);
    if let Some(user) = own.and_then(|s| s.run_as_user).or(pods.and_then(|s| s.run_as_user)) {
        return if user == 0 { Err(format!("container's runAsUser breaks non-root policy {place}")) } else { Ok(()) };
    }
    match (&inputs.image.uid, inputs.image.username.as_str()) {
        (Some(uid), _) if uid.value == 0 => {
            Err(format!("container has runAsNonRoot and image will run as root {place}"))
        }
        (Some(_), _) => Ok(()),
        (None, "") => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, name) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"
        )),
    }
}

pub fn linux_resources(pod: &Pod, container: &Container, inputs: &Inputs<'_>) -> v1::LinuxContainerResources {
    limits_of(pod, container, inputs.config, inputs.memory_capacity, inputs.cgroup_version)
}

/// The limits of a container, at its start and when it is resized.
pub fn limits_of(
    pod: &Pod,
    container: &Container,
    config: &Config,
    memory_capacity: i64,
    version: Version,
) -> v1::LinuxContainerResources {
    let milli = |amount: Option<i128>| amount.map_or(0, |n| (n / 1_000_000) as i64);
    let cpu_limit = milli(resources::effective_limit(pod, container, "cpu"));
    let cpu_request = resources::request_of(container, "cpu").map_or(cpu_limit, |n| milli(Some(n)));
    let memory_limit = resources::effective_limit(pod, container, "memory").map_or(0, |n| (n / 1_000_000_000) as i64);
    let period = config.settings.cpu_cfs_quota_period.0.as_micros() as i64;
    let mut result = v1::LinuxContainerResources {
        cpu_shares: resources::milli_cpu_to_shares(cpu_request),
        oom_score_adj: resources::oom_score_adj(pod, container, memory_capacity),
        memory_limit_in_bytes: memory_limit,
        ..Default::default()
    };
    if config.settings.cpu_cfs_quota {
        result.cpu_period = period;
        result.cpu_quota = resources::milli_cpu_to_quota(cpu_limit, period);
    }
    for (name, quantity) in resources::limits(container).into_iter().flatten() {
        if let Some(size) = name.strip_prefix("hugepages-") {
            let page_size = size.replace("Ki", "KB").replace("Mi", "MB").replace("Gi", "GB");
            result.hugepage_limits.push(v1::HugepageLimit { page_size, limit: resources::value(quantity) as u64 });
        }
    }
    if version == Version::V2 && config.settings.single_process_oom_kill != Some(true) {
        // All processes of a container end together when one exceeds the memory.
        result.unified.insert("memory.oom.group".into(), "1".into());
    }
    result
}

fn security(inputs: &Inputs<'_>) -> v1::LinuxContainerSecurityContext {
    static NONE: std::sync::LazyLock<SecurityContext> = std::sync::LazyLock::new(SecurityContext::default);
    let own = inputs.container.container.security_context.as_ref().unwrap_or(&NONE);
    let pods = inputs.pod.spec().security_context.as_ref();
    let mut namespaces = sandbox::namespace_options(inputs.pod);
    if let Some(id) = &inputs.target_id {
        namespaces.pid = v1::NamespaceMode::Target as i32;
        namespaces.target_id = id.clone();
    }
    let user = own.run_as_user.or(pods.and_then(|s| s.run_as_user)).or(inputs.image.uid.as_ref().map(|u| u.value));
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let privileged = own.privileged == Some(true);
    let paths = |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|p| p.to_string()).collect() };
    let mut groups: Vec<i64> = pods.and_then(|s| s.fs_group).into_iter().collect();
    groups.extend(pods.into_iter().flat_map(|s| s.supplemental_groups.iter().flatten()));
    let strict = pods.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict");
    let profile = own.seccomp_profile.as_ref().or(pods.and_then(|s| s.seccomp_profile.as_ref()));
    let apparmor = own.app_armor_profile.as_ref().or(pods.and_then(|s| s.app_armor_profile.as_ref()));
    v1::LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(|c| v1::Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces),
        selinux_options: own
            .se_linux_options
            .as_ref()
            .or(pods.and_then(|s| s.se_linux_options.as_ref()))
            .map(sandbox::selinux),
        run_as_user: user.map(|value| v1::Int64Value { value }),
        run_as_username: if user.is_none() { inputs.image.username.clone() } else { String::new() },
        run_as_group: own.run_as_group.or(pods.and_then(|s| s.run_as_group)).map(|value| v1::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups,
        supplemental_groups_policy: (if strict {
            v1::SupplementalGroupsPolicy::Strict
        } else {
            v1::SupplementalGroupsPolicy::Merge
        }) as i32,
        no_new_privs: own.allow_privilege_escalation == Some(false) && !privileged,
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(if privileged && profile.is_none() {
            v1::SecurityProfile {
                profile_type: v1::security_profile::ProfileType::Unconfined as i32,
                localhost_ref: String::new(),
            }
        } else {
            sandbox::seccomp(profile, inputs.config)
        }),
        // A runtime without AppArmor refuses any profile, so none is sent unless one is asked for.
        apparmor: apparmor.map(|p| {
            use v1::security_profile::ProfileType;
            let kind = match p.type_.as_str() {
                "Unconfined" => ProfileType::Unconfined,
                "Localhost" => ProfileType::Localhost,
                _ => ProfileType::RuntimeDefault,
            };
            v1::SecurityProfile {
                profile_type: kind as i32,
                localhost_ref: p.localhost_profile.clone().unwrap_or_default(),
            }
        }),
        ..Default::default()
    }
}

fn propagation(mount: &VolumeMount) -> i32 {
    (match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => v1::MountPropagation::HostToContainer,
        Some("Bidirectional") => v1::MountPropagation::Bidirectional,
        _ => v1::MountPropagation::Private,
    }) as i32
}

fn mounts(inputs: &Inputs<'_>, variables: &HashMap<&str, &str>) -> Result<Vec<v1::Mount>, String> {
    let container = inputs.container.container;
    let pod_dir = inputs.config.pod_dir(inputs.pod.uid());
    let mut result = Vec::new();
    let mut hosts_taken = false;
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        hosts_taken |= mount.mount_path == "/etc/hosts";
        let Some(volume) = inputs.mounted.get(&mount.name) else {
            return Err(format!("cannot find volume {:?} to mount into container {:?}", mount.name, container.name));
        };
        if mount.recursive_read_only.as_deref() == Some("Enabled") {
            return Err(format!(
                "failed to resolve recursive read-only mode: volume {:?} requested recursive read-only mode, but it is not supported by the runtime",
                mount.name
            ));
        }
        let read_only = mount.read_only == Some(true) || volume.read_only;
        let container_path = absolute(&mount.mount_path);
        if let Some(image) = &volume.image {
            result.push(v1::Mount {
                container_path,
                readonly: true,
                image: Some(v1::ImageSpec {
                    image: inputs.image_volumes.get(&mount.name).unwrap_or(image).clone(),
                    user_specified_image: image.clone(),
                    ..Default::default()
                }),
                image_sub_path: mount.sub_path.clone().unwrap_or_default(),
                ..Default::default()
            });
            continue;
        }
        let sub_path_text =
            match (mount.sub_path.as_deref().unwrap_or_default(), mount.sub_path_expr.as_deref().unwrap_or_default()) {
                ("", "") => String::new(),
                (path, "") => path.to_string(),
                (_, expression) => expand_sub_path(expression, variables)?,
            };
        let host_path = if sub_path_text.is_empty() {
            volume.path.clone()
        } else {
            let target =
                pod_dir.join("volume-subpaths").join(&mount.name).join(&container.name).join(index.to_string());
            // A container that starts again gets what is there now, not what was there when it first started.
            let _ = nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH);
            sub_path::bind(&volume.path, &sub_path_text, &target)?
        };
        result.push(v1::Mount {
            container_path,
            host_path: host_path.display().to_string(),
            readonly: read_only,
            propagation: propagation(mount),
            ..Default::default()
        });
    }
    if let Some(path) = inputs.hosts_file.as_ref().filter(|_| !hosts_taken) {
        result.push(bind("/etc/hosts", path));
    }
    if let Some(path) = container.termination_message_path.as_deref().filter(|p| !p.is_empty()) {
        // A file of its own for each start: what an earlier one left must not be taken for this one's.
        let file = pod_dir.join("containers").join(&container.name).join(format!("{:08x}", rand::random::<u32>()));
        let io = |e: std::io::Error| format!("{}: {e}", file.display());
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).map_err(io)?;
        }
        fs::write(&file, b"").map_err(io)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).map_err(io)?;
        result.push(bind(path, &file));
    }
    Ok(result)
}

fn bind(container_path: &str, host_path: &Path) -> v1::Mount {
    v1::Mount {
        container_path: container_path.into(),
        host_path: host_path.display().to_string(),
        ..Default::default()
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_string() } else { format!("/{path}") }
}

/// Every reference must be known, unlike in commands.
fn expand_sub_path(expression: &str, variables: &HashMap<&str, &str>) -> Result<String, String> {
    let missing = std::cell::RefCell::new(BTreeSet::new());
    let text = environment::expand(expression, |name| {
        let value = variables.get(name).map(|v| v.to_string());
        if value.is_none() {
            missing.borrow_mut().insert(name.to_string());
        }
        value
    });
    let missing = missing.into_inner();
    if !missing.is_empty() {
        let names: Vec<String> = missing.into_iter().collect();
        return Err(format!("missing value for {}", names.join(", ")));
    }
    if text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return Err(format!("failed to validate subPathExpr: {text:?} must be a relative path without '..'"));
    }
    Ok(text)
}
