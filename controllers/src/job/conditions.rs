//! Conditions of Jobs.

use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

use crate::common::time;

pub fn new(kind: &str, status: &str, reason: &str, message: &str) -> JobCondition {
    let now = time::now();
    JobCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}

/// A condition that is true.
pub fn find<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind && condition.status == "True")
}

pub fn is_true(status: &JobStatus, kind: &str) -> bool {
    find(status, kind).is_some()
}

pub fn is_finished(status: &JobStatus) -> bool {
    is_true(status, "Complete") || is_true(status, "Failed")
}

/// Adds a condition unless there is one of its type.
pub fn add(status: &mut JobStatus, condition: JobCondition) {
    if !status.conditions.iter().flatten().any(|present| present.type_ == condition.type_) {
        status.conditions.get_or_insert_default().push(condition);
    }
}

/// Adds a condition or replaces that of its type.
pub fn set(status: &mut JobStatus, condition: JobCondition) {
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|present| present.type_ == condition.type_) {
        Some(present) => *present = condition,
        None => conditions.push(condition),
    }
}
