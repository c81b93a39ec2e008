//! The environment of containers, and the references that volumes share with it (upstream: `ValidateEnv`,
//! `validateObjectFieldSelector`, `validateContainerResourceFieldSelector`).

use crate::registry::checks;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names;
use coxswain_api::quantity::Quantity;

pub(super) fn environment(variables: &View<'_>, errors: &mut ErrorList) {
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
        checks::no_backsteps(&path, path.path(), errors);
    }
}

/// Files that variables come from lie in volumes that the pod makes itself (upstream: `validateFileKeyRefVolumes`).
pub(super) fn file_volumes(spec: &View<'_>, errors: &mut ErrorList) {
    for variable in super::spec::all_containers(spec).flat_map(|c| c.child("env").items()) {
        let reference = variable.child("valueFrom").child("fileKeyRef");
        if !reference.exists() {
            continue;
        }
        let name = reference.child("volumeName");
        // Of volumes of one name, the last counts.
        match spec.child("volumes").items().filter(|v| v.child("name").str() == name.str()).last() {
            None => errors.push(Error::not_found(name.path(), name.str())),
            Some(volume) if !volume.child("emptyDir").exists() => {
                errors.push(Error::invalid(name.path(), name.str(), "referenced volume must be of type emptyDir"));
            }
            Some(_) => {}
        }
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

pub(super) fn environment_sources(sources: &View<'_>, errors: &mut ErrorList) {
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
