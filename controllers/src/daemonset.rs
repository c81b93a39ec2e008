//! Keeps a pod on every node that a DaemonSet is for, the counterpart of `pkg/controller/daemon`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::{drive, feed};
use coxswain_client::events;
use coxswain_client::expectations::Expectations;
use coxswain_client::objects;
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use parking_lot::Mutex;

use crate::Context;
use crate::common::slim::{self, SlimPod};
use crate::common::{claim, hash, history, nodes, owners, pod_control, pods, selector};

mod placement;
mod plan;
mod status;

use plan::Plan;

const WORKERS: usize = 2;
/// The most pods made or deleted in one go.
const BURST_MAX: usize = 250;
pub(crate) const HASH_LABEL: &str = "controller-revision-hash";
const GENERATION_LABEL: &str = "pod-template-generation";
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
/// A failed pod is replaced after a delay that begins here and doubles.
const FAILED_DELAY: Duration = Duration::from_secs(1);
const FAILED_DELAY_MAX: Duration = Duration::from_secs(15 * 60);

struct Controller {
    context: Context,
    sets: Store<DaemonSet>,
    revisions: Store<ControllerRevision>,
    pods: Store<SlimPod>,
    nodes: Store<Node>,
    queue: WorkQueue<ObjectKey>,
    expectations: Expectations,
    /// By set and node: the delay after the last failure, and when that was.
    failures: Mutex<BTreeMap<(String, String), (Duration, Timestamp)>>,
}

pub async fn run(context: Context) {
    let sets: Informer<DaemonSet> = context.informers.informer();
    let node_informer: Informer<Node> = context.informers.informer();
    let revisions = history::informer(&context);
    let pods = context.pods();
    tokio::join!(sets.synced(), node_informer.synced(), revisions.synced(), pods.synced());
    let controller = Arc::new(Controller {
        sets: sets.store(),
        revisions: revisions.store(),
        pods: pods.store(),
        nodes: node_informer.store(),
        queue: WorkQueue::new(),
        expectations: Expectations::new(),
        failures: Mutex::default(),
        context: context.clone(),
    });
    let queue = &controller.queue;
    let feeds = async {
        tokio::join!(
            feed(&sets, |event| {
                let set = event.object();
                let key = ObjectKey::of(set.as_ref());
                if let Event::Deleted(_) = event {
                    controller.expectations.remove(&key.to_string());
                    let uid = owners::uid(&set.metadata);
                    controller.failures.lock().retain(|(owner, _), _| owner != uid);
                }
                queue.add(key);
            }),
            feed(&pods, |event| controller.pod_changed(&event)),
            feed(&revisions, |event| {
                if let Some(owner) =
                    owners::controller_of(&event.object().metadata).filter(|owner| owner.kind == "DaemonSet")
                {
                    queue.add(ObjectKey::new(owners::namespace(&event.object().metadata), &owner.name));
                }
            }),
            feed(&node_informer, |event| {
                if let Event::Updated { old, new } = &event {
                    let seen = |node: &Node| (node.metadata.labels.clone(), nodes::taints(node).to_vec());
                    if seen(old) == seen(new) {
                        return;
                    }
                }
                for set in controller.sets.list() {
                    queue.add(ObjectKey::of(set.as_ref()));
                }
            }),
        )
    };
    drive(
        "daemonset",
        controller.clone(),
        controller.queue.clone(),
        context.workers(WORKERS),
        context.shutdown.clone(),
        |controller, key| async move { controller.reconcile(key).await },
        feeds,
    )
    .await;
}

impl Controller {
    fn pod_changed(&self, event: &Event<SlimPod>) {
        let pod = event.object();
        if let Some(key) = self.set_of(pod) {
            let name = key.to_string();
            match event {
                Event::Added(pod) if !owners::is_deleting(&pod.metadata) => self.expectations.creation_observed(&name),
                Event::Updated { new, .. } if !owners::is_deleting(&new.metadata) => {}
                _ => self.expectations.deletion_observed(&name, owners::uid(&pod.metadata)),
            }
            if let Event::Updated { old, new } = event
                && !pods::is_ready(old)
                && pods::is_ready(new)
                && let Some(seconds) = self.sets.get_key(&key).and_then(|set| set.spec.as_ref()?.min_ready_seconds)
                && seconds > 0
            {
                self.queue.add_after(key.clone(), Duration::from_secs(seconds as u64 + 1));
            }
            self.queue.add(key);
        } else if owners::controller_of(&pod.metadata).is_none() && !matches!(event, Event::Deleted(_)) {
            for set in self.sets.list_namespace(owners::namespace(&pod.metadata)) {
                let wanted = set.spec.as_ref().map(|spec| &spec.selector);
                if selector::matches(wanted, pod.metadata.labels.as_ref()) {
                    self.queue.add(ObjectKey::of(set.as_ref()));
                }
            }
        }
    }

