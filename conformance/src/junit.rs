//! Reports in JUnit's format, which CI systems read.

use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

pub struct Outcome {
    pub name: String,
    pub took: Duration,
    pub failure: Option<String>,
}

pub fn write(path: &Path, outcomes: &[Outcome]) -> Result<()> {
    let failures = outcomes.iter().filter(|o| o.failure.is_some()).count();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    writeln!(xml, "<testsuite name=\"conformance\" tests=\"{}\" failures=\"{failures}\">", outcomes.len())?;
    for o in outcomes {
        write!(xml, "  <testcase name=\"{}\" time=\"{:.3}\"", escape(&o.name), o.took.as_secs_f64())?;
        match &o.failure {
            None => xml.push_str("/>\n"),
            Some(text) => writeln!(xml, "><failure>{}</failure></testcase>", escape(text))?,
        }
    }
    xml.push_str("</testsuite>\n");
    std::fs::write(path, xml).with_context(|| format!("writing {}", path.display()))
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            // XML 1.0 has no way to write other control characters.
            c if (c as u32) < 0x20 && !matches!(c, '\n' | '\t') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
