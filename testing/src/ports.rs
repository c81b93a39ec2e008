//! Ports for servers that have to be told theirs.

use std::net::TcpListener;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which kernels take the ports of outgoing connections: those could be taken by one between the moment
/// they are chosen and the moment the server listens.
const RANGE: std::ops::Range<u16> = 10_000..32_000;

/// A port on the loopback address that nobody listens on, and that this process has not given away before.
///
/// # Panics
/// If every port of the range is taken.
pub fn free() -> u16 {
    // Processes begin at different places, so that they seldom meet.
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    let free = RANGE.map(|_| RANGE.start + NEXT.fetch_add(1, Ordering::Relaxed) % (RANGE.end - RANGE.start));
    free.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_port_is_given_away_twice() {
        let mut ports: Vec<u16> = (0..100).map(|_| super::free()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 100);
    }
}
