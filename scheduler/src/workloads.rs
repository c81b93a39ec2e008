//! The selectors of services and workloads, by which pods that say nothing about spreading are spread.

use std::collections::BTreeMap;

use coxswain_client::k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use coxswain_client::k8s_openapi::api::core::v1::{ReplicationController, Service};
use coxswain_client::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use coxswain_client::{Informer, Informers, Selection, Store};

use crate::pod::PodInfo;
use crate::selector::Selector;

/// The selector of one object.
#[derive(Debug, PartialEq, Eq)]
pub struct Selecting(pub Selector);

/// What preemption heeds of a disruption budget.
#[derive(Debug, PartialEq, Eq)]
pub struct Budget {
    pub namespace: String,
    pub selector: Selector,
    pub disruptions_allowed: i32,
    /// Pods whose eviction it has counted already.
    pub disrupted: Vec<String>,
}

pub struct Workloads {
    pub budgets: Store<Budget>,
    services: Store<Selecting>,
    controllers: Store<Selecting>,
    replica_sets: Store<Selecting>,
    stateful_sets: Store<Selecting>,
}

impl Default for Workloads {
    fn default() -> Self {
        Self {
            budgets: Store::new(),
            services: Store::new(),
            controllers: Store::new(),
            replica_sets: Store::new(),
            stateful_sets: Store::new(),
        }
    }
}

impl Workloads {
    /// The informers are returned too, for whoever waits for them.
    pub fn new(informers: &Informers) -> (Self, Vec<Informer<Selecting>>) {
        let all = Selection::default;
        let services = informers.projected(all(), |s: Service| {
            let selector = s.spec.and_then(|s| s.selector).filter(|s| !s.is_empty());
            Selecting(selector.map(|s| Selector::exact(Some(&s))).unwrap_or_default())
        });
        let controllers = informers.projected(all(), |c: ReplicationController| {
            let selector: Option<BTreeMap<_, _>> = c.spec.and_then(|s| s.selector);
            Selecting(selector.map(|s| Selector::exact(Some(&s))).unwrap_or_default())
        });
        let replica_sets =
            informers.projected(all(), |r: ReplicaSet| Selecting(Selector::new(r.spec.as_ref().map(|s| &s.selector))));
        let stateful_sets =
            informers.projected(all(), |s: StatefulSet| Selecting(Selector::new(s.spec.as_ref().map(|s| &s.selector))));
        let budgets = informers.projected(all(), |b: PodDisruptionBudget| {
            let (spec, status) = (b.spec.unwrap_or_default(), b.status.unwrap_or_default());
            Budget {
                namespace: b.metadata.namespace.unwrap_or_default(),
                selector: Selector::new(spec.selector.as_ref()),
                disruptions_allowed: status.disruptions_allowed.unwrap_or(0),
                disrupted: status.disrupted_pods.into_iter().flatten().map(|(name, _)| name).collect(),
            }
        });
        let workloads = Self {
            budgets: budgets.store(),
            services: services.store(),
            controllers: controllers.store(),
            replica_sets: replica_sets.store(),
            stateful_sets: stateful_sets.store(),
        };
        (workloads, vec![services, controllers, replica_sets, stateful_sets])
    }

    /// What selects the pod together with its siblings: the services that select it, and its owner.
    pub fn selector_of(&self, pod: &PodInfo) -> Option<Selector> {
        let mut found: Option<Selector> = None;
        let mut narrow = |by: &Selector| found = Some(found.as_ref().map_or_else(|| by.clone(), |f| f.and(by)));
        for service in self.services.list_namespace(&pod.key.namespace) {
            if service.0.matches(&pod.labels) {
                narrow(&service.0);
            }
        }
        if let Some((kind, name)) = &pod.owner {
            let store = match &**kind {
                "ReplicationController" => Some(&self.controllers),
                "ReplicaSet" => Some(&self.replica_sets),
                "StatefulSet" => Some(&self.stateful_sets),
                _ => None,
            };
            if let Some(owner) = store.and_then(|s| s.get(&pod.key.namespace, name)) {
                narrow(&owner.0);
            }
        }
        found.filter(|s| !s.is_everything())
    }
}
