//! Keeps as many pods as a ReplicaSet asks for, the counterpart of `pkg/controller/replicaset`. A ReplicationController is
//! the same with another selector, and is driven by the same code, as it is upstream.

use std::collections::HashMap;
use std::sync::Arc;

use coxswain_client::expectations::Expectations;
use coxswain_client::objects;
use coxswain_client::runner::run_controller;
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};

use crate::Context;
use crate::common::slim::{self, SlimPod};
use crate::common::{claim, owners, pod_control, pods, selector};

mod kind;
mod plan;
mod status;

use kind::Replicas;

/// Upstream's number of workers.
const WORKERS: usize = 5;
/// How often a status that conflicts is written again at once.
const STATUS_RETRIES: usize = 1;

pub async fn run(context: Context) {
    Controller::<ReplicaSet>::run(context).await;
}

pub async fn run_replication_controllers(context: Context) {
    Controller::<ReplicationController>::run(context).await;
}

struct Controller<K: Replicas> {
    context: Context,
    sets: Informer<K>,
    pods: Store<SlimPod>,
    queue: WorkQueue<ObjectKey>,
    expectations: Expectations,
}

/// Index of sets by their own controller, and by UID.
const BY_CONTROLLER: &str = "controller";

impl<K: Replicas> Controller<K> {
    async fn run(context: Context) {
        let sets = context.informers.informer::<K>();
        sets.store().add_index(BY_CONTROLLER, |set| {
            owners::controller_of(set.meta()).map(|owner| owner.uid.clone()).into_iter().collect()
        });
        let pods = context.pods();
        sets.synced().await;
        pods.synced().await;
        let controller = Arc::new(Self {
            sets: sets.clone(),
            pods: pods.store(),
            queue: WorkQueue::new(),
            expectations: Expectations::new(),
            context: context.clone(),
        });
        let (queue, shutdown) = (controller.queue.clone(), context.shutdown.clone());
        let workers = {
            let controller = controller.clone();
            run_controller(K::CONTROLLER, queue, context.workers(WORKERS), shutdown.clone(), move |key| {
                let controller = controller.clone();
                async move { controller.reconcile(key).await }
            })
        };
        let (mut set_events, mut pod_events) = (sets.subscribe(), pods.subscribe());
        let watch = async {
            loop {
                tokio::select! {
                    Some(event) = set_events.next() => controller.set_changed(event),
                    Some(event) = pod_events.next() => controller.pod_changed(event),
                    else => break,
                }
            }
        };
        tokio::join!(workers, async {
            tokio::select! { () = watch => {}, () = shutdown.cancelled() => {} }
        });
    }

    fn set_changed(&self, event: Event<K>) {
        let key = ObjectKey::of(event.object().as_ref());
        if let Event::Deleted(_) = event {
            self.expectations.remove(&key.to_string());
        }
        self.queue.add(key);
    }

    fn pod_changed(&self, event: Event<SlimPod>) {
        match event {
            Event::Added(pod) => {
                if owners::is_deleting(&pod.metadata) {
                    return self.pod_going(&pod);
                }
                match owners::controller_of(&pod.metadata) {
                    Some(_) => {
                        if let Some(key) = self.set_of(&pod) {
                            self.expectations.creation_observed(&key.to_string());
                            self.queue.add(key);
                        }
                    }
                    None => self.enqueue_matching(&pod),
                }
            }
            Event::Updated { old, new } => {
                let labels_changed = old.metadata.labels != new.metadata.labels;
                if owners::is_deleting(&new.metadata) {
                    self.pod_going(&new);
                    if labels_changed {
                        self.pod_going(&old);
                    }
                    return;
                }
                let owner_changed = owners::controller_of(&old.metadata) != owners::controller_of(&new.metadata);
                if owner_changed && let Some(key) = self.set_of(&old) {
                    self.queue.add(key);
                }
                if owners::controller_of(&new.metadata).is_some() {
                    if let Some(key) = self.set_of(&new) {
                        self.queue.add(key.clone());
                        let min_ready = self.sets.store().get_key(&key).map_or(0, |set| set.view().min_ready_seconds);
                        if !pods::is_ready(&old) && pods::is_ready(&new) && min_ready > 0 {
                            // A second more, as the times are truncated.
                            self.queue.add_after(key, std::time::Duration::from_secs(min_ready as u64 + 1));
                        }
                    }
                } else if labels_changed || owner_changed {
                    self.enqueue_matching(&new);
                }
            }
            Event::Deleted(pod) => self.pod_going(&pod),
        }
    }

