//! What is allowed but unwise in a pod (upstream: `pkg/api/pod/warnings.go`).

use super::security::{APP_ARMOR_ANNOTATION, SECCOMP_POD_KEY, seccomp_container_key};
use super::spec::all_containers;
use coxswain_api::Value;
use coxswain_api::field::{Path, View, go_quote};
use coxswain_api::quantity::Quantity;
use std::collections::BTreeMap;

/// Of a pod. Pods are told about AppArmor annotations where these are turned into fields.
pub fn for_pod(pod: &Value) -> Vec<String> {
    warnings(&View::root(pod), false)
}

/// Of a template at its path in the owner.
pub fn for_template(template: &View<'_>) -> Vec<String> {
    if template.exists() { warnings(template, true) } else { Vec::new() }
}

/// What to use instead of labels of nodes that are gone.
fn deprecated_label(label: &str) -> Option<&'static str> {
    Some(match label {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        _ => return None,
    })
}

/// Warnings about the terms of a node selector.
pub fn node_selector_term(term: &View<'_>, out: &mut Vec<String>) {
    for expression in term.child("matchExpressions").items() {
        let key = expression.child("key");
        if let Some(message) = deprecated_label(key.str()) {
            out.push(format!("{}: {} is {message}", key.path(), key.str()));
        }
    }
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn warnings(owner: &View<'_>, is_template: bool) -> Vec<String> {
    let (spec, annotations) = (owner.child("spec"), owner.child("metadata").child("annotations"));
    let mut out = Vec::new();
    placement(&spec, &mut out);
    for (key, message) in [
        (
            "scheduler.alpha.kubernetes.io/critical-pod",
            "non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ),
        ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
        ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ] {
        if annotations.child_named(key).exists() {
            out.push(format!("{}: {message}", annotations.path().key(key)));
        }
    }
    volumes(&spec, &mut out);
    duplicates(&spec, &mut out);
    for name in ["memory", "ephemeral-storage"] {
        fractional(&spec.child("overhead"), name, &mut out);
    }
    const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    let pod_context = spec.child("securityContext");
    if !pod_context.child("seccompProfile").exists() && annotations.child_named(SECCOMP_POD_KEY).exists() {
        out.push(format!("{}: {SECCOMP}", annotations.path().key(SECCOMP_POD_KEY)));
    }
    for container in all_containers(&spec) {
        let (name, context) = (container.child("name").str(), container.child("securityContext"));
        let key = seccomp_container_key(name);
        if !context.child("seccompProfile").exists() && annotations.child_named(&key).exists() {
            out.push(format!("{}: {SECCOMP}", annotations.path().key(&key)));
        }
        let key = format!("{APP_ARMOR_ANNOTATION}{name}");
        let has_field = pod_context.child("appArmorProfile").exists() || context.child("appArmorProfile").exists();
        if is_template && !has_field && annotations.child_named(&key).exists() {
            let message = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
            out.push(format!("{}: {message}", annotations.path().key(&key)));
        }
        for resource in ["memory", "ephemeral-storage"] {
            for list in ["limits", "requests"] {
                fractional(&container.child("resources").child(list), resource, &mut out);
            }
        }
        environment(&container, &mut out);
    }
    ports(&spec, &mut out);
    let grace = spec.child("terminationGracePeriodSeconds");
    if grace.i64() < 0 {
        let message = "must be >= 0; negative values are invalid and will be treated as 1";
        out.push(format!("{}: {message}", grace.path()));
    }
    null_selectors(&spec, &mut out);
    out
}

fn placement(spec: &View<'_>, out: &mut Vec<String>) {
    for (key, value) in spec.child("nodeSelector").entries() {
        if let Some(message) = deprecated_label(key) {
            out.push(format!("{}: {message}", value.path()));
        }
    }
    let affinity = spec.child("affinity").child("nodeAffinity");
    for term in affinity.child(REQUIRED).child("nodeSelectorTerms").items() {
        node_selector_term(&term, out);
    }
    for term in affinity.child(PREFERRED).items() {
        node_selector_term(&term.child("preference"), out);
    }
    for constraint in spec.child("topologySpreadConstraints").items() {
        let key = constraint.child("topologyKey");
        if let Some(message) = deprecated_label(key.str()) {
            out.push(format!("{}: {} is {message}", key.path(), key.str()));
        }
        null_selector(&constraint.child("labelSelector"), out);
    }
}

fn null_selector(selector: &View<'_>, out: &mut Vec<String>) {
    if !selector.exists() {
        out.push(format!("{}: a null labelSelector results in matching no pod", selector.path()));
    }
}

fn null_selectors(spec: &View<'_>, out: &mut Vec<String>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let kind = spec.child("affinity").child(kind);
        for term in kind.child(REQUIRED).items() {
            null_selector(&term.child("labelSelector"), out);
        }
        for term in kind.child(PREFERRED).items() {
            null_selector(&term.child("podAffinityTerm").child("labelSelector"), out);
        }
    }
}

fn volumes(spec: &View<'_>, out: &mut Vec<String>) {
    const GONE: &[(&str, &str, &str)] = &[
        ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
        ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
        ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
        ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
        ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
        ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ];
    for volume in spec.child("volumes").items() {
        for (field, reported, message) in GONE {
            if volume.child(field).exists() {
                out.push(format!("{}: {message}", volume.path().child(reported)));
            }
        }
        claim_spec(&volume.child("ephemeral").child("volumeClaimTemplate").child("spec"), out);
    }
    let mut tokens: Vec<&str> = Vec::new();
    for source in spec.child("volumes").items().flat_map(|v| projections(&v).items()) {
        let token = source.child("serviceAccountToken");
        if token.exists() {
            tokens.push(token.child("path").str());
        }
    }
    if tokens.is_empty() {
        return;
    }
    let mut same = |at: Path, path: &str| {
        if tokens.contains(&path) {
            out.push(format!("{at}: has duplicated path with ServiceAccountToken {}", go_quote(path)));
        }
    };
    for volume in spec.child("volumes").items() {
        // The paths are upstream's: they leave out which source it is.
        let at = volume.path().child("projected").child("sources");
        for source in projections(&volume).items() {
            for (kind, reported) in [("configMap", "configMap"), ("secret", "secrets"), ("downwardAPI", "downwardAPI")]
            {
                for (i, item) in source.child(kind).child("items").items().enumerate() {
                    same(at.child(reported).index(i), item.child("path").str());
                }
            }
            let bundle = source.child("clusterTrustBundle");
            if bundle.exists() {
                same(at.child("ClusterTrustBundle"), bundle.child("path").str());
            }
        }
    }
}

/// Warnings about the spec of a claim.
pub fn claim_spec(spec: &View<'_>, out: &mut Vec<String>) {
    for list in ["requests", "limits"] {
        fractional(&spec.child("resources").child(list), "storage", out);
    }
}

fn projections<'a>(volume: &View<'a>) -> View<'a> {
    volume.child("projected").child("sources")
}

