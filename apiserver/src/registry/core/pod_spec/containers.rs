//! Containers of all three kinds: what they share, and what each may not have (upstream: `validateContainers`,
//! `validateInitContainers`, `validateEphemeralContainers`).

use super::environment::{environment, environment_sources};
use super::handlers::{ProbeKind, lifecycle, probe};
use super::mounts::{volume_devices, volume_mounts};
use super::volumes::Volumes;
use super::{Options, resources, security};
use crate::registry::checks;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names;
use std::collections::BTreeSet;

/// What a container is checked against.
pub(super) struct Pod<'a> {
    pub volumes: &'a Volumes<'a>,
    pub claims: &'a BTreeSet<&'a str>,
    pub grace_period: Option<i64>,
    pub restart_policy: &'a str,
    /// The operating system, if the pod says which.
    pub os: &'a str,
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
    lifecycle(&container.child("lifecycle"), pod.grace_period, pod.os, errors);
    probe(&container.child("livenessProbe"), ProbeKind::Liveness, pod.grace_period, errors);
    probe(&container.child("readinessProbe"), ProbeKind::Readiness, pod.grace_period, errors);
    probe(&container.child("startupProbe"), ProbeKind::Startup, pod.grace_period, errors);
}

pub(super) fn init_containers(list: &View<'_>, regular: &View<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let mut names: BTreeSet<&str> = regular.items().map(|c| c.child("name").str()).collect();
    for container in list.items() {
        common(&container, pod, errors);
        // Rules alone make no container restart; more is not said about them then.
        let (restart, rules) = (container.child("restartPolicy"), container.child("restartPolicyRules"));
        if restart.exists() {
            restart_policy(&container, errors);
        } else if !rules.is_empty() {
            errors.push(Error::required(restart.path(), RULES_WITHOUT_POLICY));
        }
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
        let policies = container.child("resizePolicy");
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            let field = container.child(field);
            if field.exists() {
                let why = "may not be set for init containers without restartPolicy=Always";
                errors.push(Error::forbidden(field.path(), why));
            }
        }
        if !pod.options.allow_restarting_init_containers {
            for restart in policies.items().map(|p| p.child("restartPolicy")).filter(|r| r.str() == "RestartContainer")
            {
                let why = "must not be set to 'RestartContainer' for non-sidecar initContainers";
                errors.push(Error::invalid(restart.path(), restart.str(), why));
            }
        }
    }
}

const RULES_WITHOUT_POLICY: &str = "must specify restartPolicy when restart rules are used";

/// A container's own restart policy and its rules.
fn restart_policy(container: &View<'_>, errors: &mut ErrorList) {
    const RULES_MAX: usize = 20;
    const CODES_MAX: usize = 255;
    let (policy, rules) = (container.child("restartPolicy"), container.child("restartPolicyRules"));
    if policy.exists() {
        checks::supported_value(&policy, &["Always", "Never", "OnFailure"], errors);
    } else if !rules.is_empty() {
        errors.push(Error::required(policy.path(), RULES_WITHOUT_POLICY));
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
            errors.push(Error::invalid(at, restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'"));
        }
    }
}
