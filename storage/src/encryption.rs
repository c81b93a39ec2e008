//! Encryption at rest: what lies between the values of the API server and the bytes in the store (upstream:
//! `apiserver/pkg/storage/value` and `server/options/encryptionconfig`).
//!
//! The API server asks for the transformer of a resource and has it seal what is written and open what is read. The
//! bytes that come of it are upstream's, prefix and all, so that either server reads what the other wrote. The
//! configuration is a file; it may change while the server runs.

mod ciphers;
mod config;
mod kms;
mod prefixed;

#[cfg(test)]
mod tests;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use ciphers::{Cbc, Cipher, Gcm, Secretbox};
use config::{Configuration, Key, Provider};
use kms::{Envelope, Probe};
use prefixed::{Choice, Kind, OfResource, Step};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::metrics;

/// How often the file is looked at for changes.
const RELOAD_PAUSE: Duration = Duration::from_secs(60);
/// How long the key services of a new configuration may take to become healthy.
const NEW_HEALTH_TIMEOUT: Duration = Duration::from_secs(10);

/// A value that cannot be opened or sealed. The text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TransformError {
    pub message: String,
    /// The name of the gRPC code if a key service refused, for the metrics.
    pub code: Option<&'static str>,
}

impl TransformError {
    pub fn new(message: impl Into<String>) -> TransformError {
        TransformError { message: message.into(), code: None }
    }
}

/// A configuration that cannot be used. The text is upstream's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// A value as it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub value: Bytes,
    /// Not sealed as it would be now: it should be written again even if it does not change.
    pub stale: bool,
}

/// Seals values of one resource for the store, and opens them.
#[async_trait]
pub trait Transformer: Send + Sync + 'static {
    /// `key` is where the value lies: a value moved elsewhere does not open there, as far as the cipher authenticates.
    async fn open(&self, value: Bytes, key: &str) -> Result<Opened, TransformError>;

    async fn seal(&self, value: Bytes, key: &str) -> Result<Bytes, TransformError>;
}

/// The configuration of a server, with all that it set going.
pub struct Encryption {
    loaded: Arc<ArcSwap<Loaded>>,
    reloads: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for Encryption {
    fn drop(&mut self) {
        if let Some(task) = &self.reloads {
            task.abort();
        }
    }
}

/// What a file said.
struct Loaded {
    /// By group and resource, either of which may be `*`.
    choices: HashMap<(Box<str>, Box<str>), Choice>,
    probes: Vec<Arc<Probe>>,
    /// Of the file, in hexadecimal digits.
    hash: String,
}

impl Encryption {
    /// Loads the file named by `--encryption-provider-config`. With `reload` it is followed from then on. `server` is the
    /// identity of this API server, for the metrics.
    pub async fn load(path: &Path, reload: bool, server: &str) -> Result<Encryption, ConfigError> {
        let loaded = Loaded::load(path, reload, server).await?;
        record_config(server, &loaded.hash);
        let loaded = Arc::new(ArcSwap::from_pointee(loaded));
        let follow = || tokio::spawn(follow(path.to_owned(), loaded.clone(), server.to_owned(), RELOAD_PAUSE));
        let reloads = reload.then(follow);
        Ok(Encryption { loaded, reloads })
    }

    /// The transformer of a resource; it stays right when the configuration changes.
    pub fn for_resource(&self, group: &str, resource: &str) -> Arc<dyn Transformer> {
        let name = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
        let (group, resource) = (group.into(), resource.into());
        Arc::new(OfResource { group, resource, name: name.into(), loaded: self.loaded.clone() })
    }

    pub fn reloads(&self) -> bool {
        self.reloads.is_some()
    }

    /// Whether there is a health check `kms-providers`.
    pub fn has_health_check(&self) -> bool {
        self.reloads() || !self.loaded.load().probes.is_empty()
    }

    /// Whether all key services do their work.
    pub async fn check(&self) -> Result<(), String> {
        self.loaded.load_full().check().await
    }
}

/// Looks at the file now and then, and takes it over when it has changed and all of its key services answer.
async fn follow(path: PathBuf, loaded: Arc<ArcSwap<Loaded>>, server: String, pause: Duration) {
    let server_hash = kms::hash_of(&server);
    loop {
        tokio::time::sleep(pause).await;
        match reload_once(&path, &loaded, &server).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(path = %path.display(), "the encryption configuration was read anew");
                metrics::RELOADS.add(&["success", &server_hash], 1);
                metrics::LAST_RELOAD.set_to_now(&["success", &server_hash]);
                record_config(&server, &loaded.load().hash);
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "error processing encryption config file");
                metrics::RELOADS.add(&["failure", &server_hash], 1);
                metrics::LAST_RELOAD.set_to_now(&["failure", &server_hash]);
            }
        }
    }
}

