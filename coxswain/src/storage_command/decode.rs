//! Whether what lies under a key is an object that an API server can read.

use coxswain_api::codec::{self, Format};
use serde_json::Value;
use std::sync::atomic::{AtomicU64, Ordering};

/// Protobuf as upstream stores it begins so, and values that are encrypted at rest so.
const PROTOBUF: &[u8] = b"k8s\0";
const ENCRYPTED: &[u8] = b"k8s:enc:";

/// Decodes values and counts of which form they are.
#[derive(Default)]
pub struct Decoder {
    json: AtomicU64,
    protobuf: AtomicU64,
    encrypted: AtomicU64,
    other: AtomicU64,
}

impl Decoder {
    pub fn check(&self, key: &str, value: &[u8]) -> Result<(), String> {
        let count = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        if value.starts_with(ENCRYPTED) {
            count(&self.encrypted);
            return Ok(());
        }
        // What is not an object of the API: cluster IPs and ports that are taken, marks, the leases of API servers.
        let ours = ["/coxswain/", "/ranges/", "/masterleases/"].iter().any(|part| key.contains(part));
        if ours || value.is_empty() {
            count(&self.other);
            return Ok(());
        }
        let tree: Value = if value.starts_with(PROTOBUF) {
            count(&self.protobuf);
            let json = codec::convert(value, Format::Json).map_err(|e| format!("it cannot be decoded: {e}"))?;
            serde_json::from_slice(&json).map_err(|e| format!("it cannot be decoded: {e}"))?
        } else {
            count(&self.json);
            serde_json::from_slice(value).map_err(|e| format!("it cannot be decoded: {e}"))?
        };
        for field in ["kind", "apiVersion"] {
            if tree.get(field).and_then(Value::as_str).is_none_or(str::is_empty) {
                return Err(format!("it is an object without {field}"));
            }
        }
        let name = tree.pointer("/metadata/name").and_then(Value::as_str);
        let last = key.rsplit('/').next().unwrap_or_default();
        match name {
            Some(name) if name != last => Err(format!("it is the object {name:?}")),
            _ => Ok(()),
        }
    }

    pub fn summary(&self) -> String {
        let counts = [
            (&self.json, "in JSON"),
            (&self.protobuf, "in protobuf"),
            (&self.encrypted, "encrypted, which were not looked into"),
            (&self.other, "that are no objects"),
        ];
        let counts = counts.map(|(count, what)| (count.load(Ordering::Relaxed), what));
        let told: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        if told.is_empty() { "no objects".to_owned() } else { told.join(", ") }
    }
}
