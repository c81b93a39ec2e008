//! Waits that double with every failure (upstream: `flowcontrol.Backoff`), kept by key for crashing containers and failing pulls.

use jiff::Timestamp;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;

/// Entries unused for this many times the longest wait are forgotten.
const EXPIRY_FACTOR: u32 = 2;

pub struct Backoffs {
    initial: Duration,
    max: Duration,
    entries: Mutex<HashMap<String, Entry>>,
}

#[derive(Clone, Copy)]
struct Entry {
    wait: Duration,
    updated: Timestamp,
}

fn elapsed(later: Timestamp, earlier: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

impl Backoffs {
    pub fn new(initial: Duration, max: Duration) -> Self {
        Backoffs { initial, max, entries: Mutex::new(HashMap::new()) }
    }

    /// The time still to wait, and the whole wait, if the event (such as a container's end) was too recent.
    pub fn remaining(&self, key: &str, event: Timestamp, now: Timestamp) -> Option<(Duration, Duration)> {
        let entry = *self.entries.lock().get(key)?;
        if elapsed(event, entry.updated) > self.max * EXPIRY_FACTOR {
            return None;
        }
        let passed = elapsed(now, event);
        (passed < entry.wait).then(|| (entry.wait - passed, entry.wait))
    }

    /// The time still to wait since the last [`Backoffs::next`].
    pub fn remaining_since_update(&self, key: &str, now: Timestamp) -> Option<(Duration, Duration)> {
        let entry = *self.entries.lock().get(key)?;
        let passed = elapsed(now, entry.updated);
        (passed < entry.wait).then(|| (entry.wait - passed, entry.wait))
    }

    /// Notes another failure: the wait begins or doubles.
    pub fn next(&self, key: &str, event: Timestamp, now: Timestamp) {
        let mut entries = self.entries.lock();
        let expiry = self.max * EXPIRY_FACTOR;
        let fresh = Entry { wait: self.initial.min(self.max), updated: now };
        match entries.get_mut(key) {
            Some(entry) if elapsed(event, entry.updated) <= expiry => {
                *entry = Entry { wait: (entry.wait * 2).min(self.max), updated: now }
            }
            _ => {
                entries.insert(key.to_string(), fresh);
            }
        }
    }

    /// Forgets what has not been used for long, so that the map is bounded by recent failures.
    pub fn collect_garbage(&self, now: Timestamp) {
        let expiry = self.max * EXPIRY_FACTOR;
        self.entries.lock().retain(|_, entry| elapsed(now, entry.updated) <= expiry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_expire() {
        let backoffs = Backoffs::new(Duration::from_secs(10), Duration::from_secs(300));
        let at = |s| Timestamp::from_second(s).unwrap();
        assert!(backoffs.remaining("c", at(0), at(0)).is_none());
        let mut waits = Vec::new();
        for _ in 0..7 {
            backoffs.next("c", at(0), at(0));
            waits.push(backoffs.remaining("c", at(0), at(1)).unwrap().1.as_secs());
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        assert!(backoffs.remaining("c", at(0), at(300)).is_none());
        assert!(backoffs.remaining("c", at(601), at(601)).is_none());
    }
}
