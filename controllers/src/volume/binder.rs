//! Binds claims to volumes, the counterpart of `pkg/controller/volume/persistentvolume`. Volumes are made by provisioners
//! outside; here they are asked for.
//!
//! A binding is four writes: the volume names its claim, the volume's status says so, the claim names its volume, the
//! claim's status says so. Each is repeated from the start after a failure, as each finds what is done already.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coxswain_api::quantity::Quantity;
use coxswain_client::drive::{drive, every, feed};
use coxswain_client::events;
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, PersistentVolumeStatus,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::Context;
use crate::common::slim::{self, SlimPod};
use crate::common::{owners, pods, selector, time};

const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONERS: [&str; 2] =
    ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Everything is looked at again this often.
const RESYNC_PERIOD: Duration = Duration::from_secs(15);

const WORKERS: usize = 4;

/// A claim or a volume to look at.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Claim(ObjectKey),
    Volume(String),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Claim(key) => write!(f, "claim {key}"),
            Self::Volume(name) => write!(f, "volume {name}"),
        }
    }
}

struct Binder {
    context: Context,
    claims: Store<PersistentVolumeClaim>,
    volumes: Store<PersistentVolume>,
    classes: Store<StorageClass>,
    pods: Store<SlimPod>,
    queue: WorkQueue<Key>,
    /// Binding is one at a time, or two claims could choose the same volume.
    choosing: tokio::sync::Mutex<()>,
}

pub async fn run(context: Context) {
    let claims: Informer<PersistentVolumeClaim> = context.informers.informer();
    let volumes: Informer<PersistentVolume> = context.informers.informer();
    let classes: Informer<StorageClass> = context.informers.informer();
    let pods = context.pods();
    tokio::join!(claims.synced(), volumes.synced(), classes.synced(), pods.synced());
    let binder = Arc::new(Binder {
        claims: claims.store(),
        volumes: volumes.store(),
        classes: classes.store(),
        pods: pods.store(),
        queue: WorkQueue::new(),
        choosing: tokio::sync::Mutex::default(),
        context: context.clone(),
    });
    let queue = &binder.queue;
    let feeds = async {
        tokio::join!(
            feed(&claims, |event| {
                let claim = event.object();
                if let Event::Deleted(_) = event {
                    if let Some(volume) = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()) {
                        queue.add(Key::Volume(volume));
                    }
                } else {
                    queue.add(Key::Claim(ObjectKey::of(claim.as_ref())));
                }
            }),
            feed(&volumes, |event| {
                let volume = event.object();
                queue.add(Key::Volume(owners::name(&volume.metadata).to_owned()));
                let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
                match claim {
                    Some(claim) => queue.add(Key::Claim(key_of(claim))),
                    // A volume nobody has may be what a claim waits for.
                    None if matches!(event, Event::Added(_)) => {
                        for claim in binder.claims.list().iter().filter(|claim| !is_bound(claim)) {
                            queue.add(Key::Claim(ObjectKey::of(claim.as_ref())));
                        }
                    }
                    None => {}
                }
            }),
            every(RESYNC_PERIOD, &context.shutdown, || async {
                for claim in binder.claims.list().iter().filter(|claim| !is_bound(claim)) {
                    queue.add(Key::Claim(ObjectKey::of(claim.as_ref())));
                }
            }),
        )
    };
    drive(
        "persistentvolume-binder",
        binder.clone(),
        binder.queue.clone(),
        WORKERS,
        context.shutdown.clone(),
        |binder, key| async move {
            match key {
                Key::Claim(key) => binder.sync_claim(key).await,
                Key::Volume(name) => binder.sync_volume(&name).await,
            }
        },
        feeds,
    )
    .await;
}

fn key_of(reference: &ObjectReference) -> ObjectKey {
    ObjectKey::new(reference.namespace.clone().unwrap_or_default(), reference.name.clone().unwrap_or_default())
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    owners::annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

fn class_of(claim: &PersistentVolumeClaim) -> &str {
    owners::annotation(&claim.metadata, "volume.beta.kubernetes.io/storage-class")
        .or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
        .unwrap_or_default()
}

fn class_of_volume(volume: &PersistentVolume) -> &str {
    owners::annotation(&volume.metadata, "volume.beta.kubernetes.io/storage-class")
        .or_else(|| volume.spec.as_ref()?.storage_class_name.as_deref())
        .unwrap_or_default()
}

fn storage(list: Option<&BTreeMap<String, Text>>) -> Option<Quantity> {
    Quantity::parse(&list?.get("storage")?.0).ok()
}

/// Whether a volume is meant for a claim, by name and, where given, UID.
fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        key_of(reference) == ObjectKey::of(claim)
            && reference.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
    })
}

