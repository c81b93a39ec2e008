//! Leader election on a `coordination.k8s.io/v1` Lease, the counterpart of client-go's `tools/leaderelection`.
//!
//! A candidate takes the lease when it is free or has not been renewed for its duration by the candidate's own clock, and
//! renews it until it fails to for the renew deadline; then it no longer leads and its work must end.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::jitter;
use crate::errors;
use crate::events::EventRecorder;

/// A candidate retries after up to this many times its retry period more.
const RETRY_JITTER: f64 = 1.2;

/// How a component elects its leader, the counterpart of `LeaderElectionConfiguration`.
#[derive(Clone, Debug)]
pub struct LeaderElection {
    pub namespace: String,
    /// The lease's name, which is by custom the component's.
    pub name: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl LeaderElection {
    /// In `kube-system`, with upstream's times: 15 s, 10 s and 2 s.
    pub fn named(name: &str) -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            name: name.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

#[derive(Clone)]
pub struct LeaderElector {
    pub client: Client,
    pub namespace: String,
    pub name: String,
    /// Distinct for each candidate: host name and a random part.
    pub identity: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
    pub recorder: Option<EventRecorder>,
}

/// The lease as last seen, and when by this process's clock it last changed.
struct Observed {
    spec: LeaseSpec,
    at: Instant,
}

impl LeaderElector {
    pub fn new(client: Client, election: &LeaderElection, identity: String) -> Self {
        Self {
            client,
            namespace: election.namespace.clone(),
            name: election.name.clone(),
            identity,
            lease_duration: election.lease_duration,
            renew_deadline: election.renew_deadline,
            retry_period: election.retry_period,
            recorder: None,
        }
    }

    /// An identity as upstream forms it: `HOST_UUID`.
    pub fn identity() -> String {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let random: u128 = rand::random();
        let hex = format!("{random:032x}");
        format!("{}_{}-{}-{}-{}-{}", host.trim(), &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    /// Waits to lead, then runs `work` with a token that is cancelled when leadership is lost or `shutdown` comes. Returns
    /// whether it ended by `shutdown`; otherwise leadership was lost, and the caller should end the process as upstream does.
    pub async fn run<F, Fut>(&self, shutdown: CancellationToken, work: F) -> bool
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        let mut observed = None;
        while !self.try_acquire_or_renew(&mut observed).await.unwrap_or(false) {
            tokio::select! {
                () = tokio::time::sleep(jitter(self.retry_period, RETRY_JITTER)) => {}
                () = shutdown.cancelled() => return true,
            }
        }
        tracing::info!(lease = self.name, identity = self.identity, "became leader");
        self.record("became leader");
        let leading = shutdown.child_token();
        let renew = async {
            let mut renewed = Instant::now();
            loop {
                tokio::time::sleep(self.retry_period).await;
                let attempt =
                    tokio::time::timeout_at(renewed + self.renew_deadline, self.try_acquire_or_renew(&mut observed));
                match attempt.await {
                    Ok(Ok(true)) => renewed = Instant::now(),
                    Ok(Ok(false)) => return,
                    Ok(Err(error)) => {
                        tracing::debug!(lease = self.name, %error, "cannot renew the lease");
                        if renewed.elapsed() >= self.renew_deadline {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
        };
        let work = work(leading.clone());
        tokio::pin!(work);
        let (lost, finished) = tokio::select! {
            () = renew => (true, false),
            () = &mut work => (false, true),
            () = shutdown.cancelled() => (false, false),
        };
        leading.cancel();
        if lost {
            tracing::error!(lease = self.name, "leader election lost");
            self.record("stopped leading");
            return false;
        }
        if !finished {
            work.await;
        }
        self.release(observed).await;
        true
    }

    async fn try_acquire_or_renew(&self, observed: &mut Option<Observed>) -> Result<bool, kube::Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = errors::ignore_not_found(api.get(&self.name).await)? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    namespace: Some(self.namespace.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(now.clone(), now, 0)),
            };
            let created = api.create(&PostParams::default(), &lease).await?;
            *observed = created.spec.map(|spec| Observed { spec, at: Instant::now() });
            return Ok(true);
        };
        let held = lease.spec.clone().unwrap_or_default();
        if observed.as_ref().is_none_or(|observed| observed.spec != held) {
            *observed = Some(Observed { spec: held.clone(), at: Instant::now() });
        }
        let holder = held.holder_identity.clone().unwrap_or_default();
        let own = holder == self.identity;
        let expiry = Duration::from_secs(held.lease_duration_seconds.unwrap_or(15).max(0) as u64);
        if !holder.is_empty() && !own && observed.as_ref().is_some_and(|observed| observed.at.elapsed() < expiry) {
            return Ok(false);
        }
        let transitions = held.lease_transitions.unwrap_or(0);
        lease.spec = Some(if own {
            self.spec(held.acquire_time.unwrap_or_else(|| now.clone()), now, transitions)
        } else {
            self.spec(now.clone(), now, transitions + 1)
        });
        let updated = api.replace(&self.name, &PostParams::default(), &lease).await?;
        *observed = updated.spec.map(|spec| Observed { spec, at: Instant::now() });
        Ok(true)
    }

    fn spec(&self, acquired: MicroTime, renewed: MicroTime, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(self.lease_duration.as_secs() as i32),
            acquire_time: Some(acquired),
            renew_time: Some(renewed),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Gives the lease up so that the next leader need not wait for it to expire.
    async fn release(&self, observed: Option<Observed>) {
        let transitions = observed.and_then(|observed| observed.spec.lease_transitions).unwrap_or(0);
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let attempt = async {
            let mut lease = api.get(&self.name).await?;
            if lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref()) != Some(&self.identity) {
                return Ok(());
            }
            let now = MicroTime(Timestamp::now());
            let mut spec = self.spec(now.clone(), now, transitions);
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            lease.spec = Some(spec);
            api.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), attempt).await;
    }

    fn record(&self, what: &str) {
        if let Some(recorder) = &self.recorder {
            let reference = k8s_openapi::api::core::v1::ObjectReference {
                kind: Some("Lease".to_owned()),
                api_version: Some("coordination.k8s.io/v1".to_owned()),
                namespace: Some(self.namespace.clone()),
                name: Some(self.name.clone()),
                ..Default::default()
            };
            recorder.normal(&reference, "LeaderElection", format!("{} {what}", self.identity));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Method;
    use http_body_util::{BodyExt, Full};
    use kube::client::Body;
    use parking_lot::Mutex;

    use super::*;

    /// A server that holds one lease and rejects writes of an old version.
    fn server() -> Client {
        let held: Arc<Mutex<Option<(u64, serde_json::Value)>>> = Arc::default();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let held = held.clone();
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect().await.unwrap().to_bytes();
                let sent: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
                let mut held = held.lock();
                let version = held.as_ref().map_or(0, |(version, _)| *version);
                let fresh = |sent: &serde_json::Value| {
                    sent["metadata"]["resourceVersion"].as_str() == Some(&version.to_string())
                };
                let accepted = match (&parts.method, sent) {
                    (&Method::GET, _) => version > 0,
                    (&Method::POST, Some(sent)) if version == 0 => {
                        *held = Some((1, sent));
                        true
                    }
                    (&Method::PUT, Some(sent)) if fresh(&sent) => {
                        *held = Some((version + 1, sent));
                        true
                    }
                    _ => false,
                };
                let (code, answer) = match (&mut *held, accepted) {
                    (Some((version, lease)), true) => {
                        lease["metadata"]["resourceVersion"] = version.to_string().into();
                        (200, lease.clone())
                    }
                    (None, _) => (404, serde_json::json!({"kind": "Status", "reason": "NotFound", "code": 404})),
                    _ => (409, serde_json::json!({"kind": "Status", "reason": "Conflict", "code": 409})),
                };
                let body = Full::new(bytes::Bytes::from(answer.to_string()));
                Ok::<_, std::convert::Infallible>(http::Response::builder().status(code).body(body).unwrap())
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn one_candidate_leads_and_the_next_follows_when_it_lets_go() {
        let client = server();
        let led = Arc::new(Mutex::new(Vec::new()));
        let lead = |name: &'static str, shutdown: CancellationToken| {
            let elector = LeaderElector::new(client.clone(), &LeaderElection::named("test"), name.to_owned());
            let led = led.clone();
            tokio::spawn(async move {
                elector
                    .run(shutdown, |leading| async move {
                        led.lock().push(name);
                        leading.cancelled().await;
                    })
                    .await
            })
        };
        let (first, second) = (CancellationToken::new(), CancellationToken::new());
        let one = lead("one", first.clone());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let two = lead("two", second.clone());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(*led.lock(), ["one"], "the lease is renewed");
        first.cancel();
        assert!(one.await.unwrap());
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(*led.lock(), ["one", "two"]);
        second.cancel();
        assert!(two.await.unwrap());
    }
}
