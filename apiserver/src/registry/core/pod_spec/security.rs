//! Security contexts of pods and containers, and the annotations they grew out of (upstream: `ValidateSecurityContext`,
//! `validatePodSpecSecurityContext`, `ValidatePodSpecificAnnotations`).

use super::Options;
use crate::registry::checks;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Value, json, names};

pub const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_POD_ANNOTATION: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER_ANNOTATION: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

fn id(value: &View<'_>, errors: &mut ErrorList) {
    if let Some(id) = value.opt_i64() {
        for why in names::user_id(id) {
            errors.push(Error::invalid(value.path(), id, why));
        }
    }
}

/// A container's security context as upstream's internal type shows it in JSON.
fn internal(context: &View<'_>) -> Value {
    let get = |name| context.child(name).value().cloned().unwrap_or_default();
    let capabilities = match context.child("capabilities").value() {
        Some(c) => json!({"Add": c.get("add"), "Drop": c.get("drop")}),
        None => Value::Null,
    };
    let mut text = String::from("{");
    let fields = [
        ("Capabilities", capabilities),
        ("Privileged", get("privileged")),
        ("SELinuxOptions", get("seLinuxOptions")),
        ("WindowsOptions", get("windowsOptions")),
        ("RunAsUser", get("runAsUser")),
        ("RunAsGroup", get("runAsGroup")),
        ("RunAsNonRoot", get("runAsNonRoot")),
        ("ReadOnlyRootFilesystem", get("readOnlyRootFilesystem")),
        ("AllowPrivilegeEscalation", get("allowPrivilegeEscalation")),
        ("ProcMount", get("procMount")),
        ("SeccompProfile", get("seccompProfile")),
        ("AppArmorProfile", get("appArmorProfile")),
    ];
    for (i, (name, value)) in fields.into_iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        text.push_str(&format!("{comma}\"{name}\":{value}"));
    }
    text.push('}');
    Value::from(text)
}

/// An error whose bad value is text that is already as upstream prints it.
pub(super) fn invalid_shown(path: &Path, shown: &Value, why: &str) -> Error {
    Error { bad_value: shown.as_str().map(str::to_owned), ..Error::invalid(path, "", why) }
}

pub(super) fn container(context: &View<'_>, host_users: bool, errors: &mut ErrorList) {
    if !context.exists() {
        return;
    }
    id(&context.child("runAsUser"), errors);
    id(&context.child("runAsGroup"), errors);
    let proc_mount = context.child("procMount");
    if proc_mount.exists() {
        checks::supported_value(&proc_mount, &["Default", "Unmasked"], errors);
        if host_users && proc_mount.str() == "Unmasked" {
            let why = "`hostUsers` must be false to use `Unmasked`";
            errors.push(Error::invalid(proc_mount.path(), proc_mount.str(), why));
        }
    }
    seccomp_profile(&context.child("seccompProfile"), errors);
    if context.child("allowPrivilegeEscalation").opt_bool() == Some(false) {
        if context.child("privileged").bool() {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(invalid_shown(context.path(), &internal(context), why));
        }
        for capability in context.child("capabilities").child("add").items() {
            if capability.str() == "CAP_SYS_ADMIN" {
                let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
                errors.push(invalid_shown(context.path(), &internal(context), why));
            }
        }
    }
    windows_options(&context.child("windowsOptions"), errors);
    app_armor_profile(&context.child("appArmorProfile"), errors);
}

