//! Gives Services of type LoadBalancer their load balancer, and takes it away again before they are gone (upstream:
//! `cloud-provider/controllers/service`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::{drive, feed};
use coxswain_client::objects::{self as requests, PatchKind};
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, events};
use k8s_openapi::api::core::v1::{LoadBalancerStatus, Node, Service};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Context;
use crate::objects::{has_label, name, taints};
use crate::provider::{Error, LoadBalancer};

pub(crate) const CLEANUP_FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
const RETRY_DELAY_MIN: Duration = Duration::from_secs(5);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(300);
const NODE_NAMES_SHOWN_MAX: usize = 20;

struct State {
    context: Context,
    services: Store<Service>,
    nodes: Store<Node>,
    queue: WorkQueue<ObjectKey>,
    /// The Services whose load balancers are ours, the nodes that each leads to (by provider id), and when each failed.
    known: Mutex<HashMap<ObjectKey, Known>>,
}

struct Known {
    service: Arc<Service>,
    /// Node names and provider ids at the last synchronisation.
    hosts: Option<BTreeMap<String, String>>,
    retry: Option<Retry>,
}

#[derive(Clone, Copy)]
struct Retry {
    delay: Duration,
    due: Instant,
}

pub(crate) async fn run(context: Context) {
    if context.provider.load_balancer().is_none() {
        return;
    }
    let services: Informer<Service> = context.informers.informer();
    let nodes: Informer<Node> = context.informers.informer();
    tokio::join!(services.synced(), nodes.synced());
    let queue = WorkQueue::<ObjectKey>::new();
    let state = Arc::new(State {
        services: services.store(),
        nodes: nodes.store(),
        queue: queue.clone(),
        known: Mutex::default(),
        context: context.clone(),
    });
    let mut seen: HashMap<ObjectKey, Arc<Service>> = HashMap::new();
    let mut hosts = state.hosts().1;
    let feeds = async {
        tokio::join!(
            feed(&services, |event| {
                let (service, key) = (event.object().clone(), ObjectKey::of(event.object().as_ref()));
                let before = match &event {
                    Event::Deleted(_) => seen.remove(&key),
                    _ => seen.insert(key.clone(), service.clone()),
                };
                let concerns = match (&event, before) {
                    // Without a finalizer nobody held the Service back, and its load balancer may be left.
                    (Event::Deleted(_), _) => wants_load_balancer(&service),
                    (_, None) => wants_load_balancer(&service) || needs_cleanup(&service),
                    (_, Some(before)) => needs_update(&before, &service) || needs_cleanup(&service),
                };
                if concerns {
                    queue.add(key);
                }
            }),
            feed(&nodes, |_| {
                let now = state.hosts().1;
                if now != hosts {
                    hosts = now;
                    let all: Vec<ObjectKey> = state.known.lock().keys().cloned().collect();
                    all.into_iter().for_each(|key| queue.add(key));
                }
            }),
        )
    };
    let reconcile = |state: Arc<State>, key: ObjectKey| async move {
        state.sync(key).await;
        Ok::<(), Error>(())
    };
    let workers = context.config.concurrent_service_syncs;
    drive("service-lb", state.clone(), queue.clone(), workers, context.shutdown.clone(), reconcile, feeds).await;
}

/// Whoever names a class does not want the load balancer that comes by default.
pub(crate) fn wants_load_balancer(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none())
}

fn has_finalizer(service: &Service) -> bool {
    service.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == CLEANUP_FINALIZER)
}

fn needs_cleanup(service: &Service) -> bool {
    let balanced = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
    has_finalizer(service) && (service.metadata.deletion_timestamp.is_some() || !balanced)
}

/// What of a Service a load balancer depends on.
fn needs_update(before: &Service, now: &Service) -> bool {
    if !wants_load_balancer(before) && !wants_load_balancer(now) {
        return false;
    }
    let part = |service: &Service| {
        let spec = service.spec.clone().unwrap_or_default();
        json!([
            wants_load_balancer(service),
            spec.load_balancer_source_ranges,
            spec.ports,
            spec.session_affinity,
            spec.session_affinity_config,
            spec.load_balancer_ip,
            spec.external_ips,
            service.metadata.annotations,
            service.metadata.uid,
            spec.external_traffic_policy,
            spec.health_check_node_port,
            spec.ip_families.map(|families| families.len()),
        ])
    };
    part(before) != part(now)
}

