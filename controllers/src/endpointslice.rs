//! Keeps the EndpointSlices of each Service equal to the pods it selects, the counterpart of `pkg/controller/endpointslice`
//! and of the reconciler in `k8s.io/endpointslice`. [`mirroring`] does the same for Endpoints that people write themselves.

use std::collections::HashMap;
use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::events;
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;

use crate::Context;
use crate::common::slim::SlimPod;
use crate::common::{owners, pod_control, selector};

pub mod build;
pub mod mirroring;
pub mod plan;
pub(crate) mod trigger;

use plan::{Desired, Plan};

const WORKERS: usize = 5;
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// How long the informer is given to show what was written.
const STALE_DELAY: std::time::Duration = std::time::Duration::from_millis(20);

struct Controller {
    context: Context,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    pods: Store<SlimPod>,
    nodes: Store<Node>,
    queue: WorkQueue<ObjectKey>,
    triggers: Mutex<HashMap<ObjectKey, trigger::Tracker>>,
    written: Written,
}

/// Index of slices by namespace and service, as `NAMESPACE/SERVICE`.
pub const BY_SERVICE: &str = "service";

pub fn index(slices: &Store<EndpointSlice>) {
    slices.add_index(BY_SERVICE, |slice| {
        let service = owners::label(&slice.metadata, SERVICE_NAME);
        service.map(|service| format!("{}/{service}", owners::namespace(&slice.metadata))).into_iter().collect()
    });
}

pub async fn run(context: Context) {
    let services: Informer<Service> = context.informers.informer();
    let slices: Informer<EndpointSlice> = context.informers.informer();
    let nodes: Informer<Node> = context.informers.informer();
    let pods = context.pods();
    index(&slices.store());
    tokio::join!(services.synced(), slices.synced(), nodes.synced(), pods.synced());
    let controller = Arc::new(Controller {
        services: services.store(),
        slices: slices.store(),
        pods: pods.store(),
        nodes: nodes.store(),
        queue: WorkQueue::new(),
        triggers: Mutex::default(),
        written: Written::default(),
        context: context.clone(),
    });
    let feeds = async {
        tokio::join!(
            feed(&services, |event| {
                let key = ObjectKey::of(event.object().as_ref());
                if let Event::Deleted(_) = event {
                    controller.triggers.lock().remove(&key);
                    controller.written.forget(&key);
                }
                controller.queue.add(key);
            }),
            feed(&pods, |event| {
                for key in services_of_change(&controller.services, &event) {
                    controller.queue.add(key);
                }
            }),
            feed(&slices, |event| controller.slice_changed(&event)),
            feed(&nodes, |event| controller.node_changed(&event)),
        )
    };
    drive(
        "endpointslice",
        controller.clone(),
        controller.queue.clone(),
        context.workers(WORKERS),
        context.shutdown.clone(),
        |controller, key| async move { controller.reconcile(key).await },
        feeds,
    )
    .await;
}

