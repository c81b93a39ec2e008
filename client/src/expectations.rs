//! What a controller has asked for and not yet seen, the counterpart of upstream's `ControllerExpectations`.
//!
//! A controller that has just created pods must not plan again from a cache that does not show them yet, or it would
//! create them twice. It records how many creations and which deletions it expects; until the informer has shown
//! them, or they are too old to believe in, the key is not planned.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// An expectation older than this no longer holds the key back.
const EXPECTATIONS_TIMEOUT: Duration = Duration::from_secs(5 * 60);

#[derive(Default)]
pub struct Expectations(Mutex<HashMap<String, Expected>>);

struct Expected {
    creations: i64,
    /// UIDs whose deletion was asked for.
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether everything asked for under the key has been seen.
    pub fn satisfied(&self, key: &str) -> bool {
        match self.0.lock().get(key) {
            Some(expected) => {
                (expected.creations <= 0 && expected.deletions.is_empty())
                    || expected.since.elapsed() > EXPECTATIONS_TIMEOUT
            }
            None => true,
        }
    }

    /// Replaces what is expected under the key. Set before the requests are sent: their events may arrive first.
    pub fn expect(&self, key: &str, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let expected =
            Expected { creations: creations as i64, deletions: deletions.into_iter().collect(), since: Instant::now() };
        self.0.lock().insert(key.to_owned(), expected);
    }

    /// A creation was seen, or its request failed.
    pub fn creation_observed(&self, key: &str) {
        self.creations_observed(key, 1);
    }

    pub fn creations_observed(&self, key: &str, count: usize) {
        if let Some(expected) = self.0.lock().get_mut(key) {
            expected.creations -= count as i64;
        }
    }

    /// A deletion was seen (gone, or marked to go), or its request failed.
    pub fn deletion_observed(&self, key: &str, uid: &str) {
        if let Some(expected) = self.0.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    /// Forgets the key, whose object is gone.
    pub fn remove(&self, key: &str) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_for_what_it_asked_for_but_not_for_ever() {
        let expectations = Expectations::new();
        assert!(expectations.satisfied("a"));
        expectations.expect("a", 1, ["u".to_owned()]);
        expectations.creation_observed("a");
        assert!(!expectations.satisfied("a"));
        expectations.deletion_observed("a", "u");
        assert!(expectations.satisfied("a"));
        expectations.expect("a", 1, []);
        assert!(!expectations.satisfied("a"));
        tokio::time::advance(EXPECTATIONS_TIMEOUT + Duration::from_secs(1)).await;
        assert!(expectations.satisfied("a"));
    }
}