/// Whether load balancers may lead to a node.
fn is_host(node: &Node) -> bool {
    let excluded = has_label(node, EXCLUDED) && {
        let value = node.metadata.labels.as_ref().and_then(|labels| labels.get(EXCLUDED));
        !value.is_some_and(|value| matches!(value.as_str(), "0" | "f" | "F" | "false" | "False" | "FALSE"))
    };
    !excluded
        && node.metadata.deletion_timestamp.is_none()
        && !taints(node).iter().any(|taint| taint.key == TO_BE_DELETED)
}

/// Node names as messages show them.
fn shown(nodes: &[&Node]) -> String {
    let names: BTreeSet<&str> = nodes.iter().take(NODE_NAMES_SHOWN_MAX).map(|node| name(node)).collect();
    let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    if nodes.len() > NODE_NAMES_SHOWN_MAX {
        names.push(format!("<{} more>", nodes.len() - NODE_NAMES_SHOWN_MAX));
    }
    format!("[{}]", names.join(" "))
}

impl State {
    /// The nodes that load balancers lead to, and what of them counts.
    fn hosts(&self) -> (Vec<Arc<Node>>, BTreeMap<String, String>) {
        let nodes: Vec<Arc<Node>> = self.nodes.list().into_iter().filter(|node| is_host(node)).collect();
        let provider_id = |node: &Node| node.spec.as_ref().and_then(|spec| spec.provider_id.clone());
        let ids = nodes.iter().map(|node| (name(node).to_owned(), provider_id(node).unwrap_or_default())).collect();
        (nodes, ids)
    }

