//! Startup, readiness and liveness probes (upstream: `kubelet/prober`).
//!
//! One task a probe looks after whatever container of that name runs. Results are kept by container id: the pod's worker reads them when it
//! plans, and is woken when one changes.

use crate::actions::Health;
use crate::config::GoDuration;
use crate::cri::Runtime;
use crate::events::Events;
use crate::http_client;
use crate::kubelet::PodHandle;
use crate::pod::{self, ContainerKind, PodExt};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, HTTPGetAction, Pod, PodStatus, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

const ATTEMPTS_MAX: usize = 3;
/// Upstream notices only after about this time that a container runs, and probes it then. We try before, so that nobody waits for what is
/// ready at once, but do not hold it against a server that it does not listen yet.
const SETTLING: Duration = Duration::from_secs(1);
const SETTLING_RETRY: Duration = Duration::from_millis(200);
const OUTPUT_BYTES_MAX: usize = 10 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

impl ProbeKind {
    fn name(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Liveness => "Liveness",
        }
    }

    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
    /// Not known yet.
    Unknown,
}

/// Results of one pod's probes, by container id and kind.
#[derive(Default)]
pub struct Results(Mutex<HashMap<(String, ProbeKind), Outcome>>);

impl Results {
    pub fn get(&self, id: &str, kind: ProbeKind) -> Option<Outcome> {
        self.0.lock().get(&(id.to_string(), kind)).copied()
    }

    /// Whether the result is another one than before.
    fn set(&self, id: &str, kind: ProbeKind, outcome: Outcome) -> bool {
        self.0.lock().insert((id.to_string(), kind), outcome) != Some(outcome)
    }

    fn remove(&self, id: &str) {
        self.0.lock().retain(|(known, _), _| known != id);
    }

    fn has_started_status(&self, container: &Container, status: &ContainerStatus) -> bool {
        status.state.as_ref().is_some_and(|s| s.running.is_some())
            && self.has_started(container, bare_id(status.container_id.as_deref().unwrap_or_default()))
    }
}

impl Health for Results {
    fn liveness_failed(&self, id: &str) -> bool {
        self.get(id, ProbeKind::Liveness) == Some(Outcome::Failure)
    }

    fn startup_failed(&self, id: &str) -> bool {
        self.get(id, ProbeKind::Startup) == Some(Outcome::Failure)
    }

    fn has_started(&self, container: &Container, id: &str) -> bool {
        container.startup_probe.is_none() || self.get(id, ProbeKind::Startup) == Some(Outcome::Success)
    }
}

/// `containerd://abc` → `abc`.
pub fn bare_id(id: &str) -> &str {
    id.split_once("://").map_or(id, |(_, id)| id)
}

/// Sets `started` and `ready` of a status from probe results (upstream: `prober_manager.go: UpdatePodStatus`).
pub fn update_status(results: &Results, pod: &Pod, status: &mut PodStatus) {
    let spec = pod.spec();
    for c in status.container_statuses.iter_mut().flatten() {
        let Some(container) = spec.containers.iter().find(|s| s.name == c.name) else { continue };
        update_one(results, container, c);
    }
    for c in status.init_container_statuses.iter_mut().flatten() {
        let Some(container) = pod::init_containers(spec).iter().find(|s| s.name == c.name) else { continue };
        if pod::is_sidecar(container) {
            update_one(results, container, c);
        } else {
            c.started = Some(results.has_started_status(container, c));
            c.ready = c.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0);
        }
    }
}

fn update_one(results: &Results, container: &Container, c: &mut ContainerStatus) {
    let started = results.has_started_status(container, c);
    c.started = Some(started);
    let id = bare_id(c.container_id.as_deref().unwrap_or_default());
    c.ready = started
        && (container.readiness_probe.is_none() || results.get(id, ProbeKind::Readiness) == Some(Outcome::Success));
}

/// What a probe task needs.
pub struct Prober {
    pub runtime: Arc<dyn Runtime>,
    pub events: Events,
    /// When this kubelet began to work.
    pub started: tokio::time::Instant,
}

