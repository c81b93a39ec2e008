//! What admission takes (upstream: `apiserver/pkg/admission/metrics`).

use super::Histogram;
use crate::admission::Operation;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Instant;

/// Upper bounds of the durations of admission, in seconds.
const SECONDS: [f64; 6] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5];

/// Plugin (empty for the whole step), operation, `admit` or `validate`, and whether it refused.
type Key = (&'static str, &'static str, &'static str, bool);

/// For the whole process: admission knows no server.
static ALL: Mutex<BTreeMap<Key, Histogram<{ SECONDS.len() }>>> = Mutex::new(BTreeMap::new());

/// Measures one step of one write: each plugin, and the whole when it is dropped.
pub struct Clock {
    operation: &'static str,
    step: &'static str,
    begun: Instant,
    last: Instant,
    refused: bool,
    taken: Vec<(&'static str, f64, bool)>,
}

impl Clock {
    pub fn start(operation: Operation, step: &'static str) -> Self {
        let operation = match operation {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        };
        let now = Instant::now();
        Self { operation, step, begun: now, last: now, refused: false, taken: Vec::with_capacity(32) }
    }

    /// A plugin has answered.
    pub fn passed(&mut self, plugin: &'static str, refused: bool) {
        let now = Instant::now();
        self.taken.push((plugin, (now - self.last).as_secs_f64(), refused));
        self.last = now;
        self.refused |= refused;
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let whole = ("", (self.last - self.begun).as_secs_f64(), self.refused);
        let mut all = ALL.lock();
        for (plugin, seconds, refused) in self.taken.iter().copied().chain([whole]) {
            all.entry((plugin, self.operation, self.step, refused)).or_default().observe(&SECONDS, seconds);
        }
    }
}

pub(super) fn render(out: &mut String) {
    let all = ALL.lock();
    let name = "apiserver_admission_controller_admission_duration_seconds";
    let help = "[STABLE] Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).";
    super::render::head(out, name, help, "histogram");
    for ((plugin, operation, step, refused), histogram) in all.iter().filter(|(key, _)| !key.0.is_empty()) {
        let labels = format!("name=\"{plugin}\",operation=\"{operation}\",rejected=\"{refused}\",type=\"{step}\"");
        histogram.render(out, name, &labels, &SECONDS);
    }
    let name = "apiserver_admission_step_admission_duration_seconds";
    let help = "[STABLE] Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit).";
    super::render::head(out, name, help, "histogram");
    for ((_, operation, step, refused), histogram) in all.iter().filter(|(key, _)| key.0.is_empty()) {
        let labels = format!("operation=\"{operation}\",rejected=\"{refused}\",type=\"{step}\"");
        histogram.render(out, name, &labels, &SECONDS);
    }
}
