//! Makes the kernel forget UDP flows that lead to endpoints which are gone, or nowhere since there were none. Unlike TCP
//! connections nothing else ends them: as long as a client sends, its packets would go astray.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;

use tokio::process::Command;

/// Flows forgotten after one change; beyond that they are left to time out.
const FLOWS_MAX: usize = 500;

#[derive(Debug, PartialEq, Eq)]
pub struct Flow {
    service: SocketAddr,
    /// The endpoint that is gone; any if there was none before.
    endpoint: Option<SocketAddr>,
}

type Targets = BTreeMap<SocketAddr, Vec<SocketAddr>>;

/// What a change makes stale.
pub fn stale(old: Option<&Targets>, new: &Targets) -> Vec<Flow> {
    let none = Targets::new();
    let old = old.unwrap_or(&none);
    let mut flows = Vec::new();
    for (service, before) in old {
        let after = new.get(service).map(Vec::as_slice).unwrap_or_default();
        let gone = before.iter().filter(|endpoint| !after.contains(endpoint));
        flows.extend(gone.map(|endpoint| Flow { service: *service, endpoint: Some(*endpoint) }));
    }
    for (service, after) in new {
        // Flows from a time without endpoints went past the service.
        if !after.is_empty() && old.get(service).is_none_or(Vec::is_empty) {
            flows.push(Flow { service: *service, endpoint: None });
        }
    }
    flows
}

pub async fn forget(flows: &[Flow]) {
    for flow in flows.iter().take(FLOWS_MAX) {
        let mut command = Command::new("conntrack");
        command.args(["-D", "-p", "udp", "-f", if flow.service.is_ipv6() { "ipv6" } else { "ipv4" }]);
        // A node port is reached at any address.
        if !flow.service.ip().is_unspecified() {
            command.args(["--orig-dst", &flow.service.ip().to_string()]);
        }
        command.args(["--orig-port-dst", &flow.service.port().to_string()]);
        if let Some(endpoint) = flow.endpoint {
            command.args(["--dst-nat", &endpoint.ip().to_string()]);
        }
        let status =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).status();
        if let Err(error) = status.await {
            tracing::warn!(%error, "cannot run conntrack: UDP flows to endpoints that are gone stay until they time out");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_to_lost_endpoints_and_from_before_the_first_are_stale() {
        let address = |a: &str| a.parse::<SocketAddr>().expect("an address");
        let targets =
            |list: &[&str]| Targets::from([(address("10.96.0.10:53"), list.iter().map(|a| address(a)).collect())]);
        let (a, b) = ("10.0.0.1:53", "10.0.0.2:53");
        let flow = |endpoint: Option<&str>| Flow { service: address("10.96.0.10:53"), endpoint: endpoint.map(address) };
        assert_eq!(stale(Some(&targets(&[a, b])), &targets(&[b])), [flow(Some(a))]);
        assert_eq!(stale(None, &targets(&[a])), [flow(None)]);
        assert_eq!(stale(Some(&targets(&[a])), &targets(&[a, b])), []);
        assert_eq!(stale(Some(&targets(&[a])), &Targets::new()), [flow(Some(a))]);
    }
}
