//! Mirrors Endpoints that people write to EndpointSlices, the counterpart of `pkg/controller/endpointslicemirroring`.

use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, kube};
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};

use super::plan::{self, Desired, Group, TRIGGER_TIME};
use super::{BY_SERVICE, MANAGED_BY, SERVICE_NAME, STALE_DELAY, Written};
use crate::Context;
use crate::common::owners;

const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
const WORKERS: usize = 5;
/// Addresses of a subset beyond this are not mirrored.
const ADDRESSES_MAX: usize = 1000;

struct Controller {
    context: Context,
    endpoints: Store<Endpoints>,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    queue: WorkQueue<ObjectKey>,
    written: Written,
}

pub async fn run(context: Context) {
    let endpoints: Informer<Endpoints> = context.informers.informer();
    let services: Informer<Service> = context.informers.informer();
    let slices: Informer<EndpointSlice> = context.informers.informer();
    super::index(&slices.store());
    tokio::join!(endpoints.synced(), services.synced(), slices.synced());
    let controller = Arc::new(Controller {
        endpoints: endpoints.store(),
        services: services.store(),
        slices: slices.store(),
        queue: WorkQueue::new(),
        written: Written::default(),
        context: context.clone(),
    });
    let queue = &controller.queue;
    let feeds = async {
        tokio::join!(
            feed(&endpoints, |event| queue.add(ObjectKey::of(event.object().as_ref()))),
            feed(&services, |event| queue.add(ObjectKey::of(event.object().as_ref()))),
            feed(&slices, |event| {
                let slice = event.object();
                if let Event::Deleted(slice) = &event {
                    controller.written.deleted(slice);
                }
                if !matches!(event, Event::Added(_))
                    && owners::label(&slice.metadata, MANAGED_BY) == Some(CONTROLLER)
                    && let Some(service) = owners::label(&slice.metadata, SERVICE_NAME)
                {
                    queue.add(ObjectKey::new(owners::namespace(&slice.metadata), service));
                }
            }),
        )
    };
    drive(
        "endpointslicemirroring",
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
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .by_index(BY_SERVICE, &key.to_string())
            .into_iter()
            .filter(|slice| {
                owners::label(&slice.metadata, MANAGED_BY) == Some(CONTROLLER) && !owners::is_deleting(&slice.metadata)
            })
            .collect();
        if self.written.is_ahead(&key, &self.slices) {
            self.queue.add_after(key, STALE_DELAY);
            return Ok(());
        }
        let endpoints = self.endpoints.get_key(&key).filter(|endpoints| is_mirrored(endpoints));
        let service = self.services.get_key(&key).filter(|service| {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            selector.is_none() && !owners::is_deleting(&service.metadata)
        });
        let plan = match (endpoints, service) {
            (Some(endpoints), Some(_)) => {
                plan::plan(desired(&endpoints, &key), &existing, self.context.config.endpoints_per_slice_max)
            }
            _ => plan::Plan {
                delete: existing.iter().map(|slice| slice.as_ref().clone()).collect(),
                ..plan::Plan::default()
            },
        };
        super::apply(&self.context, &self.written, &key, plan).await
    }
}

/// Endpoints can opt out, and those that another controller or an election uses are not for mirroring.
fn is_mirrored(endpoints: &Endpoints) -> bool {
    owners::label(&endpoints.metadata, "endpointslice.kubernetes.io/skip-mirror") != Some("true")
        && owners::annotation(&endpoints.metadata, "control-plane.alpha.kubernetes.io/leader").is_none()
}

fn desired(endpoints: &Endpoints, key: &ObjectKey) -> Desired {
    let mut groups = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(unready).take(ADDRESSES_MAX) {
            let address_type = if address.ip.contains(':') { "IPv6" } else { "IPv4" };
            let endpoint = endpoint(address, ready);
            let group = groups
                .iter_mut()
                .find(|group: &&mut Group| group.address_type == address_type && group.ports.as_ref() == Some(&ports));
            match group {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group {
                    address_type: address_type.to_owned(),
                    ports: Some(ports.clone()),
                    endpoints: vec![endpoint],
                }),
            }
        }
    }
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), key.name.clone());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    let trigger = annotations.remove(TRIGGER_TIME);
    Desired {
        labels,
        annotations,
        owner: owners::controller_reference(endpoints),
        namespace: key.namespace.clone(),
        prefix: format!("{}-", key.name),
        groups,
        trigger,
    }
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), serving: None, terminating: None }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}
