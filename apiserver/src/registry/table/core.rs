//! Pods, nodes and the small kinds of the core group.

use super::cells::{
    NONE, UNKNOWN, age, containers, human_duration, int_or_string, labels, name, since, some_of, text_or,
};
use super::{AGE, Col, NAME, Printer, number, text, wide};
use coxswain_api::Value;
use coxswain_api::field::View;
use jiff::Timestamp;
use std::collections::BTreeSet;

#[rustfmt::skip]
pub(super) static PRINTERS: &[Printer] = &[
    Printer { group: "", kind: "ComponentStatus", cells: component_status, columns: &[
        NAME, text("Status", "@core.v1.ComponentCondition.status"), text("Message", "@core.v1.ComponentCondition.message"),
        text("Error", "@core.v1.ComponentCondition.error"),
    ] },
    Printer { group: "", kind: "ConfigMap", cells: config_map, columns: &[NAME, text("Data", "@core.v1.ConfigMap.data"), AGE] },
    Printer { group: "", kind: "Endpoints", cells: endpoints, columns: &[
        NAME, text("Endpoints", "@core.v1.Endpoints.subsets"), AGE,
    ] },
    Printer { group: "", kind: "Event", cells: event, columns: &[
        text("Last Seen", "@core.v1.Event.lastTimestamp"), text("Type", "@core.v1.Event.type"),
        text("Reason", "@core.v1.Event.reason"), text("Object", "@core.v1.Event.involvedObject"),
        wide("Subobject", "@core.v1.ObjectReference.fieldPath"), wide("Source", "@core.v1.Event.source"),
        text("Message", "@core.v1.Event.message"), wide("First Seen", "@core.v1.Event.firstTimestamp"),
        wide("Count", "@core.v1.Event.count"), Col("Name", "string", "name", "@meta.v1.ObjectMeta.name", 1),
    ] },
    Printer { group: "", kind: "Namespace", cells: namespace, columns: &[
        NAME, text("Status", "The status of the namespace"), AGE,
    ] },
    Printer { group: "", kind: "Node", cells: node, columns: &[
        NAME, text("Status", "The status of the node"), text("Roles", "The roles of the node"), AGE,
        text("Version", "@core.v1.NodeSystemInfo.kubeletVersion"),
        wide("Internal-IP", "@core.v1.NodeStatus.addresses"), wide("External-IP", "@core.v1.NodeStatus.addresses"),
        wide("OS-Image", "@core.v1.NodeSystemInfo.osImage"), wide("Kernel-Version", "@core.v1.NodeSystemInfo.kernelVersion"),
        wide("Container-Runtime", "@core.v1.NodeSystemInfo.containerRuntimeVersion"),
    ] },
    Printer { group: "", kind: "Pod", cells: pod, columns: &[
        NAME, text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
        text("Status", "The aggregate status of the containers in this pod."),
        text("Restarts", "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted."),
        AGE, wide("IP", "@core.v1.PodStatus.podIP"), wide("Node", "@core.v1.PodSpec.nodeName"),
        wide("Nominated Node", "@core.v1.PodStatus.nominatedNodeName"), wide("Readiness Gates", "@core.v1.PodSpec.readinessGates"),
    ] },
    Printer { group: "", kind: "PodTemplate", cells: pod_template, columns: &[
        NAME, text("Containers", "Names of each container in the template."),
        text("Images", "Images referenced by each container in the template."),
        text("Pod Labels", "The labels for the pod template."),
    ] },
    Printer { group: "", kind: "ResourceQuota", cells: resource_quota, columns: &[
        NAME, text("Request", "Request represents a minimum amount of cpu/memory that a container may consume."),
        text("Limit", "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node."),
        AGE,
    ] },
    Printer { group: "", kind: "Secret", cells: secret, columns: &[
        NAME, text("Type", "@core.v1.Secret.type"), text("Data", "@core.v1.Secret.data"), AGE,
    ] },
    Printer { group: "", kind: "ServiceAccount", cells: |o, now| vec![name(&o), age(&o, now)], columns: &[NAME, AGE] },
    Printer { group: "autoscaling", kind: "Scale", cells: scale, columns: &[
        text("Name", "@meta.v1.ObjectMeta.name"), number("Desired", "@autoscaling.v1.ScaleSpec.replicas"), number("Available", "@autoscaling.v1.ScaleStatus.replicas"), AGE,
    ] },
];

fn component_status(o: View<'_>, _now: Timestamp) -> Vec<Value> {
    let healthy = o.child("conditions").items().find(|c| c.child("type").str() == "Healthy");
    let Some(condition) = healthy else { return vec![name(&o), "Unknown".into(), "".into(), "".into()] };
    let status = if condition.child("status").str() == "True" { "Healthy" } else { "Unhealthy" };
    vec![name(&o), status.into(), condition.child("message").str().into(), condition.child("error").str().into()]
}

fn config_map(o: View<'_>, now: Timestamp) -> Vec<Value> {
    vec![name(&o), (o.child("data").len() + o.child("binaryData").len()).into(), age(&o, now)]
}

