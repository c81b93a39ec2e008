//! Job (upstream: `pkg/registry/batch/job`, `ValidateJob`).

use super::{job_spec, job_status};
use crate::registry::core::pod_spec::Options;
use crate::registry::gated::{self, Fields};
use crate::registry::resource::{MetadataChecks, Propagation, Resource};
use crate::registry::{checks, metadata, workload};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::selector::Selector;
use coxswain_api::{Map, Value, json, names};

pub struct Jobs;

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const LEGACY_CONTROLLER_UID: &str = "controller-uid";
const LEGACY_JOB_NAME: &str = "job-name";

const BACKOFF_LIMIT: i64 = 6;

impl Resource for Jobs {
    fn set_defaults(&self, object: &mut Value) {
        let spec = workload::map_at(object, "spec");
        let absent = |spec: &Value, field: &str| spec.get(field).is_none_or(Value::is_null);
        if absent(spec, "completions") && absent(spec, "parallelism") {
            spec["completions"] = 1.into();
        }
        workload::default_absent(spec, "parallelism", 1);
        let limit = if absent(spec, "backoffLimitPerIndex") { BACKOFF_LIMIT } else { i64::from(i32::MAX) };
        workload::default_absent(spec, "backoffLimit", limit);
        workload::default_absent(spec, "completionMode", "NonIndexed");
        workload::default_absent(spec, "suspend", false);
        workload::default_absent(spec, "manualSelector", false);
        let policy = if absent(spec, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
        workload::default_absent(spec, "podReplacementPolicy", policy);
        workload::default_template(spec);
        job_spec::default_conditions(spec);
        default_labels(object);
    }

    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec/template/spec", gated::POD_SPEC)]
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        if object.pointer("/spec/manualSelector").and_then(Value::as_bool) != Some(true) {
            generate_selector(object);
        }
        default_labels(object);
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        validate_job(object, &Options::default(), true, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        let (new, before) = (View::root(object), View::root(old));
        if subresource == "status" {
            job_status::validate_update(&new, &before, &mut errors);
            return errors;
        }
        let options = workload::options_of(Some(old));
        let labels = before.child("spec").child("template").child("metadata").child("labels");
        let prefixed = [JOB_NAME, CONTROLLER_UID].iter().all(|key| labels.child_named(key).exists());
        // Everything is checked as of a new object, and then as a change.
        errors.extend(metadata::validate_for(self, object, true));
        validate_job(object, &options, prefixed, &mut errors);
        errors.extend(metadata::validate_update(object, old));
        job_spec::validate(&new.child("spec"), &options, &mut errors);
        job_spec::validate_update(&new.child("spec"), &before, &mut errors);
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        if !workload::warns(object, old) {
            return Vec::new();
        }
        let mut warnings: Vec<String> = workload::name_warning(object).filter(|_| old.is_none()).into_iter().collect();
        warnings.extend(job_spec::warnings(&View::root(object).child("spec")));
        warnings
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn default_propagation(&self, _object: &Value) -> Propagation {
        Propagation::Orphan
    }

    fn open_propagation_warning(&self) -> Option<&'static str> {
        Some(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or \
             set propagationPolicy=Orphan to suppress this warning",
        )
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.successful", View::root(object).child("status").child("succeeded").i64().to_string())]
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: subresource == "status", whole: false, whole_first: false }
    }
}

/// A job without labels has those of its pods.
fn default_labels(job: &mut Value) {
    let Some(labels) = job.pointer("/spec/template/metadata/labels").cloned() else { return };
    if labels.as_object().is_none_or(|l| l.is_empty()) {
        return;
    }
    let metadata = workload::map_at(job, "metadata");
    if metadata.get("labels").and_then(Value::as_object).is_none_or(|l| l.is_empty()) {
        metadata["labels"] = labels;
    }
}

/// Labels that no other job's pods have, and the selector for them. What is there already is left: if it conflicts, the
/// job is refused.
fn generate_selector(job: &mut Value) {
    let name = metadata::text(job, "name").to_owned();
    let uid = metadata::text(job, "uid").to_owned();
    let spec = workload::map_at(job, "spec");
    let labels = workload::map_at(workload::map_at(workload::map_at(spec, "template"), "metadata"), "labels");
    for (key, value) in
        [(LEGACY_JOB_NAME, &name), (JOB_NAME, &name), (LEGACY_CONTROLLER_UID, &uid), (CONTROLLER_UID, &uid)]
    {
        if labels.get(key).is_none() {
            labels[key] = value.as_str().into();
        }
    }
    let wanted = workload::map_at(workload::map_at(spec, "selector"), "matchLabels");
    if wanted.get(CONTROLLER_UID).is_none() {
        wanted[CONTROLLER_UID] = uid.into();
    }
}

fn validate_job(object: &Value, options: &Options, prefixed: bool, errors: &mut ErrorList) {
    let job = View::root(object);
    let spec = job.child("spec");
    generated_selector(&job, prefixed, errors);
    job_spec::validate(&spec, options, errors);
    let completions = spec.child("completions").i64();
    if spec.child("completionMode").str() == "Indexed" && completions > 0 {
        let name = metadata::text(object, "name");
        let host = format!("{name}-{}", completions - 1);
        if !names::dns1123_label(&host, false).is_empty() {
            let why = format!("will not able to create pod with invalid DNS label: {host}");
            errors.push(Error::invalid(&Path::new("metadata").child("name"), name, why));
        }
    }
}

/// The generated labels and the selector are those of this job.
fn generated_selector(job: &View<'_>, prefixed: bool, errors: &mut ErrorList) {
    let spec = job.child("spec");
    let selector = spec.child("selector");
    if spec.child("manualSelector").bool() || !selector.exists() {
        return;
    }
    let meta = job.child("metadata");
    let (name, uid) = (meta.child("name").str(), meta.child("uid"));
    checks::required(&uid, errors);
    let uid = uid.str();
    let labels = spec.child("template").child("metadata").child("labels");
    let mut expected = vec![(LEGACY_CONTROLLER_UID, uid), (LEGACY_JOB_NAME, name)];
    if prefixed {
        expected.extend([(CONTROLLER_UID, uid), (JOB_NAME, name)]);
    }
    for (key, value) in &expected {
        let at = labels.path().key(key);
        match labels.child_named(key).opt_str() {
            None => errors.push(Error::required(&at, format!("must be '{value}'"))),
            Some(found) if found != *value => {
                errors.push(Error::invalid(&at, &labels, format!("must be '{value}'")));
            }
            Some(_) => {}
        }
    }
    let expected: Map<String, Value> = expected.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    if let Ok(wanted) = Selector::from_label_selector(selector.value())
        && !wanted.matches_labels(Some(&Value::Object(expected)))
    {
        errors.push(Error::invalid(selector.path(), &selector, "`selector` not auto-generated"));
    }
}
