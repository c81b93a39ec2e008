//! Handing an etcd over, from our server to upstream's and back: keys, encodings and versions in the store.

#[path = "handover/etcd.rs"]
mod etcd;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use coxswain_api::codec::{self, Format};
use coxswain_api::features::Gates;
use coxswain_api::{Value, json};
use coxswain_apiserver::request::User;
use coxswain_apiserver::server::{Config, Elsewhere, Server};
use coxswain_apiserver::store::Layout;
use coxswain_storage::{Expect, Op, Storage, Write};
use etcd::Etcd;
use http::Request;
use http_body_util::{BodyExt, Full};
use std::sync::Arc;
use tower::ServiceExt;

struct Cluster {
    server: Server,
    etcd: Etcd,
    storage: Arc<dyn Storage>,
}

impl Cluster {
    /// A server on an etcd that holds `before`.
    async fn start(prefix: &str, before: &[(&str, &[u8])]) -> Result<Self> {
        // Every kind that upstream has is served.
        Gates::parse(&["AllAlpha=true,AllBeta=true"])?.install();
        let layout = Layout::new(prefix, Format::Protobuf);
        let (etcd, storage) = Etcd::start(layout.root()).await?;
        for (key, value) in before {
            let op = Op::Put { value: Bytes::copy_from_slice(value), ttl: None };
            storage.commit(vec![Write { key: (*key).into(), expect: Expect::Absent, op }]).await?;
        }
        let config = Config {
            layout,
            service_cluster_ip_range: "10.96.0.0/16".into(),
            runtime_config: vec![("api/all".into(), true)],
            ..Config::default()
        };
        let mut server = Server::start(config, storage.clone()).await?;
        server.ready().await;
        Ok(Self { server, etcd, storage })
    }

