//! Keeps the Endpoints object of each Service equal to the pods it selects, the counterpart of `pkg/controller/endpoint`.
//! Endpoints are what EndpointSlices were before; old clients still read them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::events;
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;

use crate::Context;
use crate::common::slim::SlimPod;
use crate::common::{hash, owners, pods, selector};
use crate::endpointslice::plan::TRIGGER_TIME;
use crate::endpointslice::trigger::Tracker;
use crate::endpointslice::{HEADLESS, build, services_of_change};

const WORKERS: usize = 5;
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses beyond this many are left out.
const ADDRESSES_MAX: usize = 1000;

struct Controller {
    context: Context,
    services: Store<Service>,
    endpoints: Store<Endpoints>,
    pods: Store<SlimPod>,
    triggers: Mutex<HashMap<ObjectKey, Tracker>>,
    queue: WorkQueue<ObjectKey>,
}

pub async fn run(context: Context) {
    let services: Informer<Service> = context.informers.informer();
    let endpoints: Informer<Endpoints> = context.informers.informer();
    let pods = context.pods();
    tokio::join!(services.synced(), endpoints.synced(), pods.synced());
    let controller = Arc::new(Controller {
        services: services.store(),
        endpoints: endpoints.store(),
        pods: pods.store(),
        triggers: Mutex::default(),
        queue: WorkQueue::new(),
        context: context.clone(),
    });
    let queue = &controller.queue;
    let feeds = async {
        tokio::join!(
            feed(&services, |event| queue.add(ObjectKey::of(event.object().as_ref()))),
            feed(&pods, |event| {
                for key in services_of_change(&controller.services, &event) {
                    queue.add(key);
                }
            }),
            feed(&endpoints, |event| {
                // What somebody deletes comes back; what a service left behind while nobody watched goes.
                if !matches!(event, Event::Updated { .. }) {
                    queue.add(ObjectKey::of(event.object().as_ref()));
                }
            }),
        )
    };
    drive(
        "endpoint",
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
        let client = &self.context.client;
        let present = self.endpoints.get_key(&key);
        let Some(service) = self.services.get_key(&key) else {
            self.triggers.lock().remove(&key);
            // Endpoints that an election holds have no service, and are not ours.
            let elects = present.as_ref().is_some_and(|endpoints| {
                owners::annotation(&endpoints.metadata, "control-plane.alpha.kubernetes.io/leader").is_some()
            });
            if present.is_some() && !elects {
                let deleted = objects::delete::<Endpoints>(client, &key, &Deletion::default()).await;
                return errors::ignore_not_found(deleted).map(drop);
            }
            return Ok(());
        };
        let spec = service.spec.clone().unwrap_or_default();
        let (Some(wanted), false) = (&spec.selector, spec.type_.as_deref() == Some("ExternalName")) else {
            return Ok(());
        };
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| selector::has_all(pod.metadata.labels.as_ref(), Some(wanted)));
        let trigger = self.triggers.lock().entry(key.clone()).or_default().next(&service, &pods);
        let (subsets, truncated) = subsets(&service, &pods);

        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.remove(HEADLESS);
        if !build::has_cluster_ip(&service) {
            labels.insert(HEADLESS.to_owned(), String::new());
        }
        labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
        let subsets = (!subsets.is_empty()).then_some(subsets);
        let was_truncated =
            present.as_ref().is_some_and(|endpoints| owners::annotation(&endpoints.metadata, OVER_CAPACITY).is_some());
        if let Some(present) = &present {
            let present_subsets = present.subsets.clone().filter(|subsets| !subsets.is_empty());
            if present_subsets == subsets
                && present.metadata.labels.as_ref() == Some(&labels)
                && was_truncated == truncated
            {
                return Ok(());
            }
        }
        let mut endpoints = present.as_deref().cloned().unwrap_or_else(|| Endpoints {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                ..ObjectMeta::default()
            },
            subsets: None,
        });
        let mut annotations = endpoints.metadata.annotations.take().unwrap_or_default();
        match trigger {
            Some(time) => {
                annotations.insert(TRIGGER_TIME.to_owned(), time);
            }
            None => {
                annotations.remove(TRIGGER_TIME);
            }
        }
        if truncated {
            annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
        } else {
            annotations.remove(OVER_CAPACITY);
        }
        endpoints.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
        endpoints.metadata.labels = Some(labels);
        endpoints.subsets = subsets;
        let (result, reason, verb) = if present.is_none() {
            (objects::create(client, &endpoints).await, "FailedToCreateEndpoint", "create")
        } else {
            (objects::update(client, &endpoints).await, "FailedToUpdateEndpoint", "update")
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) if errors::has_cause(&error, "NamespaceTerminating") => Ok(()),
            // The informer has not shown the last write yet.
            Err(error) if errors::is_conflict(&error) || errors::is_already_exists(&error) => Err(error),
            Err(error) => {
                let message =
                    format!("Failed to {verb} endpoint {}/{}: {}", key.namespace, key.name, errors::message(&error));
                self.context.recorder.warning(&events::reference(&endpoints), reason, message);
                Err(error)
            }
        }
    }
}

