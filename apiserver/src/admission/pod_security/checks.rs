//! The controls of the Pod Security Standards, one function each (upstream: `pod-security-admission/policy`).

use super::Level;
use coxswain_api::Value;
use coxswain_api::field::go_quote;
use std::collections::BTreeSet;

/// The newest version whose standards differ from older ones or not: what `latest` means here.
const LATEST_MINOR: u32 = 36;

/// What a pod violates: which control, and how.
pub(super) struct Violation {
    pub reason: String,
    pub detail: String,
}

/// A pod as a control sees it.
struct Pod<'a> {
    annotations: &'a Value,
    spec: &'a Value,
    minor: u32,
}

type Check = fn(&Pod<'_>) -> Option<Violation>;

/// In the order in which upstream reports: by name, baseline before restricted. The last column says which baseline
/// controls are replaced by a stricter one when the level is restricted.
#[rustfmt::skip]
static CHECKS: &[(Level, u32, Check, bool)] = &[
    (Level::Baseline, 0, app_armor, false),
    (Level::Baseline, 0, capabilities_baseline, true),
    (Level::Baseline, 0, host_namespaces, false),
    (Level::Baseline, 0, host_path_volumes, true),
    (Level::Baseline, 0, host_ports, false),
    (Level::Baseline, 34, host_probes, false),
    (Level::Baseline, 0, privileged, false),
    (Level::Baseline, 0, proc_mount, false),
    (Level::Baseline, 0, se_linux, false),
    (Level::Baseline, 0, seccomp_baseline, true),
    (Level::Baseline, 0, sysctls, false),
    (Level::Baseline, 0, windows_host_process, false),
    (Level::Restricted, 8, allow_privilege_escalation, false),
    (Level::Restricted, 22, capabilities_restricted, false),
    (Level::Restricted, 35, proc_mount_restricted, false),
    (Level::Restricted, 0, restricted_volumes, false),
    (Level::Restricted, 0, run_as_non_root, false),
    (Level::Restricted, 23, run_as_user, false),
    (Level::Restricted, 19, seccomp_restricted, false),
];

pub(super) fn evaluate(level: Level, minor: Option<u32>, metadata: &Value, spec: &Value) -> Vec<Violation> {
    if level == Level::Privileged {
        return Vec::new();
    }
    let minor = minor.unwrap_or(LATEST_MINOR).min(LATEST_MINOR);
    let pod = Pod { annotations: &metadata["annotations"], spec, minor };
    let replaced_since = |check: Check| -> u32 {
        // The stricter twin of a control came later than the control itself.
        match () {
            _ if std::ptr::fn_addr_eq(check, capabilities_baseline as Check) => 22,
            _ if std::ptr::fn_addr_eq(check, seccomp_baseline as Check) => 19,
            _ => 0,
        }
    };
    CHECKS
        .iter()
        .filter(|(of, since, check, replaced)| {
            let stricter = level == Level::Restricted && *replaced && minor >= replaced_since(*check);
            *of <= level && minor >= *since && !stricter
        })
        .filter_map(|(_, _, check, _)| check(&pod))
        .collect()
}

impl<'a> Pod<'a> {
    /// Every container, init containers first, as upstream visits them.
    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |kind| spec[kind].as_array().into_iter().flatten())
    }

    fn context(&self) -> &'a Value {
        &self.spec["securityContext"]
    }

    fn is_windows(&self) -> bool {
        self.minor >= 25 && self.spec["os"]["name"] == "windows"
    }

    /// A user namespace of its own makes root in the pod somebody harmless on the node.
    fn has_own_users(&self) -> bool {
        self.minor >= 35 && self.spec["hostUsers"] == false
    }

    fn names(&self, bad: impl Fn(&'a Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| bad(c)).map(|c| c["name"].as_str().unwrap_or_default()).collect()
    }
}

fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.into(), detail })
}

fn plural(one: &'static str, many: &'static str, n: usize) -> &'static str {
    if n == 1 { one } else { many }
}

fn quoted<S: AsRef<str>>(list: impl IntoIterator<Item = S>) -> String {
    let list: Vec<String> = list.into_iter().map(|s| go_quote(s.as_ref())).collect();
    list.join(", ")
}

