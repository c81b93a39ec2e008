//! The etcd backend: transactions and watches of etcd's v3 API (upstream: `apiserver/pkg/storage/etcd3`). Keys are stored
//! as they are, so that under `/registry/…` an upstream API server finds what it expects. Revisions are etcd's own.

mod connection;
mod watch;
mod wire;

#[cfg(test)]
pub(crate) mod tests;

use crate::moved::Marker;
use crate::{Changes, Entry, Error, Expect, ListOptions, Op, Page, Result, Revision, Storage, Write};
use async_trait::async_trait;
use bytes::Bytes;
pub use connection::Access;
use connection::Calls;
pub(crate) use connection::never_sent;
use futures::stream::BoxStream;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Code;
use wire::*;

/// What etcd takes in a request unless it is told otherwise, less some room for what comes with the value.
pub const VALUE_BYTES_MAX: usize = (3 << 19) - (16 << 10);
const KEY_BYTES_MAX: usize = 8 << 10;
/// A long list is read in pages of this many, all at one revision.
const PAGE: i64 = 10_000;
/// So many keys share a lease at most, as upstream has it.
const LEASE_KEYS_MAX: usize = 1_000;
/// The key by which API servers agree on who compacts, as upstream has it.
const COMPACT_KEY: &str = "compact_rev_key";

#[derive(Clone, Debug)]
pub struct Options {
    /// The interval between compactions, and so how long old revisions can be read at least; zero leaves the compaction
    /// to others.
    pub keep_history: Duration,
    pub value_bytes_max: usize,
    pub access: Access,
    /// What all keys begin with: nothing else is read, so that a user of etcd needs no more rights.
    pub root: String,
    /// How long one lease is given to new keys (`--lease-reuse-duration-seconds`).
    pub lease_reuse: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            keep_history: Duration::from_secs(300),
            value_bytes_max: VALUE_BYTES_MAX,
            access: Access::default(),
            root: "/registry/".to_owned(),
            lease_reuse: Duration::from_secs(60),
        }
    }
}

pub struct Etcd {
    calls: Calls,
    options: Options,
    leases: tokio::sync::Mutex<HashMap<i64, Lease>>,
    /// Whether etcd can be asked how far a watch has come.
    tells_progress: bool,
    /// Counted up to have all readers of changes ask how far they have seen.
    progress: tokio::sync::watch::Sender<u64>,
    compactor: tokio::task::JoinHandle<()>,
}

/// A lease is shared by the keys of some time: one for each event would burden etcd.
struct Lease {
    id: i64,
    granted: Instant,
    keys: usize,
}

impl Etcd {
    /// `endpoints` are URLs like `http://127.0.0.1:2379`.
    pub async fn open(endpoints: &[String], options: Options) -> Result<Etcd> {
        let calls = Calls::new(endpoints, &options.access, &options.root)?;
        calls.revision("open").await?;
        let tells_progress = calls.tells_progress().await;
        if !tells_progress {
            tracing::info!(
                "etcd is older than 3.4.31 or 3.5.13: the progress of watches is found out by writing marks"
            );
        }
        let compactor = tokio::spawn(compact_now_and_then(calls.clone(), options.keep_history));
        let (progress, _) = tokio::sync::watch::channel(0);
        Ok(Etcd { calls, options, leases: Default::default(), tells_progress, progress, compactor })
    }

    async fn lease(&self, ttl: Duration) -> Result<i64> {
        let seconds = ttl.as_millis().div_ceil(1_000).max(1) as i64;
        // A key may live this much longer than asked for: a twentieth at most.
        let reuse = |seconds: i64| (seconds / 20).min(self.options.lease_reuse.as_secs() as i64);
        let mut leases = self.leases.lock().await;
        leases.retain(|seconds, lease| {
            let fresh = lease.granted.elapsed() < Duration::from_secs(reuse(*seconds) as u64);
            let kept = fresh && lease.keys < LEASE_KEYS_MAX;
            if !kept {
                crate::metrics::LEASE_OBJECTS.observe(&[], lease.keys as f64);
            }
            kept
        });
        if let Some(lease) = leases.get_mut(&seconds) {
            lease.keys += 1;
            return Ok(lease.id);
        }
        let granted = Instant::now();
        let request = LeaseGrantRequest { ttl: seconds + reuse(seconds) };
        let response: LeaseGrantResponse = self.calls.call("commit", "/etcdserverpb.Lease/LeaseGrant", request).await?;
        leases.insert(seconds, Lease { id: response.id, granted, keys: 1 });
        Ok(response.id)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.compactor.abort();
    }
}