    fn set_of(&self, pod: &Pod) -> Option<ObjectKey> {
        let owner = owners::controller_of(&pod.metadata).filter(|owner| owner.kind == "DaemonSet")?;
        let key = ObjectKey::new(owners::namespace(&pod.metadata), &owner.name);
        let set = self.sets.get_key(&key)?;
        (owners::uid(&set.metadata) == owner.uid).then_some(key)
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let name = key.to_string();
        let Some(set) = self.sets.get_key(&key) else { return Ok(()) };
        let spec = set.spec.clone().unwrap_or_default();
        if selector::is_empty(&spec.selector) {
            self.context.recorder.warning(
                &events::reference(set.as_ref()),
                "SelectingAll",
                "This daemon set is selecting all pods. A non-empty selector is required.",
            );
            return Ok(());
        }
        if owners::is_deleting(&set.metadata) {
            return Ok(());
        }
        let (current, old) = self.revisions(&set).await?;
        let hash = owners::label(&current.metadata, HASH_LABEL).unwrap_or_default().to_owned();
        let all_nodes = self.nodes.list();
        let mut failure = None;
        if self.expectations.satisfied(&name) {
            let by_node = self.pods_by_node(&set).await?;
            let now = Timestamp::now();
            let mut plan = plan::manage(&set, &all_nodes, &by_node, &hash, now);
            self.replace_failed(&set, &mut plan, now);
            failure = self.carry_out(&name, &set, &hash, plan).await.err();
            if failure.is_none() && self.expectations.satisfied(&name) && plan::rolls(&set) {
                let update = plan::rolling_update(&set, &all_nodes, &self.pods_by_node(&set).await?, &hash, now);
                failure = self.carry_out(&name, &set, &hash, update).await.err();
            }
        }
        let by_node = self.pods_by_node(&set).await?;
        let in_use: Vec<String> = by_node
            .values()
            .flatten()
            .filter_map(|pod| owners::label(&pod.metadata, HASH_LABEL).map(str::to_owned))
            .collect();
        if failure.is_none() {
            let used = |revision: &ControllerRevision| {
                owners::label(&revision.metadata, HASH_LABEL).is_some_and(|hash| in_use.iter().any(|used| used == hash))
            };
            history::truncate(&self.context.client, &old, used, spec.revision_history_limit.unwrap_or(10)).await?;
        }
        let now = Timestamp::now();
        let new = status::calculate(&set, &all_nodes, &by_node, &hash, now);
        let waits = new.number_ready != new.number_available.unwrap_or(0);
        if set.status.as_ref() != Some(&new) {
            let updated = DaemonSet { status: Some(new), ..set.as_ref().clone() };
            errors::ignore_not_found(objects::update_status(&self.context.client, &updated).await)?;
        }
        if let Some(error) = failure {
            return Err(error);
        }
        if waits && let Some(seconds) = spec.min_ready_seconds.filter(|seconds| *seconds > 0) {
            self.queue.add_after(key, Duration::from_secs(seconds as u64));
        }
        Ok(())
    }

    /// The set's pods that are not orphans, by the node they are on or meant for.
    async fn pods_by_node(&self, set: &DaemonSet) -> Result<BTreeMap<String, Vec<Arc<SlimPod>>>, kube::Error> {
        let client = &self.context.client;
        let wanted = set.spec.as_ref().map(|spec| &spec.selector);
        let owned = self.pods.by_index(slim::BY_OWNER, owners::uid(&set.metadata));
        let orphans = self.pods.by_index(slim::BY_OWNER, &format!("orphan/{}", owners::namespace(&set.metadata)));
        let mut by_node: BTreeMap<String, Vec<Arc<SlimPod>>> = BTreeMap::new();
        for pod in owned.into_iter().chain(orphans) {
            let kept = match claim::decide(&set.metadata, wanted, &pod.metadata) {
                claim::Claim::Keep => true,
                claim::Claim::Ignore => false,
                claim::Claim::Release => {
                    claim::release::<Pod>(client, owners::uid(&set.metadata), &pod.metadata, None).await?;
                    false
                }
                claim::Claim::Adopt => {
                    claim::may_adopt(client, set).await?
                        && claim::adopt::<_, Pod>(client, set, &pod.metadata, None).await?
                }
            };
            if let Some(node) = placement::node_of(&pod).filter(|_| kept) {
                by_node.entry(node.to_owned()).or_default().push(pod);
            }
        }
        Ok(by_node)
    }

