//! CronJob (upstream: `pkg/registry/batch/cronjob`, `ValidateCronJob`).

use super::{job_spec, schedule};
use crate::registry::core::pod_spec::Options;
use crate::registry::gated::{self, Fields};
use crate::registry::resource::Resource;
use crate::registry::{checks, metadata, workload};
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, Path, View};

pub struct CronJobs;

/// A job's name is that of its cron job and eleven characters more, and has at most 63.
const NAME_BYTES_MAX: usize = 52;
const ZONE_PART_BYTES_MAX: usize = 14;

impl Resource for CronJobs {
    fn set_defaults(&self, object: &mut Value) {
        let spec = workload::map_at(object, "spec");
        workload::default_to(spec, "concurrencyPolicy", "Allow");
        workload::default_absent(spec, "suspend", false);
        workload::default_absent(spec, "successfulJobsHistoryLimit", 3);
        workload::default_absent(spec, "failedJobsHistoryLimit", 1);
        let job = workload::map_at(workload::map_at(spec, "jobTemplate"), "spec");
        workload::default_template(job);
        job_spec::default_conditions(job);
    }

    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec/jobTemplate/spec/template/spec", gated::POD_SPEC)]
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        validate_spec(&View::root(object).child("spec"), None, &mut errors);
        let name = metadata::text(object, "name");
        if name.len() > NAME_BYTES_MAX {
            let path = Path::new("metadata").child("name");
            errors.push(Error::invalid(&path, name, "must be no more than 52 characters"));
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        if subresource != "status" {
            let old = View::root(old).child("spec");
            validate_spec(&View::root(object).child("spec"), Some(&old), &mut errors);
        }
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        let spec = View::root(object).child("spec");
        if old.is_none() {
            warnings.extend(workload::name_warning(object));
        }
        if workload::warns(object, old) {
            warnings.extend(job_spec::warnings(&spec.child("jobTemplate").child("spec")));
            let when = spec.child("schedule");
            if when.str().contains("TZ") {
                warnings.push(format!(
                    "CRON_TZ or TZ used in {} is not officially supported, see \
                     https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
                    when.path()
                ));
            }
        }
        warnings
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn validate_spec(spec: &View<'_>, old: Option<&View<'_>>, errors: &mut ErrorList) {
    let when = spec.child("schedule");
    let zone = spec.child("timeZone");
    if when.is_empty() {
        errors.push(Error::required(when.path(), ""));
    } else {
        if let Err(why) = schedule::check(when.str()) {
            errors.push(Error::invalid(when.path(), when.str(), why));
        }
        let had_zone = old.is_some_and(|o| o.child("schedule").str().contains("TZ"));
        match when.str().contains("TZ") {
            true if !had_zone => {
                let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
                errors.push(Error::invalid(when.path(), when.str(), why));
            }
            true if zone.exists() => {
                let why = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
                errors.push(Error::invalid(when.path(), when.str(), why));
            }
            _ => {}
        }
    }
    checks::nonnegative(&spec.child("startingDeadlineSeconds"), errors);
    if old.is_none_or(|o| o.child("timeZone").value() != zone.value()) {
        validate_zone(&zone, errors);
    }
    checks::one_of(&spec.child("concurrencyPolicy"), &["Allow", "Forbid", "Replace"], errors);
    let job = spec.child("jobTemplate").child("spec");
    let template = old.map(|o| o.child("jobTemplate").child("spec").child("template"));
    job_spec::validate_common(&job, &Options::of_old(template.as_ref(), false), errors);
    let selector = job.child("selector");
    if selector.exists() {
        errors.push(Error::invalid(selector.path(), &selector, "`selector` will be auto-generated"));
    }
    let manual = job.child("manualSelector");
    if manual.bool() {
        errors.push(Error::not_supported(manual.path(), true, &["nil", "false"]));
    }
    workload::nonnegative(spec, &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"], errors);
}

fn validate_zone(zone: &View<'_>, errors: &mut ErrorList) {
    let Some(name) = zone.opt_str() else { return };
    if name.is_empty() {
        errors.push(Error::invalid(zone.path(), name, "timeZone must be nil or non-empty string"));
        return;
    }
    let fits = |part: &str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || b".-_+".contains(&b);
        !matches!(part, "" | "." | "..")
            && !part.starts_with('-')
            && part.len() <= ZONE_PART_BYTES_MAX
            && part.bytes().all(known)
    };
    if !name.split('/').all(fits) {
        errors.push(Error::invalid(zone.path(), name, format!("unknown time zone {name}")));
        return;
    }
    if name.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.push(Error::invalid(zone.path(), name, why));
    }
    if let Err(why) = schedule::time_zone(name) {
        errors.push(Error::invalid(zone.path(), name, why));
    }
}
