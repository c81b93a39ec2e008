//! Trees of objects that were just written. What was written is often changed again soon (a pod is created, bound, and gets
//! its status three times), and the writer had the tree in its hands: whoever is next need not parse it.

use coxswain_api::Value;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The bytes of JSON that the kept trees stand for; a tree takes five to six times as much.
const BYTES_MAX: usize = 2 << 20;
/// How long a tree is kept at most, as seen by the next write.
const AGE_MAX: Duration = Duration::from_secs(15);

/// Keeps the latest trees alive; [`super::Object::tree`] finds them.
#[derive(Default)]
pub struct RecentTrees {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// In the order of writing, each with its time and its bytes of JSON.
    trees: VecDeque<(Instant, usize, Arc<Value>)>,
    bytes: usize,
}

impl RecentTrees {
    /// Keeps a tree that `bytes` of JSON were made of, and lets go of those that are too many or too old.
    pub(super) fn keep(&self, tree: Arc<Value>, bytes: usize) {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        kept.trees.push_back((now, bytes, tree));
        kept.bytes += bytes;
        let mut gone = Vec::new();
        while kept.bytes > BYTES_MAX || kept.trees.front().is_some_and(|(at, ..)| now - *at > AGE_MAX) {
            let Some(dropped) = kept.trees.pop_front() else { break };
            kept.bytes -= dropped.1;
            gone.push(dropped);
        }
        // To free a tree takes a while: not under the lock.
        drop(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_the_bound() {
        let recent = RecentTrees::default();
        let first = Arc::new(Value::Null);
        recent.keep(first.clone(), BYTES_MAX / 2);
        recent.keep(Arc::new(Value::Null), BYTES_MAX / 2);
        assert_eq!(Arc::strong_count(&first), 2);
        recent.keep(Arc::new(Value::Null), 1);
        assert_eq!(Arc::strong_count(&first), 1);
        recent.keep(Arc::new(Value::Null), BYTES_MAX + 1);
        assert_eq!(recent.kept.lock().bytes, 0);
    }
}