/// Of all API servers that share an etcd, the one that first changes the key after each interval compacts to where the
/// store was an interval ago.
async fn compact_now_and_then(calls: Calls, interval: Duration) {
    let (mut version, mut before) = (0, Revision(0));
    while !interval.is_zero() {
        tokio::time::sleep(interval).await;
        match compact_once(&calls, version, before).await {
            Ok(next) => (version, before) = next,
            Err(error) => tracing::warn!(%error, "etcd was not compacted; trying again later"),
        }
    }
}

async fn compact_once(calls: &Calls, version: i64, before: Revision) -> Result<(i64, Revision)> {
    let key = Bytes::from_static(COMPACT_KEY.as_bytes());
    let compare = Compare { target: Target::Version as i32, key: key.clone(), equals: Some(Equals::Version(version)) };
    let put = PutRequest { key: key.clone(), value: before.0.to_string().into(), lease: 0 };
    let range = RangeRequest { key, ..Default::default() };
    let request = TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(Request::Put(put)) }],
        failure: vec![RequestOp { request: Some(Request::Range(range)) }],
    };
    let response: TxnResponse = calls.call("compact", "/etcdserverpb.KV/Txn", request).await?;
    let now = revision(&response.header);
    if !response.succeeded {
        let seen = ranges(&response).next().and_then(|r| r.kvs.first()).map_or(0, |kv| kv.version);
        return Ok((seen, now));
    }
    if before > Revision(0) {
        calls.compact(before).await?;
    }
    Ok((version + 1, now))
}

#[async_trait]
impl Storage for Etcd {
    async fn commit(&self, batch: Vec<Write>) -> Result<Revision> {
        crate::group::check_batch(&batch, KEY_BYTES_MAX, self.options.value_bytes_max)?;
        let mut request = TxnRequest::default();
        // The marker of a move is looked at in every transaction, so that it stops all servers at once.
        let marker = self.marker_key();
        let about_marker = Marker::concerns(&batch, &marker);
        if !about_marker {
            let key = Bytes::from(marker.clone().into_bytes());
            let equals = Some(Equals::ModRevision(0));
            request.compare.push(Compare { target: Target::Mod as i32, key: key.clone(), equals });
            request
                .failure
                .push(RequestOp { request: Some(Request::Range(RangeRequest { key, ..Default::default() })) });
        }
        for write in &batch {
            let key = Bytes::copy_from_slice(write.key.as_bytes());
            let expected = match write.expect {
                Expect::Absent => Some(0),
                Expect::At(revision) => Some(revision.0 as i64),
                Expect::Any => None,
            };
            if let Some(revision) = expected {
                let equals = Some(Equals::ModRevision(revision));
                request.compare.push(Compare { target: Target::Mod as i32, key: key.clone(), equals });
                let range = RangeRequest { key: key.clone(), ..Default::default() };
                request.failure.push(RequestOp { request: Some(Request::Range(range)) });
            }
            let operation = match &write.op {
                Op::Put { value, ttl } => {
                    let lease = match ttl {
                        Some(ttl) => self.lease(*ttl).await?,
                        None => 0,
                    };
                    Request::Put(PutRequest { key, value: value.clone(), lease })
                }
                Op::Delete => Request::DeleteRange(DeleteRangeRequest { key }),
            };
            request.success.push(RequestOp { request: Some(operation) });
        }
        let response: TxnResponse = self.calls.call("commit", "/etcdserverpb.KV/Txn", request).await?;
        if response.succeeded {
            return Ok(revision(&response.header));
        }
        // The first key that is not as it was expected to be.
        let expecting = batch.iter().filter(|w| w.expect != Expect::Any);
        let mut read = ranges(&response);
        if !about_marker && let Some(kv) = read.next().and_then(|range| range.kvs.first()) {
            return Err(Error::Moved(Marker::decode(&kv.value)?));
        }
        for (write, range) in expecting.zip(read) {
            let current = range.kvs.first().map(entry).transpose()?;
            let holds = match write.expect {
                Expect::Absent => current.is_none(),
                Expect::At(revision) => current.as_ref().is_some_and(|e| e.modified == revision),
                Expect::Any => true,
            };
            if !holds {
                return Err(Error::Conflict { key: write.key.clone(), current });
            }
        }
        Err(unavailable("commit", "etcd refused a transaction whose conditions hold"))
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<Entry>, Revision)> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let request = RangeRequest { key, revision: at.map_or(0, at_least_1), ..Default::default() };
        let response = self.calls.range("get", request).await?;
        Ok((response.kvs.first().map(entry).transpose()?, revision(&response.header)))
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        let mut from: Arc<str> = options.from.filter(|from| **from > *prefix).unwrap_or_else(|| prefix.into());
        let (first, end) = range_of(prefix);
        let mut page = Page {
            entries: Vec::new(),
            revision: options.at.map_or(Revision(0), |at| Revision(at_least_1(at) as u64)),
            next: None,
        };
        loop {
            let left = options.limit.map(|limit| (limit.max(1) - page.entries.len()) as i64);
            let key = if from.is_empty() { first.clone() } else { Bytes::copy_from_slice(from.as_bytes()) };
            if !end.is_empty() && end != b"\0"[..] && key >= end {
                page.revision = if page.revision.0 == 0 { self.calls.revision("list").await? } else { page.revision };
                return Ok(page);
            }
            let request = RangeRequest {
                key,
                range_end: end.clone(),
                limit: left.unwrap_or(PAGE).min(PAGE),
                revision: page.revision.0 as i64,
                count_only: false,
            };
            let response = self.calls.range("list", request).await?;
            // The pages after the first are read where the first was.
            if page.revision.0 == 0 {
                page.revision = revision(&response.header);
            }
            for kv in &response.kvs {
                page.entries.push(entry(kv)?);
            }
            let Some(last) = page.entries.last().filter(|_| response.more) else { return Ok(page) };
            from = format!("{}\0", last.key).into();
            if options.limit.is_some_and(|limit| page.entries.len() >= limit) {
                page.next = Some(from);
                return Ok(page);
            }
        }
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<BoxStream<'static, Result<Changes>>> {
        self.calls.probe("changes", at_least_1(after)).await?;
        watch::changes(self.calls.clone(), prefix, after, self.tells_progress, self.progress.subscribe()).await
    }

    async fn request_progress(&self) -> Result<()> {
        self.progress.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.calls.compact(revision).await
    }

    async fn current_revision(&self) -> Result<Revision> {
        self.calls.revision("read").await
    }

    async fn size(&self) -> Result<Option<u64>> {
        self.calls.size().await.map(Some)
    }

    fn root(&self) -> &str {
        &self.options.root
    }

    fn marker_key(&self) -> String {
        format!("{}coxswain/moved", self.options.root)
    }

    /// All keys that expire: etcd does not tell when they were written.
    async fn expiring(&self, _after: Revision) -> Result<Vec<(Arc<str>, u64)>> {
        const LEASES: &str = "/etcdserverpb.Lease/LeaseLeases";
        const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
        let all: LeaseLeasesResponse = self.calls.call("list", LEASES, LeaseLeasesRequest {}).await?;
        let mut found = Vec::new();
        for lease in all.leases {
            let request = LeaseTimeToLiveRequest { id: lease.id, keys: true };
            let lease: LeaseTimeToLiveResponse = self.calls.call("list", TIME_TO_LIVE, request).await?;
            let expires = crate::moved::now_ms() + lease.ttl.max(0) as u64 * 1_000;
            let keys = lease.keys.iter().filter_map(|key| std::str::from_utf8(key).ok());
            found.extend(keys.filter(|k| k.starts_with(&self.options.root)).map(|k| (k.into(), expires)));
        }
        Ok(found)
    }
}

