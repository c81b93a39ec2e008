//! PodDisruptionBudget (upstream: `pkg/registry/policy/poddisruptionbudget`, `pkg/apis/policy/validation`).

use crate::registry::checks::{self, SelectorLeniency};
use crate::registry::internal::{BUDGET, dump};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, names};

pub struct PodDisruptionBudgets;

impl Resource for PodDisruptionBudgets {
    /// Upstream never checks the metadata of a budget, so that any name will do that fits in a path.
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::path_segment(name, prefix)
    }

    fn restricts_finalizers(&self) -> bool {
        false
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (spec, mut errors) = (View::root(object).child("spec"), ErrorList::new());
        let (least, most) = (spec.child("minAvailable"), spec.child("maxUnavailable"));
        if least.exists() && most.exists() {
            let why = "minAvailable and maxUnavailable cannot be both set";
            errors.push(Error::invalid(spec.path(), dump(&spec, &BUDGET), why));
        }
        for amount in [least, most] {
            if amount.exists() {
                checks::int_or_percent(&amount, &mut errors);
                checks::at_most_100_percent(&amount, &mut errors);
            }
        }
        checks::label_selector(&spec.child("selector"), SelectorLeniency::default(), &mut errors);
        let policy = spec.child("unhealthyPodEvictionPolicy");
        if policy.exists() {
            checks::supported_value(&policy, &["AlwaysAllow", "IfHealthyBudget"], &mut errors);
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, _old: &Value, subresource: &str) -> ErrorList {
        if subresource != "status" {
            return self.validate(ctx, object);
        }
        let (status, mut errors) = (View::root(object).child("status"), ErrorList::new());
        for name in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            checks::nonnegative(&status.child(name), &mut errors);
        }
        errors
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: false, whole: false, whole_first: false }
    }
}
