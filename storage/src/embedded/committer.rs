//! The one thread that writes. It takes all commits that wait, checks each against the state that the earlier ones leave,
//! makes the group durable with one sync, publishes it, and then answers everybody. Between groups it does the store's
//! housekeeping, in steps small enough that no writer notices: deleting what has expired, forgetting old history.

use super::disk::{Disk, free_bytes};
use super::record::{change_key, expiry_key, parse_change_key, parse_expiry_key};
use super::view::View;
use super::{Options, Published};
use crate::feed::Feed;
use crate::group::{ChangeRecord, Group, State};
use crate::metrics;
use crate::transfer::Import;
use crate::{Error, Expect, Op, Result, Revision, Write};
use fjall::{PersistMode, Readable};
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// A group takes at most this many commits and about this many bytes; the rest waits for the next one.
const GROUP_COMMITS: usize = 512;
const GROUP_BYTES: usize = 8 << 20;
/// Keys that expire in one commit, and changes forgotten in one step.
const EXPIRE_STEP: usize = 100;
const PRUNE_STEP: usize = 256;
/// How long an engine that has failed is left alone before it is opened again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// Room that there must be on a disk that was full before the engine is opened again, which writes a little.
const REOPEN_BYTES: u64 = 16 << 20;

pub struct Pending {
    pub batch: Vec<Write>,
    pub size: usize,
    pub answer: oneshot::Sender<Result<Revision>>,
    /// The bytes that this commit occupies in the queue.
    pub room: OwnedSemaphorePermit,
}

pub enum Message {
    Commit(Pending),
    /// Forget what is older than a revision.
    Compact(Revision, oneshot::Sender<Result<()>>),
    /// Take over what another store had.
    Import(Import, oneshot::Sender<Result<()>>),
    /// Do one step of housekeeping; the answer says whether there is more to do.
    Maintain(oneshot::Sender<bool>),
    Close,
}

pub struct Committer {
    pub options: Options,
    pub directory: PathBuf,
    pub published: Arc<Published>,
    pub feed: Arc<Feed>,
    /// The history up to here has been removed from disk.
    pub pruned: Revision,
    pub clock: Clock,
    pub watermark: Revision,
    /// The engine has failed to write and takes no more, though it still reads.
    pub failed: Option<Failure>,
}

pub struct Failure {
    /// When it happened, or was last tried to be mended.
    at: Instant,
    no_space: bool,
}

/// The store's own time, by which keys expire and history grows old. It begins at the wall clock's, or where it was when the
/// store was last open if that is later, and then goes on by the monotonic clock: so it never goes back, what expires later
/// also sorts later, and a wall clock that jumps, or was wrong once, neither ends nor prolongs anything.
pub struct Clock {
    begin: u64,
    opened: Instant,
    /// The expiry index is empty before this time.
    swept: u64,
}

impl Clock {
    pub fn new(wall: SystemTime, last: u64) -> Clock {
        let wall = wall.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        Clock { begin: wall.max(last), opened: Instant::now(), swept: 0 }
    }

    /// In milliseconds; of the same order as time since 1970, though no more than that.
    fn now(&self) -> u64 {
        self.begin + self.opened.elapsed().as_millis() as u64
    }
}

