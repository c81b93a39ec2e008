//! Workloads: apps, batch, autoscaling, and replication controllers.

use super::cells::{NONE, UNKNOWN, UNSET, age, containers, human_duration, labels, name, selector, since, text_or};
use super::{AGE, CONTAINERS, IMAGES, NAME, Printer, number, text, truth, wide};
use coxswain_api::Value;
use coxswain_api::field::View;
use jiff::Timestamp;

const READY: super::Col = text("Ready", "Number of the pod with ready state");

#[rustfmt::skip]
pub(super) static PRINTERS: &[Printer] = &[
    Printer { group: "", kind: "ReplicationController", cells: replication_controller, columns: &[
        NAME, number("Desired", "@core.v1.ReplicationControllerSpec.replicas"),
        number("Current", "@core.v1.ReplicationControllerStatus.replicas"),
        number("Ready", "@core.v1.ReplicationControllerStatus.readyReplicas"), AGE, CONTAINERS, IMAGES,
        wide("Selector", "@core.v1.ReplicationControllerSpec.selector"),
    ] },
    Printer { group: "apps", kind: "ControllerRevision", cells: controller_revision, columns: &[
        NAME, text("Controller", "Controller of the object"), text("Revision", "@apps.v1.ControllerRevision.revision"), AGE,
    ] },
    Printer { group: "apps", kind: "DaemonSet", cells: daemon_set, columns: &[
        NAME, number("Desired", "@apps.v1.DaemonSetStatus.desiredNumberScheduled"),
        number("Current", "@apps.v1.DaemonSetStatus.currentNumberScheduled"),
        number("Ready", "@apps.v1.DaemonSetStatus.numberReady"),
        number("Up-to-date", "@apps.v1.DaemonSetStatus.updatedNumberScheduled"),
        number("Available", "@apps.v1.DaemonSetStatus.numberAvailable"),
        text("Node Selector", "@core.v1.PodSpec.nodeSelector"), AGE, CONTAINERS, IMAGES,
        wide("Selector", "@apps.v1.DaemonSetSpec.selector"),
    ] },
    Printer { group: "apps", kind: "Deployment", cells: deployment, columns: &[
        NAME, READY, text("Up-to-date", "@apps.v1.DeploymentStatus.updatedReplicas"),
        text("Available", "@apps.v1.DeploymentStatus.availableReplicas"), AGE, CONTAINERS, IMAGES,
        wide("Selector", "@apps.v1.DeploymentSpec.selector"),
    ] },
    Printer { group: "apps", kind: "ReplicaSet", cells: replica_set, columns: &[
        NAME, number("Desired", "@apps.v1.ReplicaSetSpec.replicas"), number("Current", "@apps.v1.ReplicaSetStatus.replicas"),
        number("Ready", "@apps.v1.ReplicaSetStatus.readyReplicas"), AGE, CONTAINERS, IMAGES,
        wide("Selector", "@apps.v1.ReplicaSetSpec.selector"),
    ] },
    Printer { group: "apps", kind: "StatefulSet", cells: stateful_set, columns: &[NAME, READY, AGE, CONTAINERS, IMAGES] },
    Printer { group: "autoscaling", kind: "HorizontalPodAutoscaler", cells: autoscaler, columns: &[
        NAME, text("Reference", "@autoscaling.v2.HorizontalPodAutoscalerSpec.scaleTargetRef"),
        text("Targets", "@autoscaling.v2.HorizontalPodAutoscalerSpec.metrics"),
        text("MinPods", "@autoscaling.v2.HorizontalPodAutoscalerSpec.minReplicas"),
        text("MaxPods", "@autoscaling.v2.HorizontalPodAutoscalerSpec.maxReplicas"),
        text("Replicas", "@autoscaling.v2.HorizontalPodAutoscalerStatus.currentReplicas"), AGE,
    ] },
    Printer { group: "batch", kind: "CronJob", cells: cron_job, columns: &[
        NAME, text("Schedule", "@batch.v1.CronJobSpec.schedule"), text("Timezone", "@batch.v1.CronJobSpec.timeZone"),
        truth("Suspend", "@batch.v1.CronJobSpec.suspend"), number("Active", "@batch.v1.CronJobStatus.active"),
        text("Last Schedule", "@batch.v1.CronJobStatus.lastScheduleTime"), AGE, CONTAINERS, IMAGES,
        wide("Selector", "@batch.v1.JobSpec.selector"),
    ] },
    Printer { group: "batch", kind: "Job", cells: job, columns: &[
        NAME, text("Status", "Status of the job."), text("Completions", "@batch.v1.JobStatus.succeeded"),
        text("Duration", "Time required to complete the job."), AGE, CONTAINERS, IMAGES,
        wide("Selector", "@batch.v1.JobSpec.selector"),
    ] },
];

