//! The Postgres backend: several API servers on one database (upstream: an external etcd).
//!
//! Four tables in a schema of their own (`schema.sql`): `head` is one row with the store's revision, which every group of
//! commits locks; `current` has the live keys; `history` has each change with what the key was *before* it; `compaction`
//! says up to which revision history may have been removed. A state at a revision is what the next change of the key
//! found, or the present one.
//!
//! Each server follows the others by `LISTEN`: a commit notifies, the follower reads what is new, in the order of
//! revisions, and hands it to the readers of this server through the same ring as the embedded backend. What this server
//! has committed itself need not be read again.

mod committer;
mod connection;
mod reads;
#[cfg(test)]
mod tests;

use crate::feed::{self, Feed, History};
use crate::{Changes, Entry, Error, Expect, ListOptions, Op, Page, Result, Revision, Storage, Write};
use async_trait::async_trait;
use committer::Pending;
use connection::{Connections, Session, error};
use futures::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, NoTls};

const SCHEMA: &str = include_str!("postgres/schema.sql");
const FORMAT: i32 = 1;
/// Taken while the tables are made, so that two servers can start at once. Any number that nobody else uses.
const SETUP_LOCK: i64 = 0x636f_7873_7761_696e;
pub const VALUE_BYTES_MAX: usize = crate::embedded::VALUE_BYTES_MAX;
/// Commits and bytes that may wait; whoever comes later waits to get in.
const QUEUE_COMMITS: usize = 4_096;
const QUEUE_KIB: usize = 64 << 10;
/// Keys are in indexes, whose entries the database limits.
const KEY_BYTES_MAX: usize = 2_000;
/// Keys that expire in one commit, and changes forgotten in one step.
const EXPIRE_STEP: i64 = 100;
const PRUNE_STEP: i64 = 1_000;
const MAINTAIN_PAUSE: Duration = Duration::from_secs(1);
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);
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
        set_up(&connections.connect().await?, &schema).await?;
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

async fn set_up(client: &Session, schema: &str) -> Result<()> {
    let sql = format!(
        "BEGIN; SELECT pg_advisory_xact_lock({SETUP_LOCK}); CREATE SCHEMA IF NOT EXISTS {schema}; {SCHEMA} COMMIT;"
    );
    client.batch_execute(&sql).await.map_err(|e| error("open", e))?;
    let format: i32 = client.query_one("SELECT format FROM head", &[]).await.map_err(|e| error("open", e))?.get(0);
    if format != FORMAT {
        let what = format!("format {format}; this version of Coxswain reads format {FORMAT}");
        return Err(Error::Corrupt { place: format!("the schema {schema}"), what });
    }
    Ok(())
}

impl Shared {
    /// Hands this server's own commits to the follower, which need not read them from the database then.
    fn publish_own(&self, commits: Vec<Arc<Changes>>) {
        let mut own = self.own.lock();
        let follows =
            own.last().is_none_or(|last| commits.first().is_some_and(|c| c.revision.0 == last.revision.0 + 1));
        if !follows {
            own.clear();
        }
        own.extend(commits);
        drop(own);
        self.news.notify_one();
    }

