//! The status of a pod, as the kubelet reports it (upstream: `ValidatePodStatusUpdate`).

use super::super::pod_spec::Options;
use super::{metadata, put, update};
use crate::registry::checks;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, json, names};
use std::collections::{BTreeMap, BTreeSet};

/// The spec has been restored; of the metadata, a status may not touch the owners.
pub(super) fn prepare(object: &mut Value, old: &Value) {
    let meta = metadata::of_mut(object);
    match old.pointer("/metadata/ownerReferences") {
        Some(owners) => meta.insert("ownerReferences".into(), owners.clone()),
        None => meta.remove("ownerReferences"),
    };
    let missing = |v: Option<&Value>| match v {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(other) => other.as_i64() == Some(0),
    };
    if !object.get("status").is_some_and(Value::is_object) {
        object["status"] = Value::Object(Default::default());
    }
    for field in ["qosClass", "observedGeneration"] {
        let was = old.pointer(&format!("/status/{field}"));
        if missing(object["status"].get(field)) && !missing(was) {
            put(&mut object["status"], field, was.cloned());
        }
    }
    // The same for conditions, matched by type in order.
    let mut generations: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let conditions = old.pointer("/status/conditions").and_then(Value::as_array);
    for condition in conditions.into_iter().flatten() {
        let kind = condition.get("type").and_then(Value::as_str).unwrap_or_default();
        let generation = condition.get("observedGeneration").cloned().unwrap_or_default();
        generations.entry(kind.to_owned()).or_default().push(generation);
    }
    let conditions = object["status"].get_mut("conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        let kind = condition.get("type").and_then(Value::as_str).unwrap_or_default();
        let Some(queue) = generations.get_mut(kind).filter(|q| !q.is_empty()) else { continue };
        let was = queue.remove(0);
        if missing(condition.get("observedGeneration")) && !missing(Some(&was)) {
            put(condition, "observedGeneration", Some(was));
        }
    }
}

/// `podIP` is the first of `podIPs`. Where they differ, the single one counts: old kubelets know no other.
pub(super) fn agree_on_addresses(pod: &mut Value) {
    let Some(status) = pod.get_mut("status").filter(|s| s.is_object()) else { return };
    let first = status.pointer("/podIPs/0/ip").and_then(Value::as_str).unwrap_or_default().to_owned();
    let ip = status.get("podIP").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !ip.is_empty() && ip != first {
        status["podIPs"] = json!([{"ip": ip}]);
    } else if ip.is_empty() && !first.is_empty() {
        status["podIP"] = first.into();
    }
}

pub(super) fn validate(new: &View<'_>, old: &View<'_>, options: &Options, errors: &mut ErrorList) {
    update::annotations(new, old, options, errors);
    let (status, before) = (new.child("status"), old.child("status"));
    for condition in status.child("conditions").items() {
        whole_generation(&condition, errors);
        let kind = condition.child("type").str();
        if matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            continue;
        }
        for why in names::qualified_name(kind) {
            errors.push(Error::invalid(&condition.path().child("Type"), kind, why));
        }
    }
    let nominated = status.child("nominatedNodeName");
    if !nominated.is_empty() && nominated.str() != before.child("nominatedNodeName").str() {
        checks::dns_subdomain(&nominated, errors);
        if !old.child("spec").child("nodeName").is_empty() {
            let why = "may not be set on pods that are already bound to a node";
            errors.push(Error::forbidden(nominated.path(), why));
        }
    }
    whole_generation(&status, errors);
    checks::immutable(&status.child("qosClass"), &before.child("qosClass"), errors);
    let spec = old.child("spec");
    for (list, containers) in [
        ("containerStatuses", Some("containers")),
        ("initContainerStatuses", Some("initContainers")),
        ("ephemeralContainerStatuses", None),
    ] {
        state_transitions(&status.child(list), &before.child(list), &spec, containers, errors);
    }
    let claims = new.child("spec").child("resourceClaims");
    claim_statuses(&status.child("resourceClaimStatuses"), &claims, errors);
    addresses(&status, &before, "podIPs", errors);
    host_addresses(&status, &before, errors);
    let spec = new.child("spec");
    let windows = spec.child("os").child("name").str() == "windows";
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        users(&status.child(list), windows, errors);
    }
    for (list, containers) in [("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")] {
        allocated_resources(&status.child(list), &spec.child(containers), errors);
    }
    for status in status.child("ephemeralContainerStatuses").items() {
        let allocated = status.child("allocatedResourcesStatus");
        if !allocated.is_empty() {
            errors.push(Error::forbidden(allocated.path(), "must not be specified in container status"));
        }
    }
}

/// The users that containers run as. The paths leave out the step `user`, as upstream's do.
fn users(statuses: &View<'_>, windows: bool, errors: &mut ErrorList) {
    for status in statuses.items() {
        let user = View::new(status.child("user").child("linux").value(), status.path().child("linux"));
        if !user.exists() {
            continue;
        }
        if windows {
            errors.push(Error::forbidden(user.path(), "cannot be set for a windows pod"));
            continue;
        }
        let groups = user.child("supplementalGroups");
        for id in [user.child("uid"), user.child("gid")].into_iter().chain(groups.items()) {
            for why in names::user_id(id.i64()) {
                errors.push(Error::invalid(id.path(), id.i64(), why));
            }
        }
    }
}

