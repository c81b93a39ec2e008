//! `/statusz` and `/flagz`: pages for people who look at one server (upstream: `component-base/zpages`).

use super::Front;
use crate::metrics::started_seconds;
use crate::negotiate::accept_header;
use crate::respond::{Answer, text};
use http::{HeaderMap, StatusCode};
use std::collections::BTreeSet;
use std::fmt::Write;

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";

/// Upstream says this in plain text to everybody who takes plain text, and has nothing else by default.
fn takes_text(headers: &HeaderMap) -> bool {
    let accept = accept_header(headers);
    let media = |clause: &str| clause.split(';').next().unwrap_or_default().trim().to_owned();
    accept.trim().is_empty() || accept.split(',').any(|c| matches!(media(c).as_str(), "text/plain" | "text/*" | "*/*"))
}

fn page(headers: &HeaderMap, make: impl FnOnce() -> String) -> Answer {
    if takes_text(headers) {
        text(StatusCode::OK, make())
    } else {
        text(StatusCode::NOT_ACCEPTABLE, "media type not acceptable, must be: text/plain\n")
    }
}

impl Front {
    /// Every flag with its value.
    pub(super) fn flagz(&self, headers: &HeaderMap) -> Answer {
        page(headers, || {
            let mut out = format!("\nkube-apiserver flags\n{WARNING}\n\n");
            for (name, value) in &self.flags {
                let _ = writeln!(out, "{name}={value}");
            }
            out
        })
    }

    /// When the server began, what it is, and where to look further.
    pub(super) fn statusz(&self, headers: &HeaderMap) -> Answer {
        page(headers, || {
            let now = jiff::Timestamp::now();
            let started = started_seconds().and_then(|s| jiff::Timestamp::from_second(s as i64).ok()).unwrap_or(now);
            let up = now.as_second() - started.as_second();
            let folders: BTreeSet<String> =
                self.paths().iter().filter_map(|p| Some(format!("/{}", p.split('/').nth(1)?))).collect();
            let folders: Vec<String> = folders.into_iter().collect();
            format!(
                "\nkube-apiserver statusz\n{WARNING}\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nGo version: none\nBinary version: 1.36.2\n\
                 Emulation version: 1.36\nPaths: {}\n",
                started.strftime("%a %b %e %H:%M:%S UTC %Y"),
                up / 3600,
                up / 60 % 60,
                up % 60,
                folders.join(" "),
            )
        })
    }
}
