//! Who asks a component's own server, and whether they may: both are asked of the API server, and the answers remembered for a
//! while (upstream: `apiserver/pkg/authentication/authenticatorfactory` and `authorization/authorizerfactory`, "delegated").

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;

/// Answers that are remembered of each kind; when they are this many, the old ones are forgotten, or all.
const ANSWERS_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    pub name: String,
    pub uid: Option<String>,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Peer {
    /// A verified certificate's common name is the user, its organizations are the groups.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let organizations = subject.iter_organization().filter_map(|o| o.as_str().ok());
        let mut groups: Vec<String> = organizations.map(str::to_owned).collect();
        groups.push("system:authenticated".to_owned());
        Some(Self { name, uid: None, groups, extra: BTreeMap::new() })
    }

    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            uid: None,
            groups: vec!["system:unauthenticated".to_owned()],
            extra: BTreeMap::new(),
        }
    }
}

/// What somebody wants to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Attributes {
    /// A verb on a node's subresource, which is what the paths of a kubelet stand for.
    Node { verb: &'static str, name: String, subresource: String },
    /// A path by itself, whose verb is the method in small letters.
    Path { verb: String, path: String },
}

/// The verb of a method, as authorizers know it for subresources.
pub fn verb(method: &http::Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "get",
    }
}

pub struct Delegated {
    client: Client,
    token_ttl: Duration,
    allowed_ttl: Duration,
    denied_ttl: Duration,
    tokens: Mutex<HashMap<String, (Option<Peer>, Instant)>>,
    verdicts: Mutex<HashMap<(Peer, Attributes), (bool, Instant)>>,
}

impl Delegated {
    /// `client` must be allowed to create TokenReviews and SubjectAccessReviews (role `system:auth-delegator`).
    pub fn new(client: Client, token_ttl: Duration, allowed_ttl: Duration, denied_ttl: Duration) -> Self {
        Self { client, token_ttl, allowed_ttl, denied_ttl, tokens: Mutex::default(), verdicts: Mutex::default() }
    }

    /// Whose token it is; none if it is nobody's, or if the API server cannot be asked.
    pub async fn peer_of_token(&self, token: &str) -> Option<Peer> {
        if let Some((peer, until)) = self.tokens.lock().get(token)
            && *until > Instant::now()
        {
            return peer.clone();
        }
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = TokenReview { spec, ..TokenReview::default() };
        let status = api.create(&PostParams::default(), &review).await.ok()?.status?;
        let peer = status.user.filter(|_| status.authenticated == Some(true)).map(|user| Peer {
            name: user.username.unwrap_or_default(),
            uid: user.uid,
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        });
        let mut tokens = self.tokens.lock();
        forget_old(&mut tokens);
        tokens.insert(token.to_owned(), (peer.clone(), Instant::now() + self.token_ttl));
        peer
    }

    pub async fn allows(&self, peer: &Peer, attributes: Attributes) -> Result<bool, kube::Error> {
        let question = (peer.clone(), attributes);
        if let Some((verdict, until)) = self.verdicts.lock().get(&question)
            && *until > Instant::now()
        {
            return Ok(*verdict);
        }
        let mut spec = SubjectAccessReviewSpec {
            user: Some(peer.name.clone()),
            uid: peer.uid.clone(),
            groups: Some(peer.groups.clone()),
            extra: Some(peer.extra.clone()),
            ..SubjectAccessReviewSpec::default()
        };
        match &question.1 {
            Attributes::Node { verb, name, subresource } => {
                spec.resource_attributes = Some(ResourceAttributes {
                    verb: Some((*verb).to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.clone()),
                    name: Some(name.clone()),
                    group: Some(String::new()),
                    version: Some("v1".to_owned()),
                    ..ResourceAttributes::default()
                });
            }
            Attributes::Path { verb, path } => {
                spec.non_resource_attributes =
                    Some(NonResourceAttributes { verb: Some(verb.clone()), path: Some(path.clone()) });
            }
        }
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = api.create(&PostParams::default(), &review).await?;
        let verdict = answer.status.is_some_and(|status| status.allowed);
        let ttl = if verdict { self.allowed_ttl } else { self.denied_ttl };
        let mut verdicts = self.verdicts.lock();
        forget_old(&mut verdicts);
        verdicts.insert(question, (verdict, Instant::now() + ttl));
        Ok(verdict)
    }
}

fn forget_old<K: Eq + Hash, V>(answers: &mut HashMap<K, (V, Instant)>) {
    if answers.len() < ANSWERS_MAX {
        return;
    }
    let now = Instant::now();
    answers.retain(|_, (_, until)| *until > now);
    if answers.len() >= ANSWERS_MAX {
        answers.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn an_answer_is_asked_for_once_in_its_time() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let server = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                let sent = request.into_body().collect().await.unwrap().to_bytes();
                let mut answer: serde_json::Value = serde_json::from_slice(&sent).unwrap();
                answer["status"] = if answer["spec"].get("token").is_some() {
                    let known = answer["spec"]["token"] == "good";
                    serde_json::json!({"authenticated": known, "user": {"username": "jane", "groups": ["g"]}})
                } else {
                    let path = &answer["spec"]["nonResourceAttributes"]["path"];
                    serde_json::json!({"allowed": answer["spec"]["user"] == "jane" && path == "/metrics"})
                };
                let body = Full::new(bytes::Bytes::from(answer.to_string()));
                Ok::<_, std::convert::Infallible>(http::Response::new(body))
            }
        });
        let minute = Duration::from_secs(60);
        let delegated = Delegated::new(Client::new(server, "default"), minute, minute, minute);
        let jane = delegated.peer_of_token("good").await.unwrap();
        assert_eq!((jane.name.as_str(), delegated.peer_of_token("good").await), ("jane", Some(jane.clone())));
        assert_eq!(delegated.peer_of_token("bad").await, None);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        let get = |path: &str| Attributes::Path { verb: "get".to_owned(), path: path.to_owned() };
        for _ in 0..2 {
            assert!(delegated.allows(&jane, get("/metrics")).await.unwrap());
            assert!(!delegated.allows(&jane, get("/configz")).await.unwrap());
            assert!(!delegated.allows(&Peer::anonymous(), get("/metrics")).await.unwrap());
        }
        assert_eq!(asked.load(Ordering::SeqCst), 5);
    }
}
