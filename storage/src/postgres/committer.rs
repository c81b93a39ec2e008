//! The task that writes for this server. It takes all commits that wait and makes them one transaction, which begins by
//! locking the one row of `head`: so groups of several servers follow each other, and revisions have neither gaps nor any
//! order but that of the transactions.

use super::Shared;
use super::connection::{Session, error};
use crate::group::{Group, State};
use crate::{Error, Result, Revision, Write};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

pub const GROUP_COMMITS: usize = 512;

pub struct Pending {
    pub batch: Vec<Write>,
    pub answer: oneshot::Sender<Result<Revision>>,
    /// The bytes that this commit occupies in the queue.
    pub room: OwnedSemaphorePermit,
}

const LOCK: &str = "SELECT revision, (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM head FOR UPDATE";
const LOAD: &str = "SELECT key, created, modified, index, expires, value FROM current WHERE key = ANY($1)";
const PUT: &str = "INSERT INTO current (key, created, modified, index, expires, value)
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::integer[], $5::bigint[], $6::bytea[])
    ON CONFLICT (key) DO UPDATE SET created = excluded.created, modified = excluded.modified, index = excluded.index,
        expires = excluded.expires, value = excluded.value";
const DELETE: &str = "DELETE FROM current WHERE key = ANY($1)";
const RECORD: &str = "INSERT INTO history (revision, index, time, key, prior_created, prior_modified, prior_value)
    SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bytea[])";
const ADVANCE: &str = "UPDATE head SET revision = $1";
const NOTIFY: &str = "SELECT pg_notify($1, '')";

pub async fn run(shared: Arc<Shared>, mut queue: mpsc::Receiver<Pending>) {
    let mut client: Option<Session> = None;
    let mut group = Vec::with_capacity(GROUP_COMMITS);
    while queue.recv_many(&mut group, GROUP_COMMITS).await > 0 {
        let mut answers = Vec::with_capacity(group.len());
        let mut batches = Vec::with_capacity(group.len());
        let mut rooms = Vec::with_capacity(group.len());
        for Pending { batch, answer, room } in group.drain(..) {
            answers.push(answer);
            batches.push(batch);
            rooms.push(room);
        }
        let count = batches.len();
        let results = match commit_group(&shared, &mut client, batches).await {
            Ok(results) => results,
            Err(error) => {
                // Whatever state the connection is in, a new one has none, and the database gives up the transaction.
                client = None;
                (0..count).map(|_| Err(copy(&error))).collect()
            }
        };
        drop(rooms);
        for (answer, result) in answers.into_iter().zip(results) {
            // Whoever asked may have gone; the commit stands.
            let _ = answer.send(result);
        }
    }
}