    /// A pod that is deleted or marked for it no longer counts.
    fn pod_going(&self, pod: &SlimPod) {
        if let Some(key) = self.set_of(pod) {
            self.expectations.deletion_observed(&key.to_string(), owners::uid(&pod.metadata));
            self.queue.add(key);
        }
    }

    /// The set that controls a pod, if it is one of ours and still the same object.
    fn set_of(&self, pod: &Pod) -> Option<ObjectKey> {
        let owner = owners::controller_of(&pod.metadata).filter(|owner| owner.kind == K::kind(&()))?;
        let key = ObjectKey::new(owners::namespace(&pod.metadata), &owner.name);
        let set = self.sets.store().get_key(&key)?;
        (owners::uid(set.meta()) == owner.uid).then_some(key)
    }

    fn enqueue_matching(&self, pod: &Pod) {
        for set in self.sets.store().list_namespace(owners::namespace(&pod.metadata)) {
            let wanted = set.view().selector;
            if !selector::is_empty(&wanted) && selector::matches(Some(&wanted), pod.metadata.labels.as_ref()) {
                self.queue.add(ObjectKey::of(set.as_ref()));
            }
        }
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let name = key.to_string();
        let Some(set) = self.sets.store().get_key(&key) else {
            self.expectations.remove(&name);
            return Ok(());
        };
        let view = set.view();
        let satisfied = self.expectations.satisfied(&name);
        let (active, terminating) = self.claim(set.as_ref(), &view).await?;
        let now = Timestamp::now();
        let mut failure = None;
        if satisfied && !owners::is_deleting(set.meta()) {
            match plan::plan(view.replicas, &active, || self.related_by_node(set.as_ref()), now) {
                plan::Action::None => {}
                plan::Action::Create(count) => failure = self.create_pods(&name, set.as_ref(), &view, count).await,
                plan::Action::Delete(doomed) => failure = self.delete_pods(&name, set.as_ref(), doomed).await,
            }
        }
        let new = status::calculate(&view, &active, terminating, failure.as_ref(), now);
        let available = new.available;
        self.update_status(set.as_ref(), new).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        if view.min_ready_seconds > 0 && available != active.len() as i32 {
            let next = active
                .iter()
                .filter_map(|pod| pods::next_available(pod, view.min_ready_seconds, now))
                .filter(|wait| !wait.is_zero())
                .min();
            if let Some(wait) = next {
                self.queue.add_after(key, wait + std::time::Duration::from_secs(1));
            }
        }
        Ok(())
    }

