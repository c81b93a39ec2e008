//! A revisioned key space: one trait, interchangeable backends (upstream: etcd behind `apiserver/pkg/storage`).
//!
//! The whole store has one order of revisions. A commit is atomic, expects a revision of every key it touches, and is
//! durable when it returns. See [`Storage`] for the contract; `contract::run` checks it against any backend.

pub mod address;
pub mod backup;
pub mod check;
#[cfg(test)]
mod contract;
pub mod embedded;
pub mod encryption;
pub mod etcd;
mod feed;
mod group;
pub mod metrics;
pub mod migrate;
pub mod moved;
pub mod postgres;
pub mod switch;
pub mod transfer;

pub use embedded::Embedded;
pub use etcd::Etcd;
pub use postgres::Postgres;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::sync::Arc;
use std::time::Duration;

/// A point in the store's one order of commits. 0 is before the first commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A key with its value at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Bytes,
    /// The commit that made the key.
    pub created: Revision,
    /// The commit that wrote this value.
    pub modified: Revision,
}

/// What a write expects of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    At(Revision),
    Any,
}

#[derive(Clone, Debug)]
pub enum Op {
    /// With `ttl`, the key is deleted by the store some time after it has passed (events).
    Put {
        value: Bytes,
        ttl: Option<Duration>,
    },
    Delete,
}

#[derive(Clone, Debug)]
pub struct Write {
    pub key: Arc<str>,
    pub expect: Expect,
    pub op: Op,
}

/// What happened to one key in one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub key: Arc<str>,
    /// The new value; none if the key was deleted.
    pub value: Option<Entry>,
    /// The value before; none if the key was created. Backends that cannot recall it (compacted) leave it out, and the
    /// reader uses its own copy.
    pub previous: Option<Entry>,
}

/// Every change of one commit, or word that there were none for this prefix up to `revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    pub revision: Revision,
    /// In the order of the batch; empty for a progress mark.
    pub changes: Vec<Change>,
}

#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Read as of this revision; the current one if none.
    pub at: Option<Revision>,
    /// At most this many entries; all if none.
    pub limit: Option<usize>,
    /// Begin at this key (inclusive) within the prefix.
    pub from: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub struct Page {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The revision the page was read at.
    pub revision: Revision,
    /// Where the next page begins, if there is more.
    pub next: Option<Arc<str>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An expectation failed; nothing of the batch was written. `current` is the key's value now, so that the caller need
    /// not read again.
    #[error("commit: {key} is not at the expected revision")]
    Conflict { key: Arc<str>, current: Option<Entry> },
    /// The revision asked for was compacted; `oldest` can still be read.
    #[error("revision {asked} has been compacted; the oldest is {oldest}")]
    Compacted { asked: Revision, oldest: Revision },
    /// The revision asked for lies ahead of the store.
    #[error("revision {asked} is ahead of the store, which is at {current}")]
    Future { asked: Revision, current: Revision },
    #[error("commit: the value of {key} has {size} bytes, more than the {max} allowed")]
    TooLarge { key: Arc<str>, size: usize, max: usize },
    /// There is no room on the disk. Reads go on.
    #[error("commit: no space left: {0}")]
    NoSpace(String),
    /// The outcome of a commit is unknown, or the store cannot be reached.
    #[error("{operation}: the store is unavailable: {source}")]
    Unavailable { operation: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    /// The store takes no more writes: its data is moving to another one, or has moved.
    #[error("commit: the store takes no writes: {0}")]
    Moved(moved::Marker),
    #[error("corrupt data in {place}: {what}")]
    Corrupt { place: String, what: String },
}

pub type Result<T> = std::result::Result<T, Error>;

/// The contract of every backend.
///
/// - A commit that returned is durable and visible to every later read of any server.
/// - `changes` delivers every revision once, in order, without gap and without poll delay.
/// - Two commits never share a revision, and revisions never go back, not across restarts either.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// Writes the whole batch at one new revision, or nothing. A batch names a key at most once.
    async fn commit(&self, batch: Vec<Write>) -> Result<Revision>;

    /// The entry at `at`, or now, and the store's revision at the time of reading.
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<Entry>, Revision)>;

    /// The entries whose key begins with `prefix`, in key order.
    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page>;

    /// Everything after `after` under `prefix`, without end. Progress marks come at least when the store has been ahead of
    /// this prefix for a second, so that readers know how far they have seen. A consumer that falls too far behind gets
    /// `Compacted`.
    async fn changes(&self, prefix: &str, after: Revision) -> Result<BoxStream<'static, Result<Changes>>>;

    /// Has every reader of changes told, without delay, how far it has seen: for a reader that must know that it has
    /// reached the store's present revision (upstream: etcd's progress request).
    async fn request_progress(&self) -> Result<()>;

    /// Forgets what is older than `revision`: reads before it fail with `Compacted`.
    async fn compact(&self, revision: Revision) -> Result<()>;

    async fn current_revision(&self) -> Result<Revision>;

    /// The bytes that the store takes where it lies, if it can tell.
    async fn size(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// What all keys of this store begin with.
    fn root(&self) -> &str {
        ""
    }

    /// Where the marker of a move is.
    fn marker_key(&self) -> String {
        moved::KEY.to_owned()
    }

    /// The keys that expire, of those written after a revision, and when: in milliseconds since 1970. Keys from before may
    /// be among them.
    async fn expiring(&self, after: Revision) -> Result<Vec<(Arc<str>, u64)>>;

    /// Whether entries keep their revisions when they are taken over from another store by [`Storage::import`].
    fn keeps_revisions(&self) -> bool {
        false
    }

    /// Takes over what another store had. Only for a store that nobody uses yet and that keeps revisions.
    async fn import(&self, _import: transfer::Import) -> Result<()> {
        Err(Error::Unavailable { operation: "import", source: "this store gives revisions itself".into() })
    }
}
