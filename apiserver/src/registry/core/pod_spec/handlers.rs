//! Probes and lifecycle hooks (upstream: `validateProbe`, `validateLifecycle`, `validateHandler`).

use super::containers::port_number;
use crate::registry::checks;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeKind {
    Liveness,
    Readiness,
    Startup,
}

pub(super) fn probe(probe: &View<'_>, kind: ProbeKind, grace_period: Option<i64>, errors: &mut ErrorList) {
    if !probe.exists() {
        return;
    }
    handler(probe, grace_period, errors);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        checks::nonnegative(&probe.child(field), errors);
    }
    let own_grace = probe.child("terminationGracePeriodSeconds");
    if own_grace.opt_i64().is_some_and(|s| s <= 0) {
        errors.push(Error::invalid(own_grace.path(), own_grace.i64(), "must be greater than 0"));
    }
    if kind == ProbeKind::Readiness {
        if own_grace.exists() {
            errors.push(Error::invalid(own_grace.path(), own_grace.i64(), "must not be set for readinessProbes"));
        }
    } else {
        let threshold = probe.child("successThreshold");
        if threshold.i64() != 1 {
            errors.push(Error::invalid(threshold.path(), threshold.i64(), "must be 1"));
        }
    }
}

pub(super) fn lifecycle(lifecycle: &View<'_>, grace_period: Option<i64>, os: &str, errors: &mut ErrorList) {
    for hook in ["postStart", "preStop"] {
        let hook = lifecycle.child(hook);
        if hook.exists() {
            handler(&hook, grace_period, errors);
        }
    }
    let signal = lifecycle.child("stopSignal");
    match os {
        _ if !signal.exists() => {}
        "" => {
            let why = "may not be set for containers with empty `spec.os.name`";
            errors.push(Error::forbidden(signal.path(), why));
        }
        "windows" => checks::supported_value(&signal, &["SIGKILL", "SIGTERM"], errors),
        "linux" => checks::supported_value(&signal, STOP_SIGNALS, errors),
        _ => {}
    }
}

/// The signals that may stop a container on Linux, sorted.
#[rustfmt::skip]
const STOP_SIGNALS: &[&str] = &[
    "SIGABRT", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCLD", "SIGCONT", "SIGFPE", "SIGHUP", "SIGILL", "SIGINT", "SIGIO", "SIGIOT",
    "SIGKILL", "SIGPIPE", "SIGPOLL", "SIGPROF", "SIGPWR", "SIGQUIT", "SIGRTMAX", "SIGRTMAX-1", "SIGRTMAX-10", "SIGRTMAX-11",
    "SIGRTMAX-12", "SIGRTMAX-13", "SIGRTMAX-14", "SIGRTMAX-2", "SIGRTMAX-3", "SIGRTMAX-4", "SIGRTMAX-5", "SIGRTMAX-6",
    "SIGRTMAX-7", "SIGRTMAX-8", "SIGRTMAX-9", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMIN+10", "SIGRTMIN+11", "SIGRTMIN+12",
    "SIGRTMIN+13", "SIGRTMIN+14", "SIGRTMIN+15", "SIGRTMIN+2", "SIGRTMIN+3", "SIGRTMIN+4", "SIGRTMIN+5", "SIGRTMIN+6",
    "SIGRTMIN+7", "SIGRTMIN+8", "SIGRTMIN+9", "SIGSEGV", "SIGSTKFLT", "SIGSTOP", "SIGSYS", "SIGTERM", "SIGTRAP", "SIGTSTP",
    "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH", "SIGXCPU", "SIGXFSZ",
];

/// Exactly one way to act.
fn handler(handler: &View<'_>, grace_period: Option<i64>, errors: &mut ErrorList) {
    let mut found = false;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let action = handler.child(kind);
        if !action.exists() {
            continue;
        }
        if found {
            errors.push(Error::forbidden(action.path(), "may not specify more than 1 handler type"));
            continue;
        }
        found = true;
        match kind {
            "exec" => {
                if action.child("command").is_empty() {
                    errors.push(Error::required(action.child("command").path(), ""));
                }
            }
            "httpGet" => http_get(&action, errors),
            "tcpSocket" => port_or_name(&action.child("port"), errors),
            "grpc" => port_number(&action.child("port"), errors),
            _ => {
                let seconds = action.child("seconds").i64();
                if let Some(most) = grace_period.filter(|most| !(0..=*most).contains(&seconds)) {
                    let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({most})");
                    errors.push(Error::invalid(action.path(), seconds, why));
                }
            }
        }
    }
    if !found {
        errors.push(Error::required(handler.path(), "must specify a handler type"));
    }
}

fn http_get(action: &View<'_>, errors: &mut ErrorList) {
    checks::required(&action.child("path"), errors);
    port_or_name(&action.child("port"), errors);
    checks::supported_value(&action.child("scheme"), &["HTTP", "HTTPS"], errors);
    let headers = action.child("httpHeaders");
    for header in headers.items() {
        let name = header.child("name").str();
        for why in names::http_header_name(name) {
            errors.push(Error::invalid(headers.path(), name, why));
        }
    }
}

fn port_or_name(port: &View<'_>, errors: &mut ErrorList) {
    match port.value() {
        Some(Value::String(_)) => checks::all(port, names::port_name(port.str()), errors),
        _ => port_number(port, errors),
    }
}
