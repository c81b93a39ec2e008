//! The lease by which the node says that it is alive (upstream: `component-helpers/apimachinery/lease`).

use crate::kubelet::Kubelet;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::Api;
use kube::api::PostParams;
use std::time::Duration;

const NAMESPACE: &str = "kube-node-lease";
const RETRY: Duration = Duration::from_secs(1);

/// Renews four times within the lease's duration, for ever.
pub(super) async fn renew(kubelet: &Kubelet) {
    let seconds = kubelet.config.settings.node_lease_duration_seconds;
    let interval = Duration::from_secs(seconds.max(1) as u64) / 4;
    let api: Api<Lease> = Api::namespaced(kubelet.client.clone(), NAMESPACE);
    let name = &kubelet.config.node_name;
    let mut held: Option<Lease> = None;
    loop {
        let renewed = MicroTime(Timestamp::now());
        let result = match held.take() {
            Some(mut lease) => {
                lease.spec.get_or_insert_default().renew_time = Some(renewed);
                api.replace(name, &PostParams::default(), &lease).await
            }
            None => match api.get_opt(name).await {
                Ok(Some(mut lease)) => {
                    let spec = lease.spec.get_or_insert_default();
                    spec.renew_time = Some(renewed);
                    spec.holder_identity = Some(name.clone());
                    spec.lease_duration_seconds = Some(seconds);
                    api.replace(name, &PostParams::default(), &lease).await
                }
                Ok(None) => {
                    let spec = LeaseSpec {
                        holder_identity: Some(name.clone()),
                        lease_duration_seconds: Some(seconds),
                        renew_time: Some(renewed),
                        ..Default::default()
                    };
                    let mut lease = Lease { spec: Some(spec), ..Default::default() };
                    lease.metadata.name = Some(name.clone());
                    lease.metadata.namespace = Some(NAMESPACE.into());
                    lease.metadata.owner_references =
                        kubelet.node_object().and_then(|n| n.metadata.uid.clone()).map(|uid| {
                            vec![OwnerReference {
                                api_version: "v1".into(),
                                kind: "Node".into(),
                                name: name.clone(),
                                uid,
                                ..Default::default()
                            }]
                        });
                    api.create(&PostParams::default(), &lease).await
                }
                Err(e) => Err(e),
            },
        };
        match result {
            Ok(lease) => {
                held = Some(lease);
                // Hundreds of nodes started together must not renew together for ever.
                tokio::time::sleep(interval + interval.mul_f64(rand::random_range(0.0..0.04))).await;
            }
            Err(error) => {
                tracing::debug!(node = name, %error, "the lease could not be renewed");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