fn secret(o: View<'_>, now: Timestamp) -> Vec<Value> {
    vec![name(&o), o.child("type").str().into(), o.child("data").len().into(), age(&o, now)]
}

fn namespace(o: View<'_>, now: Timestamp) -> Vec<Value> {
    vec![name(&o), o.child("status").child("phase").str().into(), age(&o, now)]
}

fn scale(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let replicas = |of: &'static str| o.child(of).child("replicas").i64().into();
    vec![name(&o), replicas("spec"), replicas("status"), age(&o, now)]
}

fn pod_template(o: View<'_>, _now: Timestamp) -> Vec<Value> {
    let template = o.child("template");
    let [names, images] = containers(&template.child("spec"));
    vec![name(&o), names, images, labels(&template.child("metadata").child("labels")).into()]
}

fn endpoints(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let subsets = o.child("subsets");
    if subsets.is_empty() {
        return vec![name(&o), NONE.into(), age(&o, now)];
    }
    let mut list = Vec::new();
    for subset in subsets.items() {
        let addresses = || subset.child("addresses").items().map(|a| a.child("ip").str());
        if subset.child("ports").is_empty() {
            list.extend(addresses().map(String::from));
        }
        for port in subset.child("ports").items() {
            let port = port.child("port").i64();
            list.extend(
                addresses().map(|ip| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }),
            );
        }
    }
    vec![name(&o), some_of(&list, 3, ",").into(), age(&o, now)]
}

fn event(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let mut first = since(&o.child("firstTimestamp"), now);
    if !o.child("firstTimestamp").exists() {
        first = since(&o.child("eventTime"), now);
    }
    let mut last =
        if o.child("lastTimestamp").exists() { since(&o.child("lastTimestamp"), now) } else { first.clone() };
    let mut count = o.child("count").i64();
    let series = o.child("series");
    if series.exists() {
        last = since(&series.child("lastObservedTime"), now);
        count = series.child("count").i64();
    } else if count == 0 {
        count = 1;
    }
    let involved = o.child("involvedObject");
    let kind = involved.child("kind").str().to_lowercase();
    let target = match involved.child("name").str() {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let either = |a: View<'_>, b: View<'_>| if a.str().is_empty() { b.str().to_owned() } else { a.str().to_owned() };
    let source = o.child("source");
    let mut from = either(source.child("component"), o.child("reportingComponent"));
    let host = either(source.child("host"), o.child("reportingInstance"));
    if !host.is_empty() {
        from = format!("{from}, {host}");
    }
    let text = |field: &'static str| Value::from(o.child(field).str());
    vec![
        last.into(),
        text("type"),
        text("reason"),
        target.into(),
        involved.child("fieldPath").str().into(),
        from.into(),
        o.child("message").str().trim().into(),
        first.into(),
        count.into(),
        name(&o),
    ]
}

fn node(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let status = o.child("status");
    let ready = status.child("conditions").items().filter(|c| c.child("type").str() == "Ready").last();
    let mut state = match ready {
        Some(condition) if condition.child("status").str() == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if o.child("spec").child("unschedulable").bool() {
        state.push_str(",SchedulingDisabled");
    }
    let mut roles = BTreeSet::new();
    for (key, value) in o.child("metadata").child("labels").entries() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => roles.insert(role),
            None if key == "kubernetes.io/role" && !value.is_empty() => roles.insert(value.str()),
            _ => false,
        };
    }
    let roles: Vec<&str> = roles.into_iter().collect();
    let roles = if roles.is_empty() { NONE.to_owned() } else { roles.join(",") };
    let info = status.child("nodeInfo");
    let mut kernel = text_or(&info.child("kernelVersion"), UNKNOWN).as_str().unwrap_or_default().to_owned();
    if !info.child("architecture").is_empty() {
        kernel = format!("{kernel} ({})", info.child("architecture").str());
    }
    let address = |kind: &str| -> Value {
        let found = status.child("addresses").items().find(|a| a.child("type").str() == kind);
        found.map_or(NONE, |a| a.child("address").str()).into()
    };
    vec![
        name(&o),
        state.into(),
        roles.into(),
        age(&o, now),
        info.child("kubeletVersion").str().into(),
        address("InternalIP"),
        address("ExternalIP"),
        text_or(&info.child("osImage"), UNKNOWN),
        kernel.into(),
        text_or(&info.child("containerRuntimeVersion"), UNKNOWN),
    ]
}

fn is_restartable(container: &View<'_>) -> bool {
    container.child("restartPolicy").str() == "Always"
}

