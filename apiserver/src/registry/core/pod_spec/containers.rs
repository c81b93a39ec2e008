//! Containers of all three kinds: what they share, and what each may not have (upstream: `validateContainers`,
//! `validateInitContainers`, `validateEphemeralContainers`).

use super::handlers::{ProbeKind, lifecycle, probe};
use super::volumes::Volumes;
use super::{Options, resources, security};
use crate::registry::checks;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::names;
use coxswain_api::quantity::Quantity;
use std::collections::{BTreeMap, BTreeSet};

/// What a container is checked against.
pub(super) struct Pod<'a> {
    pub volumes: &'a Volumes<'a>,
    pub claims: &'a BTreeSet<&'a str>,
    pub grace_period: Option<i64>,
    pub restart_policy: &'a str,
    /// The pod shares the users of its host.
    pub host_users: bool,
    pub options: &'a Options,
}

pub(super) fn containers(list: &View<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    if list.is_empty() {
        errors.push(Error::required(list.path(), ""));
        return;
    }
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for container in list.items() {
        common(&container, pod, errors);
        let name = container.child("name");
        if !names.insert(name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        }
        running(&container, pod, errors);
        restart_policy(&container, errors);
    }
    let mut ports = BTreeSet::new();
    for container in list.items() {
        host_ports(&container, &mut ports, errors);
    }
}

/// What only containers that keep running may have.
fn running(container: &View<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    lifecycle(&container.child("lifecycle"), pod.grace_period, errors);
    probe(&container.child("livenessProbe"), ProbeKind::Liveness, pod.grace_period, errors);
    probe(&container.child("readinessProbe"), ProbeKind::Readiness, pod.grace_period, errors);
    probe(&container.child("startupProbe"), ProbeKind::Startup, pod.grace_period, errors);
}

pub(super) fn init_containers(list: &View<'_>, regular: &View<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let mut names: BTreeSet<&str> = regular.items().map(|c| c.child("name").str()).collect();
    for container in list.items() {
        common(&container, pod, errors);
        restart_policy(&container, errors);
        let name = container.child("name");
        if names.contains(name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        } else if !name.str().is_empty() {
            names.insert(name.str());
        }
        // Init containers run one after the other: ports conflict only within one. The path is that of the first, as
        // upstream checks each as a list of its own.
        let alone = View::new(container.value(), list.path().index(0));
        host_ports(&alone, &mut BTreeSet::new(), errors);
        if container.child("restartPolicy").str() == "Always" {
            running(&container, pod, errors);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            let field = container.child(field);
            if field.exists() {
                let why = "may not be set for init containers without restartPolicy=Always";
                errors.push(Error::forbidden(field.path(), why));
            }
        }
    }
}

/// A container's own restart policy and its rules.
fn restart_policy(container: &View<'_>, errors: &mut ErrorList) {
    const RULES_MAX: usize = 20;
    const CODES_MAX: usize = 255;
    let (policy, rules) = (container.child("restartPolicy"), container.child("restartPolicyRules"));
    if policy.exists() {
        checks::supported_value(&policy, &["Always", "Never", "OnFailure"], errors);
    } else if !rules.is_empty() {
        errors.push(Error::required(policy.path(), "must specify restartPolicy when restart rules are used"));
    }
    if rules.len() > RULES_MAX {
        errors.push(Error::too_many(rules.path(), rules.len(), RULES_MAX as i64));
    }
    for rule in rules.items() {
        checks::supported_value(&rule.child("action"), &["Restart", "RestartAllContainers"], errors);
        let codes = rule.child("exitCodes");
        if !codes.exists() {
            errors.push(Error::required(codes.path(), "must be specified"));
            continue;
        }
        checks::supported_value(&codes.child("operator"), &["In", "NotIn"], errors);
        let values = codes.child("values");
        if values.len() > CODES_MAX {
            errors.push(Error::too_many(values.path(), values.len(), CODES_MAX as i64));
        }
    }
}

/// The fields that an ephemeral container may have.
const EPHEMERAL_FIELDS: &[&str] = &[
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "envFrom",
    "env",
    "volumeMounts",
    "volumeDevices",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
    "targetContainerName",
];