impl Committer {
    pub fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut messages = Vec::with_capacity(GROUP_COMMITS);
        while let Some(first) = queue.blocking_recv() {
            let mut size = 0;
            let mut next = Some(first);
            while let Some(message) = next {
                if let Message::Commit(pending) = &message {
                    size += pending.size;
                }
                messages.push(message);
                next = if messages.len() < GROUP_COMMITS && size < GROUP_BYTES { queue.try_recv().ok() } else { None };
            }
            let mut group = Vec::with_capacity(messages.len());
            let mut closing = false;
            for message in messages.drain(..) {
                match message {
                    Message::Commit(pending) => group.push(pending),
                    other => {
                        self.commit(std::mem::take(&mut group));
                        closing |= self.other(other);
                    }
                }
            }
            self.commit(group);
            if closing {
                break;
            }
        }
        let _ = self.write_watermark();
        self.feed.close();
        self.published.close();
    }

    fn other(&mut self, message: Message) -> bool {
        match message {
            Message::Compact(revision, answer) => {
                let _ = answer.send(self.compact(revision));
            }
            Message::Maintain(answer) => {
                let more = self.maintain().unwrap_or_else(|error| {
                    tracing::warn!(%error, "storage housekeeping failed; it is tried again");
                    false
                });
                let _ = answer.send(more);
            }
            Message::Import(import, answer) => {
                let _ = answer.send(self.import(import));
            }
            Message::Commit(_) => {}
            Message::Close => return true,
        }
        false
    }

    fn commit(&mut self, pending: Vec<Pending>) {
        if pending.is_empty() {
            return;
        }
        let mut rooms = Vec::with_capacity(pending.len());
        let mut answers = Vec::with_capacity(pending.len());
        let mut batches = Vec::with_capacity(pending.len());
        for Pending { batch, answer, room, .. } in pending {
            batches.push(batch);
            answers.push(answer);
            rooms.push(room);
        }
        let results = self.commit_group(batches);
        drop(rooms);
        for (answer, result) in answers.into_iter().zip(results) {
            // Whoever asked may have gone; the commit stands.
            let _ = answer.send(result);
        }
    }

    fn commit_group(&mut self, batches: Vec<Vec<Write>>) -> Vec<Result<Revision>> {
        let view = match self.healthy_view() {
            Ok(view) => view,
            Err(error) => return batches.iter().map(|_| Err(copy(&error))).collect(),
        };
        let free = free_bytes(&self.directory).unwrap_or(u64::MAX);
        let load = |key: &str| view.state(key);
        let mut group = Group::new(&load, view.revision, self.clock.now());
        let mut results: Vec<Result<Revision>> = Vec::with_capacity(batches.len());
        for batch in batches {
            let room = self.check_room(free, &batch);
            results.push(room.and_then(|()| group.apply(batch)));
        }
        if group.commits.is_empty() {
            return results;
        }
        let begun = Instant::now();
        let written = self.write(&view, &group);
        metrics::GROUP_SECONDS.observe(&[], begun.elapsed().as_secs_f64());
        metrics::GROUP_COMMITS.observe(&[], group.commits.len() as f64);
        if let Err(error) = written {
            tracing::error!(%error, "a group of commits could not be written");
            self.fail(&error);
            // What of it has reached the disk shows when the directory is opened again.
            let unknown = Error::Unavailable { operation: "commit", source: error.into() };
            return results.iter().map(|_| Err(copy(&unknown))).collect();
        }
        let Group { revision, commits, .. } = group;
        self.publish(&view, revision, view.compacted);
        self.feed.publish(commits);
        results
    }

    /// A disk that is nearly full takes no more values, but deletions go on for a while, since they make room.
    fn check_room(&self, free: u64, batch: &[Write]) -> Result<()> {
        let deletes_only = batch.iter().all(|w| matches!(w.op, Op::Delete));
        let reserve = if deletes_only { self.options.reserve_bytes / 4 } else { self.options.reserve_bytes };
        if free >= reserve {
            return Ok(());
        }
        Err(Error::NoSpace(format!(
            "{free} bytes are free at {}, {reserve} are held in reserve",
            self.directory.display()
        )))
    }

    fn write(&self, view: &View, group: &Group) -> Result<()> {
        let disk = &view.disk;
        let mut batch = disk.database.batch().durability(Some(PersistMode::SyncData));
        for (key, (expired_before, state)) in &group.states {
            batch.insert(&disk.current, key.as_bytes(), state.encode());
            if *expired_before != state.expires {
                if *expired_before != 0 {
                    batch.remove(&disk.expiry, expiry_key(*expired_before, key));
                }
                if state.expires != 0 {
                    batch.insert(&disk.expiry, expiry_key(state.expires, key), []);
                }
            }
        }
        for (revision, index, record) in &group.records {
            batch.insert(&disk.history, change_key(*revision, *index), record.encode());
        }
        batch.insert(&disk.meta, "revision", group.revision.0.to_le_bytes());
        batch.insert(&disk.meta, "time", self.clock.now().to_le_bytes());
        if let Some(compacted) = group.compacted {
            batch.insert(&disk.meta, "compacted", compacted.0.to_le_bytes());
        }
        batch.commit().map_err(|e| disk.error("commit", "journal", e))
    }

    fn publish(&self, old: &View, revision: Revision, compacted: Revision) {
        assert!(revision >= old.revision && compacted >= old.compacted, "the store went back");
        let snapshot = old.disk.database.snapshot();
        self.published.set(View { disk: old.disk.clone(), snapshot, revision, compacted });
    }

    fn fail(&mut self, error: &Error) {
        metrics::WRITE_FAILURES.add(&[], 1);
        self.failed = Some(Failure { at: Instant::now(), no_space: matches!(error, Error::NoSpace(_)) });
    }

    /// After a failed write the directory is opened again, but not before that can succeed: until then the old view is
    /// read.
    fn healthy_view(&mut self) -> Result<Arc<View>> {
        let Some(failure) = &mut self.failed else { return self.published.now() };
        if failure.no_space {
            let free = free_bytes(&self.directory).unwrap_or(0);
            if free < REOPEN_BYTES.max(self.options.reserve_bytes / 4) {
                return Err(Error::NoSpace(format!("{free} bytes are free at {}", self.directory.display())));
            }
        }
        if failure.at.elapsed() < REOPEN_PAUSE {
            let source = "a write has failed; the data directory is opened again shortly".into();
            return Err(Error::Unavailable { operation: "commit", source });
        }
        failure.at = Instant::now();
        self.published.reopen(|| Disk::open(&self.directory, &self.options))?;
        let view = self.published.now()?;
        self.feed.skip_to(view.revision);
        self.feed.wake_behind();
        self.failed = None;
        tracing::info!(revision = %view.revision, "the data directory has been opened again after a failed write");
        Ok(view)
    }

    fn import(&mut self, import: Import) -> Result<()> {
        let view = self.healthy_view()?;
        let load = |key: &str| view.state(key);
        let mut group = Group::new(&load, view.revision, self.clock.now());
        group.import(import)?;
        self.check_room(free_bytes(&self.directory).unwrap_or(u64::MAX), &[])?;
        if let Err(error) = self.write(&view, &group) {
            self.fail(&error);
            return Err(error);
        }
        let compacted = group.compacted.unwrap_or_default().max(view.compacted);
        // Times of expiry that were taken over may lie in the past.
        self.clock.swept = 0;
        self.publish(&view, group.revision, compacted);
        self.feed.skip_to(group.revision);
        self.feed.wake_behind();
        Ok(())
    }

    fn compact(&mut self, revision: Revision) -> Result<()> {
        let view = self.healthy_view()?;
        if revision > view.revision {
            return Err(Error::Future { asked: revision, current: view.revision });
        }
        if revision <= view.compacted {
            return Ok(());
        }
        let disk = &view.disk;
        let mut batch = disk.database.batch().durability(Some(PersistMode::SyncData));
        batch.insert(&disk.meta, "compacted", revision.0.to_le_bytes());
        if let Err(e) = batch.commit() {
            let error = disk.error("compact", "meta", e);
            self.fail(&error);
            return Err(error);
        }
        self.publish(&view, view.revision, revision);
        Ok(())
    }

    fn maintain(&mut self) -> Result<bool> {
        let view = self.healthy_view()?;
        self.write_watermark().map_err(|e| Error::Unavailable { operation: "maintain", source: e.into() })?;
        self.feed.trim();
        metrics::REVISION.set(&["newest"], view.revision.0 as f64);
        metrics::REVISION.set(&["oldest"], view.compacted.0 as f64);
        if let Ok(free) = free_bytes(&self.directory) {
            metrics::FREE_BYTES.set(&[], free as f64);
        }
        let expired = self.expire(&view)?;
        let pruned = self.prune()?;
        Ok(expired || pruned)
    }

    fn write_watermark(&mut self) -> std::io::Result<()> {
        let Ok(view) = self.published.now() else { return Ok(()) };
        if view.revision > self.watermark {
            view.disk.write_watermark(view.revision)?;
            self.watermark = view.revision;
        }
        Ok(())
    }

    /// Deletes some of the keys whose time has passed, in one commit like any other.
    fn expire(&mut self, view: &View) -> Result<bool> {
        let disk = &view.disk;
        let now = self.clock.now();
        let place = || disk.place("expiry");
        let mut batch = Vec::new();
        let mut swept = now;
        let range = (Bound::Included(expiry_key(self.clock.swept, "")), Bound::Excluded(expiry_key(now, "")));
        for guard in view.snapshot.range(&disk.expiry, range) {
            let key = guard.key().map_err(|e| disk.error("expire", "expiry", e))?;
            let (expires, key) = parse_expiry_key(&key, &place)?;
            if batch.len() == EXPIRE_STEP {
                swept = expires;
                break;
            }
            let Some(state) = view.state(key)?.filter(|s| s.value.is_some() && s.expires == expires) else {
                return Err(Error::Corrupt { place: place(), what: format!("{key} does not expire at {expires}") });
            };
            batch.push(Write { key: key.into(), expect: Expect::At(state.modified), op: Op::Delete });
        }
        let more = batch.len() == EXPIRE_STEP;
        if !batch.is_empty() {
            match self.commit_group(vec![batch]).into_iter().collect::<Result<Vec<_>>>() {
                // It expires where it has gone.
                Err(Error::Moved(_)) => return Ok(false),
                result => drop(result?),
            }
        }
        self.clock.swept = swept;
        Ok(more)
    }

    /// Removes some of the history that is compacted or has been kept long enough. The removal need not be synced: it is
    /// in the journal behind the mark, and is done again if it was lost.
    fn prune(&mut self) -> Result<bool> {
        let view = self.healthy_view()?;
        let disk = &view.disk;
        let keep_since = self.clock.now().saturating_sub(self.options.keep_history.as_millis() as u64);
        let mut batch = disk.database.batch();
        let mut compacted = view.compacted;
        let mut last = self.pruned;
        let mut count = 0;
        let start = Bound::Excluded(change_key(self.pruned, u32::MAX));
        for guard in view.snapshot.range(&disk.history, (start, Bound::Unbounded)) {
            let (raw, bytes) = guard.into_inner().map_err(|e| disk.error("compact", "history", e))?;
            let (revision, index) = parse_change_key(&raw, &|| disk.place("history"))?;
            let (time, key, _) = ChangeRecord::head(&bytes, &|| disk.place("history"))?;
            // A step ends between commits.
            if revision > last && (count >= PRUNE_STEP || (revision > compacted && time > keep_since)) {
                break;
            }
            last = revision;
            compacted = compacted.max(revision);
            count += 1;
            // The mark of a deletion is needed no longer than the record of it.
            let gone = |s: &State| s.value.is_none() && (s.modified, s.index) == (revision, index);
            if view.state(key)?.as_ref().is_some_and(gone) {
                batch.remove(&disk.current, key);
            }
            batch.remove(&disk.history, raw);
        }
        if count == 0 {
            return Ok(false);
        }
        batch.insert(&disk.meta, "compacted", compacted.0.to_le_bytes());
        batch.insert(&disk.meta, "pruned", last.0.to_le_bytes());
        if let Err(e) = batch.commit() {
            let error = disk.error("compact", "journal", e);
            self.fail(&error);
            return Err(error);
        }
        self.pruned = last;
        self.publish(&view, view.revision, compacted);
        Ok(count >= PRUNE_STEP)
    }
}

/// The same failure for every commit of a group.
fn copy(error: &Error) -> Error {
    match error {
        Error::NoSpace(what) => Error::NoSpace(what.clone()),
        Error::Corrupt { place, what } => Error::Corrupt { place: place.clone(), what: what.clone() },
        Error::Unavailable { operation, source } => Error::Unavailable { operation, source: source.to_string().into() },
        other => Error::Unavailable { operation: "commit", source: other.to_string().into() },
    }
}