/// Whether there was something new.
async fn reload_once(path: &Path, loaded: &ArcSwap<Loaded>, server: &str) -> Result<bool, ConfigError> {
    let old = loaded.load_full();
    if config::read(path)?.1 == old.hash {
        return Ok(false);
    }
    let new = Loaded::load(path, true, server).await?;
    let begin = std::time::Instant::now();
    while let Err(error) = new.check().await {
        if begin.elapsed() > NEW_HEALTH_TIMEOUT {
            return Err(ConfigError(format!("health check for new transformers failed: {error}")));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    loaded.store(Arc::new(new));
    Ok(true)
}

fn record_config(server: &str, hash: &str) {
    metrics::CONFIG_INFO.clear();
    metrics::CONFIG_INFO.set(&[&kms::hash_of(server), hash], 1.0);
}

impl Loaded {
    async fn load(path: &Path, reload: bool, server: &str) -> Result<Loaded, ConfigError> {
        let parse = |e: ConfigError| ConfigError(format!("error while parsing file: {e}"));
        let (text, hash) =
            config::read(path).map_err(|e| parse(ConfigError(format!("error while loading file: {e}"))))?;
        let configuration = config::parse(&text, path).map_err(parse)?;
        config::validate(&configuration, reload).map_err(parse)?;
        let build = |e: ConfigError| ConfigError(format!("error while building transformers: {e}"));
        Loaded::build(&configuration, hash, server).await.map_err(build)
    }

    async fn build(configuration: &Configuration, hash: String, server: &str) -> Result<Loaded, ConfigError> {
        let mut loaded = Loaded { choices: HashMap::new(), probes: Vec::new(), hash };
        for rule in &configuration.resources {
            let mut steps = Vec::new();
            for (_, provider) in &rule.providers {
                steps.push(Arc::new(step(provider, server, &mut loaded.probes).await?));
            }
            for resource in &rule.resources {
                let (resource, group) = config::group_resource(resource);
                let any = |group: &str| (Box::<str>::from(group), Box::<str>::from("*"));
                for mask in [any(group), any("*")] {
                    if loaded.choices.contains_key(&mask) {
                        let [what, by] = [(resource, group), (&*mask.1, &*mask.0)].map(|(r, g)| match (r, g) {
                            ("*", "") => "\"*.\"".to_owned(),
                            (r, "") => format!("{r:?}"),
                            (r, g) => format!("\"{r}.{g}\""),
                        });
                        return Err(ConfigError(format!("resource {what} is masked by earlier rule {by}")));
                    }
                }
                let key = (group.into(), resource.into());
                let new = || Choice { steps: Vec::new(), unknown: "no matching prefix found" };
                loaded.choices.entry(key).or_insert_with(new).steps.extend(steps.iter().cloned());
            }
        }
        Ok(loaded)
    }

    /// The most specific rule that covers a resource.
    fn choice(&self, group: &str, resource: &str) -> Option<&Choice> {
        let get = |group: &str, resource: &str| self.choices.get(&(group.into(), resource.into()));
        get(group, resource).or_else(|| get(group, "*")).or_else(|| get("*", "*"))
    }

    async fn check(&self) -> Result<(), String> {
        let mut errors = Vec::new();
        for (i, probe) in self.probes.iter().enumerate() {
            if let Err(error) = probe.check().await {
                errors.push(format!("kms-provider-{i}: {error}"));
            }
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(format!("[{}]", errors.join(", "))),
        }
    }
}

async fn step(provider: &Provider, server: &str, probes: &mut Vec<Arc<Probe>>) -> Result<Step, ConfigError> {
    const NO_AES_KEY: &str = "no matching key was found for the provided AES transformer";
    const NO_BOX_KEY: &str = "no matching key was found for the provided Secretbox transformer";
    let (prefix, kind) = match provider {
        Provider::Aesgcm(keys) => {
            ("k8s:enc:aesgcm:v1:", of_keys(keys, NO_AES_KEY, |key| Ok(Box::new(Gcm::new(key)?)))?)
        }
        Provider::Aescbc(keys) => {
            ("k8s:enc:aescbc:v1:", of_keys(keys, NO_AES_KEY, |key| Ok(Box::new(Cbc::new(key)?)))?)
        }
        Provider::Secretbox(keys) => {
            ("k8s:enc:secretbox:v1:", of_keys(keys, NO_BOX_KEY, |key| Ok(Box::new(Secretbox::new(key)?)))?)
        }
        Provider::Identity => ("", Kind::Identity),
        Provider::Kms(kms) if kms.api_version == "v1" => {
            return Err(ConfigError(
                "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature.".into(),
            ));
        }
        Provider::Kms(kms) => {
            let probe = Probe::start(kms, server).await?;
            probes.push(probe.clone());
            let prefix = format!("k8s:enc:kms:v2:{}:", kms.name);
            return Ok(Step { prefix: prefix.into(), kind: Kind::Envelope(Arc::new(Envelope::new(probe))) });
        }
    };
    Ok(Step { prefix: prefix.into(), kind })
}

fn of_keys(
    keys: &[Key],
    unknown: &'static str,
    cipher: impl Fn(&[u8]) -> Result<Box<dyn Cipher>, TransformError>,
) -> Result<Kind, ConfigError> {
    let mut steps = Vec::new();
    for key in keys {
        let name = &key.name;
        let secret =
            key.decoded().map_err(|e| ConfigError(format!("could not obtain secret for named key {name}: {e}")))?;
        let cipher = cipher(&secret)
            .map_err(|e| ConfigError(format!("error while creating cipher for named key {name}: {e}")))?;
        steps.push(Arc::new(Step { prefix: format!("{name}:").into(), kind: Kind::Cipher(cipher) }));
    }
    Ok(Kind::Keys(Choice { steps, unknown }))
}
