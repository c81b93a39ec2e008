//! The store as of one durable revision: what readers read, and what the committer checks expectations against. A view
//! never changes and never waits for writers; the committer publishes a new one after every group.

use super::disk::Disk;
use super::record::{change_key, parse_change_key, parse_expiry_key};
use crate::group::{ChangeRecord, State};
use crate::{Change, Changes, Entry, Error, ListOptions, Page, Result, Revision};
use fjall::{Readable, Snapshot};
use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;

/// A stretch of history read from disk holds at most this many changes and about this many bytes.
const CHUNK_CHANGES: usize = 1_000;
const CHUNK_BYTES: usize = 4 << 20;

pub struct View {
    pub disk: Arc<Disk>,
    pub snapshot: Snapshot,
    pub revision: Revision,
    pub compacted: Revision,
}

impl View {
    /// Whether reads at `asked` are possible.
    pub fn readable(&self, asked: Revision) -> Result<()> {
        if asked > self.revision {
            return Err(Error::Future { asked, current: self.revision });
        }
        if asked < self.compacted {
            return Err(Error::Compacted { asked, oldest: self.compacted });
        }
        Ok(())
    }

    /// The key's present state: a value, a mark of deletion, or nothing.
    pub fn state(&self, key: &str) -> Result<Option<State>> {
        let found = self.snapshot.get(&self.disk.current, key);
        let Some(bytes) = found.map_err(|e| self.disk.error("get", "current", e))? else { return Ok(None) };
        State::decode(&bytes, &|| format!("{}, key {key}", self.disk.place("current"))).map(Some)
    }

    pub fn change(&self, revision: Revision, index: u32) -> Result<Option<ChangeRecord>> {
        let found = self.snapshot.get(&self.disk.history, change_key(revision, index));
        let Some(bytes) = found.map_err(|e| self.disk.error("get", "history", e))? else { return Ok(None) };
        ChangeRecord::decode(&bytes, &|| self.change_place(revision, index)).map(Some)
    }

    fn change_place(&self, revision: Revision, index: u32) -> String {
        format!("{}, change {revision}/{index}", self.disk.place("history"))
    }

    /// Walks from a state back to the one that held at `at`, which must not be compacted.
    fn rewind(&self, mut state: Option<State>, at: Revision) -> Result<Option<State>> {
        while let Some(newer) = state.as_ref().filter(|s| s.modified > at) {
            let (revision, index) = (newer.modified, newer.index);
            let Some(change) = self.change(revision, index)? else {
                let (place, what) = (self.change_place(revision, index), "the change is missing".to_owned());
                return Err(Error::Corrupt { place, what });
            };
            state = change.prior;
        }
        Ok(state)
    }

    pub fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>> {
        let at = at.unwrap_or(self.revision);
        self.readable(at)?;
        let state = self.rewind(self.state(key)?, at)?;
        Ok(state.and_then(|s| s.entry(&key.into())))
    }

    pub fn list(&self, prefix: &str, options: &ListOptions) -> Result<Page> {
        let at = options.at.unwrap_or(self.revision);
        self.readable(at)?;
        let start = options.from.as_deref().filter(|from| *from > prefix).unwrap_or(prefix).as_bytes().to_vec();
        let end = successor(prefix);
        let mut page = Page { entries: Vec::new(), revision: at, next: None };
        if matches!(&end, Bound::Excluded(end) if *end <= start) {
            return Ok(page);
        }
        for guard in self.snapshot.range(&self.disk.current, (Bound::Included(start), end)) {
            let (key, bytes) = guard.into_inner().map_err(|e| self.disk.error("list", "current", e))?;
            let place = || format!("{}, key {}", self.disk.place("current"), String::from_utf8_lossy(&key));
            let state = State::decode(&bytes, &place)?;
            let Some(state) = self.rewind(Some(state), at)?.filter(|s| s.value.is_some()) else { continue };
            let Ok(key) = std::str::from_utf8(&key) else {
                return Err(Error::Corrupt { place: place(), what: "the key is not UTF-8".to_owned() });
            };
            let key: Arc<str> = key.into();
            if options.limit.is_some_and(|limit| page.entries.len() >= limit) {
                page.next = Some(key);
                break;
            }
            page.entries.extend(state.entry(&key));
        }
        Ok(page)
    }

