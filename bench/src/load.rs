//! Closed-loop load: a fixed number of requests in flight over a fixed number of connections.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// As the figures for orientation were taken: 64 requests in flight over 8 connections.
const CONNECTIONS: usize = 8;
const IN_FLIGHT: usize = 64;

#[derive(Clone)]
pub struct Settings {
    pub objects: usize,
    pub seconds: u64,
    pub image: String,
}

/// A server under load.
pub struct Server {
    clients: Vec<Client>,
}

/// How a run of load went.
pub struct Outcome {
    pub per_second: f64,
    pub p99_ms: f64,
    pub bytes_per_second: f64,
}

impl Server {
    pub fn connect(kubeconfig: &Path) -> Result<Self> {
        let connect = |_| coxswain_client::connect::from_kubeconfig(kubeconfig);
        let clients = (0..CONNECTIONS).map(connect).collect::<Result<_, _>>();
        Ok(Self { clients: clients.with_context(|| format!("connecting by {}", kubeconfig.display()))? })
    }

    pub fn client(&self) -> Client {
        self.clients[0].clone()
    }

    /// The client of one of the connections, for what is to be spread over them.
    pub fn client_of(&self, i: usize) -> Client {
        self.clients[i % CONNECTIONS].clone()
    }

    /// One request; its status code and how many bytes the answer had.
    pub async fn send(client: &Client, request: Request<Body>) -> Result<(u16, Bytes)> {
        let response = client.send(request).await?;
        let code = response.status().as_u16();
        Ok((code, response.into_body().collect().await.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes()))
    }

    /// Sends what `make` makes (it gets a running number) for some seconds, or until `make` gives none.
    pub async fn drive<F>(&self, seconds: u64, in_flight: usize, make: F) -> Result<Outcome>
    where
        F: Fn(u64) -> Option<Request<Body>> + Send + Sync + 'static,
    {
        let make = Arc::new(make);
        let next = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let end = start + Duration::from_secs(seconds);
        let workers = (0..in_flight).map(|i| {
            let (client, make, next) = (self.clients[i % CONNECTIONS].clone(), Arc::clone(&make), Arc::clone(&next));
            tokio::spawn(async move {
                let (mut times, mut bytes) = (Vec::new(), 0u64);
                while Instant::now() < end {
                    let Some(request) = make(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let sent = Instant::now();
                    let (code, body) = Self::send(&client, request).await?;
                    if code >= 300 {
                        bail!("status {code}: {}", String::from_utf8_lossy(&body));
                    }
                    times.push(sent.elapsed());
                    bytes += body.len() as u64;
                }
                Ok((times, bytes))
            })
        });
        let (mut times, mut bytes) = (Vec::new(), 0);
        for outcome in futures::future::join_all(workers).await {
            let (t, b) = outcome??;
            times.extend(t);
            bytes += b;
        }
        let took = start.elapsed().as_secs_f64();
        times.sort();
        let at = |share: f64| {
            let i = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
            times.get(i).map_or(0.0, |t| t.as_secs_f64() * 1000.0)
        };
        Ok(Outcome { per_second: times.len() as f64 / took, p99_ms: at(0.99), bytes_per_second: bytes as f64 / took })
    }

    pub async fn drive_default<F>(&self, seconds: u64, make: F) -> Result<Outcome>
    where
        F: Fn(u64) -> Option<Request<Body>> + Send + Sync + 'static,
    {
        self.drive(seconds, IN_FLIGHT, make).await
    }
}

/// A request without body.
pub fn get(path: &str) -> Request<Body> {
    request(Method::GET, path, None, &[])
}

pub fn request(method: Method, path: &str, body: Option<(&str, Vec<u8>)>, headers: &[(&str, &str)]) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let body = match body {
        Some((kind, bytes)) => {
            builder = builder.header("content-type", kind);
            Body::from(bytes)
        }
        None => Body::empty(),
    };
    builder.body(body).unwrap_or_else(|e| panic!("{path}: {e}"))
}
