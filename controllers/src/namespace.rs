//! Deletes what is in a namespace that is to go, the counterpart of `pkg/controller/namespace`.
//!
//! Pods go first, as other objects may be what keeps them in check; then everything that discovery finds. When nothing
//! is left the `kubernetes` finalizer is taken off, and the server removes the namespace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::{drive, feed};
use coxswain_client::informer::Listed;
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Client, Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use http::Method;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use crate::Context;
use crate::common::discovery::{self, Resource};
use crate::common::{owners, time};

const WORKERS: usize = 10;
const FINALIZER: &str = "kubernetes";
/// A request that was admitted before the namespace was marked may still be under way for this long.
const SETTLE: Duration = Duration::from_millis(500);
/// Objects with finalizers are looked at again after this.
const FINALIZER_ESTIMATE_SECONDS: i64 = 15;

struct Controller {
    context: Context,
    namespaces: Store<Namespace>,
    queue: WorkQueue<ObjectKey>,
}

pub async fn run(context: Context) {
    let namespaces: Informer<Namespace> = context.informers.informer();
    namespaces.synced().await;
    let controller =
        Arc::new(Controller { namespaces: namespaces.store(), queue: WorkQueue::new(), context: context.clone() });
    let queue = &controller.queue;
    let feeds = feed(&namespaces, |event| {
        let namespace = event.object();
        if owners::is_deleting(&namespace.metadata) && !matches!(event, Event::Deleted(_)) {
            queue.add_after(ObjectKey::of(namespace.as_ref()), SETTLE);
        }
    });
    drive(
        "namespace",
        controller.clone(),
        controller.queue.clone(),
        context.workers(WORKERS),
        context.shutdown.clone(),
        |controller, key| async move { controller.reconcile(key).await },
        feeds,
    )
    .await;
}

/// The metadata of objects whose kind does not matter.
#[derive(Deserialize)]
struct MetaList {
    #[serde(default)]
    metadata: Listed,
    items: Option<Vec<Meta>>,
}

#[derive(Deserialize)]
struct Meta {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Option<Spec>,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(rename = "terminationGracePeriodSeconds")]
    grace_seconds: Option<i64>,
}

/// What a pass over the namespace left.
#[derive(Default)]
struct Remains {
    /// Objects left of each resource, and finalizers on them.
    resources: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    discovery_failure: Option<String>,
    failures: Vec<String>,
    /// Seconds until it is worth looking again.
    estimate: i64,
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let client = &self.context.client;
        let Some(namespace) = self.namespaces.get_key(&key) else { return Ok(()) };
        if !owners::is_deleting(&namespace.metadata) {
            return Ok(());
        }
        let mut namespace = match errors::ignore_not_found(objects::get::<Namespace>(client, &key).await)? {
            Some(fresh) if fresh.metadata.uid == namespace.metadata.uid => fresh,
            _ => return Ok(()),
        };
        let has_finalizer = |namespace: &Namespace| {
            let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
            finalizers.is_some_and(|finalizers| finalizers.iter().any(|found| found == FINALIZER))
        };
        if !has_finalizer(&namespace) {
            return Ok(());
        }
        let remains = self.delete_content(&key.name).await;
        let status = namespace.status.get_or_insert_default();
        let before = status.clone();
        status.phase = Some("Terminating".to_owned());
        set_conditions(status, &remains);
        if *status != before {
            match errors::ignore_not_found(objects::update_status(client, &namespace).await)? {
                Some(updated) => namespace = updated,
                None => return Ok(()),
            }
        }
        if let Some(failure) = remains.discovery_failure.as_ref().or(remains.failures.first()) {
            tracing::debug!(namespace = key.name, failure, "content could not be deleted");
            self.queue.add_rate_limited(key);
            return Ok(());
        }
        if !remains.resources.is_empty() {
            // Most things take less than the estimate: soon at first, then ever less often up to half of it.
            let waited = namespace
                .metadata
                .deletion_timestamp
                .as_ref()
                .map_or(Duration::ZERO, |since| time::since(since, jiff::Timestamp::now()));
            let most = Duration::from_secs(remains.estimate.max(0) as u64 / 2 + 1);
            self.queue.add_after(key, (waited / 2).clamp(Duration::from_secs(1), most));
            return Ok(());
        }
        if let Some(spec) = &mut namespace.spec {
            spec.finalizers.get_or_insert_default().retain(|found| found != FINALIZER);
        }
        errors::ignore_not_found(objects::update_subresource(client, &namespace, "finalize").await).map(drop)
    }

    async fn delete_content(&self, namespace: &str) -> Remains {
        let client = &self.context.client;
        let mut remains = Remains::default();
        let mut resources = match discovery::discover(client).await {
            Ok(found) => {
                if !found.failed.is_empty() {
                    remains.discovery_failure = Some(format!(
                        "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
                        found.failed.len(),
                        found.failed.join(", ")
                    ));
                }
                found.resources
            }
            Err(error) => {
                remains.discovery_failure = Some(errors::message(&error));
                Vec::new()
            }
        };
        resources.retain(|resource| resource.namespaced && resource.can("delete"));
        let (pods, others): (Vec<_>, Vec<_>) =
            resources.into_iter().partition(|resource| resource.group.is_empty() && resource.name == "pods");
        for resource in pods {
            self.delete_all(namespace, &resource, &mut remains).await;
        }
        if remains.resources.is_empty() && remains.failures.is_empty() {
            for resource in others {
                self.delete_all(namespace, &resource, &mut remains).await;
            }
        }
        remains
    }

    async fn delete_all(&self, namespace: &str, resource: &Resource, remains: &mut Remains) {
        if let Err(error) = self.try_delete_all(namespace, resource, remains).await
            && !errors::is_not_found(&error)
            && !matches!(&error, kube::Error::Api(status) if status.code == 405)
        {
            remains.failures.push(errors::message(&error));
        }
    }

    async fn try_delete_all(
        &self,
        namespace: &str,
        resource: &Resource,
        remains: &mut Remains,
    ) -> Result<(), kube::Error> {
        let client = &self.context.client;
        let path = resource.path(namespace, "");
        let background = Deletion { propagation: Some("Background"), ..Deletion::default() };
        // Most resources have nothing in most namespaces; a list is cheaper than a deletion.
        let listable = resource.can("list");
        if listable && list(client, &path).await?.is_empty() {
            return Ok(());
        }
        if resource.can("deletecollection") {
            objects::delete_at(client, &path, &background).await?;
        } else if listable {
            for item in list(client, &path).await? {
                let path = resource.path(namespace, owners::name(&item.metadata));
                errors::ignore_not_found(objects::delete_at(client, &path, &background).await)?;
            }
        }
        if !listable {
            return Ok(());
        }
        let left = list(client, &path).await?;
        if left.is_empty() {
            return Ok(());
        }
        remains.resources.insert(resource.group_resource_with_dot(), left.len());
        let mut estimate = 0;
        for item in &left {
            for finalizer in item.metadata.finalizers.iter().flatten() {
                *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
                estimate = estimate.max(FINALIZER_ESTIMATE_SECONDS);
            }
            if resource.name == "pods" {
                estimate = estimate.max(item.spec.as_ref().and_then(|spec| spec.grace_seconds).unwrap_or(30));
            }
        }
        if estimate == 0 {
            remains.failures.push(format!(
                "unexpected items still remain in namespace: {namespace} for gvr: {}, Resource={}",
                resource.api_version(),
                resource.name
            ));
        }
        remains.estimate = remains.estimate.max(estimate);
        Ok(())
    }
}