pub(super) fn pod(spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let context = spec.child("securityContext");
    if !context.exists() {
        return;
    }
    id(&context.child("fsGroup"), errors);
    id(&context.child("runAsUser"), errors);
    id(&context.child("runAsGroup"), errors);
    context.child("supplementalGroups").items().for_each(|group| id(&group, errors));
    if spec.child("shareProcessNamespace").bool() && spec.child("hostPID").bool() {
        let path = context.path().child("shareProcessNamespace");
        errors.push(Error::invalid(&path, true, "ShareProcessNamespace and HostPID cannot both be enabled"));
    }
    sysctls(&context.child("sysctls"), spec, options, errors);
    let mut optional = |name: &'static str, supported: &[&str]| {
        let field = context.child(name);
        if field.exists() {
            checks::supported_value(&field, supported, errors);
        }
    };
    optional("fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    seccomp_profile(&context.child("seccompProfile"), errors);
    windows_options(&context.child("windowsOptions"), errors);
    app_armor_profile(&context.child("appArmorProfile"), errors);
    let mut optional = |name: &'static str, supported: &[&str]| {
        let field = context.child(name);
        if field.exists() {
            checks::supported_value(&field, supported, errors);
        }
    };
    optional("supplementalGroupsPolicy", &["Merge", "Strict"]);
    // Mounting with a context is behind a feature that is off by default; objects that have a policy keep their choice.
    let all: &[&str] = &["MountOption", "Recursive"];
    optional("seLinuxChangePolicy", if options.allow_any_selinux_change_policy { all } else { &all[1..] });
}

fn is_sysctl_name(name: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let segment = |s: &str| match s.as_bytes() {
        [] => false,
        [one] => edge(*one),
        [first, middle @ .., last] => {
            edge(*first) && edge(*last) && middle.iter().all(|&b| edge(b) || b == b'-' || b == b'_')
        }
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn sysctls(sysctls: &View<'_>, spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for sysctl in sysctls.items() {
        let name = sysctl.child("name");
        if name.str().is_empty() {
            errors.push(Error::required(name.path(), ""));
        } else if !is_sysctl_name(name.str()) {
            let why = "must have at most 253 characters and match regex \
                       ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(Error::invalid(name.path(), name.str(), why));
        } else if seen.contains(&name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        }
        if !options.allow_sysctls_of_host {
            let dotted = dotted(name.str());
            let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p))
                || dotted == "kernel.sem";
            if spec.child("hostNetwork").bool() && dotted.starts_with("net.") {
                let why = "may not be specified when 'hostNetwork' is true";
                errors.push(Error::invalid(name.path(), name.str(), why));
            } else if spec.child("hostIPC").bool() && of_ipc {
                let why = "may not be specified when 'hostIPC' is true";
                errors.push(Error::invalid(name.path(), name.str(), why));
            }
        }
        seen.push(name.str());
    }
}

/// With the separator that comes first meaning the separator.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(i) if name.as_bytes()[i] == b'/' => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn seccomp_profile(profile: &View<'_>, errors: &mut ErrorList) {
    if !profile.exists() {
        return;
    }
    let (kind, local) = (profile.child("type"), profile.child("localhostProfile"));
    if kind.str().is_empty() {
        errors.push(Error::required(kind.path(), "type is required when seccompProfile is set"));
    } else {
        checks::supported_value(&kind, &["Localhost", "RuntimeDefault", "Unconfined"], errors);
    }
    if kind.str() == "Localhost" {
        if local.exists() {
            checks::descending_path(&local, local.path(), errors);
        } else {
            errors.push(Error::required(local.path(), "must be set when seccomp type is Localhost"));
        }
    } else if local.exists() {
        let shown = format!("{{\"Type\":{},\"LocalhostProfile\":{}}}", json!(kind.str()), json!(local.str()));
        errors.push(invalid_shown(local.path(), &shown.into(), "can only be set when seccomp type is Localhost"));
    }
}

/// An AppArmor profile given as a field.
pub fn app_armor_profile(profile: &View<'_>, errors: &mut ErrorList) {
    if !profile.exists() {
        return;
    }
    const MUST: &str = "must be set when AppArmor type is Localhost";
    const BYTES_MAX: usize = 4095;
    let (kind, local) = (profile.child("type"), profile.child("localhostProfile"));
    match kind.str() {
        "Localhost" => match local.opt_str() {
            None => errors.push(Error::required(local.path(), MUST)),
            Some(name) => {
                if name.trim() != name {
                    errors.push(Error::invalid(local.path(), name, "must not be padded with whitespace"));
                } else if name.is_empty() {
                    errors.push(Error::required(local.path(), MUST));
                }
                if name.len() > BYTES_MAX {
                    errors.push(Error::too_long(local.path(), BYTES_MAX as i64));
                }
            }
        },
        "RuntimeDefault" | "Unconfined" => {
            if local.exists() {
                let why = "can only be set when AppArmor type is Localhost";
                errors.push(Error::invalid(local.path(), local.str(), why));
            }
        }
        "" => errors.push(Error::required(kind.path(), "type is required when appArmorProfile is set")),
        other => {
            let known = ["Localhost", "RuntimeDefault", "Unconfined"];
            errors.push(Error::not_supported(kind.path(), other, &known));
        }
    }
}

