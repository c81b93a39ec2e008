//! When the change happened that endpoints are written for, by which the delay until they are in effect is measured.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;

use crate::common::owners;
use crate::common::pods;
use crate::common::slim::SlimPod;

/// The times of one service's last changes.
#[derive(Default)]
pub(crate) struct Tracker {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

impl Tracker {
    /// The earliest change that was not there the last time; `None` if none has a time, as deletions.
    pub(crate) fn next(&mut self, service: &Service, pods: &[Arc<SlimPod>]) -> Option<String> {
        let mut earliest: Option<Timestamp> = None;
        let mut consider = |time: Timestamp| earliest = Some(earliest.map_or(time, |earliest| earliest.min(time)));
        let mut seen = HashMap::new();
        for pod in pods {
            let ready = pods::condition(pod, "Ready").and_then(|condition| condition.last_transition_time.as_ref());
            let Some(time) = ready.map(|time| time.0) else { continue };
            let uid = owners::uid(&pod.metadata).to_owned();
            if self.pods.get(&uid).is_none_or(|last| time > *last) {
                consider(time);
            }
            seen.insert(uid, time);
        }
        self.pods = seen;
        if let Some(created) = service.metadata.creation_timestamp.as_ref().map(|time| time.0)
            && self.service.is_none_or(|last| created > last)
        {
            consider(created);
            self.service = Some(created);
        }
        earliest.map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }
}
