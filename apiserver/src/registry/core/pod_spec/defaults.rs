//! The defaults of pod specs that depend on other fields (upstream: `pkg/apis/core/v1/defaults.go`).

use super::image;
use super::resources::aggregate_requests;
use coxswain_api::quantity::{Format, Quantity};
use coxswain_api::{Map, Value, json};

fn set_if_absent(map: &mut Value, key: &str, default: impl Into<Value>) {
    let Some(map) = map.as_object_mut() else { return };
    let absent = match map.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        _ => false,
    };
    if absent {
        map.insert(key.to_owned(), default.into());
    }
}

fn set_if_zero(map: &mut Value, key: &str, default: i64) {
    let Some(map) = map.as_object_mut() else { return };
    if map.get(key).and_then(Value::as_i64).unwrap_or_default() == 0 {
        map.insert(key.to_owned(), default.into());
    }
}

fn items<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The defaults of a pod template: only what holds for every pod spec.
pub fn template(template: &mut Value) {
    if let Some(spec) = template.get_mut("spec").filter(|s| s.is_object()) {
        pod_spec(spec);
    }
}

/// Any pod spec (upstream: `SetDefaults_PodSpec` and those of its parts).
pub fn pod_spec(spec: &mut Value) {
    set_if_absent(spec, "dnsPolicy", "ClusterFirst");
    set_if_absent(spec, "restartPolicy", "Always");
    set_if_absent(spec, "securityContext", json!({}));
    set_if_absent(spec, "terminationGracePeriodSeconds", 30);
    set_if_absent(spec, "schedulerName", "default-scheduler");
    // The old name of the field follows the new one, and the other way round where only the old one is given.
    let account = |spec: &Value, key: &str| spec.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (new, old) = (account(spec, "serviceAccountName"), account(spec, "serviceAccount"));
    let name = if new.is_empty() { old } else { new };
    if !name.is_empty() {
        spec["serviceAccountName"] = name.clone().into();
        spec["serviceAccount"] = name.into();
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        items(spec, list).for_each(container);
    }
    items(spec, "volumes").for_each(volume);
    if let Some(overhead) = spec.get_mut("overhead") {
        round_up(overhead);
    }
    if let Some(resources) = spec.get_mut("resources") {
        resource_requirements(resources);
    }
}

fn container(container: &mut Value) {
    pull_policy(container, "image", "imagePullPolicy");
    set_if_absent(container, "terminationMessagePath", "/dev/termination-log");
    set_if_absent(container, "terminationMessagePolicy", "File");
    for port in items(container, "ports") {
        set_if_absent(port, "protocol", "TCP");
    }
    for variable in items(container, "env") {
        if let Some(reference) = variable.pointer_mut("/valueFrom/fieldRef") {
            set_if_absent(reference, "apiVersion", "v1");
        }
        if let Some(reference) = variable.pointer_mut("/valueFrom/fileKeyRef") {
            set_if_absent(reference, "optional", false);
        }
    }
    if let Some(resources) = container.get_mut("resources") {
        resource_requirements(resources);
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|p| p.is_object()) {
            set_if_zero(probe, "timeoutSeconds", 1);
            set_if_zero(probe, "periodSeconds", 10);
            set_if_zero(probe, "successThreshold", 1);
            set_if_zero(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)) {
            handler(hook);
        }
    }
}

/// Only references without a policy are read, which are few: most objects come here with their defaults.
fn pull_policy(holder: &mut Value, reference: &str, policy: &str) {
    if holder.get(policy).and_then(Value::as_str).is_some_and(|given| !given.is_empty()) {
        return;
    }
    let tag = holder.get(reference).and_then(Value::as_str).and_then(image::tag);
    set_if_absent(holder, policy, if tag.as_deref() == Some("latest") { "Always" } else { "IfNotPresent" });
}

fn handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet").filter(|g| g.is_object()) {
        set_if_absent(get, "path", "/");
        set_if_absent(get, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc").and_then(Value::as_object_mut) {
        grpc.entry("service").or_insert_with(|| "".into());
    }
}

fn resource_requirements(resources: &mut Value) {
    for list in ["limits", "requests"] {
        if let Some(list) = resources.get_mut(list) {
            round_up(list);
        }
    }
}

/// Amounts have no parts smaller than a thousandth.
pub fn round_up(list: &mut Value) {
    for amount in list.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
        let Some(mut quantity) = amount.as_str().and_then(|t| Quantity::parse(t).ok()) else { continue };
        if !quantity.round_up(-3) {
            *amount = quantity.to_string().into();
        }
    }
}

/// The sources of a volume, in upstream's order.
pub const VOLUME_SOURCES: [&str; 30] = [
    "hostPath",
    "emptyDir",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "persistentVolumeClaim",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "downwardAPI",
    "fc",
    "azureFile",
    "configMap",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "projected",
    "portworxVolume",
    "scaleIO",
    "storageos",
    "csi",
    "ephemeral",
    "image",
];

