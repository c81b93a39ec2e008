//! How long a job waits after its pods failed: 10 s after the first failure, twice as long after each more, up to ten
//! minutes; a success starts over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::common::slim::SlimPod;
use crate::common::{owners, pods};

const DELAY: Duration = Duration::from_secs(10);
const DELAY_MAX: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct Record {
    failures: u32,
    last: Option<Timestamp>,
    /// Pods that were counted here, as long as they are there.
    seen: HashMap<String, ()>,
}

impl Record {
    /// Takes in pods that finished and are not in the job's status yet.
    pub(super) fn observe(&mut self, pods: &[Arc<SlimPod>], is_new: impl Fn(&SlimPod) -> bool) {
        let mut finished: Vec<(&SlimPod, Timestamp)> = pods
            .iter()
            .filter(|pod| {
                pods::is_terminated(pod) && is_new(pod) && !self.seen.contains_key(owners::uid(&pod.metadata))
            })
            .map(|pod| (pod.as_ref(), finished_at(pod)))
            .collect();
        finished.sort_by_key(|(_, at)| *at);
        for (pod, at) in finished {
            if pods::phase(pod) == "Succeeded" {
                self.failures = 0;
                self.last = None;
            } else {
                self.failures += 1;
                self.last = Some(at);
            }
        }
        self.seen = pods
            .iter()
            .filter(|pod| pods::is_terminated(pod))
            .map(|pod| (owners::uid(&pod.metadata).to_owned(), ()))
            .collect();
    }

    pub(super) fn remaining(&self, now: Timestamp) -> Option<Duration> {
        remaining(self.failures, self.last?, now)
    }
}

/// What is left of the wait after so many failures, the last of them at `last`.
pub(super) fn remaining(failures: u32, last: Timestamp, now: Timestamp) -> Option<Duration> {
    let delay = DELAY_MAX.min(DELAY * 2u32.saturating_pow(failures.saturating_sub(1).min(16)));
    let passed = Duration::try_from(now.duration_since(last)).unwrap_or(Duration::ZERO);
    Some(delay.saturating_sub(passed)).filter(|left| !left.is_zero())
}

/// When the last container ended, or else when the pod went unready.
pub(super) fn finished_at(pod: &Pod) -> Timestamp {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ended = statuses
        .filter_map(|status| status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref())
        .map(|time| time.0)
        .max();
    let unready = || pods::condition(pod, "Ready")?.last_transition_time.as_ref().map(|time| time.0);
    ended.or_else(unready).unwrap_or_else(Timestamp::now)
}
