//! `resource.k8s.io`: devices, classes of devices and claims to them (upstream: `pkg/registry/resource`,
//! `pkg/apis/resource`).

mod validation;

use super::checks;
use super::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, json, time};

pub struct DeviceClasses;

impl Resource for DeviceClasses {
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

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let (new, old, mut errors) = (View::root(object), View::root(old), ErrorList::new());
        if subresource == "status" {
            validation::claim_status(&new, &old, &mut errors);
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

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        checks::immutable(&View::root(object).child("spec"), &View::root(old).child("spec"), &mut errors);
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

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validation::slice(object)
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = self.validate(ctx, object);
        for (new, old) in fixed(object).iter().zip(&fixed(old)) {
            if new.str() != old.str() {
                errors.push(Error::invalid(new.path(), new.str(), checks::IMMUTABLE));
            }
        }
        errors
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_create_on_update(&self) -> bool {
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
        MetadataChecks { update: true, whole: false }
    }
}

/// What a slice stays: one driver's, of one pool, on one node.
fn fixed(slice: &Value) -> [View<'_>; 3] {
    let spec = View::root(slice).child("spec");
    [spec.child("driver"), spec.child("pool").child("name"), spec.child("nodeName")]
}
