//! Scales workloads by their load, the counterpart of `pkg/controller/podautoscaler`. [`replicas`] reckons the size from
//! metrics; this file finds the target, keeps to limits and behaviour, and writes scale and status.

use std::collections::HashMap;
use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::events;
use coxswain_client::objects;
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::Context;
use crate::common::slim::SlimPod;
use crate::common::time;

mod behavior;
mod replicas;

const WORKERS: usize = 5;
/// How often a scale that conflicts is written again at once.
const SCALE_RETRIES: usize = 5;

struct Controller {
    context: Context,
    autoscalers: Store<HorizontalPodAutoscaler>,
    pods: Store<SlimPod>,
    queue: WorkQueue<ObjectKey>,
    history: Mutex<HashMap<ObjectKey, behavior::History>>,
}

pub async fn run(context: Context) {
    let autoscalers: Informer<HorizontalPodAutoscaler> = context.informers.informer();
    let pods = context.pods();
    tokio::join!(autoscalers.synced(), pods.synced());
    let controller = Arc::new(Controller {
        autoscalers: autoscalers.store(),
        pods: pods.store(),
        queue: WorkQueue::new(),
        history: Mutex::default(),
        context: context.clone(),
    });
    let feeds = feed(&autoscalers, |event| {
        let key = ObjectKey::of(event.object().as_ref());
        match event {
            Event::Deleted(_) => {
                controller.history.lock().remove(&key);
            }
            // Its own status changes come round again with the next period.
            Event::Updated { old, new } if old.spec == new.spec => {}
            _ => controller.queue.add(key),
        }
    });
    drive(
        "horizontal-pod-autoscaler",
        controller.clone(),
        controller.queue.clone(),
        context.workers(WORKERS),
        context.shutdown.clone(),
        |controller, key| async move {
            let result = controller.reconcile(&key).await;
            if controller.autoscalers.get_key(&key).is_some() {
                controller.queue.add_after(key, controller.context.config.hpa.sync_period);
            }
            // Whatever failed is tried again with the next period.
            if let Err(error) = result {
                tracing::debug!(%error, "autoscaling failed");
            }
            Ok::<(), kube::Error>(())
        },
        feeds,
    )
    .await;
}

/// The workload that an autoscaler scales.
struct Scale {
    path: String,
    object: Value,
    spec: i32,
    selector: String,
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<(), kube::Error> {
        let Some(autoscaler) = self.autoscalers.get_key(key) else { return Ok(()) };
        let mut status = autoscaler.status.clone().unwrap_or_default();
        let outcome = self.autoscale(&autoscaler, key, &mut status).await;
        if autoscaler.status.as_ref() != Some(&status) {
            let updated = HorizontalPodAutoscaler { status: Some(status), ..autoscaler.as_ref().clone() };
            errors::ignore_not_found(objects::update_status(&self.context.client, &updated).await)?;
        }
        outcome
    }

