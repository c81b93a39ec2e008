//! DaemonSet (upstream: `pkg/registry/apps/daemonset`, `ValidateDaemonSet`).

use crate::registry::core::pod_spec::{self, Options};
use crate::registry::gated::{self, Fields};
use crate::registry::resource::Resource;
use crate::registry::{checks, workload};
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};

pub struct DaemonSets;

/// Counts the changes of the template; kept as an annotation since its field is gone.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
const ROLLING_UPDATE: &[(&str, &str)] = &[("MaxUnavailable", "maxUnavailable"), ("MaxSurge", "maxSurge")];

fn template_generation(object: &Value) -> i64 {
    let annotations = object.pointer("/metadata/annotations");
    let text = annotations.and_then(|a| a.get(TEMPLATE_GENERATION)).and_then(Value::as_str);
    text.and_then(|t| t.parse().ok()).unwrap_or_default()
}

fn set_template_generation(object: &mut Value, generation: i64) {
    let annotations = workload::map_at(workload::map_at(object, "metadata"), "annotations");
    annotations[TEMPLATE_GENERATION] = generation.to_string().into();
}

impl Resource for DaemonSets {
    fn set_defaults(&self, object: &mut Value) {
        let spec = workload::map_at(object, "spec");
        let strategy = workload::map_at(spec, "updateStrategy");
        workload::default_to(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            let rolling = workload::map_at(strategy, "rollingUpdate");
            workload::default_absent(rolling, "maxUnavailable", 1);
            workload::default_absent(rolling, "maxSurge", 0);
        }
        workload::default_absent(spec, "revisionHistoryLimit", 10);
        workload::default_template(spec);
        // The annotation is always there, whatever was given.
        let generation = template_generation(object);
        set_template_generation(object, generation);
    }

    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec/template/spec", gated::POD_SPEC)]
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        let generation = template_generation(object).max(1);
        set_template_generation(object, generation);
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, subresource: &str) {
        if subresource == "status" {
            return;
        }
        let changed = object.pointer("/spec/template") != old.pointer("/spec/template");
        set_template_generation(object, template_generation(old) + i64::from(changed));
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
            workload::selector_immutable(&new, &before, &mut errors);
            validate_spec(&new.child("spec"), &workload::options_of(Some(old)), &mut errors);
        }
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        workload::warnings(object, old, false)
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn validate_spec(spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let (selector, template) = (spec.child("selector"), spec.child("template"));
    let leniency = checks::SelectorLeniency { allow_invalid_values: options.allow_invalid_label_value_in_selector };
    checks::label_selector(&selector, leniency, errors);
    if let Ok(selector) = workload::selector_of(&selector) {
        workload::matches_template(&selector, &template, errors);
    }
    if selector.exists() && checks::is_empty_selector(&selector) {
        errors.push(Error::invalid(selector.path(), &selector, "empty selector is invalid for daemonset"));
    }
    pod_spec::validate_template(&template, options, errors);
    workload::runs_forever(&template, "DaemonSet", errors);
    checks::nonnegative(&spec.child("minReadySeconds"), errors);
    validate_strategy(&spec.child("updateStrategy"), errors);
    checks::nonnegative(&spec.child("revisionHistoryLimit"), errors);
}

fn validate_strategy(strategy: &View<'_>, errors: &mut ErrorList) {
    let rolling = strategy.child("rollingUpdate");
    match strategy.child("type").str() {
        "OnDelete" => {}
        "RollingUpdate" if !rolling.exists() => errors.push(Error::required(rolling.path(), "")),
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
            for limit in [&unavailable, &surge] {
                checks::int_or_percent(limit, errors);
            }
            for limit in [&unavailable, &surge] {
                checks::at_most_100_percent(limit, errors);
            }
            let some = |limit| checks::int_or_percent_value(limit) != 0;
            match (some(&unavailable), some(&surge)) {
                (true, true) => {
                    let why = "may not be set when maxUnavailable is non-zero";
                    errors.push(Error::invalid(surge.path(), &surge, why));
                }
                (false, false) => errors.push(Error::required(unavailable.path(), "cannot be 0 when maxSurge is 0")),
                _ => {}
            }
        }
        _ => {
            let shown = workload::strategy_dump(strategy, ROLLING_UPDATE);
            errors.push(Error::not_supported(strategy.path(), shown, &["RollingUpdate", "OnDelete"]));
        }
    }
}

fn validate_status(status: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    const COUNTS: &[&str] = &[
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ];
    workload::nonnegative(status, COUNTS, errors);
    checks::not_decremented(&status.child("collisionCount"), &old.child("collisionCount"), errors);
}
