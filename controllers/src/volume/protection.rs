//! Keeps claims that pods use, and volumes that claims are bound to, from being removed. The counterparts of
//! `pkg/controller/volume/pvcprotection` and `pvprotection`.

use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::objects;
use coxswain_client::{Client, Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::Context;
use crate::common::slim::{self, SlimPod};
use crate::common::{owners, pods};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

type Claims = (Client, Store<PersistentVolumeClaim>, Store<SlimPod>);

pub async fn run_claims(context: Context) {
    let claims: Informer<PersistentVolumeClaim> = context.informers.informer();
    let pods = context.pods();
    tokio::join!(claims.synced(), pods.synced());
    let queue = WorkQueue::<ObjectKey>::new();
    let state: Arc<Claims> = Arc::new((context.client.clone(), claims.store(), pods.store()));
    let feeds = async {
        tokio::join!(
            feed(&claims, |event| {
                if !matches!(event, Event::Deleted(_)) {
                    queue.add(ObjectKey::of(event.object().as_ref()));
                }
            }),
            feed(&pods, |event| {
                let pod = event.object();
                if !matches!(event, Event::Deleted(_)) && !pods::is_terminated(pod) {
                    return;
                }
                // What the pod used may be free now.
                for name in claims_of(pod) {
                    queue.add(ObjectKey::new(owners::namespace(&pod.metadata), name));
                }
            }),
        )
    };
    let reconcile = |state: Arc<Claims>, key: ObjectKey| async move {
        let (client, claims, pods) = state.as_ref();
        let Some(claim) = claims.get_key(&key) else { return Ok(()) };
        let used = || {
            let users = pods.by_index(slim::BY_CLAIM, &key.to_string());
            users.iter().any(|pod| !pods::is_terminated(pod))
        };
        if let Some(finalizers) = protect(&claim.metadata, CLAIM_FINALIZER, used) {
            let mut claim = claim.as_ref().clone();
            claim.metadata.finalizers = Some(finalizers);
            errors::ignore_not_found(objects::update(client, &claim).await)?;
        }
        Ok::<(), kube::Error>(())
    };
    drive("pvc-protection", state, queue.clone(), 5, context.shutdown.clone(), reconcile, feeds).await;
}

fn claims_of(pod: &SlimPod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{}-{}", owners::name(&pod.metadata), volume.name)),
            _ => None,
        })
        .collect()
}

type Volumes = (Client, Store<PersistentVolume>);

pub async fn run_volumes(context: Context) {
    let volumes: Informer<PersistentVolume> = context.informers.informer();
    volumes.synced().await;
    let queue = WorkQueue::<ObjectKey>::new();
    let state: Arc<Volumes> = Arc::new((context.client.clone(), volumes.store()));
    let feeds = feed(&volumes, |event| {
        if !matches!(event, Event::Deleted(_)) {
            queue.add(ObjectKey::of(event.object().as_ref()));
        }
    });
    let reconcile = |state: Arc<Volumes>, key: ObjectKey| async move {
        let (client, volumes) = state.as_ref();
        let Some(volume) = volumes.get_key(&key) else { return Ok(()) };
        let used = || volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if let Some(finalizers) = protect(&volume.metadata, VOLUME_FINALIZER, used) {
            let mut volume = volume.as_ref().clone();
            volume.metadata.finalizers = Some(finalizers);
            errors::ignore_not_found(objects::update(client, &volume).await)?;
        }
        Ok::<(), kube::Error>(())
    };
    drive("pv-protection", state, queue.clone(), 1, context.shutdown.clone(), reconcile, feeds).await;
}

/// The finalizers of an object that is to stay with this one added, or without it those of one that is to go and is not used.
fn protect(meta: &ObjectMeta, finalizer: &str, used: impl Fn() -> bool) -> Option<Vec<String>> {
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    let protected = finalizers.iter().any(|found| found == finalizer);
    match (owners::is_deleting(meta), protected) {
        (false, false) => finalizers.push(finalizer.to_owned()),
        (true, true) if !used() => finalizers.retain(|found| found != finalizer),
        _ => return None,
    }
    Some(finalizers)
}
