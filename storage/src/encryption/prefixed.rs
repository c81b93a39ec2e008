//! Transformers told apart by what values begin with (upstream: `value.NewPrefixTransformers`).

use super::{Opened, TransformError, Transformer};
use crate::encryption::ciphers::Cipher;
use crate::metrics;
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Instant;

/// What sealed values begin with, whatever sealed them. Neither JSON nor protobuf begins so.
const SEALED: &[u8] = b"k8s:enc:";

/// A step of the way to the plain value: another choice by prefix, a cipher, or a key service.
pub(super) struct Step {
    pub(super) prefix: Box<str>,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    /// The value as it is, unless it is sealed.
    Identity,
    Cipher(Box<dyn Cipher>),
    /// One of several keys.
    Keys(Choice),
    Envelope(Arc<super::kms::Envelope>),
}

/// Steps of which the first seals; each opens what begins with its prefix.
pub(super) struct Choice {
    pub(super) steps: Vec<Arc<Step>>,
    /// What is said where no prefix matches.
    pub(super) unknown: &'static str,
}

impl Step {
    async fn open(&self, value: Bytes, key: &str, resource: &str) -> Result<Opened, TransformError> {
        match &self.kind {
            Kind::Identity if value.starts_with(SEALED) => {
                Err(TransformError::new("identity transformer tried to read encrypted data"))
            }
            Kind::Identity => Ok(Opened { value, stale: false }),
            Kind::Cipher(cipher) => Ok(Opened { value: cipher.open(&value, key.as_bytes())?.into(), stale: false }),
            Kind::Keys(keys) => Box::pin(keys.open(value, key, resource)).await,
            Kind::Envelope(envelope) => envelope.open(&value, key).await,
        }
    }

    async fn seal(&self, value: Bytes, key: &str, resource: &str) -> Result<Bytes, TransformError> {
        match &self.kind {
            Kind::Identity => Ok(value),
            Kind::Cipher(cipher) => Ok(cipher.seal(&value, key.as_bytes())?.into()),
            Kind::Keys(keys) => Box::pin(keys.seal(value, key, resource)).await,
            Kind::Envelope(envelope) => envelope.seal(&value, key).await,
        }
    }
}

impl Choice {
    pub(super) async fn open(&self, value: Bytes, key: &str, resource: &str) -> Result<Opened, TransformError> {
        let begin = Instant::now();
        let record = |prefix: &str, result: Result<(), &TransformError>| {
            record(resource, "from_storage", prefix, begin, result);
        };
        let mut errors: Vec<TransformError> = Vec::new();
        // Several steps may have the same prefix, as where keys are rotated: a failure does not keep the next from trying.
        for (i, step) in self.steps.iter().enumerate() {
            if !value.starts_with(step.prefix.as_bytes()) {
                continue;
            }
            let opened = step.open(value.slice(step.prefix.len()..), key, resource).await;
            if step.prefix.is_empty() && opened.is_err() {
                continue;
            }
            record(if step.prefix.is_empty() { "identity" } else { &step.prefix }, opened.as_ref().map(drop));
            match opened {
                Ok(opened) => return Ok(Opened { stale: opened.stale || i > 0, ..opened }),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            let error = TransformError::new(self.unknown);
            record("unknown", Err(&error));
            return Err(error);
        }
        Err(joined(errors))
    }

    pub(super) async fn seal(&self, value: Bytes, key: &str, resource: &str) -> Result<Bytes, TransformError> {
        let begin = Instant::now();
        let step = self.steps.first().ok_or_else(|| TransformError::new(self.unknown))?;
        let sealed = step.seal(value, key, resource).await;
        record(resource, "to_storage", &step.prefix, begin, sealed.as_ref().map(drop));
        let sealed = sealed?;
        if step.prefix.is_empty() {
            return Ok(sealed);
        }
        Ok([step.prefix.as_bytes(), &sealed].concat().into())
    }
}

fn joined(mut errors: Vec<TransformError>) -> TransformError {
    errors.dedup();
    if errors.len() == 1 {
        return errors.remove(0);
    }
    let messages: Vec<&str> = errors.iter().map(|e| e.message.as_str()).collect();
    TransformError::new(format!("[{}]", messages.join(", ")))
}

fn record(resource: &str, way: &str, prefix: &str, begin: Instant, result: Result<(), &TransformError>) {
    let status = match result {
        Ok(()) => "OK",
        Err(error) => error.code.unwrap_or("unknown-non-grpc"),
    };
    metrics::TRANSFORMATIONS.add(&[resource, way, prefix, status], 1);
    if result.is_ok() {
        metrics::TRANSFORMATION_DURATION.observe(&[way, prefix], begin.elapsed().as_secs_f64());
    }
}

/// The transformer of one resource, always as the configuration now has it.
pub(super) struct OfResource {
    pub(super) group: Box<str>,
    pub(super) resource: Box<str>,
    /// `secrets`, `deployments.apps`: as metrics name it.
    pub(super) name: Box<str>,
    pub(super) loaded: Arc<arc_swap::ArcSwap<super::Loaded>>,
}

#[async_trait]
impl Transformer for OfResource {
    async fn open(&self, value: Bytes, key: &str) -> Result<Opened, TransformError> {
        match self.loaded.load_full().choice(&self.group, &self.resource) {
            Some(choice) => choice.open(value, key, &self.name).await,
            None if value.starts_with(SEALED) => {
                Err(TransformError::new("identity transformer tried to read encrypted data"))
            }
            None => Ok(Opened { value, stale: false }),
        }
    }

    async fn seal(&self, value: Bytes, key: &str) -> Result<Bytes, TransformError> {
        match self.loaded.load_full().choice(&self.group, &self.resource) {
            Some(choice) => choice.seal(value, key, &self.name).await,
            None => Ok(value),
        }
    }
}