    pub fn expiring(&self, after: Revision) -> Result<Vec<(Arc<str>, u64)>> {
        let place = || self.disk.place("expiry");
        let mut found = Vec::new();
        for guard in self.snapshot.iter(&self.disk.expiry) {
            let raw = guard.key().map_err(|e| self.disk.error("list", "expiry", e))?;
            let (expires, key) = parse_expiry_key(&raw, &place)?;
            let Some(state) = self.state(key)?.filter(|s| s.value.is_some() && s.expires == expires) else {
                return Err(Error::Corrupt { place: place(), what: format!("{key} does not expire at {expires}") });
            };
            if state.modified > after {
                found.push((key.into(), expires));
            }
        }
        Ok(found)
    }

    /// The commits after `after` as the history has them, under `prefix`, and how far they reach. A commit is never
    /// split.
    pub fn changes_after(&self, prefix: &str, after: Revision) -> Result<(Vec<Changes>, Revision)> {
        self.readable(after)?;
        let mut records: Vec<(Revision, u32, ChangeRecord)> = Vec::new();
        let mut reached = self.revision;
        let (mut count, mut size, mut last) = (0, 0, after);
        let range = (Bound::Excluded(change_key(after, u32::MAX)), Bound::Unbounded);
        for guard in self.snapshot.range(&self.disk.history, range) {
            let (key, bytes) = guard.into_inner().map_err(|e| self.disk.error("changes", "history", e))?;
            let (revision, index) = parse_change_key(&key, &|| self.disk.place("history"))?;
            if revision > last && (count >= CHUNK_CHANGES || size >= CHUNK_BYTES) {
                reached = last;
                break;
            }
            // Every revision has a change, and a gap would be a lost write.
            if revision.0 > last.0 + 1 {
                let what = format!("the change after revision {last} is missing; the next is {revision}");
                return Err(Error::Corrupt { place: self.disk.place("history"), what });
            }
            last = revision;
            count += 1;
            let place = || self.change_place(revision, index);
            if ChangeRecord::head(&bytes, &place)?.1.starts_with(prefix) {
                size += bytes.len();
                records.push((revision, index, ChangeRecord::decode(&bytes, &place)?));
            }
        }
        Ok((self.resolve(records, reached)?, reached))
    }

    /// What each change made of its key is the `prior` of the key's next change, or its state at the end of the stretch.
    fn resolve(&self, records: Vec<(Revision, u32, ChangeRecord)>, end: Revision) -> Result<Vec<Changes>> {
        let mut after: HashMap<Arc<str>, Option<State>> = HashMap::new();
        let mut changes: Vec<Changes> = Vec::new();
        for (revision, index, record) in records.into_iter().rev() {
            let key = record.key;
            let became = match after.remove(&key) {
                Some(state) => state,
                None => self.rewind(self.state(&key)?, end)?,
            };
            let fits = became.as_ref().is_some_and(|s| s.modified == revision && s.index == index);
            if !fits {
                let what = format!("nothing tells what {key} became");
                return Err(Error::Corrupt { place: self.change_place(revision, index), what });
            }
            let change = Change {
                revision,
                value: became.and_then(|s| s.entry(&key)),
                previous: record.prior.as_ref().and_then(|s| s.entry(&key)),
                key: key.clone(),
            };
            after.insert(key, record.prior);
            match changes.last_mut().filter(|c| c.revision == revision) {
                Some(commit) => commit.changes.push(change),
                None => changes.push(Changes { revision, changes: vec![change] }),
            }
        }
        changes.iter_mut().for_each(|commit| commit.changes.reverse());
        changes.reverse();
        Ok(changes)
    }
}

/// The first key after all keys with this prefix.
fn successor(prefix: &str) -> Bound<Vec<u8>> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Bound::Excluded(end);
        }
    }
    Bound::Unbounded
}
