//! What ReplicaSets and ReplicationControllers have in common.

use coxswain_client::informer::Object;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Serialize;

use super::status::{Condition, Status};
use crate::common::selector;

/// What the controller reads of a set.
pub(super) struct View {
    pub replicas: i32,
    pub min_ready_seconds: i32,
    pub selector: LabelSelector,
    pub template: Option<PodTemplateSpec>,
    pub conditions: Vec<Condition>,
}

pub(super) trait Replicas: Object + Serialize {
    const CONTROLLER: &'static str;

    fn view(&self) -> View;

    /// The set with this status, unless it says so already.
    fn with_status(&self, status: &Status) -> Option<Self>;
}

/// Zero is left out, as the API does.
fn count(number: i32) -> Option<i32> {
    (number != 0).then_some(number)
}

impl Replicas for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset";

    fn view(&self) -> View {
        let spec = self.spec.clone().unwrap_or_default();
        let conditions = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        View {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            selector: spec.selector,
            template: spec.template,
            conditions: conditions
                .map(|condition| Condition {
                    kind: condition.type_.clone(),
                    status: condition.status.clone(),
                    reason: condition.reason.clone(),
                    message: condition.message.clone(),
                    last_transition_time: condition.last_transition_time.clone(),
                })
                .collect(),
        }
    }

    fn with_status(&self, status: &Status) -> Option<Self> {
        let conditions: Vec<_> = status
            .conditions
            .iter()
            .map(|condition| ReplicaSetCondition {
                type_: condition.kind.clone(),
                status: condition.status.clone(),
                reason: condition.reason.clone(),
                message: condition.message.clone(),
                last_transition_time: condition.last_transition_time.clone(),
            })
            .collect();
        let new = ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: count(status.fully_labeled),
            ready_replicas: count(status.ready),
            available_replicas: count(status.available),
            terminating_replicas: Some(status.terminating),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        (self.status.as_ref() != Some(&new)).then(|| Self { status: Some(new), ..self.clone() })
    }
}

impl Replicas for ReplicationController {
    const CONTROLLER: &'static str = "replicationcontroller";

    fn view(&self) -> View {
        let spec = self.spec.clone().unwrap_or_default();
        let conditions = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        View {
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            selector: selector::of_labels(spec.selector.as_ref()),
            template: spec.template,
            conditions: conditions
                .map(|condition| Condition {
                    kind: condition.type_.clone(),
                    status: condition.status.clone(),
                    reason: condition.reason.clone(),
                    message: condition.message.clone(),
                    last_transition_time: condition.last_transition_time.clone(),
                })
                .collect(),
        }
    }

    fn with_status(&self, status: &Status) -> Option<Self> {
        let conditions: Vec<_> = status
            .conditions
            .iter()
            .map(|condition| ReplicationControllerCondition {
                type_: condition.kind.clone(),
                status: condition.status.clone(),
                reason: condition.reason.clone(),
                message: condition.message.clone(),
                last_transition_time: condition.last_transition_time.clone(),
            })
            .collect();
        let new = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: count(status.fully_labeled),
            ready_replicas: count(status.ready),
            available_replicas: count(status.available),
            observed_generation: self.metadata.generation,
            conditions: (!conditions.is_empty()).then_some(conditions),
        };
        (self.status.as_ref() != Some(&new)).then(|| Self { status: Some(new), ..self.clone() })
    }
}
