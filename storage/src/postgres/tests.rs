//! The contract on a Postgres server of the test's own, and what only several servers on one database have.

mod failures;
mod plans;
mod security;

use super::{Options, Postgres, VALUE_BYTES_MAX};
use crate::contract::{self, Factory, put};
use crate::{Changes, Error, Expect, Revision, Storage};
use async_trait::async_trait;
use futures::StreamExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A Postgres with a schema for each test of the contract.
struct Server {
    postgres: coxswain_testing::postgres::Postgres,
    schemas: AtomicUsize,
}

impl Server {
    fn start() -> Server {
        Server::of(coxswain_testing::postgres::Postgres::start())
    }

    fn of(postgres: coxswain_testing::postgres::Postgres) -> Server {
        Server { postgres, schemas: AtomicUsize::new(0) }
    }

    async fn open(&self, schema: usize, options: Options) -> Postgres {
        let url = self.postgres.url();
        let options = Options { schema: format!("test_{schema}"), ..options };
        let mut tries = 0;
        loop {
            match Postgres::open(&url, options.clone()).await {
                Ok(store) => return store,
                Err(error) if tries > 200 => panic!("{error}"),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Has the database cut every connection but the one that asks for it.
    async fn cut_connections(&self, store: &Postgres) {
        let client = store.shared.connections.connect().await.unwrap();
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name = 'coxswain' AND pid <> pg_backend_pid()";
        client.batch_execute(sql).await.unwrap();
    }
}

#[async_trait]
impl Factory for Server {
    async fn fresh(&self) -> Arc<dyn Storage> {
        self.schemas.fetch_add(1, Ordering::Relaxed);
        self.reopen().await
    }

    async fn reopen(&self) -> Arc<dyn Storage> {
        Arc::new(self.open(self.schemas.load(Ordering::Relaxed), Options::default()).await)
    }

    fn value_bytes_max(&self) -> usize {
        VALUE_BYTES_MAX
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds() {
    contract::run(&Server::start()).await;
}

async fn next(stream: &mut (impl futures::Stream<Item = crate::Result<Changes>> + Unpin)) -> Changes {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("a change was due");
        let changes = next.unwrap().unwrap();
        if !changes.changes.is_empty() {
            return changes;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_share_one_order_even_when_connections_are_lost() {
    let server = Server::start();
    let stores = [server.open(1, Options::default()).await, server.open(1, Options::default()).await].map(Arc::new);
    let mut streams = Vec::new();
    for store in &stores {
        streams.push(store.changes("/", Revision(0)).await.unwrap());
    }
    let write = |store: Arc<Postgres>, name: usize| async move {
        let mut acknowledged = Vec::new();
        let mut number = 0;
        while acknowledged.len() < 200 {
            number += 1;
            let key = format!("/{name}/{number:05}");
            match store.commit(vec![put(&key, "v", Expect::Absent)]).await {
                Ok(revision) => {
                    acknowledged.push((revision, key.clone()));
                    let mut read = store.get(&key, None).await;
                    while let Err(Error::Unavailable { .. }) = read {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        read = store.get(&key, None).await;
                    }
                    assert!(read.unwrap().0.is_some(), "{key} was acknowledged and cannot be read");
                }
                // A lost connection leaves the outcome open; the write is not counted.
                Err(Error::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(other) => panic!("{other}"),
            }
        }
        acknowledged
    };
    let writers: Vec<_> = stores.iter().enumerate().map(|(name, s)| tokio::spawn(write(s.clone(), name))).collect();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.cut_connections(&stores[0]).await;
    }
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    acknowledged.sort();
    let newest = acknowledged.last().unwrap().0;
    let mut seen = [Vec::new(), Vec::new()];
    for (stream, seen) in streams.iter_mut().zip(&mut seen) {
        let mut last = Revision(0);
        while last < newest {
            let commit = next(stream).await;
            assert_eq!(commit.revision.0, last.0 + 1, "no gap");
            last = commit.revision;
            seen.push((commit.revision, commit.changes[0].key.to_string()));
        }
    }
    assert_eq!(seen[0], seen[1], "all servers tell the same");
    for commit in acknowledged {
        assert!(seen[0].contains(&commit), "{commit:?} was acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_one_server_is_at_once_visible_at_the_other() {
    let server = Server::start();
    let [here, there] = [server.open(1, Options::default()).await, server.open(1, Options::default()).await];
    let mut stream = there.changes("/", Revision(0)).await.unwrap();
    for number in 0..20 {
        let key = format!("/{number}");
        let revision = here.commit(vec![put(&key, "v", Expect::Absent)]).await.unwrap();
        assert_eq!(there.get(&key, None).await.unwrap().0.unwrap().modified, revision);
        assert_eq!(next(&mut stream).await.revision, revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_older_than_asked_for_is_removed() {
    let server = Server::start();
    let options = Options { keep_history: Duration::from_millis(200), ..Options::default() };
    let store = server.open(1, options).await;
    let mut last = Revision(0);
    for number in 0..50 {
        last = store.commit(vec![put("/a", format!("{number}"), Expect::Any)]).await.unwrap();
    }
    let client = store.shared.connections.session().await;
    let mut left = 1;
    for _ in 0..100 {
        left = client.query_one("SELECT count(*) FROM history", &[]).await.unwrap().get::<_, i64>(0);
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(left, 0);
    assert!(matches!(store.get("/a", Some(Revision(1))).await, Err(Error::Compacted { oldest, .. }) if oldest == last));
    assert_eq!(store.get("/a", Some(last)).await.unwrap().0.unwrap().modified, last);
}
