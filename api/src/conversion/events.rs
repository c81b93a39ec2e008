//! `events.k8s.io` and core events are stored as one; their fields have other names.

use super::rename;
use serde_json::Value;

/// The names in `events.k8s.io` and in core.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

pub(super) fn to_core(event: &mut Value) {
    NAMES.iter().for_each(|(theirs, ours)| rename(event, theirs, ours));
}

pub(super) fn from_core(event: &mut Value) {
    NAMES.iter().for_each(|(theirs, ours)| rename(event, ours, theirs));
}
