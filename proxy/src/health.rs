//! Answers to those who watch the proxy: `/healthz` and `/livez` of the proxy itself, and for services of load balancers
//! with the local traffic policy a port that tells the balancer whether this node has endpoints.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::{ObjectKey, Store};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::Config;
use crate::endpoints;
use crate::model::{BY_SERVICE, Service, Slice};
use crate::rules::Surroundings;

const CONNECTIONS_MAX: usize = 64;
const REQUEST_BYTES_MAX: usize = 8192;
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
const LISTEN_RETRY: Duration = Duration::from_secs(60);

struct State {
    eligible: bool,
    synced: Option<Timestamp>,
    /// Endpoints on this node, by service with such a port.
    local: HashMap<ObjectKey, usize>,
}

pub struct Health {
    state: Arc<Mutex<State>>,
    shutdown: CancellationToken,
    ports: Mutex<HashMap<ObjectKey, (u16, DropGuard)>>,
}

impl Health {
    pub fn start(config: &Config, shutdown: &CancellationToken) -> Self {
        let state = Arc::new(Mutex::new(State { eligible: true, synced: None, local: HashMap::new() }));
        if let Some(address) = config.healthz {
            let state = state.clone();
            serve(address, shutdown.clone(), move |path| own(&state.lock(), path));
        }
        Self { state, shutdown: shutdown.clone(), ports: Mutex::default() }
    }

    pub fn set_eligible(&self, eligible: bool) {
        self.state.lock().eligible = eligible;
    }

    /// The rules are as the services say.
    pub fn synced(&self, services: &Store<Service>, slices: &Store<Slice>, around: &Surroundings) {
        let mut state = self.state.lock();
        state.synced = Some(Timestamp::now());
        let mut ports = self.ports.lock();
        let services: Vec<Arc<Service>> =
            services.list().into_iter().filter(|s| s.health_check_port.is_some()).collect();
        ports.retain(|key, (port, _)| services.iter().any(|s| s.key == *key && s.health_check_port == Some(*port)));
        state.local.retain(|key, _| ports.contains_key(key));
        for service in services {
            let slices = slices.by_index(BY_SERVICE, &service.key.to_string());
            let of_port =
                |port| endpoints::of_port(&service, port, &slices, &around.node_name, &around.node, around.ipv6);
            let local = service.ports.iter().map(|port| of_port(port).ready_here).max().unwrap_or(0);
            state.local.insert(service.key.clone(), local);
            let Some(port) = service.health_check_port.filter(|_| !ports.contains_key(&service.key)) else { continue };
            let (key, shared, stop) = (service.key.clone(), self.state.clone(), self.shutdown.child_token());
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            let about = key.clone();
            serve(address, stop.clone(), move |_| of_service(&shared.lock(), &about));
            ports.insert(key, (port, stop.drop_guard()));
        }
    }
}

fn own(state: &State, path: &str) -> (u16, String) {
    let healthy = state.synced.is_some();
    let ok = match path {
        "/healthz" => healthy && state.eligible,
        "/livez" => healthy,
        _ => return (404, "404 page not found\n".to_owned()),
    };
    let now = Timestamp::now();
    let eligible = if path == "/healthz" { format!(",\"nodeEligible\": {}", state.eligible) } else { String::new() };
    let updated = state.synced.unwrap_or(now);
    let body = format!("{{\"lastUpdated\": \"{updated}\",\"currentTime\": \"{now}\"{eligible}}}");
    (if ok { 200 } else { 503 }, body)
}

fn of_service(state: &State, key: &ObjectKey) -> (u16, String) {
    let local = state.local.get(key).copied().unwrap_or(0);
    let healthy = state.synced.is_some();
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {:?},\n\t\t\"name\": {:?}\n\t}},\n\t\"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        key.namespace, key.name
    );
    (if local > 0 && healthy { 200 } else { 503 }, body)
}

/// Answers requests by their path until the token is cancelled. A port that is taken is tried again: it may be that of a
/// proxy which is ending.
fn serve(address: SocketAddr, stop: CancellationToken, answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) {
    let answer = Arc::new(answer);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let work = async move {
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => tracing::warn!(%address, %error, "cannot answer health checks"),
            }
            tokio::time::sleep(LISTEN_RETRY).await;
        };
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let answer = answer.clone();
                    tokio::spawn(async move {
                        let _ = tokio::time::timeout(REQUEST_TIME_MAX, exchange(stream, &*answer)).await;
                        drop(permit);
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    });
}

async fn exchange(mut stream: TcpStream, answer: &(impl Fn(&str) -> (u16, String) + ?Sized)) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        if request.len() > REQUEST_BYTES_MAX || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = String::from_utf8_lossy(request.split(|b| *b == b'\r').next().unwrap_or_default()).into_owned();
    let path = line.split(' ').nth(1).unwrap_or_default();
    let (code, body) = answer(path.split('?').next().unwrap_or_default());
    let reason = match code {
        200 => "OK",
        404 => "Not Found",
        _ => "Service Unavailable",
    };
    let response = format!(
        "HTTP/1.1 {code} {reason}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}
