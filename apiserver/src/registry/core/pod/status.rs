//! The status of a pod, as the kubelet reports it (upstream: `ValidatePodStatusUpdate`).

use super::super::pod_spec::Options;
use super::{metadata, put, update};
use crate::registry::checks;
use crate::registry::internal::{POD_IP, dump};
use coxswain_api::field::{Error, ErrorList, Path, View};
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
    for condition in status.child("conditions").items().enumerate().map(|(i, c)| (i, c.child("type"))) {
        let (i, kind) = condition;
        if matches!(kind.str(), "PodScheduled" | "Ready" | "Initialized") {
            continue;
        }
        let path = Path::new("metadata").child("conditions").index(i).child("Type");
        for why in names::qualified_name(kind.str()) {
            errors.push(Error::invalid(&path, kind.str(), why));
        }
    }
    let nominated = status.child("nominatedNodeName");
    if !nominated.is_empty() && nominated.str() != before.child("nominatedNodeName").str() {
        checks::dns_subdomain(&nominated, errors);
        if !new.child("spec").child("nodeName").is_empty() {
            let why = "may not be set on pods that are already bound to a node";
            errors.push(Error::forbidden(nominated.path(), why));
        }
    }
    checks::immutable(&status.child("qosClass"), &before.child("qosClass"), errors);
    let spec = old.child("spec");
    let restart = spec.child("restartPolicy").str();
    let sidecars: BTreeSet<&str> = spec
        .child("initContainers")
        .items()
        .filter(|c| c.child("restartPolicy").str() == "Always")
        .map(|c| c.child("name").str())
        .collect();
    let none = BTreeSet::new();
    for (list, restart, exempt) in [
        ("containerStatuses", restart, &none),
        ("initContainerStatuses", restart, &sidecars),
        ("ephemeralContainerStatuses", "Never", &none),
    ] {
        state_transitions(&status.child(list), &before.child(list), restart, exempt, &spec, errors);
    }
    let claims = new.child("spec").child("resourceClaims");
    claim_statuses(&status.child("resourceClaimStatuses"), &claims, errors);
    addresses(&status, "podIPs", errors);
    host_addresses(&status, errors);
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

/// What has ended stays ended, unless it is to be restarted.
fn state_transitions(
    new: &View<'_>,
    old: &View<'_>,
    restart: &str,
    exempt: &BTreeSet<&str>,
    spec: &View<'_>,
    errors: &mut ErrorList,
) {
    if restart == "Always" {
        return;
    }
    for (i, was) in old.items().enumerate() {
        let (name, ended) = (was.child("name").str(), was.child("state").child("terminated"));
        // A container may have a restart policy of its own, or rules that restart it.
        let own_rule = spec.child("containers").items().chain(spec.child("initContainers").items()).any(|c| {
            c.child("name").str() == name
                && (matches!(c.child("restartPolicy").str(), "Always" | "OnFailure")
                    || !c.child("restartPolicyRules").is_empty())
        });
        let failed = ended.child("exitCode").i64() != 0;
        if !ended.exists() || failed && restart == "OnFailure" || exempt.contains(name) || own_rule {
            continue;
        }
        let revived =
            new.items().any(|s| s.child("name").str() == name && !s.child("state").child("terminated").exists());
        if revived {
            let path = new.path().index(i).child("state");
            errors.push(Error::forbidden(&path, "may not be transitioned to non-terminated state"));
        }
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
            for why in names::dns1123_subdomain(claim.str(), false) {
                errors.push(Error::invalid(name.path(), claim.str(), why));
            }
        }
    }
}

/// At most one address of each family.
fn addresses(status: &View<'_>, list: &'static str, errors: &mut ErrorList) {
    let host = list == "hostIPs";
    let list = status.child(list);
    for entry in list.items() {
        errors.extend(names::ip::check_ip_legacy(entry.path(), entry.child("ip").str(), false, &[]));
    }
    let ips: Vec<&str> = list.items().map(|e| e.child("ip").str()).collect();
    if ips.len() < 2 {
        return;
    }
    let mut repeated = ErrorList::new();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for entry in list.items() {
        if !seen.insert(entry.child("ip").str()) {
            repeated.push(Error::duplicate(entry.path(), dump(&entry, &POD_IP)));
        }
    }
    // Upstream looks for repeated addresses of hosts first, and for those of pods last.
    if host {
        errors.append(&mut repeated);
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
    errors.append(&mut repeated);
}

fn host_addresses(status: &View<'_>, errors: &mut ErrorList) {
    let list = status.child("hostIPs");
    let Some(first) = list.items().next() else { return };
    let ip = first.child("ip");
    if status.child("hostIP").str() != ip.str() {
        errors.push(Error::invalid(ip.path(), ip.str(), "must be equal to `hostIP`"));
    }
    addresses(status, "hostIPs", errors);
}
