//! The status of a job: whoever runs it must keep to what its users rely on (upstream: `ValidateJobUpdateStatus`). Most
//! rules are asked only when what they are about changes, so that a status that breaks one can still be mended elsewhere.

use super::indexes;
use super::job_spec::unshown;
use crate::registry::{checks, workload};
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::time;
use std::collections::BTreeSet;

/// A status with the spec that it is about.
struct Job<'a> {
    status: View<'a>,
    complete: bool,
    failed: bool,
    failure_target: bool,
    success_criteria_met: bool,
}

impl<'a> Job<'a> {
    fn of(object: &View<'a>) -> Self {
        let status = object.child("status");
        let conditions = status.child("conditions");
        let is = |kind| conditions.items().any(|c| c.child("type").str() == kind && c.child("status").str() == "True");
        Job {
            complete: is("Complete"),
            failed: is("Failed"),
            failure_target: is("FailureTarget"),
            success_criteria_met: is("SuccessCriteriaMet"),
            status,
        }
    }

    fn finished(&self) -> bool {
        self.complete || self.failed
    }
}

pub fn validate_update(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    let (job, was) = (Job::of(new), Job::of(old));
    let spec = new.child("spec");
    counts(&job, errors);
    times(&job, &was, errors);
    finished(&job, &was, errors);
    index_sets(&spec, &job, &was, errors);
    criteria(&spec, &job, errors);
    transitions(&spec, &job, &was, errors);
}

fn refused(number: &View<'_>, why: &str) -> Error {
    Error::invalid(number.path(), number.i64(), why)
}

fn counts(job: &Job<'_>, errors: &mut ErrorList) {
    workload::nonnegative(&job.status, &["active", "succeeded", "failed", "ready", "terminating"], errors);
    let uncounted = job.status.child("uncountedTerminatedPods");
    let mut seen = BTreeSet::new();
    for list in ["succeeded", "failed"] {
        for uid in uncounted.child(list).items() {
            if uid.is_empty() {
                errors.push(Error::invalid(uid.path(), "", "must not be empty"));
            } else if !seen.insert(uid.str()) {
                errors.push(Error::duplicate(uid.path(), uid.str()));
            }
        }
    }
    let conditions = job.status.child("conditions");
    if job.complete && job.failed {
        errors.push(unshown(conditions.path(), "cannot set Complete=True and Failed=true conditions"));
    }
    if job.complete && job.failure_target {
        errors.push(unshown(conditions.path(), "cannot set Complete=True and FailureTarget=true conditions"));
    }
}

fn differs(field: &'static str, job: &Job<'_>, was: &Job<'_>) -> bool {
    !checks::same(job.status.child(field).value(), was.status.child(field).value())
}

fn times(job: &Job<'_>, was: &Job<'_>, errors: &mut ErrorList) {
    let (start, end) = (job.status.child("startTime"), job.status.child("completionTime"));
    let end_changed = differs("completionTime", job, was);
    if job.complete != was.complete || end_changed {
        if end.exists() && !job.complete {
            let why = "cannot set completionTime when there is no Complete=True condition";
            errors.push(Error::invalid(end.path(), &end, why));
        }
        if !end.exists() && job.complete {
            errors.push(Error::required(end.path(), "completionTime is required for Complete jobs"));
        }
    }
    let before = |a: &View<'_>, b: &View<'_>| match (time::parse(a.str()), time::parse(b.str())) {
        (Some(a), Some(b)) => a < b,
        _ => false,
    };
    if (end_changed || differs("startTime", job, was)) && before(&end, &start) {
        errors.push(Error::invalid(end.path(), &end, "completionTime cannot be set before startTime"));
    }
}

fn finished(job: &Job<'_>, was: &Job<'_>, errors: &mut ErrorList) {
    let status = &job.status;
    let conditions = status.child("conditions");
    if job.failed && !was.failed && !job.failure_target {
        let why = "cannot set Failed=True condition without the FailureTarget=true condition";
        errors.push(unshown(conditions.path(), why));
    }
    if job.complete && !was.complete && !job.success_criteria_met {
        let why = "cannot set Complete=True condition without the SuccessCriteriaMet=true condition";
        errors.push(unshown(conditions.path(), why));
    }
    if !job.finished() {
        return;
    }
    let newly = !was.finished();
    let active = status.child("active");
    if (newly || differs("active", job, was)) && active.i64() > 0 {
        errors.push(refused(&active, "active>0 is invalid for finished job"));
    }
    let start = status.child("startTime");
    if (newly || differs("startTime", job, was)) && !start.exists() {
        errors.push(Error::required(start.path(), "startTime is required for finished job"));
    }
    let uncounted = status.child("uncountedTerminatedPods");
    let some = !uncounted.child("failed").is_empty() || !uncounted.child("succeeded").is_empty();
    if (newly || differs("uncountedTerminatedPods", job, was)) && some {
        let why = "uncountedTerminatedPods needs to be empty for finished job";
        errors.push(Error::invalid(uncounted.path(), &uncounted, why));
    }
}

