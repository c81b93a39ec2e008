//! Who asks, and whether they may (upstream: `kubelet/server/auth.go`, `cmd/kubelet/app/auth.go`): client certificates and the API server's
//! token reviews say who; subject access reviews on this node's subresources say whether.

use super::{Body, error};
use crate::kubelet::Kubelet;
use http::{Method, Request, Response, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Answers that are remembered; beyond that the oldest half is forgotten.
const ANSWERS_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    name: String,
    uid: Option<String>,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Peer {
    /// A verified certificate's common name is the user, its organizations are the groups.
    pub(super) fn of_certificate(der: Option<&[u8]>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der?).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_string();
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_string).collect();
        groups.push("system:authenticated".into());
        Some(Peer { name, uid: None, groups, extra: BTreeMap::new() })
    }

    fn anonymous() -> Self {
        Peer {
            name: "system:anonymous".into(),
            uid: None,
            groups: vec!["system:unauthenticated".into()],
            extra: BTreeMap::new(),
        }
    }
}

type Question = (Peer, &'static str, String);

pub(super) struct Auth {
    anonymous: bool,
    webhook: bool,
    authorize: bool,
    token_ttl: Duration,
    allowed_ttl: Duration,
    denied_ttl: Duration,
    tokens: Mutex<HashMap<String, (Option<Peer>, Instant)>>,
    verdicts: Mutex<HashMap<Question, (bool, Instant)>>,
}

impl Auth {
    pub(super) fn new(kubelet: &Kubelet) -> Self {
        let settings = &kubelet.config.settings;
        Auth {
            anonymous: settings.authentication.anonymous.enabled,
            webhook: settings.authentication.webhook.enabled,
            authorize: settings.authorization.mode != "AlwaysAllow",
            token_ttl: settings.authentication.webhook.cache_ttl.0,
            allowed_ttl: settings.authorization.webhook.cache_authorized_ttl.0,
            denied_ttl: settings.authorization.webhook.cache_unauthorized_ttl.0,
            tokens: Mutex::default(),
            verdicts: Mutex::default(),
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
            (None, Some(token)) if self.webhook => self.review_token(kubelet, token).await,
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
        let verb = match *request.method() {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "get",
        };
        let subresources = subresources(request.uri().path());
        for subresource in &subresources {
            match self.allowed(kubelet, &peer, verb, subresource).await {
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

    async fn review_token(&self, kubelet: &Kubelet, token: &str) -> Option<Peer> {
        if let Some((peer, until)) = self.tokens.lock().get(token)
            && *until > Instant::now()
        {
            return peer.clone();
        }
        let review =
            TokenReview { spec: TokenReviewSpec { token: token.into(), audiences: None }, ..Default::default() };
        let api: Api<TokenReview> = Api::all(kubelet.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.ok()?;
        let status = answer.status?;
        let peer = status.user.filter(|_| status.authenticated == Some(true)).map(|user| Peer {
            name: user.username.unwrap_or_default(),
            uid: user.uid,
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
        let mut tokens = self.tokens.lock();
        forget_old(&mut tokens, |(_, until)| *until);
        tokens.insert(token.into(), (peer.clone(), Instant::now() + self.token_ttl));
        peer
    }

    async fn allowed(
        &self,
        kubelet: &Kubelet,
        peer: &Peer,
        verb: &'static str,
        subresource: &str,
    ) -> Result<bool, kube::Error> {
        let question = (peer.clone(), verb, subresource.to_string());
        if let Some((verdict, until)) = self.verdicts.lock().get(&question)
            && *until > Instant::now()
        {
            return Ok(*verdict);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(peer.name.clone()),
                uid: peer.uid.clone(),
                groups: Some(peer.groups.clone()),
                extra: Some(peer.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(kubelet.config.node_name.clone()),
                    group: Some(String::new()),
                    version: Some("v1".into()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(kubelet.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        let verdict = answer.status.is_some_and(|s| s.allowed);
        let ttl = if verdict { self.allowed_ttl } else { self.denied_ttl };
        let mut verdicts = self.verdicts.lock();
        forget_old(&mut verdicts, |(_, until)| *until);
        verdicts.insert(question, (verdict, Instant::now() + ttl));
        Ok(verdict)
    }
}

fn forget_old<K, V>(map: &mut HashMap<K, V>, until: impl Fn(&V) -> Instant) {
    if map.len() >= ANSWERS_MAX {
        let now = Instant::now();
        map.retain(|_, v| until(v) > now);
        if map.len() >= ANSWERS_MAX {
            map.clear();
        }
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
