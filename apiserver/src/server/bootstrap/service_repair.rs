//! Compares cluster IPs and node ports with the services, at the start and every few minutes, and tells of what it finds as
//! events (upstream: the `repair` controllers of `pkg/registry/core/service`). The comparison itself is
//! [`crate::registry::allocators::repair`].

use super::{RETRY, send};
use crate::front::Front;
use crate::objects::Objects;
use crate::registry::allocators::repair::{Finding, Repair};
use coxswain_api::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

pub const HOOK: &str = "start-service-ip-repair-controllers";

/// Upstream: `repairServicesInterval`.
const INTERVAL: Duration = Duration::from_secs(180);
/// Events that are remembered, to count them up instead of telling the same again.
const TOLD_MAX: usize = 1024;
/// Events of one pass; a cluster in which everything is wrong is not flooded as well.
const EVENTS_PER_PASS_MAX: usize = 256;

pub struct ServiceRepair {
    front: Weak<Front>,
    objects: Weak<dyn Objects>,
    repair: Repair,
    told: HashMap<(String, String), Told>,
    hostname: String,
    shutdown: tokio::sync::watch::Receiver<bool>,
}

/// An event that was written.
struct Told {
    path: String,
    count: u64,
}

/// Runs the first pass until the store answers. Nothing can be taken before.
pub async fn start(front: Arc<Front>, objects: Arc<dyn Objects>, hostname: &str) -> ServiceRepair {
    let shutdown = front.shutdown.clone();
    let (weak_front, weak_objects) = (Arc::downgrade(&front), Arc::downgrade(&objects));
    let mut this = ServiceRepair {
        front: weak_front,
        objects: weak_objects,
        repair: Repair::default(),
        told: HashMap::new(),
        hostname: hostname.to_owned(),
        shutdown,
    };
    loop {
        match this.repair.run(&front.pipeline).await {
            Ok(findings) => {
                this.tell(&*objects, findings).await;
                break;
            }
            Err(error) => tracing::warn!(?error, "cluster IPs and node ports could not be compared with the services"),
        }
        tokio::time::sleep(RETRY).await;
    }
    front.health.done(HOOK);
    this
}

impl ServiceRepair {
    /// Until the server ends.
    pub async fn keep_on(mut self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                _ = self.shutdown.wait_for(|stop| *stop) => return,
            }
            let (Some(front), Some(objects)) = (self.front.upgrade(), self.objects.upgrade()) else { return };
            match self.repair.run(&front.pipeline).await {
                Ok(findings) => self.tell(&*objects, findings).await,
                Err(error) => {
                    tracing::warn!(?error, "cluster IPs and node ports could not be compared with the services");
                }
            }
        }
    }

    /// Writes an event for each, or counts up the one that was written for the same.
    async fn tell(&mut self, objects: &dyn Objects, findings: Vec<Finding>) {
        for finding in findings.into_iter().take(EVENTS_PER_PASS_MAX) {
            tracing::warn!(
                kind = finding.kind,
                namespace = finding.namespace,
                name = finding.name,
                "{}",
                finding.message
            );
            if let Err(why) = self.tell_one(objects, &finding).await {
                tracing::warn!(%why, "an event could not be written");
            }
        }
    }

    async fn tell_one(&mut self, objects: &dyn Objects, finding: &Finding) -> Result<(), String> {
        let now = jiff::Timestamp::now();
        let key = (finding.uid.clone(), finding.message.clone());
        if let Some(told) = self.told.get_mut(&key) {
            told.count += 1;
            let patch = again(finding, told.count, now);
            let path = format!("{}?fieldManager=kube-apiserver", told.path);
            let (code, _) = send(objects, "PATCH", &path, Some(&patch)).await?;
            if code == 200 {
                return Ok(());
            }
            // It has expired meanwhile.
            self.told.remove(&key);
        }
        let (collection, event) = event(finding, now, &self.hostname);
        let (code, answer) =
            send(objects, "POST", &format!("{collection}?fieldManager=kube-apiserver"), Some(&event)).await?;
        if code != 201 {
            return Err(format!("{code} {}", answer["message"].as_str().unwrap_or_default()));
        }
        if self.told.len() >= TOLD_MAX {
            self.told.clear();
        }
        let name = event.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        self.told.insert(key, Told { path: format!("{collection}/{name}"), count: 1 });
        Ok(())
    }
}

/// Ports have events of the older kind, addresses those of `events.k8s.io`, as upstream's two controllers.
fn event(finding: &Finding, now: jiff::Timestamp, host: &str) -> (String, Value) {
    let namespace = if finding.namespace.is_empty() { "default" } else { &finding.namespace };
    let metadata = json!({"name": format!("{}.{:x}", finding.name, now.as_nanosecond()), "namespace": namespace});
    let mut regarding = json!({
        "kind": finding.kind,
        "apiVersion": if finding.kind == "Service" { "v1" } else { "networking.k8s.io/v1" },
        "name": finding.name,
        "uid": finding.uid,
        "resourceVersion": finding.resource_version,
    });
    if !finding.namespace.is_empty() {
        regarding["namespace"] = finding.namespace.as_str().into();
    }
    if finding.action.is_empty() {
        let time = format!("{now:.0}");
        let component = "portallocator-repair-controller";
        let event = json!({
            "kind": "Event", "apiVersion": "v1", "metadata": metadata, "involvedObject": regarding,
            "type": "Warning", "reason": finding.reason, "message": finding.message, "count": 1,
            "firstTimestamp": time, "lastTimestamp": time,
            "source": {"component": component}, "reportingComponent": component,
        });
        return (format!("/api/v1/namespaces/{namespace}/events"), event);
    }
    let controller = "ipallocator-repair-controller";
    let event = json!({
        "kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": metadata, "regarding": regarding,
        "type": "Warning", "reason": finding.reason, "action": finding.action, "note": finding.message,
        "eventTime": format!("{now:.6}"),
        "reportingController": controller, "reportingInstance": format!("{controller}-{host}"),
    });
    (format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"), event)
}

/// What changes of an event whose cause is found again.
fn again(finding: &Finding, count: u64, now: jiff::Timestamp) -> Value {
    match finding.action.is_empty() {
        true => json!({"count": count, "lastTimestamp": format!("{now:.0}")}),
        false => json!({"series": {"count": count, "lastObservedTime": format!("{now:.6}")}}),
    }
}