/// All fields of a container in upstream's order, in which what is forbidden is reported.
const CONTAINER_FIELDS: &[&str] = &[
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];

pub(super) fn ephemeral_containers(
    list: &View<'_>,
    regular: &View<'_>,
    init: &View<'_>,
    pod: &Pod<'_>,
    errors: &mut ErrorList,
) {
    let others: BTreeSet<&str> = regular.items().chain(init.items()).map(|c| c.child("name").str()).collect();
    let mut names = others.clone();
    for container in list.items() {
        common(&container, pod, errors);
        image_whitespace(&container, errors);
        let name = container.child("name");
        if !names.insert(name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        }
        let target = container.child("targetContainerName");
        if !target.str().is_empty() && !others.contains(target.str()) {
            errors.push(Error::not_found(target.path(), target.str()));
        }
        for name in CONTAINER_FIELDS.iter().filter(|f| !EPHEMERAL_FIELDS.contains(f)) {
            let field = container.child(name);
            // An empty struct is an absent one, but for what is a pointer.
            let set = field.value().is_some_and(|v| !v.as_object().is_some_and(|m| m.is_empty()));
            if set || *name == "lifecycle" && field.exists() {
                errors.push(Error::forbidden(field.path(), "cannot be set for an Ephemeral Container"));
            }
        }
        for mount in container.child("volumeMounts").items() {
            for field in ["subPath", "subPathExpr"] {
                let field = mount.child(field);
                if !field.str().is_empty() {
                    errors.push(Error::forbidden(field.path(), "cannot be set for an Ephemeral Container"));
                }
            }
        }
    }
}

/// Pods refuse what templates let through.
pub fn image_whitespace(container: &View<'_>, errors: &mut ErrorList) {
    let image = container.child("image");
    if image.str().trim() != image.str() {
        errors.push(Error::invalid(image.path(), image.str(), "must not have leading or trailing whitespace"));
    }
}

fn common(container: &View<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let name = container.child("name");
    if name.str().is_empty() {
        errors.push(Error::required(name.path(), ""));
    } else {
        checks::dns_label(&name, errors);
    }
    checks::required(&container.child("image"), errors);
    checks::one_of(&container.child("terminationMessagePolicy"), &["File", "FallbackToLogsOnError"], errors);
    ports(&container.child("ports"), errors);
    environment(&container.child("env"), errors);
    environment_sources(&container.child("envFrom"), errors);
    volume_mounts(container, pod, errors);
    volume_devices(container, pod, errors);
    pull_policy(&container.child("imagePullPolicy"), errors);
    resources::validate(&container.child("resources"), pod.claims, pod.options, errors);
    resize_policy(&container.child("resizePolicy"), pod.restart_policy, errors);
    security::container(&container.child("securityContext"), pod.host_users, errors);
}

pub(super) fn pull_policy(policy: &View<'_>, errors: &mut ErrorList) {
    checks::one_of(policy, &["Always", "IfNotPresent", "Never"], errors);
}

fn ports(ports: &View<'_>, errors: &mut ErrorList) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for port in ports.items() {
        let name = port.child("name");
        if !name.str().is_empty() {
            let wrong = names::port_name(name.str());
            if !wrong.is_empty() {
                checks::all(&name, wrong, errors);
            } else if !seen.insert(name.str()) {
                errors.push(Error::duplicate(name.path(), name.str()));
            }
        }
        let number = port.child("containerPort");
        if number.i64() == 0 {
            errors.push(Error::required(number.path(), ""));
        } else {
            port_number(&number, errors);
        }
        let host = port.child("hostPort");
        if host.i64() != 0 {
            port_number(&host, errors);
        }
        checks::one_of(&port.child("protocol"), &["SCTP", "TCP", "UDP"], errors);
    }
}

pub(super) fn port_number(port: &View<'_>, errors: &mut ErrorList) {
    for why in names::port_number(port.i64()) {
        errors.push(Error::invalid(port.path(), port.i64(), why));
    }
}