    async fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let user = User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() };
        let body = Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default()));
        let request =
            Request::builder().method(method).uri(path).header("content-type", "application/json").body(body)?;
        let response = self.server.service_for(user).oneshot(request).await?;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok((code, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    async fn create(&self, path: &str, object: Value) -> Result<Value> {
        let (code, made) = self.request("POST", path, Some(&object)).await?;
        ensure!(code == 201, "creating in {path}: {made}");
        Ok(made)
    }

    /// Waits until a path is served.
    async fn get(&self, path: &str) -> Result<Value> {
        let mut last = (0, Value::Null);
        for _ in 0..100 {
            last = self.request("GET", path, None).await?;
            if last.0 == 200 {
                return Ok(last.1);
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        anyhow::bail!("GET {path}: {} {}", last.0, last.1)
    }
}

fn definition() -> Value {
    json!({"metadata": {"name": "boats.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "boats", "singular": "boat", "kind": "Boat", "listKind": "BoatList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
            {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_we_write_upstream_reads() -> Result<()> {
    let cluster = Cluster::start("/registry", &[]).await?;
    let pod_spec = json!({"containers": [{"name": "c", "image": "i"}]});
    let labels = json!({"a": "b"});
    let template = json!({"metadata": {"labels": labels}, "spec": pod_spec});
    let named = |spec: Value| json!({"metadata": {"name": "x"}, "spec": spec});
    let core = "/api/v1/namespaces/default";
    let made =
        cluster.create(&format!("{core}/configmaps"), json!({"metadata": {"name": "x"}, "data": {"k": "v"}})).await?;
    let objects: &[(&str, Value)] = &[
        ("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "x"}})),
        ("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "x"}, "data": {"k": "dg=="}})),
        ("/api/v1/namespaces/default/endpoints", json!({"metadata": {"name": "x"}})),
        ("/api/v1/namespaces/default/replicationcontrollers", named(json!({"selector": labels, "template": template}))),
        ("/api/v1/nodes", json!({"metadata": {"name": "x"}})),
        (
            "/apis/apps/v1/namespaces/default/deployments",
            named(json!({"selector": {"matchLabels": labels}, "template": template})),
        ),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
            named(json!({"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}})),
        ),
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases", named(json!({"holderIdentity": "me"}))),
        (
            "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers",
            named(
                json!({"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "x", "apiVersion": "apps/v1"}, "targetCPUUtilizationPercentage": 50}),
            ),
        ),
        (
            "/apis/events.k8s.io/v1/namespaces/default/events",
            json!({"metadata": {"name": "x", "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z", "action": "a", "reason": "r", "type": "Normal", "reportingController": "c.example.com", "reportingInstance": "i", "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}}),
        ),
        ("/api/v1/namespaces/default/services", named(json!({"ports": [{"port": 80}], "type": "NodePort"}))),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles", json!({"metadata": {"name": "x"}, "rules": []})),
        (
            "/apis/apiregistration.k8s.io/v1/apiservices",
            json!({"metadata": {"name": "v1.x.example.com"}, "spec": {"group": "x.example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100}}),
        ),
        ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition()),
    ];
    for (path, object) in objects {
        cluster.create(path, object.clone()).await.with_context(|| format!("{object}"))?;
    }
    cluster.get("/apis/example.com/v1/boats").await?;
    let boat = json!({"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "x"}, "spec": {"a": 1}});
    cluster.create("/apis/example.com/v1/namespaces/default/boats", boat).await?;

    // The key, the encoding, and the version in the store.
    let protobuf = b"k8s\0".as_slice();
    let json = b"{".as_slice();
    for (key, begin, version) in [
        ("/registry/configmaps/default/x", protobuf, "v1"),
        ("/registry/serviceaccounts/default/x", protobuf, "v1"),
        ("/registry/secrets/default/x", protobuf, "v1"),
        ("/registry/services/endpoints/default/x", protobuf, "v1"),
        ("/registry/services/specs/default/x", protobuf, "v1"),
        ("/registry/controllers/default/x", protobuf, "v1"),
        ("/registry/minions/x", protobuf, "v1"),
        ("/registry/namespaces/default", protobuf, "v1"),
        ("/registry/events/default/x", protobuf, "v1"),
        ("/registry/deployments/default/x", protobuf, "apps/v1"),
        ("/registry/ingress/default/x", protobuf, "networking.k8s.io/v1"),
        ("/registry/leases/default/x", protobuf, "coordination.k8s.io/v1"),
        ("/registry/horizontalpodautoscalers/default/x", protobuf, "autoscaling/v2"),
        ("/registry/clusterroles/x", protobuf, "rbac.authorization.k8s.io/v1"),
        ("/registry/ranges/servicenodeports", protobuf, "v1"),
        ("/registry/servicecidrs/kubernetes", protobuf, "networking.k8s.io/v1"),
        ("/registry/apiextensions.k8s.io/customresourcedefinitions/boats.example.com", json, "apiextensions.k8s.io/v1"),
        ("/registry/apiregistration.k8s.io/apiservices/v1.x.example.com", json, "apiregistration.k8s.io/v1"),
        ("/registry/example.com/boats/default/x", json, "example.com/v1"),
    ] {
        let value = cluster.etcd.get(key).with_context(|| format!("{key} is not in etcd"))?;
        ensure!(value.starts_with(begin), "{key} is encoded otherwise");
        let read: Value = match key.contains("boats/") {
            true => serde_json::from_slice(&value)?,
            false => serde_json::from_slice(&codec::convert(&value, Format::Json)?)?,
        };
        ensure!(read["apiVersion"] == version, "{key} is stored in {}", read["apiVersion"]);
        ensure!(read["metadata"].get("resourceVersion").is_none() && read["metadata"].get("selfLink").is_none());
    }
    // What is stored is what was answered, but for the revision.
    let stored =
        codec::convert(&cluster.etcd.get("/registry/configmaps/default/x").context("the object")?, Format::Json)?;
    let mut answered = made;
    answered["metadata"].as_object_mut().context("metadata")?.remove("resourceVersion");
    assert_eq!(serde_json::from_slice::<Value>(&stored)?, answered);
    // Events go by themselves; nothing else does.
    assert!(cluster.etcd.has_lease("/registry/events/default/x"));
    assert!(!cluster.etcd.has_lease("/registry/configmaps/default/x"));
    // The address of the service was taken in upstream's way.
    let service = cluster.get(&format!("{core}/services/x")).await?;
    let ip = service["spec"]["clusterIP"].as_str().context("an address")?;
    assert!(cluster.etcd.get(&format!("/registry/ipaddresses/{ip}")).is_some());
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("a node port")?;
    assert_eq!(node_ports(&cluster.etcd.get("/registry/ranges/servicenodeports").context("the range")?)?, [port]);
    Ok(())
}

/// The ports that upstream's object says are taken: the number in it has a bit for each.
fn node_ports(stored: &[u8]) -> Result<Vec<u64>> {
    let object: Value = serde_json::from_slice(&codec::convert(stored, Format::Json)?)?;
    assert_eq!(object["range"], "30000-32767");
    let data = STANDARD.decode(object["data"].as_str().context("data")?)?;
    let bits =
        data.iter().rev().enumerate().flat_map(|(i, byte)| (0..8).map(move |bit| (8 * i + bit, byte >> bit & 1)));
    Ok(bits.filter(|(_, bit)| *bit == 1).map(|(offset, _)| 30_000 + offset as u64).collect())
}

/// As an upstream server writes it.
fn range_allocation(ports: &[u64]) -> Result<Vec<u8>> {
    let mut data = vec![0u8; 346];
    for port in ports {
        let offset = (port - 30_000) as usize;
        data[345 - offset / 8] |= 1 << (offset % 8);
    }
    let first = data.iter().position(|byte| *byte != 0).unwrap_or(data.len());
    let object = json!({"kind": "RangeAllocation", "apiVersion": "v1", "metadata": {"creationTimestamp": null},
        "range": "30000-32767", "data": STANDARD.encode(&data[first..])});
    Ok(codec::convert(object.to_string().as_bytes(), Format::Protobuf)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_ports_are_shared_with_servers_of_upstream() -> Result<()> {
    let key = "/registry/ranges/servicenodeports";
    let cluster = Cluster::start("/registry", &[(key, &range_allocation(&[30_500])?)]).await?;
    let take = async |name: &str, port: u64| {
        let service = json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}});
        cluster.request("POST", "/api/v1/namespaces/default/services", Some(&service)).await
    };
    let refused =
        |answer: (u16, Value)| answer.0 == 422 && answer.1.to_string().contains("provided port is already allocated");
    assert!(refused(take("a", 30_500).await?), "what another server took before is taken");
    assert_eq!(take("a", 30_501).await?.0, 201);
    // Another server takes one while this one runs, and gives one back.
    let (entry, _) = cluster.storage.get(key, None).await?;
    let op = Op::Put { value: range_allocation(&[30_501, 30_502])?.into(), ttl: None };
    let expect = Expect::At(entry.context("the range")?.modified);
    cluster.storage.commit(vec![Write { key: key.into(), expect, op }]).await?;
    assert!(refused(take("b", 30_502).await?), "what another server took meanwhile is taken");
    assert_eq!(take("b", 30_500).await?.0, 201, "what another server gave back is free");
    let stored = async || node_ports(&cluster.etcd.get(key).context("the range")?);
    assert_eq!(stored().await?, [30_500, 30_501, 30_502]);
    assert_eq!(cluster.request("DELETE", "/api/v1/namespaces/default/services/a", None).await?.0, 200);
    assert_eq!(stored().await?, [30_500, 30_502]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_may_be_kept_in_an_etcd_of_its_own() -> Result<()> {
    let ((_main_etcd, main), (own_etcd, own)) = (Etcd::start("/registry/").await?, Etcd::start("/registry/").await?);
    let elsewhere = Elsewhere { resources: vec![("".into(), "events".into())], storage: own.clone() };
    let config =
        Config { layout: Layout::new("/registry", Format::Protobuf), elsewhere: vec![elsewhere], ..Config::default() };
    let mut server = Server::start(config, main.clone()).await?;
    server.ready().await;
    let cluster = Cluster { server, etcd: own_etcd, storage: own };
    let events = "/api/v1/namespaces/default/events";
    let involved = json!({"kind": "Pod", "name": "p", "namespace": "default"});
    let made = cluster.create(events, json!({"metadata": {"name": "x"}, "involvedObject": involved})).await?;
    cluster.create("/api/v1/namespaces/default/configmaps", json!({"metadata": {"name": "x"}})).await?;
    assert!(cluster.etcd.get("/registry/events/default/x").is_some_and(|value| value.starts_with(b"k8s\0")));
    assert!(cluster.etcd.get("/registry/configmaps/default/x").is_none());
    assert!(main.get("/registry/events/default/x", None).await?.0.is_none());
    assert!(main.get("/registry/configmaps/default/x", None).await?.0.is_some());
    // Lists and updates are at that etcd's revisions.
    let list = cluster.get(events).await?;
    assert_eq!(list["items"][0]["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let (code, changed) = cluster
        .request(
            "PUT",
            &format!("{events}/x"),
            Some(&json!({"metadata": {"name": "x", "labels": {"a": "b"}}, "involvedObject": involved})),
        )
        .await?;
    assert_eq!(code, 200, "{changed}");
    assert_eq!(cluster.request("DELETE", &format!("{events}/x"), None).await?.0, 200);
    assert_eq!(cluster.get(events).await?["items"], json!([]));
    Ok(())
}

/// Bytes as upstream's encoder makes them: every text of the metadata is there, empty or not.
fn config_map(name: &str, key: &str, value: &str) -> Vec<u8> {
    let field = |number: u8, body: &[u8]| [&[number << 3 | 2, body.len() as u8], body].concat();
    let empty = |number: u8| vec![number << 3 | 2, 0];
    let meta: Vec<u8> = [
        field(1, name.as_bytes()),
        empty(2),
        field(3, b"default"),
        empty(4),
        field(5, b"0a1b2c3d-0000-4000-8000-000000000001"),
        empty(6),
        vec![7 << 3, 0],
        // The seconds of the first moment of 2026, seven bits a byte.
        field(8, &[8, 0x80, 0xf2, 0xd6, 0xca, 0x06]),
    ]
    .concat();
    let entry = [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
    let message = [field(1, &meta), field(2, &entry)].concat();
    let kind = [field(1, b"v1"), field(2, b"ConfigMap")].concat();
    [b"k8s\0".to_vec(), field(1, &kind), field(2, &message), empty(3), empty(4)].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_upstream_wrote_is_served() -> Result<()> {
    let definition = br#"{"kind":"CustomResourceDefinition","apiVersion":"apiextensions.k8s.io/v1beta1","metadata":{"name":"boats.example.com","uid":"0a1b2c3d-0000-4000-8000-000000000002","generation":1,"creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"group":"example.com","version":"v1","names":{"plural":"boats","singular":"boat","kind":"Boat","listKind":"BoatList"},"scope":"Namespaced","validation":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}},"versions":[{"name":"v1","served":true,"storage":true}],"conversion":{"strategy":"None"},"preserveUnknownFields":false},"status":{"conditions":[{"type":"NamesAccepted","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z","reason":"NoConflicts","message":"no conflicts found"},{"type":"Established","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z","reason":"InitialNamesAccepted","message":"the initial names have been accepted"}],"acceptedNames":{"plural":"boats","singular":"boat","kind":"Boat","listKind":"BoatList"},"storedVersions":["v1"]}}
"#;
    let boat = br#"{"apiVersion":"example.com/v1","kind":"Boat","metadata":{"creationTimestamp":"2026-01-01T00:00:00Z","generation":1,"name":"x","namespace":"default","uid":"0a1b2c3d-0000-4000-8000-000000000003"},"spec":{"name":"a \u003c b"}}
"#;
    let autoscaler = br#"{"kind":"HorizontalPodAutoscaler","apiVersion":"autoscaling/v1","metadata":{"name":"x","namespace":"default","uid":"0a1b2c3d-0000-4000-8000-000000000004","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"scaleTargetRef":{"kind":"Deployment","name":"d","apiVersion":"apps/v1"},"maxReplicas":3,"targetCPUUtilizationPercentage":50},"status":{"currentReplicas":0,"desiredReplicas":0}}
"#;
    let cluster = Cluster::start(
        "/kubernetes.io/one",
        &[
            ("/kubernetes.io/one/configmaps/default/x", &config_map("x", "k", "v")),
            ("/kubernetes.io/one/apiextensions.k8s.io/customresourcedefinitions/boats.example.com", definition),
            ("/kubernetes.io/one/example.com/boats/default/x", boat),
            ("/kubernetes.io/one/horizontalpodautoscalers/default/x", autoscaler),
        ],
    )
    .await?;
    let map = cluster.get("/api/v1/namespaces/default/configmaps/x").await?;
    assert_eq!(map["data"], json!({"k": "v"}));
    assert_eq!(map["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(map["metadata"]["uid"], "0a1b2c3d-0000-4000-8000-000000000001");
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/boats.example.com";
    assert_eq!(cluster.get(path).await?["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["type"], "object");
    let boat = cluster.get("/apis/example.com/v1/namespaces/default/boats/x").await?;
    assert_eq!(boat["spec"]["name"], "a < b");
    let autoscaler = cluster.get("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/x").await?;
    assert_eq!(autoscaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    assert_eq!(autoscaler["spec"]["minReplicas"], 1);

    // An update that changes nothing leaves what is stored as upstream would store it, and brings the rest to that.
    let (_, same) = cluster.request("PUT", "/api/v1/namespaces/default/configmaps/x", Some(&map)).await?;
    assert_eq!(same["metadata"]["resourceVersion"], map["metadata"]["resourceVersion"]);
    let path = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/x";
    let (code, migrated) = cluster.request("PUT", path, Some(&autoscaler)).await?;
    assert_eq!(code, 200, "{migrated}");
    assert_ne!(migrated["metadata"]["resourceVersion"], autoscaler["metadata"]["resourceVersion"]);
    let stored = cluster.storage.get("/kubernetes.io/one/horizontalpodautoscalers/default/x", None).await?.0;
    let value = stored.context("the autoscaler")?.value;
    assert_eq!(
        (codec::detect(&value), codec::interpret(&value, Format::Protobuf)?.api_version.as_str()),
        (Format::Protobuf, "autoscaling/v2")
    );

    // Another server's write is seen, and so is its end.
    let key: Arc<str> = "/kubernetes.io/one/configmaps/default/y".into();
    let op = Op::Put { value: config_map("y", "k", "w").into(), ttl: None };
    cluster.storage.commit(vec![Write { key: key.clone(), expect: Expect::Absent, op }]).await?;
    assert_eq!(cluster.get("/api/v1/namespaces/default/configmaps/y").await?["data"]["k"], "w");
    cluster.storage.commit(vec![Write { key, expect: Expect::Any, op: Op::Delete }]).await?;
    assert_eq!(cluster.request("GET", "/api/v1/namespaces/default/configmaps/y", None).await?.0, 404);
    Ok(())
}

/// Every sample of a folder of upstream's API test data, put where upstream would store it, is served as its JSON says.
/// `dev/handover.sh` names the folder; without one there are no samples, and the two tests above stand alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_of_every_kind_are_served() -> Result<()> {
    let samples = match std::env::var_os("COXSWAIN_API_SAMPLES") {
        Some(folder) => samples::read(std::path::Path::new(&folder))?,
        None => samples::of_versions()?,
    };
    let cluster = Cluster::start("/registry", &[]).await?;
    let mut failed = Vec::new();
    let mut passed = 0;
    for sample in samples {
        match check_sample(&cluster, &sample).await {
            Ok(true) => passed += 1,
            Ok(false) => {}
            Err(why) => failed.push(format!("{}: {why:#}", sample.name)),
        }
    }
    println!("{passed} samples are served");
    ensure!(failed.is_empty() && passed > 0, "{} failed:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

#[path = "handover/samples.rs"]
mod samples;

/// False if its kind is not stored.
async fn check_sample(cluster: &Cluster, sample: &samples::Sample) -> Result<bool> {
    let text = |name: &str| sample.json[name].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let Some((store, served)) = samples::store_of(&cluster.server, group, version, &kind) else { return Ok(false) };
    let meta = |name: &str| sample.json["metadata"][name].as_str().unwrap_or_default().to_owned();
    let namespace = if store.hub.namespaced { meta("namespace") } else { String::new() };
    let key = store.key(&namespace, &meta("name"));
    let op = Op::Put { value: sample.stored.clone().into(), ttl: None };
    let write = Write { key: key.clone(), expect: Expect::Any, op };
    cluster.storage.commit(vec![write]).await?;
    let scope = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
    let gv = &served.group_version;
    let root = if gv.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", gv.group) };
    let path = format!("{root}/{}{scope}/{}/{}", gv.version, served.plural, meta("name"));
    let answer = cluster.request("GET", &path, None).await;
    // The next sample of this resource has the same name.
    let write = Write { key, expect: Expect::Any, op: Op::Delete };
    cluster.storage.commit(vec![write]).await?;
    let (code, answer) = answer?;
    ensure!(code == 200, "GET {path}: {code} {}", answer["message"]);
    if gv.version == version.into() && gv.group == group.into() {
        samples::covers(&samples::as_read(sample.json.clone()), &answer, "")?;
    } else {
        samples::covers(&sample.json["metadata"], &answer["metadata"], "metadata")?;
    }
    Ok(true)
}
