//! Bootstrap tokens, by which machines come to join: the signer vouches for `kube-public/cluster-info` with every token, so that who
//! knows one can trust what anybody may read; the cleaner deletes tokens when their time is over. The counterpart of
//! `pkg/controller/bootstrap`; both are off by default, as upstream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coxswain_client::drive::{drive, feed};
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Client, Informer, ObjectKey, Selection, Store, WorkQueue, errors, kube};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use ring::hmac;

use crate::Context;
use crate::common::owners;

const TOKEN_NAMESPACE: &str = "kube-system";
const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";
const TOKEN_NAME_PREFIX: &str = "bootstrap-token-";
const CLUSTER_INFO: (&str, &str) = ("kube-public", "cluster-info");
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";

fn tokens(context: &Context) -> Informer<Secret> {
    let selection = Selection::fields(format!("type={TOKEN_TYPE}")).within(TOKEN_NAMESPACE);
    context.informers.informer_with(selection)
}

fn text<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value.and_then(|value| std::str::from_utf8(&value.0).ok()).unwrap_or_default()
}

/// How long a token is still good: for ever if it says nothing, not at all if what it says cannot be read.
fn remaining(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let expiration = text(secret, "expiration");
    if expiration.is_empty() {
        return None;
    }
    let left = expiration.parse::<Timestamp>().map(|until| until.duration_since(now));
    Some(left.ok().and_then(|left| Duration::try_from(left).ok()).unwrap_or(Duration::ZERO))
}

/// Id and secret of a token that signs; none of one that is broken, over, or meant for something else.
fn signing(secret: &Secret, now: Timestamp) -> Option<(&str, &str)> {
    let (id, key) = (text(secret, "token-id"), text(secret, "token-secret"));
    let is_word = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
    };
    let named = owners::name(&secret.metadata).strip_prefix(TOKEN_NAME_PREFIX) == Some(id);
    let good = named && is_word(id, 6) && is_word(key, 16) && text(secret, "usage-bootstrap-signing") == "true";
    (good && remaining(secret, now) != Some(Duration::ZERO)).then_some((id, key))
}

/// A JSON web signature without its content, which the reader has already.
fn detached_signature(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes())))
}

/// The map's data with the signatures of these tokens and no others.
fn signed(data: &BTreeMap<String, String>, tokens: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut wanted = data.clone();
    wanted.retain(|key, _| !key.starts_with(SIGNATURE_PREFIX));
    if let Some(content) = data.get(KUBECONFIG) {
        for (id, secret) in tokens {
            wanted.insert(format!("{SIGNATURE_PREFIX}{id}"), detached_signature(content, id, secret));
        }
    }
    wanted
}

struct Signer {
    client: Client,
    maps: Store<ConfigMap>,
    tokens: Store<Secret>,
}

pub async fn run_signer(context: Context) {
    let (namespace, name) = CLUSTER_INFO;
    let selection = Selection::fields(format!("metadata.name={name}")).within(namespace);
    let maps: Informer<ConfigMap> = context.informers.informer_with(selection);
    let tokens = tokens(&context);
    tokio::join!(maps.synced(), tokens.synced());
    let queue = WorkQueue::<ObjectKey>::new();
    let key = ObjectKey::new(namespace, name);
    queue.add(key.clone());
    let signer = Arc::new(Signer { client: context.client.clone(), maps: maps.store(), tokens: tokens.store() });
    let feeds = async {
        tokio::join!(feed(&maps, |_| queue.add(key.clone())), feed(&tokens, |_| queue.add(key.clone())));
    };
    let reconcile = |signer: Arc<Signer>, key: ObjectKey| async move { signer.reconcile(key).await };
    drive("bootstrap-signer", signer, queue.clone(), 1, context.shutdown.clone(), reconcile, feeds).await;
}

