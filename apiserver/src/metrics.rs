//! What is counted of requests, for `/metrics` (upstream: `endpoints/metrics`). One lock and one look-up a request.

pub mod admission;
mod process;
mod render;

pub(crate) use process::started_seconds;
pub(crate) use render::head;

use crate::registry::options::Query;
use crate::request::RequestInfo;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Upper bounds of the durations of requests, in seconds.
const SECONDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// Upper bounds of the sizes of answers, in bytes.
const BYTES: [f64; 7] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

/// How a request is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels {
    pub verb: Box<str>,
    pub dry_run: &'static str,
    pub group: Box<str>,
    pub version: Box<str>,
    pub resource: Box<str>,
    pub subresource: Box<str>,
    pub scope: &'static str,
}

impl Labels {
    /// What is known of a request that was refused before its path was understood.
    pub fn of_method(method: &Method) -> Self {
        let verb = match method.as_str() {
            "HEAD" => "GET",
            known @ ("GET" | "POST" | "PUT" | "PATCH" | "DELETE") => known,
            _ => "other",
        };
        Self { verb: verb.into(), ..Self::default() }
    }

    /// Fills in what the path says.
    pub fn describe(&mut self, info: &RequestInfo, query: &Query, headers: &HeaderMap) {
        self.dry_run = match query.all("dryRun").as_slice() {
            [] => "",
            values if values.iter().all(|v| *v == "All") => "All",
            _ => "invalid",
        };
        if !info.is_resource {
            return;
        }
        let is_apply =
            || headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/apply-patch+"));
        self.verb = match (info.verb.as_str(), info.subresource.as_str()) {
            (_, "exec" | "attach" | "portforward" | "proxy" | "log") | ("proxy", _) => "CONNECT".into(),
            ("create", _) => "POST".into(),
            ("update", _) => "PUT".into(),
            ("patch", _) if is_apply() => "APPLY".into(),
            ("deletecollection", _) => "DELETECOLLECTION".into(),
            (verb, _) => verb.to_uppercase().into(),
        };
        self.group = info.group.as_str().into();
        self.version = info.version.as_str().into();
        self.resource = info.resource.as_str().into();
        self.subresource = info.subresource.as_str().into();
        self.scope = match (!info.name.is_empty() || info.verb == "create", info.namespace.is_empty()) {
            (true, _) => "resource",
            (false, false) => "namespace",
            (false, true) => "cluster",
        };
    }

    fn text(&self, dry_run: bool) -> String {
        let dry_run = if dry_run { format!("dry_run=\"{}\",", self.dry_run) } else { String::new() };
        format!(
            "component=\"apiserver\",{dry_run}group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
            self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }
}

pub(crate) struct Histogram<const N: usize> {
    buckets: [u64; N],
    count: u64,
    sum: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { buckets: [0; N], count: 0, sum: 0.0 }
    }
}

impl<const N: usize> Histogram<N> {
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn observe(&mut self, bounds: &[f64; N], value: f64) {
        if let Some(at) = bounds.iter().position(|b| value <= *b) {
            self.buckets[at] += 1;
        }
        self.count += 1;
        self.sum += value;
    }
}

/// All that is known of the requests that are counted alike.
#[derive(Default)]
struct Series {
    codes: BTreeMap<u16, u64>,
    seconds: Histogram<{ SECONDS.len() }>,
    /// Of answers to reads whose size is known when they begin.
    bytes: Histogram<{ BYTES.len() }>,
}

/// At most this many combinations of labels; requests beyond are not told apart. Paths are the clients' to choose.
const SERIES_MAX: usize = 10_000;

/// Group, version, resource and subresource.
type Deprecated = (Box<str>, Box<str>, Box<str>, Box<str>);

#[derive(Default)]
pub struct Metrics {
    requests: Mutex<HashMap<Labels, Series>>,
    /// Reads, then writes, that are being served.
    in_flight: [AtomicI64; 2],
    /// What was asked for although it is deprecated.
    deprecated: Mutex<BTreeSet<Deprecated>>,
}

/// A request that is being served, until it is dropped.
pub struct InFlight<'a>(&'a AtomicI64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Counts a request for as long as it is served.
    pub fn enter(&self, info: &RequestInfo) -> InFlight<'_> {
        let writes = !matches!(info.verb.as_str(), "get" | "list" | "watch");
        let gauge = &self.in_flight[usize::from(writes)];
        gauge.fetch_add(1, Ordering::Relaxed);
        InFlight(gauge)
    }

    /// Notes that something deprecated was asked for.
    pub fn note_deprecated(&self, info: &RequestInfo) {
        let mut all = self.deprecated.lock();
        let key = [&info.group, &info.version, &info.resource, &info.subresource].map(|s| s.as_str().into());
        let [group, version, resource, subresource] = key;
        all.insert((group, version, resource, subresource));
    }

    /// Counts an answer. `bytes` is the size of its body, where that is known.
    pub fn observe(&self, labels: &Labels, code: u16, duration: Duration, bytes: Option<usize>) {
        let mut requests = self.requests.lock();
        let series = match requests.get_mut(labels) {
            Some(series) => series,
            None => {
                let labels = if requests.len() >= SERIES_MAX { Labels::default() } else { labels.clone() };
                requests.entry(labels).or_default()
            }
        };
        *series.codes.entry(code).or_default() += 1;
        // Watches last as long as their clients want.
        if !matches!(&*labels.verb, "WATCH" | "CONNECT") {
            series.seconds.observe(&SECONDS, duration.as_secs_f64());
        }
        if let Some(bytes) = bytes.filter(|_| matches!(&*labels.verb, "GET" | "LIST")) {
            series.bytes.observe(&BYTES, bytes as f64);
        }
    }
}
