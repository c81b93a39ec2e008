//! The embedded backend: one process, one data directory, on the log-structured engine fjall (upstream: an etcd of one
//! member). The committer thread owns all writing; readers read published views; readers of changes follow a ring.
//!
//! # On disk
//!
//! `DIR/engine` belongs to fjall: a journal, synced once for each group of commits, and sorted tables with checksums.
//! `DIR/watermark` says outside of it up to which revision data has been durable, so that a damaged journal is noticed.
//! A lock on the engine's directory keeps a second process out. Four keyspaces:
//!
//! | keyspace | key | value |
//! | --- | --- | --- |
//! | `current` | the key | its state: live or deleted, revision and index of its last change, revision of its creation, expiry, value |
//! | `history` | revision (8 bytes), index in the commit (4) | time of the commit, the key, its state *before* |
//! | `expiry` | time in ms (8), the key | nothing |
//! | `meta` | `format`, `revision`, `compacted`, `pruned`, `time` | 8 bytes |
//!
//! A state names the change that made it, and that change holds the state before: so a key's versions form a chain from
//! the present one back, which reads at older revisions follow. What is old is in one place only, in the order of
//! revisions, and compaction removes a stretch from the front of the history without looking at what the keys are now.
//! The mark of a deletion stays in `current` as long as the record of that deletion in the history.

mod committer;
mod disk;
#[doc(hidden)]
pub mod fuzzing;
mod record;
#[cfg(test)]
mod tests;
mod view;

use crate::feed::{self, Feed, History};
use crate::group::check_batch;
use crate::transfer::Import;
use crate::{Changes, Entry, Error, ListOptions, Page, Result, Revision, Storage, Write};
use async_trait::async_trait;
use committer::{Clock, Committer, Message, Pending};
use disk::{Disk, Opened};
use futures::stream::BoxStream;
use parking_lot::{Condvar, Mutex, RwLock};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, mpsc, oneshot};
use view::View;

/// The largest value, as upstream's etcd is set up by its API server's request limit.
pub const VALUE_BYTES_MAX: usize = 3 << 20;
/// The engine takes keys up to 64 KiB, of which the indexes need a few bytes.
const KEY_BYTES_MAX: usize = 60_000;
/// Commits and bytes that may wait for the committer; whoever comes later waits to get in.
const QUEUE_COMMITS: usize = 4_096;
const QUEUE_KIB: usize = 64 << 10;
/// A list of at most this many entries is read at once; a longer one gives up its place on the runtime's thread.
const INLINE_LIST: usize = 64;
/// The pause between looks for housekeeping.
const MAINTAIN_PAUSE: Duration = Duration::from_millis(200);

#[derive(Clone, Debug)]
pub struct Options {
    /// How long old revisions can be read.
    pub keep_history: Duration,
    /// Memory for recent commits, from which changes are read.
    pub ring_bytes: usize,
    /// Memory for the engine's blocks; the system's page cache lies behind it.
    pub cache_bytes: u64,
    /// Memory for writes that are not yet in tables, for each of two keyspaces.
    pub memtable_bytes: u64,
    /// Room on the disk that is never filled with values: the engine needs some to tidy up.
    pub reserve_bytes: u64,
    /// Read once, when the store is opened.
    pub wall_clock: fn() -> SystemTime,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            keep_history: Duration::from_secs(300),
            ring_bytes: 16 << 20,
            cache_bytes: 8 << 20,
            memtable_bytes: 8 << 20,
            reserve_bytes: 256 << 20,
            wall_clock: SystemTime::now,
        }
    }
}

pub struct Embedded {
    queue: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
    published: Arc<Published>,
    feed: Arc<Feed>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stop: Arc<(Mutex<bool>, Condvar)>,
}

/// The newest view. There is none while the data directory is being opened again, and none after closing.
pub struct Published {
    slot: RwLock<Slot>,
}

