//! What is counted, in Prometheus' text form (upstream: `endpoints/metrics`).

use crate::request::RequestInfo;
use crate::resources::Resources;
use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

/// Upper bounds of the duration histogram, in seconds, as upstream has them.
const BOUNDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];

/// How a request is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels {
    pub verb: Box<str>,
    pub group: Box<str>,
    pub version: Box<str>,
    pub resource: Box<str>,
    pub subresource: Box<str>,
    pub scope: &'static str,
}

impl Labels {
    /// Fills in what the path says.
    pub fn describe(&mut self, info: &RequestInfo) {
        if !info.is_resource {
            return;
        }
        self.verb = match info.verb.as_str() {
            "create" => "POST".into(),
            "update" => "PUT".into(),
            "deletecollection" => "DELETECOLLECTION".into(),
            verb => verb.to_uppercase().into(),
        };
        self.group = info.group.as_str().into();
        self.version = info.version.as_str().into();
        self.resource = info.resource.as_str().into();
        self.subresource = info.subresource.as_str().into();
        self.scope = match (info.name.is_empty(), info.namespace.is_empty()) {
            (false, _) => "resource",
            (true, false) => "namespace",
            (true, true) => "cluster",
        };
    }

    fn text(&self, dry_run: bool) -> String {
        let dry_run = if dry_run { "dry_run=\"\"," } else { "" };
        format!(
            "component=\"apiserver\",{dry_run}group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
            self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }
}

#[derive(Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

/// At most this many combinations of labels; requests beyond are not told apart. Paths are the clients' to choose.
const SERIES_MAX: usize = 10_000;

#[derive(Default)]
pub struct Metrics {
    requests: parking_lot::Mutex<HashMap<(Labels, u16), u64>>,
    durations: parking_lot::Mutex<HashMap<Labels, Histogram>>,
}

impl Metrics {
    pub fn observe(&self, labels: &Labels, code: u16, duration: Duration) {
        {
            let mut requests = self.requests.lock();
            let full = requests.len() >= SERIES_MAX;
            let key = (labels.clone(), code);
            if let Some(count) = requests.get_mut(&key) {
                *count += 1;
            } else {
                let key = if full { (Labels::default(), code) } else { key };
                *requests.entry(key).or_default() += 1;
            }
        }
        // Watches last as long as their clients want.
        if &*labels.verb == "WATCH" || &*labels.verb == "CONNECT" {
            return;
        }
        let mut durations = self.durations.lock();
        let full = durations.len() >= SERIES_MAX && !durations.contains_key(labels);
        let histogram = durations.entry(if full { Labels::default() } else { labels.clone() }).or_default();
        let seconds = duration.as_secs_f64();
        if let Some(at) = BOUNDS.iter().position(|b| seconds <= *b) {
            histogram.buckets[at] += 1;
        }
        histogram.count += 1;
        histogram.sum += seconds;
    }

    pub fn render(&self, resources: &Resources) -> String {
        let mut out = String::with_capacity(64 * 1024);
        let head = |out: &mut String, name: &str, help: &str, kind: &str| {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        };
        head(&mut out, "apiserver_request_total", "[STABLE] Counter of apiserver requests.", "counter");
        let mut requests: Vec<_> = self.requests.lock().iter().map(|(k, v)| (k.clone(), *v)).collect();
        requests.sort_by_cached_key(|((labels, code), _)| (labels.text(false), *code));
        for ((labels, code), count) in requests {
            let _ = writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {count}", labels.text(true));
        }
        let name = "apiserver_request_duration_seconds";
        head(&mut out, name, "[STABLE] Response latency distribution in seconds.", "histogram");
        {
            let durations = self.durations.lock();
            let mut sorted: Vec<_> = durations.iter().map(|(labels, h)| (labels.text(true), h)).collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            for (labels, histogram) in sorted {
                let mut below = 0;
                for (bound, count) in BOUNDS.iter().zip(histogram.buckets) {
                    below += count;
                    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
                }
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", histogram.count);
                let _ = writeln!(out, "{name}_sum{{{labels}}} {}", histogram.sum);
                let _ = writeln!(out, "{name}_count{{{labels}}} {}", histogram.count);
            }
        }
        let stores = resources.index().stores();
        head(&mut out, "apiserver_resource_objects", "[ALPHA] Number of stored objects.", "gauge");
        for store in &stores {
            let (group, plural) = (&store.hub.group_version.group, &store.hub.plural);
            let labels = format!("group=\"{group}\",resource=\"{plural}\"");
            let _ = writeln!(out, "apiserver_resource_objects{{{labels}}} {}", store.cache().len());
        }
        head(&mut out, "apiserver_longrunning_requests", "[STABLE] Gauge of open watches.", "gauge");
        for store in &stores {
            let gv = &store.hub.group_version;
            let labels = format!(
                "component=\"apiserver\",group=\"{}\",resource=\"{}\",scope=\"\",subresource=\"\",verb=\"WATCH\",version=\"{}\"",
                gv.group, store.hub.plural, gv.version
            );
            let _ = writeln!(out, "apiserver_longrunning_requests{{{labels}}} {}", store.cache().watch_count());
        }
        if let Some((resident, virtual_bytes)) = memory() {
            head(&mut out, "process_resident_memory_bytes", "Resident memory size in bytes.", "gauge");
            let _ = writeln!(out, "process_resident_memory_bytes {resident}");
            head(&mut out, "process_virtual_memory_bytes", "Virtual memory size in bytes.", "gauge");
            let _ = writeln!(out, "process_virtual_memory_bytes {virtual_bytes}");
        }
        out
    }
}

/// Resident and virtual size of this process.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_whitespace().map_while(|n| n.parse::<u64>().ok());
    let (size, resident) = (pages.next()?, pages.next()?);
    // The kernel counts in pages, which are of this size on every platform served.
    Some((resident * 4096, size * 4096))
}
