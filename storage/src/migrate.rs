//! Moving a cluster's data from one store to another while it is in use (no other control plane has it).
//!
//! The entries are copied as of one revision, what happens meanwhile is replayed, and the two are compared by checksum.
//! When the target is close behind, a commit in the source marks it as moving: from there on the source refuses writes
//! whoever they come from. The last changes are replayed and compared, and a second mark names the target: that is the
//! moment of the move. Servers that use the source follow it there (see [`crate::switch`]). If anything fails before, the
//! mark is taken away and all goes on as it was.
//!
//! Revisions go on unchanged where the target keeps them. Where it gives them itself (etcd) it is brought behind the
//! source's revision first, so that they only rise, and its history is compacted, so that clients list again.

#[cfg(test)]
mod tests;

use crate::moved::{self, Marker};
use crate::transfer::{Checksum, Filling, PAGE, each_page};
use crate::{Changes, Entry, Error, Expect, Result, Revision, Storage};
use futures::stream::{BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The target is followed up until a look at the source finds it less than this far behind.
const CLOSE: Duration = Duration::from_millis(100);
/// After so many looks the source is stopped anyway if it is not far ahead; it may be written to faster than we are.
const LOOKS_MAX: usize = 200;
const FAR: u64 = 20_000;
/// How long writes may be refused before the move is given up.
const FENCE_MAX: Duration = Duration::from_secs(5);
/// Revisions that a source may use up by itself between the last look and the moment when all servers have left it: leases
/// of etcd that end, marks of progress.
const SLACK: u64 = 256;
/// Revisions that a target which gives them itself is ahead of the source before that is stopped.
const LEAD: u64 = 5_000;
const CHUNK_CHANGES: usize = 1_000;

/// How far a move has come, for whoever watches it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    pub step: String,
    pub entries: u64,
}

/// What was moved.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub entries: u64,
    pub bytes: u64,
    pub sha256: String,
    /// The revision at which the checksum was taken.
    pub compared_at: u64,
    /// The source's last revision, and where the target goes on from.
    pub source_revision: u64,
    pub target_revision: u64,
    pub seconds: f64,
    /// For how long the source refused writes before the target was named.
    pub refused_seconds: f64,
}