enum Slot {
    Open(Arc<View>),
    Reopening,
    Closed,
}

impl Published {
    fn now(&self) -> Result<Arc<View>> {
        match &*self.slot.read() {
            Slot::Open(view) => Ok(view.clone()),
            Slot::Reopening => Err(unavailable("read", "the data directory is being opened again")),
            Slot::Closed => Err(unavailable("read", "the store is closed")),
        }
    }

    /// Waits out a reopening, for a time.
    async fn view(&self) -> Result<Arc<View>> {
        for _ in 0..500 {
            match &*self.slot.read() {
                Slot::Open(view) => return Ok(view.clone()),
                Slot::Reopening => {}
                Slot::Closed => break,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.now()
    }

    fn set(&self, view: View) {
        let old = std::mem::replace(&mut *self.slot.write(), Slot::Open(Arc::new(view)));
        drop(old);
    }

    fn close(&self) {
        let old = std::mem::replace(&mut *self.slot.write(), Slot::Closed);
        drop(old);
    }

    /// Lets go of the engine, waits until its last reader has, and takes the one that `open` gives. If that fails, it can
    /// be called again.
    fn reopen(&self, open: impl FnOnce() -> Result<Opened>) -> Result<()> {
        let old = std::mem::replace(&mut *self.slot.write(), Slot::Reopening);
        if let Slot::Open(view) = old {
            let engine = Arc::downgrade(&view.disk);
            drop(view);
            while engine.strong_count() > 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let Opened { disk, revision, compacted, .. } = open()?;
        let snapshot = disk.database.snapshot();
        self.set(View { disk: Arc::new(disk), snapshot, revision, compacted });
        Ok(())
    }
}

impl Embedded {
    pub fn open(directory: &Path, options: Options) -> Result<Embedded> {
        let Opened { disk, revision, compacted, pruned, time } = Disk::open(directory, &options)?;
        let snapshot = disk.database.snapshot();
        let view = View { disk: Arc::new(disk), snapshot, revision, compacted };
        let published = Arc::new(Published { slot: RwLock::new(Slot::Open(Arc::new(view))) });
        let feed = Arc::new(Feed::new(revision, options.ring_bytes));
        let (queue, receiver) = mpsc::channel(QUEUE_COMMITS);
        let clock = Clock::new((options.wall_clock)(), time);
        let committer = Committer {
            options,
            directory: directory.to_owned(),
            published: published.clone(),
            feed: feed.clone(),
            pruned,
            clock,
            watermark: Revision(0),
            failed: None,
        };
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let housekeeper = Housekeeper { queue: queue.clone(), feed: feed.clone(), stop: stop.clone() };
        let threads = vec![
            spawn("storage-commit", move || committer.run(receiver))?,
            spawn("storage-keep", move || housekeeper.run())?,
        ];
        let room = Arc::new(Semaphore::new(QUEUE_KIB));
        Ok(Embedded { queue, room, published, feed, threads: Mutex::new(threads), stop })
    }

    async fn read<T: Send + 'static>(&self, work: impl FnOnce(&View) -> Result<T> + Send + 'static) -> Result<T> {
        let view = self.published.view().await?;
        tokio::task::spawn_blocking(move || work(&view)).await.map_err(interrupted)?
    }

    async fn send(&self, operation: &'static str, message: Message) -> Result<()> {
        self.queue.send(message).await.map_err(|_| unavailable(operation, "the store is closed"))
    }
}

impl Drop for Embedded {
    /// Writes what is queued, then lets go of the directory.
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        let mut close = Message::Close;
        // A plain thread could block here, one of the runtime must not; the queue drains quickly.
        while let Err(mpsc::error::TrySendError::Full(message)) = self.queue.try_send(close) {
            close = message;
            std::thread::sleep(Duration::from_millis(1));
        }
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
    }
}

/// Asks the committer for a step of housekeeping now and then, at once while there is more to do; and lets readers know
/// how far they have seen.
struct Housekeeper {
    queue: mpsc::Sender<Message>,
    feed: Arc<Feed>,
    stop: Arc<(Mutex<bool>, Condvar)>,
}

impl Housekeeper {
    fn run(self) {
        loop {
            let (answer, more) = oneshot::channel();
            if self.queue.blocking_send(Message::Maintain(answer)).is_err() {
                return;
            }
            let Ok(more) = more.blocking_recv() else { return };
            self.feed.wake_behind();
            let mut stopped = self.stop.0.lock();
            let pause = if more { Duration::from_millis(1) } else { MAINTAIN_PAUSE };
            if !*stopped {
                self.stop.1.wait_for(&mut stopped, pause);
            }
            if *stopped {
                return;
            }
        }
    }
}

#[async_trait]
impl Storage for Embedded {
    async fn commit(&self, batch: Vec<Write>) -> Result<Revision> {
        let size = check_batch(&batch, KEY_BYTES_MAX, VALUE_BYTES_MAX)?;
        let kib = (size / 1024 + 1).min(QUEUE_KIB) as u32;
        let closed = |_| unavailable("commit", "the store is closed");
        let room = self.room.clone().acquire_many_owned(kib).await.map_err(closed)?;
        let (answer, result) = oneshot::channel();
        self.send("commit", Message::Commit(Pending { batch, size, answer, room })).await?;
        result.await.map_err(|_| unavailable("commit", "the store was closed before it answered"))?
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<Entry>, Revision)> {
        let view = self.published.view().await?;
        Ok((view.get(key, at)?, view.revision))
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        if options.limit.is_some_and(|limit| limit <= INLINE_LIST) {
            return self.published.view().await?.list(prefix, &options);
        }
        let prefix = prefix.to_owned();
        self.read(move |view| view.list(&prefix, &options)).await
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<BoxStream<'static, Result<Changes>>> {
        let view = self.published.view().await?;
        view.readable(after)?;
        Ok(feed::read(self.feed.clone(), self.published.clone(), prefix, after))
    }

