//! Making and deleting pods on behalf of an owner, with the events that tell of it.

use std::future::Future;

use coxswain_client::events::{self, EventRecorder};
use coxswain_client::informer::Object;
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Client, ObjectKey, errors, kube};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::owners;

/// The first batch of creations; each batch that succeeds is followed by one twice as large.
const SLOW_START_BATCH: usize = 1;
/// Requests of one batch in flight.
const REQUESTS_MAX: usize = 50;

/// A pod as the template says, named after its owner.
pub fn pod_from_template(template: &PodTemplateSpec, owner: &ObjectMeta, reference: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: owner.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            generate_name: Some(name_prefix(owners::name(owner))),
            owner_references: Some(vec![reference]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// What generated names begin with: the owner's name and a dash, unless that could not begin a pod's name.
fn name_prefix(owner: &str) -> String {
    let prefix = format!("{owner}-");
    if prefix.len() <= 253 { prefix } else { owner.to_owned() }
}

/// Creates a pod and tells of it. A namespace that is going away is no event.
pub async fn create<O: Object>(
    client: &Client,
    recorder: &EventRecorder,
    owner: &O,
    pod: &Pod,
) -> Result<Pod, kube::Error> {
    match objects::create(client, pod).await {
        Ok(created) => {
            let name = owners::name(&created.metadata);
            recorder.normal(&events::reference(owner), "SuccessfulCreate", format!("Created pod: {name}"));
            Ok(created)
        }
        Err(error) => {
            if !errors::has_cause(&error, "NamespaceTerminating") {
                let message = format!("Error creating: {}", errors::message(&error));
                recorder.warning(&events::reference(owner), "FailedCreate", message);
            }
            Err(error)
        }
    }
}

/// Deletes a pod and tells of it; one that is gone already is no failure.
pub async fn delete<O: Object>(
    client: &Client,
    recorder: &EventRecorder,
    owner: &O,
    pod: &ObjectMeta,
) -> Result<(), kube::Error> {
    let name = owners::name(pod);
    match objects::delete::<Pod>(client, &ObjectKey::of_meta(pod), &Deletion::default()).await {
        Ok(()) => {
            recorder.normal(&events::reference(owner), "SuccessfulDelete", format!("Deleted pod: {name}"));
            Ok(())
        }
        Err(error) if errors::is_not_found(&error) => Ok(()),
        Err(error) => {
            let message = format!("Error deleting: {}", errors::message(&error));
            recorder.warning(&events::reference(owner), "FailedDelete", message);
            Err(error)
        }
    }
}

/// Runs `count` requests in batches that double while they succeed, so that a quota or an admission rule that rejects one
/// pod does not see thousands of attempts. Says how many succeeded, and the first failure.
pub async fn slow_start<F, Fut>(count: usize, request: F) -> (usize, Option<kube::Error>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), kube::Error>>,
{
    let mut done = 0;
    let mut batch = SLOW_START_BATCH.min(count);
    while batch > 0 {
        let results: Vec<_> =
            futures::stream::iter(done..done + batch).map(&request).buffer_unordered(REQUESTS_MAX).collect().await;
        let mut first = None;
        let mut succeeded = 0;
        for result in results {
            match result {
                Ok(()) => succeeded += 1,
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        done += succeeded;
        if first.is_some() {
            return (done, first);
        }
        batch = (batch * 2).min(count - done);
    }
    (done, None)
}

/// Runs a request for each item, a bounded number at a time; returns the first failure.
pub async fn for_each<T, F, Fut>(items: Vec<T>, request: F) -> Result<(), kube::Error>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = Result<(), kube::Error>>,
{
    let mut results = futures::stream::iter(items).map(request).buffer_unordered(REQUESTS_MAX);
    let mut first = Ok(());
    while let Some(result) = results.next().await {
        if first.is_ok() {
            first = result;
        }
    }
    first
}
