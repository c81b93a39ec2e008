//! Says how many pods of a PodDisruptionBudget may be evicted, the counterpart of `pkg/controller/disruption`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::{drive, feed};
use coxswain_client::events;
use coxswain_client::objects;
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::Context;
use crate::common::slim::SlimPod;
use crate::common::{int_or_percent, owners, pods, selector, time};

mod stale;

/// An evicted pod that is still there after this is not going.
const DISRUPTION_TIMEOUT: Duration = Duration::from_secs(120);

struct Controller {
    context: Context,
    budgets: Store<PodDisruptionBudget>,
    pods: Store<SlimPod>,
    deployments: Store<Deployment>,
    replica_sets: Store<ReplicaSet>,
    stateful_sets: Store<StatefulSet>,
    replication_controllers: Store<ReplicationController>,
    queue: WorkQueue<ObjectKey>,
}

pub async fn run(context: Context) {
    let budgets: Informer<PodDisruptionBudget> = context.informers.informer();
    let deployments: Informer<Deployment> = context.informers.informer();
    let replica_sets: Informer<ReplicaSet> = context.informers.informer();
    let stateful_sets: Informer<StatefulSet> = context.informers.informer();
    let replication_controllers: Informer<ReplicationController> = context.informers.informer();
    let pods = context.pods();
    tokio::join!(
        budgets.synced(),
        deployments.synced(),
        replica_sets.synced(),
        stateful_sets.synced(),
        replication_controllers.synced(),
        pods.synced()
    );
    let controller = Arc::new(Controller {
        budgets: budgets.store(),
        pods: pods.store(),
        deployments: deployments.store(),
        replica_sets: replica_sets.store(),
        stateful_sets: stateful_sets.store(),
        replication_controllers: replication_controllers.store(),
        queue: WorkQueue::new(),
        context: context.clone(),
    });
    let feeds = async {
        tokio::join!(
            feed(&budgets, |event| controller.queue.add(ObjectKey::of(event.object().as_ref()))),
            feed(&pods, |event| {
                if let Event::Updated { old, new } = &event {
                    let seen = |pod: &Pod| {
                        let labels = pod.metadata.labels.clone();
                        let owners = pod.metadata.owner_references.clone();
                        (
                            labels,
                            owners,
                            pods::is_ready(pod),
                            owners::is_deleting(&pod.metadata),
                            pods::is_terminated(pod),
                        )
                    };
                    if seen(old) == seen(new) {
                        return;
                    }
                    controller.enqueue_budgets_of(old);
                }
                controller.enqueue_budgets_of(event.object());
            }),
        )
    };
    let budgets_kept = drive(
        "disruption",
        controller.clone(),
        controller.queue.clone(),
        1,
        context.shutdown.clone(),
        |controller, key| async move { controller.reconcile(key).await },
        feeds,
    );
    tokio::join!(budgets_kept, stale::run(context.clone()));
}

/// The pods a budget is about, as far as they count.
struct Expected {
    pods: i32,
    healthy: i32,
    unmanaged: bool,
}