/// The health of what a container has: it asks for it, and every device is there once.
fn allocated_resources(statuses: &View<'_>, containers: &View<'_>, errors: &mut ErrorList) {
    for status in statuses.items() {
        let name = status.child("name").str();
        let container = containers.items().find(|c| c.child("name").str() == name);
        for allocated in status.child("allocatedResourcesStatus").items() {
            let resource = allocated.child("name");
            if let Some(wrong) = container.as_ref().and_then(|c| unrequested(c, resource.str())) {
                errors.push(Error::invalid(resource.path(), resource.str(), wrong));
            }
            let mut seen: BTreeSet<&str> = BTreeSet::new();
            for device in allocated.child("resources").items() {
                checks::supported_value(&device.child("health"), &["Healthy", "Unhealthy", "Unknown"], errors);
                let id = device.child("resourceID");
                if !seen.insert(id.str()) {
                    errors.push(Error::duplicate(id.path(), id.str()));
                }
            }
        }
    }
}

/// What to say if a container does not ask for the resource.
fn unrequested(container: &View<'_>, resource: &str) -> Option<&'static str> {
    let resources = container.child("resources");
    let Some(wanted) = resource.strip_prefix("claim:") else {
        let asked = resources.child("requests").child_named(resource).exists();
        return (!asked).then_some("must match one of the container's resource requests");
    };
    let asked = resources.child("claims").items().any(|claim| match claim.child("request").str() {
        "" => claim.child("name").str() == wanted,
        request => wanted.split_once('/') == Some((claim.child("name").str(), request)),
    });
    (!asked).then_some(
        "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or \
         'claim:<claimName>' if request is empty",
    )
}

fn whole_generation(owner: &View<'_>, errors: &mut ErrorList) {
    let generation = owner.child("observedGeneration");
    if generation.i64() < 0 {
        errors.push(Error::invalid(generation.path(), generation.i64(), "must be a non-negative integer"));
    }
}

/// What has ended stays ended, unless it is to be restarted.
fn state_transitions(
    new: &View<'_>,
    old: &View<'_>,
    spec: &View<'_>,
    containers: Option<&'static str>,
    errors: &mut ErrorList,
) {
    let mut all = spec.child("initContainers").items().chain(spec.child("containers").items());
    let restarts_all =
        all.any(|c| c.child("restartPolicyRules").items().any(|r| r.child("action").str() == "RestartAllContainers"));
    if restarts_all && containers.is_some() {
        return;
    }
    for (i, was) in old.items().enumerate() {
        let (name, ended) = (was.child("name").str(), was.child("state").child("terminated"));
        let revived =
            new.items().any(|s| s.child("name").str() == name && !s.child("state").child("terminated").exists());
        if !ended.exists() || !revived {
            continue;
        }
        let container = containers.and_then(|list| spec.child(list).items().find(|c| c.child("name").str() == name));
        if !container.is_some_and(|c| restarts(&c, spec, ended.child("exitCode").i64())) {
            let path = new.path().index(i).child("state");
            errors.push(Error::forbidden(&path, "may not be transitioned to non-terminated state"));
        }
    }
}

/// Whether a container is started again after it ended with this code (upstream: `ContainerShouldRestart`).
fn restarts(container: &View<'_>, spec: &View<'_>, code: i64) -> bool {
    for rule in container.child("restartPolicyRules").items() {
        let codes = rule.child("exitCodes");
        let listed = codes.child("values").items().any(|v| v.i64() == code);
        let matches = match codes.child("operator").str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if matches {
            return rule.child("action").str() == "Restart";
        }
    }
    let own = container.child("restartPolicy");
    let policy = if own.exists() { own.str() } else { spec.child("restartPolicy").str() };
    match policy {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    }
}

fn claim_statuses(statuses: &View<'_>, claims: &View<'_>, errors: &mut ErrorList) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for status in statuses.items() {
        let name = status.child("name");
        if !claims.items().any(|c| c.child("name").str() == name.str()) {
            let why = "must match the name of an entry in `spec.resourceClaims`";
            errors.push(Error::invalid(name.path(), name.str(), why));
        }
        if !seen.insert(name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        }
        let claim = status.child("resourceClaimName");
        if claim.exists() {
            checks::dns_subdomain(&claim, errors);
        }
    }
}

/// At most one address of each family. What was there before may stay as it is written.
fn addresses(status: &View<'_>, before: &View<'_>, list: &'static str, errors: &mut ErrorList) {
    let known: Vec<&str> = before.child(list).items().map(|e| e.child("ip").str()).collect();
    let list = status.child(list);
    for entry in list.items() {
        errors.extend(names::ip::check_ip_legacy(entry.path(), entry.child("ip").str(), true, &known));
    }
    let ips: Vec<&str> = list.items().map(|e| e.child("ip").str()).collect();
    if ips.len() < 2 {
        return;
    }
    if let Some((i, ip)) = ips.iter().enumerate().find(|(_, ip)| names::parse_ip_sloppy(ip).is_none()) {
        let why = format!("failed to check for dual stack with error:invalid IP[{i}]: {ip}");
        errors.push(Error::internal(list.path(), why));
    }
    let families: BTreeSet<bool> =
        ips.iter().filter_map(|ip| names::parse_ip_sloppy(ip)).map(|ip| ip.ip.is_ipv4()).collect();
    if families.len() != 2 || ips.len() > 2 {
        let why = "may specify no more than one IP for each IP family";
        let shown: Vec<Value> = ips.iter().map(|ip| json!({"IP": ip})).collect();
        errors.push(Error::invalid(list.path(), &Value::Array(shown), why));
    }
}

fn host_addresses(status: &View<'_>, before: &View<'_>, errors: &mut ErrorList) {
    let list = status.child("hostIPs");
    let Some(first) = list.items().next() else { return };
    let ip = first.child("ip");
    if status.child("hostIP").str() != ip.str() {
        errors.push(Error::invalid(ip.path(), ip.str(), "must be equal to `hostIP`"));
    }
    addresses(status, before, "hostIPs", errors);
}
