//! What is counted about storage, under upstream's names, in Prometheus' text form (upstream:
//! `storage/etcd3/metrics`, `storage/value/metrics.go`, `encrypt/envelope/metrics` and `encryptionconfig/metrics`).
//!
//! A process has one store, so the families are the process's own, as they are upstream.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// At most this many combinations of labels are told apart in one family.
const SERIES_MAX: usize = 4_096;

const REQUEST_SECONDS: Buckets = Buckets::Fixed(&[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
]);
const OF_OBJECT: &[&str] = &["operation", "group", "resource"];
const OF_KEY: &[&str] = &["transformation_type", "provider_name", "key_id_hash", "apiserver_id_hash"];

pub static REQUEST_DURATION: Family = Family::new(
    "etcd_request_duration_seconds",
    "[ALPHA] Etcd request latency in seconds for each operation and object type.",
    Kind::Histogram(REQUEST_SECONDS),
    OF_OBJECT,
);
pub static REQUESTS: Family = Family::new(
    "etcd_requests_total",
    "[ALPHA] Etcd request counts for each operation and object type.",
    Kind::Counter,
    OF_OBJECT,
);
pub static REQUEST_ERRORS: Family = Family::new(
    "etcd_request_errors_total",
    "[ALPHA] Etcd failed request counts for each operation and object type.",
    Kind::Counter,
    OF_OBJECT,
);
pub static EVENTS_RECEIVED: Family = Family::new(
    "apiserver_storage_events_received_total",
    "[BETA] Number of etcd events received split by kind.",
    Kind::Counter,
    &["group", "resource"],
);
pub static DECODE_ERRORS: Family = Family::new(
    "apiserver_storage_decode_errors_total",
    "[ALPHA] Number of stored object decode errors split by object type",
    Kind::Counter,
    &["group", "resource"],
);
pub static LEASE_OBJECTS: Family = Family::new(
    "etcd_lease_object_counts",
    "[ALPHA] Number of objects attached to a single etcd lease.",
    Kind::Histogram(Buckets::Fixed(&[10.0, 50.0, 100.0, 500.0, 1000.0, 2500.0, 5000.0])),
    &[],
);
pub static TRANSFORMATIONS: Family = Family::new(
    "apiserver_storage_transformation_operations_total",
    "[ALPHA] Total number of transformations. Successful transformation will have a status 'OK' and a varied status string when the transformation fails. The status, resource, and transformation_type fields can be used for alerting purposes. For example, you can monitor for encryption/decryption failures using the transformation_type (e.g., from_storage for decryption and to_storage for encryption). Additionally, these fields can be used to ensure that the correct transformers are applied to each resource.",
    Kind::Counter,
    &["resource", "transformation_type", "transformer_prefix", "status"],
);
pub static TRANSFORMATION_DURATION: Family = Family::new(
    "apiserver_storage_transformation_duration_seconds",
    "[ALPHA] Latencies in seconds of value transformation operations.",
    Kind::Histogram(Buckets::Doubling { first: 5e-6, count: 25 }),
    &["transformation_type", "transformer_prefix"],
);
pub static CACHE_MISSES: Family = Family::new(
    "apiserver_storage_envelope_transformation_cache_misses_total",
    "[ALPHA] Total number of cache misses while accessing key decryption key(KEK).",
    Kind::Counter,
    &[],
);
pub static DATA_KEY_GENERATION: Family = Family::new(
    "apiserver_storage_data_key_generation_duration_seconds",
    "[ALPHA] Latencies in seconds of data encryption key(DEK) generation operations.",
    Kind::Histogram(Buckets::Doubling { first: 5e-6, count: 14 }),
    &[],
);
pub static DATA_KEY_FAILURES: Family = Family::new(
    "apiserver_storage_data_key_generation_failures_total",
    "[ALPHA] Total number of failed data encryption key(DEK) generation operations.",
    Kind::Counter,
    &[],
);
pub static KMS_OPERATIONS: Family = Family::new(
    "apiserver_envelope_encryption_kms_operations_latency_seconds",
    "[ALPHA] KMS operation duration with gRPC error code status total.",
    Kind::Histogram(Buckets::Doubling { first: 0.0001, count: 20 }),
    &["provider_name", "method_name", "grpc_status_code"],
);
pub static KEY_ID_USES: Family = Family::new(
    "apiserver_envelope_encryption_key_id_hash_total",
    "[ALPHA] Number of times a keyID is used split by transformation type, provider, and apiserver identity.",
    Kind::Counter,
    OF_KEY,
);
pub static KEY_ID_LAST_USE: Family = Family::new(
    "apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds",
    "[ALPHA] The last time in seconds when a keyID was used.",
    Kind::Gauge,
    OF_KEY,
);
pub static KEY_ID_LAST_STATUS: Family = Family::new(
    "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds",
    "[ALPHA] The last time in seconds when a keyID was returned by the Status RPC call.",
    Kind::Gauge,
    &["provider_name", "key_id_hash", "apiserver_id_hash"],
);
pub static KEY_ID_INVALID: Family = Family::new(
    "apiserver_envelope_encryption_invalid_key_id_from_status_total",
    "[ALPHA] Number of times an invalid keyID is returned by the Status RPC call split by error.",
    Kind::Counter,
    &["provider_name", "error"],
);
pub static DEK_SOURCES: Family = Family::new(
    "apiserver_envelope_encryption_dek_source_cache_size",
    "[ALPHA] Number of records in data encryption key (DEK) source cache. On a restart, this value is an approximation of the number of decrypt RPC calls the server will make to the KMS plugin.",
    Kind::Gauge,
    &["provider_name"],
);
pub static RELOADS: Family = Family::new(
    "apiserver_encryption_config_controller_automatic_reloads_total",
    "[ALPHA] Total number of reload successes and failures of encryption configuration split by apiserver identity.",
    Kind::Counter,
    &["status", "apiserver_id_hash"],
);
pub static LAST_RELOAD: Family = Family::new(
    "apiserver_encryption_config_controller_automatic_reload_last_timestamp_seconds",
    "[ALPHA] Timestamp of the last successful or failed automatic reload of encryption configuration split by apiserver identity.",
    Kind::Gauge,
    &["status", "apiserver_id_hash"],
);
pub static CONFIG_INFO: Family = Family::new(
    "apiserver_encryption_config_controller_last_config_info",
    "[ALPHA] Information about the last applied encryption configuration with hash as label, split by apiserver identity.",
    Kind::Gauge,
    &["apiserver_id_hash", "hash"],
);

