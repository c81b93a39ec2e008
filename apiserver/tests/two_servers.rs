//! Two API servers on one store, Postgres and etcd: what one has acknowledged the other knows, nothing is given twice, and
//! one after the other can be restarted without a client noticing.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use coxswain_api::{Value, json};
use coxswain_apiserver::request::User;
use coxswain_apiserver::server::{Config, Server};
use coxswain_storage::address::Address;
use http::Request;
use http_body_util::{BodyExt, Full};
use parking_lot::RwLock;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tower::ServiceExt;

/// A database of the test's own, which ends with it.
enum Backend {
    Etcd(coxswain_testing::etcd::Etcd),
    Postgres(coxswain_testing::postgres::Postgres),
}

impl Backend {
    fn address(&self) -> String {
        match self {
            Backend::Etcd(etcd) => etcd.address(),
            Backend::Postgres(postgres) => postgres.address("coxswain"),
        }
    }
}

async fn start(backend: &Backend, number: u8) -> Result<Server> {
    let address = Address::parse(&backend.address())?;
    let begun = Instant::now();
    let storage = loop {
        match address.open(Duration::from_secs(300)).await {
            Ok(storage) => break storage,
            Err(error) if begun.elapsed() > Duration::from_secs(40) => bail!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    let config = Config {
        service_cluster_ip_range: "10.96.0.0/24".into(),
        service_node_port_range: (30_000, 30_099),
        advertise_address: [192, 0, 2, number].into(),
        hostname: Some(format!("host-{number}")),
        ..Config::default()
    };
    let mut server = Server::start(config, storage).await?;
    server.ready().await;
    Ok(server)
}

async fn send(server: &Server, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
    let user = User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() };
    let body = Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default()));
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json").body(body)?;
    let response = server.service_for(user).oneshot(request).await?;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok((code, serde_json::from_slice(&bytes).unwrap_or_default()))
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"k": "v"}})
}

