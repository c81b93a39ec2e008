//! Authentication: who is asking (upstream: `apiserver/pkg/authentication` and `kubeapiserver/authenticator`).
//!
//! [`Authentication`] is the whole chain, made once from a [`Config`]. Its order is upstream's: front proxy, client
//! certificate, bearer token (static file, service accounts, bootstrap tokens), and at last the anonymous user, who is
//! only taken when nothing was presented, never when something wrong was.

use crate::objects::Objects;
use crate::request::User;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use coxswain_api::Status;
use remembered::{Held, Remembered, fingerprint};
use std::path::PathBuf;
use std::sync::Arc;

pub mod bootstrap_token;
pub mod der;
pub mod impersonation;
pub mod jwt;
pub mod keys;
mod remembered;
pub mod request_header;
pub mod service_account;
pub mod token_file;
pub mod x509;

/// Every caller who proved an identity is in this group.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of those who proved none.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const ANONYMOUS: &str = "system:anonymous";
/// May do everything, whatever the authorizers are (upstream: `SystemPrivilegedGroup`).
pub const MASTERS: &str = "system:masters";
/// The key of [`User::extra`] that names the credential.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// What the connection itself says of the caller.
#[derive(Debug, Default)]
pub struct Peer {
    pub address: Option<std::net::SocketAddr>,
    /// The certificate chain that the client presented, leaf first, DER. Verified only by an authenticator.
    pub certificates: Vec<Vec<u8>>,
    /// Whom the chain names.
    user: Held<Result<Option<Arc<User>>, Refused>>,
    /// The common name, if the chain is one of a front proxy.
    proxy: Held<Result<Option<Arc<str>>, Refused>>,
}

impl Peer {
    pub fn new(address: Option<std::net::SocketAddr>, certificates: Vec<Vec<u8>>) -> Self {
        Self { address, certificates, ..Self::default() }
    }
}

/// One way of knowing a caller; they are asked in turn.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// `Ok(None)`: this request carries nothing for this authenticator. `Err`: it does, and it is wrong.
    async fn authenticate(&self, request: &http::request::Parts, peer: &Peer) -> Result<Option<User>, Refused>;
}

/// Why a credential was refused; logged, never sent to the client (a TokenReview does show it).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// The flags of authentication, named as upstream's.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--anonymous-auth`
    pub anonymous: bool,
    /// `--client-ca-file`: a PEM bundle.
    pub client_ca_file: Option<PathBuf>,
    /// More PEM certificates trusted for clients, such as those a single-process cluster makes itself.
    pub client_ca_pem: Vec<u8>,
    /// `--token-auth-file`
    pub token_auth_file: Option<PathBuf>,
    /// `--enable-bootstrap-token-auth`
    pub bootstrap_tokens: bool,
    pub service_accounts: service_account::Config,
    /// `--requestheader-…`; none unless `--requestheader-client-ca-file` is given.
    pub request_header: Option<request_header::Config>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            anonymous: true,
            client_ca_file: None,
            client_ca_pem: Vec::new(),
            token_auth_file: None,
            bootstrap_tokens: false,
            service_accounts: service_account::Config::default(),
            request_header: None,
        }
    }
}

/// A configuration that cannot be used; ends the start of the server.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("reading {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {what}")]
    Content { path: PathBuf, what: String },
    #[error("{0}")]
    Other(String),
}

pub(crate) fn read(path: &std::path::Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// A token that was found good, and the audiences it may be used for among those asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenUser {
    pub user: User,
    pub audiences: Vec<String>,
}

/// One kind of bearer token.
#[async_trait]
trait TokenAuthenticator: Send + Sync + 'static {
    /// `Ok(None)`: not a token of this kind. `audiences` is what the caller of the check accepts.
    async fn authenticate_token(&self, token: &str, audiences: &[String]) -> Result<Option<TokenUser>, Refused>;
}

/// The chain of all authenticators.
pub struct Authentication {
    anonymous: bool,
    request_header: Option<request_header::RequestHeader>,
    /// Exchanged when the file of authorities changes.
    x509: Option<Arc<ArcSwap<x509::ClientCertificates>>>,
    tokens: Vec<Box<dyn TokenAuthenticator>>,
    good_tokens: Remembered<TokenUser>,
    /// Issues and verifies service account tokens; none without keys.
    pub service_accounts: Option<Arc<service_account::ServiceAccounts>>,
    /// The audiences of this server (`--api-audiences`).
    pub audiences: Vec<String>,
}

