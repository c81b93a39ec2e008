//! What the components of this process count, in Prometheus' text form. Counters are kept where the work is done; whoever serves
//! `/metrics` asks here.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::LazyLock;

use parking_lot::Mutex;

type Read = Box<dyn Fn() -> f64 + Send + Sync>;

#[derive(Default)]
struct Family {
    help: &'static str,
    kind: &'static str,
    /// By labels. One who registers the same again takes over.
    samples: BTreeMap<String, Read>,
}

static FAMILIES: LazyLock<Mutex<BTreeMap<&'static str, Family>>> = LazyLock::new(Mutex::default);

/// Shows a value under a name. `labels` as they stand between the braces, `kind` is `gauge` or `counter`.
pub fn register(
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    labels: String,
    read: impl Fn() -> f64 + Send + Sync + 'static,
) {
    let mut families = FAMILIES.lock();
    let family = families.entry(name).or_default();
    (family.help, family.kind) = (help, kind);
    family.samples.insert(labels, Box::new(read));
}

/// All that was registered, a family at a time.
pub fn text() -> String {
    let mut out = String::new();
    for (name, family) in FAMILIES.lock().iter() {
        let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} {}", family.help, family.kind);
        for (labels, read) in &family.samples {
            let _ = if labels.is_empty() {
                writeln!(out, "{name} {}", read())
            } else {
                writeln!(out, "{name}{{{labels}}} {}", read())
            };
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_family_stand_together() {
        register("test_things", "Things.", "gauge", "name=\"b\"".to_owned(), || 2.0);
        register("test_things", "Things.", "gauge", "name=\"a\"".to_owned(), || 1.5);
        let text = text();
        assert!(text.contains("# HELP test_things Things.\n# TYPE test_things gauge\ntest_things{name=\"a\"} 1.5\ntest_things{name=\"b\"} 2\n"), "{text}");
    }
}
