//! What the process says of itself: one line an event on standard error, in colour on a terminal.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// `verbosity` is upstream's `-v`: 0 to 1 shows what an operator should know, 2 to 3 what the process does, 4 and more its
/// decisions. `COXSWAIN_LOG` overrides it with a filter such as `info,coxswain_kubelet=debug`. Either holds until another
/// verbosity is asked for while the process runs.
pub fn init(verbosity: u8) {
    let filter = EnvFilter::try_from_env("COXSWAIN_LOG").unwrap_or_else(|_| filter_of(verbosity.into()));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter_reloading();
    let handle = subscriber.reload_handle();
    // A second call, as tests make it, changes nothing.
    if subscriber.try_init().is_ok() {
        coxswain_profiling::verbosity::on_change(move |verbosity| {
            if let Err(error) = handle.reload(filter_of(verbosity)) {
                tracing::error!(%error, "the verbosity cannot be changed");
            }
        });
    }
}

/// Libraries speak up only when something is wrong.
fn filter_of(verbosity: u32) -> EnvFilter {
    let level = match verbosity {
        0 | 1 => "warn",
        2 | 3 => "info",
        4 | 5 => "debug",
        _ => "trace",
    };
    let ours = ["coxswain", "coxswain_api", "coxswain_apiserver", "coxswain_client", "coxswain_cloud"];
    let more = ["coxswain_controllers", "coxswain_kubelet", "coxswain_profiling", "coxswain_proxy"];
    let last = ["coxswain_scheduler", "coxswain_storage"];
    let all = ours.iter().chain(&more).chain(&last);
    let list: Vec<String> = all.map(|c| format!("{c}={level}")).collect();
    EnvFilter::new(format!("error,{}", list.join(",")))
}
