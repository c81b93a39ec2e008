//! The arithmetic of a group commit, which is the same for every backend that keeps keys and history itself: checking what
//! each commit expects against the state that the earlier ones of the group leave, and recording what changes.

use crate::moved::{self, Marker};
use crate::transfer::Import;
use crate::{Change, Changes, Entry, Error, Expect, Op, Result, Revision, Write};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What a key is since its last change: a value, or the mark of its deletion, which stays until the deletion is compacted
/// so that reads at older revisions find their way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub modified: Revision,
    /// The place of the change within its commit: with `modified`, the key of the change's record in the history.
    pub index: u32,
    /// Zero for a deleted key.
    pub created: Revision,
    /// When the store deletes the key, in milliseconds since 1970; zero for never.
    pub expires: u64,
    pub value: Option<Bytes>,
}

impl State {
    pub fn entry(&self, key: &Arc<str>) -> Option<Entry> {
        let value = self.value.clone()?;
        Some(Entry { key: key.clone(), value, created: self.created, modified: self.modified })
    }
}

/// One change of one key, as the history keeps it: what the key was *before*. What it became is its present state or the
/// `prior` of its next change, so that every version is kept in one place once it is old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRecord {
    /// When the commit was made, in milliseconds since 1970: by this the history is kept for a time.
    pub time: u64,
    pub key: Arc<str>,
    pub prior: Option<State>,
}

/// Written in revisions in which another store had a change that was not taken over.
pub const GAP_KEY: &str = "/registry/coxswain/gap";
const GAP_FILLED_MAX: u64 = 1_000;

/// What the commits of a group have done so far, before it is durable.
pub struct Group<'a> {
    /// The state of a key before the group.
    load: &'a (dyn Fn(&str) -> Result<Option<State>> + Send + Sync),
    pub revision: Revision,
    now: u64,
    /// Each key touched: when it expired before the group, and its state since.
    pub states: HashMap<Arc<str>, (u64, State)>,
    pub records: Vec<(Revision, u32, ChangeRecord)>,
    pub commits: Vec<Arc<Changes>>,
    /// Whether the store takes no writes but those of the marker; not known before it was asked for.
    moved: Option<Option<Marker>>,
    /// Up to where history is not there, when it was taken over from another store.
    pub compacted: Option<Revision>,
}