fn host_ports(container: &View<'_>, taken: &mut BTreeSet<String>, errors: &mut ErrorList) {
    for port in container.child("ports").items() {
        let host = port.child("hostPort");
        if host.i64() == 0 {
            continue;
        }
        let key = format!("{}/{}/{}", port.child("protocol").str(), port.child("hostIP").str(), host.i64());
        if taken.contains(&key) {
            errors.push(Error::duplicate(host.path(), &key));
        } else {
            taken.insert(key);
        }
    }
}

fn environment(variables: &View<'_>, errors: &mut ErrorList) {
    for variable in variables.items() {
        let name = variable.child("name");
        if name.str().is_empty() {
            errors.push(Error::required(name.path(), ""));
        } else {
            checks::all(&name, names::relaxed_env_var_name(name.str()), errors);
        }
        value_from(&variable, errors);
    }
}

/// Fields of a pod that its environment can show, sorted.
const ENVIRONMENT_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn value_from(variable: &View<'_>, errors: &mut ErrorList) {
    let from = variable.child("valueFrom");
    if !from.exists() {
        return;
    }
    let mut sources = 0;
    let mut source = |name: &'static str| {
        let view = from.child(name);
        sources += usize::from(view.exists());
        Some(view).filter(View::exists)
    };
    if let Some(reference) = source("fieldRef") {
        field_reference(&reference, ENVIRONMENT_FIELDS, errors);
    }
    if let Some(reference) = source("resourceFieldRef") {
        resource_reference(&reference, false, errors);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(reference) = source(key) {
            checks::dns_subdomain(&reference.child("name"), errors);
            let key = reference.child("key");
            if key.str().is_empty() {
                errors.push(Error::required(key.path(), ""));
            } else {
                checks::all(&key, names::config_map_key(key.str()), errors);
            }
        }
    }
    if let Some(reference) = source("fileKeyRef") {
        file_reference(&reference, errors);
    }
    let mut wrong = |why: &str| errors.push(Error::invalid(from.path(), "", why));
    if sources == 0 {
        wrong("must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`");
    } else if !variable.child("value").str().is_empty() {
        wrong("may not be specified when `value` is not empty");
    } else if sources > 1 {
        wrong("may not have more than one field specified at a time");
    }
}

fn file_reference(reference: &View<'_>, errors: &mut ErrorList) {
    let (key, path, volume) = (reference.child("key"), reference.child("path"), reference.child("volumeName"));
    if key.str().is_empty() {
        errors.push(Error::required(key.path(), ""));
    } else {
        checks::all(&key, names::relaxed_env_var_name(key.str()), errors);
    }
    if volume.str().is_empty() {
        errors.push(Error::required(volume.path(), ""));
    } else {
        checks::dns_label(&volume, errors);
    }
    if path.str().is_empty() {
        errors.push(Error::required(path.path(), ""));
    } else {
        checks::local_path(&path, path.path(), errors);
    }
}

/// A reference to a field of the pod, which must be one of `fields` or a single label or annotation.
pub(super) fn field_reference(reference: &View<'_>, fields: &[&str], errors: &mut ErrorList) {
    let (version, path) = (reference.child("apiVersion"), reference.child("fieldPath"));
    if version.str().is_empty() {
        errors.push(Error::required(version.path(), ""));
        return;
    }
    if path.str().is_empty() {
        errors.push(Error::required(path.path(), ""));
        return;
    }
    let unknown = |why: String| Error::invalid(path.path(), path.str(), format!("error converting fieldPath: {why}"));
    if version.str() != "v1" {
        errors.push(unknown(format!("unsupported pod version: {}", version.str())));
        return;
    }
    let subscript = path.str().strip_suffix("']").and_then(|p| p.split_once("['"));
    if let Some((base, subscript)) = subscript {
        match base {
            "metadata.annotations" | "metadata.labels" => {
                let name = if base == "metadata.annotations" { subscript.to_lowercase() } else { subscript.to_owned() };
                for why in names::qualified_name(&name) {
                    errors.push(Error::invalid(reference.path(), &name, why));
                }
            }
            _ => errors.push(unknown(format!("field label does not support subscript: {}", path.str()))),
        }
        return;
    }
    const KNOWN: &[&str] = &[
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
        "spec.host",
    ];
    if !KNOWN.contains(&path.str()) {
        errors.push(unknown(format!("field label not supported: {}", path.str())));
        return;
    }
    // The old name of the field with the node's name.
    let field = if path.str() == "spec.host" { "spec.nodeName" } else { path.str() };
    if !fields.contains(&field) {
        errors.push(Error::not_supported(path.path(), field, fields));
    }
}

