//! Records what happened to an object as core/v1 Events, the counterpart of client-go's `tools/record`.
//!
//! Recording never waits: events go through a bounded queue to one task, which counts repetitions up in the existing
//! event, folds many similar events into one, and drops what a single object sends too often. When the queue is full,
//! events are dropped, as they are upstream.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;

use crate::backoff::jitter;
use crate::errors;

mod cache;

/// Events waiting to be sent.
const QUEUE_MAX: usize = 1000;
/// Similar events in `SIMILAR_INTERVAL` before they are folded into one.
const SIMILAR_MAX: usize = 10;
const SIMILAR_INTERVAL: Duration = Duration::from_secs(600);
/// An object may have this many events at once, and one more every `SPAM_REFILL`.
const SPAM_BURST: f64 = 25.0;
const SPAM_REFILL: Duration = Duration::from_secs(300);
/// How many events, similar groups and objects are remembered.
const REMEMBERED_MAX: usize = 4096;
const TRIES_MAX: usize = 12;
const RETRY_DELAY: Duration = Duration::from_secs(10);

/// Clones share the queue. `component` (and, for a node's components, `host`) is the events' source.
#[derive(Clone)]
pub struct EventRecorder(Arc<Inner>);

struct Inner {
    component: String,
    host: Option<String>,
    queue: mpsc::Sender<Event>,
}

impl EventRecorder {
    pub fn new(client: Client, component: &str, host: Option<&str>) -> Self {
        let (queue, events) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(Correlator::new(client).run(events));
        Self(Arc::new(Inner { component: component.to_owned(), host: host.map(str::to_owned), queue }))
    }

    /// Drops everything; for tests of what records.
    pub fn discarding() -> Self {
        let (queue, _) = mpsc::channel(1);
        Self(Arc::new(Inner { component: String::new(), host: None, queue }))
    }

    pub fn normal(&self, about: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(about, "Normal", reason, message);
    }

    pub fn warning(&self, about: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(about, "Warning", reason, message);
    }

    pub fn event(&self, about: &ObjectReference, kind: &str, reason: &str, message: impl Into<String>) {
        self.event_with_annotations(about, None, kind, reason, message);
    }

    pub fn event_with_annotations(
        &self,
        about: &ObjectReference,
        annotations: Option<std::collections::BTreeMap<String, String>>,
        kind: &str,
        reason: &str,
        message: impl Into<String>,
    ) {
        let now = Timestamp::now();
        let name = about.name.clone().unwrap_or_default();
        let namespace =
            about.namespace.clone().filter(|namespace| !namespace.is_empty()).unwrap_or_else(|| "default".to_owned());
        let mut message = message.into();
        truncate(&mut message, 1024);
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace),
                annotations,
                ..ObjectMeta::default()
            },
            involved_object: about.clone(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            type_: Some(kind.to_owned()),
            source: Some(EventSource { component: Some(self.0.component.clone()), host: self.0.host.clone() }),
            reporting_component: Some(self.0.component.clone()),
            reporting_instance: self.0.host.clone(),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            ..Event::default()
        };
        if self.0.queue.try_send(event).is_err() {
            tracing::trace!(component = self.0.component, "dropped an event, as too many wait");
        }
    }
}

/// A reference to an object for [`EventRecorder`], as `ref.GetReference` makes it.
pub fn reference<K: kube::Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

fn truncate(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|index| text.is_char_boundary(*index)).unwrap_or(0);
        text.truncate(end);
    }
}

/// Decides what becomes of each event and sends it. Owned by the recorder's task.
struct Correlator {
    client: Client,
    /// The similar events of a group: their distinct messages, and when the last came.
    similar: cache::Lru<String, Similar>,
    /// Events that exist on the server.
    sent: cache::Lru<String, Sent>,
    /// Tokens left to each object and source, as of a moment.
    spam: cache::Lru<String, (f64, Timestamp)>,
}

struct Similar {
    messages: HashSet<String>,
    last: Timestamp,
}

#[derive(Clone)]
struct Sent {
    name: String,
    resource_version: String,
    count: i32,
    first: Time,
}

/// What is to be done with an event.
enum Verdict {
    Create(Box<Event>),
    CountUp(Box<Event>),
    Drop,
}

