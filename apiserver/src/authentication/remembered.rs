//! Credentials that were found good a moment ago (upstream: `authentication/token/cache`): signatures cost more than
//! everything else that a small request does.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// For so long a credential stays good whatever happens to what it speaks of; upstream's own time for tokens.
const LIFETIME: Duration = Duration::from_secs(10);
/// So many credentials are remembered; beyond it all are forgotten.
const MAX: usize = 10_000;

/// The hash of a credential and of all that its verdict depends on.
pub(super) type Fingerprint = [u8; 32];

pub(super) struct Remembered<T>(parking_lot::Mutex<HashMap<Fingerprint, (Instant, T)>>);

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self(Default::default())
    }
}

impl<T: Clone> Remembered<T> {
    pub(super) fn get(&self, credential: &Fingerprint) -> Option<T> {
        let known = self.0.lock();
        known.get(credential).filter(|(since, _)| since.elapsed() < LIFETIME).map(|(_, value)| value.clone())
    }

    pub(super) fn put(&self, credential: Fingerprint, value: T) {
        let mut known = self.0.lock();
        if known.len() >= MAX {
            known.retain(|_, (since, _)| since.elapsed() < LIFETIME);
        }
        if known.len() >= MAX {
            known.clear();
        }
        known.insert(credential, (Instant::now(), value));
    }
}

/// A verdict on what a connection carries, kept with the connection: found without hashing anything.
#[derive(Debug)]
pub(super) struct Held<T>(parking_lot::Mutex<Option<(Instant, usize, T)>>);

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self(Default::default())
    }
}

impl<T: Clone> Held<T> {
    /// `judge_id` tells judges apart: a new one, such as after authorities were replaced, judges anew.
    pub(super) fn get_or(&self, judge_id: usize, judge: impl FnOnce() -> T) -> T {
        let mut held = self.0.lock();
        match &*held {
            Some((since, id, verdict)) if *id == judge_id && since.elapsed() < LIFETIME => verdict.clone(),
            _ => held.insert((Instant::now(), judge_id, judge())).2.clone(),
        }
    }
}

/// Each part with its length, so that no two lists of parts look the same.
pub(super) fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Fingerprint {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_known_by_all_its_parts() {
        let known = Remembered::default();
        known.put(fingerprint([&b"ab"[..], b"c"]), 1);
        assert_eq!(known.get(&fingerprint([&b"ab"[..], b"c"])), Some(1));
        assert_eq!(known.get(&fingerprint([&b"a"[..], b"bc"])), None);
    }
}