const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// A reference to an amount of a container.
pub(super) fn resource_reference(reference: &View<'_>, in_volume: bool, errors: &mut ErrorList) {
    let (container, resource) = (reference.child("containerName"), reference.child("resource"));
    let name = resource.str();
    let huge_pages = name.starts_with("limits.hugepages-") || name.starts_with("requests.hugepages-");
    if in_volume && container.str().is_empty() {
        errors.push(Error::required(container.path(), ""));
    } else if name.is_empty() {
        errors.push(Error::required(resource.path(), ""));
    } else if !RESOURCE_FIELDS.contains(&name) && !huge_pages {
        errors.push(Error::not_supported(resource.path(), name, RESOURCE_FIELDS));
    }
    let divisor = reference.child("divisor");
    let Some(quantity) = Quantity::parse(divisor.str()).ok().filter(|q| !q.is_zero()) else { return };
    const BYTES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let text = quantity.to_string();
    let (allowed, what): (&[&str], &str) = match name {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "cpu"),
        "limits.memory" | "requests.memory" => (BYTES, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (BYTES, "local ephemeral storage"),
        _ if huge_pages => (BYTES, "hugepages"),
        _ => return,
    };
    if !allowed.contains(&text.as_str()) {
        let list = if what == "cpu" { "1m and 1".to_owned() } else { allowed.join(", ") };
        let why = format!("only divisor's values {list} are supported with the {what} resource");
        errors.push(Error::invalid(divisor.path(), name, why));
    }
}

fn environment_sources(sources: &View<'_>, errors: &mut ErrorList) {
    for source in sources.items() {
        let prefix = source.child("prefix");
        if !prefix.str().is_empty() {
            checks::all(&prefix, names::relaxed_env_var_name(prefix.str()), errors);
        }
        let mut count = 0;
        for reference in ["configMapRef", "secretRef"] {
            let reference = source.child(reference);
            if reference.exists() {
                count += 1;
                let name = reference.child("name");
                if name.str().is_empty() {
                    errors.push(Error::required(name.path(), ""));
                } else {
                    checks::all(&name, names::dns1123_subdomain(name.str(), true), errors);
                }
            }
        }
        match count {
            0 => {
                let why = "must specify one of: `configMapRef` or `secretRef`";
                errors.push(Error::invalid(sources.path(), "", why));
            }
            1 => {}
            _ => {
                let why = "may not have more than one field specified at a time";
                errors.push(Error::invalid(sources.path(), "", why));
            }
        }
    }
}

fn volume_mounts(container: &View<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let list = container.child("volumeMounts");
    let devices: BTreeMap<&str, &str> = container
        .child("volumeDevices")
        .items()
        .map(|d| (d.child("name").str(), d.child("devicePath").str()))
        .collect();
    let mut paths: BTreeSet<&str> = BTreeSet::new();
    for mount in list.items() {
        let (name, path) = (mount.child("name"), mount.child("mountPath"));
        checks::required(&name, errors);
        let volume = pod.volumes.get(name.str());
        if volume.is_none() {
            errors.push(Error::not_found(name.path(), name.str()));
        }
        checks::required(&path, errors);
        if !paths.insert(path.str()) {
            errors.push(Error::invalid(path.path(), path.str(), "must be unique"));
        }
        if devices.contains_key(name.str()) {
            errors.push(Error::invalid(name.path(), name.str(), "must not already exist in volumeDevices"));
        }
        if devices.values().any(|d| *d == path.str()) {
            errors.push(Error::invalid(path.path(), path.str(), "must not already exist as a path in volumeDevices"));
        }
        let (sub, expression) = (mount.child("subPath"), mount.child("subPathExpr"));
        // The paths of these errors lack the index, as upstream's do.
        if !sub.str().is_empty() {
            checks::descending_path(&sub, &list.path().child("subPath"), errors);
        }
        if !expression.str().is_empty() {
            if !sub.str().is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                errors.push(Error::invalid(expression.path(), expression.str(), why));
            }
            checks::descending_path(&expression, &list.path().child("subPathExpr"), errors);
        }
        mount_propagation(&mount, container, &list.path().child("mountPropagation"), errors);
        recursive_read_only(&mount, &list.path().child("recursiveReadOnly"), errors);
    }
}

