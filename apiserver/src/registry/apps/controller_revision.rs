//! ControllerRevision (upstream: `pkg/registry/apps/controllerrevision`, `ValidateControllerRevision`).

use crate::registry::checks;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};

pub struct ControllerRevisions;

impl Resource for ControllerRevisions {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = View::root(object);
        let data = root.child("data");
        checks::nonnegative(&root.child("revision"), &mut errors);
        match data.value() {
            None => errors.push(Error::required(data.path(), "data is mandatory")),
            Some(Value::Object(_)) => {}
            Some(_) => errors.push(Error::required(data.path(), "data must be a valid JSON object")),
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        checks::nonnegative(&View::root(object).child("revision"), &mut errors);
        checks::immutable(&View::root(object).child("data"), &View::root(old).child("data"), &mut errors);
        errors
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: true, whole_first: false }
    }
}