/// Addresses by IP and UID, each with whether it is ready.
type Addresses = BTreeMap<(String, String), (EndpointAddress, bool)>;

/// The subsets of a service's pods: ports that the same pods have are one subset. Also whether some had to be left out.
fn subsets(service: &Service, pods: &[Arc<SlimPod>]) -> (Vec<EndpointSubset>, bool) {
    let spec = service.spec.clone().unwrap_or_default();
    let publish_unready = spec.publish_not_ready_addresses == Some(true);
    // Without a port for the pods of a service that has none.
    let mut by_port: Vec<(Option<EndpointPort>, Addresses)> = Vec::new();
    let family = build::address_types(service).into_iter().next().unwrap_or_default();
    for pod in pods {
        let gone = pods::is_terminated(pod) || (owners::is_deleting(&pod.metadata) && !publish_unready);
        let Some(ip) = build::addresses_of(pod, &family).into_iter().next().filter(|_| !gone) else { continue };
        let address = EndpointAddress {
            ip: ip.clone(),
            hostname: build::hostname(service, pod),
            node_name: Some(pods::node_name(pod).to_owned()).filter(|name| !name.is_empty()),
            target_ref: Some(build::target_reference(pod)),
        };
        let ready = publish_unready || pods::is_ready(pod);
        let key = (ip, owners::uid(&pod.metadata).to_owned());
        let ports = spec.ports.as_deref().filter(|ports| !ports.is_empty());
        let ports: Vec<Option<EndpointPort>> = match ports {
            None => vec![None],
            Some(ports) => ports.iter().filter_map(|port| endpoint_port(pod, port)).map(Some).collect(),
        };
        for port in ports {
            let address = (address.clone(), ready);
            match by_port.iter_mut().find(|(known, _)| *known == port) {
                Some((_, addresses)) => drop(addresses.insert(key.clone(), address)),
                None => by_port.push((port, BTreeMap::from([(key.clone(), address)]))),
            }
        }
    }
    let mut groups: Vec<(Vec<EndpointPort>, Addresses)> = Vec::new();
    for (port, addresses) in by_port {
        match groups.iter_mut().find(|(_, known)| *known == addresses) {
            Some((ports, _)) => ports.extend(port),
            None => groups.push((port.into_iter().collect(), addresses)),
        }
    }
    let total: usize = groups.iter().map(|(_, addresses)| addresses.len()).sum();
    let mut left = ADDRESSES_MAX;
    let mut subsets: Vec<EndpointSubset> = groups
        .into_iter()
        .map(|(mut ports, addresses)| {
            ports.sort_by_cached_key(|port| hash::deep("v1.EndpointPort", port));
            let (ready, unready): (Vec<_>, Vec<_>) = addresses.into_values().partition(|(_, ready)| *ready);
            let mut some = |addresses: Vec<(EndpointAddress, bool)>| {
                let kept: Vec<_> = addresses.into_iter().take(left).map(|(address, _)| address).collect();
                left -= kept.len();
                (!kept.is_empty()).then_some(kept)
            };
            EndpointSubset {
                addresses: some(ready),
                not_ready_addresses: some(unready),
                ports: (!ports.is_empty()).then_some(ports),
            }
        })
        .filter(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some())
        .collect();
    subsets.sort_by_cached_key(|subset| hash::deep("v1.EndpointSubset", subset));
    (subsets, total > ADDRESSES_MAX)
}

/// A service's port as a pod has it; none if the pod names no such port.
fn endpoint_port(pod: &SlimPod, port: &ServicePort) -> Option<EndpointPort> {
    Some(EndpointPort {
        name: port.name.clone().filter(|name| !name.is_empty()),
        port: build::find_port(pod, port)?,
        protocol: Some(build::protocol(port).to_owned()),
        app_protocol: port.app_protocol.clone(),
    })
}
