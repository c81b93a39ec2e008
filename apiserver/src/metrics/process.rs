//! What is known of the process and the build (upstream: Prometheus' process collector, `component-base/version/metrics`).

use coxswain_api::Value;
use std::fmt::Write;

pub(super) fn render(out: &mut String) {
    let mut one = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    };
    let stat = Stat::read();
    let cpu = "Total user and system CPU time spent in seconds.";
    one("process_cpu_seconds_total", "counter", cpu, stat.as_ref().map(|s| s.cpu_seconds));
    let descriptors = std::fs::read_dir("/proc/self/fd").ok().map(|d| d.count() as f64);
    one("process_open_fds", "gauge", "Number of open file descriptors.", descriptors);
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    one("process_max_fds", "gauge", "Maximum number of open file descriptors.", limit(&limits, "Max open files"));
    one("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", stat.as_ref().map(|s| s.resident));
    one(
        "process_virtual_memory_bytes",
        "gauge",
        "Virtual memory size in bytes.",
        stat.as_ref().map(|s| s.virtual_bytes),
    );
    let most = limit(&limits, "Max address space").or(Some(-1.0));
    one("process_virtual_memory_max_bytes", "gauge", "Maximum amount of virtual memory available in bytes.", most);
    let start = "Start time of the process since unix epoch in seconds.";
    one("process_start_time_seconds", "gauge", start, started_seconds());

    let info = crate::version::info();
    let text = |name: &str| info.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = "kubernetes_build_info";
    let help = "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.";
    let _ = write!(
        out,
        "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{{build_date=\"{}\",compiler=\"{}\",git_commit=\"{}\",git_tree_state=\"{}\",git_version=\"{}\",go_version=\"{}\",major=\"{}\",minor=\"{}\",platform=\"{}\"}} 1\n",
        text("buildDate"),
        text("compiler"),
        text("gitCommit"),
        text("gitTreeState"),
        text("gitVersion"),
        text("goVersion"),
        text("major"),
        text("minor"),
        text("platform"),
    );
}

/// When this process began, in seconds since 1970.
pub(crate) fn started_seconds() -> Option<f64> {
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + Stat::read()?.start_seconds)
}

struct Stat {
    cpu_seconds: f64,
    /// Since the machine was booted.
    start_seconds: f64,
    virtual_bytes: f64,
    resident: f64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name of the process stands in brackets, and may hold anything.
        let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
        let number = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok());
        // The kernel counts in hundredths of a second and in pages, which are of this size on every platform served.
        Some(Self {
            cpu_seconds: (number(11)? + number(12)?) / 100.0,
            start_seconds: number(19)? / 100.0,
            virtual_bytes: number(20)?,
            resident: number(21)? * 4096.0,
        })
    }
}

fn limit(limits: &str, name: &str) -> Option<f64> {
    limits.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_measured() {
        let stat = Stat::parse("7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 1200 8192 3 1").unwrap();
        assert_eq!(
            (stat.cpu_seconds, stat.start_seconds, stat.virtual_bytes, stat.resident),
            (3.0, 12.0, 8192.0, 12288.0)
        );
        assert!(started_seconds().unwrap() > 1_600_000_000.0);
    }
}
