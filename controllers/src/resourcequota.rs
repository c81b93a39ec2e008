//! Recounts what namespaces use of their quotas, the counterpart of `pkg/controller/resourcequota`. Admission counts up what
//! is created; deletions, and anything admission got wrong, are found here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coxswain_api::quantity::Quantity;
use coxswain_client::drive::{drive, every, feed};
use coxswain_client::informer::{Change, Reflector, Target};
use coxswain_client::objects;
use coxswain_client::{Event, Informer, ObjectKey, Selection, Store, WorkQueue, errors, kube};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::task::AbortHandle;

use crate::Context;
use crate::common::discovery::Resource;
use crate::common::slim::SlimPod;
use crate::common::{owners, pods};

mod usage;

const WORKERS: usize = 5;
/// How soon a quota with new limits is counted a second time.
const SETTLE: Duration = Duration::from_secs(1);
/// A count that takes back charges waits until there were none for this long, so many times at most.
const QUIET: Duration = Duration::from_millis(200);
const WAITS_MAX: usize = 5;

struct Controller {
    context: Context,
    quotas: Store<ResourceQuota>,
    pods: Store<SlimPod>,
    services: Store<Service>,
    claims: Store<PersistentVolumeClaim>,
    queue: WorkQueue<ObjectKey>,
    changes: Mutex<HashMap<ObjectKey, Charges>>,
    /// Objects of the kinds that some quota counts, by the quota's name for the kind.
    counters: Mutex<HashMap<String, Counter>>,
}

/// When a quota last changed, and how often a lower count has waited for an end of that.
#[derive(Default)]
struct Charges {
    last: Option<Instant>,
    waits: usize,
}

impl Charges {
    /// Whether a lower count has to wait. Not for ever, however busy the namespace: what was freed must show in the end.
    fn wait(&mut self, now: Instant) -> bool {
        let busy = self.last.is_some_and(|last| now.duration_since(last) < QUIET);
        self.waits = if busy && self.waits < WAITS_MAX { self.waits + 1 } else { 0 };
        self.waits > 0
    }
}

struct Counter {
    task: AbortHandle,
    /// Names by namespace; `None` until the first list.
    objects: Arc<Mutex<Option<HashMap<String, BTreeSet<String>>>>>,
}

#[derive(Deserialize)]
struct Counted {
    metadata: ObjectMeta,
}

pub async fn run(context: Context) {
    let quotas: Informer<ResourceQuota> = context.informers.informer();
    let services: Informer<Service> = context.informers.informer();
    let claims: Informer<PersistentVolumeClaim> = context.informers.informer();
    let pods = context.pods();
    tokio::join!(quotas.synced(), services.synced(), claims.synced(), pods.synced());
    let controller = Arc::new(Controller {
        quotas: quotas.store(),
        pods: pods.store(),
        services: services.store(),
        claims: claims.store(),
        queue: WorkQueue::new(),
        changes: Mutex::default(),
        counters: Mutex::default(),
        context: context.clone(),
    });
    let feeds = async {
        tokio::join!(
            feed(&quotas, |event| {
                let key = ObjectKey::of(event.object().as_ref());
                match &event {
                    Event::Deleted(_) => drop(controller.changes.lock().remove(&key)),
                    _ => controller.changes.lock().entry(key.clone()).or_default().last = Some(Instant::now()),
                }
                // Not when only its status changed: admission charges a quota before the object is stored, and a count made in
                // between would take the charge back and let more in than the quota allows.
                let relevant = match &event {
                    Event::Added(_) => true,
                    Event::Updated { old, new } => hard(old) != hard(new),
                    Event::Deleted(_) => false,
                };
                if relevant {
                    controller.queue.add(key);
                }
            }),
            // A pod that ends, or is resized, frees what it used.
            feed(&pods, |event| {
                if frees(&event, |pod| (pods::is_terminated(pod), usage::of_pod(pod))) {
                    controller.enqueue_namespace(owners::namespace(&event.object().metadata));
                }
            }),
            feed(&services, |event| {
                if frees(&event, usage::of_service) {
                    controller.enqueue_namespace(owners::namespace(&event.object().metadata));
                }
            }),
            feed(&claims, |event| {
                if frees(&event, usage::of_claim) {
                    controller.enqueue_namespace(owners::namespace(&event.object().metadata));
                }
            }),
            every(context.config.resource_quota_sync_period, &context.shutdown, || async {
                for quota in controller.quotas.list() {
                    controller.queue.add(ObjectKey::of(quota.as_ref()));
                }
            }),
        )
    };
    drive(
        "resource-quota",
        controller.clone(),
        controller.queue.clone(),
        context.workers(WORKERS),
        context.shutdown.clone(),
        |controller, key| async move { controller.reconcile(key).await },
        feeds,
    )
    .await;
    for counter in controller.counters.lock().values() {
        counter.task.abort();
    }
}