/// The services that select a pod, before or after a change that endpoints would show.
pub fn services_of_change(services: &Store<Service>, event: &Event<SlimPod>) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    let mut add = |pod: &Pod| {
        for service in services.list_namespace(owners::namespace(&pod.metadata)) {
            let wanted = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            if wanted.is_some_and(|wanted| !wanted.is_empty())
                && selector::has_all(pod.metadata.labels.as_ref(), wanted)
            {
                let key = ObjectKey::of(service.as_ref());
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
    };
    match event {
        Event::Added(pod) | Event::Deleted(pod) => add(pod),
        Event::Updated { old, new } => {
            let labels_changed = old.metadata.labels != new.metadata.labels;
            if labels_changed || build::shows(old) != build::shows(new) {
                add(new);
            }
            if labels_changed {
                add(old);
            }
        }
    }
    keys
}

impl Controller {
    /// Slices that somebody else changed or deleted are put right; our own writes find nothing to do.
    fn slice_changed(&self, event: &Event<EndpointSlice>) {
        let enqueue = |slice: &EndpointSlice| {
            if owners::label(&slice.metadata, MANAGED_BY) == Some(CONTROLLER)
                && let Some(service) = owners::label(&slice.metadata, SERVICE_NAME)
            {
                self.queue.add(ObjectKey::new(owners::namespace(&slice.metadata), service));
            }
        };
        match event {
            Event::Added(_) => {}
            Event::Updated { old, new } => {
                enqueue(old);
                enqueue(new);
            }
            Event::Deleted(slice) => {
                self.written.deleted(slice);
                enqueue(slice);
            }
        }
    }

    /// A node that comes, or moves to another zone, changes what endpoints say about their place.
    fn node_changed(&self, event: &Event<Node>) {
        let node = match event {
            Event::Updated { old, new } if build::zone_of(old) == build::zone_of(new) => return,
            event => event.object(),
        };
        let pods = self.pods.by_index(crate::common::slim::BY_NODE, owners::name(&node.metadata));
        for pod in pods {
            for key in services_of_change(&self.services, &Event::Added(pod)) {
                self.queue.add(key);
            }
        }
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(service) = self.services.get_key(&key) else { return Ok(()) };
        let spec = service.spec.clone().unwrap_or_default();
        // People write the endpoints of a service without a selector themselves.
        let (Some(wanted), false) = (&spec.selector, spec.type_.as_deref() == Some("ExternalName")) else {
            return Ok(());
        };
        if owners::is_deleting(&service.metadata) {
            return Ok(());
        }
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| selector::has_all(pod.metadata.labels.as_ref(), Some(wanted)));
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .by_index(BY_SERVICE, &key.to_string())
            .into_iter()
            .filter(|slice| {
                owners::label(&slice.metadata, MANAGED_BY) == Some(CONTROLLER) && !owners::is_deleting(&slice.metadata)
            })
            .collect();
        if self.written.is_ahead(&key, &self.slices) {
            // Planning from slices that do not show the last writes would write them again.
            self.queue.add_after(key, STALE_DELAY);
            return Ok(());
        }
        let trigger = self.triggers.lock().entry(key.clone()).or_default().next(&service, &pods);
        let (groups, missing_node) = build::groups(&service, &pods, &self.nodes);
        let desired = Desired {
            labels: build::labels(&service, CONTROLLER),
            annotations: Default::default(),
            owner: owners::controller_reference(service.as_ref()),
            namespace: key.namespace.clone(),
            prefix: format!("{}-", key.name),
            groups,
            trigger,
        };
        let plan = plan::plan(desired, &existing, self.context.config.endpoints_per_slice_max);
        if let Err(error) = apply(&self.context, &self.written, &key, plan).await {
            if errors::has_cause(&error, "NamespaceTerminating") {
                return Ok(());
            }
            if errors::is_conflict(&error) {
                return Err(error);
            }
            self.context.recorder.warning(
                &events::reference(service.as_ref()),
                "FailedToUpdateEndpointSlices",
                format!(
                    "Error updating Endpoint Slices for Service {}/{}: {}",
                    key.namespace,
                    key.name,
                    errors::message(&error)
                ),
            );
            return Err(error);
        }
        if missing_node {
            // The node may not have been seen yet.
            self.queue.add_rate_limited(key);
        }
        Ok(())
    }
}

/// The versions of slices that were written last, by service and name, until the informer shows them.
#[derive(Default)]
struct Written(Mutex<HashMap<ObjectKey, HashMap<String, u64>>>);

fn version(slice: &EndpointSlice) -> u64 {
    slice.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

impl Written {
    fn note(&self, service: &ObjectKey, slice: &EndpointSlice) {
        let name = owners::name(&slice.metadata).to_owned();
        self.0.lock().entry(service.clone()).or_default().insert(name, version(slice));
    }

    fn deleted(&self, slice: &EndpointSlice) {
        let Some(service) = owners::label(&slice.metadata, SERVICE_NAME) else { return };
        let service = ObjectKey::new(owners::namespace(&slice.metadata), service);
        if let Some(versions) = self.0.lock().get_mut(&service) {
            versions.remove(owners::name(&slice.metadata));
        }
    }

    fn forget(&self, service: &ObjectKey) {
        self.0.lock().remove(service);
    }

    /// Whether a slice was written that the store does not show yet.
    fn is_ahead(&self, service: &ObjectKey, slices: &Store<EndpointSlice>) -> bool {
        let mut written = self.0.lock();
        let Some(versions) = written.get_mut(service) else { return false };
        versions.retain(|name, written| {
            let shown = slices.get(&service.namespace, name).map_or(0, |slice| version(&slice));
            shown < *written
        });
        !versions.is_empty()
    }
}

/// Carries a plan out.
async fn apply(context: &Context, written: &Written, service: &ObjectKey, plan: Plan) -> Result<(), kube::Error> {
    let client = &context.client;
    let mut deletes = plan.delete;
    let mut updates = plan.update;
    for mut slice in plan.create {
        // A slice that is to go is written over instead, as long as it has the address type, which is immutable.
        let reusable = deletes.iter().position(|old| old.address_type == slice.address_type);
        if let Some(index) = reusable {
            let old = deletes.remove(index);
            slice.metadata.name = old.metadata.name;
            slice.metadata.generate_name = old.metadata.generate_name;
            slice.metadata.resource_version = old.metadata.resource_version;
            updates.push(slice);
        } else {
            written.note(service, &objects::create(client, &slice).await?);
        }
    }
    for slice in updates {
        match errors::ignore_not_found(objects::update(client, &slice).await)? {
            Some(slice) => written.note(service, &slice),
            // Somebody deleted it: the next round plans without it.
            None => written.deleted(&slice),
        }
    }
    pod_control::for_each(deletes, |slice| async move {
        let key = ObjectKey::of(&slice);
        written.deleted(&slice);
        errors::ignore_not_found(objects::delete::<EndpointSlice>(client, &key, &Deletion::default()).await).map(drop)
    })
    .await
}
