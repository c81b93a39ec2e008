//! Runs the pods of Jobs until enough have succeeded, the counterpart of `pkg/controller/job`.
//!
//! No finished pod may be counted twice or not at all, even if the controller dies in between. So pods carry a finalizer:
//! a finished pod's UID is first written into the status as uncounted, then its finalizer is taken off, and only then is
//! it moved into the counts. [`plan`] decides everything else from what the pods say.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::{drive, feed};
use coxswain_client::events;
use coxswain_client::expectations::Expectations;
use coxswain_client::objects::{self, PatchKind};
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::json;

use crate::Context;
use crate::common::slim::{self, SlimPod};
use crate::common::{claim, owners, pod_control, pods, time};

mod backoff;
pub mod conditions;
mod indexes;
mod plan;
mod policy;

use plan::{Outcome, View};

const WORKERS: usize = 5;
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Pods made or deleted in one go.
const PODS_MAX: usize = 500;
/// UIDs written into the status in one go.
const UNCOUNTED_MAX: usize = 500;
/// Changes of pods within this time are handled together.
const BATCH_PERIOD: Duration = Duration::from_millis(100);

struct Controller {
    context: Context,
    jobs: Store<Job>,
    pods: Store<SlimPod>,
    queue: WorkQueue<ObjectKey>,
    expectations: Expectations,
    /// UIDs of pods whose finalizer was taken off, but whom the informer still shows with it.
    released: Mutex<HashMap<ObjectKey, HashSet<String>>>,
    backoffs: Mutex<HashMap<ObjectKey, backoff::Record>>,
}

