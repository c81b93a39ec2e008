//! The counts in Prometheus' text form, under upstream's names.

use super::{BYTES, Histogram, Labels, Metrics, SECONDS, admission, process};
use crate::resources::Resources;
use std::fmt::Write;
use std::sync::atomic::Ordering;

pub(crate) fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

impl<const N: usize> Histogram<N> {
    pub(crate) fn render(&self, out: &mut String, name: &str, labels: &str, bounds: &[f64; N]) {
        let mut below = 0;
        for (bound, count) in bounds.iter().zip(self.buckets) {
            below += count;
            let bound = if *bound >= 1e6 { format!("{bound:e}").replace('e', "e+0") } else { bound.to_string() };
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum);
        let _ = writeln!(out, "{name}_count{{{labels}}} {}", self.count);
    }
}

impl Metrics {
    pub fn render(&self, resources: &Resources) -> String {
        let mut out = String::with_capacity(64 * 1024);
        self.requests(&mut out);
        let name = "apiserver_current_inflight_requests";
        let help = "[STABLE] Maximal number of currently used inflight request limit of this apiserver per request kind in last second.";
        head(&mut out, name, help, "gauge");
        for (kind, gauge) in ["readOnly", "mutating"].iter().zip(&self.in_flight) {
            let _ = writeln!(out, "{name}{{request_kind=\"{kind}\"}} {}", gauge.load(Ordering::Relaxed));
        }
        let name = "apiserver_requested_deprecated_apis";
        let help = "[STABLE] Gauge of deprecated APIs that have been requested, broken out by API group, version, resource, subresource, and removed_release.";
        head(&mut out, name, help, "gauge");
        for (group, version, resource, subresource) in self.deprecated.lock().iter() {
            let _ = writeln!(
                out,
                "{name}{{group=\"{group}\",removed_release=\"\",resource=\"{resource}\",subresource=\"{subresource}\",version=\"{version}\"}} 1"
            );
        }
        stores(&mut out, resources);
        out.push_str(&coxswain_api::features::metrics_text());
        admission::render(&mut out);
        process::render(&mut out);
        out
    }

    fn requests(&self, out: &mut String) {
        let requests = self.requests.lock();
        let mut sorted: Vec<_> = requests.iter().collect();
        sorted.sort_by_cached_key(|(labels, _)| labels.text(true));
        let name = "apiserver_request_total";
        let help = "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.";
        head(out, name, help, "counter");
        for (labels, series) in &sorted {
            for (code, count) in &series.codes {
                let _ = writeln!(out, "{name}{{code=\"{code}\",{}}} {count}", labels.text(true));
            }
        }
        let name = "apiserver_request_duration_seconds";
        let help = "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.";
        head(out, name, help, "histogram");
        for (labels, series) in sorted.iter().filter(|(_, s)| s.seconds.count > 0) {
            series.seconds.render(out, name, &labels.text(true), &SECONDS);
        }
        let name = "apiserver_response_sizes";
        let help = "[STABLE] Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.";
        head(out, name, help, "histogram");
        for (labels, series) in sorted.iter().filter(|(_, s)| s.bytes.count > 0) {
            series.bytes.render(out, name, &labels.text(false), &BYTES);
        }
    }
}

fn stores(out: &mut String, resources: &Resources) {
    let stores = resources.index().stores();
    let name = "apiserver_resource_objects";
    let help = "[ALPHA] Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.";
    head(out, name, help, "gauge");
    for store in &stores {
        let (group, plural) = (&store.hub.group_version.group, &store.hub.plural);
        let _ = writeln!(out, "{name}{{group=\"{group}\",resource=\"{plural}\"}} {}", store.cache().len());
    }
    let name = "apiserver_longrunning_requests";
    let help = "[STABLE] Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.";
    head(out, name, help, "gauge");
    for store in stores.iter().filter(|s| s.cache().watch_count() > 0) {
        let gv = &store.hub.group_version;
        let labels = Labels {
            verb: "WATCH".into(),
            group: (&*gv.group).into(),
            version: (&*gv.version).into(),
            resource: (&*store.hub.plural).into(),
            scope: "cluster",
            ..Labels::default()
        };
        let _ = writeln!(out, "{name}{{{}}} {}", labels.text(false), store.cache().watch_count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn requests_are_told_as_upstream_tells_them() {
        let metrics = Metrics::default();
        let labels = Labels {
            verb: "GET".into(),
            resource: "pods".into(),
            version: "v1".into(),
            scope: "resource",
            ..Labels::default()
        };
        metrics.observe(&labels, 200, Duration::from_millis(30), Some(5_000_000));
        metrics.observe(&labels, 404, Duration::from_millis(30), Some(5));
        let text = metrics.render(&Resources::default());
        let common = r#"group="",resource="pods",scope="resource",subresource="",verb="GET",version="v1""#;
        for line in [
            format!(r#"apiserver_request_total{{code="404",component="apiserver",dry_run="",{common}}} 1"#),
            format!(
                r#"apiserver_request_duration_seconds_bucket{{component="apiserver",dry_run="",{common},le="0.025"}} 0"#
            ),
            format!(
                r#"apiserver_request_duration_seconds_bucket{{component="apiserver",dry_run="",{common},le="0.05"}} 2"#
            ),
            format!(r#"apiserver_response_sizes_bucket{{component="apiserver",{common},le="1e+07"}} 2"#),
            format!(r#"apiserver_response_sizes_bucket{{component="apiserver",{common},le="1000"}} 1"#),
            r#"apiserver_current_inflight_requests{request_kind="mutating"} 0"#.to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