/// What of a volume is not as a claim asks for it (upstream: `checkVolumeSatisfyClaim`).
fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let (Some(offered), Some(asked)) = (&volume.spec, &claim.spec) else { return Some("no spec".to_owned()) };
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let large_enough = match storage(asked.resources.as_ref().and_then(|resources| resources.requests.as_ref())) {
        Some(asked) => storage(offered.capacity.as_ref()).is_some_and(|offered| offered >= asked),
        None => true,
    };
    let has_modes = asked.access_modes.iter().flatten().all(|asked| access_modes(volume).contains(asked));
    if owners::is_deleting(&volume.metadata) {
        Some(format!("the volume is marked for deletion \"{}\"", owners::name(&volume.metadata)))
    } else if !large_enough {
        Some("requested PV is too small".to_owned())
    } else if class_of_volume(volume) != class_of(claim) {
        Some("storageClassName does not match".to_owned())
    } else if mode(&offered.volume_mode) != mode(&asked.volume_mode) {
        Some("incompatible volumeMode".to_owned())
    } else if !has_modes {
        Some("incompatible accessMode".to_owned())
    } else {
        None
    }
}

fn access_modes(volume: &PersistentVolume) -> &[String] {
    volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
}

/// The best volume for a claim: one that is kept for it, or else one with as few modes of access as
/// will do, and the smallest of these.
fn choose(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>]) -> Option<Arc<PersistentVolume>> {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let kept = volumes.iter().find(|volume| is_for(volume, claim));
    if let Some(kept) = kept {
        return Some(kept.clone());
    }
    volumes
        .iter()
        .filter(|volume| {
            let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
            volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none())
                && !matches!(phase, "Released" | "Failed" | "Bound")
                && mismatch(volume, claim).is_none()
                && wanted.is_none_or(|wanted| selector::matches(Some(wanted), volume.metadata.labels.as_ref()))
        })
        .min_by(|a, b| {
            let size =
                |volume: &PersistentVolume| storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()));
            let rank = |volume: &PersistentVolume| (access_modes(volume).len(), size(volume));
            rank(a).cmp(&rank(b)).then_with(|| a.metadata.name.cmp(&b.metadata.name))
        })
        .cloned()
}