impl Controller {
    fn enqueue_namespace(&self, namespace: &str) {
        for quota in self.quotas.list_namespace(namespace) {
            self.queue.add(ObjectKey::of(quota.as_ref()));
        }
    }

    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(quota) = self.quotas.get_key(&key) else { return Ok(()) };
        let hard = hard(&quota).cloned().unwrap_or_default();
        let mut used: BTreeMap<String, Quantity> = BTreeMap::new();
        let scoped: Vec<Arc<SlimPod>> =
            self.pods.list_namespace(&key.namespace).into_iter().filter(|pod| usage::in_scope(&quota, pod)).collect();
        for pod in &scoped {
            add_all(&mut used, usage::of_pod(pod));
        }
        if !usage::has_scopes(&quota) {
            for service in self.services.list_namespace(&key.namespace) {
                add_all(&mut used, usage::of_service(&service));
            }
            for claim in self.claims.list_namespace(&key.namespace) {
                add_all(&mut used, usage::of_claim(&claim));
            }
        }
        let mut counted: BTreeMap<String, Text> = BTreeMap::new();
        for (name, limit) in &hard {
            let quantity = match usage::counted_kind(name) {
                Some(kind) => {
                    let Some(count) = self.count(&kind, &key.namespace).await? else {
                        // The counter has just been started; it enqueues the quota once it knows.
                        return Ok(());
                    };
                    Quantity::new(count as i64, coxswain_api::quantity::Format::DecimalSi)
                }
                None => used.get(name).cloned().unwrap_or_else(|| {
                    let format = Quantity::parse(&limit.0).map(|limit| limit.format());
                    Quantity::new(0, format.unwrap_or(coxswain_api::quantity::Format::DecimalSi))
                }),
            };
            counted.insert(name.clone(), Text(quantity.to_string()));
        }
        if quota.status.as_ref().and_then(|status| status.hard.as_ref()) != Some(&hard) {
            // What was made before admission knew these limits was charged to nobody: it is found by counting once more.
            self.queue.add_after(key.clone(), SETTLE);
        }
        if self.is_being_charged(&key, &quota, &counted) {
            self.queue.add_after(key, QUIET);
            return Ok(());
        }
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(counted) };
        if quota.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let updated = ResourceQuota { status: Some(status), ..quota.as_ref().clone() };
        errors::ignore_not_found(objects::update_status(&self.context.client, &updated).await).map(drop)
    }

    /// Whether fewer were counted than admission has charged, a moment ago: what was charged may not be stored yet.
    fn is_being_charged(&self, key: &ObjectKey, quota: &ResourceQuota, counted: &BTreeMap<String, Text>) -> bool {
        let quantity = |text: Option<&Text>| text.and_then(|text| Quantity::parse(&text.0).ok());
        let charged = quota.status.as_ref().and_then(|status| status.used.as_ref());
        let lower = charged.into_iter().flatten().any(|(name, charged)| {
            quantity(counted.get(name)).zip(quantity(Some(charged))).is_some_and(|(counted, charged)| counted < charged)
        });
        self.changes.lock().get_mut(key).is_some_and(|charges| lower && charges.wait(Instant::now()))
    }

    /// How many objects of a kind a namespace has; `None` while that is being found out.
    async fn count(self: &Arc<Self>, kind: &str, namespace: &str) -> Result<Option<usize>, kube::Error> {
        let known = |controller: &Self| {
            let counters = controller.counters.lock();
            counters.get(kind).map(|counter| {
                let objects = counter.objects.lock();
                objects.as_ref().map(|objects| objects.get(namespace).map_or(0, BTreeSet::len))
            })
        };
        if let Some(count) = known(self) {
            return Ok(count);
        }
        let found = self.context.discovery.get(&self.context.client).await?;
        let resource = found.resources.iter().find(|resource| resource.group_resource() == kind);
        // A kind that is not served has no objects.
        let Some(resource) = resource.filter(|resource| resource.can("watch")).cloned() else { return Ok(Some(0)) };
        let mut counters = self.counters.lock();
        if !counters.contains_key(kind) {
            let objects = Arc::new(Mutex::new(None));
            let task = tokio::spawn(self.clone().watch(resource, objects.clone())).abort_handle();
            counters.insert(kind.to_owned(), Counter { task, objects });
        }
        drop(counters);
        Ok(known(self).flatten())
    }

    async fn watch(
        self: Arc<Self>,
        resource: Resource,
        objects: Arc<Mutex<Option<HashMap<String, BTreeSet<String>>>>>,
    ) {
        let target = Target { path: resource.path("", ""), selection: Selection::default(), metadata_only: true };
        let reflector = Reflector::<Counted>::new(self.context.client.clone(), target);
        reflector
            .run(|change| {
                let key = |counted: Counted| {
                    let key = ObjectKey::of_meta(&counted.metadata);
                    (key.namespace, key.name)
                };
                let mut guard = objects.lock();
                match change {
                    Change::Replaced(all) => {
                        let mut fresh: HashMap<String, BTreeSet<String>> = HashMap::new();
                        for (namespace, name) in all.into_iter().map(key) {
                            fresh.entry(namespace).or_default().insert(name);
                        }
                        *guard = Some(fresh);
                        drop(guard);
                        for quota in self.quotas.list() {
                            self.queue.add(ObjectKey::of(quota.as_ref()));
                        }
                    }
                    Change::Applied(object) => {
                        let (namespace, name) = key(object);
                        guard.get_or_insert_default().entry(namespace).or_default().insert(name);
                    }
                    Change::Deleted(object) => {
                        let (namespace, name) = key(object);
                        if let Some(names) = guard.get_or_insert_default().get_mut(&namespace) {
                            names.remove(&name);
                        }
                        drop(guard);
                        self.enqueue_namespace(&namespace);
                    }
                }
            })
            .await;
    }
}

