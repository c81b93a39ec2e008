//! The spec of a job, its own or a cron job's (upstream: `ValidateJobSpec`, `ValidateJobSpecUpdate`).

use super::indexes;
use crate::registry::core::pod_spec::{self, Options};
use crate::registry::internal::Dump;
use crate::registry::{checks, workload};
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Value, json};
use std::collections::BTreeSet;

const INDEXED: &str = "Indexed";
const PARALLELISM_MAX: i64 = 100_000;
const FAILED_INDEXES_MAX: i64 = 100_000;
/// Above so many completions, limits are narrower.
const COMPLETIONS_SOFT_MAX: i64 = 100_000;
const PARALLELISM_MAX_IF_MANY: i64 = 10_000;
const FAILED_INDEXES_MAX_IF_MANY: i64 = 10_000;
const FAILURE_RULES_MAX: i64 = 20;
const EXIT_CODES_MAX: i64 = 255;
const CONDITION_PATTERNS_MAX: i64 = 20;
const SUCCESS_RULES_MAX: i64 = 20;
const SUCCEEDED_INDEXES_BYTES_MAX: i64 = 64 * 1024;
const MANAGED_BY_BYTES_MAX: i64 = 63;

/// What is missing in a rule's pattern of a condition is that it is true.
pub fn default_conditions(spec: &mut Value) {
    let rules = spec.pointer_mut("/podFailurePolicy/rules").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        let patterns = rule.get_mut("onPodConditions").and_then(Value::as_array_mut);
        for pattern in patterns.into_iter().flatten() {
            workload::default_to(pattern, "status", "True");
        }
    }
}

pub fn warnings(spec: &View<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    if spec.child("completionMode").str() == INDEXED
        && spec.child("completions").i64() > COMPLETIONS_SOFT_MAX
        && spec.child("parallelism").i64() > PARALLELISM_MAX_IF_MANY
    {
        warnings.push(format!(
            "{}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
             Kubernetes might not be able to track completedIndexes when a big number of indexes fail",
            spec.path()
        ));
    }
    warnings.extend(pod_spec::for_template(&spec.child("template")));
    warnings
}

/// The spec of a job of its own, with its selector.
pub fn validate(spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    validate_common(spec, options, errors);
    let selector = spec.child("selector");
    if selector.exists() {
        let leniency = checks::SelectorLeniency { allow_invalid_values: options.allow_invalid_label_value_in_selector };
        checks::label_selector(&selector, leniency, errors);
    } else {
        errors.push(Error::required(selector.path(), ""));
    }
    if let Ok(selector) = workload::selector_of(&selector) {
        workload::matches_template(&selector, &spec.child("template"), errors);
    }
}

/// Everything but the selector.
pub fn validate_common(spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    const COUNTS: &[&str] = &[
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    workload::nonnegative(spec, COUNTS, errors);
    let per_index = spec.child("backoffLimitPerIndex");
    let max_failed = spec.child("maxFailedIndexes");
    if max_failed.exists() && !per_index.exists() {
        errors.push(Error::required(per_index.path(), "when maxFailedIndexes is specified"));
    }
    let managed_by = spec.child("managedBy");
    if let Some(manager) = managed_by.opt_str() {
        checks::domain_prefixed_path(&managed_by, errors);
        if manager.len() as i64 > MANAGED_BY_BYTES_MAX {
            errors.push(Error::too_long(managed_by.path(), MANAGED_BY_BYTES_MAX));
        }
    }
    completion_mode(spec, errors);
    let failure = spec.child("podFailurePolicy");
    if failure.exists() {
        failure_policy(spec, &failure.child("rules"), errors);
    }
    let success = spec.child("successPolicy");
    if success.exists() {
        if spec.child("completionMode").str() == INDEXED {
            success_policy(spec, &success.child("rules"), errors);
        } else {
            errors.push(Error::invalid(success.path(), success_dump(&success), "requires indexed completion mode"));
        }
    }
    let replacement = spec.child("podReplacementPolicy");
    if replacement.exists() {
        let known: &[&str] = if failure.exists() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        checks::supported_value(&replacement, known, errors);
    }

    let template = spec.child("template");
    pod_spec::validate_template(&template, options, errors);
    let restart = template.child("spec").child("restartPolicy");
    match restart.str() {
        "" | "Always" => {
            errors.push(Error::required(restart.path(), "valid values: \"OnFailure\", \"Never\""));
        }
        "Never" => {}
        "OnFailure" if failure.exists() => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(Error::invalid(restart.path(), "OnFailure", why));
        }
        "OnFailure" => {}
        other => errors.push(Error::not_supported(restart.path(), other, &["OnFailure", "Never"])),
    }
}