    /// The set's active pods, and how many of its pods are about to go. Adopts and releases on the way.
    async fn claim(&self, set: &K, view: &kind::View) -> Result<(Vec<Arc<SlimPod>>, i32), kube::Error> {
        let meta = set.meta();
        let owned = self.pods.by_index(slim::BY_OWNER, owners::uid(meta));
        let orphans = self.pods.by_index(slim::BY_OWNER, &format!("orphan/{}", owners::namespace(meta)));
        let mut claimed = Vec::new();
        let mut may_adopt = None;
        for pod in owned.into_iter().chain(orphans) {
            let kept = match claim::decide(meta, Some(&view.selector), &pod.metadata) {
                claim::Claim::Keep => true,
                claim::Claim::Ignore => false,
                claim::Claim::Release => {
                    claim::release::<Pod>(&self.context.client, owners::uid(meta), &pod.metadata, None).await?;
                    false
                }
                claim::Claim::Adopt if pods::is_terminated(&pod) => false,
                claim::Claim::Adopt => {
                    if may_adopt.is_none() {
                        may_adopt = Some(claim::may_adopt(&self.context.client, set).await?);
                    }
                    may_adopt == Some(true)
                        && claim::adopt::<K, Pod>(&self.context.client, set, &pod.metadata, None).await?
                }
            };
            if kept {
                claimed.push(pod);
            }
        }
        let terminating = claimed.iter().filter(|pod| pods::is_terminating(pod)).count();
        claimed.retain(|pod| pods::is_active(pod));
        Ok((claimed, terminating as i32))
    }

    /// How many active pods of this set and its siblings each node has.
    fn related_by_node(&self, set: &K) -> HashMap<String, usize> {
        let siblings = match owners::controller_of(set.meta()) {
            Some(owner) => self.sets.store().by_index(BY_CONTROLLER, &owner.uid),
            None => Vec::new(),
        };
        let mut uids: Vec<&str> = siblings.iter().map(|sibling| owners::uid(sibling.meta())).collect();
        if uids.is_empty() {
            uids.push(owners::uid(set.meta()));
        }
        let mut by_node = HashMap::new();
        for pod in uids.iter().flat_map(|uid| self.pods.by_index(slim::BY_OWNER, uid)) {
            if pods::is_active(&pod) {
                *by_node.entry(pods::node_name(&pod).to_owned()).or_default() += 1;
            }
        }
        by_node
    }

    async fn create_pods(&self, name: &str, set: &K, view: &kind::View, count: usize) -> Option<kube::Error> {
        let template = view.template.clone().unwrap_or_default();
        let pod = pod_control::pod_from_template(&template, set.meta(), owners::controller_reference(set));
        self.expectations.expect(name, count, []);
        let (created, failure) = pod_control::slow_start(count, |_| async {
            pod_control::create(&self.context.client, &self.context.recorder, set, &pod).await.map(drop)
        })
        .await;
        self.expectations.creations_observed(name, count - created);
        // Nothing can be created in a namespace that is going away, and trying again would not help.
        failure.filter(|error| !errors::has_cause(error, "NamespaceTerminating"))
    }

    async fn delete_pods(&self, name: &str, set: &K, doomed: Vec<Arc<SlimPod>>) -> Option<kube::Error> {
        self.expectations.expect(name, 0, doomed.iter().map(|pod| owners::uid(&pod.metadata).to_owned()));
        pod_control::for_each(doomed, |pod| async move {
            let result = pod_control::delete(&self.context.client, &self.context.recorder, set, &pod.metadata).await;
            if result.is_err() || self.pods.get_key(&ObjectKey::of_meta(&pod.metadata)).is_none() {
                self.expectations.deletion_observed(name, owners::uid(&pod.metadata));
            }
            result
        })
        .await
        .err()
    }

    async fn update_status(&self, set: &K, new: status::Status) -> Result<(), kube::Error> {
        let Some(mut updated) = set.with_status(&new) else { return Ok(()) };
        for attempt in 0.. {
            match objects::update_status(&self.context.client, &updated).await {
                Ok(_) => return Ok(()),
                Err(error) if errors::is_not_found(&error) => return Ok(()),
                Err(error) if attempt >= STATUS_RETRIES || !errors::is_conflict(&error) => return Err(error),
                Err(_) => {
                    let fresh = objects::get::<K>(&self.context.client, &ObjectKey::of(set)).await?;
                    match fresh.with_status(&new) {
                        Some(fresh) => updated = fresh,
                        None => return Ok(()),
                    }
                }
            }
        }
        Ok(())
    }
}
