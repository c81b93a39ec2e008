//! Watching: one stream of etcd for each reader of changes, begun again where it was when it is lost.

use super::wire::*;
use super::{Calls, entry, failed, range_of, revision, unavailable};
use crate::{Change, Changes, Error, Result, Revision};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tonic::Streaming;

/// How often etcd is asked how far a silent stream has come.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
const RECONNECTS_MAX: u32 = 50;

struct Watch {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Calls {
    async fn watch(&self, prefix: &str, start: Revision) -> Result<Watch> {
        let (requests, receiver) = mpsc::channel(4);
        let (key, range_end) = range_of(prefix);
        let create = WatchCreateRequest { key, range_end, start_revision: start.0 as i64, prev_kv: true };
        let failure = |_| unavailable("changes", "the stream was closed");
        requests.send(WatchRequest { action: Some(WatchAction::Create(create)) }).await.map_err(failure)?;
        let receiver = stream::unfold(receiver, |mut r| async move { Some((r.recv().await?, r)) });
        let responses = self.stream("changes", "/etcdserverpb.Watch/Watch", receiver).await?;
        Ok(Watch { requests, responses })
    }
}

/// The oldest revision that can be read, which etcd tells only to a watch that begins too early.
pub async fn oldest(calls: &Calls) -> Result<Revision> {
    let probe = String::from_utf8_lossy(calls.probe_key()).into_owned();
    let mut watch = calls.watch(&probe, Revision(1)).await?;
    while let Some(response) = watch.responses.message().await.map_err(|s| failed("read", s))? {
        if response.compact_revision > 0 {
            return Ok(Revision(response.compact_revision as u64));
        }
        if !response.created {
            break;
        }
    }
    Ok(Revision(0))
}

struct Reader {
    calls: Calls,
    prefix: String,
    /// What is watched: the prefix, or more, so that marks are seen.
    watched: String,
    tells_progress: bool,
    watch: Option<Watch>,
    progress: watch::Receiver<u64>,
    seen: Revision,
    ready: VecDeque<Changes>,
    failed: bool,
}

pub async fn changes(
    calls: Calls,
    prefix: &str,
    after: Revision,
    tells_progress: bool,
    progress: watch::Receiver<u64>,
) -> Result<BoxStream<'static, Result<Changes>>> {
    let watched = match calls.root() {
        _ if tells_progress => prefix,
        root if root.starts_with(prefix) => prefix,
        root if prefix.starts_with(root) => root,
        _ => "",
    };
    let watched = watched.to_owned();
    let watch = Some(calls.watch(&watched, Revision(after.0 + 1)).await?);
    let reader = Reader {
        calls,
        prefix: prefix.to_owned(),
        watched,
        tells_progress,
        watch,
        progress,
        seen: after,
        ready: VecDeque::new(),
        failed: false,
    };
    Ok(stream::unfold(reader, |mut reader| async move { Some((reader.next().await?, reader)) }).boxed())
}

impl Reader {
    /// None only after an error.
    async fn next(&mut self) -> Option<Result<Changes>> {
        let mut reconnects = 0;
        while self.ready.is_empty() {
            if self.failed {
                return None;
            }
            let error = match self.step().await {
                Ok(()) => continue,
                Err(error) => error,
            };
            self.watch = None;
            reconnects += 1;
            if !matches!(error, Error::Unavailable { .. }) || reconnects > RECONNECTS_MAX {
                self.failed = true;
                return Some(Err(error));
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
        self.ready.pop_front().map(Ok)
    }

    /// Has etcd tell how far the watch has come, or sees to it that it is told with the next mark.
    async fn ask(&mut self) -> Result<()> {
        if !self.tells_progress {
            let behind = self.calls.revision("changes").await? > self.seen;
            return if behind { self.calls.mark().await } else { Ok(()) };
        }
        let Some(watch) = &self.watch else { return Ok(()) };
        let request = WatchRequest { action: Some(WatchAction::Progress(WatchProgressRequest {})) };
        watch.requests.send(request).await.map_err(|_| unavailable("changes", "the stream was closed"))
    }

    async fn step(&mut self) -> Result<()> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            None => self.watch.insert(self.calls.watch(&self.watched, Revision(self.seen.0 + 1)).await?),
        };
        let response = tokio::select! {
            response = watch.responses.message() => match response {
                Ok(response) => response,
                Err(status) => {
                    self.calls.lost(&status).await;
                    return Err(failed("changes", status));
                }
            },
            _ = tokio::time::sleep(PROGRESS_PAUSE) => return self.ask().await,
            Ok(()) = self.progress.changed() => return self.ask().await,
        };
        let Some(response) = response else { return Err(unavailable("changes", "etcd ended the stream")) };
        if response.compact_revision > 0 {
            let oldest = Revision(response.compact_revision as u64);
            return Err(Error::Compacted { asked: self.seen, oldest });
        }
        if response.canceled {
            return Err(unavailable("changes", response.cancel_reason));
        }
        if response.created {
            return Ok(());
        }
        if response.events.is_empty() {
            let reached = revision(&response.header);
            if self.tells_progress && reached > self.seen {
                self.seen = reached;
                self.ready.push_back(Changes { revision: reached, changes: Vec::new() });
            }
            return Ok(());
        }
        for event in response.events {
            let change = change(event)?;
            // A mark, or what is watched for their sake alone, only says how far we are.
            let counts = change.key.starts_with(&self.prefix) && change.key.as_bytes() != self.calls.mark_key();
            if !counts {
                match self.ready.back_mut().filter(|c| c.changes.is_empty() || c.revision == change.revision) {
                    Some(last) => last.revision = change.revision,
                    None => self.ready.push_back(Changes { revision: change.revision, changes: Vec::new() }),
                }
                continue;
            }
            // A response may hold several commits, but never a part of one.
            match self.ready.back_mut().filter(|c| c.revision == change.revision) {
                Some(commit) => commit.changes.push(change),
                None => self.ready.push_back(Changes { revision: change.revision, changes: vec![change] }),
            }
        }
        self.seen = self.ready.back().map_or(self.seen, |c| c.revision);
        Ok(())
    }
}

fn change(event: Event) -> Result<Change> {
    let missing = || Error::Corrupt { place: "a watch of etcd".to_owned(), what: "an event without a key".to_owned() };
    let kv = event.kv.ok_or_else(missing)?;
    let now =
        entry(&KeyValue { value: if event.kind == EventType::Put as i32 { kv.value } else { Bytes::new() }, ..kv })?;
    Ok(Change {
        revision: now.modified,
        key: now.key.clone(),
        previous: event.prev_kv.as_ref().map(entry).transpose()?,
        value: (event.kind == EventType::Put as i32).then_some(now),
    })
}