/// Takes the authorities of client certificates anew whenever their file changes; a file that is no bundle changes nothing.
fn follow_authorities(current: &Arc<ArcSwap<x509::ClientCertificates>>, always: Vec<u8>, path: PathBuf) {
    let current = Arc::downgrade(current);
    crate::server::certificates::follow(vec![path], move |contents| {
        let Some(current) = current.upgrade() else { return false };
        let bundle = [always.as_slice(), b"\n", contents[0].as_slice()].concat();
        match x509::ClientCertificates::new(&bundle) {
            Ok(renewed) => current.store(Arc::new(renewed)),
            Err(error) => tracing::warn!(%error, "the authorities of client certificates are not renewed"),
        }
        true
    });
}

impl Authentication {
    pub fn new(config: &Config, objects: Arc<dyn Objects>) -> Result<Self, ConfigError> {
        let audiences = config.service_accounts.api_audiences();
        let mut tokens: Vec<Box<dyn TokenAuthenticator>> = Vec::new();
        let agnostic = |inner: Box<dyn TokenAuthenticator>| -> Box<dyn TokenAuthenticator> {
            Box::new(AudienceAgnostic { inner, implicit: audiences.clone() })
        };
        if let Some(path) = &config.token_auth_file {
            tokens.push(agnostic(Box::new(token_file::TokenFile::load(path)?)));
        }
        let service_accounts = service_account::ServiceAccounts::new(&config.service_accounts, objects.clone())?;
        let service_accounts = service_accounts.map(Arc::new);
        if let Some(inner) = &service_accounts {
            tokens.push(Box::new(service_account::Verifier(inner.clone())));
        }
        if config.bootstrap_tokens {
            tokens.push(agnostic(Box::new(bootstrap_token::BootstrapTokens::new(objects))));
        }
        let mut ca = config.client_ca_pem.clone();
        if let Some(path) = &config.client_ca_file {
            ca.push(b'\n');
            ca.extend(read(path)?);
        }
        let x509 = if ca.is_empty() {
            None
        } else {
            Some(Arc::new(ArcSwap::from_pointee(x509::ClientCertificates::new(&ca)?)))
        };
        if let (Some(current), Some(path)) = (&x509, &config.client_ca_file) {
            follow_authorities(current, config.client_ca_pem.clone(), path.clone());
        }
        let request_header = config.request_header.as_ref().map(request_header::RequestHeader::new).transpose()?;
        let good_tokens = Remembered::default();
        Ok(Self { anonymous: config.anonymous, request_header, x509, tokens, good_tokens, service_accounts, audiences })
    }

    /// Who sends this request. `Err` is the answer 401, which never says why; the reason is logged.
    pub async fn authenticate(&self, request: &http::request::Parts, peer: &Peer) -> Result<Arc<User>, Status> {
        match self.identify(request, peer).await {
            Ok(Some(user)) => Ok(user),
            Ok(None) if self.anonymous => Ok(Arc::new(anonymous())),
            Ok(None) => Err(Status::unauthorized()),
            Err(refused) => {
                tracing::debug!(%refused, "unable to authenticate the request");
                Err(Status::unauthorized())
            }
        }
    }

    async fn identify(&self, request: &http::request::Parts, peer: &Peer) -> Result<Option<Arc<User>>, Refused> {
        let mut refusals = Vec::new();
        if let Some(authenticator) = &self.request_header {
            match authenticator.authenticate(request, peer) {
                Ok(Some(user)) => return Ok(Some(Arc::new(with_authenticated_group(user)))),
                Ok(None) => {}
                Err(e) => refusals.push(e),
            }
        }
        if let Some(authenticator) = &self.x509 {
            let authenticator = authenticator.load_full();
            let judge = || Ok(authenticator.authenticate(peer)?.map(|user| Arc::new(with_authenticated_group(user))));
            match peer.user.get_or(Arc::as_ptr(&authenticator).addr(), judge) {
                Ok(Some(user)) => return Ok(Some(user)),
                Ok(None) => {}
                Err(e) => refusals.push(e),
            }
        }
        if let Some(token) = bearer_token(&request.headers) {
            match self.authenticate_token(&token, &self.audiences).await {
                Ok(found) => return Ok(Some(Arc::new(found.user))),
                Err(e) => refusals.push(e),
            }
        }
        aggregate(refusals).map_or(Ok(None), Err)
    }

