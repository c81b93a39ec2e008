//! Zones and how fast their nodes' pods are evicted. When many nodes of a zone fail at once the network is the likelier
//! cause, and eviction slows down or stops.

use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

use crate::common::owners;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZoneState {
    Normal,
    PartialDisruption,
    FullDisruption,
}

/// Region and zone of a node; nodes without are one zone.
pub(super) fn zone_of(node: &Node) -> String {
    let label = |key: &str, old: &str| {
        owners::label(&node.metadata, key).or_else(|| owners::label(&node.metadata, old)).unwrap_or_default().to_owned()
    };
    let region = label("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region");
    let zone = label("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone");
    format!("{region}\u{0}{zone}")
}

pub(super) fn state_of(ready: &[bool], threshold: f32) -> ZoneState {
    let not_ready = ready.iter().filter(|ready| !**ready).count();
    let is_ready = ready.len() - not_ready;
    if is_ready == 0 && not_ready > 0 {
        ZoneState::FullDisruption
    } else if not_ready > 2 && not_ready as f32 / ready.len() as f32 >= threshold {
        ZoneState::PartialDisruption
    } else {
        ZoneState::Normal
    }
}

/// A zone's evictions: one at once, then so many a second.
pub(super) struct Zone {
    rate: f32,
    tokens: f32,
    at: Option<Instant>,
}

impl Default for Zone {
    fn default() -> Self {
        Self { rate: 0.0, tokens: 1.0, at: None }
    }
}

impl Zone {
    pub(super) fn set_rate(&mut self, rate: f32) {
        self.rate = rate;
    }

    pub(super) fn try_accept(&mut self, now: Instant) -> bool {
        if self.rate <= 0.0 {
            return false;
        }
        if let Some(at) = self.at {
            self.tokens = (self.tokens + (now - at).as_secs_f32() * self.rate).min(1.0);
        }
        self.at = Some(now);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_zone_is_disrupted_by_share_and_number() {
        assert_eq!(state_of(&[false, false], 0.55), ZoneState::FullDisruption);
        assert_eq!(state_of(&[true, false, false], 0.55), ZoneState::Normal);
        assert_eq!(state_of(&[true, false, false, false], 0.55), ZoneState::PartialDisruption);
    }

    #[tokio::test(start_paused = true)]
    async fn evictions_keep_to_the_rate() {
        let mut zone = Zone::default();
        zone.set_rate(0.1);
        let now = Instant::now();
        assert!(zone.try_accept(now));
        assert!(!zone.try_accept(now + Duration::from_secs(5)));
        assert!(zone.try_accept(now + Duration::from_secs(11)));
    }
}