    /// Keeps a connection on which the database tells of commits.
    async fn listen(self: Arc<Self>) {
        loop {
            if let Err(error) = self.listen_once().await {
                tracing::warn!(%error, "no word of other servers' commits; trying again");
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn listen_once(&self) -> Result<()> {
        let failed = |e| error("listen", e);
        let (client, mut connection) = self.connections.config().connect(NoTls).await.map_err(failed)?;
        let mut messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
        let listen = format!("LISTEN {}", self.schema);
        let mut listening = std::pin::pin!(client.batch_execute(&listen));
        let mut begun = false;
        loop {
            tokio::select! {
                result = &mut listening, if !begun => {
                    result.map_err(failed)?;
                    begun = true;
                    // Whatever happened while nobody listened.
                    self.news.notify_one();
                }
                message = messages.next() => match message {
                    Some(Ok(AsyncMessage::Notification(_))) => self.news.notify_one(),
                    Some(Ok(_)) => {}
                    Some(Err(e)) => return Err(failed(e)),
                    None => return Err(unavailable("listen", "the connection was closed")),
                },
            }
        }
    }

    /// Gives the readers what is new, in order.
    async fn follow(self: Arc<Self>) {
        loop {
            self.news.notified().await;
            while let Err(error) = self.advance().await {
                tracing::warn!(%error, "changes could not be read; trying again");
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
    }

    async fn advance(&self) -> Result<()> {
        loop {
            let newest = self.feed.newest();
            let own = std::mem::take(&mut *self.own.lock());
            let own: Vec<_> = own.into_iter().filter(|c| c.revision > newest).collect();
            if own.first().is_some_and(|c| c.revision.0 == newest.0 + 1) {
                self.feed.publish(own);
                continue;
            }
            match self.connections.changes_after("", newest).await {
                Ok((_, reached)) if reached == newest => return Ok(()),
                Ok((commits, _)) => {
                    let gapless = commits.iter().zip(newest.0 + 1..).all(|(commit, due)| commit.revision.0 == due);
                    if !gapless {
                        let what = format!("a change after revision {newest} is missing");
                        return Err(Error::Corrupt { place: "the table history".to_owned(), what });
                    }
                    self.feed.publish(commits.into_iter().map(Arc::new).collect());
                }
                // This server was cut off for longer than history is kept; its readers learn it from the history.
                Err(Error::Compacted { .. }) => self.feed.skip_to(self.connections.marks().await?.revision),
                Err(error) => return Err(error),
            }
        }
    }

    async fn tell_progress(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PROGRESS_PAUSE).await;
            self.feed.wake_behind();
        }
    }

    /// Housekeeping, in small steps; every server does it, and what two do at once is done once.
    async fn maintain(self: Arc<Self>, queue: mpsc::WeakSender<Pending>, keep_history: Duration) {
        let room = Arc::new(Semaphore::new(1));
        loop {
            self.feed.trim();
            let more = match (self.expire(&queue, &room).await, self.prune(keep_history).await) {
                (Ok(expired), Ok(pruned)) => expired || pruned,
                (Err(error), _) | (_, Err(error)) => {
                    tracing::warn!(%error, "storage housekeeping failed; it is tried again");
                    false
                }
            };
            if !more {
                tokio::time::sleep(MAINTAIN_PAUSE).await;
            }
        }
    }

    async fn expire(&self, queue: &mpsc::WeakSender<Pending>, room: &Arc<Semaphore>) -> Result<bool> {
        const EXPIRED: &str = "SELECT key, modified FROM current
            WHERE expires > 0 AND expires <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint
            ORDER BY expires LIMIT $1";
        let failed = |e| error("expire", e);
        let client = self.connections.reader().await?;
        let statement = client.prepared(EXPIRED).await.map_err(failed)?;
        let rows = client.query(&statement, &[&EXPIRE_STEP]).await.map_err(failed)?;
        let delete = |row: &tokio_postgres::Row| Write {
            key: row.get::<_, &str>(0).into(),
            expect: Expect::At(reads::revision(row.get(1))),
            op: Op::Delete,
        };
        let batch: Vec<Write> = rows.iter().map(delete).collect();
        let (Some(queue), false) = (queue.upgrade(), batch.is_empty()) else { return Ok(false) };
        let closed = |_| unavailable("expire", "the store is closed");
        let room = room.clone().acquire_owned().await.map_err(closed)?;
        let (answer, result) = oneshot::channel();
        queue.send(Pending { batch, answer, room }).await.map_err(|_| unavailable("expire", "the store is closed"))?;
        match result.await {
            // Written anew or already deleted meanwhile, perhaps by another server.
            Ok(Err(Error::Conflict { .. })) => Ok(false),
            Ok(result) => result.map(|_| rows.len() as i64 == EXPIRE_STEP),
            Err(_) => Ok(false),
        }
    }

    async fn prune(&self, keep_history: Duration) -> Result<bool> {
        const FORGET: &str = "UPDATE compaction SET revision = old.revision FROM (
                SELECT max(revision) AS revision FROM (SELECT revision, time FROM history ORDER BY revision, index LIMIT $1) h
                WHERE time < (extract(epoch FROM clock_timestamp()) * 1000)::bigint - $2) old
            WHERE compaction.revision < old.revision";
        const REMOVE: &str = "DELETE FROM history WHERE (revision, index) IN (SELECT revision, index FROM history
            WHERE revision <= (SELECT revision FROM compaction) ORDER BY revision, index LIMIT $1)";
        let failed = |e| error("compact", e);
        let client = self.connections.reader().await?;
        let (forget, remove) =
            (client.prepared(FORGET).await.map_err(failed)?, client.prepared(REMOVE).await.map_err(failed)?);
        let keep = keep_history.as_millis() as i64;
        client.execute(&forget, &[&PRUNE_STEP, &keep]).await.map_err(failed)?;
        let removed = client.execute(&remove, &[&PRUNE_STEP]).await.map_err(failed)?;
        Ok(removed as i64 == PRUNE_STEP)
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
        const COMPACT: &str = "UPDATE compaction SET revision = $1 WHERE revision < $1";
        let marks = self.shared.connections.marks().await?;
        if revision > marks.revision {
            return Err(Error::Future { asked: revision, current: marks.revision });
        }
        let client = self.shared.connections.reader().await?;
        let statement = client.prepared(COMPACT).await.map_err(|e| error("compact", e))?;
        client.execute(&statement, &[&(revision.0 as i64)]).await.map_err(|e| error("compact", e))?;
        Ok(())
    }

    async fn current_revision(&self) -> Result<Revision> {
        Ok(self.shared.connections.marks().await?.revision)
    }
}

fn unavailable(operation: &'static str, what: &str) -> Error {
    Error::Unavailable { operation, source: what.to_owned().into() }
}