/// Periods up to this are not worth spreading.
const UNSPREAD_MAX: Duration = Duration::from_secs(10);

impl Prober {
    /// When a probe that begins now may probe first. A kubelet that has just started finds many pods at once; as upstream does,
    /// it spreads the first probes over their periods, so that they do not all come together.
    fn first_probe(&self, period: Duration) -> tokio::time::Instant {
        let now = tokio::time::Instant::now();
        if period > UNSPREAD_MAX && period > now - self.started { now + period.mul_f64(rand::random()) } else { now }
    }
}

/// Starts the probes of a pod's containers. They end with the token.
pub fn start_all(prober: &Arc<Prober>, handle: &Arc<PodHandle>, stop: &CancellationToken) {
    let pod = handle.pod();
    for reference in pod::long_lived_containers(pod.spec()) {
        if reference.kind == ContainerKind::Init && !reference.is_sidecar() {
            continue;
        }
        for kind in [ProbeKind::Startup, ProbeKind::Readiness, ProbeKind::Liveness] {
            if kind.of(reference.container).is_some() {
                let task = ProbeTask {
                    prober: prober.clone(),
                    handle: handle.clone(),
                    container: reference.container.clone(),
                    field: reference.field_path(),
                    kind,
                };
                tokio::spawn(task.run(stop.clone()));
            }
        }
    }
}

struct ProbeTask {
    prober: Arc<Prober>,
    handle: Arc<PodHandle>,
    container: Container,
    field: String,
    kind: ProbeKind,
}

