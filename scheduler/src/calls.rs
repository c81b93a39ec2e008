//! What the scheduler tells the API server: bindings, conditions, evictions. Calls about one pod never overtake each
//! other, and a condition that a binding has made untrue is not sent any more; calls about different pods run side by side.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::errors;
use coxswain_client::k8s_openapi::api::core::v1::Pod;
use coxswain_client::objects::{self, Deletion, PatchKind};
use coxswain_client::{Client, ObjectKey};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use crate::events::Recorder;
use crate::framework::Code;
use crate::pod::{PodInfo, Scheduled};
use crate::profile::Profile;
use crate::queue::Waiting;

/// Requests under way at once.
const REQUESTS_MAX: usize = 128;
const TRIES_MAX: usize = 3;
const RETRY_DELAY: Duration = Duration::from_millis(100);

pub enum Call {
    Bind {
        waiting: Box<Waiting>,
        /// The pod as it is assumed to run.
        pod: Arc<PodInfo>,
        profile: Arc<Profile>,
    },
    Condition {
        pod: Arc<PodInfo>,
        condition: Scheduled,
        /// The nominated node to set, or to clear if it is empty.
        nominated: Option<Box<str>>,
    },
    /// Takes back a nomination.
    ClearNomination {
        pod: Arc<PodInfo>,
    },
    Evict {
        victim: Arc<PodInfo>,
        preemptor: Arc<PodInfo>,
        node: Box<str>,
    },
}

impl Call {
    fn pod(&self) -> &Arc<PodInfo> {
        match self {
            Self::Bind { pod, .. } | Self::Condition { pod, .. } | Self::ClearNomination { pod } => pod,
            Self::Evict { victim, .. } => victim,
        }
    }
}

/// How a binding ended.
pub struct Bound {
    pub waiting: Box<Waiting>,
    pub pod: Arc<PodInfo>,
    pub profile: Arc<Profile>,
    /// What went wrong, and whether that is for lack of fit.
    pub failure: Option<(String, bool)>,
}

/// What the scheduling task has to hear of.
pub enum Done {
    Bound(Bound),
    /// A victim could not be evicted: it stays.
    Spared(Arc<PodInfo>),
}

#[derive(Clone)]
pub struct Calls(Arc<Inner>);

struct Inner {
    client: Client,
    recorder: Recorder,
    done: mpsc::UnboundedSender<Done>,
    /// For each pod with a call under way, what is to follow.
    lanes: Mutex<HashMap<Box<str>, Vec<Call>>>,
    permits: Semaphore,
}

impl Calls {
    /// The channel of results holds at most one for each binding and eviction under way, which the scheduling task limits.
    pub fn new(client: Client, recorder: Recorder, done: mpsc::UnboundedSender<Done>) -> Self {
        let permits = Semaphore::new(REQUESTS_MAX);
        Self(Arc::new(Inner { client, recorder, done, lanes: Mutex::default(), permits }))
    }

    pub fn send(&self, call: Call) {
        let uid = call.pod().uid.clone();
        {
            let mut lanes = self.0.lanes.lock();
            if let Some(next) = lanes.get_mut(&uid) {
                // Only the last word about a pod's condition counts.
                if !matches!(call, Call::Evict { .. }) {
                    next.retain(|c| matches!(c, Call::Evict { .. } | Call::Bind { .. }));
                }
                next.push(call);
                return;
            }
            lanes.insert(uid.clone(), Vec::new());
        }
        let calls = self.clone();
        tokio::spawn(async move {
            let mut call = call;
            loop {
                calls.perform(call).await;
                let mut lanes = calls.0.lanes.lock();
                let Some(next) = lanes.get_mut(&uid).filter(|next| !next.is_empty()) else {
                    lanes.remove(&uid);
                    return;
                };
                call = next.remove(0);
            }
        });
    }

    async fn perform(&self, call: Call) {
        match call {
            Call::Bind { waiting, pod, profile } => self.bind(waiting, pod, profile).await,
            Call::Condition { pod, condition, nominated } => {
                let mut status = json!({"conditions": [self.condition(&pod, &condition)]});
                if let Some(node) = nominated {
                    status["nominatedNodeName"] = if node.is_empty() { Value::Null } else { json!(node) };
                }
                self.patch_status(&pod, status).await;
            }
            Call::ClearNomination { pod } => self.patch_status(&pod, json!({"nominatedNodeName": null})).await,
            Call::Evict { victim, preemptor, node } => self.evict(victim, &preemptor, &node).await,
        }
    }