impl<'a> Group<'a> {
    /// A group after `revision`, at `now` in milliseconds since 1970.
    pub fn new(
        load: &'a (dyn Fn(&str) -> Result<Option<State>> + Send + Sync),
        revision: Revision,
        now: u64,
    ) -> Group<'a> {
        Group {
            load,
            revision,
            now,
            states: HashMap::new(),
            records: Vec::new(),
            commits: Vec::new(),
            moved: None,
            compacted: None,
        }
    }

    fn state(&self, key: &str) -> Result<Option<State>> {
        match self.states.get(key) {
            Some((_, state)) => Ok(Some(state.clone())),
            None => (self.load)(key),
        }
    }

    /// Refuses what comes after the marker of a move, also within the group.
    fn check_moved(&mut self, batch: &[Write]) -> Result<()> {
        if Marker::concerns(batch, moved::KEY) {
            self.moved = None;
            return Ok(());
        }
        let moved = match &self.moved {
            Some(known) => known.clone(),
            None => {
                let value = self.state(moved::KEY)?.and_then(|s| s.value);
                value.map(|v| Marker::decode(&v)).transpose()?
            }
        };
        self.moved = Some(moved.clone());
        moved.map_or(Ok(()), |marker| Err(Error::Moved(marker)))
    }

    /// Takes over what another store had, with the revisions that it had there.
    pub fn import(&mut self, import: Import) -> Result<()> {
        for entry in import.entries {
            let before = self.state(&entry.key)?.map_or(0, |s| s.expires);
            let (created, modified) = (entry.created, entry.modified);
            let state = State { modified, index: 0, created, expires: 0, value: Some(entry.value) };
            self.states.insert(entry.key, (before, state));
            self.compacted = Some(import.revision);
        }
        for commit in import.commits.into_iter().filter(|c| !c.changes.is_empty()) {
            if commit.revision <= self.revision {
                continue;
            }
            self.fill_up_to(Revision(commit.revision.0 - 1))?;
            let write = |change: Change| {
                let op = change.value.map_or(Op::Delete, |e| Op::Put { value: e.value, ttl: None });
                Write { key: change.key, expect: Expect::Any, op }
            };
            self.apply(commit.changes.into_iter().map(write).collect())?;
        }
        for (key, expires) in import.expiries {
            let Some(mut state) = self.state(&key)?.filter(|s| s.value.is_some()) else { continue };
            let before = self.states.get(&key).map_or(state.expires, |(before, _)| *before);
            state.expires = expires;
            self.states.insert(key, (before, state));
        }
        self.fill_up_to(import.revision)
    }

    /// Revisions in which nothing happened that was taken over: a few are given a change of their own, so that history
    /// goes on without a gap; many end it.
    fn fill_up_to(&mut self, revision: Revision) -> Result<()> {
        if revision.0.saturating_sub(self.revision.0) > GAP_FILLED_MAX || self.compacted == Some(revision) {
            self.compacted = Some(revision);
            self.records.clear();
            self.revision = revision;
        }
        while self.revision < revision {
            let op = Op::Put { value: Bytes::new(), ttl: None };
            self.apply(vec![Write { key: GAP_KEY.into(), expect: Expect::Any, op }])?;
        }
        Ok(())
    }

    /// Checks one commit and, if all it expects holds, takes it in at a revision of its own.
    pub fn apply(&mut self, batch: Vec<Write>) -> Result<Revision> {
        self.check_moved(&batch)?;
        let mut priors = Vec::with_capacity(batch.len());
        for write in &batch {
            let prior = self.state(&write.key)?;
            let present = prior.as_ref().filter(|s| s.value.is_some()).map(|s| s.modified);
            let holds = match write.expect {
                Expect::Any => true,
                Expect::Absent => present.is_none(),
                Expect::At(revision) => present == Some(revision),
            };
            if !holds {
                let current = prior.and_then(|s| s.entry(&write.key));
                return Err(Error::Conflict { key: write.key.clone(), current });
            }
            priors.push(prior);
        }
        let revision = Revision(self.revision.0 + 1);
        let mut changes = Vec::with_capacity(batch.len());
        for (write, prior) in batch.into_iter().zip(priors) {
            let live = prior.as_ref().filter(|s| s.value.is_some());
            let (value, ttl) = match write.op {
                Op::Put { value, ttl } => (Some(value), ttl),
                // Deleting what is not there changes nothing.
                Op::Delete if live.is_none() => continue,
                Op::Delete => (None, None),
            };
            let state = State {
                modified: revision,
                index: changes.len() as u32,
                created: match &value {
                    Some(_) => live.map_or(revision, |s| s.created),
                    None => Revision(0),
                },
                expires: ttl.map_or(0, |ttl| self.now + (ttl.as_millis() as u64).max(1)),
                value,
            };
            changes.push(Change {
                revision,
                key: write.key.clone(),
                value: state.entry(&write.key),
                previous: prior.as_ref().and_then(|s| s.entry(&write.key)),
            });
            let expired_before = prior.as_ref().map_or(0, |s| s.expires);
            self.records.push((revision, state.index, ChangeRecord { time: self.now, key: write.key.clone(), prior }));
            match self.states.get_mut(&write.key) {
                Some((_, present)) => *present = state,
                None => drop(self.states.insert(write.key, (expired_before, state))),
            }
        }
        if changes.is_empty() {
            return Ok(self.revision);
        }
        self.revision = revision;
        self.commits.push(Arc::new(Changes { revision, changes }));
        Ok(revision)
    }
}

/// The size of a batch, if it is one that can be written at all.
pub fn check_batch(batch: &[Write], key_bytes_max: usize, value_bytes_max: usize) -> Result<usize> {
    let mut size = 0;
    let mut keys = HashSet::with_capacity(batch.len());
    for write in batch {
        let too_large = |size, max| Err(Error::TooLarge { key: write.key.clone(), size, max });
        if write.key.len() > key_bytes_max {
            return too_large(write.key.len(), key_bytes_max);
        }
        size += write.key.len() + 100;
        if let Op::Put { value, .. } = &write.op {
            if value.len() > value_bytes_max {
                return too_large(value.len(), value_bytes_max);
            }
            size += value.len();
        }
        if !keys.insert(&write.key) {
            let source = format!("the batch names {} twice", write.key).into();
            return Err(Error::Unavailable { operation: "commit", source });
        }
    }
    Ok(size)
}
