//! Kinds of the remaining groups: API services, leases, devices, classes of priority and runtime.

use super::cells::{age, name};
use super::{AGE, NAME, Printer, number, text, truth};
use coxswain_api::Value;
use coxswain_api::field::View;
use jiff::Timestamp;

#[rustfmt::skip]
pub(super) static PRINTERS: &[Printer] = &[
    Printer { group: "apiregistration.k8s.io", kind: "APIService", cells: api_service, columns: &[
        NAME, text("Service", "The reference to the service that hosts this API endpoint."),
        text("Available", "Whether this service is available."), AGE,
    ] },
    Printer { group: "coordination.k8s.io", kind: "Lease", cells: |o, now| vec![name(&o), o.child("spec").child("holderIdentity").str().into(), age(&o, now)], columns: &[
        NAME, text("Holder", "@coordination.v1.LeaseSpec.holderIdentity"), AGE,
    ] },
    Printer { group: "node.k8s.io", kind: "RuntimeClass", cells: |o, now| vec![name(&o), o.child("handler").str().into(), age(&o, now)], columns: &[
        NAME, text("Handler", ""), AGE,
    ] },
    Printer { group: "resource.k8s.io", kind: "DeviceClass", cells: |o, now| vec![name(&o), age(&o, now)], columns: &[NAME, AGE] },
    Printer { group: "resource.k8s.io", kind: "ResourceClaim", cells: resource_claim, columns: &[
        NAME, text("State", "A summary of the current state (allocated, pending, reserved, etc.)."), AGE,
    ] },
    Printer { group: "resource.k8s.io", kind: "ResourceClaimTemplate", cells: |o, now| vec![name(&o), age(&o, now)], columns: &[NAME, AGE] },
    Printer { group: "resource.k8s.io", kind: "ResourceSlice", cells: resource_slice, columns: &[
        NAME, text("Node", "@resource.v1.ResourceSliceSpec.nodeName"), text("Driver", "@resource.v1.ResourceSliceSpec.driver"),
        text("Pool", "@resource.v1.ResourcePool.name"), AGE,
    ] },
    Printer { group: "scheduling.k8s.io", kind: "PriorityClass", cells: priority_class, columns: &[
        NAME, number("Value", "@scheduling.v1.PriorityClass.value"),
        truth("Global-Default", "@scheduling.v1.PriorityClass.globalDefault"), AGE,
        text("PreemptionPolicy", "@scheduling.v1.PriorityClass.preemptionPolicy"),
    ] },
];

fn api_service(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let service = o.child("spec").child("service");
    let service_text = if service.exists() {
        format!("{}/{}", service.child("namespace").str(), service.child("name").str())
    } else {
        "Local".to_owned()
    };
    let available = o.child("status").child("conditions").items().find(|c| c.child("type").str() == "Available");
    let state = available.map_or_else(
        || "Unknown".to_owned(),
        |c| match c.child("status").str() {
            "True" => "True".to_owned(),
            status => format!("{status} ({})", c.child("reason").str()),
        },
    );
    vec![name(&o), service_text.into(), state.into(), age(&o, now)]
}

fn resource_claim(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let status = o.child("status");
    let mut states = Vec::new();
    if o.child("metadata").child("deletionTimestamp").exists() {
        states.push("deleted");
    }
    if status.child("allocation").exists() {
        states.push("allocated");
    } else if states.is_empty() {
        states.push("pending");
    }
    if !status.child("reservedFor").is_empty() {
        states.push("reserved");
    }
    vec![name(&o), states.join(",").into(), age(&o, now)]
}

fn resource_slice(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    vec![
        name(&o),
        spec.child("nodeName").str().into(),
        spec.child("driver").str().into(),
        spec.child("pool").child("name").str().into(),
        age(&o, now),
    ]
}

fn priority_class(o: View<'_>, now: Timestamp) -> Vec<Value> {
    vec![
        name(&o),
        o.child("value").i64().into(),
        o.child("globalDefault").bool().into(),
        age(&o, now),
        o.child("preemptionPolicy").str().into(),
    ]
}