fn count(of: &View<'_>, field: &'static str) -> Value {
    of.child(field).i64().into()
}

fn pod_spec<'a>(spec: &View<'a>) -> View<'a> {
    spec.child("template").child("spec")
}

fn replication_controller(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (o.child("spec"), o.child("status"));
    let [names, images] = containers(&pod_spec(&spec));
    let selected = labels(&spec.child("selector"));
    vec![
        name(&o),
        count(&spec, "replicas"),
        count(&status, "replicas"),
        count(&status, "readyReplicas"),
        age(&o, now),
        names,
        images,
        selected.into(),
    ]
}

fn replica_set(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (o.child("spec"), o.child("status"));
    let [names, images] = containers(&pod_spec(&spec));
    vec![
        name(&o),
        count(&spec, "replicas"),
        count(&status, "replicas"),
        count(&status, "readyReplicas"),
        age(&o, now),
        names,
        images,
        selector(&spec.child("selector"), NONE).into(),
    ]
}

fn ready_of_wanted(spec: &View<'_>, status: &View<'_>) -> Value {
    format!("{}/{}", status.child("readyReplicas").i64(), spec.child("replicas").i64()).into()
}

fn deployment(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (o.child("spec"), o.child("status"));
    let [names, images] = containers(&pod_spec(&spec));
    vec![
        name(&o),
        ready_of_wanted(&spec, &status),
        count(&status, "updatedReplicas"),
        count(&status, "availableReplicas"),
        age(&o, now),
        names,
        images,
        selector(&spec.child("selector"), "").into(),
    ]
}

fn stateful_set(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (o.child("spec"), o.child("status"));
    let [names, images] = containers(&pod_spec(&spec));
    vec![name(&o), ready_of_wanted(&spec, &status), age(&o, now), names, images]
}

fn daemon_set(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (o.child("spec"), o.child("status"));
    let [names, images] = containers(&pod_spec(&spec));
    vec![
        name(&o),
        count(&status, "desiredNumberScheduled"),
        count(&status, "currentNumberScheduled"),
        count(&status, "numberReady"),
        count(&status, "updatedNumberScheduled"),
        count(&status, "numberAvailable"),
        labels(&pod_spec(&spec).child("nodeSelector")).into(),
        age(&o, now),
        names,
        images,
        selector(&spec.child("selector"), NONE).into(),
    ]
}

fn controller_revision(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let owner = o.child("metadata").child("ownerReferences").items().find(|r| r.child("controller").bool());
    let owner = owner.map_or_else(
        || NONE.to_owned(),
        |r| {
            let kind = r.child("kind").str().to_lowercase();
            let group = r.child("apiVersion").str().split_once('/').map_or("", |(group, _)| group);
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", r.child("name").str())
        },
    );
    vec![name(&o), owner.into(), count(&o, "revision"), age(&o, now)]
}