fn index_sets(spec: &View<'_>, job: &Job<'_>, was: &Job<'_>, errors: &mut ErrorList) {
    let (completed, failed) = (job.status.child("completedIndexes"), job.status.child("failedIndexes"));
    let completions = spec.child("completions");
    let per_index = spec.child("backoffLimitPerIndex").exists();
    let completed_changed = completed.str() != was.status.child("completedIndexes").str();
    let failed_changed = differs("failedIndexes", job, was);
    if completed_changed
        && completions.exists()
        && let Err(why) = indexes::count(completed.str(), completions.i64())
    {
        let why = format!("error parsing completedIndexes: {why}");
        errors.push(Error::invalid(completed.path(), completed.str(), why));
    }
    if failed_changed
        && completions.exists()
        && per_index
        && let Err(why) = indexes::count(failed.str(), completions.i64())
    {
        errors.push(Error::invalid(failed.path(), failed.str(), format!("error parsing failedIndexes: {why}")));
    }
    if completed_changed && !completed.is_empty() && spec.child("completionMode").str() != "Indexed" {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.push(Error::invalid(completed.path(), completed.str(), why));
    }
    if failed_changed && failed.exists() && !per_index {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.push(Error::invalid(failed.path(), failed.str(), why));
    }
    if (completed_changed || failed_changed)
        && let Some(index) = indexes::overlap(completed.str(), failed.str(), completions.i64())
    {
        let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
        errors.push(Error::invalid(failed.path(), failed.str(), why));
    }
    let (terminating, ready) = (job.status.child("terminating"), job.status.child("ready"));
    let newly_finished = job.finished() != was.finished();
    if (newly_finished || differs("terminating", job, was)) && terminating.i64() > 0 && job.finished() {
        errors.push(refused(&terminating, "terminating>0 is invalid for finished job"));
    }
    let counted = differs("ready", job, was) || differs("active", job, was);
    if counted && ready.i64() > job.status.child("active").i64() {
        errors.push(refused(&ready, "cannot set more ready pods than active"));
    }
}

fn criteria(spec: &View<'_>, job: &Job<'_>, errors: &mut ErrorList) {
    let conditions = job.status.child("conditions");
    let mut refuse = |why: &str| errors.push(unshown(conditions.path(), why));
    if job.success_criteria_met && job.failed {
        refuse("cannot set SuccessCriteriaMet=True and Failed=true conditions");
    }
    if job.success_criteria_met && job.failure_target {
        refuse("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    }
    if spec.child("successPolicy").exists() && !job.success_criteria_met && job.complete {
        refuse("cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True");
    }
}

/// What cannot be taken back.
fn transitions(spec: &View<'_>, job: &Job<'_>, was: &Job<'_>, errors: &mut ErrorList) {
    let status = &job.status;
    let conditions = status.child("conditions");
    for (name, is, was) in [
        ("Failed", job.failed, was.failed),
        ("Complete", job.complete, was.complete),
        ("FailureTarget", job.failure_target, was.failure_target),
    ] {
        if was && !is {
            errors.push(unshown(conditions.path(), format!("cannot disable the terminal {name}=True condition")));
        }
    }
    let fell = |field: &'static str| status.child(field).i64() < was.status.child(field).i64();
    if fell("failed") {
        errors.push(refused(&status.child("failed"), "cannot decrease the failed counter"));
    }
    // A job that is scaled down may have succeeded less often than before.
    let scalable = spec.child("completionMode").str() == "Indexed"
        && spec.child("completions").value() == spec.child("parallelism").value();
    if !scalable && fell("succeeded") {
        errors.push(refused(&status.child("succeeded"), "cannot decrease the succeeded counter"));
    }
    let (end, had_end) = (status.child("completionTime"), was.status.child("completionTime"));
    if end.exists() && had_end.exists() && end.str() != had_end.str() {
        errors.push(Error::invalid(end.path(), &end, "field is immutable once set"));
    }
    let (start, had_start) = (status.child("startTime"), was.status.child("startTime"));
    if had_start.exists() && start.value() != had_start.value() && !spec.child("suspend").bool() {
        errors.push(Error::invalid(start.path(), &start, "field is immutable for unsuspended job once set"));
    }
    if was.success_criteria_met && !job.success_criteria_met {
        errors.push(unshown(conditions.path(), "cannot disable the SuccessCriteriaMet=True condition"));
    }
    if was.complete && !was.success_criteria_met && job.success_criteria_met {
        let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        errors.push(unshown(conditions.path(), why));
    }
}
