//! The Postgres backend: several API servers on one database (upstream: an external etcd).
//!
//! Four tables in a schema of their own (`schema/`): `head` is one row with the store's revision, which every group of
//! commits locks; `current` has the live keys; `history` has each change with what the key was *before* it; `compaction`
//! says up to which revision history may have been removed. A state at a revision is what the next change of the key
//! found, or the present one. `migrations` says which versions of the schema have been applied.
//!
//! Each server follows the others by `LISTEN`: a commit notifies, the follower reads what is new, in the order of
//! revisions, and hands it to the readers of this server through the same ring as the embedded backend. What this server
//! has committed itself need not be read again.

mod committer;
mod connection;
mod follower;
mod housekeeping;
mod import;
mod reads;
mod schema;
mod statements;
#[cfg(test)]
pub(crate) mod tests;
mod tls;

use crate::feed::{self, Feed};
use crate::transfer::Import;
use crate::{Changes, Entry, Error, ListOptions, Page, Result, Revision, Storage, Write};
use async_trait::async_trait;
use committer::Pending;
use connection::{Connections, error};
use futures::stream::BoxStream;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

pub const VALUE_BYTES_MAX: usize = crate::embedded::VALUE_BYTES_MAX;
/// Commits and bytes that may wait; whoever comes later waits to get in.
const QUEUE_COMMITS: usize = 4_096;
const QUEUE_KIB: usize = 64 << 10;
/// Keys are in indexes, whose entries the database limits.
const KEY_BYTES_MAX: usize = 2_000;
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

#[derive(Clone, Debug)]
pub struct Options {
    /// The schema of the tables, which is made if it does not exist: lower-case letters, digits and underscores.
    pub schema: String,
    /// How long old revisions can be read.
    pub keep_history: Duration,
    /// Memory for recent commits, from which changes are read.
    pub ring_bytes: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { schema: "coxswain".to_owned(), keep_history: Duration::from_secs(300), ring_bytes: 16 << 20 }
    }
}

pub struct Postgres {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Pending>,
    room: Arc<Semaphore>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    schema: String,
    connections: Arc<Connections>,
    feed: Arc<Feed>,
    /// Commits of this server, from the first on that the readers have not been given, without a gap.
    own: Mutex<Vec<Arc<Changes>>>,
    /// There may be something new for the readers.
    news: Notify,
}

impl Postgres {
    pub async fn open(url: &str, options: Options) -> Result<Postgres> {
        let schema = options.schema.clone();
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if schema.is_empty() || !schema.chars().all(plain) {
            return Err(unavailable("open", &format!("{schema:?} cannot be the name of a schema")));
        }
        let connections = Arc::new(Connections::new(url, &schema)?);
        let mut setup = connections.connect().await.map_err(|e| error("open", e))?;
        schema::migrate(&mut setup, &schema).await?;
        drop(setup);
        let newest = connections.marks().await?.revision;
        let feed = Arc::new(Feed::new(newest, options.ring_bytes));
        let shared = Arc::new(Shared { schema, connections, feed, own: Mutex::default(), news: Notify::new() });
        let (queue, receiver) = mpsc::channel(QUEUE_COMMITS);
        tokio::spawn(committer::run(shared.clone(), receiver));
        let tasks = vec![
            tokio::spawn(shared.clone().listen()),
            tokio::spawn(shared.clone().follow()),
            tokio::spawn(shared.clone().tell_progress()),
            tokio::spawn(shared.clone().maintain(queue.downgrade(), options.keep_history)),
        ];
        Ok(Postgres { shared, queue, room: Arc::new(Semaphore::new(QUEUE_KIB)), tasks })
    }
}

impl Drop for Postgres {
    /// The committer ends by itself, when it has written what is queued.
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.shared.feed.close();
    }
}

#[async_trait]
impl Storage for Postgres {
    async fn commit(&self, batch: Vec<Write>) -> Result<Revision> {
        let size = crate::group::check_batch(&batch, KEY_BYTES_MAX, VALUE_BYTES_MAX)?;
        if let Some(write) = batch.iter().find(|write| write.key.contains('\0')) {
            return Err(unavailable("commit", &format!("{:?} has a character that Postgres does not take", write.key)));
        }
        let kib = (size / 1024 + 1).min(QUEUE_KIB) as u32;
        let closed = |_| unavailable("commit", "the store is closed");
        let room = self.room.clone().acquire_many_owned(kib).await.map_err(closed)?;
        let (answer, result) = oneshot::channel();
        let sent = self.queue.send(Pending { batch, answer, room }).await;
        sent.map_err(|_| unavailable("commit", "the store is closed"))?;
        result.await.map_err(|_| unavailable("commit", "the store was closed before it answered"))?
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<Entry>, Revision)> {
        self.shared.connections.get(key, at).await
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        self.shared.connections.list(prefix, &options).await
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<BoxStream<'static, Result<Changes>>> {
        self.shared.connections.marks().await?.readable(after)?;
        Ok(feed::read(self.shared.feed.clone(), self.shared.connections.clone(), prefix, after))
    }

    async fn request_progress(&self) -> Result<()> {
        let goal = self.shared.connections.marks().await?.revision;
        // The follower has been notified of this revision or is about to be.
        self.shared.news.notify_one();
        while self.shared.feed.newest() < goal {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.shared.feed.wake_behind();
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let marks = self.shared.connections.marks().await?;
        if revision > marks.revision {
            return Err(Error::Future { asked: revision, current: marks.revision });
        }
        self.shared.connections.rows("compact", statements::COMPACT, &[&(revision.0 as i64)]).await?;
        Ok(())
    }

    async fn current_revision(&self) -> Result<Revision> {
        Ok(self.shared.connections.marks().await?.revision)
    }

    async fn expiring(&self, after: Revision) -> Result<Vec<(Arc<str>, u64)>> {
        let rows = self.shared.connections.rows("list", statements::EXPIRING, &[&(after.0 as i64)]).await?;
        Ok(rows.iter().map(|row| (row.get::<_, &str>(0).into(), row.get::<_, i64>(1) as u64)).collect())
    }

    fn keeps_revisions(&self) -> bool {
        true
    }

    async fn import(&self, import: Import) -> Result<()> {
        import::run(&self.shared, import).await
    }
}

fn unavailable(operation: &'static str, what: &str) -> Error {
    Error::Unavailable { operation, source: what.to_owned().into() }
}