async fn commit_group(
    shared: &Arc<Shared>,
    slot: &mut Option<Session>,
    batches: Vec<Vec<Write>>,
) -> Result<Vec<Result<Revision>>> {
    let client = match slot.take().filter(|c| !c.is_closed()) {
        Some(client) => slot.insert(client),
        None => slot.insert(shared.connections.connect().await?),
    };
    let failed = |e| error("commit", e);
    let mut statements = Vec::new();
    for sql in [LOCK, LOAD, PUT, DELETE, RECORD, ADVANCE, NOTIFY] {
        statements.push(client.prepared(sql).await.map_err(failed)?);
    }
    let [lock, load, put, delete, record, advance, notify] = &statements[..] else { return Ok(Vec::new()) };

    // Sent together: the database does one after the other, so the states are read under the lock.
    let keys: Vec<&str> = batches.iter().flatten().map(|write| &*write.key).collect();
    let keys: [&(dyn ToSql + Sync); 1] = [&keys];
    let (begun, head, states) =
        futures::join!(client.batch_execute("BEGIN"), client.query_one(lock, &[]), client.query(load, &keys));
    begun.map_err(failed)?;
    let head = head.map_err(failed)?;
    let states: HashMap<Arc<str>, State> = states.map_err(failed)?.iter().map(state).collect();

    let load = |key: &str| Ok(states.get(key).cloned());
    let mut group = Group::new(&load, super::reads::revision(head.get(0)), head.get::<_, i64>(1) as u64);
    let results: Vec<Result<Revision>> = batches.into_iter().map(|batch| group.apply(batch)).collect();
    if group.commits.is_empty() {
        client.batch_execute("ROLLBACK").await.map_err(failed)?;
        return Ok(results);
    }

    let rows = Rows::of(&group);
    let revision = group.revision.0 as i64;
    let put_values: [&(dyn ToSql + Sync); 6] =
        [&rows.keys, &rows.created, &rows.modified, &rows.index, &rows.expires, &rows.values];
    let record_values: [&(dyn ToSql + Sync); 7] = [
        &rows.revisions,
        &rows.indexes,
        &rows.times,
        &rows.changed,
        &rows.prior_created,
        &rows.prior_modified,
        &rows.prior_values,
    ];
    let (delete_values, advance_values, notify_values): ([&(dyn ToSql + Sync); 1], [_; 1], [_; 1]) =
        ([&rows.deleted], [&revision as &(dyn ToSql + Sync)], [&shared.schema as &(dyn ToSql + Sync)]);
    let done = futures::join!(
        client.execute(put, &put_values),
        client.execute(delete, &delete_values),
        client.execute(record, &record_values),
        client.execute(advance, &advance_values),
        client.execute(notify, &notify_values),
        client.batch_execute("COMMIT"),
    );
    for result in [done.0, done.1, done.2, done.3, done.4] {
        result.map_err(failed)?;
    }
    done.5.map_err(failed)?;
    let commits = std::mem::take(&mut group.commits);
    shared.publish_own(commits);
    Ok(results)
}

fn state(row: &Row) -> (Arc<str>, State) {
    let state = State {
        created: super::reads::revision(row.get(1)),
        modified: super::reads::revision(row.get(2)),
        index: row.get::<_, i32>(3) as u32,
        expires: row.get::<_, i64>(4) as u64,
        value: Some(Bytes::copy_from_slice(row.get(5))),
    };
    (row.get::<_, &str>(0).into(), state)
}

/// What a group writes, by columns.
#[derive(Default)]
struct Rows<'a> {
    keys: Vec<&'a str>,
    created: Vec<i64>,
    modified: Vec<i64>,
    index: Vec<i32>,
    expires: Vec<i64>,
    values: Vec<&'a [u8]>,
    deleted: Vec<&'a str>,
    revisions: Vec<i64>,
    indexes: Vec<i32>,
    times: Vec<i64>,
    changed: Vec<&'a str>,
    prior_created: Vec<Option<i64>>,
    prior_modified: Vec<Option<i64>>,
    prior_values: Vec<Option<&'a [u8]>>,
}

impl<'a> Rows<'a> {
    fn of(group: &'a Group<'_>) -> Rows<'a> {
        let mut rows = Rows::default();
        for (key, (_, state)) in &group.states {
            let Some(value) = &state.value else {
                rows.deleted.push(key);
                continue;
            };
            rows.keys.push(key);
            rows.created.push(state.created.0 as i64);
            rows.modified.push(state.modified.0 as i64);
            rows.index.push(state.index as i32);
            rows.expires.push(state.expires as i64);
            rows.values.push(value);
        }
        for (revision, index, record) in &group.records {
            let prior = record.prior.as_ref().filter(|p| p.value.is_some());
            rows.revisions.push(revision.0 as i64);
            rows.indexes.push(*index as i32);
            rows.times.push(record.time as i64);
            rows.changed.push(&record.key);
            rows.prior_created.push(prior.map(|p| p.created.0 as i64));
            rows.prior_modified.push(prior.map(|p| p.modified.0 as i64));
            rows.prior_values.push(prior.and_then(|p| p.value.as_deref()));
        }
        rows
    }
}

/// The same failure for every commit of a group.
fn copy(error: &Error) -> Error {
    match error {
        Error::NoSpace(what) => Error::NoSpace(what.clone()),
        Error::Corrupt { place, what } => Error::Corrupt { place: place.clone(), what: what.clone() },
        other => Error::Unavailable { operation: "commit", source: other.to_string().into() },
    }
}