    /// The revision of the present template, made if there is none, and the other ones.
    async fn revisions(&self, set: &DaemonSet) -> Result<(ControllerRevision, Vec<ControllerRevision>), kube::Error> {
        let client = &self.context.client;
        let spec = set.spec.clone().unwrap_or_default();
        let mut all = history::claim_all(client, &self.revisions, set, &spec.selector).await?;
        let data = history::data_of(&spec.template);
        let newest = all.iter().map(|revision| revision.revision).max().unwrap_or(0);
        if let Some(index) = all.iter().rposition(|revision| history::data(revision) == Some(&data)) {
            let mut current = all.remove(index);
            if current.revision < newest {
                current = history::renumber(client, &current, newest + 1).await?;
            }
            return Ok((current, all));
        }
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let hash = hash::pod_template(&spec.template, collisions);
        let mut labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        labels.insert(HASH_LABEL.to_owned(), hash.clone());
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", owners::name(&set.metadata))),
                namespace: set.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: set.metadata.annotations.clone(),
                owner_references: Some(vec![owners::controller_reference(set)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data.clone())),
            revision: newest + 1,
        };
        match objects::create(client, &revision).await {
            Ok(created) => Ok((created, all)),
            Err(error) if errors::is_already_exists(&error) => {
                let found = objects::get::<ControllerRevision>(client, &ObjectKey::of(&revision)).await?;
                if history::data(&found) == Some(&data) {
                    return Ok((found, all));
                }
                let mut set = set.clone();
                let status = set.status.get_or_insert_default();
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                objects::update_status(client, &set).await?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Tells of pods that ended, and puts off the deletion of those that fail again and again.
    fn replace_failed(&self, set: &DaemonSet, plan: &mut Plan, now: Timestamp) {
        let uid = owners::uid(&set.metadata).to_owned();
        let mut failures = self.failures.lock();
        let mut wait: Option<Duration> = None;
        plan.delete.retain(|pod| {
            if pods::phase(pod) != "Failed" {
                return true;
            }
            let node = placement::node_of(pod).unwrap_or_default().to_owned();
            let entry = failures.entry((uid.clone(), node)).or_insert((Duration::ZERO, now));
            let passed = Duration::try_from(now.duration_since(entry.1)).unwrap_or(Duration::ZERO);
            if passed < entry.0 {
                let left = entry.0 - passed;
                wait = Some(wait.map_or(left, |wait| wait.min(left)));
                return false;
            }
            // Long after the last failure the delays start over.
            let next = if passed > FAILED_DELAY_MAX * 2 { FAILED_DELAY } else { (entry.0 * 2).max(FAILED_DELAY) };
            *entry = (next.min(FAILED_DELAY_MAX), now);
            true
        });
        if let Some(wait) = wait {
            self.queue.add_after(ObjectKey::of(set), wait);
        }
        for pod in &plan.delete {
            let (reason, word) = match pods::phase(pod) {
                "Failed" => ("FailedDaemonPod", "failed"),
                "Succeeded" => ("SucceededDaemonPod", "succeeded"),
                _ => continue,
            };
            let message = format!(
                "Found {word} daemon pod {}/{} on node {}, will try to {} it",
                owners::namespace(&pod.metadata),
                owners::name(&pod.metadata),
                pods::node_name(pod),
                if word == "failed" { "kill" } else { "delete" }
            );
            let kind = if word == "failed" { "Warning" } else { "Normal" };
            self.context.recorder.event(&events::reference(set), kind, reason, message);
        }
    }

    async fn carry_out(&self, name: &str, set: &DaemonSet, hash: &str, plan: Plan) -> Result<(), kube::Error> {
        let create: Vec<String> = plan.create.into_iter().take(BURST_MAX).collect();
        let delete: Vec<_> = plan.delete.into_iter().take(BURST_MAX).collect();
        if create.is_empty() && delete.is_empty() {
            return Ok(());
        }
        self.expectations.expect(name, create.len(), delete.iter().map(|pod| owners::uid(&pod.metadata).to_owned()));
        let bodies: Vec<Pod> = create.iter().map(|node| placement::pod_for(set, hash, node)).collect();
        let (created, failure) = pod_control::slow_start(bodies.len(), |index| {
            let body = &bodies[index];
            async move { pod_control::create(&self.context.client, &self.context.recorder, set, body).await.map(drop) }
        })
        .await;
        self.expectations.creations_observed(name, bodies.len() - created);
        let deleted = pod_control::for_each(delete, |pod| async move {
            let result = pod_control::delete(&self.context.client, &self.context.recorder, set, &pod.metadata).await;
            if result.is_err() || self.pods.get_key(&ObjectKey::of_meta(&pod.metadata)).is_none() {
                self.expectations.deletion_observed(name, owners::uid(&pod.metadata));
            }
            result
        })
        .await;
        match failure {
            Some(error) if !errors::has_cause(&error, "NamespaceTerminating") => Err(error),
            _ => deleted,
        }
    }
}

/// The template's generation, by which clusters before revisions told pods apart.
fn template_generation(set: &DaemonSet) -> Option<&str> {
    owners::annotation(&set.metadata, TEMPLATE_GENERATION)
}

/// Whether a pod is of the present template.
fn is_updated(set: &DaemonSet, hash: &str, pod: &Pod) -> bool {
    owners::label(&pod.metadata, HASH_LABEL) == Some(hash)
        || template_generation(set)
            .is_some_and(|generation| owners::label(&pod.metadata, GENERATION_LABEL) == Some(generation))
}