fn completion_mode(spec: &View<'_>, errors: &mut ErrorList) {
    let mode = spec.child("completionMode");
    match mode.opt_str() {
        None | Some("NonIndexed") => {
            for number in [spec.child("backoffLimitPerIndex"), spec.child("maxFailedIndexes")] {
                if number.exists() {
                    errors.push(refused(&number, "requires indexed completion mode"));
                }
            }
        }
        Some(INDEXED) => indexed(spec, errors),
        Some(other) => errors.push(Error::not_supported(mode.path(), other, &["NonIndexed", INDEXED])),
    }
}

fn refused(number: &View<'_>, why: impl Into<String>) -> Error {
    Error::invalid(number.path(), number.i64(), why)
}

/// The numbers of an indexed job bound the length of the lists in its status.
fn indexed(spec: &View<'_>, errors: &mut ErrorList) {
    let (parallelism, completions) = (spec.child("parallelism"), spec.child("completions"));
    let max_failed = spec.child("maxFailedIndexes");
    if !completions.exists() {
        errors.push(Error::required(completions.path(), "when completion mode is Indexed"));
    }
    if parallelism.i64() > PARALLELISM_MAX {
        let why = format!("must be less than or equal to {PARALLELISM_MAX} when completion mode is {INDEXED}");
        errors.push(refused(&parallelism, why));
    }
    if completions.exists() && max_failed.i64() > completions.i64() {
        errors.push(refused(&max_failed, "must be less than or equal to completions"));
    }
    if max_failed.i64() > FAILED_INDEXES_MAX {
        errors.push(refused(&max_failed, format!("must be less than or equal to {FAILED_INDEXES_MAX}")));
    }
    if completions.i64() <= COMPLETIONS_SOFT_MAX || !spec.child("backoffLimitPerIndex").exists() {
        return;
    }
    if !max_failed.exists() {
        let why = format!("must be specified when completions is above {COMPLETIONS_SOFT_MAX}");
        errors.push(Error::required(max_failed.path(), why));
    }
    for (number, max) in [(&parallelism, PARALLELISM_MAX_IF_MANY), (&max_failed, FAILED_INDEXES_MAX_IF_MANY)] {
        if number.i64() > max {
            let why = format!(
                "must be less than or equal to {max} when completions are above {COMPLETIONS_SOFT_MAX} and used with \
                 backoff limit per index"
            );
            errors.push(refused(number, why));
        }
    }
}

/// One of the values, which are named if there is none.
fn choice(value: &View<'_>, known: &[&str], errors: &mut ErrorList) {
    if value.is_empty() {
        let quoted: Vec<String> = known.iter().map(|k| format!("{k:?}")).collect();
        errors.push(Error::required(value.path(), format!("valid values: [{}]", quoted.join(" "))));
    } else {
        checks::supported_value(value, known, errors);
    }
}

