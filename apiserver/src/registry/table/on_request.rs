//! Kinds that are served only on request: trust bundles, certificates of pods, groups of pods, storage versions, taints of devices.

use super::cells::{NONE, UNSET, age, labels, name, since, some_of};
use super::{AGE, Col, NAME, Printer, number, text};
use coxswain_api::Value;
use coxswain_api::field::View;
use jiff::Timestamp;

#[rustfmt::skip]
pub(super) static PRINTERS: &[Printer] = &[
    Printer { group: "certificates.k8s.io", kind: "ClusterTrustBundle", cells: trust_bundle, columns: &[
        NAME, text("SignerName", "@certificates.v1beta1.ClusterTrustBundleSpec.signerName"),
    ] },
    Printer { group: "certificates.k8s.io", kind: "PodCertificateRequest", cells: pod_certificate_request, columns: &[
        NAME, text("PodName", "@certificates.v1beta1.PodCertificateRequestSpec.podName"),
        text("ServiceAccountName", "@certificates.v1beta1.PodCertificateRequestSpec.serviceAccountName"),
        text("NodeName", "@certificates.v1beta1.PodCertificateRequestSpec.nodeName"),
        text("SignerName", "@certificates.v1beta1.PodCertificateRequestSpec.signerName"),
        text("State", "Is the request Pending, Issued, Denied, or Failed?"),
        text("UnverifiedUserAnnotations", "@certificates.v1beta1.PodCertificateRequestSpec.unverifiedUserAnnotations"),
    ] },
    Printer { group: "coordination.k8s.io", kind: "LeaseCandidate", cells: lease_candidate, columns: &[
        NAME, text("LeaseName", "@coordination.v1alpha2.LeaseCandidateSpec.leaseName"),
        // Upstream looks for these two descriptions where they are not.
        text("BinaryVersion", ""), text("EmulationVersion", ""), AGE,
    ] },
    Printer { group: "internal.apiserver.k8s.io", kind: "StorageVersion", cells: storage_version, columns: &[
        NAME, text("CommonEncodingVersion", "@apiserverinternal.v1alpha1.StorageVersionStatus.commonEncodingVersion"),
        text("StorageVersions", "@apiserverinternal.v1alpha1.StorageVersionStatus.storageVersions"), AGE,
    ] },
    Printer { group: "resource.k8s.io", kind: "DeviceTaintRule", cells: device_taint_rule, columns: &[
        NAME, text("Key", "@resource.v1.DeviceTaint.key"), text("Value", "@resource.v1.DeviceTaint.value"),
        text("Effect", "@resource.v1.DeviceTaint.effect"), text("TimeAdded", "@resource.v1.DeviceTaint.timeAdded"), AGE,
    ] },
    Printer { group: "resource.k8s.io", kind: "ResourcePoolStatusRequest", cells: pool_status_request, columns: &[
        NAME, text("Driver", "The driver to query pools for."), text("Total", "Total number of devices across all pools."),
        text("Available", "Number of available devices across all pools."),
        text("Allocated", "Number of allocated devices across all pools."),
        text("Unavailable", "Number of unavailable devices across all pools."),
        text("Errors", "Number of pools with validation errors."), number("Pools", "Total number of matching pools."),
        text("Status", "Processing status."), text("Completed", "Time since the observation completed."),
    ] },
    Printer { group: "scheduling.k8s.io", kind: "PodGroup", cells: pod_group, columns: &[
        NAME, text("Policy", "@scheduling.v1alpha2.PodGroupSpec.schedulingPolicy"),
        text("Workload", "Name of the referenced Workload object"), text("Status", "Status of the PodGroup"), AGE,
    ] },
    Printer { group: "scheduling.k8s.io", kind: "Workload", cells: |o, now| vec![name(&o), age(&o, now)], columns: &[NAME, AGE] },
    Printer { group: "storagemigration.k8s.io", kind: "StorageVersionMigration", cells: migration, columns: &[
        Col("Name", "string", "", "@meta.v1.ObjectMeta.name", 0), text("Resource", "GroupResource to migrate"),
        text("Status", "Status of the migration"),
    ] },
];

fn conditions<'a>(o: &View<'a>) -> impl Iterator<Item = View<'a>> + use<'a> {
    o.child("status").child("conditions").items()
}

fn trust_bundle(o: View<'_>, _now: Timestamp) -> Vec<Value> {
    let signer = o.child("spec").child("signerName");
    vec![name(&o), super::cells::text_or(&signer, NONE)]
}

