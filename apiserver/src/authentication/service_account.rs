//! Service account tokens: issued on request, verified against live objects (upstream: `pkg/serviceaccount`).
//!
//! A token names its service account and, if bound, a pod, secret or node, each with its uid. It is good as long as these
//! still exist, whatever its expiry says.

use super::keys::{self, PrivateKey, PublicKey};
use super::{CREDENTIAL_ID, ConfigError, Refused, TokenAuthenticator, TokenUser, jwt};
use crate::objects::Objects;
use crate::request::User;
use async_trait::async_trait;
use coxswain_api::Value;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// The issuer of tokens that lie in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// What kubelets ask for in the volume of every pod: seven seconds mark it. Such a token really lives a year, and a
/// warning is due once the time asked for is over (upstream: `WarnOnlyBoundTokenExpirationSeconds`).
pub const WARN_ONLY_EXPIRATION_SECONDS: i64 = 3607;
const EXTENDED_EXPIRATION_SECONDS: i64 = 365 * 24 * 3600;

/// Clocks may differ by this much.
const LEEWAY_SECONDS: i64 = 60;

/// The flags `--service-account-…` and `--api-audiences`.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--service-account-key-file`, several
    pub key_files: Vec<PathBuf>,
    /// `--service-account-signing-key-file`
    pub signing_key_file: Option<PathBuf>,
    /// `--service-account-issuer`: the first issues, all are accepted.
    pub issuers: Vec<String>,
    /// `--api-audiences`: the issuers if empty.
    pub audiences: Vec<String>,
    /// `--service-account-max-token-expiration`
    pub max_expiration_seconds: Option<i64>,
    /// `--service-account-extend-token-expiration`
    pub extend_expiration: bool,
    /// `--service-account-lookup`: tokens die with their objects.
    pub lookup: bool,
    /// `--service-account-jwks-uri`
    pub jwks_uri: Option<String>,
    /// `--external-hostname` (with the port), which the discovery document shows where `jwks_uri` is not given.
    pub external_address: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            key_files: Vec::new(),
            signing_key_file: None,
            issuers: Vec::new(),
            audiences: Vec::new(),
            max_expiration_seconds: None,
            extend_expiration: true,
            lookup: true,
            jwks_uri: None,
            external_address: String::new(),
        }
    }
}

impl Config {
    pub fn api_audiences(&self) -> Vec<String> {
        if self.audiences.is_empty() { self.issuers.clone() } else { self.audiences.clone() }
    }
}

/// What a token is issued for; all of it was checked by the caller.
#[derive(Clone, Debug, Default)]
pub struct Claims<'a> {
    pub service_account: Option<&'a Value>,
    pub pod: Option<&'a Value>,
    pub secret: Option<&'a Value>,
    pub node: Option<&'a Value>,
    pub audiences: &'a [String],
    pub expiration_seconds: i64,
    pub now: jiff::Timestamp,
}

/// Keys, issuer and the objects that tokens speak of.
pub struct ServiceAccounts {
    config: Config,
    audiences: Vec<String>,
    keys: Vec<PublicKey>,
    signer: Option<PrivateKey>,
    objects: Arc<dyn Objects>,
}

impl ServiceAccounts {
    /// None if no key and no issuer are configured: the server then knows no service account tokens.
    pub fn new(config: &Config, objects: Arc<dyn Objects>) -> Result<Option<Self>, ConfigError> {
        if config.key_files.is_empty() && config.signing_key_file.is_none() {
            return Ok(None);
        }
        let mut keys = Vec::new();
        for path in &config.key_files {
            keys.extend(keys::public_keys(path)?);
        }
        let signer = config.signing_key_file.as_deref().map(PrivateKey::load).transpose()?;
        if keys.is_empty() {
            keys.extend(signer.as_ref().map(|s| s.public.clone()));
        }
        let audiences = config.api_audiences();
        Ok(Some(Self { config: config.clone(), audiences, keys, signer, objects }))
    }

    pub fn api_audiences(&self) -> &[String] {
        &self.audiences
    }

    pub fn max_expiration_seconds(&self) -> Option<i64> {
        self.config.max_expiration_seconds
    }

    /// A signed token.
    pub fn issue(&self, claims: &Claims<'_>) -> Result<String, String> {
        let signer = self.signer.as_ref().ok_or("no signing key is configured")?;
        let issuer = self.config.issuers.first().ok_or("no issuer is configured")?;
        let account = claims.service_account.ok_or("no service account is given")?;
        let now = claims.now.as_second();
        let (lifetime, warn_after) = self.lifetime(claims);
        let meta = &account["metadata"];
        let namespace = meta["namespace"].as_str().unwrap_or_default();
        let name = meta["name"].as_str().unwrap_or_default();
        let mut private = json!({"namespace": namespace, "serviceaccount": reference(account)});
        for (key, object) in [("pod", claims.pod), ("secret", claims.secret), ("node", claims.node)] {
            if let Some(object) = object {
                private[key] = reference(object);
            }
        }
        if let Some(seconds) = warn_after {
            private["warnafter"] = json!(now + seconds);
        }
        let token = json!({
            "aud": claims.audiences, "exp": now + lifetime, "iat": now, "iss": issuer, "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": private, "nbf": now, "sub": username(namespace, name),
        });
        jwt::sign(signer, &token)
    }

