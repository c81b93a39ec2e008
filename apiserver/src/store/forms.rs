//! Other encodings of object versions, kept beside their JSON as long as there is room for them.
//!
//! All objects share one room, bounded in bytes. When it is full, the encodings that were made first go, unless they were
//! made a moment ago: a list larger than the room would otherwise push out its own beginning and gain nothing.

use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// Bytes of encodings that are kept at most.
const BYTES_MAX: usize = 64 << 20;
/// Objects that have any at most, dead ones not yet forgotten included.
const OBJECTS_MAX: usize = 200_000;
/// Encodings younger than this are not pushed out.
const YOUNG: Duration = Duration::from_secs(10);

/// Which encoding of an object version: served version, media type, and a tag of the shape (object, metadata only).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    pub version: Arc<str>,
    pub media: &'static str,
    pub shape: &'static str,
}

/// The encodings of one object version. Most objects are only ever read as JSON and have none.
#[derive(Default)]
pub struct Forms(OnceLock<Arc<Kept>>);

#[derive(Default)]
struct Kept(Mutex<Vec<(Form, Bytes)>>);

impl Drop for Kept {
    fn drop(&mut self) {
        let bytes: usize = self.0.get_mut().drain(..).map(|(_, bytes)| bytes.len()).sum();
        BYTES.fetch_sub(bytes, Ordering::Relaxed);
    }
}

static BYTES: AtomicUsize = AtomicUsize::new(0);
/// Whose encodings were made when, the oldest first.
static ORDER: Mutex<VecDeque<(Instant, Weak<Kept>)>> = Mutex::new(VecDeque::new());

impl Forms {
    pub fn get(&self, form: &Form) -> Option<Bytes> {
        let kept = self.0.get()?.0.lock();
        kept.iter().find(|(f, _)| f == form).map(|(_, bytes)| bytes.clone())
    }

    /// Keeps an encoding if there is room.
    pub fn put(&self, form: &Form, bytes: &Bytes) {
        let kept = self.0.get_or_init(Arc::default);
        if !make_room(bytes.len(), kept) {
            return;
        }
        let mut forms = kept.0.lock();
        // Two askers may both have made it, which is only a waste.
        if forms.iter().any(|(f, _)| f == form) {
            return;
        }
        forms.push((form.clone(), bytes.clone()));
        BYTES.fetch_add(bytes.len(), Ordering::Relaxed);
    }
}

/// Whether so many bytes may be kept for an object, which is then among those that are pushed out in their turn.
fn make_room(bytes: usize, owner: &Arc<Kept>) -> bool {
    if bytes > BYTES_MAX {
        return false;
    }
    let now = Instant::now();
    // Dropped after the lock, as they may be the last that hold their object's encodings.
    let mut pushed_out = Vec::new();
    let mut order = ORDER.lock();
    while let Some((since, oldest)) = order.front() {
        let Some(oldest) = oldest.upgrade() else {
            order.pop_front();
            continue;
        };
        let full = BYTES.load(Ordering::Relaxed) + bytes > BYTES_MAX || order.len() >= OBJECTS_MAX;
        if !full {
            pushed_out.push(oldest);
            break;
        }
        if now.duration_since(*since) < YOUNG {
            pushed_out.push(oldest);
            if order.len() >= OBJECTS_MAX {
                order.retain(|(_, kept)| kept.strong_count() > 0);
            }
            drop(order);
            return false;
        }
        order.pop_front();
        let freed: usize = oldest.0.lock().drain(..).map(|(_, bytes)| bytes.len()).sum();
        BYTES.fetch_sub(freed, Ordering::Relaxed);
        pushed_out.push(oldest);
    }
    order.push_back((now, Arc::downgrade(owner)));
    drop(order);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_and_what_is_dropped_is_not_counted() {
        let form = |media| Form { version: "v1".into(), media, shape: "object" };
        let forms = Forms::default();
        let before = BYTES.load(Ordering::Relaxed);
        forms.put(&form("protobuf"), &Bytes::from_static(b"abc"));
        forms.put(&form("protobuf"), &Bytes::from_static(b"abc"));
        assert_eq!(forms.get(&form("protobuf")), Some(Bytes::from_static(b"abc")));
        assert_eq!(forms.get(&form("yaml")), None);
        assert!(BYTES.load(Ordering::Relaxed) >= before + 3);
        let huge = Forms::default();
        huge.put(&form("protobuf"), &Bytes::from(vec![0; BYTES_MAX + 1]));
        assert_eq!(huge.get(&form("protobuf")), None);
    }
}