/// Why a container ended: its reason, or what is known of its exit.
fn termination(terminated: &View<'_>) -> String {
    match (terminated.child("reason").str(), terminated.child("signal").i64()) {
        ("", 0) => format!("ExitCode:{}", terminated.child("exitCode").i64()),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn pod(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (o.child("spec"), o.child("status"));
    let has_condition = |kind: &str| {
        status.child("conditions").items().any(|c| c.child("type").str() == kind && c.child("status").str() == "True")
    };
    let mut reason = match status.child("reason").str() {
        "" => status.child("phase").str().to_owned(),
        reason => reason.to_owned(),
    };
    let gated = status
        .child("conditions")
        .items()
        .any(|c| c.child("type").str() == "PodScheduled" && c.child("reason").str() == "SchedulingGated");
    if gated {
        reason = "SchedulingGated".into();
    }
    let inits: Vec<View<'_>> = spec.child("initContainers").items().collect();
    let total = spec.child("containers").len() + inits.iter().filter(|c| is_restartable(c)).count();
    let (mut ready, mut restarts, mut sidecar_restarts) = (0, 0, 0);
    let (mut last, mut sidecar_last): (Option<Timestamp>, Option<Timestamp>) = (None, None);
    let last_end = |container: &View<'_>| {
        let finished = container.child("lastState").child("terminated").child("finishedAt");
        finished.opt_str().and_then(|t| t.parse::<Timestamp>().ok())
    };
    let mut initializing = false;
    for (i, container) in status.child("initContainerStatuses").items().enumerate() {
        let own = inits.iter().find(|c| c.child("name").str() == container.child("name").str());
        let sidecar = own.is_some_and(is_restartable);
        let count = container.child("restartCount").i64();
        restarts += count;
        last = last.max(last_end(&container));
        if sidecar {
            sidecar_restarts += count;
            sidecar_last = sidecar_last.max(last_end(&container));
        }
        let state = container.child("state");
        let (terminated, waiting) = (state.child("terminated"), state.child("waiting"));
        if terminated.exists() && terminated.child("exitCode").i64() == 0 {
            continue;
        }
        if sidecar && container.child("started").bool() {
            ready += usize::from(container.child("ready").bool());
            continue;
        }
        reason = if terminated.exists() {
            format!("Init:{}", termination(&terminated))
        } else if !matches!(waiting.child("reason").str(), "" | "PodInitializing") {
            format!("Init:{}", waiting.child("reason").str())
        } else {
            format!("Init:{i}/{}", inits.len())
        };
        initializing = true;
        break;
    }
    if !initializing || has_condition("Initialized") {
        restarts = sidecar_restarts;
        last = sidecar_last;
        let (mut running, mut failed) = (false, false);
        let containers: Vec<View<'_>> = status.child("containerStatuses").items().collect();
        for container in containers.iter().rev() {
            restarts += container.child("restartCount").i64();
            last = last.max(last_end(container));
            let state = container.child("state");
            let waiting = state.child("waiting").child("reason").str();
            let terminated = state.child("terminated");
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if terminated.exists() {
                // That one container went well says nothing of a pod in which another failed.
                let ended = termination(&terminated);
                if ended != "Completed" || !failed {
                    failed = ended != "Completed";
                    reason = ended;
                }
            } else if container.child("ready").bool() && state.child("running").exists() {
                running = true;
                ready += 1;
            }
        }
        // One container that still runs keeps the pod from being called completed.
        if reason == "Completed" && running {
            reason = if has_condition("Ready") { "Running".into() } else { "NotReady".into() };
        }
    }
    if o.child("metadata").child("deletionTimestamp").exists() {
        if status.child("reason").str() == "NodeLost" {
            reason = "Unknown".into();
        } else if !matches!(status.child("phase").str(), "Succeeded" | "Failed") {
            reason = "Terminating".into();
        }
    }
    let restarts = match last {
        Some(at) if restarts != 0 => format!("{restarts} ({} ago)", human_duration(now.as_second() - at.as_second())),
        _ => restarts.to_string(),
    };
    let ip =
        status.child("podIPs").items().next().map_or_else(|| status.child("podIP").str(), |ip| ip.child("ip").str());
    let gates = spec.child("readinessGates");
    let gates = if gates.is_empty() {
        NONE.to_owned()
    } else {
        let met = gates.items().filter(|g| has_condition(g.child("conditionType").str())).count();
        format!("{met}/{}", gates.len())
    };
    vec![
        name(&o),
        format!("{ready}/{total}").into(),
        reason.into(),
        restarts.into(),
        age(&o, now),
        if ip.is_empty() { NONE.into() } else { ip.into() },
        text_or(&spec.child("nodeName"), NONE),
        text_or(&status.child("nominatedNodeName"), NONE),
        gates.into(),
    ]
}

fn resource_quota(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let status = o.child("status");
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in status.child("hard").entries() {
        let used = int_or_string(&status.child("used").child_named(resource), "0");
        let line = format!("{resource}: {}/{}", used.as_str().unwrap_or_default(), hard.str());
        if resource.starts_with("limits") { limits.push(line) } else { requests.push(line) }
    }
    vec![name(&o), requests.join(", ").into(), limits.join(", ").into(), age(&o, now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn a_pod_says_what_holds_it_up() {
        let cells = |object: Value| pod(View::root(&object), Timestamp::UNIX_EPOCH)[1..4].to_vec();
        let crashing = json!({
            "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "a", "ready": true, "state": {"running": {}}},
                {"name": "b", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
            ]},
        });
        assert_eq!(cells(crashing), ["1/2", "CrashLoopBackOff", "3"]);
        let starting = json!({
            "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]},
            "status": {"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]},
        });
        assert_eq!(cells(starting), ["0/2", "Init:0/2", "0"]);
    }
}
