//! Deployment (upstream: `pkg/registry/apps/deployment`, `ValidateDeployment`).

use crate::registry::core::pod_spec::Options;
use crate::registry::gated::{self, Fields};
use crate::registry::resource::Resource;
use crate::registry::{checks, workload};
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};

pub struct Deployments;

const ROLLING_UPDATE: &[(&str, &str)] = &[("MaxUnavailable", "maxUnavailable"), ("MaxSurge", "maxSurge")];

impl Resource for Deployments {
    fn set_defaults(&self, object: &mut Value) {
        let spec = workload::map_at(object, "spec");
        workload::default_absent(spec, "replicas", 1);
        let strategy = workload::map_at(spec, "strategy");
        workload::default_to(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            let rolling = workload::map_at(strategy, "rollingUpdate");
            workload::default_absent(rolling, "maxUnavailable", "25%");
            workload::default_absent(rolling, "maxSurge", "25%");
        }
        workload::default_absent(spec, "revisionHistoryLimit", 10);
        workload::default_absent(spec, "progressDeadlineSeconds", 600);
        workload::default_template(spec);
    }

    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec/template/spec", gated::POD_SPEC), ("/status", gated::REPLICAS_STATUS)]
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, subresource: &str) {
        if subresource == "status"
            && let (Some(new), Some(old)) = (object.get_mut("metadata"), old.get("metadata"))
        {
            workload::restore(new, old, "labels");
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        validate_spec(&View::root(object).child("spec"), &workload::options_of(None), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        let (new, before) = (View::root(object), View::root(old));
        if subresource == "status" {
            validate_status(&new.child("status"), &before.child("status"), &mut errors);
        } else {
            validate_spec(&new.child("spec"), &workload::options_of(Some(old)), &mut errors);
            workload::selector_immutable(&new, &before, &mut errors);
        }
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        workload::warnings(object, old, true)
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// Annotations count as well: they are passed on to the replica sets.
    fn spec_changed(&self, object: &Value, old: &Value) -> bool {
        let annotations = |o: &Value| o.pointer("/metadata/annotations").cloned();
        object.get("spec") != old.get("spec") || annotations(object) != annotations(old)
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        (subresource == "status").then_some(&["spec", "metadata.labels"])
    }
}

fn validate_spec(spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    checks::nonnegative(&spec.child("replicas"), errors);
    workload::selector_and_template(spec, options, errors);
    validate_strategy(&spec.child("strategy"), errors);
    workload::nonnegative(spec, &["minReadySeconds", "revisionHistoryLimit"], errors);
    let deadline = spec.child("progressDeadlineSeconds");
    if deadline.exists() {
        checks::nonnegative(&deadline, errors);
        if deadline.i64() <= spec.child("minReadySeconds").i64() {
            errors.push(Error::invalid(deadline.path(), deadline.i64(), "must be greater than minReadySeconds"));
        }
    }
}

fn validate_strategy(strategy: &View<'_>, errors: &mut ErrorList) {
    let rolling = strategy.child("rollingUpdate");
    match strategy.child("type").str() {
        "Recreate" => {
            if rolling.exists() {
                let why = "may not be specified when strategy `type` is 'Recreate'";
                errors.push(Error::forbidden(rolling.path(), why));
            }
        }
        "RollingUpdate" if !rolling.exists() => {
            errors.push(Error::required(rolling.path(), "this should be defaulted and never be nil"));
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
            checks::int_or_percent(&unavailable, errors);
            checks::int_or_percent(&surge, errors);
            if checks::int_or_percent_value(&unavailable) == 0 && checks::int_or_percent_value(&surge) == 0 {
                let why = "may not be 0 when `maxSurge` is 0";
                errors.push(Error::invalid(unavailable.path(), &unavailable, why));
            }
            checks::at_most_100_percent(&unavailable, errors);
        }
        _ => {
            let shown = workload::strategy_dump(strategy, ROLLING_UPDATE);
            errors.push(Error::not_supported(strategy.path(), shown, &["Recreate", "RollingUpdate"]));
        }
    }
}

fn validate_status(status: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    const COUNTS: &[&str] = &[
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
        "collisionCount",
    ];
    workload::nonnegative(status, COUNTS, errors);
    workload::within_replicas(status, &["updatedReplicas", "readyReplicas", "availableReplicas"], errors);
    workload::available_are_ready(status, "cannot be greater than readyReplicas", errors);
    checks::not_decremented(&status.child("collisionCount"), &old.child("collisionCount"), errors);
}
