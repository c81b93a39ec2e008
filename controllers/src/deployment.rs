//! Rolls pod templates out by ReplicaSets, the counterpart of `pkg/controller/deployment`.
//!
//! [`rollout`] decides how large each ReplicaSet is to be, [`status`] what the Deployment's status says, [`revision`]
//! which ReplicaSet is which revision. This file carries the decisions out.

use std::sync::Arc;
use std::time::Duration;

use coxswain_client::events;
use coxswain_client::objects::{self, Deletion};
use coxswain_client::runner::run_controller;
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::Context;
use crate::common::slim::{self, SlimPod};
use crate::common::{claim, hash, owners, pod_control, pods, selector};

mod revision;
mod rollout;
mod status;

use rollout::{Resize, Sets};

const WORKERS: usize = 5;
const POD_TEMPLATE_HASH: &str = "pod-template-hash";

struct Controller {
    context: Context,
    deployments: Store<Deployment>,
    sets: Store<ReplicaSet>,
    pods: Store<SlimPod>,
    queue: WorkQueue<ObjectKey>,
}

/// Index of ReplicaSets by the UID of their controller, or `orphan/NAMESPACE`.
const BY_OWNER: &str = "owner";

pub async fn run(context: Context) {
    let deployments: Informer<Deployment> = context.informers.informer();
    let sets: Informer<ReplicaSet> = context.informers.informer();
    let pods = context.pods();
    sets.store().add_index(BY_OWNER, |set| {
        vec![match owners::controller_of(&set.metadata) {
            Some(owner) => owner.uid.clone(),
            None => format!("orphan/{}", owners::namespace(&set.metadata)),
        }]
    });
    tokio::join!(deployments.synced(), sets.synced(), pods.synced());
    let controller = Arc::new(Controller {
        deployments: deployments.store(),
        sets: sets.store(),
        pods: pods.store(),
        queue: WorkQueue::new(),
        context: context.clone(),
    });
    let (queue, shutdown) = (controller.queue.clone(), context.shutdown.clone());
    let reconciler = controller.clone();
    let workers = run_controller("deployment", queue, context.workers(WORKERS), shutdown.clone(), move |key| {
        let controller = reconciler.clone();
        async move { controller.reconcile(key).await }
    });
    let (mut deployment_events, mut set_events, mut pod_events) =
        (deployments.subscribe(), sets.subscribe(), pods.subscribe());
    let watch = async {
        loop {
            tokio::select! {
                Some(event) = deployment_events.next() => controller.queue.add(ObjectKey::of(event.object().as_ref())),
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

impl Controller {
    fn set_changed(&self, event: Event<ReplicaSet>) {
        if let Event::Updated { old, new } = &event
            && owners::controller_of(&old.metadata) != owners::controller_of(&new.metadata)
        {
            self.enqueue_owner(&old.metadata);
        }
        let set = event.object();
        if owners::controller_of(&set.metadata).is_some() {
            self.enqueue_owner(&set.metadata);
        } else if !matches!(event, Event::Deleted(_)) {
            for deployment in self.deployments.list_namespace(owners::namespace(&set.metadata)) {
                let wanted = deployment.spec.as_ref().map(|spec| &spec.selector);
                if selector::matches(wanted, set.metadata.labels.as_ref()) {
                    self.queue.add(ObjectKey::of(deployment.as_ref()));
                }
            }
        }
    }

    fn enqueue_owner(&self, meta: &ObjectMeta) {
        if let Some(owner) = owners::controller_of(meta).filter(|owner| owner.kind == "Deployment") {
            let key = ObjectKey::new(owners::namespace(meta), &owner.name);
            if self.deployments.get_key(&key).is_some_and(|found| owners::uid(&found.metadata) == owner.uid) {
                self.queue.add(key);
            }
        }
    }

    /// A Deployment that recreates waits for its last old pod to go.
    fn pod_changed(&self, event: Event<SlimPod>) {
        let Event::Deleted(pod) = event else { return };
        let Some(owner) = owners::controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet") else {
            return;
        };
        if let Some(set) = self.sets.get(owners::namespace(&pod.metadata), &owner.name) {
            self.enqueue_owner(&set.metadata);
        }
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(found) = self.deployments.get_key(&key) else { return Ok(()) };
        let mut deployment = found.as_ref().clone();
        let spec = deployment.spec.clone().unwrap_or_default();
        if selector::is_empty(&spec.selector) {
            self.context.recorder.warning(
                &events::reference(&deployment),
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.",
            );
            let mut status = deployment.status.clone().unwrap_or_default();
            if status.observed_generation < deployment.metadata.generation {
                status.observed_generation = deployment.metadata.generation;
                deployment.status = Some(status);
                objects::update_status(&self.context.client, &deployment).await?;
            }
            return Ok(());
        }
        let all = self.claim(&deployment).await?;
        if owners::is_deleting(&deployment.metadata) {
            let sets = self.sets_of(&deployment, &all);
            return self.sync_status(&mut deployment, &sets).await;
        }
        if status::set_paused_condition(&mut deployment) {
            deployment = objects::update_status(&self.context.client, &deployment).await?;
        }
        let paused = spec.paused == Some(true);
        let sets = self.sets_of(&deployment, &all);
        if paused || rollout::is_scaling(&deployment, &sets) {
            let sets = self.sync_revision(&mut deployment, sets, false).await?;
            let sets = self.scale(&deployment, sets).await?;
            if paused {
                self.clean_up(&deployment, &sets).await?;
            }
            return self.sync_status(&mut deployment, &sets).await;
        }
        if rollout::recreates(&deployment) {
            self.recreate(&mut deployment, sets).await
        } else {
            self.roll(&mut deployment, sets).await
        }
    }

    async fn roll(&self, deployment: &mut Deployment, sets: Sets) -> Result<(), kube::Error> {
        let mut sets = self.sync_revision(deployment, sets, true).await?;
        let grow = rollout::reconcile_new(deployment, &sets);
        if self.resize(deployment, &mut sets, grow).await? {
            return self.sync_rollout_status(deployment, &sets).await;
        }
        let unhealthy = rollout::clean_up_unhealthy(deployment, &sets);
        let mut scaled = self.resize(deployment, &mut sets, unhealthy).await?;
        let shrink = rollout::scale_down_old(deployment, &sets);
        scaled |= self.resize(deployment, &mut sets, shrink).await?;
        if !scaled && status::is_complete(deployment, deployment.status.as_ref()) {
            self.clean_up(deployment, &sets).await?;
        }
        self.sync_rollout_status(deployment, &sets).await
    }

    async fn recreate(&self, deployment: &mut Deployment, sets: Sets) -> Result<(), kube::Error> {
        let mut sets = self.sync_revision(deployment, sets, false).await?;
        let shrink = rollout::all_old_to_zero(&sets);
        if self.resize(deployment, &mut sets, shrink).await? || self.old_pods_run(&sets) {
            return self.sync_rollout_status(deployment, &sets).await;
        }
        if sets.new.is_none() {
            sets = self.sync_revision(deployment, sets, true).await?;
        }
        let grow = rollout::new_to_full_size(deployment, &sets);
        self.resize(deployment, &mut sets, grow).await?;
        if status::is_complete(deployment, deployment.status.as_ref()) {
            self.clean_up(deployment, &sets).await?;
        }
        self.sync_rollout_status(deployment, &sets).await
    }

    /// Whether a pod of an old revision still runs, or may.
    fn old_pods_run(&self, sets: &Sets) -> bool {
        sets.old.iter().any(|set| set.status.as_ref().is_some_and(|status| status.replicas > 0))
            || sets
                .old
                .iter()
                .flat_map(|set| self.pods.by_index(slim::BY_OWNER, owners::uid(&set.metadata)))
                .any(|pod| !pods::is_terminated(&pod))
    }

    async fn scale(&self, deployment: &Deployment, mut sets: Sets) -> Result<Sets, kube::Error> {
        let plan = rollout::scale(deployment, &sets);
        self.resize(deployment, &mut sets, plan).await?;
        Ok(sets)
    }

    /// The Deployment's ReplicaSets, adopting and releasing on the way.
    async fn claim(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>, kube::Error> {
        let meta = &deployment.metadata;
        let wanted = deployment.spec.as_ref().map(|spec| &spec.selector);
        let owned = self.sets.by_index(BY_OWNER, owners::uid(meta));
        let orphans = self.sets.by_index(BY_OWNER, &format!("orphan/{}", owners::namespace(meta)));
        let mut claimed = Vec::new();
        let mut may_adopt = None;
        for set in owned.into_iter().chain(orphans) {
            match claim::decide(meta, wanted, &set.metadata) {
                claim::Claim::Keep => claimed.push(set),
                claim::Claim::Ignore => {}
                claim::Claim::Release => {
                    claim::release::<ReplicaSet>(&self.context.client, owners::uid(meta), &set.metadata, None).await?;
                }
                claim::Claim::Adopt => {
                    if may_adopt.is_none() {
                        may_adopt = Some(claim::may_adopt(&self.context.client, deployment).await?);
                    }
                    if may_adopt == Some(true)
                        && claim::adopt::<_, ReplicaSet>(&self.context.client, deployment, &set.metadata, None).await?
                    {
                        claimed.push(set);
                    }
                }
            }
        }
        Ok(claimed)
    }

    fn sets_of(&self, deployment: &Deployment, all: &[Arc<ReplicaSet>]) -> Sets {
        revision::split(deployment, all.iter().map(|set| set.as_ref().clone()).collect())
    }

    /// Gives the new ReplicaSet its revision and annotations, making it if it is missing and asked for, and tells the
    /// Deployment which revision it is at.
    async fn sync_revision(
        &self,
        deployment: &mut Deployment,
        mut sets: Sets,
        create: bool,
    ) -> Result<Sets, kube::Error> {
        let next = revision::max(&sets.old) + 1;
        let spec = deployment.spec.clone().unwrap_or_default();
        let deadline = status::has_progress_deadline(deployment);
        if let Some(found) = &sets.new {
            let mut set = found.clone();
            let annotated = revision::annotate(deployment, &mut set, next, true);
            let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
            if annotated || min_ready.unwrap_or(0) != spec.min_ready_seconds.unwrap_or(0) {
                if let Some(own) = &mut set.spec {
                    own.min_ready_seconds = spec.min_ready_seconds;
                }
                sets.new = Some(objects::update(&self.context.client, &set).await?);
                return Ok(sets);
            }
            let mut changed = revision::set_on_deployment(deployment, &set);
            if deadline && status::condition(deployment.status.as_ref(), status::PROGRESSING).is_none() {
                let message = format!("Found new replica set \"{}\"", owners::name(&set.metadata));
                status::set_progressing(deployment, "True", "FoundNewReplicaSet", message);
                changed = true;
            }
            if changed {
                *deployment = objects::update_status(&self.context.client, deployment).await?;
            }
            return Ok(sets);
        }
        if !create {
            return Ok(sets);
        }
        let mut set = new_replica_set(deployment);
        let size = rollout::size_of_new(deployment, &sets, 0);
        if let Some(own) = &mut set.spec {
            own.replicas = Some(size);
        }
        revision::annotate(deployment, &mut set, next, false);
        let (created, existed) = match objects::create(&self.context.client, &set).await {
            Ok(created) => (created, false),
            Err(error) if errors::is_already_exists(&error) => {
                let key = ObjectKey::of(&set);
                let found = objects::get::<ReplicaSet>(&self.context.client, &key).await?;
                let own = owners::is_controlled_by(&found.metadata, owners::uid(&deployment.metadata));
                if !own || !revision::same_template(deployment, &found) {
                    // Another template has this hash, or somebody else this name: the next attempt takes another hash.
                    let status = deployment.status.get_or_insert_default();
                    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                    objects::update_status(&self.context.client, deployment).await?;
                    return Err(error);
                }
                (found, true)
            }
            Err(error) if errors::has_cause(&error, "NamespaceTerminating") => return Ok(sets),
            Err(error) => {
                let message = format!(
                    "Failed to create new replica set \"{}\": {}",
                    owners::name(&set.metadata),
                    errors::message(&error)
                );
                if deadline {
                    status::set_progressing(deployment, "False", "ReplicaSetCreateError", message.clone());
                    // The failure to create is what counts; the status is tried again with it.
                    let _ = objects::update_status(&self.context.client, deployment).await;
                }
                self.context.recorder.warning(&events::reference(deployment), "ReplicaSetCreateError", message);
                return Err(error);
            }
        };
        let name = owners::name(&created.metadata).to_owned();
        if !existed && size > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {size}");
            self.context.recorder.normal(&events::reference(deployment), "ScalingReplicaSet", message);
        }
        let mut changed = revision::set_on_deployment(deployment, &created);
        if !existed && deadline {
            status::set_progressing(
                deployment,
                "True",
                "NewReplicaSetCreated",
                format!("Created new replica set \"{name}\""),
            );
            changed = true;
        }
        if changed {
            *deployment = objects::update_status(&self.context.client, deployment).await?;
        }
        sets.new = Some(created);
        Ok(sets)
    }

    /// Gives ReplicaSets their new sizes; says whether any size changed.
    async fn resize(&self, deployment: &Deployment, sets: &mut Sets, plan: Vec<Resize>) -> Result<bool, kube::Error> {
        let mut scaled = false;
        for Resize { name, size } in plan {
            let Some(set) = sets.get_mut(&name) else { continue };
            let before = rollout::size(set);
            let mut resized = set.clone();
            let annotated = revision::annotate_sizes(deployment, &mut resized);
            if before == size && !annotated {
                continue;
            }
            resized.spec.get_or_insert_default().replicas = Some(size);
            *set = objects::update(&self.context.client, &resized).await?;
            if before != size {
                scaled = true;
                let direction = if before < size { "up" } else { "down" };
                let message = format!("Scaled {direction} replica set {name} from {before} to {size}");
                self.context.recorder.normal(&events::reference(deployment), "ScalingReplicaSet", message);
            }
        }
        Ok(scaled)
    }

    /// Deletes the oldest revisions beyond the history limit.
    async fn clean_up(&self, deployment: &Deployment, sets: &Sets) -> Result<(), kube::Error> {
        let doomed = revision::beyond_history(deployment, &sets.old);
        pod_control::for_each(doomed, |set| async move {
            errors::ignore_not_found(
                objects::delete::<ReplicaSet>(&self.context.client, &ObjectKey::of(&set), &Deletion::default()).await,
            )
            .map(drop)
        })
        .await
    }

    async fn sync_status(&self, deployment: &mut Deployment, sets: &Sets) -> Result<(), kube::Error> {
        let new = status::calculate(deployment, sets);
        if deployment.status.as_ref() == Some(&new) {
            return Ok(());
        }
        deployment.status = Some(new);
        objects::update_status(&self.context.client, deployment).await.map(drop)
    }

    async fn sync_rollout_status(&self, deployment: &mut Deployment, sets: &Sets) -> Result<(), kube::Error> {
        let now = Timestamp::now();
        let new = status::of_rollout(deployment, sets, now);
        if deployment.status.as_ref() == Some(&new) {
            if let Some(wait) = status::until_stuck(deployment, &new, now) {
                let key = ObjectKey::of(deployment);
                if wait < Duration::from_secs(1) {
                    self.queue.add_rate_limited(key);
                } else {
                    self.queue.add_after(key, wait + Duration::from_secs(1));
                }
            }
            return Ok(());
        }
        deployment.status = Some(new);
        objects::update_status(&self.context.client, deployment).await.map(drop)
    }
}

/// The ReplicaSet of the Deployment's template, of size zero.
fn new_replica_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = hash::pod_template(&spec.template, collisions);
    let mut template = spec.template;
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.to_owned(), hash.clone());
    let mut wanted = spec.selector;
    wanted.match_labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.to_owned(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owners::name(&deployment.metadata))),
            namespace: deployment.metadata.namespace.clone(),
            owner_references: Some(vec![owners::controller_reference(deployment)]),
            labels: meta.labels.clone(),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector: wanted,
            template: Some(template),
        }),
        status: None,
    }
}
