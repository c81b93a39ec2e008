//! The endpoints of the `kubernetes` Service: the API servers that are alive (upstream: `pkg/controlplane/reconcilers`).
//!
//! By lease, every server keeps a key under `masterleases/` in the store, which the store deletes when it has not been
//! written for a while; the keys that are there are the endpoints. A server that ends takes its own away, so that nobody
//! is sent to it any more. By count, servers only add themselves, and push others out when there are too many.

use super::send;
use crate::objects::Objects;
use crate::server::{Config, EndpointReconciler};
use crate::store::storage_status;
use coxswain_api::{Value, json};
use coxswain_storage::{Error, Expect, ListOptions, Op, Storage, Write};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// How long a server that has gone without a word is still an endpoint.
const LEASE: Duration = Duration::from_secs(15);
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

fn prefix(config: &Config) -> String {
    format!("{}masterleases/", config.layout.root())
}

/// Says that this server is alive, and brings the endpoints up to date.
pub(super) async fn reconcile(objects: &dyn Objects, storage: &dyn Storage, config: &Config) -> Result<(), String> {
    let own = config.advertise_address.to_string();
    match config.endpoint_reconciler {
        EndpointReconciler::None => Ok(()),
        EndpointReconciler::Lease => {
            renew(storage, config, &own).await?;
            let alive = alive(storage, config).await?;
            if alive.is_empty() {
                return Err(
                    "no master IPs were listed in storage, refusing to erase all endpoints for the kubernetes Service"
                        .into(),
                );
            }
            write(objects, config, &alive).await
        }
        EndpointReconciler::MasterCount(count) => {
            let (_, current) = send(objects, "GET", &format!("{ENDPOINTS}/kubernetes"), None).await?;
            let mut all: Vec<String> = addresses(&current).into_iter().collect();
            if !all.contains(&own) {
                all.push(own.clone());
                all.sort();
            }
            // Of too many, those that follow this server stay, so that all servers agree after a while.
            let at = all.iter().position(|ip| *ip == own).unwrap_or(0);
            all.rotate_left(at);
            all.truncate(count.max(1));
            write(objects, config, &all.into_iter().collect()).await
        }
    }
}

/// Takes this server out of the endpoints: it is about to end.
pub(super) async fn leave(objects: &dyn Objects, storage: &dyn Storage, config: &Config) -> Result<(), String> {
    if config.endpoint_reconciler != EndpointReconciler::Lease {
        return Ok(());
    }
    let key = format!("{}{}", prefix(config), config.advertise_address).into();
    let batch = vec![Write { key, expect: Expect::Any, op: Op::Delete }];
    storage.commit(batch).await.map_err(|e| storage_status(e).to_string())?;
    let left = alive(storage, config).await?;
    write(objects, config, &left).await
}

/// The value is what upstream's servers keep there, so that theirs and ours can stand side by side.
async fn renew(storage: &dyn Storage, config: &Config, own: &str) -> Result<(), String> {
    let value = json!({
        "kind": "Endpoints", "apiVersion": "v1", "metadata": {"name": ""}, "subsets": [{"addresses": [{"ip": own}]}],
    });
    let op = Op::Put { value: value.to_string().into(), ttl: Some(LEASE) };
    let write = Write { key: format!("{}{own}", prefix(config)).into(), expect: Expect::Any, op };
    match storage.commit(vec![write]).await {
        Ok(_) => Ok(()),
        Err(error @ Error::Moved(_)) => Err(error.to_string()),
        Err(error) => Err(format!("the lease of this server could not be renewed: {error}")),
    }
}

async fn alive(storage: &dyn Storage, config: &Config) -> Result<BTreeSet<String>, String> {
    let prefix = prefix(config);
    let page = storage.list(&prefix, ListOptions::default()).await.map_err(|e| e.to_string())?;
    let names = page.entries.iter().map(|entry| &entry.key[prefix.len()..]);
    Ok(names.filter(|name| name.parse::<IpAddr>().is_ok()).map(str::to_owned).collect())
}

fn addresses(endpoints: &Value) -> BTreeSet<String> {
    let subsets = endpoints.get("subsets").and_then(Value::as_array).into_iter().flatten();
    let all = subsets.filter_map(|s| s.get("addresses")?.as_array()).flatten();
    all.filter_map(|a| a.get("ip")?.as_str().map(str::to_owned)).collect()
}

async fn write(objects: &dyn Objects, config: &Config, alive: &BTreeSet<String>) -> Result<(), String> {
    let ports = json!([{"name": "https", "port": config.secure_port, "protocol": "TCP"}]);
    let addresses: Vec<Value> = alive.iter().map(|ip| json!({"ip": ip})).collect();
    let subsets = if alive.is_empty() { json!([]) } else { json!([{"addresses": addresses, "ports": ports}]) };
    let endpoints = json!({
        "kind": "Endpoints", "apiVersion": "v1",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": subsets,
    });
    super::replace(objects, ENDPOINTS, &endpoints, "/subsets").await?;
    let family = |ip: &String| ip.contains(':') != config.advertise_address.is_ipv4();
    let each = |ip: &String| json!({"addresses": [ip], "conditions": {"ready": true}});
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if config.advertise_address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": alive.iter().filter(|ip| family(ip)).map(each).collect::<Vec<_>>(),
        "ports": ports,
    });
    super::replace(objects, SLICES, &slice, "/endpoints").await
}