impl Controller {
    fn enqueue_budgets_of(&self, pod: &Pod) {
        for budget in self.budgets.list_namespace(owners::namespace(&pod.metadata)) {
            let wanted = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            if selector::matches(wanted, pod.metadata.labels.as_ref()) {
                self.queue.add(ObjectKey::of(budget.as_ref()));
            }
        }
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(budget) = self.budgets.get_key(&key) else { return Ok(()) };
        let spec = budget.spec.clone().unwrap_or_default();
        let about = events::reference(budget.as_ref());
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| {
            !pods::is_terminated(pod) && selector::matches(spec.selector.as_ref(), pod.metadata.labels.as_ref())
        });
        if pods.is_empty() {
            self.context.recorder.normal(&about, "NoPods", "No matching pods found");
        }
        let expected = match self.expected(&budget, &pods).await {
            Ok(expected) => expected,
            Err(error) => {
                let message = errors::message(&error);
                self.context.recorder.warning(
                    &about,
                    "CalculateExpectedPodCountFailed",
                    format!("Failed to calculate the number of expected pods: {message}"),
                );
                self.fail_safe(&budget, &message).await?;
                return Err(error);
            }
        };
        if expected.unmanaged {
            let text = spec.selector.as_ref().map(selector::print).unwrap_or_default();
            self.context.recorder.warning(
                &about,
                "UnmanagedPods",
                format!(
                    "Pods selected by this PodDisruptionBudget (selector: {text}) were found to be unmanaged. As a result, \
                     the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To \
                     account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
                ),
            );
        }
        let now = Timestamp::now();
        let (disrupted, again) = self.disrupted(&budget, &pods, now);
        let healthy = pods
            .iter()
            .filter(|pod| {
                !owners::is_deleting(&pod.metadata)
                    && !disrupted.contains_key(owners::name(&pod.metadata))
                    && pods::is_ready(pod)
            })
            .count() as i32;
        self.write_status(&budget, &expected, healthy, disrupted).await?;
        if let Some(wait) = again {
            self.queue.add_after(key, wait);
        }
        Ok(())
    }

    /// How many pods there are to be, and how many of them healthy.
    async fn expected(&self, budget: &PodDisruptionBudget, pods: &[Arc<SlimPod>]) -> Result<Expected, kube::Error> {
        let spec = budget.spec.clone().unwrap_or_default();
        let resolve = |value: &IntOrString, total: i32| int_or_percent::resolve(value, total, true).unwrap_or(0);
        if let Some(max_unavailable) = &spec.max_unavailable {
            let (total, unmanaged) = self.scale_of(pods).await?;
            let healthy = (total - resolve(max_unavailable, total)).max(0);
            return Ok(Expected { pods: total, healthy, unmanaged });
        }
        match &spec.min_available {
            Some(IntOrString::Int(number)) => {
                Ok(Expected { pods: pods.len() as i32, healthy: *number, unmanaged: false })
            }
            Some(percentage) => {
                let (total, unmanaged) = self.scale_of(pods).await?;
                Ok(Expected { pods: total, healthy: resolve(percentage, total), unmanaged })
            }
            None => Ok(Expected { pods: pods.len() as i32, healthy: 0, unmanaged: false }),
        }
    }

    /// The sizes of all controllers of the pods, and whether a pod has none.
    async fn scale_of(&self, pods: &[Arc<SlimPod>]) -> Result<(i32, bool), kube::Error> {
        let mut sizes: HashMap<String, i32> = HashMap::new();
        let mut unmanaged = false;
        for pod in pods {
            let Some(owner) = owners::controller_of(&pod.metadata) else {
                unmanaged = true;
                continue;
            };
            if sizes.contains_key(&owner.uid) {
                continue;
            }
            let namespace = owners::namespace(&pod.metadata);
            let (uid, size) = self.size_of(namespace, owner).await?;
            sizes.insert(owner.uid.clone(), 0);
            sizes.insert(uid, size);
        }
        Ok((sizes.values().sum(), unmanaged))
    }

    /// The size of a controller, or of the Deployment above it.
    async fn size_of(&self, namespace: &str, owner: &OwnerReference) -> Result<(String, i32), kube::Error> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        match (group, owner.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                if let Some(set) = self.replica_sets.get(namespace, &owner.name) {
                    let above = owners::controller_of(&set.metadata).filter(|above| above.kind == "Deployment");
                    if let Some(above) = above
                        && let Some(deployment) = self.deployments.get(namespace, &above.name)
                    {
                        let size = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                        return Ok((above.uid.clone(), size));
                    }
                    let size = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                    return Ok((owner.uid.clone(), size));
                }
            }
            ("apps", "StatefulSet") => {
                if let Some(set) = self.stateful_sets.get(namespace, &owner.name) {
                    let size = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                    return Ok((owner.uid.clone(), size));
                }
            }
            ("", "ReplicationController") => {
                if let Some(set) = self.replication_controllers.get(namespace, &owner.name) {
                    let size = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
                    return Ok((owner.uid.clone(), size));
                }
            }
            _ => {}
        }
        // Other kinds tell their size through the scale subresource.
        let found = self.context.discovery.get(&self.context.client).await?;
        let resource =
            found.resources.iter().find(|resource| resource.group == group && resource.kind == owner.kind).ok_or_else(
                || kube::Error::Service(format!("found no controllers for kind {:?}", owner.kind).into()),
            )?;
        let path = format!("{}/scale", resource.path(namespace, &owner.name));
        let scale: Result<Value, _> = objects::request(&self.context.client, Method::GET, &path, "", None).await;
        match scale {
            Ok(scale) => {
                let size = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
                Ok((owner.uid.clone(), size as i32))
            }
            Err(error) if errors::is_not_found(&error) => Err(kube::Error::Service(
                format!("{} does not implement the scale subresource", resource.group_resource()).into(),
            )),
            Err(error) => Err(error),
        }
    }

    /// Evictions under way, without those that have happened or never will; and when to look again.
    fn disrupted(
        &self,
        budget: &PodDisruptionBudget,
        pods: &[Arc<SlimPod>],
        now: Timestamp,
    ) -> (BTreeMap<String, Time>, Option<Duration>) {
        let listed = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
        let mut kept = BTreeMap::new();
        let mut again: Option<Duration> = None;
        for pod in pods.iter().filter(|pod| !owners::is_deleting(&pod.metadata)) {
            let name = owners::name(&pod.metadata);
            let Some(since) = listed.and_then(|listed| listed.get(name)) else { continue };
            let left = DISRUPTION_TIMEOUT.saturating_sub(time::since(since, now));
            if left.is_zero() {
                let pod: &Pod = pod;
                let message = format!(
                    "Pod was expected by PDB {}/{} to be deleted but it wasn't",
                    owners::namespace(&budget.metadata),
                    owners::name(&budget.metadata)
                );
                self.context.recorder.warning(&events::reference(pod), "NotDeleted", message);
            } else {
                again = Some(again.map_or(left, |again| again.min(left)));
                kept.insert(name.to_owned(), since.clone());
            }
        }
        (kept, again)
    }

    async fn write_status(
        &self,
        budget: &PodDisruptionBudget,
        expected: &Expected,
        healthy: i32,
        disrupted: BTreeMap<String, Time>,
    ) -> Result<(), kube::Error> {
        let spare = healthy - expected.healthy;
        let allowed = if expected.pods <= 0 || spare <= 0 { 0 } else { spare };
        let (state, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
        let status = PodDisruptionBudgetStatus {
            current_healthy: Some(healthy),
            desired_healthy: Some(expected.healthy),
            expected_pods: Some(expected.pods),
            disruptions_allowed: Some(allowed),
            disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
            observed_generation: budget.metadata.generation,
            conditions: Some(with_condition(budget, state, reason, "")),
        };
        self.update(budget, status).await
    }

    /// Without knowing the pods nothing may be evicted.
    async fn fail_safe(&self, budget: &PodDisruptionBudget, message: &str) -> Result<(), kube::Error> {
        let status = PodDisruptionBudgetStatus {
            disruptions_allowed: Some(0),
            conditions: Some(with_condition(budget, "False", "SyncFailed", message)),
            ..budget.status.clone().unwrap_or_default()
        };
        self.update(budget, status).await
    }

    async fn update(&self, budget: &PodDisruptionBudget, status: PodDisruptionBudgetStatus) -> Result<(), kube::Error> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let updated = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        errors::ignore_not_found(objects::update_status(&self.context.client, &updated).await).map(drop)
    }
}

fn with_condition(budget: &PodDisruptionBudget, state: &str, reason: &str, message: &str) -> Vec<Condition> {
    const KIND: &str = "DisruptionAllowed";
    let mut conditions = budget.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut new = Condition {
        type_: KIND.to_owned(),
        status: state.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: budget.metadata.generation,
        last_transition_time: time::now(),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == KIND) {
        Some(present) => {
            if present.status == new.status {
                new.last_transition_time = present.last_transition_time.clone();
            }
            *present = new;
        }
        None => conditions.push(new),
    }
    conditions
}