impl Signer {
    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(map) = self.maps.get_key(&key) else { return Ok(()) };
        let secrets = self.tokens.list();
        let now = Timestamp::now();
        let tokens: Vec<_> = secrets.iter().filter_map(|secret| signing(secret, now)).collect();
        let present = map.data.clone().unwrap_or_default();
        let wanted = signed(&present, &tokens);
        if wanted == present {
            return Ok(());
        }
        let updated = ConfigMap { data: Some(wanted), ..(*map).clone() };
        errors::ignore_not_found(objects::update(&self.client, &updated).await).map(drop)
    }
}

struct Cleaner {
    client: Client,
    tokens: Store<Secret>,
    queue: WorkQueue<ObjectKey>,
}

pub async fn run_cleaner(context: Context) {
    let tokens = tokens(&context);
    tokens.synced().await;
    let queue = WorkQueue::<ObjectKey>::new();
    let client = context.client.clone();
    let cleaner = Arc::new(Cleaner { client, tokens: tokens.store(), queue: queue.clone() });
    let feeds = feed(&tokens, |event| queue.add(ObjectKey::of(event.object().as_ref())));
    let reconcile = |cleaner: Arc<Cleaner>, key: ObjectKey| async move { cleaner.reconcile(key).await };
    drive("token-cleaner", cleaner, queue.clone(), 10, context.shutdown.clone(), reconcile, feeds).await;
}

impl Cleaner {
    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(secret) = self.tokens.get_key(&key) else { return Ok(()) };
        match remaining(&secret, Timestamp::now()) {
            None => Ok(()),
            Some(left) if !left.is_zero() => {
                self.queue.add_after(key, left);
                Ok(())
            }
            Some(_) => {
                let deletion = Deletion { uid: secret.metadata.uid.as_deref(), ..Deletion::default() };
                errors::ignore_not_found(objects::delete::<Secret>(&self.client, &key, &deletion).await).map(drop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(id: &str, more: serde_json::Value) -> Secret {
        let mut data = json!({"token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true"});
        data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let encoded: serde_json::Map<_, _> = data
            .as_object()
            .unwrap()
            .iter()
            .map(|(k, v)| {
                let value = base64::engine::general_purpose::STANDARD.encode(v.as_str().unwrap());
                (k.clone(), json!(value))
            })
            .collect();
        let name = format!("{TOKEN_NAME_PREFIX}{id}");
        serde_json::from_value(json!({"metadata": {"name": name}, "type": TOKEN_TYPE, "data": encoded})).unwrap()
    }

    #[test]
    fn only_good_tokens_sign() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let signs = |secret: &Secret| signing(secret, now).is_some();
        assert!(signs(&token("abcdef", json!({}))));
        assert!(signs(&token("abcdef", json!({"expiration": "2026-01-01T00:00:01Z"}))));
        assert!(!signs(&token("abcdef", json!({"expiration": "2025-12-31T23:59:59Z"}))));
        assert!(!signs(&token("abcdef", json!({"expiration": "soon"}))));
        assert!(!signs(&token("abcdef", json!({"usage-bootstrap-signing": "false"}))));
        assert!(!signs(&token("ABCDEF", json!({}))));
    }

    #[test]
    fn signatures_come_and_go_with_their_tokens() {
        let data = BTreeMap::from([
            (KUBECONFIG.to_owned(), "config".to_owned()),
            (format!("{SIGNATURE_PREFIX}old000"), "x".to_owned()),
            ("other".to_owned(), "kept".to_owned()),
        ]);
        let wanted = signed(&data, &[("abcdef", "0123456789abcdef")]);
        assert_eq!(wanted.keys().collect::<Vec<_>>(), ["jws-kubeconfig-abcdef", "kubeconfig", "other"]);
        let signature = &wanted["jws-kubeconfig-abcdef"];
        let (header, mac) = signature.split_once("..").unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(header).unwrap(), br#"{"alg":"HS256","kid":"abcdef"}"#);
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef");
        let content = format!("{header}.{}", URL_SAFE_NO_PAD.encode("config"));
        hmac::verify(&key, content.as_bytes(), &URL_SAFE_NO_PAD.decode(mac).unwrap()).unwrap();
    }
}
