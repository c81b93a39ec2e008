//! What flow control counts, under upstream's names (upstream: `flowcontrol/metrics`).

use super::limits::Bounds;
use super::queue_set::Reason;
use crate::metrics::{Histogram, head};
use parking_lot::Mutex;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const SECONDS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
const REASONS: [(Reason, &str); 3] =
    [(Reason::ConcurrencyLimit, "concurrency-limit"), (Reason::QueueFull, "queue-full"), (Reason::TimeOut, "time-out")];

/// Of one flow schema at one level.
#[derive(Default)]
pub(super) struct Counts {
    dispatched: AtomicU64,
    executing: AtomicI64,
    seats: AtomicI64,
    waiting: AtomicI64,
    refused: [AtomicU64; REASONS.len()],
    /// How long those waited who were not served, and those who were.
    waits: [Mutex<Histogram<{ SECONDS.len() }>>; 2],
}

impl Counts {
    pub(super) fn begin(&self, seats: usize) {
        self.dispatched.fetch_add(1, Relaxed);
        self.executing.fetch_add(1, Relaxed);
        self.seats.fetch_add(seats as i64, Relaxed);
    }

    pub(super) fn end(&self, seats: usize) {
        self.executing.fetch_sub(1, Relaxed);
        self.seats.fetch_sub(seats as i64, Relaxed);
    }

    pub(super) fn wait(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    pub(super) fn waited(&self, time: Duration, served: bool) {
        self.waiting.fetch_sub(1, Relaxed);
        self.waits[usize::from(served)].lock().observe(&SECONDS, time.as_secs_f64());
    }

    pub(super) fn refuse(&self, reason: Reason) {
        if let Some(at) = REASONS.iter().position(|(r, _)| *r == reason) {
            self.refused[at].fetch_add(1, Relaxed);
        }
    }

    /// Seats that are taken now.
    pub(super) fn seats(&self) -> usize {
        usize::try_from(self.seats.load(Relaxed)).unwrap_or(0)
    }
}

/// Each with the names of its level and its schema.
pub(super) fn render_schemas(out: &mut String, all: &[(&str, &str, &Counts)]) {
    let labels = |level: &str, schema: &str| format!("flow_schema=\"{schema}\",priority_level=\"{level}\"");
    // The schemas that exist in any case may be listed twice.
    let mut sorted = all.to_vec();
    sorted.sort_unstable_by_key(|(level, schema, _)| (*schema, *level));
    sorted.dedup_by_key(|(level, schema, _)| (*schema, *level));
    let mut gauge = |name: &str, help: &str, kind: &str, read: &dyn Fn(&Counts) -> i64| {
        let name = format!("apiserver_flowcontrol_{name}");
        head(out, &name, help, kind);
        for (level, schema, counts) in &sorted {
            let _ = writeln!(out, "{name}{{{}}} {}", labels(level, schema), read(counts));
        }
    };
    gauge(
        "current_executing_requests",
        "[BETA] Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
        "gauge",
        &|counts| counts.executing.load(Relaxed),
    );
    gauge(
        "current_executing_seats",
        "[BETA] Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
        "gauge",
        &|counts| counts.seats.load(Relaxed),
    );
    gauge(
        "current_inqueue_requests",
        "[BETA] Number of requests currently pending in queues of the API Priority and Fairness subsystem",
        "gauge",
        &|counts| counts.waiting.load(Relaxed),
    );
    gauge(
        "dispatched_requests_total",
        "[BETA] Number of requests executed by API Priority and Fairness subsystem",
        "counter",
        &|counts| counts.dispatched.load(Relaxed) as i64,
    );
    let name = "apiserver_flowcontrol_rejected_requests_total";
    head(out, name, "[BETA] Number of requests rejected by API Priority and Fairness subsystem", "counter");
    for (level, schema, counts) in &sorted {
        for ((_, reason), count) in REASONS.iter().zip(&counts.refused).filter(|(_, count)| count.load(Relaxed) > 0) {
            let labels = labels(level, schema);
            let _ = writeln!(out, "{name}{{{labels},reason=\"{reason}\"}} {}", count.load(Relaxed));
        }
    }
    let name = "apiserver_flowcontrol_request_wait_duration_seconds";
    head(out, name, "[BETA] Length of time a request spent waiting in its queue", "histogram");
    for (level, schema, counts) in &sorted {
        for (served, waits) in ["false", "true"].iter().zip(&counts.waits) {
            let waits = waits.lock();
            if waits.count() > 0 {
                waits.render(out, name, &format!("execute=\"{served}\",{}", labels(level, schema)), &SECONDS);
            }
        }
    }
}

/// Each with its bounds and the limit that it has now.
pub(super) fn render_levels(out: &mut String, all: &[(&str, Bounds, usize)]) {
    let mut gauge = |name: &str, help: &str, read: &dyn Fn(&(&str, Bounds, usize)) -> usize| {
        let name = format!("apiserver_flowcontrol_{name}");
        head(out, &name, help, "gauge");
        for level in all {
            let _ = writeln!(out, "{name}{{priority_level=\"{}\"}} {}", level.0, read(level));
        }
    };
    let help = "[BETA] Nominal number of execution seats configured for each priority level";
    gauge("nominal_limit_seats", help, &|level| level.1.nominal);
    let help = "[ALPHA] Configured lower bound on number of execution seats available to each priority level";
    gauge("lower_limit_seats", help, &|level| level.1.least);
    let help = "[ALPHA] Configured upper bound on number of execution seats available to each priority level";
    gauge("upper_limit_seats", help, &|level| level.1.most);
    let help = "[ALPHA] current derived number of execution seats available to each priority level";
    gauge("current_limit_seats", help, &|level| level.2);
}