// What only the embedded store has; upstream has no such thing.
pub static GROUP_SECONDS: Family = Family::new(
    "coxswain_storage_group_duration_seconds",
    "How long the embedded store takes to make a group of commits durable.",
    Kind::Histogram(Buckets::Doubling { first: 0.0001, count: 16 }),
    &[],
);
pub static GROUP_COMMITS: Family = Family::new(
    "coxswain_storage_group_commits",
    "How many commits the embedded store makes durable together.",
    Kind::Histogram(Buckets::Doubling { first: 1.0, count: 10 }),
    &[],
);
pub static WRITE_FAILURES: Family = Family::new(
    "coxswain_storage_write_failures_total",
    "Failed writes of the embedded store, after each of which it opens its directory again.",
    Kind::Counter,
    &[],
);
pub static REVISION: Family = Family::new(
    "coxswain_storage_revision",
    "The newest revision of the embedded store, and the oldest that can be read.",
    Kind::Gauge,
    &["end"],
);
pub static FREE_BYTES: Family = Family::new(
    "coxswain_storage_free_bytes",
    "The room on the disk of the embedded store; below its reserve no values are taken.",
    Kind::Gauge,
    &[],
);

static FAMILIES: [&Family; 25] = [
    &FREE_BYTES,
    &GROUP_COMMITS,
    &GROUP_SECONDS,
    &REVISION,
    &WRITE_FAILURES,
    &CONFIG_INFO,
    &LAST_RELOAD,
    &RELOADS,
    &DEK_SOURCES,
    &KEY_ID_INVALID,
    &KEY_ID_LAST_STATUS,
    &KEY_ID_LAST_USE,
    &KEY_ID_USES,
    &KMS_OPERATIONS,
    &DATA_KEY_FAILURES,
    &DATA_KEY_GENERATION,
    &DECODE_ERRORS,
    &CACHE_MISSES,
    &EVENTS_RECEIVED,
    &TRANSFORMATION_DURATION,
    &TRANSFORMATIONS,
    &LEASE_OBJECTS,
    &REQUEST_DURATION,
    &REQUEST_ERRORS,
    &REQUESTS,
];

/// Appends all families in which something was counted.
pub fn render(out: &mut String) {
    for family in FAMILIES {
        family.render(out);
    }
}

/// One request of the server to its store.
pub fn record_request(operation: &str, group: &str, resource: &str, failed: bool, duration: Duration) {
    let labels = [operation, group, resource];
    REQUEST_DURATION.observe(&labels, duration.as_secs_f64());
    REQUESTS.add(&labels, 1);
    if failed {
        REQUEST_ERRORS.add(&labels, 1);
    }
}

/// Metrics of one name.
pub struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    /// By the values of the labels.
    series: Mutex<BTreeMap<Box<[Box<str>]>, Series>>,
}

#[derive(Clone, Copy)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram(Buckets),
}

