//! What moves from one store to another, by whatever way: a backup that is restored, or a live migration.

use crate::{Changes, Entry, Error, Expect, ListOptions, Op, Result, Revision, Storage, Write};
use futures::stream::{self, StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Entries read, and written, in one go.
pub const PAGE: usize = 1_000;
/// What a store that gives revisions itself takes in one transaction, and how many transactions at once.
const BATCH: usize = 100;
const BATCHES: usize = 8;
/// Written to a store that gives revisions itself, to have it go on from a higher one.
const PAD_KEY: &str = "coxswain/revision";
const PADS: usize = 256;

/// What a store that keeps revisions takes over in one step: all of it or nothing.
#[derive(Clone, Debug, Default)]
pub struct Import {
    /// As they were at `revision`, which is where the history begins.
    pub entries: Vec<Entry>,
    /// What happened afterwards, each at its revision.
    pub commits: Vec<Changes>,
    /// Times of expiry of keys that are there.
    pub expiries: Vec<(Arc<str>, u64)>,
    /// Where the store is afterwards. Revisions in which nothing happened are filled or, if they are many, forgotten.
    pub revision: Revision,
}

/// A store that is being filled.
pub struct Filling {
    pub store: Arc<dyn Storage>,
    pub keeps_revisions: bool,
}

impl Filling {
    /// Only an empty store can be filled.
    pub async fn new(store: Arc<dyn Storage>) -> Result<Filling> {
        let options = ListOptions { limit: Some(1), ..Default::default() };
        if let Some(entry) = store.list(store.root(), options).await?.entries.first() {
            let source = format!("the target is not empty: it has {}, for one", entry.key).into();
            return Err(Error::Unavailable { operation: "fill", source });
        }
        let keeps_revisions = store.keeps_revisions();
        Ok(Filling { store, keeps_revisions })
    }

    /// Entries as they were at `revision`. They are not to expire yet: a store that deletes something of its own accord
    /// while it is being filled has a revision for that which the other store has for something else.
    pub async fn load(&self, entries: Vec<Entry>, revision: Revision) -> Result<()> {
        if self.keeps_revisions {
            return self.store.import(Import { entries, revision, ..Import::default() }).await;
        }
        let writes: Vec<Write> = entries.iter().map(|entry| write_of(entry, 0)).collect();
        let batches = writes.chunks(BATCH).map(<[Write]>::to_vec).collect::<Vec<_>>();
        let commits = stream::iter(batches).map(|batch| self.store.commit(batch));
        commits.buffer_unordered(BATCHES).try_for_each(|_| async { Ok(()) }).await
    }

    /// What happened after the entries were read, in order and without a gap but for revisions that were not told of.
    pub async fn replay(&self, commits: Vec<Changes>, revision: Revision) -> Result<()> {
        if self.keeps_revisions {
            return self.store.import(Import { commits, revision, ..Import::default() }).await;
        }
        // Only the last word on each key counts: the steps between have no revision here that anybody knows.
        let changes = commits.into_iter().flat_map(|commit| commit.changes);
        let last: BTreeMap<Arc<str>, Option<Entry>> = changes.map(|change| (change.key, change.value)).collect();
        let write = |(key, value): (Arc<str>, Option<Entry>)| match value {
            Some(entry) => write_of(&entry, 0),
            None => Write { key, expect: Expect::Any, op: Op::Delete },
        };
        let writes: Vec<Write> = last.into_iter().map(write).collect();
        let batches = writes.chunks(BATCH).map(<[Write]>::to_vec).collect::<Vec<_>>();
        let commits = stream::iter(batches).map(|batch| self.store.commit(batch));
        commits.buffer_unordered(BATCHES).try_for_each(|_| async { Ok(()) }).await
    }

    /// Sets when keys expire that were replayed without that.
    pub async fn expire(&self, expiries: Vec<(Arc<str>, u64)>) -> Result<()> {
        if expiries.is_empty() {
            return Ok(());
        }
        if self.keeps_revisions {
            let revision = self.store.current_revision().await?;
            for step in expiries.chunks(PAGE) {
                self.store.import(Import { expiries: step.to_vec(), revision, ..Import::default() }).await?;
            }
            return Ok(());
        }
        for step in expiries.chunks(BATCH) {
            let read = stream::iter(step.to_vec()).map(|(key, expires)| async move {
                let (entry, _) = self.store.get(&key, None).await?;
                Result::Ok(entry.map(|entry| write_of(&entry, expires)))
            });
            let writes: Vec<Option<Write>> = read.buffered(PADS).try_collect().await?;
            self.store.commit(writes.into_iter().flatten().collect()).await?;
        }
        Ok(())
    }

    /// Has the store go on behind `revision`; where it is then.
    pub async fn advance(&self, revision: Revision) -> Result<Revision> {
        let mut now = self.store.current_revision().await?;
        if self.keeps_revisions {
            if now < revision {
                self.store.import(Import { revision, ..Import::default() }).await?;
            }
            return Ok(now.max(revision));
        }
        let key: Arc<str> = format!("{}{PAD_KEY}", self.store.root()).into();
        while now < revision {
            let missing = (revision.0 - now.0) as usize;
            let pad = |_| {
                let op = Op::Put { value: bytes::Bytes::new(), ttl: None };
                self.store.commit(vec![Write { key: key.clone(), expect: Expect::Any, op }])
            };
            let pads: Vec<Revision> =
                stream::iter(0..missing.min(20_000)).map(pad).buffer_unordered(PADS).try_collect().await?;
            now = pads.into_iter().max().unwrap_or(now);
        }
        Ok(now)
    }

    /// Old revisions of a store that gives them itself are not those that clients know: they are told to list again.
    pub async fn forget_history(&self) -> Result<()> {
        if self.keeps_revisions {
            return Ok(());
        }
        let key: Arc<str> = format!("{}{PAD_KEY}", self.store.root()).into();
        let now = self.store.commit(vec![Write { key, expect: Expect::Any, op: Op::Delete }]).await?;
        self.store.compact(now).await
    }
}

fn write_of(entry: &Entry, expires: u64) -> Write {
    let left = Duration::from_millis(expires.saturating_sub(crate::moved::now_ms()).max(1_000));
    let op = Op::Put { value: entry.value.clone(), ttl: (expires > 0).then_some(left) };
    Write { key: entry.key.clone(), expect: Expect::Any, op }
}

/// Calls `take` with all entries as of a revision, page by page in the order of keys. The marker of a move and what is
/// only there for the revisions' sake is left out.
pub async fn each_page<F: Future<Output = Result<()>>>(
    store: &dyn Storage,
    at: Option<Revision>,
    mut take: impl FnMut(Vec<Entry>) -> F,
) -> Result<()> {
    let base = if store.root().is_empty() { "/registry/" } else { store.root() };
    let passing = |key: &str| {
        let rest = key.strip_prefix(base);
        rest.is_some_and(|rest| matches!(rest, "coxswain/moved" | "coxswain/gap" | "coxswain/progress" | PAD_KEY))
    };
    let read = |from, at| store.list(store.root(), ListOptions { at, limit: Some(PAGE), from });
    let mut page = read(None, at).await?;
    let at = Some(page.revision);
    loop {
        page.entries.retain(|e| !passing(&e.key));
        let from = page.next.take();
        // The next page is on its way while this one is dealt with.
        let next = async {
            match from {
                Some(from) => read(Some(from), at).await.map(Some),
                None => Ok(None),
            }
        };
        let entries = std::mem::take(&mut page.entries);
        let (next, ()) = futures::try_join!(next, async { take(entries).await })?;
        match next {
            Some(next) => page = next,
            None => return Ok(()),
        }
    }
}

/// A checksum of entries in the order of keys.
pub struct Checksum {
    hash: Sha256,
    with_revisions: bool,
    pub entries: u64,
    pub bytes: u64,
}

impl Checksum {
    pub fn new(with_revisions: bool) -> Checksum {
        Checksum { hash: Sha256::new(), with_revisions, entries: 0, bytes: 0 }
    }

    pub fn add(&mut self, entry: &Entry) {
        for part in [entry.key.as_bytes(), &entry.value] {
            self.hash.update((part.len() as u64).to_le_bytes());
            self.hash.update(part);
        }
        if self.with_revisions {
            self.hash.update(entry.created.0.to_le_bytes());
            self.hash.update(entry.modified.0.to_le_bytes());
        }
        self.entries += 1;
        self.bytes += entry.value.len() as u64;
    }

    pub fn hex(self) -> String {
        self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// That of a whole store as of a revision.
    pub async fn of(store: &dyn Storage, at: Option<Revision>, with_revisions: bool) -> Result<Checksum> {
        let sum = parking_lot::Mutex::new(Checksum::new(with_revisions));
        each_page(store, at, |entries| {
            let mut sum = sum.lock();
            entries.iter().for_each(|entry| sum.add(entry));
            async { Ok(()) }
        })
        .await?;
        Ok(sum.into_inner())
    }
}
