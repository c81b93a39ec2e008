//! Service account tokens for projected volumes (upstream: `kubelet/token`): asked for through the TokenRequest API, kept until they have
//! lived four fifths of their time.

use crate::pod::PodExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use parking_lot::Mutex;
use std::collections::HashMap;

/// A token older than this is renewed however long it would live (upstream: `maxTTL`).
const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);
const JITTER_MAX_MS: i64 = 10_000;

type Key = (String, String, String, i64);

#[derive(Default)]
pub struct Tokens {
    cache: Mutex<HashMap<Key, Held>>,
}

#[derive(Clone)]
struct Held {
    token: String,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

impl Tokens {
    pub async fn get(
        &self,
        client: &kube::Client,
        pod: &Pod,
        audience: Option<&str>,
        seconds: Option<i64>,
    ) -> Result<String, String> {
        let account = pod.spec().service_account_name.as_deref().unwrap_or("default");
        let seconds = seconds.unwrap_or(3600);
        let audience = audience.unwrap_or_default();
        let key = (pod.uid().to_string(), account.to_string(), audience.to_string(), seconds);
        let now = Timestamp::now();
        let held = self.cache.lock().get(&key).cloned();
        if let Some(held) = held.as_ref().filter(|h| now < h.renew_at) {
            return Ok(held.token.clone());
        }
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: (!audience.is_empty()).then(|| vec![audience.to_string()]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name().into()),
                    uid: Some(pod.uid().into()),
                }),
            }),
            ..Default::default()
        };
        let api: kube::Api<ServiceAccount> = kube::Api::namespaced(client.clone(), pod.namespace());
        match api.create_token_request(account, &PostParams::default(), &request).await {
            Ok(answer) => {
                let status = answer.status.ok_or("token request came back without a token")?;
                let token = status.token.ok_or("token request came back without a token")?;
                let expires_at = status.expiration_timestamp.map_or(now, |t| t.0);
                // The lifetime may differ from what was asked for: it is counted from now, as the server's clock may differ too.
                let lifetime = expires_at.duration_since(now);
                let jitter = SignedDuration::from_millis(rand::random_range(0..JITTER_MAX_MS));
                let renew_at = now + (lifetime * 4 / 5).min(AGE_MAX) - jitter.min(lifetime / 10);
                self.cache.lock().insert(key, Held { token: token.clone(), renew_at, expires_at });
                Ok(token)
            }
            // A token that still holds is better than none; the next sync tries again.
            Err(_) if held.as_ref().is_some_and(|h| now < h.expires_at) => {
                Ok(held.map(|h| h.token).unwrap_or_default())
            }
            Err(e) => Err(format!("failed to fetch token: {}", crate::api_message(&e))),
        }
    }

    /// Forgets the tokens of a pod that is gone.
    pub fn forget(&self, uid: &str) {
        self.cache.lock().retain(|key, _| key.0 != uid);
    }
}
