//! The task that writes for this server. It takes all commits that wait and makes them one transaction, which begins by
//! locking the one row of `head`: so groups of several servers follow each other, and revisions have neither gaps nor any
//! order but that of the transactions.
//!
//! A transaction that was in the way of another, or whose connection was lost, is tried again. Whether a commit took place
//! whose answer was lost is not guessed: the changes of a group bear its token, and under the lock, when the lost
//! transaction has ended one way or the other, the next attempt looks whether they are there.

use super::connection::{Session, describe, error, passes, undone};
use super::statements::{ADVANCE, DELETE, LOAD, LOCK, NOTIFY, PUT, RECORD, TOKEN};
use super::{Shared, reads};
use crate::group::{Group, State};
use crate::{Changes, Error, Result, Revision, Write};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

pub const GROUP_COMMITS: usize = 512;
/// A group takes no more than about this many bytes; the rest waits for the next one.
const GROUP_BYTES: usize = 8 << 20;
/// How long a group is tried again while the database is away.
const COMMIT_PATIENCE: Duration = Duration::from_secs(15);
/// The database is taken for lost when it has not answered for so long. It must not itself give up a commit that waits for
/// a standby: it would acknowledge what is in one place only.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

pub struct Pending {
    pub batch: Vec<Write>,
    pub answer: oneshot::Sender<Result<Revision>>,
    /// The bytes that this commit occupies in the queue.
    pub room: OwnedSemaphorePermit,
}

/// A transaction whose end is not known yet.
struct Attempt {
    token: i64,
    /// The revision of its first commit.
    first: Revision,
    results: Vec<Result<Revision>>,
    commits: Vec<Arc<Changes>>,
}

enum Failure {
    /// Trying again may help.
    Passing(Error),
    Lasting(Error),
}

impl From<tokio_postgres::Error> for Failure {
    fn from(failure: tokio_postgres::Error) -> Failure {
        let passing = passes(&failure);
        let error = error("commit", failure);
        if passing { Failure::Passing(error) } else { Failure::Lasting(error) }
    }
}

pub struct Committer {
    shared: Arc<Shared>,
    session: Option<Session>,
    open: Option<Attempt>,
}

pub async fn run(shared: Arc<Shared>, mut queue: mpsc::Receiver<Pending>) {
    let mut committer = Committer { shared, session: None, open: None };
    let mut waiting = Vec::with_capacity(GROUP_COMMITS);
    while queue.recv_many(&mut waiting, GROUP_COMMITS).await > 0 {
        let mut rest = waiting.drain(..).peekable();
        while rest.peek().is_some() {
            let (mut answers, mut batches, mut rooms, mut size) = (Vec::new(), Vec::new(), Vec::new(), 0);
            while let Some(Pending { batch, answer, room }) = rest.next_if(|_| size < GROUP_BYTES) {
                size += room.num_permits() << 10;
                answers.push(answer);
                batches.push(batch);
                rooms.push(room);
            }
            let results = committer.commit(&batches).await;
            drop(rooms);
            for (answer, result) in answers.into_iter().zip(results) {
                // Whoever asked may have gone; the commit stands.
                let _ = answer.send(result);
            }
        }
    }
}

