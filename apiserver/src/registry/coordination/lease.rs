//! Lease (upstream: `pkg/registry/coordination/lease`, `ValidateLease`).

use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::features::Feature;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, names};

pub struct Leases;

impl Resource for Leases {
    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        drop_disabled(object);
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, _old: &Value, _subresource: &str) {
        drop_disabled(object);
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let spec = View::root(object).child("spec");
        let mut errors = ErrorList::new();
        let (duration, transitions) = (spec.child("leaseDurationSeconds"), spec.child("leaseTransitions"));
        if duration.opt_i64().is_some_and(|d| d <= 0) {
            errors.push(Error::invalid(duration.path(), duration.i64(), "must be greater than 0"));
        }
        if transitions.i64() < 0 {
            errors.push(Error::invalid(transitions.path(), transitions.i64(), "must be greater than or equal to 0"));
        }
        let (way, preferred) = (spec.child("strategy"), spec.child("preferredHolder"));
        if way.exists() {
            strategy(&way, &mut errors);
        }
        if !preferred.is_empty() && way.is_empty() {
            errors.push(Error::forbidden(preferred.path(), "may only be specified if `strategy` is defined"));
        }
        errors
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn restricts_finalizers(&self) -> bool {
        false
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }
}

/// The one way to elect a leader that Kubernetes knows.
pub(super) const OLDEST: &str = "OldestEmulationVersion";

/// How a leader is elected: in Kubernetes' way, or in one with a domain (upstream: `ValidateCoordinatedLeaseStrategy`).
pub(super) fn strategy(strategy: &View<'_>, errors: &mut ErrorList) {
    // Upstream names the field twice.
    let path = strategy.path().child("strategy");
    match strategy.str() {
        OLDEST => {}
        name if name.contains('/') => {
            let wrong = names::qualified_name(name);
            errors.extend(wrong.into_iter().map(|why| Error::invalid(&path, name, why)));
        }
        name => errors.push(Error::not_supported(&path, name, &[OLDEST])),
    }
}

/// Fields of coordinated leader election. Upstream does not ask whether they were used before.
fn drop_disabled(object: &mut Value) {
    if Feature::CoordinatedLeaderElection.enabled() {
        return;
    }
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("strategy");
        spec.remove("preferredHolder");
    }
}