pub async fn migrate(
    source: &dyn Storage,
    target: Arc<dyn Storage>,
    to: &str,
    tell: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Report> {
    let begun = Instant::now();
    if let Some((marker, _)) = moved::read(source).await? {
        return Err(Error::Moved(marker));
    }
    let target = Filling::new(target).await?;
    if target.store.root() != source.root() && !target.store.root().is_empty() && !source.root().is_empty() {
        return Err(refused("the keys of source and target begin differently"));
    }
    let told = |step: &str, entries| tell(Progress { step: step.to_owned(), entries });

    let start = source.current_revision().await?;
    let mut copied = 0;
    told("copying", 0);
    copy(source, &target, start, |entries| {
        copied += entries;
        told("copying", copied);
    })
    .await?;
    let stream = source.changes(source.root(), start).await?;
    let mut follower = Follower { stream, seen: start, replayed: start, marker: source.marker_key() };
    told("following", copied);
    follower.catch_up(source, &target, None).await?;

    told("comparing", copied);
    let compared_at = follower.replayed;
    let at = target.keeps_revisions.then_some(compared_at);
    let (ours, theirs) = futures::try_join!(
        Checksum::of(source, Some(compared_at), target.keeps_revisions),
        Checksum::of(&*target.store, at, target.keeps_revisions),
    )?;
    let (entries, bytes) = (ours.entries, ours.bytes);
    let (ours, others, theirs) = (ours.hex(), theirs.entries, theirs.hex());
    if ours != theirs {
        let what = format!("{entries} entries with checksum {ours} became {others} with {theirs}");
        return Err(Error::Corrupt { place: "the target".to_owned(), what });
    }
    told("following", entries);
    let mut touched = BTreeMap::new();
    follower.catch_up(source, &target, Some(&mut touched)).await?;
    compare(&target, std::mem::take(&mut touched)).await?;
    follower.catch_up(source, &target, Some(&mut touched)).await?;
    // What expires is told to a target that keeps revisions when it has the last one; the other may know before.
    let mut expiring_after = Revision(0);
    if !target.keeps_revisions {
        expiring_after = follower.seen;
        target.expire(source.expiring(Revision(0)).await?).await?;
        told("raising the target's revision", entries);
        target.advance(Revision(follower.seen.0 + LEAD)).await?;
        follower.catch_up(source, &target, Some(&mut touched)).await?;
    }

    told("switching", entries);
    let fenced = Instant::now();
    let marker = Marker {
        to: None,
        patience_ms: 2 * FENCE_MAX.as_millis() as u64,
        time: moved::now_ms(),
        revision: follower.seen.0,
    };
    let fence = moved::write(source, &marker, Expect::Absent).await?;
    let last = finish(source, &target, follower, touched, fence, to, expiring_after);
    let last = tokio::time::timeout(FENCE_MAX, last)
        .await
        .unwrap_or_else(|_| Err(refused("the last changes took too long; nothing has moved")));
    match last {
        Ok((source_revision, target_revision)) => Ok(Report {
            entries,
            bytes,
            sha256: ours,
            compared_at: compared_at.0,
            source_revision: source_revision.0,
            target_revision: target_revision.0,
            seconds: begun.elapsed().as_secs_f64(),
            refused_seconds: fenced.elapsed().as_secs_f64(),
        }),
        Err(error) => {
            // Should this fail too, the marker loses its force by itself after a while. If the target was named after
            // all, it is not the marker that we wrote, and stays.
            if let Err(also) = moved::remove(source, Expect::At(fence)).await {
                tracing::warn!(error = %also, "the mark of the move could not be taken away");
            }
            Err(error)
        }
    }
}

/// What is done while the source refuses writes.
async fn finish(
    source: &dyn Storage,
    target: &Filling,
    mut follower: Follower,
    mut touched: BTreeMap<Arc<str>, Option<Entry>>,
    fence: Revision,
    to: &str,
    expiring_after: Revision,
) -> Result<(Revision, Revision)> {
    // The mark itself comes last.
    while follower.replayed < fence {
        follower.step(source, target, Some(&mut touched)).await?;
    }
    compare(target, touched).await?;
    target.expire(source.expiring(expiring_after).await?).await?;
    let slack = if source.keeps_revisions() { 1 } else { SLACK };
    let mut reached = target.advance(Revision(fence.0 + slack)).await?;
    target.forget_history().await?;
    let marker = Marker { to: Some(to.to_owned()), patience_ms: 0, time: moved::now_ms(), revision: reached.0 };
    let named = moved::write(source, &marker, Expect::At(fence)).await?;
    if named > reached {
        reached = target.advance(named).await?;
    }
    Ok((named, reached))
}

async fn copy(source: &dyn Storage, target: &Filling, at: Revision, mut told: impl FnMut(u64)) -> Result<()> {
    each_page(source, Some(at), |entries| {
        told(entries.len() as u64);
        target.load(entries, at)
    })
    .await?;
    // An empty source has a revision all the same.
    if target.keeps_revisions { target.advance(at).await.map(drop) } else { Ok(()) }
}

/// Brings what happens in the source to the target.
struct Follower {
    stream: BoxStream<'static, Result<Changes>>,
    /// How far the source has told of its changes.
    seen: Revision,
    /// The last change that the target has. A mark of progress does not count: etcd before 3.4.25 and 3.5.8 may send one
    /// before the changes that it speaks of.
    replayed: Revision,
    marker: String,
}

impl Follower {
    /// Until the source is only a moment ahead.
    async fn catch_up(
        &mut self,
        source: &dyn Storage,
        target: &Filling,
        mut touched: Option<&mut BTreeMap<Arc<str>, Option<Entry>>>,
    ) -> Result<()> {
        for _ in 0..LOOKS_MAX {
            let now = source.current_revision().await?;
            let begun = Instant::now();
            while self.seen < now {
                self.step(source, target, touched.as_deref_mut()).await?;
            }
            if begun.elapsed() < CLOSE {
                return Ok(());
            }
        }
        let behind = source.current_revision().await?.0.saturating_sub(self.seen.0);
        if behind < FAR {
            return Ok(());
        }
        Err(refused(&format!("the source is written to faster than the target takes it: {behind} revisions behind")))
    }

    async fn step(
        &mut self,
        source: &dyn Storage,
        target: &Filling,
        touched: Option<&mut BTreeMap<Arc<str>, Option<Entry>>>,
    ) -> Result<()> {
        source.request_progress().await?;
        let ended = || refused("the source's changes ended");
        let first = tokio::time::timeout(Duration::from_secs(10), self.stream.next()).await;
        let first = first.map_err(|_| refused("the source does not tell of its changes"))?.ok_or_else(ended)??;
        let mut commits = vec![first];
        let mut count = commits[0].changes.len();
        while count < CHUNK_CHANGES {
            // What is there already is taken along.
            let Some(next) = futures::FutureExt::now_or_never(self.stream.next()) else { break };
            let next = next.ok_or_else(ended)??;
            count += next.changes.len();
            commits.push(next);
        }
        self.seen = commits.iter().map(|c| c.revision).max().map_or(self.seen, |reached| reached.max(self.seen));
        commits.retain(|commit| !commit.changes.is_empty());
        let Some(last) = commits.last().map(|commit| commit.revision) else { return Ok(()) };
        for commit in &mut commits {
            commit.changes.retain(|change| *change.key != *self.marker);
        }
        if let Some(touched) = touched {
            let changes = commits.iter().flat_map(|c| &c.changes);
            touched.extend(changes.map(|change| (change.key.clone(), change.value.clone())));
        }
        target.replay(commits, last).await?;
        self.replayed = last;
        Ok(())
    }
}

/// Whether the target has of each key what the source had last.
async fn compare(target: &Filling, keys: BTreeMap<Arc<str>, Option<Entry>>) -> Result<()> {
    let keeps_revisions = target.keeps_revisions;
    let mut found = futures::stream::iter(keys)
        .map(|(key, expected)| async move {
            let (entry, _) = target.store.get(&key, None).await?;
            let same = match (&entry, &expected) {
                (Some(a), Some(b)) => a.value == b.value && (!keeps_revisions || a == b),
                (a, b) => a.is_none() && b.is_none(),
            };
            if same {
                return Ok(());
            }
            let what = format!("{key} is not what it was in the source");
            Err(Error::Corrupt { place: "the target".to_owned(), what })
        })
        .buffer_unordered(PAGE / 8);
    while let Some(result) = found.next().await {
        result?;
    }
    Ok(())
}

fn refused(what: &str) -> Error {
    Error::Unavailable { operation: "migrate", source: what.to_owned().into() }
}
