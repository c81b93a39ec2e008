//! Events about pods through `events.k8s.io/v1`, the counterpart of client-go's `tools/events`: an event that happens again
//! becomes a series, whose first note stays.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use coxswain_client::Client;
use coxswain_client::objects::{self, PatchKind};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::pod::PodInfo;

/// Events waiting to be sent; more are dropped.
const QUEUE_MAX: usize = 1000;
const SERIES_MAX: usize = 4096;
/// A series that goes on is reported this often, and ends after silence.
const REFRESH: Duration = Duration::from_secs(1800);
const SILENCE: Duration = Duration::from_secs(360);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    kind: &'static str,
    reason: &'static str,
    action: &'static str,
    controller: String,
    /// A version of an object: what happens to a later one is another event, with a note of its own.
    regarding: String,
    related: Option<String>,
}

struct Record {
    key: Key,
    namespace: String,
    body: Value,
}

#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Record>,
    host: String,
}

fn reference(pod: &PodInfo) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "namespace": pod.key.namespace, "name": pod.key.name, "uid": pod.uid,
        "resourceVersion": pod.resource_version,
    })
}

fn version(pod: &PodInfo) -> String {
    format!("{}/{}", pod.uid, pod.resource_version)
}

impl Recorder {
    pub fn new(client: Client) -> Self {
        let (queue, records) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(send(client, records));
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { queue, host: host.trim().to_owned() }
    }

    pub fn record(
        &self,
        pod: &PodInfo,
        related: Option<&PodInfo>,
        (kind, reason, action): (&'static str, &'static str, &'static str),
        controller: &str,
        note: &str,
    ) {
        let now = Timestamp::now();
        let note: String = note.chars().take(1024).collect();
        let mut body = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": format!("{}.{:x}", pod.key.name, now.as_nanosecond()), "namespace": pod.key.namespace},
            "eventTime": format!("{now:.6}"),
            "reportingController": controller,
            "reportingInstance": format!("{controller}-{}", self.host),
            "action": action, "reason": reason, "type": kind, "note": note,
            "regarding": reference(pod),
        });
        if let Some(related) = related {
            body["related"] = reference(related);
        }
        let key = Key {
            kind,
            reason,
            action,
            controller: controller.to_owned(),
            regarding: version(pod),
            related: related.map(version),
        };
        if self.queue.try_send(Record { key, namespace: pod.key.namespace.clone(), body }).is_err() {
            tracing::trace!(pod = %pod.key, reason, "dropped an event, as too many wait");
        }
    }
}

struct Series {
    path: String,
    count: u32,
    last: Instant,
    last_time: Timestamp,
    reported: Instant,
    reported_count: u32,
}

async fn send(client: Client, mut records: mpsc::Receiver<Record>) {
    let mut series: HashMap<Key, Series> = HashMap::new();
    let mut tick = tokio::time::interval(SILENCE / 6);
    loop {
        let record = tokio::select! {
            record = records.recv() => record,
            _ = tick.tick() => {
                let silent: Vec<Key> = series.iter().filter(|(_, s)| s.last.elapsed() > SILENCE).map(|(k, _)| k.clone()).collect();
                for key in silent {
                    if let Some(mut ended) = series.remove(&key).filter(|s| s.count > s.reported_count) {
                        report(&client, &mut ended).await;
                    }
                }
                continue;
            }
        };
        let Some(record) = record else { return };
        if let Some(known) = series.get_mut(&record.key) {
            known.count += 1;
            known.last = Instant::now();
            known.last_time = Timestamp::now();
            if known.count == 2 || known.reported.elapsed() > REFRESH {
                report(&client, known).await;
            }
            continue;
        }
        let collection = format!("/apis/events.k8s.io/v1/namespaces/{}/events", record.namespace);
        let body = record.body.to_string().into_bytes();
        let created: Result<Value, _> =
            objects::request(&client, http_post(), &collection, "application/json", Some(body)).await;
        match created {
            Ok(created) if series.len() < SERIES_MAX && record.key.reason != "Scheduled" => {
                let path = format!("{collection}/{}", created["metadata"]["name"].as_str().unwrap_or_default());
                let now = Instant::now();
                let new =
                    Series { path, count: 1, last: now, last_time: Timestamp::now(), reported: now, reported_count: 1 };
                series.insert(record.key, new);
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "cannot send an event"),
        }
    }
}

fn http_post() -> http::Method {
    http::Method::POST
}

async fn report(client: &Client, series: &mut Series) {
    let patch = json!({"series": {"count": series.count, "lastObservedTime": format!("{:.6}", series.last_time)}});
    if let Err(error) = objects::patch_at::<Value>(client, &series.path, PatchKind::Strategic, &patch).await {
        tracing::debug!(%error, "cannot count an event up");
    }
    series.reported = Instant::now();
    series.reported_count = series.count;
}
