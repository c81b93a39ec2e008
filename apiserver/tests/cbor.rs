//! CBOR where its feature gate is open. Gates hold for a process, so that nothing else is tested here.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use coxswain_api::codec::cbor;
use coxswain_api::features::Gates;
use coxswain_api::{Value, json};
use coxswain_apiserver::request::User;
use coxswain_apiserver::respond::Body;
use coxswain_apiserver::server::{Config, Server};
use coxswain_storage::embedded::{Embedded, Options};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

fn admin() -> User {
    User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() }
}

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const CBOR: &str = "application/cbor";

async fn send(
    server: &Server,
    method: &str,
    path: &str,
    content_type: &str,
    accept: &str,
    body: &Value,
) -> Result<Response<Body>> {
    let mut bytes = Vec::new();
    if !body.is_null() {
        cbor::encode_any(body, &mut bytes);
    }
    let request = Request::builder().method(method).uri(path);
    let request = request.header("content-type", content_type).header("accept", accept);
    Ok(server.service_for(admin()).oneshot(request.body(Full::new(Bytes::from(bytes)))?).await?)
}

/// The code and the tree of an answer, which must be in CBOR.
async fn tree(response: Response<Body>) -> Result<(u16, Value)> {
    let kind = response.headers().get("content-type").cloned();
    ensure!(kind.as_ref().is_some_and(|kind| kind == CBOR), "answered as {kind:?}");
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await?.to_bytes();
    ensure!(bytes.starts_with(&cbor::PREFIX), "without the tag that describes it");
    Ok((code, cbor::decode_any(&bytes)?))
}

/// The next event of a watch.
async fn event(events: &mut Body) -> Result<Value> {
    let frame = tokio::time::timeout(Duration::from_secs(10), events.frame()).await.context("no event came")?;
    Ok(cbor::decode_any(&frame.context("the watch ended")??.into_data().unwrap_or_default())?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_its_gate_open_cbor_is_read_and_written() -> Result<()> {
    Gates::parse(&["CBORServingAndStorage=true"])?.install();
    let dir = tempfile::tempdir()?;
    let storage = Arc::new(Embedded::open(&dir.path().join("data"), Options::default())?);
    let mut server = Server::start(Config::default(), storage).await?;
    server.ready().await;
    let watch = send(&server, "GET", &format!("{SECRETS}?watch=1"), CBOR, CBOR, &Value::Null).await?;
    assert_eq!(watch.headers()["content-type"], "application/cbor-seq");
    let mut events = watch.into_body();

    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "data": {"k": "AQI="}});
    let (code, made) = tree(send(&server, "POST", SECRETS, CBOR, CBOR, &secret).await?).await?;
    assert_eq!((code, &made["data"]["k"], &made["type"]), (201, &json!("AQI="), &json!("Opaque")));
    // Written in CBOR and in JSON, it is the same object.
    let path = format!("{SECRETS}/a");
    let plain = send(&server, "GET", &path, CBOR, "application/json", &Value::Null).await?;
    let json_form: Value = serde_json::from_slice(&plain.into_body().collect().await?.to_bytes())?;
    assert_eq!(made, json_form);

    assert_eq!(event(&mut events).await?, json!({"type": "ADDED", "object": made}));

    let configuration = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "labels": {"l": "1"}}});
    let apply = format!("{path}?fieldManager=test");
    let applied = send(&server, "PATCH", &apply, "application/apply-patch+cbor", CBOR, &configuration).await?;
    let (code, applied) = tree(applied).await?;
    assert_eq!((code, &applied["metadata"]["labels"]["l"]), (200, &json!("1")));
    assert_eq!(event(&mut events).await?, json!({"type": "MODIFIED", "object": applied}));

    let (_, list) = tree(send(&server, "GET", SECRETS, CBOR, CBOR, &Value::Null).await?).await?;
    assert_eq!((&list["kind"], &list["items"][0]["metadata"]["name"]), (&json!("SecretList"), &json!("a")));
    let table = "application/cbor;as=Table;v=v1;g=meta.k8s.io";
    let (_, table) = tree(send(&server, "GET", SECRETS, CBOR, table, &Value::Null).await?).await?;
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][2]), (&json!("Table"), &json!(1)));
    let metadata = "application/cbor;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let (_, partial) = tree(send(&server, "GET", SECRETS, CBOR, metadata, &Value::Null).await?).await?;
    assert_eq!(partial["items"][0]["metadata"]["labels"]["l"], "1");
    let (code, missing) = tree(send(&server, "GET", &format!("{path}b"), CBOR, CBOR, &Value::Null).await?).await?;
    assert_eq!((code, &missing["kind"], &missing["reason"]), (404, &json!("Status"), &json!("NotFound")));
    Ok(())
}