fn mount_propagation(mount: &View<'_>, container: &View<'_>, at: &Path, errors: &mut ErrorList) {
    let mode = mount.child("mountPropagation");
    if !mode.exists() {
        return;
    }
    const MODES: &[&str] = &["Bidirectional", "HostToContainer", "None"];
    if !MODES.contains(&mode.str()) {
        errors.push(Error::not_supported(at, mode.str(), MODES));
    }
    if mode.str() == "Bidirectional" && !container.child("securityContext").child("privileged").bool() {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(Error::forbidden(at, why));
    }
}

fn recursive_read_only(mount: &View<'_>, at: &Path, errors: &mut ErrorList) {
    let mode = mount.child("recursiveReadOnly");
    match mode.opt_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.child("readOnly").bool() {
                errors.push(Error::forbidden(at, "may only be specified when readOnly is true"));
            }
            if mount.child("mountPropagation").opt_str().is_some_and(|p| p != "None") {
                let why = "may only be specified when mountPropagation is None or not specified";
                errors.push(Error::forbidden(at, why));
            }
        }
        Some(other) => errors.push(Error::not_supported(at, other, &["Disabled", "Enabled", "IfPossible"])),
    }
}

fn volume_devices(container: &View<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let mounts: BTreeMap<&str, &str> =
        container.child("volumeMounts").items().map(|m| (m.child("name").str(), m.child("mountPath").str())).collect();
    let (mut names, mut paths): (BTreeSet<&str>, BTreeSet<&str>) = Default::default();
    for device in container.child("volumeDevices").items() {
        let (name, path) = (device.child("name"), device.child("devicePath"));
        checks::required(&name, errors);
        if names.contains(name.str()) {
            errors.push(Error::invalid(name.path(), name.str(), "must be unique"));
        }
        match pod.volumes.get(name.str()) {
            None => errors.push(Error::not_found(name.path(), name.str())),
            Some(volume) if !is_claim(volume) => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(Error::invalid(name.path(), name.str(), why));
            }
            Some(_) => {}
        }
        checks::required(&path, errors);
        if paths.contains(path.str()) {
            errors.push(Error::invalid(path.path(), path.str(), "must be unique"));
        }
        if path.str().split('/').any(|p| p == "..") {
            errors.push(Error::invalid(path.path(), path.str(), "can not contain backsteps ('..')"));
        } else {
            paths.insert(path.str());
        }
        if mounts.contains_key(name.str()) {
            errors.push(Error::invalid(name.path(), name.str(), "must not already exist in volumeMounts"));
        }
        if mounts.values().any(|m| *m == path.str()) {
            errors.push(Error::invalid(path.path(), path.str(), "must not already exist as a path in volumeMounts"));
        }
        if !name.str().is_empty() {
            names.insert(name.str());
        }
    }
}

fn is_claim(volume: &Value) -> bool {
    ["persistentVolumeClaim", "ephemeral"].iter().any(|s| volume.get(*s).is_some_and(|v| !v.is_null()))
}

fn resize_policy(policies: &View<'_>, pod_restart_policy: &str, errors: &mut ErrorList) {
    let at = policies.path();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for policy in policies.items() {
        let (resource, restart) = (policy.child("resourceName").str(), policy.child("restartPolicy").str());
        if !seen.insert(resource) {
            errors.push(Error::duplicate(policy.path(), resource));
        }
        let mut one_of = |value: &str, supported: &[&str]| match value {
            "" => errors.push(Error::required(at, "")),
            v if !supported.contains(&v) => errors.push(Error::not_supported(at, v, supported)),
            _ => {}
        };
        one_of(resource, &["cpu", "memory"]);
        one_of(restart, &["NotRequired", "RestartContainer"]);
        if pod_restart_policy == "Never" && restart != "NotRequired" {
            errors.push(Error::invalid(at, restart, "must be 'NotRequired' when `restartPolicy` is 'Never'"));
        }
    }
}
