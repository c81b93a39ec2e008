//! What holds for every request, whatever it asks: bounds of size, number and time, forms of answers, the end of a server.

use super::{Cluster, Incoming, admin, listen, watch};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use coxswain_api::{Value, json};
use coxswain_apiserver::authorization::Mode;
use coxswain_apiserver::request::User;
use coxswain_apiserver::respond::Body;
use futures::StreamExt;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use std::convert::Infallible;
use std::io::Read;
use std::time::Duration;
use tokio::sync::mpsc;
use tower::ServiceExt;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// `limit is 3145728` in bytes.
const BODY_MAX: usize = 3 << 20;

/// A body that comes piece by piece, and ends when the sender is dropped.
fn slow_body() -> (mpsc::Sender<Bytes>, Incoming) {
    let (sender, receiver) = mpsc::channel::<Bytes>(4);
    let pieces = futures::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(piece)), receiver))
    });
    (sender, Incoming::new(StreamBody::new(pieces.boxed())))
}

fn anyone(name: &str) -> User {
    User { name: name.into(), ..User::default() }
}

async fn get(cluster: &Cluster, user: User, path: &str, headers: &[(&str, &str)]) -> Result<Response<Body>> {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok(cluster.server.service_for(user).oneshot(request.body(Full::new(Bytes::new()))?).await?)
}

