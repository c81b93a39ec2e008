//! The sandbox of a pod as the runtime is asked for it (upstream: `kuberuntime_sandbox.go`).

use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::cri::v1;
use crate::host_files;
use crate::labels;
use crate::pod::{self, PodExt};
use crate::resources;
use k8s_openapi::api::core::v1::{Pod, SELinuxOptions, SeccompProfile};
use std::path::PathBuf;

/// Sysctls that cannot harm the node or other pods (upstream: `sysctl.SafeSysctlAllowlist`).
const SAFE_SYSCTLS: [&str; 11] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
];

pub fn pod_log_dir(config: &Config, pod: &Pod) -> PathBuf {
    config.pod_logs_root().join(labels::pod_log_dir_name(pod))
}

/// The first sysctl that this kubelet is not configured to allow, with the reason.
pub fn forbidden_sysctl(pod: &Pod, allowed: &[String]) -> Option<String> {
    let spec = pod.spec();
    for sysctl in spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten()) {
        let name = sysctl.name.replace('/', ".");
        let listed = SAFE_SYSCTLS.contains(&name.as_str())
            || name == "net.ipv4.tcp_wmem"
            || allowed.iter().any(|a| a.strip_suffix('*').map_or(*a == name, |prefix| name.starts_with(prefix)));
        let host_network = pod::is_host_network(pod) && name.starts_with("net.");
        let host_ipc = spec.host_ipc == Some(true)
            && (name.starts_with("kernel.shm")
                || name.starts_with("kernel.msg")
                || name == "kernel.sem"
                || name.starts_with("fs.mqueue."));
        if !listed {
            return Some(format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        if host_network {
            return Some(format!("forbidden sysctl: {name:?} not allowed with host net enabled"));
        }
        if host_ipc {
            return Some(format!("forbidden sysctl: {name:?} not allowed with host ipc enabled"));
        }
    }
    None
}

/// How namespaces are shared. A pod's own PID namespace has to be asked for by name, since the protocol's zero means sharing.
pub fn namespace_options(pod: &Pod) -> v1::NamespaceOption {
    let spec = pod.spec();
    let host = |flag: Option<bool>, otherwise: v1::NamespaceMode| {
        (if flag == Some(true) { v1::NamespaceMode::Node } else { otherwise }) as i32
    };
    let own_pid =
        if spec.share_process_namespace == Some(true) { v1::NamespaceMode::Pod } else { v1::NamespaceMode::Container };
    v1::NamespaceOption {
        network: host(spec.host_network, v1::NamespaceMode::Pod),
        pid: host(spec.host_pid, own_pid),
        ipc: host(spec.host_ipc, v1::NamespaceMode::Pod),
        ..Default::default()
    }
}

pub fn selinux(options: &SELinuxOptions) -> v1::SeLinuxOption {
    v1::SeLinuxOption {
        user: options.user.clone().unwrap_or_default(),
        role: options.role.clone().unwrap_or_default(),
        r#type: options.type_.clone().unwrap_or_default(),
        level: options.level.clone().unwrap_or_default(),
    }
}

/// Profiles on the node live below the kubelet's own directory.
pub fn seccomp(profile: Option<&SeccompProfile>, config: &Config) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let default = if config.settings.seccomp_default { ProfileType::RuntimeDefault } else { ProfileType::Unconfined };
    let (kind, local) = match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => (ProfileType::RuntimeDefault, String::new()),
        Some("Unconfined") => (ProfileType::Unconfined, String::new()),
        Some("Localhost") => {
            let name = profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default();
            (ProfileType::Localhost, config.root_dir.join("seccomp").join(name).display().to_string())
        }
        _ => (default, String::new()),
    };
    v1::SecurityProfile { profile_type: kind as i32, localhost_ref: local }
}

pub struct SandboxInputs<'a> {
    pub config: &'a Config,
    pub cgroups: &'a Cgroups,
    pub host_dns: &'a v1::DnsConfig,
}

