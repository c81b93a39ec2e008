//! What the scheduler knows of volumes, claims and storage classes, and which volumes it has promised to pods whose binding
//! is under way.

use std::collections::HashMap;
use std::sync::Arc;

use coxswain_api::quantity::Quantity as Parsed;
use coxswain_client::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use coxswain_client::k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use coxswain_client::{Client, Informers, ObjectKey, Selection, Store};
use parking_lot::Mutex;

use crate::selector::{Labels, NodeTerm, Selector};

pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub bytes: i64,
    pub access_modes: Vec<String>,
    pub class: String,
    pub block: bool,
    /// The terms of its node affinity; absent if every node reaches it.
    pub node_terms: Option<Vec<NodeTerm>>,
    pub labels: Labels,
    /// Namespace, name and UID of the claim it is for.
    pub claim: Option<(String, String, String)>,
    pub available: bool,
    pub driver: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeClaim {
    pub key: ObjectKey,
    pub uid: String,
    pub resource_version: String,
    pub class: String,
    pub volume: String,
    pub bytes: i64,
    pub access_modes: Vec<String>,
    pub block: bool,
    pub selector: Option<Selector>,
    pub lost: bool,
    pub bind_completed: bool,
    pub deleting: bool,
    pub selected_node: Option<String>,
    /// The pod it was made for.
    pub owner: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Class {
    pub provisioner: String,
    pub provisions: bool,
    pub waits_for_consumer: bool,
    /// Each term is a list of labels and their values.
    pub allowed_topologies: Vec<Vec<(String, Vec<String>)>>,
}

/// How many volumes of each driver a node can have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drivers(pub Vec<(String, Option<i32>)>);

/// Clones share the content.
#[derive(Clone)]
pub struct Volumes {
    pub client: Option<Client>,
    pub volumes: Store<Volume>,
    pub claims: Store<VolumeClaim>,
    pub classes: Store<Class>,
    pub drivers: Store<Drivers>,
    /// Volumes by name, promised to a claim (namespace/name), by the pod (UID) that it is promised for.
    promised: Arc<Mutex<HashMap<String, (String, String)>>>,
}

impl Default for Volumes {
    fn default() -> Self {
        Self {
            client: None,
            volumes: Store::new(),
            claims: Store::new(),
            classes: Store::new(),
            drivers: Store::new(),
            promised: Arc::default(),
        }
    }
}

fn storage(list: Option<&crate::resources::List>) -> i64 {
    list.and_then(|l| l.get("storage")).and_then(|q| Parsed::parse(&q.0).ok()).map_or(0, |q| q.value())
}

fn volume(pv: PersistentVolume) -> Volume {
    let (spec, status) = (pv.spec.unwrap_or_default(), pv.status.unwrap_or_default());
    let required = spec.node_affinity.and_then(|a| a.required);
    Volume {
        bytes: storage(spec.capacity.as_ref()),
        access_modes: spec.access_modes.unwrap_or_default(),
        class: spec.storage_class_name.unwrap_or_default(),
        block: spec.volume_mode.as_deref() == Some("Block"),
        node_terms: required.map(|r| r.node_selector_terms.iter().map(NodeTerm::new).collect()),
        labels: Labels::new(pv.metadata.labels.as_ref()),
        claim: spec
            .claim_ref
            .map(|c| (c.namespace.unwrap_or_default(), c.name.unwrap_or_default(), c.uid.unwrap_or_default())),
        available: status.phase.as_deref() == Some("Available") && pv.metadata.deletion_timestamp.is_none(),
        driver: spec.csi.map(|c| c.driver),
        name: pv.metadata.name.unwrap_or_default(),
    }
}

fn claim(pvc: PersistentVolumeClaim) -> VolumeClaim {
    let (spec, status) = (pvc.spec.unwrap_or_default(), pvc.status.unwrap_or_default());
    let annotation = |name: &str| pvc.metadata.annotations.as_ref().and_then(|a| a.get(name)).cloned();
    let owner = pvc.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
    VolumeClaim {
        key: ObjectKey::of_meta(&pvc.metadata),
        uid: pvc.metadata.uid.clone().unwrap_or_default(),
        resource_version: pvc.metadata.resource_version.clone().unwrap_or_default(),
        class: spec.storage_class_name.unwrap_or_default(),
        volume: spec.volume_name.unwrap_or_default(),
        bytes: storage(spec.resources.as_ref().and_then(|r| r.requests.as_ref())),
        access_modes: spec.access_modes.unwrap_or_default(),
        block: spec.volume_mode.as_deref() == Some("Block"),
        selector: spec.selector.as_ref().map(|s| Selector::new(Some(s))),
        lost: status.phase.as_deref() == Some("Lost"),
        bind_completed: annotation(BIND_COMPLETED).is_some(),
        deleting: pvc.metadata.deletion_timestamp.is_some(),
        selected_node: annotation(SELECTED_NODE),
        owner: owner.map(|o| o.uid.clone()),
    }
}

impl Volumes {
    pub fn new(informers: &Informers) -> (Self, Watched) {
        let all = Selection::default;
        let watched = Watched {
            volumes: informers.projected(all(), volume),
            claims: informers.projected(all(), claim),
            classes: informers.projected(all(), |c: StorageClass| Class {
                provisions: c.provisioner != NO_PROVISIONER && !c.provisioner.is_empty(),
                provisioner: c.provisioner,
                waits_for_consumer: c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
                allowed_topologies: c
                    .allowed_topologies
                    .iter()
                    .flatten()
                    .map(|t| {
                        let labels = t.match_label_expressions.iter().flatten();
                        labels.map(|e| (e.key.clone(), e.values.clone())).collect()
                    })
                    .collect(),
            }),
            drivers: informers.projected(all(), |n: CSINode| {
                let drivers = n.spec.drivers.into_iter();
                Drivers(drivers.map(|d| (d.name, d.allocatable.and_then(|a| a.count))).collect())
            }),
        };
        let volumes = Self {
            client: Some(informers.client().clone()),
            volumes: watched.volumes.store(),
            claims: watched.claims.store(),
            classes: watched.classes.store(),
            drivers: watched.drivers.store(),
            promised: Arc::default(),
        };
        (volumes, watched)
    }

    /// The claim a volume is promised to, if any.
    pub fn promised_to(&self, volume: &str) -> Option<String> {
        self.promised.lock().get(volume).map(|(claim, _)| claim.clone())
    }

    pub fn promise(&self, volume: &str, claim: &ObjectKey, pod_uid: &str) {
        self.promised.lock().insert(volume.to_owned(), (claim.to_string(), pod_uid.to_owned()));
    }

    pub fn break_promises(&self, pod_uid: &str) {
        self.promised.lock().retain(|_, (_, uid)| *uid != *pod_uid);
    }
}

/// The informers of volumes, for whoever waits for their changes.
pub struct Watched {
    pub volumes: coxswain_client::Informer<Volume>,
    pub claims: coxswain_client::Informer<VolumeClaim>,
    pub classes: coxswain_client::Informer<Class>,
    pub drivers: coxswain_client::Informer<Drivers>,
}