async fn text(response: Response<Body>) -> Result<String> {
    Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_long_is_refused() -> Result<()> {
    let cluster = Cluster::start().await?;
    let post = async |length: usize| -> Result<(u16, Value)> {
        let request = Request::post(CONFIG_MAPS).header("content-type", "application/json");
        let request = request.body(Full::new(Bytes::from(vec![b' '; length])))?;
        let response = cluster.server.service_for(admin()).oneshot(request).await?;
        Ok((response.status().as_u16(), serde_json::from_str(&text(response).await?)?))
    };
    let (code, status) = post(BODY_MAX + 1).await?;
    assert_eq!((code, &status["reason"]), (413, &json!("RequestEntityTooLarge")));
    assert_eq!(status["message"], "Request entity too large: limit is 3145728");
    // As long as that it may be, though this one says nothing.
    assert_eq!(post(BODY_MAX).await?.0, 400);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_no_seat_is_asked_to_come_again() -> Result<()> {
    for fair in [true, false] {
        let cluster = Cluster::start_with(|config| {
            config.authorization.modes = vec![Mode::AlwaysAllow];
            config.priority_and_fairness = fair;
            (config.requests_in_flight_max, config.mutating_requests_in_flight_max) = (1, 1);
        })
        .await?;
        // A write whose body does not come holds one of its level's seats; levels have one or two each.
        let held: Vec<_> = (0..3)
            .map(|_| {
                let (sender, body) = slow_body();
                let request = Request::post(CONFIG_MAPS).header("content-type", "application/json").body(body);
                let service = cluster.server.service_for(anyone("a"));
                (sender, tokio::spawn(async move { service.oneshot(request.unwrap()).await }))
            })
            .collect();
        // The answer of a write once it is the awaited one.
        let write = async |awaited: u16| -> Result<Response<Body>> {
            for _ in 0..100 {
                let request =
                    Request::delete(format!("{CONFIG_MAPS}/none?timeout=1s")).body(Full::new(Bytes::new()))?;
                let answer = cluster.server.service_for(anyone("b")).oneshot(request).await?;
                if answer.status() == awaited {
                    return Ok(answer);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            anyhow::bail!("no write is answered with {awaited}, fair: {fair}")
        };
        let refused = write(429).await?;
        assert_eq!(refused.headers()["retry-after"], "1");
        assert_eq!(refused.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(refused.headers().contains_key("x-kubernetes-pf-flowschema-uid"), fair);
        assert_eq!(text(refused).await?, "Too many requests, please try again later.\n");
        // Masters always get an answer, and so does everyone who asks for health.
        assert_eq!(cluster.json("GET", CONFIG_MAPS, None).await?.0, 200);
        assert_eq!(get(&cluster, anyone("b"), "/livez", &[]).await?.status(), 200);
        // Those who go away leave their seats to others.
        for (_, request) in &held {
            request.abort();
        }
        write(404).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_answers_are_compressed_for_those_who_want_it() -> Result<()> {
    let cluster = Cluster::start().await?;
    let large = json!({"metadata": {"name": "large"}, "data": {"k": "x".repeat(200_000)}});
    ensure!(cluster.json("POST", CONFIG_MAPS, Some(&large)).await?.0 == 201);
    cluster.config_map("small", json!({})).await?;
    let accepts = [("accept-encoding", "gzip")];
    let path = format!("{CONFIG_MAPS}/large");
    let plain = text(get(&cluster, admin(), &path, &[]).await?).await?;
    let packed = get(&cluster, admin(), &path, &accepts).await?;
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    let packed = packed.into_body().collect().await?.to_bytes();
    assert!(packed.len() < plain.len() / 10);
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(&*packed).read_to_string(&mut unpacked)?;
    assert_eq!(unpacked, plain);
    for (path, header) in [(format!("{CONFIG_MAPS}/small"), "gzip"), (path.clone(), "br"), (path, "gzip;q=0")] {
        let answer = get(&cluster, admin(), &path, &[("accept-encoding", header)]).await?;
        assert!(!answer.headers().contains_key("content-encoding"), "{path} for {header}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_pretty_when_asked_and_those_to_head_are_empty() -> Result<()> {
    let cluster = Cluster::start().await?;
    cluster.config_map("c", json!({})).await?;
    let path = format!("{CONFIG_MAPS}/c");
    let plain = text(get(&cluster, admin(), &path, &[]).await?).await?;
    let pretty = text(get(&cluster, admin(), &format!("{path}?pretty=true"), &[]).await?).await?;
    assert!(pretty.starts_with("{\n  \"kind\": \"ConfigMap\",\n") && !plain.contains("\n "));
    assert_eq!(serde_json::from_str::<Value>(&pretty)?, serde_json::from_str::<Value>(&plain)?);
    // Browsers are taken for people.
    let browser = get(&cluster, admin(), &path, &[("user-agent", "Mozilla/5.0")]).await?;
    assert_eq!(text(browser).await?, pretty);
    // Resources have no heads, documents do; neither has a body.
    let head = cluster.send("HEAD", &path, None).await?;
    assert_eq!((head.status().as_u16(), text(head).await?.as_str()), (405, ""));
    let head = cluster.send("HEAD", "/version", None).await?;
    assert_eq!((head.status().as_u16(), text(head).await?.as_str()), (200, ""));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ends_finishes_what_it_has_begun() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (mut sender, serving) = listen(&cluster.server).await?;
    let mut events = watch(&cluster, "").await?;
    let (body, incoming) = slow_body();
    let request = Request::post(CONFIG_MAPS)
        .header("host", "127.0.0.1")
        .header("authorization", "Bearer T")
        .header("content-type", "application/json")
        .body(incoming)?;
    body.send(Bytes::from(r#"{"metadata": {"#)).await?;
    let begun = tokio::spawn(async move { sender.send_request(request).await });
    tokio::time::sleep(Duration::from_millis(200)).await;

    cluster.server.announce_shutdown();
    assert_eq!(cluster.send("GET", "/readyz", None).await?.status(), 500);
    assert_eq!(cluster.send("GET", "/livez", None).await?.status(), 200);
    cluster.server.begin_shutdown();
    // Watches end, so that their clients look for another server.
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        while events.body.frame().await.is_some_and(|frame| frame.is_ok()) {}
    });
    ended.await.context("the watch goes on")?;
    body.send(Bytes::from(r#""name": "late"}}"#)).await?;
    drop(body);
    assert_eq!(begun.await??.status(), 201);
    tokio::time::timeout(Duration::from_secs(5), serving).await.context("the listener goes on")??;
    Ok(())
}
