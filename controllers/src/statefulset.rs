//! Runs numbered pods that keep their name and storage, the counterpart of `pkg/controller/statefulset`.
//!
//! [`plan`] decides the next steps from the pods there are; this file takes them and writes the status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::{drive, feed};
use coxswain_client::events;
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;

use crate::Context;
use crate::common::slim::{self, SlimPod};
use crate::common::{claim, hash, history, owners, pods, selector};

mod identity;
mod plan;

use plan::{Step, View};

const WORKERS: usize = 5;
const REVISION_HASH: &str = "controller.kubernetes.io/hash";
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";

struct Controller {
    context: Context,
    sets: Store<StatefulSet>,
    revisions: Store<ControllerRevision>,
    pods: Store<SlimPod>,
    claims: Store<PersistentVolumeClaim>,
    queue: WorkQueue<ObjectKey>,
}

pub async fn run(context: Context) {
    let sets: Informer<StatefulSet> = context.informers.informer();
    let claims: Informer<PersistentVolumeClaim> = context.informers.informer();
    let revisions = history::informer(&context);
    let pods = context.pods();
    tokio::join!(sets.synced(), claims.synced(), revisions.synced(), pods.synced());
    let controller = Arc::new(Controller {
        sets: sets.store(),
        revisions: revisions.store(),
        pods: pods.store(),
        claims: claims.store(),
        queue: WorkQueue::new(),
        context: context.clone(),
    });
    let feeds = async {
        tokio::join!(
            feed(&sets, |event| controller.queue.add(ObjectKey::of(event.object().as_ref()))),
            feed(&pods, |event| controller.pod_changed(&event)),
        )
    };
    drive(
        "statefulset",
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
        match owners::controller_of(&pod.metadata) {
            Some(owner) if owner.kind == "StatefulSet" => {
                let key = ObjectKey::new(owners::namespace(&pod.metadata), &owner.name);
                if self.sets.get_key(&key).is_some_and(|set| owners::uid(&set.metadata) == owner.uid) {
                    self.queue.add(key);
                }
            }
            None if !matches!(event, Event::Deleted(_)) => {
                for set in self.sets.list_namespace(owners::namespace(&pod.metadata)) {
                    let wanted = set.spec.as_ref().map(|spec| &spec.selector);
                    if selector::matches(wanted, pod.metadata.labels.as_ref()) {
                        self.queue.add(ObjectKey::of(set.as_ref()));
                    }
                }
            }
            _ => {}
        }
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(set) = self.sets.get_key(&key) else { return Ok(()) };
        let spec = set.spec.clone().unwrap_or_default();
        if selector::is_empty(&spec.selector) {
            return Ok(());
        }
        let pods = self.claim(&set).await?;
        let mut status = set.status.clone().unwrap_or_default();
        let mut revisions =
            history::claim_all(&self.context.client, &self.revisions, set.as_ref(), &spec.selector).await?;
        let (current, update) = self.revisions(&set, &mut status, &mut revisions).await?;
        let now = Timestamp::now();
        let view = View::new(&set, &pods, owners::name(&current.metadata), owners::name(&update.metadata), now);
        let mut new = view.status(&status);
        let mut failure = None;
        if !owners::is_deleting(&set.metadata) {
            for step in plan::plan(&view, &status) {
                if let Err(error) = self.take(&set, &current, &update, &step, &mut new).await {
                    failure = Some(error);
                    break;
                }
            }
        }
        plan::complete_update(&set, &mut new);
        if set.status.as_ref() != Some(&new) {
            let updated = StatefulSet { status: Some(new.clone()), ..set.as_ref().clone() };
            errors::ignore_not_found(objects::update_status(&self.context.client, &updated).await)?;
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let in_use = |revision: &ControllerRevision| {
            let name = owners::name(&revision.metadata);
            new.current_revision.as_deref() == Some(name)
                || new.update_revision.as_deref() == Some(name)
                || pods.iter().any(|pod| owners::label(&pod.metadata, REVISION_LABEL) == Some(name))
        };
        history::truncate(&self.context.client, &revisions, in_use, spec.revision_history_limit.unwrap_or(10)).await?;
        if new.ready_replicas != new.available_replicas
            && let Some(seconds) = spec.min_ready_seconds.filter(|seconds| *seconds > 0)
        {
            self.queue.add_after(key, Duration::from_secs(seconds as u64));
        }
        Ok(())
    }

    async fn claim(&self, set: &StatefulSet) -> Result<Vec<Arc<SlimPod>>, kube::Error> {
        let client = &self.context.client;
        let wanted = set.spec.as_ref().map(|spec| &spec.selector);
        let owned = self.pods.by_index(slim::BY_OWNER, owners::uid(&set.metadata));
        let orphans = self.pods.by_index(slim::BY_OWNER, &format!("orphan/{}", owners::namespace(&set.metadata)));
        let mut claimed = Vec::new();
        for pod in owned.into_iter().chain(orphans) {
            // Only a pod with a number of this set can be one of its pods.
            if identity::ordinal_of(set, &pod).is_none() {
                continue;
            }
            match claim::decide(&set.metadata, wanted, &pod.metadata) {
                claim::Claim::Keep => claimed.push(pod),
                claim::Claim::Ignore => {}
                claim::Claim::Release => {
                    claim::release::<Pod>(client, owners::uid(&set.metadata), &pod.metadata, None).await?;
                }
                claim::Claim::Adopt => {
                    if claim::may_adopt(client, set).await?
                        && claim::adopt::<_, Pod>(client, set, &pod.metadata, None).await?
                    {
                        claimed.push(pod);
                    }
                }
            }
        }
        Ok(claimed)
    }

    /// The revision that pods are at, and the one of the present template, which is made if there is none.
    async fn revisions(
        &self,
        set: &StatefulSet,
        status: &mut StatefulSetStatus,
        all: &mut Vec<ControllerRevision>,
    ) -> Result<(ControllerRevision, ControllerRevision), kube::Error> {
        let client = &self.context.client;
        let spec = set.spec.clone().unwrap_or_default();
        let data = history::data_of(&spec.template);
        let newest = all.iter().map(|revision| revision.revision).max().unwrap_or(0);
        let mut collisions = status.collision_count.unwrap_or(0);
        let update = match all.iter().rposition(|revision| history::data(revision) == Some(&data)) {
            Some(index) if all[index].revision == newest => all[index].clone(),
            Some(index) => {
                all[index] = history::renumber(client, &all[index], newest + 1).await?;
                all[index].clone()
            }
            None => loop {
                let bytes = history::encode(&data) + &collisions.to_string();
                let hash = hash::safe_encode(&hash::fnv32(bytes.as_bytes()).to_string());
                let mut labels =
                    spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
                labels.insert(REVISION_HASH.to_owned(), hash.clone());
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
                    Ok(created) => {
                        all.push(created.clone());
                        break created;
                    }
                    Err(error) if errors::is_already_exists(&error) => {
                        let found = objects::get::<ControllerRevision>(client, &ObjectKey::of(&revision)).await?;
                        if history::data(&found) == Some(&data) {
                            break found;
                        }
                        collisions += 1;
                    }
                    Err(error) => return Err(error),
                }
            },
        };
        status.collision_count = Some(collisions);
        let current = all
            .iter()
            .find(|revision| revision.metadata.name == status.current_revision)
            .cloned()
            .unwrap_or_else(|| update.clone());
        Ok((current, update))
    }

    async fn take(
        &self,
        set: &StatefulSet,
        current: &ControllerRevision,
        update: &ControllerRevision,
        step: &Step,
        status: &mut StatefulSetStatus,
    ) -> Result<(), kube::Error> {
        match step {
            Step::Create { ordinal, old } => {
                let revision = if *old { current } else { update };
                let template = template_of(set, revision);
                let pod = identity::pod(set, &template, *ordinal, owners::name(&revision.metadata));
                let created = self.create(set, &pod, *ordinal).await?;
                if created {
                    status.replicas += 1;
                    let name = revision.metadata.name.as_ref();
                    let up = |count: &mut Option<i32>| *count = Some(count.unwrap_or(0) + 1);
                    if name == status.current_revision.as_ref() {
                        up(&mut status.current_replicas);
                    }
                    if name == status.update_revision.as_ref() {
                        up(&mut status.updated_replicas);
                    }
                }
                Ok(())
            }
            Step::EnsureClaims { ordinal } => {
                self.ensure_claims(set, *ordinal).await.map_err(|why| kube::Error::Service(why.into()))
            }
            Step::Delete { pod, scaled_down } => {
                if let Some((kind, reason, what)) = match pods::phase(pod) {
                    "Failed" => Some(("Warning", "RecreatingFailedPod", "failed")),
                    "Succeeded" => Some(("Normal", "RecreatingTerminatedPod", "terminated")),
                    _ => None,
                } && !scaled_down
                {
                    let message = format!(
                        "StatefulSet {}/{} is recreating {what} Pod {}",
                        owners::namespace(&set.metadata),
                        owners::name(&set.metadata),
                        owners::name(&pod.metadata)
                    );
                    self.context.recorder.event(&events::reference(set), kind, reason, message);
                }
                if *scaled_down && identity::deletes_claims_when_scaled(set) {
                    self.hand_claims_to(set, pod).await?;
                }
                let key = ObjectKey::of_meta(&pod.metadata);
                let deletion = Deletion { uid: pod.metadata.uid.as_deref(), ..Deletion::default() };
                let result = objects::delete::<Pod>(&self.context.client, &key, &deletion).await;
                let result = errors::ignore_not_found(result).map(drop);
                let failure = result.as_ref().err().map(errors::message);
                self.record(set, "Delete", owners::name(&pod.metadata), failure.as_deref());
                if result.is_ok() && !scaled_down {
                    let revision = owners::label(&pod.metadata, REVISION_LABEL);
                    let down = |count: &mut Option<i32>| *count = Some((count.unwrap_or(0) - 1).max(0));
                    if revision == status.current_revision.as_deref() {
                        down(&mut status.current_replicas);
                    }
                }
                result
            }
        }
    }

    async fn create(&self, set: &StatefulSet, pod: &Pod, ordinal: i32) -> Result<bool, kube::Error> {
        if let Err(why) = self.ensure_claims(set, ordinal).await {
            self.record(set, "Create", owners::name(&pod.metadata), Some(&why));
            return Err(kube::Error::Service(why.into()));
        }
        match objects::create(&self.context.client, pod).await {
            Ok(_) => {
                self.record(set, "Create", owners::name(&pod.metadata), None);
                Ok(true)
            }
            // The informer has not shown it yet.
            Err(error) if errors::is_already_exists(&error) => Err(error),
            Err(error) if errors::has_cause(&error, "NamespaceTerminating") => Ok(false),
            Err(error) => {
                self.record(set, "Create", owners::name(&pod.metadata), Some(&errors::message(&error)));
                Err(error)
            }
        }
    }

    /// Makes the claims that are not there, and says what is wrong with those that the pod cannot have.
    async fn ensure_claims(&self, set: &StatefulSet, ordinal: i32) -> Result<(), String> {
        let mut failures = Vec::new();
        for claim in identity::claims(set, ordinal) {
            let key = ObjectKey::of(&claim);
            if let Some(present) = self.claims.get_key(&key) {
                if owners::is_deleting(&present.metadata) {
                    failures.push(format!("pvc {} is being deleted", key.name));
                }
                continue;
            }
            let about = events::reference(set);
            let pod = identity::name(set, ordinal);
            match objects::create(&self.context.client, &claim).await {
                Ok(_) => {
                    let message = format!(
                        "Create Claim {} Pod {pod} in StatefulSet {} success",
                        key.name,
                        owners::name(&set.metadata)
                    );
                    self.context.recorder.normal(&about, "SuccessfulCreate", message);
                }
                Err(error) if errors::is_already_exists(&error) => {}
                Err(error) => {
                    let message = format!(
                        "Create Claim {} for Pod {pod} in StatefulSet {} failed error: {}",
                        key.name,
                        owners::name(&set.metadata),
                        errors::message(&error)
                    );
                    self.context.recorder.warning(&about, "FailedCreate", message);
                    failures.push(format!("failed to create PVC {}: {}", key.name, errors::message(&error)));
                }
            }
        }
        match failures.as_slice() {
            [] => Ok(()),
            [only] => Err(only.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }

    /// Makes a pod that is scaled away own its claims, so that they go with it.
    async fn hand_claims_to(&self, set: &StatefulSet, pod: &SlimPod) -> Result<(), kube::Error> {
        let Some(ordinal) = identity::ordinal_of(set, pod) else { return Ok(()) };
        for claim in identity::claims(set, ordinal) {
            let Some(present) = self.claims.get_key(&ObjectKey::of(&claim)) else { continue };
            let mut present = present.as_ref().clone();
            let references = present.metadata.owner_references.get_or_insert_default();
            if references.iter().any(|reference| reference.uid == owners::uid(&pod.metadata)) {
                continue;
            }
            let pod: &Pod = pod;
            // The set lets go of the claim as the pod takes hold of it: an object has one controller.
            references.retain(|reference| reference.uid != owners::uid(&set.metadata));
            references.push(owners::controller_reference(pod));
            errors::ignore_not_found(objects::update(&self.context.client, &present).await)?;
        }
        Ok(())
    }

    fn record(&self, set: &StatefulSet, verb: &str, pod: &str, failure: Option<&str>) {
        let about = events::reference(set);
        let set = owners::name(&set.metadata);
        match failure {
            None => {
                let message = format!("{verb} Pod {pod} in StatefulSet {set} successful");
                self.context.recorder.normal(&about, &format!("Successful{verb}"), message);
            }
            Some(why) => {
                let message = format!("{verb} Pod {pod} in StatefulSet {set} failed error: {why}");
                self.context.recorder.warning(&about, &format!("Failed{verb}"), message);
            }
        }
    }
}

/// The template that a revision stores.
fn template_of(set: &StatefulSet, revision: &ControllerRevision) -> PodTemplateSpec {
    let present = || set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let stored = history::data(revision).and_then(|data| data.pointer("/spec/template"));
    stored.and_then(|stored| serde_json::from_value(stored.clone()).ok()).unwrap_or_else(present)
}

/// Labels of a template, with more.
type Labels = BTreeMap<String, String>;
