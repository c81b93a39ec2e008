//! Deletes Jobs some time after they finish, the counterpart of `pkg/controller/ttlafterfinished`.

use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::{drive, feed};
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Client, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

use crate::Context;
use crate::common::{owners, time};
use crate::job::conditions;

type State = (Client, Store<Job>, WorkQueue<ObjectKey>);

pub async fn run(context: Context) {
    let jobs: Informer<Job> = context.informers.informer();
    jobs.synced().await;
    let queue = WorkQueue::<ObjectKey>::new();
    let state: Arc<State> = Arc::new((context.client.clone(), jobs.store(), queue.clone()));
    let feeds = feed(&jobs, |event| {
        if remaining(event.object(), Timestamp::now()).is_some() {
            queue.add(ObjectKey::of(event.object().as_ref()));
        }
    });
    let reconcile = |state: Arc<State>, key: ObjectKey| async move { reconcile(&state, key).await };
    drive("ttl-after-finished", state, queue.clone(), 5, context.shutdown.clone(), reconcile, feeds).await;
}

/// How long a finished job may stay; `None` if it is not finished or may stay for ever.
fn remaining(job: &Job, now: Timestamp) -> Option<Duration> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let status = job.status.as_ref()?;
    if owners::is_deleting(&job.metadata) {
        return None;
    }
    let finished = conditions::find(status, "Complete").or_else(|| conditions::find(status, "Failed"))?;
    let at = finished.last_transition_time.as_ref()?;
    Some(Duration::from_secs(seconds.max(0) as u64).saturating_sub(time::since(at, now)))
}

async fn reconcile((client, jobs, queue): &State, key: ObjectKey) -> Result<(), kube::Error> {
    let Some(job) = jobs.get_key(&key) else { return Ok(()) };
    match remaining(&job, Timestamp::now()) {
        None => Ok(()),
        Some(left) if !left.is_zero() => {
            queue.add_after(key, left);
            Ok(())
        }
        Some(_) => {
            // The spec may have changed since: only the server knows for sure.
            let fresh = errors::ignore_not_found(objects::get::<Job>(client, &key).await)?;
            let Some(fresh) = fresh.filter(|fresh| remaining(fresh, Timestamp::now()) == Some(Duration::ZERO)) else {
                return Ok(());
            };
            let deletion = Deletion {
                propagation: Some("Foreground"),
                uid: fresh.metadata.uid.as_deref(),
                resource_version: fresh.metadata.resource_version.as_deref(),
                ..Deletion::default()
            };
            errors::ignore_not_found(objects::delete::<Job>(client, &key, &deletion).await).map(drop)
        }
    }
}