/// The profile that an AppArmor annotation stands for, if it stands for one.
pub fn app_armor_of_annotation(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        _ => {
            let local = annotation.strip_prefix("localhost/").filter(|l| !l.is_empty())?;
            Some(json!({"type": "Localhost", "localhostProfile": local}))
        }
    }
}

fn windows_options(options: &View<'_>, errors: &mut ErrorList) {
    if !options.exists() {
        return;
    }
    let spec_name = options.child("gmsaCredentialSpecName");
    if spec_name.exists() {
        checks::dns_subdomain(&spec_name, errors);
    }
    let spec = options.child("gmsaCredentialSpec");
    if spec.exists() {
        if spec.str().is_empty() {
            errors.push(Error::invalid(spec.path(), spec.str(), "gmsaCredentialSpec cannot be an empty string"));
        } else if spec.len() > 64 * 1024 {
            errors.push(Error::invalid(spec.path(), spec.str(), "gmsaCredentialSpec size must be under 64 KiB"));
        }
    }
    let user = options.child("runAsUserName");
    if user.exists() {
        windows_user(&user, errors);
    }
}

fn windows_user(view: &View<'_>, errors: &mut ErrorList) {
    let name = view.str();
    let mut wrong = |why: &str| errors.push(Error::invalid(view.path(), name, why));
    if name.is_empty() {
        return wrong("runAsUserName cannot be an empty string");
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return wrong("runAsUserName cannot contain control characters");
    }
    let mut parts = name.split('\\');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    if parts.next().is_some() {
        return wrong("runAsUserName cannot contain more than one backslash");
    }
    let (domain, user) = match second {
        Some(user) => (Some(first), user),
        None => (None, first),
    };
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            wrong("runAsUserName's Domain length must be under 256 characters");
        }
        let net_bios = (1..=15).contains(&domain.chars().count())
            && !domain.starts_with('.')
            && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|']);
        let label = |l: &str| {
            let b = l.as_bytes();
            (1..=63).contains(&b.len())
                && b[0].is_ascii_alphanumeric()
                && b[b.len() - 1].is_ascii_alphanumeric()
                && b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-')
        };
        if !net_bios && !domain.split('.').all(label) {
            wrong("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        wrong("runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        wrong("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        wrong("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        wrong("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
}

/// The annotations of a pod or template that the server understands.
pub fn pod_annotations(annotations: &View<'_>, spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let get = |key: &str| annotations.child_named(key).opt_str();
    if let Some(value) = get(MIRROR_ANNOTATION)
        && spec.child("nodeName").is_empty()
    {
        let why = "must set spec.nodeName if mirror pod annotation is set";
        errors.push(Error::invalid(&annotations.path().key(MIRROR_ANNOTATION), value, why));
    }
    if !options.allow_invalid_deletion_cost
        && let Some(cost) = get(DELETION_COST)
        && !is_deletion_cost(cost)
    {
        errors.push(Error::invalid(&annotations.path().key(DELETION_COST), cost, "must be a 32bit integer"));
    }
    for (key, value) in annotations.entries() {
        if key == SECCOMP_POD_ANNOTATION || key.starts_with(SECCOMP_CONTAINER_ANNOTATION) {
            seccomp_annotation(&annotations.path().child_named(key), value.str(), errors);
        }
    }
    for (key, value) in annotations.entries() {
        let Some(name) = key.strip_prefix(APP_ARMOR_ANNOTATION) else { continue };
        if !super::spec::all_containers(spec).any(|c| c.child("name").str() == name) {
            errors.push(Error::invalid(value.path(), name, "container not found"));
        }
        let profile = value.str();
        if !matches!(profile, "" | "runtime/default" | "unconfined") && !profile.starts_with("localhost/") {
            let why = format!("invalid AppArmor profile name: {}", coxswain_api::field::go_quote(profile));
            errors.push(Error::invalid(value.path(), profile, why));
        }
    }
}

/// A 32 bit number without a plus sign or leading zeros.
/// Whether a pod says what its deletion costs.
pub fn has_deletion_cost(pod: &View<'_>) -> bool {
    pod.child("metadata").child("annotations").child_named(DELETION_COST).exists()
}

fn is_deletion_cost(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let padded = digits.len() > 1 && digits.starts_with('0') || text == "-0";
    !text.starts_with('+') && !padded && text.parse::<i32>().is_ok()
}

fn seccomp_annotation(at: &Path, profile: &str, errors: &mut ErrorList) {
    if matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
        return;
    }
    match profile.strip_prefix("localhost/") {
        Some(local) => {
            let local = Value::from(local);
            checks::descending_path(&View::new(Some(&local), at.clone()), at, errors);
        }
        None => errors.push(Error::invalid(at, profile, "must be a valid seccomp profile")),
    }
}

/// Where both are given, seccomp annotations and fields must say the same.
pub(super) fn seccomp_annotations_agree(annotations: &View<'_>, spec: &View<'_>, errors: &mut ErrorList) {
    let mut agree = |key: &str, profile: &View<'_>| {
        let (Some(annotation), true) = (annotations.child_named(key).opt_str(), profile.exists()) else { return };
        let kind = profile.child("type");
        let matches = match kind.str() {
            "Unconfined" => annotation == "unconfined",
            "RuntimeDefault" => matches!(annotation, "runtime/default" | "docker/default"),
            "Localhost" => match annotation.strip_prefix("localhost/") {
                None => false,
                Some(local) => {
                    let field = profile.child("localhostProfile");
                    if field.opt_str() != Some(local) {
                        let why = "seccomp profile in annotation and field must match";
                        errors.push(Error::forbidden(field.path(), why));
                    }
                    true
                }
            },
            _ => true,
        };
        if !matches {
            errors.push(Error::forbidden(kind.path(), "seccomp type in annotation and field must match"));
        }
    };
    agree(SECCOMP_POD_ANNOTATION, &spec.child("securityContext").child("seccompProfile"));
    for container in super::spec::all_containers(spec) {
        let key = format!("{SECCOMP_CONTAINER_ANNOTATION}{}", container.child("name").str());
        agree(&key, &container.child("securityContext").child("seccompProfile"));
    }
}

/// Where both are given for a new pod, AppArmor annotations and fields must say the same.
pub fn app_armor_annotations_agree(annotations: &View<'_>, spec: &View<'_>, errors: &mut ErrorList) {
    if spec.child("os").child("name").str() == "windows" {
        return;
    }
    let of_pod = spec.child("securityContext").child("appArmorProfile");
    for container in super::spec::all_containers(spec) {
        let at = container.path().child("securityContext").child("appArmorProfile");
        let own = container.child("securityContext").child("appArmorProfile");
        let profile = if own.exists() { own } else { of_pod.clone() };
        let key = format!("{APP_ARMOR_ANNOTATION}{}", container.child("name").str());
        let (Some(annotation), true) = (annotations.child_named(&key).opt_str(), profile.exists()) else { continue };
        let matches = match profile.child("type").str() {
            "Unconfined" => annotation == "unconfined",
            "RuntimeDefault" => annotation == "runtime/default",
            "Localhost" => match annotation.strip_prefix("localhost/") {
                None => false,
                Some(local) => {
                    if profile.child("localhostProfile").opt_str() != Some(local) {
                        let why = "apparmor profile in annotation and field must match";
                        errors.push(Error::forbidden(&at.child("localhostProfile"), why));
                    }
                    true
                }
            },
            _ => true,
        };
        if !matches {
            errors.push(Error::forbidden(&at.child("type"), "apparmor type in annotation and field must match"));
        }
    }
}

/// The key of the seccomp annotation of a container, for warnings.
pub(super) fn seccomp_container_key(name: &str) -> String {
    format!("{SECCOMP_CONTAINER_ANNOTATION}{name}")
}

pub(super) const SECCOMP_POD_KEY: &str = SECCOMP_POD_ANNOTATION;
