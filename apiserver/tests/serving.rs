//! A whole server on an embedded store, called in process and over TLS: lists, watches, custom resources and tunnels.

#[path = "serving/debug.rs"]
mod debug;
#[path = "serving/flaky.rs"]
mod flaky;
#[path = "serving/requests.rs"]
mod requests;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use coxswain_api::{Value, json};
use coxswain_apiserver::request::User;
use coxswain_apiserver::respond::Body;
use coxswain_apiserver::server::listen::tls_config;
use coxswain_apiserver::server::{Config, Server};
use coxswain_storage::Storage;
use coxswain_storage::embedded::{Embedded, Options};
use flaky::Flaky;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower::ServiceExt;

struct Cluster {
    server: Arc<Server>,
    _dir: tempfile::TempDir,
}

fn admin() -> User {
    User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() }
}

impl Cluster {
    async fn start() -> Result<Self> {
        Self::start_with(|_| {}).await
    }

    async fn start_with(edit: impl FnOnce(&mut Config)) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let storage = Arc::new(Embedded::open(&dir.path().join("data"), Options::default())?);
        Self::start_on(dir, storage, edit).await
    }

    async fn start_on(
        dir: tempfile::TempDir,
        storage: Arc<dyn Storage>,
        edit: impl FnOnce(&mut Config),
    ) -> Result<Self> {
        let mut config = Config {
            service_cluster_ip_range: "10.96.0.0/16".into(),
            advertise_address: [192, 0, 2, 2].into(),
            ..Config::default()
        };
        let tokens = dir.path().join("tokens.csv");
        std::fs::write(&tokens, "T,admin,admin-uid,\"system:masters\"\n")?;
        config.authentication.token_auth_file = Some(tokens);
        edit(&mut config);
        let mut server = Server::start(config, storage).await?;
        server.ready().await;
        Ok(Self { server: Arc::new(server), _dir: dir })
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Response<Body>> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        Ok(self.server.service_for(admin()).oneshot(request).await?)
    }

    async fn json(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let response = self.send(method, path, body).await?;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok((code, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    async fn config_map(&self, name: &str, labels: Value) -> Result<Value> {
        let object = json!({"metadata": {"name": name, "labels": labels}, "data": {"k": "v"}});
        let (code, made) = self.json("POST", "/api/v1/namespaces/default/configmaps", Some(&object)).await?;
        ensure!(code == 201, "creating {name}: {made}");
        Ok(made)
    }
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().into_iter().flatten().filter_map(|i| i["metadata"]["name"].as_str()).collect()
}

/// The next events of a watch, each as its kind and the object's name.
struct Events {
    body: Body,
    rest: Vec<u8>,
}

impl Events {
    async fn next(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame()).await;
            let frame = frame.context("no event came")?.context("the watch ended")??;
            self.rest.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
    }

    async fn kinds(&mut self, count: usize) -> Result<Vec<String>> {
        let mut kinds = Vec::new();
        for _ in 0..count {
            let event = self.next().await?;
            let name = event["object"]["metadata"]["name"].as_str().unwrap_or("-");
            kinds.push(format!("{} {name}", event["type"].as_str().unwrap_or_default()));
        }
        Ok(kinds)
    }
}

async fn watch(cluster: &Cluster, query: &str) -> Result<Events> {
    let path = format!("/api/v1/namespaces/default/configmaps?watch=1&{query}");
    let response = cluster.send("GET", &path, None).await?;
    ensure!(response.status() == 200, "watch was refused");
    Ok(Events { body: response.into_body(), rest: Vec::new() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_of_a_list_are_of_one_revision() -> Result<()> {
    let cluster = Cluster::start().await?;
    for i in 0..5 {
        cluster.config_map(&format!("c{i}"), json!({"p": "x"})).await?;
    }
    let base = "/api/v1/namespaces/default/configmaps?limit=2";
    let (_, first) = cluster.json("GET", base, None).await?;
    assert_eq!(names(&first), ["c0", "c1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // What happens meanwhile does not show on the later pages.
    cluster.json("DELETE", "/api/v1/namespaces/default/configmaps/c2", None).await?;
    cluster.config_map("c22", json!({})).await?;
    let next = format!("{base}&continue={}", first["metadata"]["continue"].as_str().context("a token")?);
    let (_, second) = cluster.json("GET", &next, None).await?;
    assert_eq!(names(&second), ["c2", "c3"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    // Nor does it on a list at that revision, while a fresh one has it all.
    let exact = format!(
        "/api/v1/namespaces/default/configmaps?resourceVersionMatch=Exact&resourceVersion={}",
        first["metadata"]["resourceVersion"].as_str().unwrap_or_default()
    );
    let (_, past) = cluster.json("GET", &exact, None).await?;
    assert_eq!(names(&past), ["c0", "c1", "c2", "c3", "c4"]);
    let (_, now) = cluster.json("GET", "/api/v1/namespaces/default/configmaps", None).await?;
    assert_eq!(names(&now), ["c0", "c1", "c22", "c3", "c4"]);
    let (code, refused) = cluster.json("GET", &format!("{base}&continue=%21"), None).await?;
    assert_eq!((code, refused["reason"].as_str()), (400, Some("BadRequest")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_sees_objects_come_and_go_through_its_selector() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.config_map("red", json!({"color": "red"})).await?;
    let blue = cluster.config_map("blue", json!({"color": "blue"})).await?;
    let since = blue["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let mut events = watch(&cluster, "labelSelector=color%3Dred&allowWatchBookmarks=true").await?;
    assert_eq!(events.kinds(1).await?, ["ADDED red"]);
    let bookmark = events.next().await?;
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let path = "/api/v1/namespaces/default/configmaps/blue";
    let (_, mut object) = cluster.json("GET", path, None).await?;
    for color in ["red", "blue"] {
        object["metadata"]["labels"]["color"] = color.into();
        let (code, changed) = cluster.json("PUT", path, Some(&object)).await?;
        ensure!(code == 200, "{changed}");
        object = changed;
    }
    assert_eq!(events.kinds(2).await?, ["ADDED blue", "DELETED blue"]);
    cluster.json("DELETE", "/api/v1/namespaces/default/configmaps/red", None).await?;
    assert_eq!(events.kinds(1).await?, ["DELETED red"]);
    // Another watch resumes from a revision and misses nothing.
    let mut resumed = watch(&cluster, &format!("resourceVersion={since}")).await?;
    assert_eq!(resumed.kinds(3).await?, ["MODIFIED blue", "MODIFIED blue", "DELETED red"]);
    let mut old = watch(&cluster, "resourceVersion=1").await?;
    let event = old.next().await?;
    assert_eq!((event["type"].as_str(), event["object"]["reason"].as_str()), (Some("ADDED"), None));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_resource_is_served_until_its_definition_is_gone() -> Result<()> {
    let cluster = Cluster::start().await?;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "n": {"type": "integer", "maximum": 5, "default": 1},
    }}}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.example.org"},
        "spec": {
            "group": "example.org", "scope": "Namespaced", "names": {"plural": "boats", "kind": "Boat"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (code, made) = cluster.json("POST", definitions, Some(&definition)).await?;
    ensure!(code == 201, "{made}");
    let boats = "/apis/example.org/v1/namespaces/default/boats";
    let mut tries = 0;
    while cluster.json("GET", boats, None).await?.0 != 200 {
        tries += 1;
        ensure!(tries < 100, "the resource was never served");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let boat = json!({"apiVersion": "example.org/v1", "kind": "Boat", "metadata": {"name": "a"}, "spec": {"x": 1}});
    let (code, made) = cluster.json("POST", boats, Some(&boat)).await?;
    assert_eq!((code, &made["spec"]), (201, &json!({"n": 1})));
    let bad = json!({"apiVersion": "example.org/v1", "kind": "Boat", "metadata": {"name": "b"}, "spec": {"n": 9}});
    assert_eq!(cluster.json("POST", boats, Some(&bad)).await?.0, 422);
    let definition = format!("{definitions}/boats.example.org");
    cluster.json("DELETE", &definition, None).await?;
    let mut tries = 0;
    while cluster.json("GET", &definition, None).await?.0 != 404 {
        tries += 1;
        ensure!(tries < 100, "the definition never went");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.json("GET", boats, None).await?.0, 404);
    Ok(())
}

/// A kubelet removes a pod that is marked with no grace left; whoever takes the last finalizer off lets an object go. Either may
/// happen between the two writes of a deletion, or beside another update, and all of them got what they asked for.
#[tokio::test]
async fn a_deletion_that_somebody_else_finishes_has_succeeded() -> Result<()> {
    let data = tempfile::tempdir()?;
    let inner = Embedded::open(&data.path().join("data"), Options::default())?;
    let storage = Arc::new(Flaky { raced: "/default/raced", ..Flaky::new(inner) });
    let cluster = Cluster::start_on(tempfile::tempdir()?, storage, |_| {}).await?;

    let account = json!({"metadata": {"name": "default"}});
    cluster.json("POST", "/api/v1/namespaces/default/serviceaccounts", Some(&account)).await?;
    let pod = json!({
        "metadata": {"name": "raced"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
    });
    let pods = "/api/v1/namespaces/default/pods";
    let (code, made) = cluster.json("POST", pods, Some(&pod)).await?;
    ensure!(code == 201, "{made}");
    let (code, last) = cluster.json("DELETE", &format!("{pods}/raced?gracePeriodSeconds=0"), None).await?;
    ensure!(code == 200, "{last}");
    assert_eq!(last["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(last["metadata"]["deletionGracePeriodSeconds"], 0);
    assert_eq!(cluster.json("GET", &format!("{pods}/raced"), None).await?.0, 404);

    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({"metadata": {"name": "raced", "finalizers": ["example.org/wait"]}});
    cluster.json("POST", maps, Some(&map)).await?;
    cluster.json("DELETE", &format!("{maps}/raced"), None).await?;
    let (code, mut waiting) = cluster.json("GET", &format!("{maps}/raced"), None).await?;
    ensure!(code == 200 && !waiting["metadata"]["deletionTimestamp"].is_null(), "{waiting}");
    waiting["metadata"]["finalizers"] = json!([]);
    let (code, last) = cluster.json("PUT", &format!("{maps}/raced"), Some(&waiting)).await?;
    ensure!(code == 200, "{last}");
    assert_eq!(cluster.json("GET", &format!("{maps}/raced"), None).await?.0, 404);
    Ok(())
}

/// A definition is not given up because its objects could not be listed at the first try: neither when it is made nor, when
/// it is established and nothing of it is to be written any more, by a server that starts later.
#[tokio::test]
async fn a_definition_comes_up_whose_store_could_not_be_opened_at_first() -> Result<()> {
    let data = tempfile::tempdir()?;
    let inner = Embedded::open(&data.path().join("data"), Options::default())?;
    let storage = Arc::new(Flaky { refused: "example.org", left: AtomicUsize::new(2), ..Flaky::new(inner) });
    let cluster = Cluster::start_on(tempfile::tempdir()?, storage.clone(), |_| {}).await?;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.example.org"},
        "spec": {
            "group": "example.org", "scope": "Namespaced", "names": {"plural": "boats", "kind": "Boat"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
        },
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (code, made) = cluster.json("POST", definitions, Some(&definition)).await?;
    ensure!(code == 201, "{made}");
    let boats = "/apis/example.org/v1/namespaces/default/boats";
    until_served(&cluster, boats).await?;
    assert_eq!(storage.left.load(Ordering::SeqCst), 0);
    let boat = json!({"apiVersion": "example.org/v1", "kind": "Boat", "metadata": {"name": "a"}});
    assert_eq!(cluster.json("POST", boats, Some(&boat)).await?.0, 201);

    storage.left.store(2, Ordering::SeqCst);
    let later = Cluster::start_on(tempfile::tempdir()?, storage.clone(), |_| {}).await?;
    until_served(&later, boats).await?;
    assert_eq!(storage.left.load(Ordering::SeqCst), 0);
    assert_eq!(names(&later.json("GET", boats, None).await?.1), ["a"]);
    Ok(())
}

async fn until_served(cluster: &Cluster, path: &str) -> Result<()> {
    for _ in 0..200 {
        if cluster.json("GET", path, None).await?.0 == 200 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("{path} was never served")
}

/// A kubelet that answers logs with a text and turns any upgrade into an echo.
async fn kubelet() -> Result<u16> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".into()])?;
    let tls = tls_config(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes())?;
    let mut tls = (*tls).clone();
    tls.alpn_protocols.clear();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                if head.starts_with("GET /containerLogs/default/p/c?tailLines=3 ") {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nlines\n").await?;
                } else if head.contains("/exec/default/p/c?output=1&command=ls&command=-l ") {
                    let answer =
                        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
                    stream.write_all(answer).await?;
                    let (mut read, mut write) = tokio::io::split(stream);
                    tokio::io::copy(&mut read, &mut write).await?;
                    return Ok::<_, std::io::Error>(());
                } else {
                    stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await?;
                }
                stream.shutdown().await
            });
        }
    });
    Ok(port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_tunnels_reach_the_kubelet_of_the_pod() -> Result<()> {
    let cluster = Cluster::start().await?;
    let port = kubelet().await?;
    let node = json!({"metadata": {"name": "n"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    let (code, made) = cluster.json("POST", "/api/v1/nodes", Some(&node)).await?;
    ensure!(code == 201, "{made}");
    let account = json!({"metadata": {"name": "default"}});
    cluster.json("POST", "/api/v1/namespaces/default/serviceaccounts", Some(&account)).await?;
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    let (code, made) = cluster.json("POST", "/api/v1/namespaces/default/pods", Some(&pod)).await?;
    ensure!(code == 201, "{made}");
    let logs = cluster.send("GET", "/api/v1/namespaces/default/pods/p/log?tailLines=3", None).await?;
    assert_eq!(logs.into_body().collect().await?.to_bytes(), "lines\n");

    // A tunnel needs a connection: through the socket.
    let (mut sender, serving) = listen(&cluster.server).await?;
    let request = Request::post("/api/v1/namespaces/default/pods/p/exec?stdout=true&command=ls&command=-l")
        .header("host", "127.0.0.1")
        .header("authorization", "Bearer T")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .body(Incoming::default())?;
    let mut response = sender.send_request(request).await?;
    assert_eq!(response.status(), 101);
    let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut response).await?);
    tunnel.write_all(b"ahoy").await?;
    let mut echo = [0; 4];
    tokio::time::timeout(Duration::from_secs(10), tunnel.read_exact(&mut echo)).await??;
    assert_eq!(&echo, b"ahoy");
    serving.abort();
    Ok(())
}

/// The body of a request over a connection, as it is made while it is sent.
type Incoming = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;
type Connection = (hyper::client::conn::http1::SendRequest<Incoming>, tokio::task::JoinHandle<()>);

/// A connection to a socket of the server's own.
async fn listen(server: &Arc<Server>) -> Result<Connection> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".into()])?;
    let tls = tls_config(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes())?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = server.clone();
    let serving = tokio::spawn(async move { server.listen(listener, tls).await });
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await?;
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1")?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    Ok((sender, serving))
}

/// A body that fails in the worst way while it is read.
struct Panicking;

impl http_body::Body for Panicking {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<std::io::Result<http_body::Frame<Bytes>>>> {
        panic!("a fault of this test's own")
    }
}

/// Endpoints that are not of a pod may name any address, also one that only the server can reach.
#[tokio::test]
async fn a_service_is_proxied_to_its_pods_alone() -> Result<()> {
    let cluster = Cluster::start().await?;
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    cluster.json("POST", "/api/v1/namespaces/default/services", Some(&service)).await?;
    let endpoints = "/api/v1/namespaces/default/endpoints";
    for (method, path, reference) in [
        ("POST", endpoints.to_owned(), Value::Null),
        ("PUT", format!("{endpoints}/s"), json!({"kind": "Pod", "namespace": "kube-system", "name": "p"})),
        ("PUT", format!("{endpoints}/s"), json!({"kind": "Pod", "namespace": "default", "name": "absent"})),
    ] {
        let object = json!({"metadata": {"name": "s"}, "subsets": [{
            "addresses": [{"ip": "192.0.2.1", "targetRef": reference}], "ports": [{"port": 80}],
        }]});
        let (code, made) = cluster.json(method, &path, Some(&object)).await?;
        ensure!(code < 300, "{made}");
        let (code, refused) = cluster.json("GET", "/api/v1/namespaces/default/services/s/proxy/", None).await?;
        assert_eq!((code, refused["message"].as_str()), (503, Some("no endpoints available for service \"s\"")));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_a_refusal_of_one_request() -> Result<()> {
    let cluster = Cluster::start().await?;
    let request = Request::post("/api/v1/namespaces").header("content-type", "application/json").body(Panicking)?;
    let response = cluster.server.service_for(admin()).oneshot(request).await?;
    assert_eq!(response.status(), 500);
    let text = response.into_body().collect().await?.to_bytes();
    assert_eq!(text, "This request caused apiserver to panic. Look in the logs for details.\n");
    assert_eq!(cluster.send("GET", "/api/v1/namespaces/default", None).await?.status(), 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_ends_when_it_says() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (code, refused) = cluster.json("GET", "/api/v1/namespaces?timeout=soon", None).await?;
    let why = r#"invalid timeout specified in the request URL - time: invalid duration "soon""#;
    assert_eq!((code, refused["message"].as_str()), (400, Some(why)));
    assert_eq!(cluster.send("GET", "/api/v1/namespaces?timeout=0", None).await?.status(), 200);
    assert_eq!(cluster.send("GET", "/api/v1/namespaces?timeout=1h", None).await?.status(), 200);
    // A body that never comes outlasts any time.
    let body = http_body_util::StreamBody::new(futures::stream::pending::<std::io::Result<http_body::Frame<Bytes>>>());
    let request = Request::post("/api/v1/namespaces?timeout=50ms").header("content-type", "application/json");
    let response = cluster.server.service_for(admin()).oneshot(request.body(body)?).await?;
    assert_eq!(response.status(), 504);
    let status: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
    assert_eq!(status["message"], "Timeout: request did not complete within the allotted timeout");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_served_is_counted() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.config_map("a", json!({})).await?;
    cluster.send("GET", "/api/v1/namespaces/default/configmaps/none", None).await?;
    let metrics = cluster.send("GET", "/metrics", None).await?.into_body().collect().await?.to_bytes();
    let metrics = std::str::from_utf8(&metrics)?;
    for line in [
        r#"apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="POST",version="v1"} 1"#,
        r#"apiserver_request_total{code="404",component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="GET",version="v1"} 1"#,
        r#"apiserver_storage_objects{resource="configmaps"} "#,
        r#"apiserver_admission_controller_admission_duration_seconds_count{name="NamespaceLifecycle",operation="CREATE",rejected="false",type="admit"} "#,
        "process_start_time_seconds ",
        "kubernetes_build_info{",
    ] {
        ensure!(metrics.lines().any(|l| l.starts_with(line)), "{line} is not in\n{metrics}");
    }
    for page in ["/flagz", "/statusz"] {
        let text = cluster.send("GET", page, None).await?.into_body().collect().await?.to_bytes();
        ensure!(std::str::from_utf8(&text)?.starts_with("\nkube-apiserver "), "{page}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cbor_is_refused_while_its_gate_is_shut() -> Result<()> {
    let cluster = Cluster::start().await?;
    let send = async |method: &str, path: &str, content_type: &str, accept: &str| -> Result<u16> {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("content-type", content_type).header("accept", accept);
        let request = request.body(Full::new(Bytes::from_static(b"\xd9\xd9\xf7\xa0")))?;
        Ok(cluster.server.service_for(admin()).oneshot(request).await?.status().as_u16())
    };
    let secrets = "/api/v1/namespaces/default/secrets";
    let patch = "application/apply-patch+cbor";
    assert_eq!(send("POST", secrets, "application/cbor", "application/json").await?, 415);
    assert_eq!(send("PATCH", &format!("{secrets}/a"), patch, "application/json").await?, 415);
    assert_eq!(send("GET", secrets, "application/cbor", "application/cbor").await?, 406);
    Ok(())
}