fn volume(volume: &mut Value) {
    if !volume.is_object() {
        return;
    }
    if !VOLUME_SOURCES.iter().any(|s| volume.get(*s).is_some_and(|v| !v.is_null())) {
        volume["emptyDir"] = json!({});
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source).filter(|s| s.is_object()) {
            set_if_absent(source, "defaultMode", 0o644);
            downward_items(source);
        }
    }
    for source in volume.get_mut("projected").into_iter().flat_map(|p| items(p, "sources")) {
        if let Some(token) = source.get_mut("serviceAccountToken").filter(|t| t.is_object()) {
            set_if_absent(token, "expirationSeconds", 3600);
        }
        if let Some(downward) = source.get_mut("downwardAPI") {
            downward_items(downward);
        }
    }
    if let Some(path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
        path.entry("type").or_insert_with(|| "".into());
    }
    if let Some(claim) = volume.pointer_mut("/ephemeral/volumeClaimTemplate/spec").filter(|s| s.is_object()) {
        set_if_absent(claim, "volumeMode", "Filesystem");
        if let Some(resources) = claim.get_mut("resources") {
            resource_requirements(resources);
        }
    }
    if let Some(image) = volume.get_mut("image").filter(|i| i.is_object()) {
        pull_policy(image, "reference", "pullPolicy");
    }
    let given = |key: &str, field: &str, default: Value| (key.to_owned(), field.to_owned(), default);
    for (source, field, default) in [
        given("iscsi", "iscsiInterface", "default".into()),
        given("rbd", "pool", "rbd".into()),
        given("rbd", "user", "admin".into()),
        given("rbd", "keyring", "/etc/ceph/keyring".into()),
        given("azureDisk", "cachingMode", "ReadWrite".into()),
        given("azureDisk", "kind", "Shared".into()),
        given("azureDisk", "fsType", "ext4".into()),
        given("azureDisk", "readOnly", false.into()),
        given("scaleIO", "storageMode", "ThinProvisioned".into()),
        given("scaleIO", "fsType", "xfs".into()),
    ] {
        if let Some(source) = volume.get_mut(&source).filter(|s| s.is_object()) {
            set_if_absent(source, &field, default);
        }
    }
}

fn downward_items(source: &mut Value) {
    for item in items(source, "items") {
        if let Some(reference) = item.get_mut("fieldRef").filter(|r| r.is_object()) {
            set_if_absent(reference, "apiVersion", "v1");
        }
    }
}

/// A whole Pod: what a template leaves open (upstream: `SetDefaults_Pod`).
pub fn pod(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").filter(|s| s.is_object()) else { return };
    pod_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() else {
                continue;
            };
            let requests = requests_of(&mut container["resources"]);
            for (name, limit) in limits {
                requests.entry(name).or_insert(limit);
            }
            if requests.is_empty() {
                container["resources"].as_object_mut().map(|r| r.remove("requests"));
            }
        }
    }
    pod_level_resources(spec);
    set_if_absent(spec, "enableServiceLinks", true);
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for list in ["containers", "initContainers"] {
            for port in items(spec, list).flat_map(|c| items(c, "ports")) {
                if port.get("hostPort").and_then(Value::as_i64).unwrap_or_default() == 0
                    && let Some(number) = port.get("containerPort").cloned()
                {
                    port["hostPort"] = number;
                }
            }
        }
    }
}

fn requests_of(resources: &mut Value) -> &mut Map<String, Value> {
    if !resources["requests"].is_object() {
        resources["requests"] = json!({});
    }
    resources["requests"].as_object_mut().expect("requests were made an object just above")
}

/// Whether a resource can be stated for the pod as a whole.
pub fn supported_for_pod(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// Where a pod states some of its own resources, the others follow from its containers.
fn pod_level_resources(spec: &mut Value) {
    if !spec.get("resources").is_some_and(Value::is_object) {
        return;
    }
    let stated = |spec: &Value, list: &str| spec["resources"].get(list).and_then(Value::as_object).cloned();
    let containers = |spec: &Value, list: &str| -> Vec<Value> {
        spec.get(list).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    // Huge pages: the limit of the pod is the sum of its containers', for nothing can be borrowed.
    if stated(spec, "limits").is_some_and(|l| !l.is_empty()) || stated(spec, "requests").is_some_and(|r| !r.is_empty())
    {
        let mut limits = stated(spec, "limits").unwrap_or_default();
        for (name, amount) in super::resources::aggregate(spec, "limits") {
            if name.starts_with("hugepages-") && !limits.contains_key(&name) {
                limits.insert(name, amount.to_string().into());
            }
        }
        if !limits.is_empty() {
            spec["resources"]["limits"] = limits.into();
        }
    }
    let limits = stated(spec, "limits").unwrap_or_default();
    if !limits.is_empty() {
        let aggregate = aggregate_requests(spec);
        let requests = requests_of(&mut spec["resources"]);
        for (name, amount) in aggregate {
            if supported_for_pod(&name) && !name.starts_with("hugepages-") && !requests.contains_key(&name) {
                requests.insert(name, amount.to_string().into());
            }
        }
        for (name, limit) in &limits {
            if supported_for_pod(name) && !requests.contains_key(name) {
                requests.insert(name.clone(), limit.clone());
            }
        }
        if requests.is_empty() {
            spec["resources"].as_object_mut().map(|r| r.remove("requests"));
        }
    }
    // Limits of the pod follow where every container has one.
    if stated(spec, "requests").is_some_and(|r| !r.is_empty()) {
        let mut limits = stated(spec, "limits").unwrap_or_default();
        let all: Vec<Value> =
            containers(spec, "containers").into_iter().chain(containers(spec, "initContainers")).collect();
        let aggregate = super::resources::aggregate(spec, "limits");
        for name in ["cpu", "memory"] {
            let limited = |c: &Value| c.pointer("/resources/limits").and_then(|l| l.get(name)).is_some();
            if !limits.contains_key(name)
                && all.iter().all(limited)
                && let Some((_, amount)) = aggregate.iter().find(|(n, _)| n == name)
            {
                limits.insert(name.to_owned(), amount.to_string().into());
            }
        }
        if !limits.is_empty() {
            spec["resources"]["limits"] = limits.into();
        }
    }
}

/// Zero, in the notation of CPU and memory.
pub(super) fn none() -> Quantity {
    Quantity::new(0, Format::DecimalSi)
}