/// `container "a"`, `containers "a", "b"`
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and container "a"`
fn setters(pod: bool, names: &[&str]) -> String {
    let mut parts: Vec<String> = pod.then(|| "pod".to_owned()).into_iter().collect();
    if !names.is_empty() {
        parts.push(containers(names));
    }
    parts.join(" and ")
}

fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    let bad = |context: &Value| {
        let kind = context["appArmorProfile"]["type"].as_str();
        kind.filter(|k| !matches!(*k, "RuntimeDefault" | "Localhost")).map(str::to_owned)
    };
    let of_pod = bad(pod.context());
    let names = pod.names(|c| bad(&c["securityContext"]).is_some());
    let mut values: BTreeSet<String> = pod.containers().filter_map(|c| bad(&c["securityContext"])).collect();
    values.extend(of_pod.clone());
    let mut values: Vec<String> = values.into_iter().collect();
    let mut annotations: Vec<String> = pod
        .annotations
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            let fine = value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
            let ours = key.starts_with("container.apparmor.security.beta.kubernetes.io/");
            (ours && !fine).then(|| format!("{key}={}", go_quote(value)))
        })
        .collect();
    annotations.sort();
    let mut who = setters(of_pod.is_some(), &names);
    if !annotations.is_empty() {
        if !who.is_empty() {
            who.push_str(" and ");
        }
        who.push_str(plural("annotation", "annotations", annotations.len()));
        values.extend(annotations);
    }
    if values.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    violation(reason, format!("{who} must not set AppArmor profile type to {}", quoted(values)))
}

fn added(container: &Value) -> impl Iterator<Item = &str> {
    container["securityContext"]["capabilities"]["add"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn capabilities_baseline(pod: &Pod<'_>) -> Option<Violation> {
    #[rustfmt::skip]
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
        "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
    ];
    let names = pod.names(|c| added(c).any(|cap| !ALLOWED.contains(&cap)));
    let bad: BTreeSet<&str> = pod.containers().flat_map(added).filter(|cap| !ALLOWED.contains(cap)).collect();
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must not include {} in securityContext.capabilities.add", containers(&names), quoted(bad));
    violation("non-default capabilities", detail)
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|key| pod.spec[*key] == true)
        .map(|key| format!("{key}=true"))
        .collect();
    if set.is_empty() { None } else { violation("host namespaces", set.join(", ")) }
}

fn volumes<'a>(pod: &Pod<'a>) -> impl Iterator<Item = &'a Value> + use<'a> {
    pod.spec["volumes"].as_array().into_iter().flatten()
}

fn host_path_volumes(pod: &Pod<'_>) -> Option<Violation> {
    let bad: Vec<&str> =
        volumes(pod).filter(|v| v["hostPath"].is_object()).filter_map(|v| v["name"].as_str()).collect();
    if bad.is_empty() {
        return None;
    }
    violation("hostPath volumes", format!("{} {}", plural("volume", "volumes", bad.len()), quoted(bad)))
}

fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    let ports = |c: &Value| -> Vec<String> {
        let ports = c["ports"].as_array().into_iter().flatten();
        ports.filter_map(|p| p["hostPort"].as_i64()).filter(|p| *p != 0).map(|p| p.to_string()).collect()
    };
    let names = pod.names(|c| !ports(c).is_empty());
    let bad: BTreeSet<String> = pod.containers().flat_map(ports).collect();
    if names.is_empty() {
        return None;
    }
    let (uses, what) = (plural("uses", "use", names.len()), plural("hostPort", "hostPorts", bad.len()));
    let list: Vec<String> = bad.into_iter().collect();
    violation("hostPort", format!("{} {uses} {what} {}", containers(&names), list.join(", ")))
}

fn host_probes(pod: &Pod<'_>) -> Option<Violation> {
    let hosts = |c: &Value| -> Vec<String> {
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|key| &c[key]);
        let hooks = ["postStart", "preStop"].map(|key| &c["lifecycle"][key]);
        let handlers = probes.into_iter().chain(hooks);
        let hosts = handlers.flat_map(|h| [h["httpGet"]["host"].as_str(), h["tcpSocket"]["host"].as_str()]);
        hosts.flatten().filter(|h| !h.is_empty()).map(str::to_owned).collect()
    };
    let names: BTreeSet<&str> = pod.names(|c| !hosts(c).is_empty()).into_iter().collect();
    let names: Vec<&str> = names.into_iter().collect();
    let bad: BTreeSet<String> = pod.containers().flat_map(hosts).collect();
    if names.is_empty() {
        return None;
    }
    let uses = plural("uses", "use", names.len());
    let what = plural("probe or lifecycle host", "probe or lifecycle hosts", bad.len());
    violation("probe or lifecycle host", format!("{} {uses} {what} {}", containers(&names), quoted(bad)))
}

fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let names = pod.names(|c| c["securityContext"]["privileged"] == true);
    if names.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", containers(&names)))
}

fn proc_mount_of(pod: &Pod<'_>) -> Option<Violation> {
    let bad = |c: &Value| c["securityContext"]["procMount"].as_str().filter(|m| *m != "Default").map(str::to_owned);
    let names = pod.names(|c| bad(c).is_some());
    let values: BTreeSet<String> = pod.containers().filter_map(bad).collect();
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(values));
    violation("procMount", detail)
}

fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() { None } else { proc_mount_of(pod) }
}

/// Unlike the baseline, user namespaces change nothing; what the baseline reports already is not repeated.
fn proc_mount_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() { proc_mount_of(pod) } else { None }
}

fn se_linux(pod: &Pod<'_>) -> Option<Violation> {
    let allowed = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (kind == "container_engine_t" && pod.minor >= 31)
    };
    let options = |context: &'_ Value| {
        let text = |key: &str| context["seLinuxOptions"][key].as_str().unwrap_or_default().to_owned();
        (text("type"), text("user"), text("role"))
    };
    let bad = |context: &Value| {
        let (kind, user, role) = options(context);
        !allowed(&kind) || !user.is_empty() || !role.is_empty()
    };
    let of_pod = bad(pod.context());
    let names = pod.names(|c| bad(&c["securityContext"]));
    if !of_pod && names.is_empty() {
        return None;
    }
    let contexts = std::iter::once(pod.context()).chain(pod.containers().map(|c| &c["securityContext"]));
    let (mut types, mut user_set, mut role_set) = (BTreeSet::new(), false, false);
    for (kind, user, role) in contexts.map(options) {
        if !allowed(&kind) {
            types.insert(kind);
        }
        user_set |= !user.is_empty();
        role_set |= !role.is_empty();
    }
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural("type", "types", types.len()), quoted(types)));
    }
    if user_set {
        data.push("user may not be set".into());
    }
    if role_set {
        data.push("role may not be set".into());
    }
    let who = setters(of_pod, &names);
    violation("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", data.join("; ")))
}

/// The profile type that a context sets; none if it sets none.
fn seccomp(context: &Value) -> Option<&str> {
    context["seccompProfile"].as_object().map(|p| p.get("type").and_then(Value::as_str).unwrap_or_default())
}

fn bad_seccomp(context: &Value) -> bool {
    seccomp(context).is_some_and(|kind| !matches!(kind, "RuntimeDefault" | "Localhost"))
}

fn seccomp_explicit(pod: &Pod<'_>) -> Option<Violation> {
    let of_pod = bad_seccomp(pod.context());
    let names = pod.names(|c| bad_seccomp(&c["securityContext"]));
    if !of_pod && names.is_empty() {
        return None;
    }
    let contexts = std::iter::once(pod.context()).chain(pod.containers().map(|c| &c["securityContext"]));
    let values: BTreeSet<&str> = contexts.filter(|c| bad_seccomp(c)).filter_map(seccomp).collect();
    let who = setters(of_pod, &names);
    violation("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values)))
}

fn seccomp_baseline(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor >= 19 {
        return seccomp_explicit(pod);
    }
    let fine = |v: &str| v == "runtime/default" || v == "docker/default" || v.starts_with("localhost/");
    let mut keys = vec!["seccomp.security.alpha.kubernetes.io/pod".to_owned()];
    keys.extend(
        pod.containers()
            .filter_map(|c| Some(format!("container.seccomp.security.alpha.kubernetes.io/{}", c["name"].as_str()?))),
    );
    let bad: BTreeSet<String> = keys
        .into_iter()
        .filter_map(|key| {
            let value = pod.annotations[&key].as_str()?;
            (!fine(value)).then(|| format!("{key}={}", go_quote(value)))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let list: Vec<String> = bad.into_iter().collect();
    let what = plural("annotation", "annotations", list.len());
    violation("seccompProfile", format!("forbidden {what} {}", list.join(", ")))
}

fn sysctls(pod: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: [(&str, u32); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let allowed = |name: &str| ALLOWED.iter().any(|(n, since)| *n == name && pod.minor >= *since);
    let set = pod.context()["sysctls"].as_array().into_iter().flatten();
    let bad: Vec<&str> = set.filter_map(|s| s["name"].as_str()).filter(|n| !allowed(n)).collect();
    if bad.is_empty() { None } else { violation("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(pod: &Pod<'_>) -> Option<Violation> {
    let bad = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let names = pod.names(|c| bad(&c["securityContext"]));
    let who = setters(bad(pod.context()), &names);
    if who.is_empty() {
        return None;
    }
    violation("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn allow_privilege_escalation(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let names = pod.names(|c| c["securityContext"]["allowPrivilegeEscalation"] != false);
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    violation("allowPrivilegeEscalation != false", detail)
}

fn capabilities_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let drops_all = |c: &Value| {
        c["securityContext"]["capabilities"]["drop"].as_array().is_some_and(|l| l.iter().any(|cap| cap == "ALL"))
    };
    let mut details = Vec::new();
    let missing = pod.names(|c| !drops_all(c));
    if !missing.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&missing)));
    }
    let adding = pod.names(|c| added(c).any(|cap| cap != "NET_BIND_SERVICE"));
    if !adding.is_empty() {
        let bad: BTreeSet<&str> = pod.containers().flat_map(added).filter(|cap| *cap != "NET_BIND_SERVICE").collect();
        let (who, what) = (containers(&adding), quoted(bad));
        details.push(format!("{who} must not include {what} in securityContext.capabilities.add"));
    }
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn restricted_volumes(pod: &Pod<'_>) -> Option<Violation> {
    #[rustfmt::skip]
    const ALLOWED: [&str; 9] = [
        "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
    ];
    // The source of a volume is its only field beside the name.
    let source = |v: &'_ Value| {
        let mut fields = v.as_object().into_iter().flatten();
        fields.find(|(key, value)| *key != "name" && !value.is_null()).map(|(key, _)| key.clone())
    };
    let bad: Vec<(&str, String)> = volumes(pod)
        .filter_map(|v| {
            let kind = source(v)?;
            (!ALLOWED.contains(&kind.as_str())).then(|| (v["name"].as_str().unwrap_or_default(), kind))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let types: BTreeSet<&str> = bad.iter().map(|(_, kind)| kind.as_str()).collect();
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", bad.len()),
        quoted(bad.iter().map(|(name, _)| name)),
        plural("uses", "use", bad.len()),
        plural("restricted volume type", "restricted volume types", types.len()),
        quoted(&types)
    );
    violation("restricted volume types", detail)
}

fn run_as_non_root(pod: &Pod<'_>) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    if pod.has_own_users() {
        return None;
    }
    let set = |context: &Value| context["runAsNonRoot"].as_bool();
    let of_pod = set(pod.context());
    let explicit = pod.names(|c| set(&c["securityContext"]) == Some(false));
    let who = setters(of_pod == Some(false), &explicit);
    if !who.is_empty() {
        return violation(REASON, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let implicit = pod.names(|c| of_pod != Some(true) && set(&c["securityContext"]).is_none());
    if implicit.is_empty() {
        return None;
    }
    violation(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&implicit)))
}

fn run_as_user(pod: &Pod<'_>) -> Option<Violation> {
    if pod.has_own_users() {
        return None;
    }
    let bad = |context: &Value| context["runAsUser"] == 0;
    let names = pod.names(|c| bad(&c["securityContext"]));
    let who = setters(bad(pod.context()), &names);
    if who.is_empty() { None } else { violation("runAsUser=0", format!("{who} must not set runAsUser=0")) }
}

fn seccomp_restricted(pod: &Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    if let Some(explicit) = seccomp_explicit(pod) {
        return Some(explicit);
    }
    let of_pod = seccomp(pod.context()).is_some();
    let implicit = pod.names(|c| !of_pod && seccomp(&c["securityContext"]).is_none());
    if implicit.is_empty() {
        return None;
    }
    let who = containers(&implicit);
    let detail =
        format!("pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"");
    violation("seccompProfile", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(level: Level, minor: Option<u32>, spec: Value) -> Vec<String> {
        let found = evaluate(level, minor, &json!({}), &spec);
        found.into_iter().map(|v| format!("{} ({})", v.reason, v.detail)).collect()
    }

    #[test]
    fn restricted_demands_what_a_plain_pod_does_not_say() {
        let plain = json!({"containers": [{"name": "c"}]});
        assert!(texts(Level::Baseline, None, plain.clone()).is_empty());
        assert_eq!(
            texts(Level::Restricted, None, plain),
            [
                "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)",
                "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"])",
                "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)",
                "seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
            ]
        );
    }

    #[test]
    fn an_older_version_knows_fewer_controls() {
        let probe = json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "x", "port": 1}}}]});
        assert!(texts(Level::Baseline, Some(33), probe.clone()).is_empty());
        assert_eq!(
            texts(Level::Baseline, None, probe),
            ["probe or lifecycle host (container \"c\" uses probe or lifecycle host \"x\")",]
        );
    }

    #[test]
    fn a_restricted_volume_is_reported_once() {
        let pod = json!({"containers": [], "volumes": [{"name": "h", "hostPath": {"path": "/"}}]});
        assert_eq!(
            texts(Level::Restricted, None, pod),
            ["restricted volume types (volume \"h\" uses restricted volume type \"hostPath\")",]
        );
    }
}