async fn endpoints(server: &Server) -> Result<BTreeSet<String>> {
    let (_, slice) =
        send(server, "GET", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes", None).await?;
    let (_, endpoints) = send(server, "GET", "/api/v1/namespaces/default/endpoints/kubernetes", None).await?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let of_slice = slice["endpoints"].as_array().into_iter().flatten().map(|e| text(&e["addresses"][0])).collect();
    let subsets = endpoints["subsets"][0]["addresses"].as_array().into_iter().flatten();
    let of_endpoints: BTreeSet<String> = subsets.map(|a| text(&a["ip"])).collect();
    ensure!(of_endpoints == of_slice, "{of_endpoints:?} and {of_slice:?}");
    Ok(of_endpoints)
}

/// What the one has acknowledged, the other knows at once.
async fn reads_are_consistent(servers: &[&Server; 2]) -> Result<()> {
    for round in 0..40 {
        let (here, there) = (servers[round % 2], servers[(round + 1) % 2]);
        let name = format!("seen-{round}");
        let (code, made) = send(here, "POST", MAPS, Some(&map(&name))).await?;
        ensure!(code == 201, "{code} {made}");
        let (code, read) = send(there, "GET", &format!("{MAPS}/{name}"), None).await?;
        ensure!(code == 200 && read["metadata"] == made["metadata"], "round {round}: {code} {read}");
        let (_, list) = send(there, "GET", MAPS, None).await?;
        let names = list["items"].as_array().into_iter().flatten();
        ensure!(names.filter(|o| o["metadata"]["name"] == *name).count() == 1, "round {round}: not in the list");
        // From whatever the cache has; but never from before what is asked for.
        let revision = made["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        for query in ["resourceVersion=0".to_owned(), format!("resourceVersion={revision}")] {
            let (code, list) = send(there, "GET", &format!("{MAPS}?{query}"), None).await?;
            ensure!(code == 200, "{query}: {code} {list}");
            let seen = list["items"].as_array().is_some_and(|l| l.iter().any(|o| o["metadata"]["name"] == *name));
            ensure!(seen || query == "resourceVersion=0", "{query}: not in the list");
        }
        let (code, answer) = send(there, "DELETE", &format!("{MAPS}/{name}"), None).await?;
        ensure!(code == 200, "{code} {answer}");
        let (code, _) = send(here, "GET", &format!("{MAPS}/{name}"), None).await?;
        ensure!(code == 404, "round {round}: {code} after the deletion");
    }
    Ok(())
}

/// Both servers give addresses and ports at the same time, out of ranges that are nearly used up.
async fn nothing_is_given_twice(servers: &[&Server; 2]) -> Result<()> {
    let services = "/api/v1/namespaces/default/services";
    let create = |number: usize| async move {
        let service = json!({
            "kind": "Service", "apiVersion": "v1", "metadata": {"name": format!("s-{number}")},
            "spec": {"type": "NodePort", "ports": [{"port": 80}]},
        });
        send(servers[number % 2], "POST", services, Some(&service)).await
    };
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for answer in futures::future::join_all((0..90).map(create)).await {
        let (code, service) = answer?;
        ensure!(code == 201, "{code} {service}");
        let address = service["spec"]["clusterIP"].as_str().context("an address")?.to_owned();
        let port = service["spec"]["ports"][0]["nodePort"].as_i64().context("a port")?;
        ensure!(addresses.insert(address.clone()), "{address} was given twice");
        ensure!(ports.insert(port), "{port} was given twice");
    }
    Ok(())
}

type Slots = [RwLock<Option<Arc<Server>>>; 2];

/// A client as any client library is: it turns to the other server when one has gone or says that it cannot.
async fn persistently(
    slots: &Slots,
    turn: usize,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Value)> {
    let mut last = None;
    for attempt in 0..200 {
        let server = slots[(turn + attempt) % 2].read().clone();
        if let Some(server) = server {
            let (code, answer) = send(&server, method, path, body).await?;
            if !(code == 429 || code >= 500) {
                return Ok((code, answer));
            }
            last = Some((code, answer));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("{method} {path} failed for good: {last:?}")
}

async fn restarts_are_not_noticed(backend: &Backend, servers: [Server; 2]) -> Result<[Server; 2]> {
    let slots: Arc<Slots> = Arc::new(servers.map(|server| RwLock::new(Some(Arc::new(server)))));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..6)
        .map(|client| {
            let (slots, stop) = (slots.clone(), stop.clone());
            tokio::spawn(async move {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("c{client}-{count}");
                    let (code, answer) = persistently(&slots, count, "POST", MAPS, Some(&map(&name))).await?;
                    // One that failed may have been done.
                    ensure!(code == 201 || code == 409, "{code} {answer}");
                    let path = format!("{MAPS}/{name}");
                    let (code, answer) = persistently(&slots, count + 1, "GET", &path, None).await?;
                    ensure!(code == 200, "{name} was acknowledged: {code} {answer}");
                    count += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(count)
            })
        })
        .collect();
    for (slot, number) in slots.iter().zip(1..) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut server = slot.write().take().context("the server")?;
        server.begin_shutdown();
        // Requests under way hold it for a moment.
        let owned = loop {
            match Arc::try_unwrap(server) {
                Ok(owned) => break owned,
                Err(shared) => server = shared,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        owned.stop().await;
        let other = slots[number as usize % 2].read().clone().context("the other server")?;
        let left = endpoints(&other).await?;
        ensure!(!left.contains(&format!("192.0.2.{number}")), "it has gone and is an endpoint still: {left:?}");
        drop(other);
        *slot.write() = Some(Arc::new(start(backend, number).await?));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let mut requests = 0;
    for client in clients {
        requests += client.await??;
    }
    ensure!(requests > 20, "only {requests} rounds");
    let slots = Arc::try_unwrap(slots).ok().context("nobody else has them")?;
    let [Some(first), Some(second)] = slots.map(|slot| slot.into_inner().and_then(|s| Arc::try_unwrap(s).ok())) else {
        bail!("the servers are still in use");
    };
    Ok([first, second])
}

/// Whichever server says that a definition is established, either serves its objects from then on.
async fn established_kinds_are_served(servers: &[&Server; 2]) -> Result<()> {
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    for round in 0..20 {
        let (here, there) = (servers[round % 2], servers[(round + 1) % 2]);
        let group = format!("g{round}.example.org");
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("boats.{group}")},
            "spec": {
                "group": group, "scope": "Cluster", "names": {"plural": "boats", "kind": "Boat"},
                "versions": [{
                    "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
                }],
            },
        });
        let (code, made) = send(here, "POST", definitions, Some(&definition)).await?;
        ensure!(code == 201, "{code} {made}");
        let established = |definition: &Value| {
            let mut conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
            conditions.any(|c| c["type"] == "Established" && c["status"] == "True")
        };
        let begun = Instant::now();
        while !established(&send(there, "GET", &format!("{definitions}/boats.{group}"), None).await?.1) {
            ensure!(begun.elapsed() < Duration::from_secs(20), "round {round}: it was never established");
        }
        for server in [there, here] {
            let (code, list) = send(server, "GET", &format!("/apis/{group}/v1/boats"), None).await?;
            ensure!(code == 200, "round {round}: established, but {code} {list}");
            let (code, list) = send(server, "GET", &format!("/apis/{group}/v1"), None).await?;
            ensure!(code == 200 && list["resources"][0]["name"] == "boats", "round {round}: {code} {list}");
        }
    }
    Ok(())
}

async fn two_servers(backend: Backend) -> Result<()> {
    let servers = [start(&backend, 1).await?, start(&backend, 2).await?];
    let both: BTreeSet<String> = ["192.0.2.1".to_owned(), "192.0.2.2".to_owned()].into();
    for server in &servers {
        ensure!(endpoints(server).await? == both, "{:?}", endpoints(server).await?);
    }
    reads_are_consistent(&[&servers[0], &servers[1]]).await?;
    nothing_is_given_twice(&[&servers[0], &servers[1]]).await?;
    established_kinds_are_served(&[&servers[0], &servers[1]]).await?;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases\
                  ?labelSelector=apiserver.kubernetes.io/identity%3Dkube-apiserver";
    let due = BTreeSet::from(["host-1", "host-2"].map(coxswain_apiserver::server::identity::name));
    // Each server writes its own lease soon after it is ready.
    let mut rounds = 0;
    loop {
        let (_, list) = send(&servers[0], "GET", leases, None).await?;
        let items = list["items"].as_array().into_iter().flatten();
        let names: BTreeSet<_> = items.filter_map(|l| l["metadata"]["name"].as_str().map(str::to_owned)).collect();
        if names == due {
            break;
        }
        rounds += 1;
        ensure!(rounds < 150, "{names:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let [first, second] = restarts_are_not_noticed(&backend, servers).await?;
    ensure!(endpoints(&first).await? == both);
    second.stop().await;
    ensure!(endpoints(&first).await?.len() == 1, "the one that ended is no endpoint any more");
    first.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_postgres_are_as_one() -> Result<()> {
    two_servers(Backend::Postgres(coxswain_testing::postgres::Postgres::start())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_etcd_are_as_one() -> Result<()> {
    two_servers(Backend::Etcd(coxswain_testing::etcd::Etcd::start())).await
}