impl Resource {
    /// `NAME.GROUP` with the dot also where the group is empty, as this controller's messages have it.
    fn group_resource_with_dot(&self) -> String {
        format!("{}.{}", self.name, self.group)
    }
}

async fn list(client: &Client, path: &str) -> Result<Vec<Meta>, kube::Error> {
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let query = if token.is_empty() { "limit=500".to_owned() } else { format!("limit=500&continue={token}") };
        let page: MetaList = objects::request(client, Method::GET, &format!("{path}?{query}"), "", None).await?;
        items.extend(page.items.unwrap_or_default());
        if page.metadata.continue_token.is_empty() {
            return Ok(items);
        }
        token = page.metadata.continue_token;
    }
}

fn set_conditions(status: &mut NamespaceStatus, remains: &Remains) {
    let counted = |counts: &BTreeMap<String, usize>, verb: &str| {
        let parts: Vec<_> =
            counts.iter().map(|(name, count)| format!("{name} {verb} {count} resource instances")).collect();
        parts.join(", ")
    };
    let mut set = |kind: &str, bad: Option<(&str, String)>, good: (&str, &str)| {
        let is_bad = bad.is_some();
        let (reason, message) = bad.unwrap_or_else(|| (good.0, good.1.to_owned()));
        let text = if is_bad { "True" } else { "False" };
        let conditions = status.conditions.get_or_insert_default();
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(present) => {
                if present.status != text {
                    present.status = text.to_owned();
                    present.last_transition_time = Some(time::now());
                }
                present.reason = Some(reason.to_owned());
                present.message = Some(message);
            }
            None => conditions.push(NamespaceCondition {
                type_: kind.to_owned(),
                status: text.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: Some(time::now()),
            }),
        }
    };
    set(
        "NamespaceDeletionDiscoveryFailure",
        remains.discovery_failure.clone().map(|message| ("DiscoveryFailed", message)),
        ("ResourcesDiscovered", "All resources successfully discovered"),
    );
    set(
        "NamespaceDeletionGroupVersionParsingFailure",
        None,
        ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
    );
    set(
        "NamespaceDeletionContentFailure",
        (!remains.failures.is_empty()).then(|| {
            let total = remains.failures.len();
            let message =
                format!("Failed to delete all resource types, {total} remaining: {}", remains.failures.join(", "));
            ("ContentDeletionFailed", message)
        }),
        ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
    );
    set(
        "NamespaceContentRemaining",
        (!remains.resources.is_empty()).then(|| {
            let message = format!("Some resources are remaining: {}", counted(&remains.resources, "has"));
            ("SomeResourcesRemain", message)
        }),
        ("ContentRemoved", "All content successfully removed"),
    );
    set(
        "NamespaceFinalizersRemaining",
        (!remains.finalizers.is_empty()).then(|| {
            let message = format!(
                "Some content in the namespace has finalizers remaining: {}",
                counted(&remains.finalizers, "in")
            );
            ("SomeFinalizersRemain", message)
        }),
        ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
    );
}