    async fn autoscale(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        key: &ObjectKey,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<(), kube::Error> {
        let spec = autoscaler.spec.clone();
        let about = events::reference(autoscaler);
        let recorder = &self.context.recorder;
        let scale = match self.scale(&key.namespace, autoscaler).await {
            Ok(scale) => scale,
            Err(error) => {
                let message = errors::message(&error);
                recorder.warning(&about, "FailedGetScale", message.clone());
                let text = format!("the HPA controller was unable to get the target's current scale: {message}");
                set_condition(status, "AbleToScale", "False", "FailedGetScale", &text);
                return Err(error);
            }
        };
        set_condition(
            status,
            "AbleToScale",
            "True",
            "SucceededGetScale",
            "the HPA controller was able to get the target's current scale",
        );
        let least = spec.min_replicas.unwrap_or(1);
        let current = scale.spec;
        let now = Timestamp::now();
        let mut reason = String::new();
        let desired = if current == 0 && least != 0 {
            set_condition(
                status,
                "ScalingActive",
                "False",
                "ScalingDisabled",
                "scaling is disabled since the replica count of the target is zero",
            );
            0
        } else if current > spec.max_replicas {
            reason = "Current number of replicas above Spec.MaxReplicas".to_owned();
            spec.max_replicas
        } else if current < least {
            reason = "Current number of replicas below Spec.MinReplicas".to_owned();
            least
        } else {
            let reckoned = replicas::reckon(&self.context, &self.pods, autoscaler, &scale.selector, &scale, now).await;
            status.current_metrics = Some(reckoned.metrics);
            for failure in &reckoned.failures {
                recorder.warning(&about, failure.reason, failure.message.clone());
            }
            match reckoned.result {
                Ok((proposed, metric)) => {
                    set_condition(
                        status,
                        "ScalingActive",
                        "True",
                        "ValidMetricFound",
                        &format!("the HPA was able to successfully calculate a replica count from {metric}"),
                    );
                    reason = if proposed > current {
                        format!("{metric} above target")
                    } else {
                        "All metrics below target".to_owned()
                    };
                    let mut histories = self.history.lock();
                    let history = histories.entry(key.clone()).or_default();
                    let config = &self.context.config.hpa;
                    let (desired, kind, why, text) = behavior::limit(&spec, history, current, proposed, config, now);
                    set_condition(status, "ScalingLimited", kind, why, text);
                    desired
                }
                Err(message) => {
                    if let Some(first) = reckoned.failures.first() {
                        let full = format!("the HPA was unable to compute the replica count: {}", first.message);
                        set_condition(status, "ScalingActive", "False", first.reason, &full);
                    }
                    recorder.warning(&about, "FailedComputeMetricsReplicas", message);
                    status.current_replicas = Some(current);
                    return Ok(());
                }
            }
        };
        status.current_replicas = Some(current);
        status.desired_replicas = desired;
        if desired == current {
            if current != 0 {
                set_condition(
                    status,
                    "AbleToScale",
                    "True",
                    "ReadyForNewScale",
                    "recommended size matches current size",
                );
            }
            return Ok(());
        }
        if let Err(error) = self.set_scale(&scale, desired).await {
            let message = errors::message(&error);
            recorder.warning(
                &about,
                "FailedRescale",
                format!("New size: {desired}; reason: {reason}; error: {message}"),
            );
            let text = format!("the HPA controller was unable to update the target scale: {message}");
            set_condition(status, "AbleToScale", "False", "FailedUpdateScale", &text);
            status.desired_replicas = current;
            return Err(error);
        }
        set_condition(
            status,
            "AbleToScale",
            "True",
            "SucceededRescale",
            &format!("the HPA controller was able to update the target scale to {desired}"),
        );
        recorder.normal(&about, "SuccessfulRescale", format!("New size: {desired}; reason: {reason}"));
        self.history.lock().entry(key.clone()).or_default().note_change(desired - current, now);
        status.last_scale_time = Some(time::now());
        Ok(())
    }

    /// Writes another size into the scale, read anew where somebody changed the workload meanwhile.
    async fn set_scale(&self, scale: &Scale, desired: i32) -> Result<(), kube::Error> {
        let client = &self.context.client;
        let path = format!("{}/scale", scale.path);
        let mut object = scale.object.clone();
        for attempt in 0.. {
            object["spec"]["replicas"] = json!(desired);
            let body = serde_json::to_vec(&object).map_err(kube::Error::SerdeError)?;
            match objects::request::<Value>(client, Method::PUT, &path, "application/json", Some(body)).await {
                Err(error) if errors::is_conflict(&error) && attempt < SCALE_RETRIES => {
                    object = objects::request(client, Method::GET, &path, "", None).await?;
                }
                result => return result.map(drop),
            }
        }
        Ok(())
    }

    async fn scale(&self, namespace: &str, autoscaler: &HorizontalPodAutoscaler) -> Result<Scale, kube::Error> {
        let target = autoscaler.spec.scale_target_ref.clone();
        let api_version = target.api_version.clone().unwrap_or_default();
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let found = self.context.discovery.get(&self.context.client).await?;
        let resource = found
            .resources
            .iter()
            .find(|resource| resource.group == group && resource.kind == target.kind)
            .ok_or_else(|| {
                let message = format!("no matches for kind \"{}\" in group \"{group}\"", target.kind);
                kube::Error::Api(kube::core::Status::failure(&message, "NotFound").with_code(404).boxed())
            })?;
        let path = resource.path(namespace, &target.name);
        let scale: Value =
            objects::request(&self.context.client, Method::GET, &format!("{path}/scale"), "", None).await?;
        let number = |pointer: &str| scale.pointer(pointer).and_then(Value::as_i64).unwrap_or(0) as i32;
        Ok(Scale {
            spec: number("/spec/replicas"),
            selector: scale.pointer("/status/selector").and_then(Value::as_str).unwrap_or_default().to_owned(),
            path,
            object: scale,
        })
    }
}

fn set_condition(status: &mut HorizontalPodAutoscalerStatus, kind: &str, state: &str, reason: &str, message: &str) {
    let conditions = status.conditions.get_or_insert_default();
    let mut new = HorizontalPodAutoscalerCondition {
        type_: kind.to_owned(),
        status: state.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(time::now()),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == kind) {
        Some(present) => {
            if present.status == state {
                new.last_transition_time = present.last_transition_time.clone();
            }
            *present = new;
        }
        None => conditions.push(new),
    }
}