    /// Who holds this token, for one of `audiences` (upstream's TokenReview asks the same chain).
    pub async fn authenticate_token(&self, token: &str, audiences: &[String]) -> Result<TokenUser, Refused> {
        let credential = fingerprint([token.as_bytes()].into_iter().chain(audiences.iter().map(String::as_bytes)));
        if let Some(found) = self.good_tokens.get(&credential) {
            return Ok(found);
        }
        // Upstream asks its own loopback token first, which says this of every other token.
        let mut refusals = vec![Refused("invalid bearer token".into())];
        for authenticator in &self.tokens {
            match authenticator.authenticate_token(token, audiences).await {
                Ok(Some(found)) => {
                    let found = TokenUser { user: with_authenticated_group(found.user), ..found };
                    self.good_tokens.put(credential, found.clone());
                    return Ok(found);
                }
                Ok(None) => {}
                Err(e) => refusals.push(e),
            }
        }
        Err(aggregate(refusals).unwrap_or_else(|| Refused("invalid bearer token".into())))
    }
}

#[async_trait]
impl Authenticator for Authentication {
    async fn authenticate(&self, request: &http::request::Parts, peer: &Peer) -> Result<Option<User>, Refused> {
        let found = self.identify(request, peer).await?;
        Ok(found.map(|user| (*user).clone()).or_else(|| self.anonymous.then(anonymous)))
    }
}

/// The user of a request that carries no credential.
pub fn anonymous() -> User {
    User { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..User::default() }
}

/// Adds `system:authenticated` (upstream: `AuthenticatedGroupAdder`).
pub fn with_authenticated_group(mut user: User) -> User {
    if user.name != ANONYMOUS && !user.in_group(AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

/// Whether a bearer token was given after more than one space, where it does not count.
pub fn ignores_bearer(headers: &http::HeaderMap) -> bool {
    let header = headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default().trim();
    header.split_once(' ').is_some_and(|(scheme, rest)| scheme.eq_ignore_ascii_case("bearer") && rest.starts_with(' '))
}

/// The token of `Authorization: Bearer …`, or of the WebSocket subprotocol that browsers use.
fn bearer_token(headers: &http::HeaderMap) -> Option<String> {
    let header = headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default().trim();
    let mut parts = header.splitn(3, ' ');
    if parts.next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer")) {
        // An empty token is no token at all, as upstream has it.
        if let Some(token) = parts.next().filter(|t| !t.is_empty()) {
            return Some(token.to_owned());
        }
    }
    let is_websocket =
        headers.get(http::header::UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_websocket {
        return None;
    }
    headers
        .get_all(http::header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))
        .and_then(|encoded| {
            use base64::Engine;
            let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?;
            String::from_utf8(bytes).ok()
        })
}

/// One refusal of several, each said once (upstream: `utilerrors.NewAggregate`).
fn aggregate(refusals: Vec<Refused>) -> Option<Refused> {
    let mut texts: Vec<String> = Vec::new();
    for Refused(text) in refusals {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.len() {
        0 => None,
        1 => texts.pop().map(Refused),
        _ => Some(Refused(format!("[{}]", texts.join(", ")))),
    }
}

/// Tokens that say nothing of audiences are good for those of this server (upstream: `WrapAudienceAgnosticToken`).
struct AudienceAgnostic {
    inner: Box<dyn TokenAuthenticator>,
    implicit: Vec<String>,
}

#[async_trait]
impl TokenAuthenticator for AudienceAgnostic {
    async fn authenticate_token(&self, token: &str, audiences: &[String]) -> Result<Option<TokenUser>, Refused> {
        let common: Vec<String> = self.implicit.iter().filter(|a| audiences.contains(a)).cloned().collect();
        if common.is_empty() && !audiences.is_empty() {
            return Ok(None);
        }
        let found = self.inner.authenticate_token(token, audiences).await?;
        Ok(found.map(|f| TokenUser { audiences: common, ..f }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_websocket_may_carry_its_token_as_a_subprotocol() {
        let request = http::Request::builder()
            .header("upgrade", "websocket")
            .header("sec-websocket-protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj")
            .body(())
            .unwrap();
        assert_eq!(bearer_token(request.headers()).as_deref(), Some("abc"));
        let plain = http::Request::builder().header("authorization", "bEaReR  x").body(()).unwrap();
        assert_eq!(bearer_token(plain.headers()), None);
    }

    #[test]
    fn equal_refusals_are_said_once() {
        let refused = |s: &str| Refused(s.to_owned());
        assert_eq!(aggregate(vec![]), None);
        assert_eq!(aggregate(vec![refused("a"), refused("a")]), Some(refused("a")));
        assert_eq!(aggregate(vec![refused("a"), refused("b")]), Some(refused("[a, b]")));
    }
}