fn failure_policy(spec: &View<'_>, rules: &View<'_>, errors: &mut ErrorList) {
    if rules.len() as i64 > FAILURE_RULES_MAX {
        errors.push(Error::too_many(rules.path(), rules.len(), FAILURE_RULES_MAX));
    }
    let pod = spec.child("template").child("spec");
    let names: BTreeSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod.child(list).items())
        .map(|container| container.child("name").str())
        .collect();
    for rule in rules.items() {
        let action = rule.child("action");
        if action.str() != "FailIndex" {
            choice(&action, &["Count", "FailIndex", "FailJob", "Ignore"], errors);
        } else if !spec.child("backoffLimitPerIndex").exists() {
            let why = "requires the backoffLimitPerIndex to be set";
            errors.push(Error::invalid(action.path(), action.str(), why));
        }
        let (codes, conditions) = (rule.child("onExitCodes"), rule.child("onPodConditions"));
        if codes.exists() {
            exit_codes(&codes, &names, errors);
        }
        if conditions.len() as i64 > CONDITION_PATTERNS_MAX {
            errors.push(Error::too_many(conditions.path(), conditions.len(), CONDITION_PATTERNS_MAX));
        }
        for pattern in conditions.items() {
            checks::qualified_name(&pattern.child("type"), errors);
            choice(&pattern.child("status"), &["False", "True", "Unknown"], errors);
        }
        let mut refuse = |why: &str| errors.push(unshown(rule.path(), why));
        match (codes.exists(), conditions.is_empty()) {
            (true, false) => refuse("specifying both OnExitCodes and OnPodConditions is not supported"),
            (false, true) => refuse("specifying one of OnExitCodes and OnPodConditions is required"),
            _ => {}
        }
    }
}

fn exit_codes(codes: &View<'_>, containers: &BTreeSet<&str>, errors: &mut ErrorList) {
    let operator = codes.child("operator");
    choice(&operator, &["In", "NotIn"], errors);
    let container = codes.child("containerName");
    if container.opt_str().is_some_and(|name| !containers.contains(name)) {
        let why = "must be one of the container or initContainer names in the pod template";
        errors.push(Error::invalid(container.path(), container.str(), why));
    }
    let values = codes.child("values");
    if values.is_empty() {
        errors.push(Error::invalid(values.path(), &values, "at least one value is required"));
    } else if values.len() as i64 > EXIT_CODES_MAX {
        errors.push(Error::too_many(values.path(), values.len(), EXIT_CODES_MAX));
    }
    let (mut ordered, mut last, mut seen) = (true, i64::MIN, BTreeSet::new());
    for value in values.items() {
        let code = value.i64();
        if operator.str() == "In" && code == 0 {
            errors.push(Error::invalid(value.path(), code, "must not be 0 for the In operator"));
        }
        if !seen.insert(code) {
            errors.push(Error::duplicate(value.path(), code));
        }
        ordered &= last <= code;
        last = code;
    }
    if !ordered {
        errors.push(Error::invalid(values.path(), &values, "must be ordered"));
    }
}

fn success_policy(spec: &View<'_>, rules: &View<'_>, errors: &mut ErrorList) {
    if rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        errors.push(Error::required(rules.path(), why));
    }
    if rules.len() as i64 > SUCCESS_RULES_MAX {
        errors.push(Error::too_many(rules.path(), rules.len(), SUCCESS_RULES_MAX));
    }
    let completions = spec.child("completions").i64();
    for rule in rules.items() {
        let (count, succeeded) = (rule.child("succeededCount"), rule.child("succeededIndexes"));
        if !count.exists() && !succeeded.exists() {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            errors.push(Error::required(rule.path(), why));
        }
        let mut total = 0;
        if let Some(text) = succeeded.opt_str() {
            if text.len() as i64 > SUCCEEDED_INDEXES_BYTES_MAX {
                errors.push(Error::too_long(succeeded.path(), SUCCEEDED_INDEXES_BYTES_MAX));
            }
            match indexes::count(text, completions) {
                Ok(count) => total = count,
                Err(why) => {
                    let why = format!("error parsing succeededIndexes: {why}");
                    errors.push(Error::invalid(succeeded.path(), text, why));
                }
            }
        }
        if !count.exists() {
            continue;
        }
        checks::nonnegative(&count, errors);
        let mut at_most = |max: i64, of: &str| {
            if count.i64() > max {
                let why = format!("must be less than or equal to {max} (the number of {of})");
                errors.push(Error::invalid(count.path(), count.i64(), why));
            }
        };
        at_most(completions, "specified completions");
        if succeeded.exists() {
            at_most(total, "indexes in the specified succeededIndexes field");
        }
    }
}

