//! Bootstrap tokens: `id.secret`, kept in Secrets of kube-system, with which a new node asks for its first certificate
//! (upstream: `plugin/pkg/auth/authenticator/token/bootstrap`).

use super::{Refused, TokenAuthenticator, TokenUser};
use crate::objects::Objects;
use crate::request::User;
use async_trait::async_trait;
use base64::Engine;
use coxswain_api::Value;
use std::sync::Arc;

const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const DEFAULT_GROUP: &str = "system:bootstrappers";

pub struct BootstrapTokens {
    objects: Arc<dyn Objects>,
}

impl BootstrapTokens {
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects }
    }
}

#[async_trait]
impl TokenAuthenticator for BootstrapTokens {
    async fn authenticate_token(&self, token: &str, _audiences: &[String]) -> Result<Option<TokenUser>, Refused> {
        let Some((id, secret)) = split(token) else { return Ok(None) };
        let name = format!("bootstrap-token-{id}");
        let Some(stored) = self.objects.get("", "secrets", "kube-system", &name) else { return Ok(None) };
        Ok(user_of(&stored, id, secret, jiff::Timestamp::now()).map(|user| TokenUser { user, audiences: Vec::new() }))
    }
}

/// Six and sixteen characters of `a-z0-9`.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

fn user_of(stored: &Value, id: &str, secret: &str, now: jiff::Timestamp) -> Option<User> {
    let data = |key: &str| -> Option<String> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(stored["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let usable = stored["type"] == SECRET_TYPE
        && stored["metadata"]["deletionTimestamp"].is_null()
        // Equal time for every wrong secret.
        && data("token-secret").is_some_and(|s| s.len() == secret.len() && s.bytes().zip(secret.bytes()).fold(0, |d, (a, b)| d | (a ^ b)) == 0)
        && data("token-id").as_deref() == Some(id)
        && data("usage-bootstrap-authentication").as_deref() == Some("true");
    if !usable {
        return None;
    }
    if let Some(expiration) = data("expiration").filter(|e| !e.is_empty())
        && expiration.parse::<jiff::Timestamp>().map_or(true, |at| now > at)
    {
        return None;
    }
    let mut groups = vec![DEFAULT_GROUP.to_owned()];
    for group in data("auth-extra-groups").unwrap_or_default().split(',').filter(|g| !g.is_empty()) {
        // A single group of another form makes the whole token useless, as upstream has it.
        if !group.starts_with("system:bootstrappers:") {
            return None;
        }
        groups.push(group.to_owned());
    }
    groups.sort();
    groups.dedup();
    Some(User { name: format!("system:bootstrap:{id}"), groups, ..User::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bootstrap_token_is_good_only_with_its_secret_and_before_it_expires() {
        let b64 = |s: &str| base64::engine::general_purpose::STANDARD.encode(s);
        let mut stored = json!({"type": SECRET_TYPE, "metadata": {}, "data": {
            "token-id": b64("abcdef"), "token-secret": b64("0123456789abcdef"),
            "usage-bootstrap-authentication": b64("true"), "expiration": b64("2030-01-01T00:00:00Z"),
            "auth-extra-groups": b64("system:bootstrappers:x"),
        }});
        let at = |s: &str| s.parse::<jiff::Timestamp>().unwrap();
        let user = user_of(&stored, "abcdef", "0123456789abcdef", at("2029-01-01T00:00:00Z")).unwrap();
        assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:x"]);
        assert!(user_of(&stored, "abcdef", "0123456789abcdeg", at("2029-01-01T00:00:00Z")).is_none());
        assert!(user_of(&stored, "abcdef", "0123456789abcdef", at("2031-01-01T00:00:00Z")).is_none());
        stored["data"]["auth-extra-groups"] = json!(b64("system:masters"));
        assert!(user_of(&stored, "abcdef", "0123456789abcdef", at("2029-01-01T00:00:00Z")).is_none());
        assert!(split("abcdef.0123456789abcde").is_none());
    }
}
