//! What this machine is called, how it is reached, and how it tells a process to end.

use anyhow::{Context, Result};
use std::net::IpAddr;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The address by which this machine reaches others. Nothing is sent to find out.
pub fn default_ip() -> Result<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    match socket.connect("203.0.113.1:9").and_then(|()| socket.local_addr()) {
        Ok(address) => Ok(address.ip()),
        Err(_) => Ok(IpAddr::from([127, 0, 0, 1])),
    }
}

/// The host name as nodes are named after it: trimmed and in lower case.
pub fn hostname() -> Result<String> {
    let name = nix::unistd::gethostname().context("asking for the host name")?;
    Ok(name.to_string_lossy().trim().to_lowercase())
}

/// Cancelled by SIGTERM or SIGINT. A second signal ends the process at once.
pub fn on_signal() -> Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let given = token.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if given.is_cancelled() {
                std::process::exit(130);
            }
            given.cancel();
        }
    });
    Ok(token)
}
