//! The queue between informers and workers, the counterpart of client-go's `workqueue`.
//!
//! A key that is added many times is handled once. A key added while it is being handled is handled again afterwards, never
//! twice at once. Failed keys come back after an exponential delay, all of them together at most 10 a second after a
//! burst of 100. The queue holds each key once, so it is bounded by the number of objects.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The retries of one key begin here and double up to `RETRY_DELAY_MAX`.
const RETRY_DELAY: Duration = Duration::from_millis(5);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1000);
/// All retries together: a token bucket of this size, refilled at this rate.
const RETRY_BURST: f64 = 100.0;
const RETRIES_PER_SECOND: f64 = 10.0;

/// Clones share the queue.
pub struct WorkQueue<T>(Arc<Shared<T>>);

impl<T> Clone for WorkQueue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Keys that are to be handled: those in `ready`, and those added again while in `processing`.
    dirty: HashSet<T>,
    processing: HashSet<T>,
    /// When each delayed key is due. Of several times for a key the earliest counts.
    due: HashMap<T, Instant>,
    /// The same, by time; an entry that no longer agrees with `due` is stale.
    delayed: BinaryHeap<Reverse<Delayed<T>>>,
    sequence: u64,
    failures: HashMap<T, u32>,
    bucket: Bucket,
    /// Since the start: keys added, and retries among them.
    adds: u64,
    retries: u64,
    shut_down: bool,
}

struct Delayed<T> {
    at: Instant,
    sequence: u64,
    key: T,
}

impl<T> PartialEq for Delayed<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}
impl<T> Eq for Delayed<T> {}
impl<T> PartialOrd for Delayed<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Delayed<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// Tokens as of a moment; they may be owed, and then the caller waits.
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// Takes a token and says how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        let gained = (now - self.at).as_secs_f64() * RETRIES_PER_SECOND;
        self.tokens = (self.tokens + gained).min(RETRY_BURST) - 1.0;
        self.at = now;
        if self.tokens >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.tokens / RETRIES_PER_SECOND) }
    }
}

impl<T: Clone + Eq + Hash> Default for WorkQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash> WorkQueue<T> {
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                processing: HashSet::new(),
                due: HashMap::new(),
                delayed: BinaryHeap::new(),
                sequence: 0,
                failures: HashMap::new(),
                bucket: Bucket { tokens: RETRY_BURST, at: Instant::now() },
                adds: 0,
                retries: 0,
                shut_down: false,
            }),
            wake: Notify::new(),
        }))
    }

    /// Has the key handled soon.
    pub fn add(&self, key: T) {
        let mut state = self.0.state.lock();
        state.add(key);
        drop(state);
        self.0.wake.notify_one();
    }

    /// Has the key handled after a delay, or earlier if it is asked for earlier.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut state = self.0.state.lock();
        if state.shut_down || state.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        state.sequence += 1;
        let sequence = state.sequence;
        state.due.insert(key.clone(), at);
        state.delayed.push(Reverse(Delayed { at, sequence, key }));
        drop(state);
        // A waiting worker may sleep longer than this.
        self.0.wake.notify_one();
    }

    /// Has the key handled after its retry delay, which grows until [`Self::forget`].
    pub fn add_rate_limited(&self, key: T) {
        let delay = {
            let mut state = self.0.state.lock();
            state.retries += 1;
            let failures = state.failures.entry(key.clone()).or_insert(0);
            let own = RETRY_DELAY_MAX.min(RETRY_DELAY * 2u32.saturating_pow((*failures).min(31)));
            *failures += 1;
            own.max(state.bucket.take(Instant::now()))
        };
        self.add_after(key, delay);
    }

    /// The key was handled well: its next retry starts from the shortest delay.
    pub fn forget(&self, key: &T) {
        self.0.state.lock().failures.remove(key);
    }

    /// How often the key has failed since it was last forgotten.
    pub fn retries(&self, key: &T) -> u32 {
        self.0.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key, which stays with the caller until [`Self::done`]; `None` once the queue is shut down and empty.
    pub async fn get(&self) -> Option<T> {
        loop {
            let notified = self.0.wake.notified();
            let wait_until = {
                let mut state = self.0.state.lock();
                state.release_due(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    let more = !state.ready.is_empty() || !state.delayed.is_empty();
                    drop(state);
                    // A permit is not counted, so each worker that leaves wakes the next one.
                    if more {
                        self.0.wake.notify_one();
                    }
                    return Some(key);
                }
                if state.shut_down {
                    drop(state);
                    self.0.wake.notify_one();
                    return None;
                }
                state.delayed.peek().map(|Reverse(delayed)| delayed.at)
            };
            match wait_until {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, notified).await;
                }
                None => notified.await,
            }
        }
    }

    /// The caller is done with the key; if it was added meanwhile it is handled again.
    pub fn done(&self, key: &T) {
        let mut state = self.0.state.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.0.wake.notify_one();
        }
    }

    /// How many keys have become ready since the start; one that was ready already does not count.
    pub fn adds(&self) -> u64 {
        self.0.state.lock().adds
    }

    /// How many retries there have been since the start.
    pub fn retries_total(&self) -> u64 {
        self.0.state.lock().retries
    }

    pub fn len(&self) -> usize {
        self.0.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes no more keys; workers get those that are ready and then `None`.
    pub fn shut_down(&self) {
        let mut state = self.0.state.lock();
        state.shut_down = true;
        state.delayed.clear();
        state.due.clear();
        drop(state);
        self.0.wake.notify_waiters();
        self.0.wake.notify_one();
    }
}

impl<T: Clone + Eq + Hash> State<T> {
    fn add(&mut self, key: T) {
        if self.shut_down || !self.dirty.insert(key.clone()) {
            return;
        }
        self.adds += 1;
        if !self.processing.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn release_due(&mut self, now: Instant) {
        while let Some(Reverse(first)) = self.delayed.peek() {
            if first.at > now {
                break;
            }
            let Some(Reverse(delayed)) = self.delayed.pop() else { break };
            if self.due.get(&delayed.key) == Some(&delayed.at) {
                self.due.remove(&delayed.key);
                self.add(delayed.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_added_while_handled_is_handled_again_and_never_twice_at_once() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.get().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.len(), 0);
        queue.done(&"a");
        assert_eq!(queue.get().await, Some("a"));
        queue.done(&"a");
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_delays_counts_and_only_once() {
        let queue = WorkQueue::new();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(2));
        queue.add_after("a", Duration::from_secs(5));
        let start = Instant::now();
        assert_eq!(queue.get().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 2);
        queue.done(&"a");
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.get()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn retries_of_a_key_are_delayed_twice_as_long_each_time_until_forgotten() {
        let queue = WorkQueue::new();
        let mut delays = Vec::new();
        for _ in 0..3 {
            let start = Instant::now();
            queue.add_rate_limited("a");
            assert_eq!(queue.get().await, Some("a"));
            delays.push(start.elapsed().as_millis());
            queue.done(&"a");
        }
        assert_eq!(delays, [5, 10, 20]);
        assert_eq!(queue.retries(&"a"), 3);
        queue.forget(&"a");
        assert_eq!(queue.retries(&"a"), 0);
    }

    #[tokio::test]
    async fn all_waiting_workers_end_at_shut_down() {
        let queue = WorkQueue::<u8>::new();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.get().await })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.shut_down();
        for worker in workers {
            assert_eq!(worker.await.unwrap(), None);
        }
    }
}
