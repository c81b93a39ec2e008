//! The status that a set's pods amount to.

use std::sync::Arc;

use coxswain_client::{errors, kube};
use jiff::Timestamp;

use super::kind::View;
use crate::common::slim::SlimPod;
use crate::common::{pods, selector, time};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Status {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    pub terminating: i32,
    pub conditions: Vec<Condition>,
}

/// What the condition types of both kinds have in common.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    pub kind: String,
    pub status: String,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub last_transition_time: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
}

const REPLICA_FAILURE: &str = "ReplicaFailure";

pub(super) fn calculate(
    view: &View,
    active: &[Arc<SlimPod>],
    terminating: i32,
    failure: Option<&kube::Error>,
    now: Timestamp,
) -> Status {
    let template_labels =
        view.template.as_ref().and_then(|template| template.metadata.as_ref()).and_then(|meta| meta.labels.as_ref());
    let count = |test: &dyn Fn(&SlimPod) -> bool| active.iter().filter(|pod| test(pod)).count() as i32;
    let mut conditions = view.conditions.clone();
    let present = conditions.iter().any(|condition| condition.kind == REPLICA_FAILURE);
    match failure {
        Some(error) if !present => {
            let reason = if (active.len() as i32) < view.replicas { "FailedCreate" } else { "FailedDelete" };
            conditions.push(Condition {
                kind: REPLICA_FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(errors::message(error)),
                last_transition_time: Some(time::now()),
            });
        }
        None => conditions.retain(|condition| condition.kind != REPLICA_FAILURE),
        Some(_) => {}
    }
    Status {
        replicas: active.len() as i32,
        fully_labeled: count(&|pod| selector::has_all(pod.metadata.labels.as_ref(), template_labels)),
        ready: count(&|pod| pods::is_ready(pod)),
        available: count(&|pod| pods::is_available(pod, view.min_ready_seconds, now)),
        terminating,
        conditions,
    }
}
