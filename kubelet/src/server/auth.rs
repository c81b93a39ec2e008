//! Who asks, and whether they may (upstream: `kubelet/server/auth.go`, `cmd/kubelet/app/auth.go`): client certificates and the API server's
//! token reviews say who; subject access reviews on this node's subresources say whether.

use super::{Body, error};
use crate::kubelet::Kubelet;
pub(super) use coxswain_client::delegated::Peer;
use coxswain_client::delegated::{Attributes, Delegated, verb};
use http::{Request, Response, StatusCode};

pub(super) struct Auth {
    anonymous: bool,
    webhook: bool,
    authorize: bool,
    delegated: Delegated,
}

impl Auth {
    pub(super) fn new(kubelet: &Kubelet) -> Self {
        let settings = &kubelet.config.settings;
        Auth {
            anonymous: settings.authentication.anonymous.enabled,
            webhook: settings.authentication.webhook.enabled,
            authorize: settings.authorization.mode != "AlwaysAllow",
            delegated: Delegated::new(
                kubelet.client.clone(),
                settings.authentication.webhook.cache_ttl.0,
                settings.authorization.webhook.cache_authorized_ttl.0,
                settings.authorization.webhook.cache_unauthorized_ttl.0,
            ),
        }
    }

    pub(super) async fn check<B>(
        &self,
        kubelet: &Kubelet,
        request: &Request<B>,
        peer: Option<Peer>,
    ) -> Result<(), Response<Body>> {
        let bearer = request
            .headers()
            .get("authorization")
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "));
        let peer = match (peer, bearer) {
            (Some(peer), _) => Some(peer),
            (None, Some(token)) if self.webhook => self.delegated.peer_of_token(token).await,
            _ => None,
        };
        let unauthorized = || error(StatusCode::UNAUTHORIZED, "Unauthorized");
        let peer = match peer {
            Some(peer) => peer,
            // A token that is wrong is not as good as none.
            None if self.anonymous && bearer.is_none() => Peer::anonymous(),
            None => return Err(unauthorized()),
        };
        if !self.authorize {
            return Ok(());
        }
        let verb = verb(request.method());
        let subresources = subresources(request.uri().path());
        for subresource in &subresources {
            let name = kubelet.config.node_name.clone();
            let wanted = Attributes::Node { verb, name, subresource: (*subresource).to_string() };
            match self.delegated.allows(&peer, wanted).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(e) => {
                    let text = format!(
                        "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
                        peer.name
                    );
                    tracing::debug!(error = %e, "{text}");
                    return Err(error(StatusCode::INTERNAL_SERVER_ERROR, text));
                }
            }
        }
        let list = subresources.iter().map(|s| s.to_string()).collect::<Vec<_>>().join(" ");
        Err(error(
            StatusCode::FORBIDDEN,
            format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{list}])", peer.name),
        ))
    }
}

/// Subresources of the node any of which opens a path, the finer ones first.
fn subresources(path: &str) -> Vec<&'static str> {
    let below = |prefix: &str| path == prefix || path.starts_with(&format!("{prefix}/"));
    if below("/stats") {
        vec!["stats"]
    } else if below("/metrics") {
        vec!["metrics"]
    } else if below("/logs") {
        vec!["log"]
    } else if below("/checkpoint") {
        vec!["checkpoint"]
    } else if below("/pods") || below("/runningpods") {
        vec!["pods", "proxy"]
    } else if below("/healthz") {
        vec!["healthz", "proxy"]
    } else if below("/configz") {
        vec!["configz", "proxy"]
    } else {
        vec!["proxy"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_map_to_subresources() {
        assert_eq!(subresources("/stats/summary"), ["stats"]);
        assert_eq!(subresources("/pods"), ["pods", "proxy"]);
        assert_eq!(subresources("/exec/ns/p/c"), ["proxy"]);
    }
}
