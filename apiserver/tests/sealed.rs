//! Encryption at rest seen through a whole server: what lies in the store, and what becomes of it when keys change.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use coxswain_api::{Value, json};
use coxswain_apiserver::request::User;
use coxswain_apiserver::server::{Config, Server};
use coxswain_apiserver::store::Layout;
use coxswain_storage::Storage;
use coxswain_storage::embedded::{Embedded, Options};
use coxswain_storage::encryption::Encryption;
use http::Request;
use http_body_util::{BodyExt, Full};
use std::path::Path;
use std::sync::Arc;
use tower::ServiceExt;

const KEY: &str = "/registry/secrets/default/s";
const PATH: &str = "/api/v1/namespaces/default/secrets";

struct Sealed {
    server: Server,
    storage: Arc<Embedded>,
}

impl Sealed {
    async fn start(dir: &Path, storage: Arc<Embedded>, providers: &str) -> Result<Self> {
        let file = dir.join("encryption.yaml");
        let rule = format!("- resources: [secrets]\n  providers: {providers}\n");
        let text = format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{rule}");
        std::fs::write(&file, text)?;
        let mut layout = Layout::default();
        layout.encryption = Some(Arc::new(Encryption::load(&file, false, "server").await?));
        let config = Config { layout, ..Config::default() };
        let mut server = Server::start(config, storage.clone()).await?;
        server.ready().await;
        Ok(Self { server, storage })
    }

    async fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let user = User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() };
        let body = Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default()));
        let request =
            Request::builder().method(method).uri(path).header("content-type", "application/json").body(body)?;
        let response = self.server.service_for(user).oneshot(request).await?;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok((code, serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into())))
    }

    async fn stored(&self) -> Result<Bytes> {
        Ok(self.storage.get(KEY, None).await?.0.context("the secret is stored")?.value)
    }
}

const OLD: &str = "{aescbc: {keys: [{name: old, secret: YWJjZGVmZ2hpamtsbW5vcA==}]}}";
const NEW: &str = "{secretbox: {keys: [{name: new, secret: MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=}]}}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_as_upstream_has_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let storage = Arc::new(Embedded::open(&dir.path().join("data"), Options::default())?);
    let object = json!({"metadata": {"name": "s"}, "stringData": {"password": "visible"}});

    // Not sealed at first.
    let sealed = Sealed::start(dir.path(), storage.clone(), "[{identity: {}}]").await?;
    let (code, _) = sealed.request("POST", PATH, Some(&object)).await?;
    ensure!(code == 201);
    ensure!(sealed.stored().await?.starts_with(b"{"));
    sealed.server.stop().await;

    // With a key, the old value is read; writing it again without a change seals it, and only once.
    let sealed = Sealed::start(dir.path(), storage.clone(), &format!("[{OLD}, {{identity: {{}}}}]")).await?;
    let (code, mut secret) = sealed.request("GET", &format!("{PATH}/s"), None).await?;
    ensure!(code == 200 && secret["data"]["password"] == "dmlzaWJsZQ==");
    let before = secret["metadata"]["resourceVersion"].clone();
    let (code, after) = sealed.request("PUT", &format!("{PATH}/s"), Some(&secret)).await?;
    ensure!(code == 200 && after["metadata"]["resourceVersion"] != before, "a stale value is written again");
    ensure!(sealed.stored().await?.starts_with(b"k8s:enc:aescbc:v1:old:"));
    secret["metadata"]["resourceVersion"] = after["metadata"]["resourceVersion"].clone();
    let (_, again) = sealed.request("PUT", &format!("{PATH}/s"), Some(&secret)).await?;
    ensure!(again["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]);
    sealed.server.stop().await;

    // A new key in front: the old one still reads.
    let sealed = Sealed::start(dir.path(), storage.clone(), &format!("[{NEW}, {OLD}]")).await?;
    let patch = json!({"metadata": {"labels": {"a": "b"}}});
    let (code, read) = sealed.request("GET", &format!("{PATH}/s"), None).await?;
    ensure!(code == 200 && read["data"]["password"] == "dmlzaWJsZQ==");
    let mut changed = read.clone();
    changed["metadata"]["labels"] = patch["metadata"]["labels"].clone();
    let (code, _) = sealed.request("PUT", &format!("{PATH}/s"), Some(&changed)).await?;
    ensure!(code == 200);
    ensure!(sealed.stored().await?.starts_with(b"k8s:enc:secretbox:v1:new:"));
    let (_, metrics) = sealed.request("GET", "/metrics", None).await?;
    let metrics = metrics.as_str().context("metrics are text")?;
    let line = "apiserver_storage_transformation_operations_total{resource=\"secrets\",transformation_type=\"to_storage\",transformer_prefix=\"k8s:enc:secretbox:v1:\",status=\"OK\"}";
    ensure!(metrics.contains(line), "the transformations are counted");
    ensure!(metrics.contains("etcd_requests_total{operation=\"update\",group=\"\",resource=\"secrets\"}"));
    sealed.server.stop().await;

    // Without the key, nobody is told that there is no such secret; other resources are served.
    let sealed = Sealed::start(dir.path(), storage, &format!("[{OLD}]")).await?;
    let lost = format!("unable to transform key \"{KEY}\": no matching prefix found");
    for path in [format!("{PATH}/s"), PATH.to_owned()] {
        let (code, status) = sealed.request("GET", &path, None).await?;
        ensure!((code, &status["reason"]) == (500, &json!("InternalError")), "{status}");
        ensure!(status["message"].as_str().is_some_and(|m| m.contains(&lost)), "{status}");
    }
    let (code, _) = sealed.request("POST", PATH, Some(&object)).await?;
    ensure!(code == 500, "a key that cannot be read is not free");
    let (code, _) = sealed.request("GET", "/api/v1/namespaces/default/configmaps", None).await?;
    ensure!(code == 200);
    sealed.server.stop().await;
    Ok(())
}
