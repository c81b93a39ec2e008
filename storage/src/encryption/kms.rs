//! Envelope encryption with a key service (upstream: `encrypt/envelope/kmsv2` and the probe of `encryptionconfig`).
//!
//! Values are sealed with keys derived from a seed of this process; the key service seals the seed, and that goes along with
//! every value. The service is asked for a seed it has not opened here before, when its key changes, and every minute
//! whether it is well. Without an answer, writing ends after three minutes; reading goes on.

mod service;
#[cfg(test)]
pub(super) mod testing;
mod wire;

use super::ciphers::{Cipher, Gcm, SEED, SeededGcm, random};
use super::config::Kms;
use super::{ConfigError, Opened, TransformError};
use crate::metrics;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use service::{Failure, Service};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{EncryptedObject, SourceType};

const HEALTHY_PAUSE: Duration = Duration::from_secs(60);
const UNHEALTHY_PAUSE: Duration = Duration::from_secs(10);
/// How long a seed seals without an answer of the service.
const WRITE_TIME: Duration = Duration::from_secs(180);
/// For how long the last answer stands for asking again.
const HEALTHY_TTL: Duration = Duration::from_secs(20);
const UNHEALTHY_TTL: Duration = Duration::from_secs(3);
/// Opened seeds are kept so long after their last use. There are about as many as servers that wrote.
const CACHE_TTL: Duration = Duration::from_secs(24 * 3600);
const CACHE_MAX: usize = 10_000;
const KEY_ID_BYTES_MAX: usize = 1024;
const SOURCE_BYTES_MAX: usize = 1024;
const ANNOTATIONS_BYTES_MAX: usize = 32 * 1024;