impl Binder {
    async fn sync_claim(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(claim) = self.claims.get_key(&key) else { return Ok(()) };
        let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        if is_bound(&claim) {
            return self.sync_bound(&claim, named).await;
        }
        if owners::is_deleting(&claim.metadata) {
            return Ok(());
        }
        let guard = self.choosing.lock().await;
        if let Some(name) = named {
            let Some(volume) = self.volumes.get("", &name) else { return self.pend(&claim).await };
            let taken = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some()) && !is_for(&volume, &claim);
            if taken {
                return self.pend(&claim).await;
            }
            if let Some(why) = mismatch(&volume, &claim) {
                let message = format!("Cannot bind to requested volume \"{name}\": {why}");
                self.context.recorder.warning(&events::reference(claim.as_ref()), "VolumeMismatch", message);
                return self.pend(&claim).await;
            }
            return self.bind(&claim, &volume).await;
        }
        let class = self.classes.get("", class_of(&claim));
        let waits =
            class.as_ref().is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
                && owners::annotation(&claim.metadata, SELECTED_NODE).is_none();
        // The scheduler chooses a volume for a claim that waits, and writes that to the volume.
        let found = if waits {
            self.volumes.list().into_iter().find(|volume| is_for(volume, &claim))
        } else {
            choose(&claim, &self.volumes.list())
        };
        if let Some(volume) = found {
            return self.bind(&claim, &volume).await;
        }
        drop(guard);
        self.explain(&claim, class.as_deref(), waits).await
    }

    /// Tells why a claim is not bound, and asks for a volume where somebody can make one.
    async fn explain(
        &self,
        claim: &PersistentVolumeClaim,
        class: Option<&StorageClass>,
        waits: bool,
    ) -> Result<(), kube::Error> {
        let about = events::reference(claim);
        let recorder = &self.context.recorder;
        match (class_of(claim), class) {
            (_, Some(_)) if waits => {
                let key = ObjectKey::of(claim).to_string();
                let consumer = self.pods.by_index(slim::BY_CLAIM, &key);
                match consumer.iter().find(|pod| !pods::is_terminated(pod)) {
                    Some(pod) => {
                        let message = format!("waiting for pod {} to be scheduled", owners::name(&pod.metadata));
                        recorder.normal(&about, "WaitForPodScheduled", message);
                    }
                    None => recorder.normal(
                        &about,
                        "WaitForFirstConsumer",
                        "waiting for first consumer to be created before binding",
                    ),
                }
            }
            ("", _) => recorder.normal(
                &about,
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            ),
            (name, None) => {
                let message = format!("storageclass.storage.k8s.io \"{name}\" not found");
                recorder.warning(&about, "ProvisioningFailed", message);
            }
            (_, Some(class)) if class.provisioner == "kubernetes.io/no-provisioner" => {
                recorder.warning(
                    &about,
                    "ProvisioningFailed",
                    "no volume plugin matched name: kubernetes.io/no-provisioner",
                );
            }
            (_, Some(class)) => {
                let asked = PROVISIONERS
                    .iter()
                    .all(|key| owners::annotation(&claim.metadata, key) == Some(class.provisioner.as_str()));
                if !asked {
                    let mut claim = claim.clone();
                    let annotations = claim.metadata.annotations.get_or_insert_default();
                    for key in PROVISIONERS {
                        annotations.insert(key.to_owned(), class.provisioner.clone());
                    }
                    errors::ignore_not_found(objects::update(&self.context.client, &claim).await)?;
                }
                let message = format!(
                    "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system \
                     administrator. If volume creation is delayed, please verify that the provisioner is running and \
                     correctly registered.",
                    class.provisioner
                );
                recorder.normal(&about, "ExternalProvisioning", message);
            }
        }
        self.pend(claim).await
    }

    async fn pend(&self, claim: &PersistentVolumeClaim) -> Result<(), kube::Error> {
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase == Some("Pending") {
            return Ok(());
        }
        let status = PersistentVolumeClaimStatus { phase: Some("Pending".to_owned()), ..Default::default() };
        let updated = PersistentVolumeClaim { status: Some(status), ..claim.clone() };
        errors::ignore_not_found(objects::update_status(&self.context.client, &updated).await).map(drop)
    }

    async fn bind(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), kube::Error> {
        let client = &self.context.client;
        let mut volume = volume.clone();
        let spec = volume.spec.get_or_insert_default();
        let complete = spec.claim_ref.as_ref().is_some_and(|reference| reference.uid == claim.metadata.uid);
        if !complete {
            let kept = spec.claim_ref.is_some();
            spec.claim_ref = Some(ObjectReference {
                kind: Some("PersistentVolumeClaim".to_owned()),
                api_version: Some("v1".to_owned()),
                namespace: claim.metadata.namespace.clone(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                field_path: None,
            });
            if !kept {
                let annotations = volume.metadata.annotations.get_or_insert_default();
                annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            }
            volume = objects::update(client, &volume).await?;
        }
        let volume = self.set_phase(&volume, "Bound").await?;
        let mut claim = claim.clone();
        let name = owners::name(&volume.metadata).to_owned();
        let spec = claim.spec.get_or_insert_default();
        let chosen_here = spec.volume_name.as_deref().unwrap_or_default().is_empty();
        spec.volume_name = Some(name);
        let annotations = claim.metadata.annotations.get_or_insert_default();
        annotations.insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
        if chosen_here {
            annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
        }
        let claim = objects::update(client, &claim).await?;
        self.set_bound(&claim, &volume).await
    }

    async fn set_bound(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), kube::Error> {
        let before = claim.status.clone().unwrap_or_default();
        let spec = volume.spec.clone().unwrap_or_default();
        let newly = before.phase.as_deref() != Some("Bound");
        let status = PersistentVolumeClaimStatus {
            phase: Some("Bound".to_owned()),
            access_modes: spec.access_modes,
            // A resize shows here first when the node has done its part.
            capacity: if newly { spec.capacity } else { before.capacity.clone() },
            ..before.clone()
        };
        if status == before {
            return Ok(());
        }
        let updated = PersistentVolumeClaim { status: Some(status), ..claim.clone() };
        errors::ignore_not_found(objects::update_status(&self.context.client, &updated).await).map(drop)
    }

    async fn sync_bound(&self, claim: &PersistentVolumeClaim, named: Option<String>) -> Result<(), kube::Error> {
        let about = events::reference(claim);
        let volume = named.as_ref().and_then(|name| self.volumes.get("", name));
        let lost = match (&named, &volume) {
            (None, _) => {
                Some(("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"))
            }
            (_, None) => Some(("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")),
            (_, Some(volume))
                if volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some()) && !is_for(volume, claim) =>
            {
                Some(("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly"))
            }
            _ => None,
        };
        match (lost, volume) {
            (None, Some(volume)) => {
                let complete = volume
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.claim_ref.as_ref())
                    .is_some_and(|reference| reference.uid == claim.metadata.uid);
                if complete {
                    return self.set_bound(claim, &volume).await;
                }
                self.bind(claim, &volume).await
            }
            (Some((reason, message)), _) => {
                if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
                    return Ok(());
                }
                let status = PersistentVolumeClaimStatus { phase: Some("Lost".to_owned()), ..Default::default() };
                let updated = PersistentVolumeClaim { status: Some(status), ..claim.clone() };
                errors::ignore_not_found(objects::update_status(&self.context.client, &updated).await)?;
                self.context.recorder.warning(&about, reason, message);
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    async fn set_phase(&self, volume: &PersistentVolume, phase: &str) -> Result<PersistentVolume, kube::Error> {
        let before = volume.status.clone().unwrap_or_default();
        if before.phase.as_deref() == Some(phase) {
            return Ok(volume.clone());
        }
        let status = PersistentVolumeStatus {
            phase: Some(phase.to_owned()),
            last_phase_transition_time: Some(time::now()),
            message: None,
            reason: None,
        };
        let updated = PersistentVolume { status: Some(status), ..volume.clone() };
        objects::update_status(&self.context.client, &updated).await
    }

    async fn sync_volume(&self, name: &str) -> Result<(), kube::Error> {
        let Some(volume) = self.volumes.get("", name) else { return Ok(()) };
        let spec = volume.spec.clone().unwrap_or_default();
        let Some(reference) = &spec.claim_ref else {
            return errors::ignore_not_found(self.set_phase(&volume, "Available").await).map(drop);
        };
        let uid = reference.uid.clone().unwrap_or_default();
        if uid.is_empty() {
            // Kept for a claim that has not come yet.
            return errors::ignore_not_found(self.set_phase(&volume, "Available").await).map(drop);
        }
        let key = key_of(reference);
        let mut claim = self.claims.get_key(&key).map(|claim| claim.as_ref().clone());
        if claim.as_ref().is_none_or(|claim| claim.metadata.uid.as_deref() != Some(uid.as_str())) {
            // A volume is given up only if the server agrees that its claim is gone.
            claim = errors::ignore_not_found(objects::get::<PersistentVolumeClaim>(&self.context.client, &key).await)?;
        }
        match claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid.as_str())) {
            Some(claim) => {
                let points_here = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()) == Some(name);
                if points_here {
                    errors::ignore_not_found(self.set_phase(&volume, "Bound").await)?;
                } else {
                    self.queue.add(Key::Claim(key));
                }
                Ok(())
            }
            None => {
                let volume = match errors::ignore_not_found(self.set_phase(&volume, "Released").await)? {
                    Some(volume) => volume,
                    None => return Ok(()),
                };
                self.reclaim(&volume).await
            }
        }
    }

    /// What becomes of a volume whose claim is gone. Data is removed by the provisioner that made it.
    async fn reclaim(&self, volume: &PersistentVolume) -> Result<(), kube::Error> {
        let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        let external = owners::annotation(&volume.metadata, PROVISIONED_BY).is_some()
            || volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some());
        if policy != Some("Delete") || external || owners::is_deleting(&volume.metadata) {
            return Ok(());
        }
        let host_path = volume.spec.as_ref().is_some_and(|spec| spec.host_path.is_some());
        if host_path {
            // There is nothing to remove on a host by hand-made volumes; the object alone goes.
            let key = ObjectKey::of(volume);
            let deleted = objects::delete::<PersistentVolume>(&self.context.client, &key, &Deletion::default()).await;
            return errors::ignore_not_found(deleted).map(drop);
        }
        let message = "error getting deleter volume plugin for volume: no deletable volume plugin matched";
        let name = owners::name(&volume.metadata);
        self.context.recorder.warning(&events::reference(volume), "VolumeFailedDelete", format!("{message} ({name})"));
        let mut failed = volume.clone();
        let status = failed.status.get_or_insert_default();
        status.phase = Some("Failed".to_owned());
        status.message = Some(message.to_owned());
        status.last_phase_transition_time = Some(time::now());
        if failed.status != volume.status {
            errors::ignore_not_found(objects::update_status(&self.context.client, &failed).await)?;
        }
        Ok(())
    }
}