fn pod_certificate_request(o: View<'_>, _now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    let text = |field: &'static str| -> Value { spec.child(field).str().into() };
    let kinds = conditions(&o).map(|c| c.child("type").str());
    let state = kinds.filter(|kind| matches!(*kind, "Issued" | "Denied" | "Failed")).last().unwrap_or("Pending");
    let annotations = labels(&spec.child("unverifiedUserAnnotations"));
    vec![
        name(&o),
        text("podName"),
        text("serviceAccountName"),
        text("nodeName"),
        text("signerName"),
        state.into(),
        annotations.into(),
    ]
}

fn lease_candidate(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let [lease, binary, emulation] =
        ["leaseName", "binaryVersion", "emulationVersion"].map(|field| o.child("spec").child(field).str().into());
    vec![name(&o), lease, binary, emulation, age(&o, now)]
}

fn storage_version(o: View<'_>, now: Timestamp) -> Vec<Value> {
    const SHOWN_MAX: usize = 3;
    let status = o.child("status");
    let common = status.child("commonEncodingVersion").opt_str().unwrap_or(UNSET);
    let of = |version: View<'_>| {
        format!("{}={}", version.child("apiServerID").str(), version.child("encodingVersion").str())
    };
    let versions: Vec<String> = status.child("storageVersions").items().map(of).collect();
    vec![name(&o), common.into(), some_of(&versions, SHOWN_MAX, ",").into(), age(&o, now)]
}

fn device_taint_rule(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let taint = o.child("spec").child("taint");
    let added = taint.child("timeAdded");
    let added = if added.exists() { since(&added, now) } else { String::new() };
    let [key, value, effect] = ["key", "value", "effect"].map(|field| taint.child(field).str().into());
    vec![name(&o), key, value, effect, added.into(), age(&o, now)]
}

fn pool_status_request(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let status = o.child("status");
    let is_true = |c: &View<'_>| c.child("status").str() == "True";
    let end = conditions(&o).find(|c| is_true(c) && matches!(c.child("type").str(), "Complete" | "Failed"));
    let kind = end.as_ref().map_or("Pending", |c| c.child("type").str());
    let (pools, count) = (status.child("pools"), status.child("poolCount").i64());
    let state = match kind {
        "Complete" if count > pools.len() as i64 => format!("Complete ({}/{count} pools)", pools.len()),
        kind => kind.to_owned(),
    };
    let completed = end.filter(|_| kind == "Complete").map(|c| since(&c.child("lastTransitionTime"), now));
    let is_summed = status.exists() && kind != "Failed";
    let cell = |sum: i64| -> Value { if is_summed { sum.to_string() } else { "-".to_owned() }.into() };
    let sum = |field: &'static str| cell(pools.items().map(|pool| pool.child(field).i64()).sum());
    let errors = pools.items().filter(|pool| pool.child("validationError").exists()).count();
    vec![
        name(&o),
        o.child("spec").child("driver").str().into(),
        sum("totalDevices"),
        sum("availableDevices"),
        sum("allocatedDevices"),
        sum("unavailableDevices"),
        cell(errors as i64),
        count.into(),
        state.into(),
        completed.unwrap_or_else(|| NONE.into()).into(),
    ]
}

fn pod_group(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    let policy = if spec.child("schedulingPolicy").child("gang").exists() { "Gang" } else { "Basic" };
    let last = |kind: &str| conditions(&o).filter(|c| c.child("type").str() == kind).last();
    let scheduled = last("PodGroupScheduled").map(|c| match c.child("status").str() {
        "True" => "Scheduled",
        _ => "Unschedulable",
    });
    let disrupted = last("DisruptionTarget").map(|c| c.child("reason").str());
    let template = spec.child("podGroupTemplateRef");
    let workload = template.child("workload").child("workloadName").str();
    let workload = if template.exists() { workload } else { NONE };
    vec![name(&o), policy.into(), workload.into(), disrupted.or(scheduled).unwrap_or("Pending").into(), age(&o, now)]
}

fn migration(o: View<'_>, _now: Timestamp) -> Vec<Value> {
    let target = o.child("spec").child("resource");
    let (group, resource) = (target.child("group").str(), target.child("resource").str());
    let target = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
    let happened = conditions(&o).filter(|c| c.child("status").str() == "True").map(|c| c.child("type").str());
    let state = happened.filter(|kind| matches!(*kind, "Running" | "Failed" | "Succeeded")).last();
    vec![name(&o), target.into(), state.unwrap_or("Unknown").into()]
}