fn hard(quota: &ResourceQuota) -> Option<&BTreeMap<String, Text>> {
    quota.spec.as_ref().and_then(|spec| spec.hard.as_ref())
}

/// Whether an object may have given something back. What it takes was charged by admission before it was there.
fn frees<T, U: PartialEq>(event: &Event<T>, usage: impl Fn(&T) -> U) -> bool {
    match event {
        Event::Added(_) => false,
        Event::Updated { old, new } => usage(old) != usage(new),
        Event::Deleted(_) => true,
    }
}

fn add_all(total: &mut BTreeMap<String, Quantity>, more: BTreeMap<String, Quantity>) {
    for (name, quantity) in more {
        match total.get_mut(&name) {
            Some(present) => present.add(&quantity),
            None => {
                total.insert(name, quantity);
            }
        }
    }
}

/// A pod that is in nobody's way.
pub(crate) fn is_counted(pod: &Pod) -> bool {
    !pods::is_terminated(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_count_waits_for_charges_to_end_and_not_for_ever() {
        let now = Instant::now();
        let mut charges = Charges { last: Some(now), waits: 0 };
        assert!(!charges.wait(now + QUIET));
        let waited = (0..100).map(|_| {
            charges.last = Some(now);
            charges.wait(now)
        });
        assert_eq!(waited.take_while(|waits| *waits).count(), WAITS_MAX);
    }
}