fn job(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (o.child("spec"), o.child("status"));
    let has = |kind: &str| {
        status.child("conditions").items().any(|c| c.child("type").str() == kind && c.child("status").str() == "True")
    };
    let state = match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if o.child("metadata").child("deletionTimestamp").exists() => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    };
    let succeeded = status.child("succeeded").i64();
    let completions = match (spec.child("completions").opt_i64(), spec.child("parallelism").i64()) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let time = |field: &'static str| status.child(field).opt_str().and_then(|t| t.parse::<Timestamp>().ok());
    let duration = match (time("startTime"), time("completionTime")) {
        (Some(start), end) => human_duration(end.unwrap_or(now).as_second() - start.as_second()),
        (None, _) => String::new(),
    };
    let [names, images] = containers(&pod_spec(&spec));
    vec![
        name(&o),
        state.into(),
        completions.into(),
        duration.into(),
        age(&o, now),
        names,
        images,
        selector(&spec.child("selector"), NONE).into(),
    ]
}

fn cron_job(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (o.child("spec"), o.child("status"));
    let suspend = match spec.child("suspend").opt_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    };
    let last = status.child("lastScheduleTime");
    let last = if last.exists() { since(&last, now) } else { NONE.to_owned() };
    let template = spec.child("jobTemplate").child("spec");
    let [names, images] = containers(&pod_spec(&template));
    vec![
        name(&o),
        spec.child("schedule").str().into(),
        text_or(&spec.child("timeZone"), NONE),
        suspend.into(),
        status.child("active").len().into(),
        last.into(),
        age(&o, now),
        names,
        images,
        selector(&template.child("selector"), NONE).into(),
    ]
}

/// What a metric is and what it shall be: a utilization, an average or a value.
fn measure(metric: &View<'_>, part: &'static str, always: bool) -> Option<String> {
    let of = metric.child(part);
    if let Some(percent) = of.child("averageUtilization").opt_i64() {
        return Some(format!("{percent}%"));
    }
    let text = |field: &'static str| of.child(field).opt_str().map(String::from);
    text("averageValue").or_else(|| text("value")).or_else(|| always.then(|| "<auto>".into()))
}

fn autoscaler(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (o.child("spec"), o.child("status"));
    let current: Vec<View<'_>> = status.child("currentMetrics").items().collect();
    let mut list = Vec::new();
    for (i, metric) in spec.child("metrics").items().enumerate() {
        let (source, named) = match metric.child("type").str() {
            "External" => ("external", false),
            "Pods" => ("pods", false),
            "Object" => ("object", false),
            "Resource" => ("resource", true),
            "ContainerResource" => ("containerResource", true),
            _ => {
                list.push("<unknown type>".to_owned());
                continue;
            }
        };
        let wanted = metric.child(source);
        let now_is = current.get(i).map(|c| c.child(source)).and_then(|c| measure(&c, "current", false));
        let now_is = now_is.unwrap_or_else(|| UNKNOWN.into());
        let target = measure(&wanted, "target", true).unwrap_or_default();
        let average = !named && source != "pods" && wanted.child("target").child("type").str() == "AverageValue";
        let average = if average { " (avg)" } else { "" };
        let label = if named { format!("{}: ", wanted.child("name").str()) } else { String::new() };
        list.push(format!("{label}{now_is}/{target}{average}"));
    }
    let metrics = match list.len() {
        0 => NONE.to_owned(),
        n if n > 2 => format!("{} + {} more...", list[..2].join(", "), n - 2),
        _ => list.join(", "),
    };
    let target = spec.child("scaleTargetRef");
    let min = spec.child("minReplicas").opt_i64().map_or_else(|| UNSET.to_owned(), |n| n.to_string());
    vec![
        name(&o),
        format!("{}/{}", target.child("kind").str(), target.child("name").str()).into(),
        metrics.into(),
        min.into(),
        count(&spec, "maxReplicas"),
        count(&status, "currentReplicas"),
        age(&o, now),
    ]
}