/// The upper bounds of a histogram.
#[derive(Clone, Copy)]
pub enum Buckets {
    Fixed(&'static [f64]),
    Doubling { first: f64, count: usize },
}

impl Buckets {
    fn bounds(self) -> impl Iterator<Item = f64> {
        let (fixed, first, count) = match self {
            Buckets::Fixed(bounds) => (bounds, 0.0, bounds.len()),
            Buckets::Doubling { first, count } => (&[][..], first, count),
        };
        (0..count).map(move |i| fixed.get(i).copied().unwrap_or(first * (1u64 << i) as f64))
    }
}

#[derive(Default)]
struct Series {
    value: f64,
    count: u64,
    /// How many fell in each bucket and in none before it.
    buckets: Vec<u64>,
}

impl Family {
    const fn new(name: &'static str, help: &'static str, kind: Kind, labels: &'static [&'static str]) -> Family {
        Family { name, help, kind, labels, series: parking_lot::const_mutex(BTreeMap::new()) }
    }

    pub fn add(&self, labels: &[&str], by: u64) {
        self.change(labels, |series| series.value += by as f64);
    }

    pub fn set(&self, labels: &[&str], value: f64) {
        self.change(labels, |series| series.value = value);
    }

    pub fn set_to_now(&self, labels: &[&str]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.set(labels, now.as_secs_f64());
    }

    pub fn observe(&self, labels: &[&str], value: f64) {
        let Kind::Histogram(buckets) = self.kind else { return };
        let at = buckets.bounds().position(|bound| value <= bound);
        self.change(labels, |series| {
            series.buckets.resize(buckets.bounds().count(), 0);
            if let Some(at) = at {
                series.buckets[at] += 1;
            }
            series.count += 1;
            series.value += value;
        });
    }

    /// Forgets all series.
    pub fn clear(&self) {
        self.series.lock().clear();
    }

    /// What a counter or gauge says now.
    pub fn value(&self, labels: &[&str]) -> Option<f64> {
        let key: Box<[Box<str>]> = labels.iter().map(|l| Box::from(*l)).collect();
        self.series.lock().get(&key).map(|s| s.value)
    }

    fn change(&self, labels: &[&str], change: impl FnOnce(&mut Series)) {
        debug_assert_eq!(labels.len(), self.labels.len(), "{}", self.name);
        let key: Box<[Box<str>]> = labels.iter().map(|l| Box::from(*l)).collect();
        let mut all = self.series.lock();
        if let Some(series) = all.get_mut(&key) {
            change(series);
        } else if all.len() < SERIES_MAX {
            change(all.entry(key).or_default());
        }
    }

    fn render(&self, out: &mut String) {
        let all = self.series.lock();
        if all.is_empty() {
            return;
        }
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let name = self.name;
        let _ = write!(out, "# HELP {name} {}\n# TYPE {name} {kind}\n", self.help);
        for (values, series) in all.iter() {
            let pairs = self.labels.iter().zip(values).map(|(l, v)| format!("{l}=\"{}\"", escaped(v)));
            let labels = pairs.collect::<Vec<_>>().join(",");
            let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let Kind::Histogram(buckets) = self.kind else {
                let _ = writeln!(out, "{name}{braced} {}", go_float(series.value));
                continue;
            };
            let comma = if labels.is_empty() { "" } else { "," };
            let mut below = 0;
            for (bound, count) in buckets.bounds().zip(&series.buckets) {
                below += count;
                let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{}\"}} {below}", go_float(bound));
            }
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", series.count);
            let _ = writeln!(out, "{name}_sum{braced} {}", go_float(series.value));
            let _ = writeln!(out, "{name}_count{braced} {}", series.count);
        }
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// As Go writes numbers: `5e-06`, `1.28e-03` as `0.00128`.
fn go_float(number: f64) -> String {
    if number == 0.0 || (1e-4..1e21).contains(&number.abs()) {
        return number.to_string();
    }
    let text = format!("{number:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |e| ("-", e));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        static TEST: Family =
            Family::new("t_seconds", "Help.", Kind::Histogram(Buckets::Doubling { first: 5e-6, count: 3 }), &["a"]);
        TEST.observe(&["x\"y"], 7e-6);
        TEST.observe(&["x\"y"], 3.0);
        let mut out = String::new();
        TEST.render(&mut out);
        expect![[r#"
            # HELP t_seconds Help.
            # TYPE t_seconds histogram
            t_seconds_bucket{a="x\"y",le="5e-06"} 0
            t_seconds_bucket{a="x\"y",le="1e-05"} 1
            t_seconds_bucket{a="x\"y",le="2e-05"} 1
            t_seconds_bucket{a="x\"y",le="+Inf"} 2
            t_seconds_sum{a="x\"y"} 3.000007
            t_seconds_count{a="x\"y"} 2
        "#]]
        .assert_eq(&out);
    }
}