pub async fn run(context: Context) {
    let jobs: Informer<Job> = context.informers.informer();
    let pods = context.pods();
    tokio::join!(jobs.synced(), pods.synced());
    let controller = Arc::new(Controller {
        jobs: jobs.store(),
        pods: pods.store(),
        queue: WorkQueue::new(),
        expectations: Expectations::new(),
        released: Mutex::default(),
        backoffs: Mutex::default(),
        context: context.clone(),
    });
    let feeds = async {
        tokio::join!(
            feed(&jobs, |event| controller.job_changed(&event)),
            feed(&pods, |event| controller.pod_changed(&event)),
        )
    };
    drive(
        "job",
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
    fn job_changed(&self, event: &Event<Job>) {
        let job = event.object();
        let key = ObjectKey::of(job.as_ref());
        if let Event::Deleted(_) = event {
            self.expectations.remove(&key.to_string());
            self.released.lock().remove(&key);
            self.backoffs.lock().remove(&key);
            // Its pods must not wait for a job that will not count them any more.
            for pod in self.pods.by_index(slim::BY_OWNER, owners::uid(&job.metadata)) {
                self.release_orphan(&pod);
            }
        }
        self.queue.add(key);
    }

    fn pod_changed(&self, event: &Event<SlimPod>) {
        let pod = event.object();
        match self.job_of(pod) {
            Some(key) => {
                let name = key.to_string();
                match event {
                    Event::Added(pod) if !owners::is_deleting(&pod.metadata) => {
                        self.expectations.creation_observed(&name);
                    }
                    Event::Updated { new, .. } if !owners::is_deleting(&new.metadata) => {}
                    _ => self.expectations.deletion_observed(&name, owners::uid(&pod.metadata)),
                }
                if !has_tracking(pod) || matches!(event, Event::Deleted(_)) {
                    let mut released = self.released.lock();
                    if let Some(uids) = released.get_mut(&key) {
                        uids.remove(owners::uid(&pod.metadata));
                        if uids.is_empty() {
                            released.remove(&key);
                        }
                    }
                }
                // Pods of a job tend to change together.
                let delay = if matches!(event, Event::Added(_)) { Duration::ZERO } else { BATCH_PERIOD };
                self.queue.add_after(key, delay);
            }
            None => self.release_orphan(pod),
        }
        if owners::controller_of(&pod.metadata).is_none() && !matches!(event, Event::Deleted(_)) {
            for job in self.jobs.list_namespace(owners::namespace(&pod.metadata)) {
                let wanted = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                if crate::common::selector::matches(wanted, pod.metadata.labels.as_ref()) {
                    self.queue.add(ObjectKey::of(job.as_ref()));
                }
            }
        }
    }

    fn job_of(&self, pod: &Pod) -> Option<ObjectKey> {
        let owner = owners::controller_of(&pod.metadata).filter(|owner| owner.kind == "Job")?;
        let key = ObjectKey::new(owners::namespace(&pod.metadata), &owner.name);
        let job = self.jobs.get_key(&key)?;
        (owners::uid(&job.metadata) == owner.uid).then_some(key)
    }

    /// Lets a pod go whose job is gone.
    fn release_orphan(&self, pod: &Arc<SlimPod>) {
        if !has_tracking(pod) || self.job_of(pod).is_some() {
            return;
        }
        let (client, key) = (self.context.client.clone(), ObjectKey::of_meta(&pod.metadata));
        let patch = without_tracking(pod);
        tokio::spawn(async move {
            // A pod that is not released now is released when its owner's deletion shows up again.
            let _ = objects::patch::<Pod>(&client, &key, "", PatchKind::Strategic, &patch).await;
        });
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let name = key.to_string();
        let Some(job) = self.jobs.get_key(&key) else { return Ok(()) };
        let spec = job.spec.clone().unwrap_or_default();
        let managed_elsewhere =
            spec.managed_by.as_deref().is_some_and(|manager| manager != "kubernetes.io/job-controller");
        let mut status = job.status.clone().unwrap_or_default();
        if managed_elsewhere || conditions::is_finished(&status) {
            return Ok(());
        }
        let satisfied = self.expectations.satisfied(&name);
        let pods = self.claim(job.as_ref()).await?;
        let now = Timestamp::now();
        let released = self.released.lock().get(&key).cloned().unwrap_or_default();

        let suspended = spec.suspend == Some(true);
        if status.start_time.is_none() && !suspended {
            status.start_time = Some(time::now());
        }
        let before = status.clone();
        let mut view = View::new(&job, &before, &pods, &released);
        let failures_wait = self.note_failures(&key, &pods, &view, now);
        let retry_after = if view.backoff_limit_per_index.is_some() {
            // Each index waits for itself.
            view.next_index_after(now)
        } else {
            view.backoff = failures_wait;
            failures_wait
        };

        let mut outcome = plan::plan(&view, now);
        let mut failure = None;
        if satisfied && !owners::is_deleting(&job.metadata) {
            match &outcome {
                Outcome::Delete { pods: doomed, condition } if !doomed.is_empty() => {
                    let fails = condition.as_ref().is_some_and(|condition| condition.type_ == "FailureTarget");
                    failure = self.delete_pods(&name, &job, doomed.clone(), fails).await.err();
                }
                Outcome::Create { count } if *count > 0 => {
                    failure = self.create_pods(&name, &job, &view, *count, now).await.err();
                }
                _ => {}
            }
        }
        match outcome.take_condition() {
            Some(condition) => conditions::add(&mut status, condition),
            None => {
                if suspended {
                    status.start_time = None;
                }
                self.set_suspended(&job, &mut status, suspended);
            }
        }
        let deleted = outcome.deleted();
        status.active = some((view.active.len() - deleted) as i32);
        status.ready = Some(view.active.iter().filter(|pod| pods::is_ready(pod)).count() as i32);
        status.terminating = Some(view.terminating as i32 + deleted as i32);
        self.track(&key, &job, status, &view).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        if let Some(wait) = [view.until_deadline(now), retry_after].into_iter().flatten().min() {
            self.queue.add_after(key, wait);
        }
        Ok(())
    }

    fn set_suspended(&self, job: &Job, status: &mut JobStatus, suspended: bool) {
        let was = conditions::is_true(status, "Suspended");
        if suspended == was {
            return;
        }
        let (state, reason, message) =
            if suspended { ("True", "JobSuspended", "Job suspended") } else { ("False", "JobResumed", "Job resumed") };
        if !suspended {
            status.start_time = Some(time::now());
        }
        conditions::set(status, conditions::new("Suspended", state, reason, message));
        self.context.recorder.normal(&events::reference(job), if suspended { "Suspended" } else { "Resumed" }, message);
    }

    /// Pods of the job, adopting and releasing on the way.
    async fn claim(&self, job: &Job) -> Result<Vec<Arc<SlimPod>>, kube::Error> {
        let wanted = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let owned = self.pods.by_index(slim::BY_OWNER, owners::uid(&job.metadata));
        let orphans = self.pods.by_index(slim::BY_OWNER, &format!("orphan/{}", owners::namespace(&job.metadata)));
        let client = &self.context.client;
        let mut claimed = Vec::new();
        for pod in owned.into_iter().chain(orphans) {
            match claim::decide(&job.metadata, wanted, &pod.metadata) {
                claim::Claim::Keep => claimed.push(pod),
                claim::Claim::Ignore => {}
                claim::Claim::Release => {
                    claim::release::<Pod>(client, owners::uid(&job.metadata), &pod.metadata, Some(TRACKING)).await?;
                }
                claim::Claim::Adopt => {
                    if claim::may_adopt(client, job).await?
                        && claim::adopt::<_, Pod>(client, job, &pod.metadata, Some(TRACKING)).await?
                    {
                        claimed.push(pod);
                    }
                }
            }
        }
        Ok(claimed)
    }

    /// Keeps when pods failed, and says how long to wait before the next ones are made.
    fn note_failures(&self, key: &ObjectKey, pods: &[Arc<SlimPod>], view: &View, now: Timestamp) -> Option<Duration> {
        let mut backoffs = self.backoffs.lock();
        let record = backoffs.entry(key.clone()).or_default();
        record.observe(pods, |pod| view.is_new(pod));
        record.remaining(now)
    }

    async fn create_pods(
        &self,
        name: &str,
        job: &Job,
        view: &View<'_>,
        count: usize,
        now: Timestamp,
    ) -> Result<(), kube::Error> {
        let count = count.min(PODS_MAX);
        let mut template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        let meta = template.metadata.get_or_insert_default();
        let finalizers = meta.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|finalizer| finalizer == TRACKING) {
            finalizers.push(TRACKING.to_owned());
        }
        let pod = pod_control::pod_from_template(&template, &job.metadata, owners::controller_reference(job));
        let bodies: Vec<Pod> = if view.is_indexed() {
            let pending = view.pending_indexes(count, now);
            pending.into_iter().map(|index| indexes::pod_of(&pod, owners::name(&job.metadata), index, view)).collect()
        } else {
            vec![pod; count]
        };
        self.expectations.expect(name, bodies.len(), []);
        let (created, failure) = pod_control::slow_start(bodies.len(), |index| {
            let body = &bodies[index];
            async move { pod_control::create(&self.context.client, &self.context.recorder, job, body).await.map(drop) }
        })
        .await;
        self.expectations.creations_observed(name, bodies.len() - created);
        match failure {
            Some(error) if !errors::has_cause(&error, "NamespaceTerminating") => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes running pods. Those of a job that fails count as failed; those of one that succeeds, shrinks or pauses do not count.
    async fn delete_pods(
        &self,
        name: &str,
        job: &Job,
        doomed: Vec<Arc<SlimPod>>,
        count: bool,
    ) -> Result<(), kube::Error> {
        self.expectations.expect(name, 0, doomed.iter().map(|pod| owners::uid(&pod.metadata).to_owned()));
        pod_control::for_each(doomed, |pod| async move {
            let mut result = Ok(());
            if !count && has_tracking(&pod) {
                let (key, patch) = (ObjectKey::of_meta(&pod.metadata), without_tracking(&pod));
                let patched = objects::patch::<Pod>(&self.context.client, &key, "", PatchKind::Strategic, &patch).await;
                result = errors::ignore_not_found(patched).map(drop);
            }
            if result.is_ok() {
                result = pod_control::delete(&self.context.client, &self.context.recorder, job, &pod.metadata).await;
            }
            if result.is_err() || self.pods.get_key(&ObjectKey::of_meta(&pod.metadata)).is_none() {
                self.expectations.deletion_observed(name, owners::uid(&pod.metadata));
            }
            result
        })
        .await
    }

    /// Writes the status, counting finished pods in the three steps that the module's comment tells of, and finishes the
    /// job once all its pods are counted and gone or done.
    async fn track(
        &self,
        key: &ObjectKey,
        job: &Arc<Job>,
        mut status: JobStatus,
        view: &View<'_>,
    ) -> Result<(), kube::Error> {
        let mut written = job.as_ref().clone();
        let tracked: BTreeSet<&str> = view.tracked.iter().map(|pod| owners::uid(&pod.metadata)).collect();
        count_released(&mut status, &tracked);
        let mut to_release = Vec::new();
        {
            let ends = ["FailureTarget", "SuccessCriteriaMet"].iter().any(|kind| conditions::is_true(&status, kind));
            let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
            let mut listed: HashSet<String> =
                uncounted.succeeded.iter().chain(&uncounted.failed).flatten().cloned().collect();
            let kept: HashSet<&str> = view.to_replace.values().map(|pod| owners::uid(&pod.metadata)).collect();
            for pod in &view.tracked {
                if !ends && kept.contains(owners::uid(&pod.metadata)) {
                    continue;
                }
                let verdict = view.verdict(pod);
                if verdict == plan::Verdict::Running || listed.len() >= UNCOUNTED_MAX {
                    continue;
                }
                let uid = owners::uid(&pod.metadata).to_owned();
                if listed.insert(uid.clone()) {
                    match verdict {
                        // An index counts once, however many pods succeeded for it.
                        plan::Verdict::Succeeded if !view.is_indexed() => {
                            uncounted.succeeded.get_or_insert_default().push(uid);
                        }
                        plan::Verdict::Failed => uncounted.failed.get_or_insert_default().push(uid),
                        _ => {}
                    }
                }
                to_release.push(pod.clone());
            }
        }
        if view.is_indexed() {
            status.completed_indexes = Some(view.succeeded_indexes.to_string()).filter(|text| !text.is_empty());
            status.succeeded = some(view.succeeded_indexes.len() as i32);
            if view.backoff_limit_per_index.is_some() {
                status.failed_indexes = Some(view.failed_indexes.to_string());
            }
        }
        tidy(&mut status);
        if written.status.as_ref() != Some(&status) {
            written.status = Some(status.clone());
            written = match errors::ignore_not_found(objects::update_status(&self.context.client, &written).await)? {
                Some(written) => written,
                None => return Ok(()),
            };
        }
        let released_all = to_release.len() == view.tracked.len();
        if !to_release.is_empty() {
            let uids: Vec<String> = to_release.iter().map(|pod| owners::uid(&pod.metadata).to_owned()).collect();
            self.released.lock().entry(key.clone()).or_default().extend(uids.iter().cloned());
            let result = pod_control::for_each(to_release, |pod| async move {
                let key = ObjectKey::of_meta(&pod.metadata);
                let patch = without_tracking(&pod);
                let patched = objects::patch::<Pod>(&self.context.client, &key, "", PatchKind::Strategic, &patch).await;
                match patched {
                    Err(error) if errors::is_invalid(&error) => Ok(()),
                    patched => errors::ignore_not_found(patched).map(drop),
                }
            })
            .await;
            if let Err(error) = result {
                self.released.lock().remove(key);
                return Err(error);
            }
            let still: BTreeSet<&str> =
                tracked.into_iter().filter(|uid| !uids.iter().any(|released| released == uid)).collect();
            count_released(&mut status, &still);
        }
        if released_all {
            self.finish(job, &mut status);
        }
        tidy(&mut status);
        if written.status.as_ref() != Some(&status) {
            written.status = Some(status);
            errors::ignore_not_found(objects::update_status(&self.context.client, &written).await)?;
        }
        Ok(())
    }

    /// Turns "is to end" into "has ended", when nothing runs any more.
    fn finish(&self, job: &Arc<Job>, status: &mut JobStatus) {
        let busy = status.terminating.unwrap_or(0) > 0 || status.active.unwrap_or(0) > 0;
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        if busy
            || uncounted.failed.is_some_and(|uids| !uids.is_empty())
            || uncounted.succeeded.is_some_and(|uids| !uids.is_empty())
        {
            return;
        }
        let about = events::reference(job.as_ref());
        if let Some(target) = conditions::find(status, "FailureTarget").cloned() {
            let (reason, message) = (target.reason.unwrap_or_default(), target.message.unwrap_or_default());
            conditions::add(status, conditions::new("Failed", "True", &reason, &message));
            self.context.recorder.warning(&about, &reason, message);
        } else if let Some(target) = conditions::find(status, "SuccessCriteriaMet").cloned() {
            let (reason, message) = (target.reason.unwrap_or_default(), target.message.unwrap_or_default());
            conditions::add(status, conditions::new("Complete", "True", &reason, &message));
            status.completion_time = Some(time::now());
            self.context.recorder.normal(&about, "Completed", "Job completed");
        } else {
            return;
        }
        status.ready = Some(0);
    }
}

pub(crate) fn has_tracking(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING)
}

fn without_tracking(pod: &Pod) -> serde_json::Value {
    json!({"metadata": {"uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [TRACKING]}})
}

fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// Moves UIDs whose pods no longer have the finalizer into the counts.
fn count_released(status: &mut JobStatus, tracked: &BTreeSet<&str>) {
    let Some(uncounted) = &mut status.uncounted_terminated_pods else { return };
    let settle = |uids: &mut Option<Vec<String>>| {
        let before = uids.as_ref().map_or(0, Vec::len);
        if let Some(uids) = uids {
            uids.retain(|uid| tracked.contains(uid.as_str()));
        }
        (before - uids.as_ref().map_or(0, Vec::len)) as i32
    };
    let (succeeded, failed) = (settle(&mut uncounted.succeeded), settle(&mut uncounted.failed));
    status.succeeded = some(status.succeeded.unwrap_or(0) + succeeded);
    status.failed = some(status.failed.unwrap_or(0) + failed);
}

/// Gives the status the form in which it is compared with what the server has.
fn tidy(status: &mut JobStatus) {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_with(UncountedTerminatedPods::default);
    for uids in [&mut uncounted.succeeded, &mut uncounted.failed] {
        if uids.as_ref().is_some_and(Vec::is_empty) {
            *uids = None;
        }
    }
    if status.conditions.as_ref().is_some_and(Vec::is_empty) {
        status.conditions = None;
    }
}

/// When a job's pods began, for its deadline.
pub(super) fn deadline_of(start: Option<&Time>, seconds: Option<i64>, now: Timestamp) -> Option<Duration> {
    let seconds = Duration::from_secs(seconds?.max(0) as u64);
    Some(seconds.saturating_sub(time::since(start?, now)))
}