/// `sha256:` and the hash of a text in hexadecimal digits; nothing of nothing.
pub(super) fn hash_of(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    format!("sha256:{}", hex(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The seed that now seals.
#[derive(Clone)]
struct State {
    cipher: Arc<dyn Cipher>,
    /// All of a stored object but its data.
    envelope: EncryptedObject,
    writes_until: Instant,
}

/// Follows the health and the key of one service.
pub(super) struct Probe {
    name: String,
    service: Service,
    /// Of the API server.
    server_hash: String,
    state: Mutex<Option<State>>,
    last: tokio::sync::Mutex<Last>,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

struct Last {
    answer: Result<(), String>,
    good_until: Instant,
    version: String,
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

impl Probe {
    /// Asks the service once; if it does not answer, the server starts all the same.
    pub(super) async fn start(kms: &Kms, server: &str) -> Result<Arc<Probe>, ConfigError> {
        let service = Service::new(&kms.name, &kms.endpoint, kms.timeout)
            .map_err(|e| ConfigError(format!("could not configure KMSv2-Plugin's probe {:?}, error: {e}", kms.name)))?;
        let last = Last { answer: Ok(()), good_until: Instant::now(), version: String::new() };
        let probe = Arc::new(Probe {
            name: kms.name.clone(),
            service,
            server_hash: hash_of(server),
            state: Mutex::new(None),
            last: tokio::sync::Mutex::new(last),
            task: Mutex::new(None),
        });
        let mut healthy = probe.check_and_log().await;
        let weak = Arc::downgrade(&probe);
        let follow = async move {
            loop {
                tokio::time::sleep(if healthy { HEALTHY_PAUSE } else { UNHEALTHY_PAUSE }).await;
                let Some(probe) = weak.upgrade() else { return };
                healthy = probe.check_and_log().await;
            }
        };
        *probe.task.lock() = Some(tokio::spawn(follow));
        Ok(probe)
    }

    async fn check_and_log(&self) -> bool {
        let answer = self.check().await;
        if let Err(error) = &answer {
            tracing::warn!(provider = %self.name, %error, "a key service is not well");
        }
        answer.is_ok()
    }

    /// Whether the service is well, from a recent answer or a new one.
    pub(super) async fn check(&self) -> Result<(), String> {
        let mut last = self.last.lock().await;
        if Instant::now() < last.good_until {
            return last.answer.clone();
        }
        last.answer = self.ask(&mut last.version).await;
        last.good_until = Instant::now() + if last.answer.is_ok() { HEALTHY_TTL } else { UNHEALTHY_TTL };
        last.answer.clone()
    }

    async fn ask(&self, version: &mut String) -> Result<(), String> {
        let name = &self.name;
        let status = self.service.status().await.map_err(|e| {
            format!("failed to perform status section of the healthz check for KMS Provider {name}, error: {e}")
        })?;
        let mut errors = Vec::new();
        if status.healthz != "ok" {
            errors.push(format!("got unexpected healthz status: {}", status.healthz));
        }
        if !matches!(status.version.as_str(), "v2" | "v2beta1") {
            errors.push(format!("expected KMSv2 API version v2, got {}", status.version));
        } else {
            if version.is_empty() {
                version.clone_from(&status.version);
            }
            if *version != status.version {
                errors.push(format!(
                    "KMSv2 API version should not change after the initial status response version {version}, got {}",
                    status.version
                ));
            }
        }
        match validate_key_id(&status.key_id) {
            Err((code, why)) => {
                metrics::KEY_ID_INVALID.add(&[name, code], 1);
                errors.push(format!("got invalid KMSv2 KeyID hash {:?}: {why}", hash_of(&status.key_id)));
            }
            Ok(()) => {
                metrics::KEY_ID_LAST_STATUS.set_to_now(&[name, &hash_of(&status.key_id), &self.server_hash]);
                errors.extend(self.follow_key(&status.key_id).await.err());
            }
        }
        let why = match errors.len() {
            0 => return Ok(()),
            1 => errors.remove(0),
            _ => format!("[{}]", errors.join(", ")),
        };
        Err(format!("kmsv2 Provider {name} is not healthy, error: {why}"))
    }

    /// Makes a new seed if the service has another key now; else the present one may be used for longer.
    async fn follow_key(&self, key_id: &str) -> Result<(), String> {
        // The time begins before the service is asked, as it is an upper bound.
        let writes_until = Instant::now() + WRITE_TIME;
        if let Some(state) = &mut *self.state.lock()
            && state.envelope.key_id == key_id
        {
            state.writes_until = writes_until;
            return Ok(());
        }
        let (seed, envelope) = self.new_seed().await.map_err(|e| format!("failed to rotate DEK: {e}"))?;
        if envelope.key_id != key_id {
            return Err(format!(
                "failed to rotate DEK: statusKeyIDHash={:?}, encryptKeyIDHash={:?}",
                hash_of(key_id),
                hash_of(&envelope.key_id)
            ));
        }
        let cipher = Arc::new(SeededGcm::new(&seed).map_err(|e| e.message)?);
        *self.state.lock() = Some(State { cipher, envelope, writes_until });
        Ok(())
    }

    async fn new_seed(&self) -> Result<([u8; SEED], EncryptedObject), Failure> {
        let begin = Instant::now();
        let seed = random::<SEED>().map_err(|e| {
            metrics::DATA_KEY_FAILURES.add(&[], 1);
            Failure::new(e.message)
        })?;
        metrics::DATA_KEY_GENERATION.observe(&[], begin.elapsed().as_secs_f64());
        let answer = self.service.encrypt(&seed).await.map_err(|e| e.within("failed to encrypt DEK, error: "))?;
        let envelope = EncryptedObject {
            encrypted_data: Bytes::new(),
            key_id: answer.key_id,
            encrypted_dek_source: answer.ciphertext,
            annotations: answer.annotations,
            encrypted_dek_source_type: SourceType::HkdfSha256XnonceAesGcmSeed as i32,
        };
        validate(&envelope, b"\0").map_err(Failure::new)?;
        Ok((seed, envelope))
    }

    fn state(&self) -> Result<State, TransformError> {
        self.state.lock().clone().ok_or_else(|| TransformError::new("got unexpected nil transformer"))
    }
}

/// The transformer of one service.
pub(super) struct Envelope {
    probe: Arc<Probe>,
    /// Opened seeds and keys, by all that was sealed with them.
    opened: Mutex<HashMap<Vec<u8>, (Arc<dyn Cipher>, Instant)>>,
}

impl Envelope {
    pub(super) fn new(probe: Arc<Probe>) -> Envelope {
        Envelope { probe, opened: Mutex::default() }
    }

    pub(super) async fn open(&self, value: &Bytes, key: &str) -> Result<Opened, TransformError> {
        let object = EncryptedObject::decode(value.clone()).map_err(|e| TransformError::new(e.to_string()))?;
        validate(&object, &object.encrypted_data).map_err(TransformError::new)?;
        let state = self.probe.state()?;
        let cipher = self.cipher_of(&object).await?;
        self.record_use("from_storage", &object.key_id);
        let value = cipher.open(&object.encrypted_data, key.as_bytes())?.into();
        let stale = object.key_id != state.envelope.key_id
            || object.encrypted_dek_source_type != state.envelope.encrypted_dek_source_type;
        Ok(Opened { value, stale })
    }

    pub(super) async fn seal(&self, value: &Bytes, key: &str) -> Result<Bytes, TransformError> {
        let state = self.probe.state()?;
        if Instant::now() > state.writes_until {
            let hash = hash_of(&state.envelope.key_id);
            return Err(TransformError::new(format!("encryptedDEKSource with keyID hash {hash:?} expired")));
        }
        self.keep(&state.envelope, state.cipher.clone());
        let sealed = state.cipher.seal(value, key.as_bytes())?;
        self.record_use("to_storage", &state.envelope.key_id);
        let object = EncryptedObject { encrypted_data: sealed.into(), ..state.envelope };
        Ok(object.encode_to_vec().into())
    }

    async fn cipher_of(&self, object: &EncryptedObject) -> Result<Arc<dyn Cipher>, TransformError> {
        if let Some((cipher, used)) = self.opened.lock().get_mut(&object.source_key()) {
            *used = Instant::now();
            return Ok(cipher.clone());
        }
        metrics::CACHE_MISSES.add(&[], 1);
        let answer = self.probe.service.decrypt(object).await;
        let source = answer.map_err(|e| e.within("failed to decrypt DEK, error: ").into_error())?;
        let cipher: Arc<dyn Cipher> = match object.source_type() {
            Some(SourceType::HkdfSha256XnonceAesGcmSeed) => Arc::new(SeededGcm::new(&source)?),
            _ => Arc::new(Gcm::new(&source)?),
        };
        self.keep(object, cipher.clone());
        Ok(cipher)
    }

    fn keep(&self, object: &EncryptedObject, cipher: Arc<dyn Cipher>) {
        let mut opened = self.opened.lock();
        let key = object.source_key();
        if opened.contains_key(&key) {
            return;
        }
        opened.retain(|_, (_, used)| used.elapsed() < CACHE_TTL);
        if opened.len() >= CACHE_MAX {
            opened.clear();
        }
        opened.insert(key, (cipher, Instant::now()));
        metrics::DEK_SOURCES.set(&[&self.probe.name], opened.len() as f64);
    }

    fn record_use(&self, way: &str, key_id: &str) {
        let hash = hash_of(key_id);
        let labels = [way, &self.probe.name, &hash, &self.probe.server_hash];
        metrics::KEY_ID_USES.add(&labels, 1);
        metrics::KEY_ID_LAST_USE.set_to_now(&labels);
    }
}

fn validate_key_id(key_id: &str) -> Result<(), (&'static str, String)> {
    match key_id.len() {
        0 => Err(("empty", "keyID is empty".into())),
        size if size > KEY_ID_BYTES_MAX => {
            Err(("too_long", format!("keyID is {size} bytes, which exceeds the max size of {KEY_ID_BYTES_MAX}")))
        }
        _ => Ok(()),
    }
}

fn validate(object: &EncryptedObject, data: &[u8]) -> Result<(), String> {
    if object.source_type().is_none() {
        return Err(format!("unknown encryptedDEKSourceType: {}", object.encrypted_dek_source_type));
    }
    if data.is_empty() {
        return Err("encrypted data is empty".into());
    }
    let source = match object.encrypted_dek_source.len() {
        0 => Some("encrypted DEK source is empty".to_owned()),
        size if size > SOURCE_BYTES_MAX => {
            Some(format!("encrypted DEK source is {size} bytes, which exceeds the max size of {SOURCE_BYTES_MAX}"))
        }
        _ => None,
    };
    if let Some(why) = source {
        return Err(format!("failed to validate encrypted DEK source: {why}"));
    }
    validate_key_id(&object.key_id).map_err(|(_, why)| format!("failed to validate key id: {why}"))?;
    let size: usize = object.annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    if size > ANNOTATIONS_BYTES_MAX {
        return Err(format!(
            "failed to validate annotations: total size of annotations is {size}, which exceeds the max size of {ANNOTATIONS_BYTES_MAX}"
        ));
    }
    for name in object.annotations.keys() {
        let label = |label: &str| {
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            edge(label.chars().next())
                && edge(label.chars().next_back())
                && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        if name.len() > 253 || !name.contains('.') || !name.split('.').all(label) {
            return Err(format!(
                "failed to validate annotations: annotations: Invalid value: {name:?}: should be a domain with at least two segments separated by dots"
            ));
        }
    }
    Ok(())
}