    async fn request_progress(&self) -> Result<()> {
        self.feed.wake_behind();
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let (answer, result) = oneshot::channel();
        self.send("compact", Message::Compact(revision, answer)).await?;
        result.await.map_err(|_| unavailable("compact", "the store was closed before it answered"))?
    }

    async fn current_revision(&self) -> Result<Revision> {
        Ok(self.published.view().await?.revision)
    }

    async fn size(&self) -> Result<Option<u64>> {
        let size =
            |view: &View| view.disk.database.disk_space().map_err(|e| view.disk.error("size", "the engine's files", e));
        self.read(size).await.map(Some)
    }

    async fn expiring(&self, after: Revision) -> Result<Vec<(Arc<str>, u64)>> {
        self.read(move |view| view.expiring(after)).await
    }

    fn keeps_revisions(&self) -> bool {
        true
    }

    async fn import(&self, import: Import) -> Result<()> {
        let (answer, result) = oneshot::channel();
        self.send("import", Message::Import(import, answer)).await?;
        result.await.map_err(|_| unavailable("import", "the store was closed before it answered"))?
    }
}

#[async_trait]
impl History for Published {
    async fn changes_after(&self, prefix: &str, after: Revision) -> Result<(Vec<Changes>, Revision)> {
        let (view, prefix) = (self.view().await?, prefix.to_owned());
        tokio::task::spawn_blocking(move || view.changes_after(&prefix, after)).await.map_err(interrupted)?
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|e| Error::Unavailable { operation: "open", source: e.into() })
}

fn unavailable(operation: &'static str, what: &str) -> Error {
    Error::Unavailable { operation, source: what.to_owned().into() }
}

fn interrupted(error: tokio::task::JoinError) -> Error {
    Error::Unavailable { operation: "read", source: error.into() }
}