/// The configuration, and whether the node lacks the cluster DNS that the pod's policy wants.
pub fn sandbox_config(
    pod: &Pod,
    attempt: u32,
    inputs: &SandboxInputs<'_>,
) -> Result<(v1::PodSandboxConfig, bool), String> {
    let spec = pod.spec();
    // Running such a pod without what it asks for would be worse than not running it.
    if spec.host_users == Some(false) {
        let handler = spec.runtime_class_name.as_deref().unwrap_or_default();
        let who = if handler.is_empty() { "runtime".to_string() } else { format!("RuntimeClass handler {handler:?}") };
        return Err(format!("can't set `spec.hostUsers: false`, {who} does not support user namespaces"));
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Err("dynamic resources are not supported by this kubelet".into());
    }
    let config = inputs.config;
    let settings = &config.settings;
    let (dns, missing) = host_files::dns_config(pod, inputs.host_dns, &settings.cluster_dns, &settings.cluster_domain);
    let hostname = if pod::is_host_network(pod) {
        String::new()
    } else {
        host_files::sandbox_hostname(pod, &settings.cluster_domain)?
    };
    let port_mappings = pod::long_lived_containers(spec)
        .filter(|c| c.kind == pod::ContainerKind::Regular || c.is_sidecar())
        .flat_map(|c| c.container.ports.iter().flatten())
        .map(|port| v1::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => v1::Protocol::Udp,
                Some("SCTP") => v1::Protocol::Sctp,
                _ => v1::Protocol::Tcp,
            } as i32,
            container_port: port.container_port,
            host_port: if pod::is_host_network(pod) { 0 } else { port.host_port.unwrap_or(0) },
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect();
    let security = spec.security_context.as_ref();
    let mut groups: Vec<i64> = security.and_then(|s| s.fs_group).into_iter().collect();
    groups.extend(security.into_iter().flat_map(|s| s.supplemental_groups.iter().flatten()));
    let privileged = pod::long_lived_containers(spec)
        .any(|c| c.container.security_context.as_ref().and_then(|s| s.privileged) == Some(true));
    let strict = security.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict");
    let policy = if strict { v1::SupplementalGroupsPolicy::Strict } else { v1::SupplementalGroupsPolicy::Merge };
    let sysctls = security.into_iter().flat_map(|s| s.sysctls.iter().flatten());
    let linux = v1::LinuxPodSandboxConfig {
        cgroup_parent: inputs.cgroups.parent_of(pod),
        security_context: Some(v1::LinuxSandboxSecurityContext {
            namespace_options: Some(namespace_options(pod)),
            selinux_options: security.and_then(|s| s.se_linux_options.as_ref()).map(selinux),
            run_as_user: security.and_then(|s| s.run_as_user).map(|value| v1::Int64Value { value }),
            // The protocol wants no group without a user.
            run_as_group: security
                .filter(|s| s.run_as_user.is_some())
                .and_then(|s| s.run_as_group)
                .map(|value| v1::Int64Value { value }),
            supplemental_groups: groups,
            supplemental_groups_policy: policy as i32,
            privileged,
            // The pause process always runs under the runtime's own profile.
            seccomp: Some(v1::SecurityProfile {
                profile_type: v1::security_profile::ProfileType::RuntimeDefault as i32,
                localhost_ref: String::new(),
            }),
            ..Default::default()
        }),
        sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
        overhead: spec.overhead.as_ref().map(|list| linux_resources(Some(list), Some(list))),
        resources: Some(linux_resources(Some(&resources::pod_requests(pod)), Some(&resources::pod_limits(pod)))),
    };
    let result = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: pod.name().into(),
            uid: pod.uid().into(),
            namespace: pod.namespace().into(),
            attempt,
        }),
        hostname,
        log_directory: pod_log_dir(config, pod).display().to_string(),
        dns_config: Some(dns),
        port_mappings,
        labels: labels::pod_labels(pod),
        annotations: labels::pod_annotations(pod),
        linux: Some(linux),
    };
    Ok((result, missing))
}

fn linux_resources(
    requests: Option<&resources::ResourceList>,
    limits: Option<&resources::ResourceList>,
) -> v1::LinuxContainerResources {
    let get = |list: Option<&resources::ResourceList>,
               name: &str,
               of: fn(&k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> i64| {
        list.and_then(|l| l.get(name)).map(of).unwrap_or(0)
    };
    let cpu_limit = get(limits, "cpu", resources::milli_value);
    v1::LinuxContainerResources {
        cpu_shares: resources::milli_cpu_to_shares(get(requests, "cpu", resources::milli_value)),
        cpu_period: if cpu_limit > 0 { 100_000 } else { 0 },
        cpu_quota: resources::milli_cpu_to_quota(cpu_limit, 100_000),
        memory_limit_in_bytes: get(limits, "memory", resources::value),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_are_allowed_by_list_or_by_configuration() {
        let pod = |name: &str| -> Pod {
            serde_json::from_value(serde_json::json!({"spec": {"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}})).unwrap()
        };
        assert!(forbidden_sysctl(&pod("kernel.shm_rmid_forced"), &[]).is_none());
        assert_eq!(
            forbidden_sysctl(&pod("kernel.msgmax"), &[]).unwrap(),
            "forbidden sysctl: \"kernel.msgmax\" not allowlisted"
        );
        assert!(forbidden_sysctl(&pod("kernel.msgmax"), &["kernel.msg*".into()]).is_none());
    }
}
