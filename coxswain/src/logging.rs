//! What the process says of itself: one line an event on standard error, in colour on a terminal.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// `verbosity` is upstream's `-v`: 0 to 1 shows what an operator should know, 2 to 3 what the process does, 4 and more its
/// decisions. `COXSWAIN_LOG` overrides it with a filter such as `info,coxswain_kubelet=debug`.
pub fn init(verbosity: u8) {
    let level = match verbosity {
        0 | 1 => "warn",
        2 | 3 => "info",
        4 | 5 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("COXSWAIN_LOG").unwrap_or_else(|_| {
        // Libraries speak up only when something is wrong.
        let ours = ["coxswain", "coxswain_api", "coxswain_apiserver", "coxswain_client", "coxswain_controllers"];
        let more = ["coxswain_kubelet", "coxswain_proxy", "coxswain_scheduler", "coxswain_storage"];
        let list: Vec<String> = ours.iter().chain(&more).map(|c| format!("{c}={level}")).collect();
        EnvFilter::new(format!("error,{}", list.join(",")))
    });
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second call, as tests make it, changes nothing.
    let _ = subscriber.try_init();
}