    /// Handles a key and plans its next try itself, as failures wait longer here than elsewhere (5 s to 5 min).
    async fn sync(&self, key: ObjectKey) {
        let waiting = self.known.lock().get(&key).and_then(|known| known.retry);
        if let Some(retry) = waiting.filter(|retry| retry.due > Instant::now()) {
            // Changes of the Service count at once; its own retry comes when it is due.
            self.queue.add_after(key.clone(), retry.due - Instant::now());
        }
        let Err(error) = self.reconcile(&key).await else {
            if let Some(known) = self.known.lock().get_mut(&key) {
                known.retry = None;
            }
            return;
        };
        let delay = match (&error, waiting) {
            (Error::Retry { after, .. }, _) => *after,
            (_, Some(retry)) => (retry.delay * 2).min(RETRY_DELAY_MAX),
            (_, None) => RETRY_DELAY_MIN,
        };
        tracing::warn!(service = %key, %error, seconds = delay.as_secs(), "cannot bring a load balancer up to date");
        if let Some(known) = self.known.lock().get_mut(&key) {
            known.retry = Some(Retry { delay, due: Instant::now() + delay });
        }
        self.queue.add_after(key, delay);
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<(), Error> {
        let provider = self.context.provider.clone();
        let Some(balancer) = provider.load_balancer() else { return Ok(()) };
        let former = self.known.lock().get(key).map(|known| known.service.clone());
        let Some(service) = self.services.get_key(key) else {
            if let Some(former) = former {
                self.delete_left_behind(balancer, &former).await?;
                self.known.lock().remove(key);
            }
            return Ok(());
        };
        if let Some(former) = former.as_ref().filter(|former| former.metadata.uid != service.metadata.uid) {
            self.delete_left_behind(balancer, former).await?;
            self.known.lock().remove(key);
        }
        if wants_load_balancer(&service) && !needs_cleanup(&service) {
            // What changed may be nodes only.
            let unchanged = former.as_ref().is_some_and(|former| !needs_update(former, &service));
            let in_sync =
                unchanged && self.known.lock().get(key).is_some_and(|k| k.hosts.is_some() && k.retry.is_none());
            self.remember(key, &service);
            if in_sync {
                return self.update_hosts(balancer, key, &service).await;
            }
        }
        let outcome = self.ensure_or_delete(balancer, key, &service).await;
        if let Err(error) = &outcome {
            let message = format!("Error syncing load balancer: {error}");
            self.context.recorder.warning(&events::reference(service.as_ref()), "SyncLoadBalancerFailed", message);
        }
        outcome
    }

    fn remember(&self, key: &ObjectKey, service: &Arc<Service>) {
        let mut known = self.known.lock();
        match known.get_mut(key) {
            Some(known) => known.service = service.clone(),
            None => {
                known.insert(key.clone(), Known { service: service.clone(), hosts: None, retry: None });
            }
        }
    }

    async fn ensure_or_delete(
        &self,
        balancer: &dyn LoadBalancer,
        key: &ObjectKey,
        service: &Arc<Service>,
    ) -> Result<(), Error> {
        let cluster = &self.context.config.cluster_name;
        let about = events::reference(service.as_ref());
        let normal = |reason: &str, message: &str| self.context.recorder.normal(&about, reason, message);
        if !wants_load_balancer(service) || needs_cleanup(service) {
            let present = balancer.get(cluster, service).await;
            let present = present
                .map_err(|e| Error::Other(format!("failed to check if load balancer exists before cleanup: {e}")))?;
            if present.is_some() {
                normal("DeletingLoadBalancer", "Deleting load balancer");
                match balancer.ensure_deleted(cluster, service).await {
                    Ok(()) | Err(Error::ImplementedElsewhere) => {}
                    Err(error) => return Err(Error::Other(format!("failed to delete load balancer: {error}"))),
                }
            }
            self.set_finalizer(service, false)
                .await
                .map_err(|e| Error::Other(format!("failed to remove load balancer cleanup finalizer: {e}")))?;
            normal("DeletedLoadBalancer", "Deleted load balancer");
            self.known.lock().remove(key);
            return self.write_status(service, &LoadBalancerStatus::default()).await;
        }
        normal("EnsuringLoadBalancer", "Ensuring load balancer");
        self.set_finalizer(service, true)
            .await
            .map_err(|e| Error::Other(format!("failed to add load balancer cleanup finalizer: {e}")))?;
        let (nodes, ids) = self.hosts();
        if nodes.is_empty() {
            let message = "There are no available nodes for LoadBalancer";
            self.context.recorder.warning(&about, "UnAvailableLoadBalancer", message);
        }
        if let Some(known) = self.known.lock().get_mut(key) {
            known.hosts = Some(ids);
        }
        let hosts: Vec<&Node> = nodes.iter().map(AsRef::as_ref).collect();
        let status = match balancer.ensure(cluster, service, &hosts).await {
            Ok(status) => status,
            Err(Error::ImplementedElsewhere) => return Ok(()),
            Err(Error::Retry { message, after }) => {
                return Err(Error::Retry { message: format!("failed to ensure load balancer: {message}"), after });
            }
            Err(error) => return Err(Error::Other(format!("failed to ensure load balancer: {error}"))),
        };
        normal("EnsuredLoadBalancer", "Ensured load balancer");
        self.write_status(service, &status).await
    }

    /// Leads an unchanged load balancer to the nodes of now.
    async fn update_hosts(
        &self,
        balancer: &dyn LoadBalancer,
        key: &ObjectKey,
        service: &Arc<Service>,
    ) -> Result<(), Error> {
        let cluster = &self.context.config.cluster_name;
        let (nodes, ids) = self.hosts();
        let changed = match self.known.lock().get_mut(key) {
            Some(known) if known.hosts.as_ref() != Some(&ids) => {
                known.hosts = Some(ids);
                true
            }
            _ => false,
        };
        if !changed {
            return Ok(());
        }
        let about = events::reference(service.as_ref());
        let hosts: Vec<&Node> = nodes.iter().map(AsRef::as_ref).collect();
        let recorder = &self.context.recorder;
        match balancer.update(cluster, service, &hosts).await {
            Ok(()) if hosts.is_empty() => {
                recorder.warning(&about, "UnAvailableLoadBalancer", "There are no available nodes for LoadBalancer");
                Ok(())
            }
            Ok(()) => {
                recorder.normal(&about, "UpdatedLoadBalancer", "Updated load balancer with new hosts");
                Ok(())
            }
            Err(Error::ImplementedElsewhere) => Ok(()),
            Err(_) if matches!(balancer.get(cluster, service).await, Ok(None)) => Ok(()),
            Err(error) => {
                let message = format!(
                    "Error updating load balancer with new hosts {} [node names limited, total number of nodes: {}], error: {error}",
                    shown(&hosts),
                    hosts.len()
                );
                recorder.warning(&about, "UpdateLoadBalancerFailed", message);
                Err(error)
            }
        }
    }

    /// Deletes the load balancer of a Service that was gone before its finalizer could hold it.
    async fn delete_left_behind(&self, balancer: &dyn LoadBalancer, service: &Service) -> Result<(), Error> {
        if !wants_load_balancer(service) {
            return Ok(());
        }
        let about = events::reference(service);
        let recorder = &self.context.recorder;
        // With the finalizer all was said and done before the Service went.
        if has_finalizer(service) && service.metadata.deletion_timestamp.is_some() {
            return balancer.ensure_deleted(&self.context.config.cluster_name, service).await;
        }
        recorder.normal(&about, "DeletingLoadBalancer", "Deleting load balancer");
        if let Err(error) = balancer.ensure_deleted(&self.context.config.cluster_name, service).await {
            recorder.warning(&about, "DeleteLoadBalancerFailed", format!("Error deleting load balancer: {error}"));
            return Err(error);
        }
        recorder.normal(&about, "DeletedLoadBalancer", "Deleted load balancer");
        Ok(())
    }

    async fn set_finalizer(&self, service: &Service, wanted: bool) -> Result<(), Error> {
        if has_finalizer(service) == wanted {
            return Ok(());
        }
        let patch = if wanted {
            json!({"metadata": {"finalizers": [CLEANUP_FINALIZER]}})
        } else {
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [CLEANUP_FINALIZER]}})
        };
        self.patch(service, &patch).await
    }

    async fn write_status(&self, service: &Service, status: &LoadBalancerStatus) -> Result<(), Error> {
        let present = service.status.as_ref().and_then(|status| status.load_balancer.clone()).unwrap_or_default();
        let ingress = |status: &LoadBalancerStatus| status.ingress.clone().filter(|list| !list.is_empty());
        if ingress(&present) == ingress(status) {
            return Ok(());
        }
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress(status)}}});
        self.patch(service, &patch)
            .await
            .map_err(|e| Error::Other(format!("failed to update load balancer status: {e}")))
    }

    /// Finalizers go by the status subresource too, as upstream's do: that is what the controller's role allows.
    async fn patch(&self, service: &Service, patch: &Value) -> Result<(), Error> {
        let key = ObjectKey::of(service);
        let patched =
            requests::patch::<Service>(&self.context.client, &key, "status", PatchKind::Strategic, patch).await;
        errors::ignore_not_found(patched)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(json: Value) -> Service {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_what_a_load_balancer_depends_on_counts() {
        let plain =
            service(json!({"metadata": {"uid": "1"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}));
        let mut labelled = plain.clone();
        labelled.metadata.labels = Some(BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        assert!(!needs_update(&plain, &labelled));
        let other_port =
            service(json!({"metadata": {"uid": "1"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 81}]}}));
        assert!(needs_update(&plain, &other_port));
        let classed = service(json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": "x/y"}}));
        assert!(!wants_load_balancer(&classed));
        assert!(needs_update(&plain, &classed));
    }

    #[test]
    fn a_finalizer_without_need_is_cleaned_up() {
        let left = service(json!({"metadata": {"finalizers": [CLEANUP_FINALIZER]}, "spec": {"type": "ClusterIP"}}));
        assert!(needs_cleanup(&left));
        let used = service(json!({"metadata": {"finalizers": [CLEANUP_FINALIZER]}, "spec": {"type": "LoadBalancer"}}));
        assert!(!needs_cleanup(&used));
    }

    #[test]
    fn nodes_are_hosts_unless_they_are_kept_out() {
        let node = |json: Value| serde_json::from_value::<Node>(json).unwrap();
        assert!(is_host(&node(json!({}))));
        assert!(!is_host(&node(json!({"metadata": {"labels": {EXCLUDED: ""}}}))));
        assert!(is_host(&node(json!({"metadata": {"labels": {EXCLUDED: "false"}}}))));
        assert!(!is_host(&node(json!({"spec": {"taints": [{"key": TO_BE_DELETED, "effect": "NoSchedule"}]}}))));
    }
}
