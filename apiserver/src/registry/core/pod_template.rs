//! PodTemplate (upstream: `pkg/registry/core/podtemplate`, `ValidatePodTemplate`).

use super::pod_spec::{self, Options};
use crate::registry::gated::{self, Fields};
use crate::registry::resource::Resource;
use crate::registry::workload;
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{ErrorList, View};

pub struct PodTemplates;

impl Resource for PodTemplates {
    fn set_defaults(&self, object: &mut Value) {
        workload::default_template(object);
    }

    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/template/spec", gated::POD_SPEC)]
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        pod_spec::validate_template(&View::root(object).child("template"), &Options::default(), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        let options = Options::of_old(Some(&View::root(old).child("template")), false);
        pod_spec::validate_template(&View::root(object).child("template"), &options, &mut errors);
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, _old: Option<&Value>) -> Vec<String> {
        pod_spec::for_template(&View::root(object).child("template"))
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
}