impl ProbeTask {
    async fn run(self, stop: CancellationToken) {
        let Some(probe) = self.kind.of(&self.container).cloned() else { return };
        let period = Duration::from_secs(probe.period_seconds.unwrap_or(10).max(1) as u64);
        let mut changed = self.handle.status_changes();
        let mut id = String::new();
        let (mut last, mut run_length) = (Outcome::Unknown, 0);
        // A liveness or startup probe that has failed waits for the container to be replaced.
        let mut on_hold = false;
        let first = self.prober.first_probe(period);
        let mut began = tokio::time::Instant::now();
        // Why a container does not pass yet that has just been started.
        let mut early: Option<String> = None;
        loop {
            let (current, started_at, running) = self.current(&changed.borrow_and_update());
            if !current.is_empty() && current != id {
                if !id.is_empty() {
                    self.handle.probes.remove(&id);
                }
                id = current;
                began = tokio::time::Instant::now();
                (last, run_length, on_hold) = (Outcome::Unknown, 0, false);
                let initial = match self.kind {
                    ProbeKind::Readiness => Outcome::Failure,
                    ProbeKind::Liveness => Outcome::Success,
                    ProbeKind::Startup => Outcome::Unknown,
                };
                self.handle.probes.set(&id, self.kind, initial);
            }
            let deleted = self.handle.pod().metadata.deletion_timestamp.is_some();
            if deleted && self.kind != ProbeKind::Readiness {
                if !id.is_empty() {
                    self.handle.probes.set(&id, self.kind, Outcome::Success);
                }
                return;
            }
            let mut wait = period;
            if id.is_empty() || !running || on_hold {
                if let Some(output) = early.take().filter(|_| !running) {
                    self.unhealthy(format!("{} probe failed: {output}", self.kind.name()));
                }
                if !running
                    && !id.is_empty()
                    && self.kind == ProbeKind::Readiness
                    && self.handle.probes.set(&id, self.kind, Outcome::Failure)
                {
                    self.handle.wake();
                }
                tokio::select! {
                    result = changed.changed() => if result.is_err() { return },
                    _ = stop.cancelled() => return,
                }
                continue;
            }
            let age = jiff::Timestamp::now().as_second() - started_at;
            let delay = i64::from(probe.initial_delay_seconds.unwrap_or(0));
            let started = self.handle.probes.has_started(&self.container, &id);
            let before_first = first.saturating_duration_since(tokio::time::Instant::now());
            if age < delay {
                wait = Duration::from_secs((delay - age) as u64);
            } else if !before_first.is_zero() {
                wait = before_first;
            } else if self.kind == ProbeKind::Startup && started {
                // It has served its purpose until the next start.
                on_hold = true;
                continue;
            } else if self.kind != ProbeKind::Startup && !started {
                // The startup probe's success changes the status, which wakes us.
            } else if began.elapsed() < SETTLING
                && last == Outcome::Unknown
                && let Err(output) = self.early(&probe, &id, &stop).await
            {
                early = output.or(early);
                wait = if probe.exec.is_some() { SETTLING } else { SETTLING_RETRY }.min(period);
            } else {
                early = None;
                let outcome = tokio::select! {
                    outcome = self.probe(&probe, &id) => outcome,
                    _ = stop.cancelled() => return,
                };
                if let Some(outcome) = outcome {
                    run_length = if outcome == last { run_length + 1 } else { 1 };
                    last = outcome;
                    let needed = match outcome {
                        Outcome::Failure => probe.failure_threshold.unwrap_or(3),
                        _ => probe.success_threshold.unwrap_or(1),
                    };
                    if run_length >= needed {
                        if self.handle.probes.set(&id, self.kind, outcome) {
                            self.handle.wake();
                        }
                        if outcome == Outcome::Failure && self.kind != ProbeKind::Readiness {
                            (on_hold, run_length) = (true, 0);
                        }
                    }
                }
            }
            let next = tokio::time::Instant::now() + wait;
            loop {
                tokio::select! {
                    _ = tokio::time::sleep_until(next) => break,
                    _ = stop.cancelled() => return,
                    result = changed.changed() => {
                        if result.is_err() {
                            return;
                        }
                        // Only another container, its end, or a passed startup probe is a reason to look again before the time.
                        let (current, _, running) = self.current(&changed.borrow());
                        let has_started = self.handle.probes.has_started(&self.container, &id);
                        if current != id || !running || has_started != started {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// The present container's id, start in seconds since 1970, and whether it runs.
    fn current(&self, status: &PodStatus) -> (String, i64, bool) {
        let name = &self.container.name;
        let found = pod::container_status(&status.container_statuses, name)
            .or_else(|| pod::container_status(&status.init_container_statuses, name));
        let Some(found) = found else { return Default::default() };
        let running = found.state.as_ref().and_then(|s| s.running.as_ref());
        let started_at = running.and_then(|r| r.started_at.as_ref()).map_or(0, |t| t.0.as_second());
        (bare_id(found.container_id.as_deref().unwrap_or_default()).to_string(), started_at, running.is_some())
    }

    /// Tries a container that has just been started. That it does not pass yet is only worth telling if it ends before it is asked again.
    async fn early(&self, probe: &Probe, id: &str, stop: &CancellationToken) -> Result<(), Option<String>> {
        let pod = self.handle.pod();
        tokio::select! {
            result = self.attempt(probe, id, &pod) => match result {
                Ok(None) => Ok(()),
                Ok(Some(output)) => Err(Some(output)),
                Err(_) => Err(None),
            },
            _ = stop.cancelled() => Err(None),
        }
    }

    fn unhealthy(&self, message: String) {
        self.prober.events.pod(&self.handle.pod(), Some(&self.field), "Warning", "Unhealthy", message);
    }

    /// One result, after trying again what could not be carried out. `None` if it never could.
    async fn probe(&self, probe: &Probe, id: &str) -> Option<Outcome> {
        let pod = self.handle.pod();
        let mut error = String::new();
        for _ in 0..ATTEMPTS_MAX {
            match self.attempt(probe, id, &pod).await {
                Ok(None) => return Some(Outcome::Success),
                Ok(Some(mut output)) => {
                    if output.len() > OUTPUT_BYTES_MAX {
                        let cut = (0..=OUTPUT_BYTES_MAX).rev().find(|i| output.is_char_boundary(*i)).unwrap_or(0);
                        output.truncate(cut);
                    }
                    self.unhealthy(format!("{} probe failed: {output}", self.kind.name()));
                    return Some(Outcome::Failure);
                }
                Err(e) => error = e,
            }
        }
        self.unhealthy(format!("{} probe errored and resulted in unknown state: {error}", self.kind.name()));
        None
    }

    /// `Ok(None)` is success, `Ok(Some(output))` is failure, an error says nothing about the container.
    async fn attempt(&self, probe: &Probe, id: &str, pod: &Pod) -> Result<Option<String>, String> {
        let timeout = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1) as u64);
        let pod_ip = self.handle.status().pod_ip.clone().unwrap_or_default();
        if let Some(exec) = &probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            return match self.prober.runtime.exec_sync(id, &command, timeout).await {
                Ok(answer) => {
                    let output = format!(
                        "{}{}",
                        String::from_utf8_lossy(&answer.stdout),
                        String::from_utf8_lossy(&answer.stderr)
                    );
                    Ok((answer.exit_code != 0).then_some(output))
                }
                Err(e) if e.code == tonic::Code::DeadlineExceeded => Ok(Some(format!(
                    "command timed out: {:?} timed out after {}",
                    command.join(" "),
                    GoDuration(timeout)
                ))),
                Err(e) => Err(e.to_string()),
            };
        }
        if let Some(action) = &probe.http_get {
            let request = http_request(action, &self.container, &pod_ip)?;
            return match http_client::get(&request, timeout).await {
                Ok(answer) if (200..400).contains(&answer.status) => Ok(None),
                Ok(answer) => Ok(Some(format!("HTTP probe failed with statuscode: {}", answer.status))),
                Err(message) => Ok(Some(message)),
            };
        }
        if let Some(action) = &probe.tcp_socket {
            let port = resolve_port(&action.port, &self.container)?;
            let host = action.host.clone().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
            let address = http_client::address(&host, port);
            return match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
                Ok(Ok(_)) => Ok(None),
                Ok(Err(e)) => Ok(Some(http_client::dial_error(&address, &e))),
                Err(_) => Ok(Some(format!("dial tcp {address}: i/o timeout"))),
            };
        }
        if let Some(action) = &probe.grpc {
            let service = action.service.clone().unwrap_or_default();
            return grpc_check(&http_client::address(&pod_ip, action.port as u16), service, timeout).await;
        }
        let _ = pod;
        Err(format!("missing probe handler for {}:{}", pod.printed(), self.container.name))
    }
}

pub fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(port) => port.container_port,
                // What Go says about text that is no number.
                None => name.parse().map_err(|_| format!("strconv.Atoi: parsing {name:?}: invalid syntax"))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

pub fn http_request(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
) -> Result<http_client::Request, String> {
    let path = action.path.as_deref().unwrap_or_default();
    Ok(http_client::Request {
        https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host: action.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| pod_ip.to_string()),
        port: resolve_port(&action.port, container)?,
        path: if path.starts_with('/') { path.to_string() } else { format!("/{path}") },
        headers: action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
    })
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// gRPC's health protocol.
async fn grpc_check(address: &str, service: String, timeout: Duration) -> Result<Option<String>, String> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).map_err(|e| e.to_string())?;
    let call = async {
        let channel = endpoint.connect().await.map_err(|_| None)?;
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.map_err(|_| None)?;
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        grpc.unary(tonic::Request::new(HealthCheckRequest { service }), path, codec).await.map_err(Some)
    };
    let unreachable = || {
        format!(
            "timeout: failed to connect service {address:?} within {}: context deadline exceeded",
            GoDuration(timeout)
        )
    };
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(answer)) => {
            let status = answer.into_inner().status;
            let name = match status {
                1 => return Ok(None),
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            Ok(Some(format!("service unhealthy (responded with {name:?})")))
        }
        Ok(Err(Some(status))) if status.code() == tonic::Code::Unimplemented => Ok(Some(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): ".to_string()
                + status.message(),
        )),
        Ok(Err(Some(status))) => {
            Ok(Some(format!("error: health rpc probe failed: {}", crate::cri::RuntimeError::from(status))))
        }
        Ok(Err(None)) | Err(_) => Ok(Some(unreachable())),
    }
}
