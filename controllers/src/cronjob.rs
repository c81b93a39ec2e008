//! Makes Jobs at the times of a schedule, the counterpart of `pkg/controller/cronjob`.

use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::{drive, feed};
use coxswain_client::events;
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Informer, ObjectKey, Store, WorkQueue, errors, kube};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::Context;
use crate::common::owners;
use crate::job::conditions;

mod schedule;

use schedule::Schedule;

const WORKERS: usize = 5;
/// The clock of the server that wrote a time may be this far off; a run is not looked for before it.
const NEXT_DELTA: Duration = Duration::from_millis(100);
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// Missed runs beyond this many are told of.
const MISSED_MAX: u32 = 100;
/// Index of jobs by the UID of their controller.
const BY_OWNER: &str = "owner";

struct Controller {
    context: Context,
    cron_jobs: Store<CronJob>,
    jobs: Store<Job>,
    queue: WorkQueue<ObjectKey>,
}

pub async fn run(context: Context) {
    let cron_jobs: Informer<CronJob> = context.informers.informer();
    let jobs: Informer<Job> = context.informers.informer();
    jobs.store().add_index(BY_OWNER, |job| {
        owners::controller_of(&job.metadata).map(|owner| owner.uid.clone()).into_iter().collect()
    });
    tokio::join!(cron_jobs.synced(), jobs.synced());
    let controller = Arc::new(Controller {
        cron_jobs: cron_jobs.store(),
        jobs: jobs.store(),
        queue: WorkQueue::new(),
        context: context.clone(),
    });
    let queue = &controller.queue;
    let feeds = async {
        tokio::join!(
            feed(&cron_jobs, |event| queue.add(ObjectKey::of(event.object().as_ref()))),
            feed(&jobs, |event| {
                let job = event.object();
                if let Some(owner) = owners::controller_of(&job.metadata).filter(|owner| owner.kind == "CronJob") {
                    queue.add(ObjectKey::new(owners::namespace(&job.metadata), &owner.name));
                }
            }),
        )
    };
    drive(
        "cronjob",
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
    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(found) = self.cron_jobs.get_key(&key) else { return Ok(()) };
        let mut cron_job = found.as_ref().clone();
        let jobs = self.jobs.by_index(BY_OWNER, owners::uid(&cron_job.metadata));
        self.clean_up(&cron_job, &jobs).await?;
        self.observe(&mut cron_job, &jobs).await?;
        let again = self.start_due(&mut cron_job, &jobs).await;
        if cron_job.status != found.status {
            errors::ignore_not_found(objects::update_status(&self.context.client, &cron_job).await)?;
        }
        if let Some(wait) = again? {
            self.queue.add_after(key, wait);
        }
        Ok(())
    }

    /// Brings the list of active jobs up to date.
    async fn observe(&self, cron_job: &mut CronJob, jobs: &[Arc<Job>]) -> Result<(), kube::Error> {
        let about = events::reference(cron_job);
        let status = cron_job.status.get_or_insert_default();
        let active = status.active.get_or_insert_default();
        for job in jobs {
            let uid = owners::uid(&job.metadata);
            let listed = active.iter().position(|reference| reference.uid.as_deref() == Some(uid));
            let job_status = job.status.clone().unwrap_or_default();
            let finished = conditions::is_finished(&job_status);
            let name = owners::name(&job.metadata);
            match listed {
                None if !finished => {
                    // A run just started may not be in the status that was read.
                    let made_here = owners::annotation(&job.metadata, SCHEDULED_AT).is_some();
                    if made_here {
                        active.push(job_reference(job));
                    } else {
                        self.context.recorder.warning(
                            &about,
                            "UnexpectedJob",
                            format!("Saw a job that the controller did not create or forgot: {name}"),
                        );
                    }
                }
                Some(index) if finished => {
                    active.remove(index);
                    let how = if conditions::is_true(&job_status, "Complete") { "Complete" } else { "Failed" };
                    let message = format!("Saw completed job: {name}, condition: {how}");
                    self.context.recorder.normal(&about, "SawCompletedJob", message);
                }
                _ => {}
            }
            if let Some(completed) = job_status
                .completion_time
                .filter(|_| conditions::is_true(job.status.as_ref().unwrap_or(&Default::default()), "Complete"))
                && status.last_successful_time.as_ref().is_none_or(|last| completed > *last)
            {
                status.last_successful_time = Some(completed);
            }
        }
        let mut missing = Vec::new();
        for reference in active.iter() {
            let name = reference.name.clone().unwrap_or_default();
            if jobs.iter().any(|job| job.metadata.uid == reference.uid) {
                continue;
            }
            let key = ObjectKey::new(about.namespace.clone().unwrap_or_default(), name.clone());
            let live = errors::ignore_not_found(objects::get::<Job>(&self.context.client, &key).await)?;
            if live.is_none_or(|live| live.metadata.uid != reference.uid) {
                let message = format!("Active job went missing: {name}");
                self.context.recorder.normal(&about, "MissingJob", message);
                missing.push(reference.uid.clone());
            }
        }
        active.retain(|reference| !missing.contains(&reference.uid));
        if active.is_empty() {
            status.active = None;
        }
        Ok(())
    }

    /// Starts the run that is due, and says when to look again.
    async fn start_due(&self, cron_job: &mut CronJob, jobs: &[Arc<Job>]) -> Result<Option<Duration>, kube::Error> {
        let spec = cron_job.spec.clone();
        if owners::is_deleting(&cron_job.metadata) || spec.suspend == Some(true) {
            return Ok(None);
        }
        let about = events::reference(cron_job);
        let zone = match &spec.time_zone {
            None => TimeZone::system(),
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(error) => {
                    let message = format!("invalid timeZone: {name:?}: {error}");
                    self.context.recorder.warning(&about, "UnknownTimeZone", message);
                    return Ok(None);
                }
            },
        };
        let Some(schedule) = Schedule::parse(&spec.schedule, zone) else {
            let message = format!("unparseable schedule: {:?}", spec.schedule);
            self.context.recorder.warning(&about, "UnparseableSchedule", message);
            return Ok(None);
        };
        let now = Timestamp::now();
        let again = Some(until_next(&schedule, now));
        let Some((due, missed)) = most_recent(cron_job, &spec, &schedule, now) else { return Ok(again) };
        if missed > MISSED_MAX {
            self.context.recorder.warning(
                &about,
                "TooManyMissedTimes",
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew",
            );
        }
        if let Some(seconds) = spec.starting_deadline_seconds
            && now.as_second() - due.as_second() > seconds
        {
            let message = format!("Missed scheduled time to start a job: {}", schedule.format(due));
            self.context.recorder.warning(&about, "MissSchedule", message);
            return Ok(again);
        }
        let name = job_name(cron_job, due);
        let status = cron_job.status.get_or_insert_default();
        let active = status.active.clone().unwrap_or_default();
        let started = status.last_schedule_time.as_ref().is_some_and(|last| last.0 == due)
            || active.iter().any(|reference| reference.name.as_deref() == Some(name.as_str()));
        if started {
            return Ok(again);
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.context.recorder.normal(&about, "JobAlreadyActive", message);
                return Ok(again);
            }
            Some("Replace") => {
                for job in jobs.iter().filter(|job| active.iter().any(|found| found.uid == job.metadata.uid)) {
                    self.delete(&about, job).await?;
                }
                status.active = None;
            }
            _ => {}
        }
        let job = job_of(cron_job, &spec, &name, due, &schedule);
        let created = match objects::create(&self.context.client, &job).await {
            Ok(created) => created,
            Err(error) if errors::has_cause(&error, "NamespaceTerminating") => return Ok(None),
            Err(error) if errors::is_already_exists(&error) => {
                let found = objects::get::<Job>(&self.context.client, &ObjectKey::of(&job)).await?;
                if !owners::is_controlled_by(&found.metadata, owners::uid(&cron_job.metadata)) {
                    return Err(error);
                }
                if found.status.as_ref().is_some_and(conditions::is_finished) {
                    return Ok(again);
                }
                found
            }
            Err(error) => {
                let message = format!("Error creating job: {}", errors::message(&error));
                self.context.recorder.warning(&about, "FailedCreate", message);
                return Err(error);
            }
        };
        self.context.recorder.normal(&about, "SuccessfulCreate", format!("Created job {name}"));
        let status = cron_job.status.get_or_insert_default();
        status.active.get_or_insert_default().push(job_reference(&created));
        status.last_schedule_time = Some(Time(due));
        Ok(again)
    }

    /// Deletes the oldest finished jobs beyond the limits.
    async fn clean_up(&self, cron_job: &CronJob, jobs: &[Arc<Job>]) -> Result<(), kube::Error> {
        let spec = cron_job.spec.clone();
        let about = events::reference(cron_job);
        for (kind, limit) in
            [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)]
        {
            let Some(limit) = limit else { continue };
            let mut finished: Vec<&Arc<Job>> = jobs
                .iter()
                .filter(|job| job.status.as_ref().is_some_and(|status| conditions::is_true(status, kind)))
                .collect();
            finished.sort_by_key(|job| {
                (job.status.as_ref().and_then(|status| status.start_time.clone()), job.metadata.name.clone())
            });
            let surplus = finished.len().saturating_sub(limit.max(0) as usize);
            for job in finished.into_iter().take(surplus).filter(|job| !owners::is_deleting(&job.metadata)) {
                self.delete(&about, job).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, about: &ObjectReference, job: &Job) -> Result<(), kube::Error> {
        let name = owners::name(&job.metadata);
        let background = Deletion { propagation: Some("Background"), ..Deletion::default() };
        match objects::delete::<Job>(&self.context.client, &ObjectKey::of(job), &background).await {
            Err(error) if !errors::is_not_found(&error) => {
                let message = format!("Deleted job: {}", errors::message(&error));
                self.context.recorder.warning(about, "FailedDelete", message);
                Err(error)
            }
            _ => {
                self.context.recorder.normal(about, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
        }
    }
}

fn until_next(schedule: &Schedule, now: Timestamp) -> Duration {
    let next = schedule.next_after(now);
    let wait = next.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
    wait.unwrap_or(Duration::from_secs(3600)) + NEXT_DELTA
}

/// The latest time at which a run was due and has not been started, and how many there were.
fn most_recent(
    cron_job: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    now: Timestamp,
) -> Option<(Timestamp, u32)> {
    let status = cron_job.status.as_ref();
    let mut from = status
        .and_then(|status| status.last_schedule_time.as_ref())
        .or(cron_job.metadata.creation_timestamp.as_ref())
        .map_or(now, |time| time.0);
    if let Some(seconds) = spec.starting_deadline_seconds {
        from = from.max(Timestamp::from_second(now.as_second() - seconds).unwrap_or(from));
    }
    let mut latest = None;
    let mut missed = 0;
    let mut next = schedule.next_after(from);
    while let Some(time) = next.filter(|time| *time <= now) {
        missed += 1;
        latest = Some(time);
        if missed > MISSED_MAX {
            // Going on one by one from a time long ago would take long: the latest is found from the present.
            latest = schedule.last_before(now).or(latest);
            break;
        }
        next = schedule.next_after(time);
    }
    latest.map(|latest| (latest, missed))
}

/// The same run has the same name, whoever starts it.
fn job_name(cron_job: &CronJob, due: Timestamp) -> String {
    format!("{}-{}", owners::name(&cron_job.metadata), due.as_second() / 60)
}

fn job_of(cron_job: &CronJob, spec: &CronJobSpec, name: &str, due: Timestamp, schedule: &Schedule) -> Job {
    let meta = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.to_owned(), schedule.format(due));
    Job {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: cron_job.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            creation_timestamp: None,
            owner_references: Some(vec![owners::controller_reference(cron_job)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

fn job_reference(job: &Job) -> ObjectReference {
    ObjectReference { field_path: None, ..events::reference(job) }
}
