//! Recent commits for the readers of changes (upstream: etcd's watchable store). One ring for all; a reader is a cursor
//! into it and owns no copy. A reader that has fallen out of the ring reads on from the history on disk, and one that falls
//! out of the history gets `Compacted`: nobody slows the writers down.

use crate::{Changes, Error, Result, Revision};
use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::{Mutex, RwLock};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Commits a reader looks at in one go.
const STEP_COMMITS: usize = 512;
/// Commits older than this leave the ring even if there is room: an idle store holds little memory.
const RING_AGE: Duration = Duration::from_secs(60);

/// Where a reader finds what the ring no longer has.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// Some of the commits after `after` under `prefix`, in order, and the revision up to which these are all.
    async fn changes_after(&self, prefix: &str, after: Revision) -> Result<(Vec<Changes>, Revision)>;
}

pub struct Feed {
    ring: RwLock<Ring>,
    readers: Mutex<Vec<Arc<Reader>>>,
    bytes_max: usize,
    closed: AtomicBool,
}

/// `commits` are those just before and at `newest`, without a gap.
struct Ring {
    newest: Revision,
    commits: VecDeque<(Instant, usize, Arc<Changes>)>,
    bytes: usize,
}

struct Reader {
    prefix: Box<str>,
    seen: AtomicU64,
    wake: Notify,
}

enum Step {
    Commits(Vec<Arc<Changes>>),
    CaughtUp,
    Behind,
}

impl Feed {
    pub fn new(newest: Revision, bytes_max: usize) -> Feed {
        let ring = Ring { newest, commits: VecDeque::new(), bytes: 0 };
        Feed { ring: RwLock::new(ring), readers: Mutex::default(), bytes_max, closed: AtomicBool::new(false) }
    }

    /// Adds the durable commits of one group, in order, and wakes the readers they concern.
    pub fn publish(&self, commits: Vec<Arc<Changes>>) {
        let now = Instant::now();
        {
            let mut ring = self.ring.write();
            for commit in &commits {
                assert_eq!(
                    commit.revision.0,
                    ring.newest.0 + 1,
                    "a commit skipped a revision on its way to the readers"
                );
                let size = commit.changes.iter().map(change_size).sum();
                ring.newest = commit.revision;
                ring.bytes += size;
                ring.commits.push_back((now, size, commit.clone()));
            }
            while ring.bytes > self.bytes_max {
                ring.drop_oldest();
            }
        }
        for reader in self.readers.lock().iter() {
            let prefix = &*reader.prefix;
            if commits.iter().any(|commit| commit.changes.iter().any(|c| c.key.starts_with(prefix))) {
                reader.wake.notify_one();
            }
        }
    }

    pub fn newest(&self) -> Revision {
        self.ring.read().newest
    }

    /// Leaves out what lies between the newest commit known and `newest`: readers find it on disk.
    pub fn skip_to(&self, newest: Revision) {
        let mut ring = self.ring.write();
        if newest > ring.newest {
            *ring = Ring { newest, commits: VecDeque::new(), bytes: 0 };
        }
    }

    pub fn trim(&self) {
        let mut ring = self.ring.write();
        while ring.commits.front().is_some_and(|(made, ..)| made.elapsed() > RING_AGE) {
            ring.drop_oldest();
        }
        if ring.commits.is_empty() {
            ring.commits = VecDeque::new();
        }
    }

    /// Wakes every reader that has not seen the newest commit, so that it learns that there was nothing for it.
    pub fn wake_behind(&self) {
        let newest = self.ring.read().newest.0;
        for reader in self.readers.lock().iter().filter(|r| r.seen.load(Ordering::Relaxed) < newest) {
            reader.wake.notify_one();
        }
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.readers.lock().iter().for_each(|reader| reader.wake.notify_one());
    }

    fn step(&self, after: Revision) -> Step {
        let ring = self.ring.read();
        if after >= ring.newest {
            return Step::CaughtUp;
        }
        let behind = (ring.newest.0 - after.0) as usize;
        let Some(start) = ring.commits.len().checked_sub(behind) else { return Step::Behind };
        Step::Commits(ring.commits.range(start..).take(STEP_COMMITS).map(|(_, _, c)| c.clone()).collect())
    }
}

impl Ring {
    fn drop_oldest(&mut self) {
        if let Some((_, size, _)) = self.commits.pop_front() {
            self.bytes -= size;
        }
    }
}

fn change_size(change: &crate::Change) -> usize {
    let entry = |e: &Option<crate::Entry>| e.as_ref().map_or(0, |e| e.value.len());
    200 + change.key.len() + entry(&change.value) + entry(&change.previous)
}

/// A reader's place; it leaves the list of readers when its stream is dropped.
struct Cursor {
    feed: Arc<Feed>,
    history: Arc<dyn History>,
    reader: Arc<Reader>,
    seen: Revision,
    ready: VecDeque<Changes>,
    failed: bool,
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.feed.readers.lock().retain(|r| !Arc::ptr_eq(r, &self.reader));
    }
}

pub fn read(
    feed: Arc<Feed>,
    history: Arc<dyn History>,
    prefix: &str,
    after: Revision,
) -> BoxStream<'static, Result<Changes>> {
    let reader = Arc::new(Reader { prefix: prefix.into(), seen: AtomicU64::new(after.0), wake: Notify::new() });
    feed.readers.lock().push(reader.clone());
    let cursor = Cursor { feed, history, reader, seen: after, ready: VecDeque::new(), failed: false };
    stream::unfold(cursor, |mut cursor| async move { Some((cursor.next().await?, cursor)) }).boxed()
}

impl Cursor {
    /// None only after an error.
    async fn next(&mut self) -> Option<Result<Changes>> {
        while self.ready.is_empty() {
            if self.failed {
                return None;
            }
            let result = match self.feed.step(self.seen) {
                Step::Commits(commits) => {
                    self.take(commits);
                    Ok(())
                }
                Step::CaughtUp if self.feed.closed.load(Ordering::Acquire) => {
                    Err(Error::Unavailable { operation: "changes", source: "the store is closed".into() })
                }
                Step::CaughtUp => {
                    self.reader.wake.notified().await;
                    Ok(())
                }
                Step::Behind => self.read_history().await,
            };
            if let Err(error) = result {
                self.failed = true;
                return Some(Err(error));
            }
        }
        self.ready.pop_front().map(Ok)
    }

    fn take(&mut self, commits: Vec<Arc<Changes>>) {
        let prefix = &*self.reader.prefix;
        for commit in &commits {
            let mut changes = commit.changes.iter().filter(|c| c.key.starts_with(prefix)).cloned().peekable();
            if changes.peek().is_some() {
                self.ready.push_back(Changes { revision: commit.revision, changes: changes.collect() });
            }
        }
        if let Some(last) = commits.last() {
            self.reached(last.revision);
        }
    }

    async fn read_history(&mut self) -> Result<()> {
        let (changes, reached) = self.history.changes_after(&self.reader.prefix, self.seen).await?;
        self.ready.extend(changes);
        self.reached(reached);
        Ok(())
    }

    /// If the last commits had nothing for this reader, a mark tells how far it has seen.
    fn reached(&mut self, revision: Revision) {
        if self.ready.back().is_none_or(|c| c.revision < revision) {
            self.ready.push_back(Changes { revision, changes: Vec::new() });
        }
        self.seen = revision;
        self.reader.seen.store(revision.0, Ordering::Relaxed);
    }
}
