//! The level of the log, changed while the process runs (upstream: `component-base/logs`' `GlogSetter`).
//!
//! Who owns the log says once how to change it; until then a change is taken and has no effect, as there is no log.

use std::sync::OnceLock;

type Setter = Box<dyn Fn(u32) + Send + Sync>;

static SETTER: OnceLock<Setter> = OnceLock::new();

/// Says what a change does. Only the first to say so is heard: a process has one log.
pub fn on_change(set: impl Fn(u32) + Send + Sync + 'static) {
    let _ = SETTER.set(Box::new(set));
}

/// Changes the level to the number in `text`; upstream's words for what was done, or for what is wrong with the number.
pub fn set(text: &str) -> Result<String, String> {
    let not_parsed = |function: &str, why: &str| format!("strconv.{function}: parsing {}: {why}", quoted(text));
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(not_parsed("ParseUint", "invalid syntax"));
    }
    let level: u32 = text.parse().map_err(|_| not_parsed("ParseUint", "value out of range"))?;
    if i32::try_from(level).is_err() {
        let why = not_parsed("ParseInt", "value out of range");
        return Err(format!("failed set klog.logging.verbosity {text}: {why}"));
    }
    if let Some(set) = SETTER.get() {
        set(level);
    }
    Ok(format!("successfully set klog.logging.verbosity to {text}"))
}

/// The text as Go's `strconv.Quote` writes it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_number_reaches_the_log_and_nothing_else_does() {
        static SEEN: AtomicU32 = AtomicU32::new(99);
        on_change(|level| SEEN.store(level, Ordering::Relaxed));
        assert_eq!(set("3").as_deref(), Ok("successfully set klog.logging.verbosity to 3"));
        assert_eq!(SEEN.load(Ordering::Relaxed), 3);
        let wrong = [
            ("", "strconv.ParseUint: parsing \"\": invalid syntax"),
            ("abc", "strconv.ParseUint: parsing \"abc\": invalid syntax"),
            ("-1", "strconv.ParseUint: parsing \"-1\": invalid syntax"),
            ("+2", "strconv.ParseUint: parsing \"+2\": invalid syntax"),
            ("2\n", "strconv.ParseUint: parsing \"2\\n\": invalid syntax"),
            ("\"2\"", "strconv.ParseUint: parsing \"\\\"2\\\"\": invalid syntax"),
            ("99999999999", "strconv.ParseUint: parsing \"99999999999\": value out of range"),
            (
                "3000000000",
                "failed set klog.logging.verbosity 3000000000: strconv.ParseInt: parsing \"3000000000\": value out of range",
            ),
        ];
        for (text, why) in wrong {
            assert_eq!(set(text).unwrap_err(), why);
        }
        assert_eq!(SEEN.load(Ordering::Relaxed), 3);
    }
}