impl Committer {
    async fn commit(&mut self, batches: &[Vec<Write>]) -> Vec<Result<Revision>> {
        let begun = Instant::now();
        self.open = None;
        loop {
            let error = match tokio::time::timeout(ANSWER_TIMEOUT, self.attempt(batches)).await {
                Ok(Ok(attempt)) => {
                    if !attempt.commits.is_empty() {
                        self.shared.publish_own(attempt.commits);
                    }
                    return attempt.results;
                }
                Ok(Err(Failure::Passing(error))) => error,
                Ok(Err(Failure::Lasting(error))) => {
                    self.session = None;
                    return batches.iter().map(|_| Err(copy(&error))).collect();
                }
                Err(_) => super::unavailable("commit", "the database does not answer"),
            };
            // Whatever state the connection is in, a new one has none, and the database gives up the transaction.
            self.session = None;
            if begun.elapsed() > COMMIT_PATIENCE {
                return batches.iter().map(|_| Err(copy(&error))).collect();
            }
            tracing::info!(%error, "a group of commits is tried again");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn attempt(&mut self, batches: &[Vec<Write>]) -> std::result::Result<Attempt, Failure> {
        let client = match self.session.take().filter(|c| !c.is_closed()) {
            Some(client) => self.session.insert(client),
            None => {
                let client = self.shared.connections.connect().await?;
                client.batch_execute("SET statement_timeout = 0").await?;
                self.session.insert(client)
            }
        };
        let mut statements = Vec::new();
        for sql in [LOCK, LOAD, PUT, DELETE, RECORD, ADVANCE, NOTIFY, TOKEN] {
            statements.push(client.prepared(sql).await?);
        }
        let [lock, load, put, delete, record, advance, notify, token_of] = &statements[..] else {
            unreachable!("as many statements as were prepared");
        };

        // Sent together: the database does one after the other, so the states are read under the lock.
        let mut keys: Vec<&str> = batches.iter().flatten().map(|write| &*write.key).collect();
        keys.push(crate::moved::KEY);
        let keys: [&(dyn ToSql + Sync); 1] = [&keys];
        let (begun, head, states) =
            futures::join!(client.batch_execute("BEGIN"), client.query_one(lock, &[]), client.query(load, &keys));
        begun?;
        let head = head?;
        let states: HashMap<Arc<str>, State> = states?.iter().map(state).collect();
        if let Some(attempt) = self.open.take() {
            let row = client.query_opt(token_of, &[&(attempt.first.0 as i64)]).await?;
            if row.is_some_and(|row| row.get::<_, i64>(0) == attempt.token) {
                client.batch_execute("ROLLBACK").await?;
                return Ok(attempt);
            }
        }

        let load = |key: &str| Ok(states.get(key).cloned());
        let before = reads::revision(head.get(0));
        let mut group = Group::new(&load, before, head.get::<_, i64>(1) as u64);
        let results: Vec<Result<Revision>> = batches.iter().map(|batch| group.apply(batch.clone())).collect();
        let commits = std::mem::take(&mut group.commits);
        let token: i64 = rand::random();
        let attempt = Attempt { token, first: Revision(before.0 + 1), results, commits };
        if attempt.commits.is_empty() {
            client.batch_execute("ROLLBACK").await?;
            return Ok(attempt);
        }

        let rows = Rows::of(&group);
        let revision = group.revision.0 as i64;
        let put_values: [&(dyn ToSql + Sync); 6] =
            [&rows.keys, &rows.created, &rows.modified, &rows.index, &rows.expires, &rows.values];
        let record_values: [&(dyn ToSql + Sync); 8] = [
            &rows.revisions,
            &rows.indexes,
            &rows.times,
            &rows.changed,
            &rows.prior_created,
            &rows.prior_modified,
            &rows.prior_values,
            &token,
        ];
        let (delete_values, advance_values, notify_values): ([&(dyn ToSql + Sync); 1], [_; 1], [_; 1]) =
            ([&rows.deleted], [&revision as &(dyn ToSql + Sync)], [&self.shared.schema as &(dyn ToSql + Sync)]);
        self.open = Some(attempt);
        let done = futures::join!(
            client.execute(put, &put_values),
            client.execute(delete, &delete_values),
            client.execute(record, &record_values),
            client.execute(advance, &advance_values),
            client.execute(notify, &notify_values),
            client.batch_execute("COMMIT"),
        );
        for failure in [done.0.err(), done.1.err(), done.2.err(), done.3.err(), done.4.err(), done.5.err()] {
            let Some(failure) = failure else { continue };
            if undone(&failure) {
                self.open = None;
            } else {
                tracing::warn!(error = describe(&failure), "whether a group was committed is to be found out");
            }
            return Err(failure.into());
        }
        self.open.take().ok_or_else(|| Failure::Lasting(super::unavailable("commit", "the attempt was forgotten")))
    }
}

pub fn state(row: &Row) -> (Arc<str>, State) {
    let state = State {
        created: reads::revision(row.get(1)),
        modified: reads::revision(row.get(2)),
        index: row.get::<_, i32>(3) as u32,
        expires: row.get::<_, i64>(4) as u64,
        value: Some(Bytes::copy_from_slice(row.get(5))),
    };
    (row.get::<_, &str>(0).into(), state)
}

/// What a group writes, by columns.
#[derive(Default)]
pub struct Rows<'a> {
    pub keys: Vec<&'a str>,
    pub created: Vec<i64>,
    pub modified: Vec<i64>,
    pub index: Vec<i32>,
    pub expires: Vec<i64>,
    pub values: Vec<&'a [u8]>,
    pub deleted: Vec<&'a str>,
    pub revisions: Vec<i64>,
    pub indexes: Vec<i32>,
    pub times: Vec<i64>,
    pub changed: Vec<&'a str>,
    pub prior_created: Vec<Option<i64>>,
    pub prior_modified: Vec<Option<i64>>,
    pub prior_values: Vec<Option<&'a [u8]>>,
}

impl<'a> Rows<'a> {
    pub fn of(group: &'a Group<'_>) -> Rows<'a> {
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
        Error::Unavailable { operation, source } => Error::Unavailable { operation, source: source.to_string().into() },
        other => Error::Unavailable { operation: "commit", source: other.to_string().into() },
    }
}
