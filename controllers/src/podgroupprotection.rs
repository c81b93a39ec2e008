//! Keeps groups of pods while pods of theirs may still run. The counterpart of `pkg/controller/scheduling/podgroupprotection`.

use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::objects;
use coxswain_client::{Client, Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::Context;
use crate::common::slim::{self, SlimPod};
use crate::common::{owners, pods};

/// Given to every group when it is created.
const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

type State = (Client, Store<PodGroup>, Store<SlimPod>);

pub async fn run(context: Context) {
    let groups: Informer<PodGroup> = context.informers.informer();
    let pods = context.pods();
    tokio::join!(groups.synced(), pods.synced());
    let queue = WorkQueue::<ObjectKey>::new();
    let state: Arc<State> = Arc::new((context.client.clone(), groups.store(), pods.store()));
    let feeds = async {
        tokio::join!(
            feed(&groups, |event| {
                if !matches!(event, Event::Deleted(_)) {
                    queue.add(ObjectKey::of(event.object().as_ref()));
                }
            }),
            feed(&pods, |event| {
                let pod = event.object();
                if matches!(event, Event::Deleted(_)) || pods::is_terminated(pod) {
                    let group = slim::group_of(pod);
                    group
                        .into_iter()
                        .for_each(|name| queue.add(ObjectKey::new(owners::namespace(&pod.metadata), name)));
                }
            }),
        )
    };
    let reconcile = |state: Arc<State>, key: ObjectKey| async move {
        let (client, groups, pods) = state.as_ref();
        let Some(group) = groups.get_key(&key) else { return Ok(()) };
        let is_used = || {
            let members = pods.by_index(slim::BY_GROUP, &key.to_string());
            members.iter().any(|pod| !pods::is_terminated(pod))
        };
        if let Some(finalizers) = released(&group.metadata, is_used) {
            let mut group = group.as_ref().clone();
            group.metadata.finalizers = Some(finalizers);
            errors::ignore_not_found(objects::update(client, &group).await)?;
        }
        Ok::<(), kube::Error>(())
    };
    drive("podgroupprotection", state, queue.clone(), 1, context.shutdown.clone(), reconcile, feeds).await;
}

/// The finalizers of a group that is to go and that no pod needs, without this one.
fn released(meta: &ObjectMeta, is_used: impl Fn() -> bool) -> Option<Vec<String>> {
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    let is_candidate = owners::is_deleting(meta) && finalizers.iter().any(|found| found == FINALIZER);
    if !is_candidate || is_used() {
        return None;
    }
    finalizers.retain(|found| found != FINALIZER);
    Some(finalizers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn a_group_goes_when_it_is_deleted_and_none_of_its_pods_may_run() {
        let mut meta = ObjectMeta { finalizers: Some(vec!["a.b/c".into(), FINALIZER.into()]), ..ObjectMeta::default() };
        assert_eq!(released(&meta, || false), None);
        meta.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(released(&meta, || true), None);
        assert_eq!(released(&meta, || false), Some(vec!["a.b/c".to_owned()]));
    }
}
