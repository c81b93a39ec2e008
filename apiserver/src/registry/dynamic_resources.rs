//! `resource.k8s.io`: devices, classes of devices and claims to them (upstream: `pkg/registry/resource`,
//! `pkg/apis/resource`).

mod admin_access;
mod limits;
mod names;
pub mod pool_status;
mod slice;
mod status;
mod status_access;
pub mod taint_rule;
mod validation;

use super::gated::{self, Fields};
use super::metadata;
use super::resource::{Hooks, MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{ErrorList, View, go_quote};
use coxswain_api::{Value, json, time};

pub struct DeviceClasses;

impl Resource for DeviceClasses {
    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec", gated::DEVICE_CLASS_SPEC)]
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty(), whole_first: true }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validation::device_class(object)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}

pub struct ResourceClaims;

impl Resource for ResourceClaims {
    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec", gated::CLAIM_SPEC), ("/status", gated::CLAIM_STATUS)]
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty(), whole_first: true }
    }

    fn set_defaults(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec") {
            default_requests(spec);
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        validation::claim_spec(&View::root(object).child("spec"), &mut errors);
        errors
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, subresource: &str) {
        if subresource == "status" {
            status::drop_deallocated(object, old);
        }
    }

    fn hooks(&self) -> Option<&dyn Hooks> {
        Some(&admin_access::AdminAccess { requests: "/spec/devices/requests" })
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let (new, old, mut errors) = (View::root(object), View::root(old), ErrorList::new());
        if subresource == "status" {
            status::claim_status(&new, &old, &mut errors);
        } else {
            validation::unchanged_claim(&new.child("spec"), &old.child("spec"), &mut errors);
        }
        errors
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}

pub struct ResourceClaimTemplates;

impl Resource for ResourceClaimTemplates {
    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec/spec", gated::CLAIM_SPEC)]
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty(), whole_first: true }
    }

    fn set_defaults(&self, object: &mut Value) {
        if let Some(spec) = object.pointer_mut("/spec/spec") {
            default_requests(spec);
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        validation::template_spec(&View::root(object).child("spec"), &mut errors);
        errors
    }

    fn hooks(&self) -> Option<&dyn Hooks> {
        Some(&admin_access::AdminAccess { requests: "/spec/spec/devices/requests" })
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = self.validate(ctx, object);
        let [new, old] = [object, old].map(|template| View::root(template).child("spec"));
        validation::unchanged_template(&new, &old, &mut errors);
        errors
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}

/// Without a mode, an exact number is asked for, and that is one.
fn default_requests(spec: &mut Value) {
    let Some(requests) = spec.pointer_mut("/devices/requests").and_then(Value::as_array_mut) else { return };
    for request in requests {
        if let Some(exactly) = request.get_mut("exactly") {
            default_request(exactly);
        }
        let alternatives = request.get_mut("firstAvailable").and_then(Value::as_array_mut);
        alternatives.into_iter().flatten().for_each(default_request);
    }
}

fn default_request(request: &mut Value) {
    let Some(fields) = request.as_object_mut() else { return };
    let is_empty = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or_default().is_empty();
    for toleration in fields.get_mut("tolerations").and_then(Value::as_array_mut).into_iter().flatten() {
        if is_empty(toleration.get("operator")) {
            toleration["operator"] = "Equal".into();
        }
    }
    if is_empty(fields.get("allocationMode")) {
        fields.insert("allocationMode".into(), "ExactCount".into());
    }
    let exact = fields.get("allocationMode").and_then(Value::as_str) == Some("ExactCount");
    if exact && fields.get("count").and_then(Value::as_i64).unwrap_or(0) == 0 {
        fields.insert("count".into(), 1.into());
    }
}

pub struct ResourceSlices;

impl Resource for ResourceSlices {
    fn set_defaults(&self, object: &mut Value) {
        let now = json!(time::format_seconds(jiff::Timestamp::now()));
        let devices = object.pointer_mut("/spec/devices").and_then(Value::as_array_mut);
        for device in devices.into_iter().flatten() {
            let taints = device.get_mut("taints").and_then(Value::as_array_mut);
            for taint in taints.into_iter().flatten() {
                super::defaults::set_default(taint, "timeAdded", || now.clone());
            }
        }
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        gated::drop_disabled(object, None, "/spec", gated::SLICE_SPEC);
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, _subresource: &str) {
        if object.get("spec") != old.get("spec") {
            let generation = metadata::number(old, "generation").unwrap_or(0);
            metadata::set(object, "generation", generation + 1);
        }
        gated::drop_disabled(object, Some(old), "/spec", gated::SLICE_SPEC);
    }

    /// Counted in `prepare_for_update`, before anything is dropped.
    fn spec_changed(&self, _object: &Value, _old: &Value) -> bool {
        false
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        slice::slice(object, None)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        slice::slice(object, Some(old))
    }

    fn warnings(&self, _ctx: &Context, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let driver = View::root(object).child("spec").child("driver");
        if driver.str() == driver.str().to_lowercase() {
            return Vec::new();
        }
        let name = go_quote(driver.str());
        vec![format!("spec.driver: driver names should be lowercase; {name} contains uppercase characters")]
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let spec = View::root(object).child("spec");
        vec![
            ("spec.driver", spec.child("driver").str().to_owned()),
            ("spec.nodeName", spec.child("nodeName").str().to_owned()),
        ]
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &["spec.driver", "spec.nodeName"]
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }
}