/// `before` is the whole job as it was.
pub fn validate_update(spec: &View<'_>, before: &View<'_>, errors: &mut ErrorList) {
    let old = before.child("spec");
    let (completions, was) = (spec.child("completions"), old.child("completions"));
    if spec.child("completionMode").str() != INDEXED {
        checks::immutable(&completions, &was, errors);
    } else if completions.exists()
        && completions.value() != was.value()
        && completions.i64() != spec.child("parallelism").i64()
    {
        let why = "can only be modified in tandem with spec.parallelism";
        errors.push(Error::invalid(completions.path(), completions.i64(), why));
    }
    checks::immutable(&spec.child("selector"), &old.child("selector"), errors);
    let template = spec.child("template");
    let expected = expected_template(&template, before);
    checks::immutable(&template, &View::new(Some(&expected), template.path().clone()), errors);
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        checks::immutable(&spec.child(field), &old.child(field), errors);
    }
}

/// The template as it was, and of the new one what may change: where a suspended job runs, and what it takes.
fn expected_template(new: &View<'_>, before: &View<'_>) -> Value {
    let mut expected = before.child("spec").child("template").value().cloned().unwrap_or_else(|| json!({}));
    let status = before.child("status");
    let suspended = status
        .child("conditions")
        .items()
        .any(|c| c.child("type").str() == "Suspended" && c.child("status").str() == "True");
    let idle = !status.child("startTime").exists() || suspended && status.child("active").i64() == 0;
    if !before.child("spec").child("suspend").bool() || !idle {
        return expected;
    }
    let whole = new.value().cloned().unwrap_or_default();
    let meta = workload::map_at(&mut expected, "metadata");
    let none = json!({});
    let new_meta = whole.get("metadata").unwrap_or(&none);
    for field in ["annotations", "labels"] {
        workload::restore(meta, new_meta, field);
    }
    let new_spec = whole.get("spec").unwrap_or(&none);
    let spec = workload::map_at(&mut expected, "spec");
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        workload::restore(spec, new_spec, field);
    }
    let node_affinity = new_spec.pointer("/affinity/nodeAffinity").cloned();
    let others = |a: &Value| a.get("podAffinity").is_some() || a.get("podAntiAffinity").is_some();
    match (new_spec.get("affinity"), spec.get("affinity")) {
        (None, Some(old)) if !others(old) => workload::restore(spec, &none, "affinity"),
        (None, Some(_)) => workload::restore(&mut spec["affinity"], &none, "nodeAffinity"),
        (Some(_), _) => {
            let affinity = workload::map_at(spec, "affinity");
            let kept = node_affinity.map_or_else(|| json!({}), |n| json!({"nodeAffinity": n}));
            workload::restore(affinity, &kept, "nodeAffinity");
        }
        (None, None) => {}
    }
    for list in ["containers", "initContainers"] {
        let new = new_spec.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        let old = spec.get_mut(list).and_then(Value::as_array_mut);
        for (old, new) in old.into_iter().flatten().zip(&new) {
            workload::restore(old, new, "resources");
        }
    }
    if !meta_given(before) && whole.get("metadata").is_none() {
        workload::restore(&mut expected, &none, "metadata");
    }
    expected
}

fn meta_given(before: &View<'_>) -> bool {
    before.child("spec").child("template").child("metadata").exists()
}

/// A success policy in upstream's internal form.
fn success_dump(policy: &View<'_>) -> Dump {
    let rules: Vec<String> = policy
        .child("rules")
        .items()
        .map(|rule| {
            let show = |field: &'static str| rule.child(field).value().cloned().unwrap_or_default().to_string();
            format!(
                "{{\"SucceededIndexes\":{},\"SucceededCount\":{}}}",
                show("succeededIndexes"),
                show("succeededCount")
            )
        })
        .collect();
    let rules = if rules.is_empty() { "null".to_owned() } else { format!("[{}]", rules.join(",")) };
    Dump(format!("{{\"Rules\":{rules}}}"))
}

/// Something invalid that is not shown.
pub fn unshown(path: &Path, why: impl Into<String>) -> Error {
    Error { bad_value: None, ..Error::invalid(path, "", why) }
}
