//! Makes the claims of generic ephemeral volumes, the counterpart of `pkg/controller/volume/ephemeral`.

use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::events::{self, EventRecorder};
use coxswain_client::objects;
use coxswain_client::{Client, Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::Context;
use crate::common::slim::SlimPod;
use crate::common::{owners, pods};

struct State {
    client: Client,
    recorder: EventRecorder,
    pods: Store<SlimPod>,
    claims: Store<PersistentVolumeClaim>,
}

pub async fn run(context: Context) {
    let claims: Informer<PersistentVolumeClaim> = context.informers.informer();
    let pods = context.pods();
    tokio::join!(claims.synced(), pods.synced());
    let queue = WorkQueue::<ObjectKey>::new();
    let state = Arc::new(State {
        client: context.client.clone(),
        recorder: context.recorder.clone(),
        pods: pods.store(),
        claims: claims.store(),
    });
    let is_ephemeral = |pod: &Pod| {
        let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        volumes.any(|volume| volume.ephemeral.is_some())
    };
    let feeds = async {
        tokio::join!(
            feed(&pods, |event| {
                let pod = event.object();
                if matches!(event, Event::Added(_)) && is_ephemeral(pod) {
                    queue.add(ObjectKey::of_meta(&pod.metadata));
                }
            }),
            feed(&claims, |event| {
                // A claim that is deleted is made again for a pod that still needs it.
                if let Event::Deleted(claim) = event
                    && let Some(owner) = owners::controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod")
                {
                    queue.add(ObjectKey::new(owners::namespace(&claim.metadata), &owner.name));
                }
            }),
        )
    };
    let reconcile = |state: Arc<State>, key: ObjectKey| async move { state.reconcile(key).await };
    drive("ephemeral-volume", state, queue.clone(), 5, context.shutdown.clone(), reconcile, feeds).await;
}

impl State {
    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(pod) = self.pods.get_key(&key) else { return Ok(()) };
        if owners::is_deleting(&pod.metadata) || pods::is_terminated(&pod) {
            return Ok(());
        }
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let Some(template) = volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.as_ref())
            else {
                continue;
            };
            let name = format!("{}-{}", key.name, volume.name);
            let pod: &Pod = &pod;
            if let Some(present) = self.claims.get(&key.namespace, &name) {
                if owners::is_controlled_by(&present.metadata, owners::uid(&pod.metadata)) {
                    continue;
                }
                return Err(kube::Error::Service(
                    format!("PVC {}/{name} was not created for pod {key} (pod is not owner)", key.namespace).into(),
                ));
            }
            let meta = template.metadata.clone().unwrap_or_default();
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(name),
                    namespace: Some(key.namespace.clone()),
                    labels: meta.labels,
                    annotations: meta.annotations,
                    owner_references: Some(vec![owners::controller_reference(pod)]),
                    ..ObjectMeta::default()
                },
                spec: Some(template.spec.clone()),
                status: None,
            };
            match objects::create(&self.client, &claim).await {
                Ok(_) => {}
                Err(error) if errors::has_cause(&error, "NamespaceTerminating") => return Ok(()),
                Err(error) if errors::is_already_exists(&error) => return Err(error),
                Err(error) => {
                    let message = format!("ephemeral volume controller: {}", errors::message(&error));
                    self.recorder.warning(&events::reference(pod), "FailedCreate", message);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