/// The first key of a prefix and the first after it, as etcd writes ranges; a zero byte stands for all keys.
fn range_of(prefix: &str) -> (Bytes, Bytes) {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return (Bytes::copy_from_slice(prefix.as_bytes()), end.into());
        }
    }
    (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"))
}

/// Etcd is at revision 1 when nothing was written yet, and takes 0 for the present.
fn at_least_1(at: Revision) -> i64 {
    at.0.max(1) as i64
}

fn ranges(response: &TxnResponse) -> impl Iterator<Item = &RangeResponse> {
    response.responses.iter().filter_map(|op| op.response.as_ref().map(|Response::Range(range)| range))
}

fn revision(header: &Option<Header>) -> Revision {
    Revision(header.as_ref().map_or(0, |h| h.revision as u64))
}

fn entry(kv: &KeyValue) -> Result<Entry> {
    let key = std::str::from_utf8(&kv.key).map_err(|_| Error::Corrupt {
        place: format!("etcd, key {}", String::from_utf8_lossy(&kv.key)),
        what: "the key is not UTF-8".to_owned(),
    })?;
    Ok(Entry {
        key: key.into(),
        value: kv.value.clone(),
        created: Revision(kv.create_revision as u64),
        modified: Revision(kv.mod_revision as u64),
    })
}

fn failed(operation: &'static str, status: tonic::Status) -> Error {
    if status.code() == Code::ResourceExhausted && status.message().contains("space exceeded") {
        return Error::NoSpace(status.message().to_owned());
    }
    unavailable(operation, format!("{:?}: {}", status.code(), status.message()))
}

fn is(source: &dyn std::fmt::Display, what: &str) -> bool {
    source.to_string().contains(what)
}

fn unavailable(operation: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Unavailable { operation, source: source.into() }
}
