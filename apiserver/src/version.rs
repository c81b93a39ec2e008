//! `/version` (upstream: `component-base/version`).

use coxswain_api::{Value, json};

/// The Kubernetes release that this server is compatible with, and what it is.
pub const GIT_VERSION: &str = concat!("v1.36.2+coxswain-", env!("CARGO_PKG_VERSION"));

pub fn info() -> Value {
    let platform = match std::env::consts::ARCH {
        "x86_64" => "linux/amd64",
        "aarch64" => "linux/arm64",
        other => other,
    };
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION,
        "gitCommit": option_env!("COXSWAIN_GIT_COMMIT").unwrap_or("unknown"),
        "gitTreeState": "clean",
        "buildDate": option_env!("COXSWAIN_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": "none",
        "compiler": "rustc",
        "platform": platform,
    })
}