fn duplicates(spec: &View<'_>, out: &mut Vec<String>) {
    for (list, field) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let mut seen: Vec<&str> = Vec::new();
        for item in spec.child(list).items() {
            let field_view = item.child(field);
            if seen.contains(&field_view.str()) {
                out.push(format!("{}: duplicate {field} {}", field_view.path(), go_quote(field_view.str())));
            } else {
                seen.push(field_view.str());
            }
        }
    }
    for secret in spec.child("imagePullSecrets").items() {
        let name = secret.child("name");
        if name.str().is_empty() {
            out.push(format!("{}: invalid empty name {}", name.path(), go_quote("")));
        }
    }
}

/// Bytes do not come in parts.
fn fractional(list: &View<'_>, name: &str, out: &mut Vec<String>) {
    let amount = list.child_named(name);
    if Quantity::parse(amount.str()).is_ok_and(|q| q.milli_value() % 1000 != 0) {
        let message = format!("fractional byte value {} is invalid, must be an integer", go_quote(amount.str()));
        out.push(format!("{}: {message}", list.path().key(name)));
    }
}

fn environment(container: &View<'_>, out: &mut Vec<String>) {
    let mut seen: Vec<&str> = Vec::new();
    for variable in container.child("env").items() {
        let (name, value) = (variable.child("name").str(), variable.child("value").str());
        if !seen.contains(&name) {
            seen.push(name);
            continue;
        }
        // A value that builds on the one before hides nothing.
        let reference = format!("$({name})");
        if variable.child("valueFrom").exists() || value == reference || !value.contains(&reference) {
            let message =
                format!("hides previous definition of {}, which may be dropped when using apply", go_quote(name));
            out.push(format!("{}: {message}", variable.path()));
        }
    }
}

struct Port {
    path: Path,
    host_ip: String,
    host_port: i64,
}

fn ports(spec: &View<'_>, out: &mut Vec<String>) {
    let mut all: BTreeMap<(i64, String), Vec<Port>> = BTreeMap::new();
    for port in all_containers(spec).flat_map(|c| c.child("ports").items()) {
        let (host_ip, host_port) = (port.child("hostIP").str(), port.child("hostPort").i64());
        let (number, protocol) = (port.child("containerPort").i64(), port.child("protocol").str());
        if !host_ip.is_empty() && host_port == 0 {
            out.push(format!(
                "{}: hostIP set without hostPort: {{Name:{} HostPort:{host_port} ContainerPort:{number} \
                 Protocol:{protocol} HostIP:{host_ip}}}",
                port.path(),
                port.child("name").str()
            ));
        }
        let others = all.entry((number, protocol.to_owned())).or_default();
        for other in others.iter() {
            let how = if host_ip == other.host_ip && host_port == other.host_port {
                "duplicate port definition with"
            } else if host_port == 0 || other.host_port == 0 {
                "overlapping port definition with"
            } else if host_port == other.host_port && (host_ip.is_empty() != other.host_ip.is_empty()) {
                "dangerously ambiguous port definition with"
            } else {
                continue;
            };
            out.push(format!("{}: {how} {}", port.path(), other.path));
        }
        others.push(Port { path: port.path().clone(), host_ip: host_ip.to_owned(), host_port });
    }
}