impl Correlator {
    fn new(client: Client) -> Self {
        Self {
            client,
            similar: cache::Lru::new(REMEMBERED_MAX),
            sent: cache::Lru::new(REMEMBERED_MAX),
            spam: cache::Lru::new(REMEMBERED_MAX),
        }
    }

    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            let (group, message) = group_of(&event);
            let (verdict, key) = self.correlate(event, &group, message, Timestamp::now());
            self.send(verdict, key).await;
        }
    }

    /// Folds similar events, counts equal ones, and drops spam. The key names the event among those sent.
    fn correlate(&mut self, mut event: Event, group: &str, message: String, now: Timestamp) -> (Verdict, String) {
        // Similar: the same but for the message. Beyond a number of messages they become one event.
        let similar =
            self.similar.get_or_insert_with(group.to_owned(), || Similar { messages: HashSet::new(), last: now });
        if (now.as_second() - similar.last.as_second()) as u64 > SIMILAR_INTERVAL.as_secs() {
            similar.messages.clear();
        }
        similar.last = now;
        let mut key = format!("{group}\u{0}{message}");
        // The first messages go on being counted each for itself; all others share one event.
        if !similar.messages.contains(&message) {
            if similar.messages.len() + 1 < SIMILAR_MAX {
                similar.messages.insert(message);
            } else {
                event.message = Some(format!("(combined from similar events): {}", event.message.unwrap_or_default()));
                // Upstream makes this event of the older fields alone.
                event.metadata.annotations = None;
                event.reporting_component = None;
                event.reporting_instance = None;
                key = group.to_owned();
            }
        }
        if !self.allowed(&event, now) {
            return (Verdict::Drop, key);
        }
        match self.sent.get(&key) {
            Some(sent) => {
                sent.count += 1;
                event.metadata.name = Some(sent.name.clone());
                event.metadata.resource_version = Some(sent.resource_version.clone());
                event.first_timestamp = Some(sent.first.clone());
                event.count = Some(sent.count);
                (Verdict::CountUp(Box::new(event)), key)
            }
            None => (Verdict::Create(Box::new(event)), key),
        }
    }

    fn allowed(&mut self, event: &Event, now: Timestamp) -> bool {
        let source = event.source.clone().unwrap_or_default();
        let about = &event.involved_object;
        let key = [
            source.component,
            source.host,
            about.kind.clone(),
            about.namespace.clone(),
            about.name.clone(),
            about.uid.clone(),
            about.api_version.clone(),
        ]
        .map(Option::unwrap_or_default)
        .join("\u{0}");
        let (tokens, at) = self.spam.get_or_insert_with(key, || (SPAM_BURST, now));
        let passed = now.duration_since(*at).as_secs_f64().max(0.0);
        *tokens = (*tokens + passed / SPAM_REFILL.as_secs_f64()).min(SPAM_BURST);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    async fn send(&mut self, verdict: Verdict, key: String) {
        let (mut event, mut exists) = match verdict {
            Verdict::Drop => return,
            Verdict::Create(event) => (event, false),
            Verdict::CountUp(event) => (event, true),
        };
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        for attempt in 0..TRIES_MAX {
            let result = if exists {
                let name = event.metadata.name.clone().unwrap_or_default();
                let patch = serde_json::json!({
                    "count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message,
                });
                api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await
            } else {
                event.metadata.resource_version = None;
                api.create(&PostParams::default(), &event).await
            };
            match result {
                Ok(stored) => {
                    let sent = Sent {
                        name: stored.metadata.name.unwrap_or_default(),
                        resource_version: stored.metadata.resource_version.unwrap_or_default(),
                        count: stored.count.unwrap_or(1),
                        first: stored.first_timestamp.unwrap_or_else(|| Time(Timestamp::now())),
                    };
                    self.sent.insert(key, sent);
                    return;
                }
                // The event to count up has expired: it begins anew.
                Err(error) if exists && errors::is_not_found(&error) => exists = false,
                Err(kube::Error::Api(status)) => {
                    tracing::debug!(reason = status.reason, message = status.message, "the server rejected an event");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot send an event");
                    let delay =
                        if attempt == 0 { RETRY_DELAY.mul_f64(rand::random()) } else { jitter(RETRY_DELAY, 0.1) };
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }
}

/// What similar events have in common, and the message in which they differ.
fn group_of(event: &Event) -> (String, String) {
    let source = event.source.clone().unwrap_or_default();
    let about = event.involved_object.clone();
    let group = [
        source.component,
        source.host,
        about.kind,
        about.namespace,
        about.name,
        about.uid,
        about.api_version,
        about.field_path,
        event.type_.clone(),
        event.reason.clone(),
        event.reporting_component.clone(),
        event.reporting_instance.clone(),
    ]
    .map(Option::unwrap_or_default)
    .join("\u{0}");
    (group, event.message.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn correlator() -> Correlator {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Empty::<bytes::Bytes>::new()))
        });
        Correlator::new(Client::new(service, "default"))
    }

    fn event(message: &str) -> Event {
        Event { message: Some(message.to_owned()), reason: Some("R".to_owned()), ..Event::default() }
    }

    #[tokio::test]
    async fn the_tenth_similar_event_is_combined_and_the_twenty_sixth_dropped() {
        let mut correlator = correlator();
        let now = Timestamp::now();
        let mut verdicts = Vec::new();
        for index in 0..30 {
            let event = event(&format!("message {index}"));
            let (group, message) = group_of(&event);
            let (verdict, _) = correlator.correlate(event, &group, message, now);
            verdicts.push(match verdict {
                Verdict::Drop => "dropped".to_owned(),
                Verdict::Create(event) | Verdict::CountUp(event) => event.message.unwrap(),
            });
        }
        assert_eq!(verdicts[8], "message 8");
        assert_eq!(verdicts[9], "(combined from similar events): message 9");
        assert_eq!(verdicts[24], "(combined from similar events): message 24");
        assert_eq!(verdicts[25], "dropped");
    }
}