    /// How long the token lives and, if that is longer than asked for, when its use is to be warned of.
    fn lifetime(&self, claims: &Claims<'_>) -> (i64, Option<i64>) {
        let for_this_server = claims.audiences.iter().all(|a| self.audiences.contains(a));
        let extend = self.config.extend_expiration
            && claims.pod.is_some()
            && claims.expiration_seconds == WARN_ONLY_EXPIRATION_SECONDS
            && for_this_server;
        if extend {
            (EXTENDED_EXPIRATION_SECONDS, Some(claims.expiration_seconds))
        } else {
            (claims.expiration_seconds, None)
        }
    }

    async fn verify(&self, token: &str, audiences: &[String]) -> Result<Option<TokenUser>, Refused> {
        let Some(token_parts) = jwt::Unverified::parse(token) else { return Ok(None) };
        let issuer = token_parts.claims["iss"].as_str().unwrap_or_default();
        let legacy = issuer == LEGACY_ISSUER;
        if !legacy && !self.config.issuers.iter().any(|i| i == issuer) {
            return Ok(None);
        }
        let key_id = token_parts.header["kid"].as_str().unwrap_or_default();
        let mut known = false;
        let mut signed = false;
        for key in self.keys.iter().filter(|k| key_id.is_empty() || k.id == key_id) {
            known = true;
            signed |= token_parts.signed_by(key);
        }
        if !known {
            return Err(Refused("invalid signature, no keys found".into()));
        }
        if !signed {
            return Err(Refused("go-jose/go-jose: error in cryptographic primitive".into()));
        }
        let claims = &token_parts.claims;
        let mut own: Vec<String> = match &claims["aud"] {
            Value::String(one) => vec![one.clone()],
            list => strings(list),
        };
        if own.is_empty() {
            own.clone_from(&self.audiences);
        }
        let accepted: &[String] = if audiences.is_empty() { &self.audiences } else { audiences };
        let common: Vec<String> = own.iter().filter(|a| accepted.contains(a)).cloned().collect();
        if common.is_empty() && !self.audiences.is_empty() {
            return Err(Refused(format!(
                "token audiences {} is invalid for the target audiences {}",
                quoted(&own),
                quoted(accepted)
            )));
        }
        let user = match legacy {
            true => self.check_legacy(token, claims).await?,
            false => self.check(claims, jiff::Timestamp::now()).await?,
        };
        Ok(Some(TokenUser { user, audiences: common }))
    }

