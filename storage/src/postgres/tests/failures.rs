//! What is lost and doubled when the database goes away in the middle of it: nothing.

use super::*;
use crate::contract::delete;

/// The database crashes again and again under writers that never repeat a write. Every commit has a definite answer: it is
/// found out whether it took place, so a writer that creates a key never meets a conflict with itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_database_leaves_no_commit_in_doubt() {
    let mut server = Server::start();
    let store = Arc::new(server.open(1, Options::default()).await);
    let mut stream = store.changes("/", Revision(0)).await.unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (store, stop) = (store.clone(), stop.clone());
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("/{writer}/{:05}", acknowledged.len());
                    let batch = vec![put(&key, vec![b'x'; 1_000], Expect::Absent)];
                    let revision = store.commit(batch).await.unwrap_or_else(|e| panic!("{key}: {e}"));
                    acknowledged.push((revision, key));
                }
                acknowledged
            })
        })
        .collect();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        tokio::task::block_in_place(|| server.postgres.crash());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    acknowledged.sort();
    assert!(acknowledged.len() > 100, "only {} writes in all that time", acknowledged.len());
    let mut seen = Vec::new();
    while seen.len() < acknowledged.len() {
        let commit = next(&mut stream).await;
        assert_eq!(commit.revision.0, seen.len() as u64 + 1, "no gap and no double");
        seen.push((commit.revision, commit.changes[0].key.to_string()));
    }
    assert_eq!(seen, acknowledged);
    assert_eq!(store.current_revision().await.unwrap(), acknowledged.last().unwrap().0, "and nothing else was written");
}

/// The answer to a commit is lost though it took place: the connection is cut right when the transaction has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_neither_lose_nor_double_a_write() {
    let server = Server::start();
    let store = Arc::new(server.open(1, Options::default()).await);
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            let mut last = Revision(0);
            for number in 0..400 {
                let expect = if number == 0 { Expect::Absent } else { Expect::At(last) };
                let revision = store.commit(vec![put("/a", format!("{number}"), expect)]).await.unwrap();
                assert_eq!(revision.0, last.0 + 1);
                last = revision;
            }
            store.commit(vec![delete("/a", Expect::At(last))]).await.unwrap()
        }
    });
    while !writer.is_finished() {
        server.cut_connections(&store).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(writer.await.unwrap(), Revision(401));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_vanishes_holds_nobody_up_for_long() {
    let server = Server::start();
    let store = server.open(1, Options::default()).await;
    store.commit(vec![put("/a", "1", Expect::Absent)]).await.unwrap();
    let lost = store.shared.connections.connect().await.unwrap();
    lost.batch_execute("BEGIN; SELECT * FROM head FOR UPDATE").await.unwrap();
    let begun = std::time::Instant::now();
    store.commit(vec![put("/b", "1", Expect::Absent)]).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_of_the_first_version_is_brought_up_to_date_and_a_newer_one_refused() {
    let server = Server::start();
    drop(server.open(7, Options::default()).await);
    let connections = super::super::connection::Connections::new(&server.postgres.url(), "test_1").unwrap();
    let client = connections.connect().await.unwrap();
    let first = include_str!("../schema/1.sql");
    let data = "UPDATE head SET revision = 2;
        INSERT INTO current VALUES ('/a', 1, 2, 0, 0, 'new');
        INSERT INTO history VALUES (1, 0, 0, '/a', NULL, NULL, NULL), (2, 0, 0, '/a', 1, 1, 'old');";
    client.batch_execute(&format!("CREATE SCHEMA test_1; {first} {data}")).await.unwrap();
    let store = server.open(1, Options { keep_history: Duration::from_secs(1 << 40), ..Options::default() }).await;
    assert_eq!(store.get("/a", Some(Revision(1))).await.unwrap().0.unwrap().value, "old");
    assert_eq!(store.commit(vec![put("/a", "newer", Expect::At(Revision(2)))]).await.unwrap(), Revision(3));
    drop(store);
    client.batch_execute("INSERT INTO migrations (version) VALUES (1000)").await.unwrap();
    let options = Options { schema: "test_1".to_owned(), ..Options::default() };
    let refused = Postgres::open(&server.postgres.url(), options).await.err().unwrap().to_string();
    assert!(refused.contains("version 1000 of the schema"), "{refused}");
}
