//! What a Deployment's status says: counts, and the conditions Available, Progressing and ReplicaFailure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::rollout::{self, Sets};
use crate::common::{owners, time};

pub(super) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

pub(super) fn condition<'a>(status: Option<&'a DeploymentStatus>, kind: &str) -> Option<&'a DeploymentCondition> {
    status?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn new_condition(kind: &str, status: &str, reason: &str, message: impl Into<String>) -> DeploymentCondition {
    let now = time::now();
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != kind);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// Sets a condition unless it has that status and reason already.
fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(present) = condition(Some(status), &new.type_) {
        if present.status == new.status && present.reason == new.reason {
            return;
        }
        if present.status == new.status {
            new.last_transition_time = present.last_transition_time.clone();
        }
    }
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

pub(super) fn set_progressing(deployment: &mut Deployment, status: &str, reason: &str, message: String) {
    let condition = new_condition(PROGRESSING, status, reason, message);
    set(deployment.status.get_or_insert_default(), condition);
}

pub(super) fn has_progress_deadline(deployment: &Deployment) -> bool {
    deadline(deployment).is_some()
}

fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)
}

/// Says that a Deployment was paused or resumed, so that the pause does not count as lack of progress.
pub(super) fn set_paused_condition(deployment: &mut Deployment) -> bool {
    if !has_progress_deadline(deployment) {
        return false;
    }
    let present = condition(deployment.status.as_ref(), PROGRESSING).and_then(|found| found.reason.as_deref());
    if present == Some(TIMED_OUT) {
        return false;
    }
    let said = present == Some(PAUSED);
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    match (paused, said) {
        (true, false) => set_progressing(deployment, "Unknown", PAUSED, "Deployment is paused".to_owned()),
        (false, true) => {
            set_progressing(deployment, "Unknown", "DeploymentResumed", "Deployment is resumed".to_owned());
        }
        _ => return false,
    }
    true
}

pub(super) fn is_complete(deployment: &Deployment, status: Option<&DeploymentStatus>) -> bool {
    let Some(status) = status else { return false };
    let wanted = rollout::replicas(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(before: Option<&DeploymentStatus>, now: &DeploymentStatus) -> bool {
    let default = DeploymentStatus::default();
    let before = before.unwrap_or(&default);
    let count = |number: Option<i32>| number.unwrap_or(0);
    let old = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(now.updated_replicas) > count(before.updated_replicas)
        || old(now) < old(before)
        || count(now.ready_replicas) > count(before.ready_replicas)
        || count(now.available_replicas) > count(before.available_replicas)
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let (Some(deadline), Some(present)) = (deadline(deployment), condition(Some(status), PROGRESSING)) else {
        return false;
    };
    match present.reason.as_deref() {
        Some(NEW_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => present
            .last_update_time
            .as_ref()
            .is_some_and(|updated| now.duration_since(updated.0).as_secs() >= i64::from(deadline)),
    }
}

/// How long until an unfinished rollout must be looked at again, because its deadline is over by then.
pub(super) fn until_stuck(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let present = condition(deployment.status.as_ref(), PROGRESSING)?;
    let deadline = deadline(deployment)?;
    if is_complete(deployment, Some(status)) || matches!(present.reason.as_deref(), Some(TIMED_OUT | NEW_AVAILABLE)) {
        return None;
    }
    let updated = present.last_update_time.as_ref()?;
    Some(Duration::from_secs(deadline.max(0) as u64).saturating_sub(time::since(updated, now)))
}

/// The counts and the Available condition.
pub(super) fn calculate(deployment: &Deployment, sets: &Sets) -> DeploymentStatus {
    let sum = |count: fn(&ReplicaSet) -> i32| sets.all().map(count).sum::<i32>();
    let actual = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
    let total = sum(|set| set.status.as_ref().map_or(0, |status| status.replicas));
    // What is asked for and not available, whether or not there is a pod for it.
    let wanted = sum(rollout::size);
    let available = sum(|set| set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0));
    let ready = sum(|set| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0));
    let terminating: Option<i32> =
        sets.all().map(|set| set.status.as_ref().and_then(|status| status.terminating_replicas)).sum();
    let some = |count: i32| (count != 0).then_some(count);
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(total),
        updated_replicas: some(sets.new.as_ref().map_or(0, actual)),
        ready_replicas: some(ready),
        available_replicas: some(available),
        unavailable_replicas: some((wanted - available).max(0)),
        terminating_replicas: terminating,
        collision_count: before.collision_count,
        conditions: before.conditions,
    };
    let enough = available >= rollout::replicas(deployment) - rollout::max_unavailable(deployment);
    let available = if enough {
        new_condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        new_condition(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    set(&mut status, available);
    status
}

/// The status during a rollout: the counts, and whether it gets on.
pub(super) fn of_rollout(deployment: &Deployment, sets: &Sets, now: Timestamp) -> DeploymentStatus {
    let mut status = calculate(deployment, sets);
    let before = deployment.status.as_ref();
    if !has_progress_deadline(deployment) {
        remove(&mut status, PROGRESSING);
    }
    let present = condition(before, PROGRESSING).cloned();
    let finished = status.replicas == status.updated_replicas
        && present.as_ref().is_some_and(|present| present.reason.as_deref() == Some(NEW_AVAILABLE));
    if has_progress_deadline(deployment) && !finished {
        let subject = match &sets.new {
            Some(new) => format!("ReplicaSet \"{}\"", owners::name(&new.metadata)),
            None => format!("Deployment \"{}\"", owners::name(&deployment.metadata)),
        };
        if is_complete(deployment, Some(&status)) {
            let message = format!("{subject} has successfully progressed.");
            set(&mut status, new_condition(PROGRESSING, "True", NEW_AVAILABLE, message));
        } else if has_progressed(before, &status) {
            let mut new = new_condition(PROGRESSING, "True", "ReplicaSetUpdated", format!("{subject} is progressing."));
            if let Some(present) = present.filter(|present| present.status == "True") {
                new.last_transition_time = present.last_transition_time;
            }
            // Set anew even when nothing but the time changes: the deadline counts from the last progress.
            remove(&mut status, PROGRESSING);
            status.conditions.get_or_insert_default().push(new);
        } else if has_timed_out(deployment, &status, now) {
            let message = format!("{subject} has timed out progressing.");
            set(&mut status, new_condition(PROGRESSING, "False", TIMED_OUT, message));
        }
    }
    match replica_failure(sets) {
        Some(failure) => set(&mut status, failure),
        None => remove(&mut status, REPLICA_FAILURE),
    }
    status
}

/// The new ReplicaSet's failure to make pods, or else that of another one.
fn replica_failure(sets: &Sets) -> Option<DeploymentCondition> {
    sets.new.iter().chain(&sets.old).find_map(|set| {
        let failure = set.status.as_ref()?.conditions.iter().flatten().find(|found| found.type_ == REPLICA_FAILURE)?;
        Some(DeploymentCondition {
            type_: failure.type_.clone(),
            status: failure.status.clone(),
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            last_transition_time: failure.last_transition_time.clone(),
            last_update_time: failure.last_transition_time.clone(),
        })
    })
}