    /// Checks times and the objects that the claims name (upstream: `claims.go`).
    async fn check(&self, claims: &Value, now: jiff::Timestamp) -> Result<User, Refused> {
        let refuse = |why: &str| Err(Refused(why.to_owned()));
        let seconds = |key: &str| claims[key].as_f64().map(|n| n as i64);
        let now_seconds = now.as_second();
        if seconds("nbf").is_some_and(|at| now_seconds + LEEWAY_SECONDS < at) {
            return refuse("service account token is not valid yet");
        }
        if seconds("exp").is_some_and(|at| now_seconds - LEEWAY_SECONDS > at) {
            return refuse("service account token has expired");
        }
        let private = &claims["kubernetes.io"];
        let namespace = text(&private["namespace"]);
        let (name, uid) = named(&private["serviceaccount"]);
        // Deletion counts once it is older than the leeway, so that a pod can end with its token.
        let deleted = |object: &Value| {
            let at = object["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
            at.is_some_and(|at| at.as_second() < now_seconds - LEEWAY_SECONDS)
        };
        let Some(account) = self.live("serviceaccounts", namespace, name, uid).await else {
            return Err(Refused(format!("serviceaccounts {} not found", coxswain_api::field::go_quote(name))));
        };
        if deleted(&account) {
            return Err(Refused(format!("service account {namespace}/{name} has been deleted")));
        }
        let present = text(&account["metadata"]["uid"]);
        if present != uid {
            return Err(Refused(format!("service account UID ({present}) does not match claim ({uid})")));
        }
        let has_pod = private["pod"].is_object();
        for (key, resource, what) in
            [("secret", "secrets", "secret"), ("pod", "pods", "pod"), ("node", "nodes", "node")]
        {
            // The node of a pod-bound token only informs.
            if !private[key].is_object() || (key == "node" && (has_pod || private["secret"].is_object())) {
                continue;
            }
            let (name, uid) = named(&private[key]);
            let namespace = if key == "node" { "" } else { namespace };
            let Some(object) = self.live(resource, namespace, name, uid).await.filter(|o| !deleted(o)) else {
                return refuse("service account token has been invalidated");
            };
            let present = text(&object["metadata"]["uid"]);
            if present != uid {
                return Err(Refused(format!(
                    "{what} UID ({present}) does not match service account {what} ref claim ({uid})"
                )));
            }
        }
        let mut user = user(namespace, name, uid);
        let mut extra = |key: &str, value: &str| {
            if !value.is_empty() {
                user.extra.insert(key.to_owned(), vec![value.to_owned()]);
            }
        };
        if let Some(id) = claims["jti"].as_str().filter(|id| !id.is_empty()) {
            extra(CREDENTIAL_ID, &format!("JTI={id}"));
        }
        for (key, object) in [("pod", &private["pod"]), ("node", &private["node"])] {
            let (name, uid) = named(object);
            extra(&format!("authentication.kubernetes.io/{key}-name"), name);
            extra(&format!("authentication.kubernetes.io/{key}-uid"), uid);
        }
        Ok(user)
    }

    /// Tokens that a controller put into a Secret (upstream: `legacy.go`).
    async fn check_legacy(&self, token: &str, claims: &Value) -> Result<User, Refused> {
        let claim = |key: &str| text(&claims[format!("kubernetes.io/serviceaccount/{key}")]).to_owned();
        let (namespace, name, uid) = (claim("namespace"), claim("service-account.name"), claim("service-account.uid"));
        let secret = claim("secret.name");
        for (value, what) in [
            (&namespace, "namespace"),
            (&secret, "secretName"),
            (&name, "serviceAccountName"),
            (&uid, "serviceAccountUID"),
        ] {
            if value.is_empty() {
                return Err(Refused(format!("{what} claim is missing")));
            }
        }
        if text(&claims["sub"]) != username(&namespace, &name) {
            return Err(Refused(format!("sub claim is invalid: {}", text(&claims["sub"]))));
        }
        if self.config.lookup {
            let invalid = || Refused("service account token has been invalidated".to_owned());
            let stored = self.live("secrets", &namespace, &secret, "").await.ok_or_else(invalid)?;
            if !stored["metadata"]["deletionTimestamp"].is_null() {
                return Err(invalid());
            }
            use base64::Engine;
            let held = base64::engine::general_purpose::STANDARD.decode(text(&stored["data"]["token"]));
            if held.ok().as_deref() != Some(token.as_bytes()) {
                return Err(Refused("service account token does not match server's copy".into()));
            }
            let account = self.live("serviceaccounts", &namespace, &name, &uid).await;
            let account = account
                .filter(|a| a["metadata"]["deletionTimestamp"].is_null())
                .ok_or_else(|| Refused(format!("service account {namespace}/{name} has been deleted")))?;
            let present = text(&account["metadata"]["uid"]);
            if present != uid {
                return Err(Refused(format!("service account UID ({present}) does not match claim ({uid})")));
            }
        }
        Ok(user(&namespace, &name, &uid))
    }

    /// From the cache; from the store itself if the cache lacks it or holds another of that name.
    async fn live(&self, resource: &str, namespace: &str, name: &str, uid: &str) -> Option<Arc<Value>> {
        let cached = self.objects.get("", resource, namespace, name);
        if let Some(object) = cached.filter(|o| uid.is_empty() || text(&o["metadata"]["uid"]) == uid) {
            return Some(object);
        }
        self.objects.get_consistent("", resource, namespace, name).await.ok().flatten()
    }

    /// `/.well-known/openid-configuration`; none unless the issuer is an HTTPS address.
    pub fn discovery(&self) -> Option<Value> {
        let issuer = self.config.issuers.first().filter(|i| i.starts_with("https://"))?;
        let jwks_uri = match &self.config.jwks_uri {
            Some(uri) => uri.clone(),
            None => format!("https://{}/openid/v1/jwks", self.config.external_address),
        };
        let mut algorithms: Vec<&str> = self.keys.iter().map(|k| k.algorithm.name()).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        Some(json!({
            "issuer": issuer, "jwks_uri": jwks_uri, "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": algorithms,
        }))
    }

    /// `/openid/v1/jwks`
    pub fn jwks(&self) -> Value {
        json!({"keys": self.keys.iter().map(PublicKey::jwk).collect::<Vec<_>>()})
    }
}

/// The part of the chain that takes service account tokens.
pub(super) struct Verifier(pub(super) Arc<ServiceAccounts>);

#[async_trait]
impl TokenAuthenticator for Verifier {
    async fn authenticate_token(&self, token: &str, audiences: &[String]) -> Result<Option<TokenUser>, Refused> {
        self.0.verify(token, audiences).await
    }
}

pub fn username(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// The groups of every service account of a namespace.
pub fn groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]
}

pub fn user(namespace: &str, name: &str, uid: &str) -> User {
    User { name: username(namespace, name), uid: uid.into(), groups: groups(namespace), ..User::default() }
}

fn reference(object: &Value) -> Value {
    let mut out = json!({"name": object["metadata"]["name"]});
    if !text(&object["metadata"]["uid"]).is_empty() {
        out["uid"] = object["metadata"]["uid"].clone();
    }
    out
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn named(reference: &Value) -> (&str, &str) {
    (text(&reference["name"]), text(&reference["uid"]))
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A list as Go's `%q` prints it.
fn quoted(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|s| coxswain_api::field::go_quote(s)).collect();
    format!("[{}]", quoted.join(" "))
}