    fn condition(&self, pod: &PodInfo, wanted: &Scheduled) -> Value {
        let mut condition = json!({
            "type": "PodScheduled", "status": wanted.status, "reason": wanted.reason, "message": wanted.message,
            "lastProbeTime": null, "observedGeneration": wanted.observed_generation,
        });
        // The time of transition is that of the status, not of the message.
        if pod.scheduled.as_ref().is_none_or(|s| s.status != wanted.status) {
            condition["lastTransitionTime"] = json!(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
        condition
    }

    async fn patch_status(&self, pod: &PodInfo, status: Value) {
        let patch = json!({"metadata": {"uid": pod.uid}, "status": status});
        for attempt in 1..=TRIES_MAX {
            let permit = self.0.permits.acquire().await;
            let patched = objects::patch::<Pod>(&self.0.client, &pod.key, "status", PatchKind::Strategic, &patch).await;
            drop(permit);
            match patched {
                Ok(_) => return,
                Err(error) if errors::is_not_found(&error) || errors::is_conflict(&error) => return,
                Err(error) => tracing::debug!(pod = %pod.key, attempt, %error, "cannot say why a pod is not scheduled"),
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    async fn bind(&self, waiting: Box<Waiting>, pod: Arc<PodInfo>, profile: Arc<Profile>) {
        let node = &pod.spec.node_name;
        let failure = match profile.pre_bind(&pod, node).await {
            Err(rejection) => Some((rejection.message(), rejection.code != Code::Error)),
            Ok(()) => {
                let _permit = self.0.permits.acquire().await;
                let body = json!({
                    "apiVersion": "v1", "kind": "Binding",
                    "metadata": {"namespace": pod.key.namespace, "name": pod.key.name, "uid": pod.uid},
                    "target": {"kind": "Node", "name": node},
                });
                let path = format!("{}/binding", objects::path_of::<Pod>(&pod.key));
                let body = Some(body.to_string().into_bytes());
                let bound: Result<Value, _> =
                    objects::request(&self.0.client, http::Method::POST, &path, "application/json", body).await;
                bound.err().map(|e| (format!("running Bind plugin \"DefaultBinder\": {}", errors::message(&e)), false))
            }
        };
        if failure.is_none() {
            let note = format!("Successfully assigned {}/{} to {node}", pod.key.namespace, pod.key.name);
            let what = ("Normal", "Scheduled", "Binding");
            self.0.recorder.record(&waiting.pod, None, what, &pod.scheduler_name, &note);
        }
        // Nobody listens after the end.
        let _ = self.0.done.send(Done::Bound(Bound { waiting, pod, profile, failure }));
    }

    async fn evict(&self, victim: Arc<PodInfo>, preemptor: &PodInfo, node: &str) {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", preemptor.scheduler_name),
            "lastProbeTime": null, "observedGeneration": victim.generation,
            "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        self.patch_status(&victim, json!({"conditions": [condition]})).await;
        let key = ObjectKey::new(&victim.key.namespace, &victim.key.name);
        for attempt in 1..=TRIES_MAX {
            let permit = self.0.permits.acquire().await;
            let deletion = Deletion { uid: Some(&victim.uid), ..Deletion::default() };
            let deleted = objects::delete::<Pod>(&self.0.client, &key, &deletion).await;
            drop(permit);
            match deleted {
                Ok(()) => {
                    let note = format!("Preempted by pod {} on node {node}", preemptor.uid);
                    let what = ("Normal", "Preempted", "Preempting");
                    let by = &preemptor.scheduler_name;
                    return self.0.recorder.record(&victim, Some(preemptor), what, by, &note);
                }
                Err(error) if errors::is_not_found(&error) || errors::is_conflict(&error) => return,
                Err(error) => tracing::warn!(victim = %key, attempt, %error, "cannot preempt a pod"),
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
        let _ = self.0.done.send(Done::Spared(victim));
    }
}
