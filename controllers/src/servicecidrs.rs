//! Says that a range of service addresses may be used, and keeps one that is to go until no address of it is in use. The
//! counterpart of `pkg/controller/servicecidrs`.

use std::net::IpAddr;
use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::objects::{self, PatchKind};
use coxswain_client::{Client, Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR, ServiceCIDRStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::json;

use crate::Context;
use crate::common::{owners, time};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const READY: &str = "Ready";

struct State {
    client: Client,
    ranges: Store<ServiceCIDR>,
    addresses: Store<IPAddress>,
}

pub async fn run(context: Context) {
    let ranges: Informer<ServiceCIDR> = context.informers.informer();
    let addresses: Informer<IPAddress> = context.informers.informer();
    tokio::join!(ranges.synced(), addresses.synced());
    let queue = WorkQueue::<ObjectKey>::new();
    let state =
        Arc::new(State { client: context.client.clone(), ranges: ranges.store(), addresses: addresses.store() });
    let feeds = async {
        tokio::join!(
            feed(&ranges, |event| {
                if !matches!(event, Event::Deleted(_)) {
                    queue.add(ObjectKey::of(event.object().as_ref()));
                }
            }),
            feed(&addresses, |event| {
                // An address that is given back may be the last of a range that is to go.
                if matches!(event, Event::Deleted(_)) {
                    for range in ranges.store().list().iter().filter(|range| owners::is_deleting(&range.metadata)) {
                        queue.add(ObjectKey::of(range.as_ref()));
                    }
                }
            }),
        )
    };
    let reconcile = |state: Arc<State>, key: ObjectKey| async move { state.reconcile(key).await };
    drive("service-cidr", state.clone(), queue.clone(), 5, context.shutdown.clone(), reconcile, feeds).await;
}

fn networks(range: &ServiceCIDR) -> Vec<IpNet> {
    let cidrs = range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|cidr| cidr.parse().ok()).collect()
}

impl State {
    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(range) = self.ranges.get_key(&key) else { return Ok(()) };
        let finalizers = range.metadata.finalizers.clone().unwrap_or_default();
        let protected = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
        if owners::is_deleting(&range.metadata) {
            if !protected {
                return Ok(());
            }
            if self.is_needed(&range) {
                let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new \
                               ServiceCIDR";
                return self.set_ready(&range, "False", "Terminating", message).await;
            }
            let kept: Vec<_> = finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
            return self.set_finalizers(&key, &range, json!(kept)).await;
        }
        if !protected {
            let mut all = finalizers;
            all.push(FINALIZER.to_owned());
            return self.set_finalizers(&key, &range, json!(all)).await;
        }
        self.set_ready(&range, "True", "", "Kubernetes Service CIDR is ready").await
    }

    /// Whether an address in use is in this range and in no other that stays.
    fn is_needed(&self, range: &ServiceCIDR) -> bool {
        let own = networks(range);
        let others: Vec<IpNet> = self
            .ranges
            .list()
            .iter()
            .filter(|other| other.metadata.uid != range.metadata.uid && !owners::is_deleting(&other.metadata))
            .flat_map(|other| networks(other))
            .collect();
        self.addresses.list().iter().any(|address| {
            owners::name(&address.metadata).parse::<IpAddr>().is_ok_and(|ip| {
                own.iter().any(|network| network.contains(&ip)) && !others.iter().any(|network| network.contains(&ip))
            })
        })
    }

    async fn set_finalizers(
        &self,
        key: &ObjectKey,
        range: &ServiceCIDR,
        finalizers: serde_json::Value,
    ) -> Result<(), kube::Error> {
        let metadata = json!({"resourceVersion": range.metadata.resource_version, "finalizers": finalizers});
        let patch = json!({"metadata": metadata});
        let patched = objects::patch::<ServiceCIDR>(&self.client, key, "", PatchKind::Merge, &patch).await;
        errors::ignore_not_found(patched).map(drop)
    }

    async fn set_ready(
        &self,
        range: &ServiceCIDR,
        state: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), kube::Error> {
        let mut conditions = range.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let present = conditions.iter().find(|condition| condition.type_ == READY);
        if present.is_some_and(|present| present.status == state && present.reason == reason) {
            return Ok(());
        }
        conditions.retain(|condition| condition.type_ != READY);
        conditions.push(Condition {
            type_: READY.to_owned(),
            status: state.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: None,
            last_transition_time: time::now(),
        });
        let status = ServiceCIDRStatus { conditions: Some(conditions) };
        let updated = ServiceCIDR { status: Some(status), ..range.clone() };
        errors::ignore_not_found(objects::update_status(&self.client, &updated).await).map(drop)
    }
}
