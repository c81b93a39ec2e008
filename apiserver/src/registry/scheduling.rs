//! The resources of `scheduling.k8s.io` (upstream: `pkg/registry/scheduling`, `pkg/apis/scheduling/validation`).

mod group;
pub mod pod_group;
pub mod workload;

use crate::registry::checks;
use crate::registry::defaults::set_default;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Value, json};

/// The largest value that users may give; above it are the system's own.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;
const SYSTEM_PREFIX: &str = "system-";
const SYSTEM_CLASSES: &[(&str, i64)] =
    &[("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

pub struct PriorityClasses;

impl Resource for PriorityClasses {
    fn set_defaults(&self, object: &mut Value) {
        set_default(object, "preemptionPolicy", || json!("PreemptLowerPriority"));
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (root, mut errors) = (View::root(object), ErrorList::new());
        let name = root.child("metadata").child("name");
        let value = root.child("value");
        if name.str().starts_with(SYSTEM_PREFIX) {
            let known = SYSTEM_CLASSES.iter().find(|(n, _)| *n == name.str());
            let wrong = match known {
                None => Some(format!("{} is not a known system priority class", name.str())),
                Some((n, v)) if *v != value.i64() => Some(format!("value of {n} PriorityClass must be {v}")),
                Some((n, _)) if root.child("globalDefault").bool() => {
                    Some(format!("globalDefault of {n} PriorityClass must be false"))
                }
                Some(_) => None,
            };
            if let Some(why) = wrong {
                let why = format!(
                    "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {why}"
                );
                errors.push(Error::forbidden(name.path(), why));
            }
        } else if value.i64() > USER_PRIORITY_MAX {
            let why = format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
            errors.push(Error::forbidden(value.path(), why));
        }
        let policy = root.child("preemptionPolicy");
        if policy.exists() {
            checks::one_of(&policy, &["PreemptLowerPriority", "Never"], &mut errors);
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let (new, old, mut errors) = (View::root(object), View::root(old), ErrorList::new());
        if new.child("value").i64() != old.child("value").i64() {
            errors.push(Error::forbidden(&Path::new("value"), "may not be changed in an update."));
        }
        checks::immutable(&new.child("preemptionPolicy"), &old.child("preemptionPolicy"), &mut errors);
        errors
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn spec_changed(&self, _object: &Value, _old: &Value) -> bool {
        false
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }
}
