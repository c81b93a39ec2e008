//! What every backend must hold to, as one suite: `run(factory)` calls it all. A factory makes stores on the same data, so
//! that the suite can close a store and open it again.

use crate::{Change, Changes, Entry, Error, Expect, ListOptions, Op, Revision, Storage, Write};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Nothing that a store owes a reader takes longer than this, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

#[async_trait]
pub trait Factory: Send + Sync {
    /// A store without data.
    async fn fresh(&self) -> Arc<dyn Storage>;
    /// The data of the newest fresh store again, which the caller has let go of.
    async fn reopen(&self) -> Arc<dyn Storage>;
    /// The largest value it takes.
    fn value_bytes_max(&self) -> usize;
}

pub async fn run(factory: &dyn Factory) {
    expectations_decide(&*factory.fresh().await).await;
    a_batch_is_all_or_nothing(&*factory.fresh().await).await;
    deleting_nothing_changes_nothing(&*factory.fresh().await).await;
    old_revisions_stay_readable(&*factory.fresh().await).await;
    lists_are_paged_in_key_order(&*factory.fresh().await).await;
    changes_are_gapless_from_any_revision(&*factory.fresh().await).await;
    readers_learn_how_far_they_have_seen(&*factory.fresh().await).await;
    compaction_forgets_only_what_is_older(&*factory.fresh().await).await;
    the_future_cannot_be_read(&*factory.fresh().await).await;
    keys_expire(&*factory.fresh().await).await;
    large_values_fit_up_to_the_limit(&*factory.fresh().await, factory.value_bytes_max()).await;
    racing_writers_have_one_winner(factory.fresh().await).await;
    slow_and_vanished_readers_hold_nobody_up(factory.fresh().await).await;
    data_outlives_the_store(factory).await;
    any_sequence_agrees_with_the_model(factory).await;
}

pub fn put(key: &str, value: impl Into<Bytes>, expect: Expect) -> Write {
    Write { key: key.into(), expect, op: Op::Put { value: value.into(), ttl: None } }
}

pub fn delete(key: &str, expect: Expect) -> Write {
    Write { key: key.into(), expect, op: Op::Delete }
}

async fn put_any(store: &dyn Storage, key: &str, value: &'static str) -> Revision {
    store.commit(vec![put(key, value, Expect::Any)]).await.unwrap()
}

async fn value(store: &dyn Storage, key: &str, at: Option<Revision>) -> Option<Bytes> {
    store.get(key, at).await.unwrap().0.map(|e| e.value)
}

async fn keys(store: &dyn Storage, prefix: &str, at: Option<Revision>) -> Vec<String> {
    let page = store.list(prefix, ListOptions { at, ..Default::default() }).await.unwrap();
    page.entries.iter().map(|e| e.key.to_string()).collect()
}

/// The next commit that has changes, passing over progress marks.
async fn next(stream: &mut BoxStream<'static, crate::Result<Changes>>) -> Changes {
    loop {
        let next = tokio::time::timeout(PATIENCE, stream.next()).await.expect("a change was due");
        let changes = next.expect("a stream of changes has no end").unwrap();
        if !changes.changes.is_empty() {
            return changes;
        }
    }
}

async fn expectations_decide(store: &dyn Storage) {
    let first = store.commit(vec![put("/a", "1", Expect::Absent)]).await.unwrap();
    let entry = Entry { key: "/a".into(), value: "1".into(), created: first, modified: first };
    for (expect, holds) in
        [(Expect::Absent, false), (Expect::At(Revision(first.0 + 7)), false), (Expect::At(first), true)]
    {
        match store.commit(vec![put("/a", "2", expect)]).await {
            Ok(second) => {
                assert!(holds && second > first);
                let now = store.get("/a", None).await.unwrap();
                assert_eq!(now, (Some(Entry { value: "2".into(), modified: second, ..entry.clone() }), second));
            }
            Err(Error::Conflict { key, current }) => {
                assert!(!holds && &*key == "/a");
                assert_eq!(current, Some(entry.clone()), "a conflict brings the present value");
            }
            Err(other) => panic!("{other}"),
        }
    }
    let absent = store.commit(vec![put("/b", "1", Expect::At(first))]).await;
    assert!(matches!(absent, Err(Error::Conflict { current: None, .. })));
    let gone = store.commit(vec![delete("/a", Expect::Any)]).await.unwrap();
    assert_eq!(store.get("/a", None).await.unwrap(), (None, gone));
    let again = store.commit(vec![put("/a", "3", Expect::Absent)]).await.unwrap();
    assert_eq!(store.get("/a", None).await.unwrap().0.unwrap().created, again, "a key made anew is a new key");
}

async fn a_batch_is_all_or_nothing(store: &dyn Storage) {
    let first = put_any(store, "/a", "old").await;
    let batch = vec![put("/a", "new", Expect::At(first)), put("/b", "new", Expect::Absent)];
    let second = store.commit(batch).await.unwrap();
    for key in ["/a", "/b"] {
        assert_eq!(store.get(key, None).await.unwrap().0.unwrap().modified, second);
    }
    let batch = vec![put("/c", "x", Expect::Absent), delete("/a", Expect::Any), put("/b", "x", Expect::Absent)];
    assert!(matches!(store.commit(batch).await, Err(Error::Conflict { key, .. }) if &*key == "/b"));
    assert_eq!(keys(store, "/", None).await, ["/a", "/b"]);
    assert_eq!(store.current_revision().await.unwrap(), second, "a refused batch leaves no revision");
    let mut stream = store.changes("/", first).await.unwrap();
    let changes = next(&mut stream).await;
    let changed: Vec<_> = changes.changes.iter().map(|c| (&*c.key, c.revision, c.previous.is_some())).collect();
    assert_eq!(changed, [("/a", second, true), ("/b", second, false)]);
}

async fn deleting_nothing_changes_nothing(store: &dyn Storage) {
    let first = put_any(store, "/a", "1").await;
    assert_eq!(store.commit(vec![delete("/none", Expect::Any)]).await.unwrap(), first);
    assert_eq!(store.commit(vec![]).await.unwrap(), first);
    let conflict = store.commit(vec![delete("/none", Expect::At(first))]).await;
    assert!(matches!(conflict, Err(Error::Conflict { current: None, .. })));
    assert_eq!(store.current_revision().await.unwrap(), first);
}

async fn old_revisions_stay_readable(store: &dyn Storage) {
    let start = store.current_revision().await.unwrap();
    let r1 = put_any(store, "/p/a", "1").await;
    let r2 = put_any(store, "/p/b", "1").await;
    let r3 = put_any(store, "/p/a", "2").await;
    let r4 = store.commit(vec![delete("/p/a", Expect::Any)]).await.unwrap();
    let r5 = put_any(store, "/p/a", "3").await;
    for (at, expected) in
        [(start, None), (r1, Some("1")), (r2, Some("1")), (r3, Some("2")), (r4, None), (r5, Some("3"))]
    {
        assert_eq!(value(store, "/p/a", Some(at)).await.as_deref(), expected.map(str::as_bytes), "at {at}");
    }
    for (at, expected) in [(start, &[][..]), (r1, &["/p/a"]), (r3, &["/p/a", "/p/b"]), (r4, &["/p/b"])] {
        assert_eq!(keys(store, "/p/", Some(at)).await, expected, "at {at}");
    }
    let page = store.list("/p/", ListOptions { at: Some(r3), ..Default::default() }).await.unwrap();
    assert_eq!(page.revision, r3);
    assert_eq!((page.entries[0].created, page.entries[0].modified), (r1, r3));
}

async fn lists_are_paged_in_key_order(store: &dyn Storage) {
    let batch = |range: std::ops::Range<u32>| range.map(|i| put(&format!("/p/{i:04}"), "v", Expect::Absent)).collect();
    store.commit(batch(0..50)).await.unwrap();
    let at = store.commit(batch(50..100)).await.unwrap();
    store
        .commit(vec![put("/p", "", Expect::Any), put("/p0", "", Expect::Any), put("/q/", "", Expect::Any)])
        .await
        .unwrap();
    let all: Vec<String> = (0..100).map(|i| format!("/p/{i:04}")).collect();
    assert_eq!(keys(store, "/p/", None).await, all);
    // What happens between the pages does not show in them.
    let (mut seen, mut from) = (Vec::new(), None);
    loop {
        let options = ListOptions { at: Some(at), limit: Some(30), from: from.take() };
        let page = store.list("/p/", options).await.unwrap();
        assert!(page.entries.len() <= 30);
        seen.extend(page.entries.iter().map(|e| e.key.to_string()));
        store.commit(vec![delete("/p/0099", Expect::Any), put("/p/0060x", "", Expect::Any)]).await.unwrap();
        match page.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    assert_eq!(seen, all);
    let exact = store.list("/p/", ListOptions { limit: Some(100), ..Default::default() }).await.unwrap();
    assert_eq!((exact.entries.len(), exact.next), (100, None), "a full last page has no next");
    for (from, count) in [("/a", 100), ("/p/0098", 1), ("/p/z", 0), ("/z", 0)] {
        let page = store.list("/p/", ListOptions { from: Some(from.into()), ..Default::default() }).await.unwrap();
        assert_eq!(page.entries.len(), count, "from {from}");
    }
    assert_eq!(keys(store, "", None).await.len(), 103);
}

async fn changes_are_gapless_from_any_revision(store: &dyn Storage) {
    let start = store.current_revision().await.unwrap();
    let mut live = store.changes("/p/", start).await.unwrap();
    let mut expected: Vec<Change> = Vec::new();
    let mut last: BTreeMap<String, Entry> = BTreeMap::new();
    for i in 0..60 {
        let key = format!("/p/{}", i % 7);
        let write = if i % 5 == 4 { delete(&key, Expect::Any) } else { put(&key, format!("{i}"), Expect::Any) };
        let put_it = matches!(write.op, Op::Put { .. });
        let previous = last.remove(&key);
        if previous.is_none() && !put_it {
            continue;
        }
        let revision = store.commit(vec![write]).await.unwrap();
        let value = put_it.then(|| store_entry(&key, format!("{i}"), previous.as_ref(), revision));
        last.extend(value.clone().map(|v| (key.clone(), v)));
        expected.push(Change { revision, key: key.as_str().into(), value, previous });
        put_any(store, "/elsewhere", "x").await;
    }
    for want in &expected {
        assert_eq!(next(&mut live).await.changes, std::slice::from_ref(want), "as it happened");
    }
    for (i, from) in expected.iter().enumerate() {
        let mut stream = store.changes("/p/", from.revision).await.unwrap();
        for want in &expected[i + 1..] {
            assert_eq!(
                next(&mut stream).await.changes,
                std::slice::from_ref(want),
                "afterwards, from {}",
                from.revision
            );
        }
    }
}

fn store_entry(key: &str, value: String, previous: Option<&Entry>, modified: Revision) -> Entry {
    Entry { key: key.into(), value: value.into(), created: previous.map_or(modified, |p| p.created), modified }
}

async fn readers_learn_how_far_they_have_seen(store: &dyn Storage) {
    let start = put_any(store, "/p/a", "1").await;
    let mut stream = store.changes("/p/", start).await.unwrap();
    let seen_up_to = async |stream: &mut BoxStream<'static, crate::Result<Changes>>, goal: Revision| {
        loop {
            let changes = stream.next().await.unwrap().unwrap();
            assert!(changes.changes.is_empty());
            if changes.revision >= goal {
                return;
            }
        }
    };
    let goal = put_any(store, "/q/a", "1").await;
    tokio::time::timeout(Duration::from_secs(2), seen_up_to(&mut stream, goal)).await.expect("a mark within a second");
    let goal = put_any(store, "/q/a", "2").await;
    store.request_progress().await.unwrap();
    let asked = Instant::now();
    tokio::time::timeout(PATIENCE, seen_up_to(&mut stream, goal)).await.expect("a mark at once");
    assert!(asked.elapsed() < Duration::from_secs(1));
}

async fn compaction_forgets_only_what_is_older(store: &dyn Storage) {
    let r1 = put_any(store, "/a", "1").await;
    put_any(store, "/gone", "1").await;
    let r2 = put_any(store, "/a", "2").await;
    let r3 = store.commit(vec![delete("/gone", Expect::Any)]).await.unwrap();
    let r4 = put_any(store, "/a", "3").await;
    store.compact(r2).await.unwrap();
    store.compact(r2).await.unwrap();
    store.compact(r1).await.unwrap();
    let compacted = |r: crate::Result<()>| match r {
        Err(Error::Compacted { asked, oldest }) => assert_eq!((asked, oldest), (r1, r2)),
        other => panic!("{other:?}"),
    };
    compacted(store.get("/a", Some(r1)).await.map(drop));
    compacted(store.list("/", ListOptions { at: Some(r1), ..Default::default() }).await.map(drop));
    compacted(store.changes("/", r1).await.map(drop));
    // Reading goes on at every other revision, also once the removal behind the scenes is through.
    for _ in 0..3 {
        for (at, expected) in [(r2, "2"), (r3, "2"), (r4, "3")] {
            assert_eq!(value(store, "/a", Some(at)).await.as_deref(), Some(expected.as_bytes()));
        }
        assert_eq!(keys(store, "/", Some(r2)).await, ["/a", "/gone"]);
        assert_eq!(keys(store, "/", Some(r3)).await, ["/a"]);
        let mut stream = store.changes("/", r2).await.unwrap();
        assert_eq!(next(&mut stream).await.revision, r3);
        assert_eq!(next(&mut stream).await.revision, r4);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    store.compact(r4).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let r5 = store.commit(vec![put("/gone", "2", Expect::Absent)]).await.unwrap();
    assert_eq!(keys(store, "/", Some(r4)).await, ["/a"]);
    let mut stream = store.changes("/", r4).await.unwrap();
    assert_eq!(next(&mut stream).await.revision, r5);
}

async fn the_future_cannot_be_read(store: &dyn Storage) {
    let current = put_any(store, "/a", "1").await;
    let future = Revision(current.0 + 1_000);
    let refused = |r: crate::Result<()>| match r {
        Err(Error::Future { asked, current: at }) => assert_eq!((asked, at), (future, current)),
        other => panic!("{other:?}"),
    };
    refused(store.get("/a", Some(future)).await.map(drop));
    refused(store.list("/", ListOptions { at: Some(future), ..Default::default() }).await.map(drop));
    refused(store.changes("/", future).await.map(drop));
    refused(store.compact(future).await);
}

async fn keys_expire(store: &dyn Storage) {
    let with_ttl = |key: &str, ms| Write {
        key: key.into(),
        expect: Expect::Any,
        op: Op::Put { value: "v".into(), ttl: Some(Duration::from_millis(ms)) },
    };
    let batch = vec![with_ttl("/e/short", 1_000), with_ttl("/e/kept", 1_000), with_ttl("/e/long", 3_600_000)];
    let made = store.commit(batch).await.unwrap();
    assert_eq!(keys(store, "/e/", None).await.len(), 3);
    put_any(store, "/e/kept", "without a ttl").await;
    let mut stream = store.changes("/e/short", made).await.unwrap();
    let expired = next(&mut stream).await;
    assert_eq!(expired.changes.len(), 1);
    assert!(expired.changes[0].value.is_none() && expired.changes[0].previous.is_some());
    assert_eq!(keys(store, "/e/", None).await, ["/e/kept", "/e/long"]);
    assert_eq!(keys(store, "/e/", Some(made)).await.len(), 3);
}

async fn large_values_fit_up_to_the_limit(store: &dyn Storage, max: usize) {
    let large = Bytes::from(vec![7; max]);
    store.commit(vec![put("/large", large.clone(), Expect::Absent)]).await.unwrap();
    assert_eq!(value(store, "/large", None).await.unwrap(), large);
    match store.commit(vec![put("/larger", vec![7; max + 1], Expect::Any)]).await {
        Err(Error::TooLarge { key, size, max: limit }) => assert_eq!((&*key, size, limit), ("/larger", max + 1, max)),
        other => panic!("{other:?}"),
    }
    assert_eq!(keys(store, "/", None).await, ["/large"]);
}

/// Every writer adds one to a counter, expecting what it read; each success must be one step of the counter.
async fn racing_writers_have_one_winner(store: Arc<dyn Storage>) {
    const WRITERS: usize = 8;
    const STEPS: u64 = 25;
    let first = store.commit(vec![put("/counter", 0u64.to_be_bytes().to_vec(), Expect::Absent)]).await.unwrap();
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            let mut revisions = Vec::new();
            let mut current = store.get("/counter", None).await.unwrap().0.unwrap();
            while (revisions.len() as u64) < STEPS {
                let next = u64::from_be_bytes((&*current.value).try_into().unwrap()) + 1;
                let write = put("/counter", next.to_be_bytes().to_vec(), Expect::At(current.modified));
                match store.commit(vec![write]).await {
                    Ok(revision) => {
                        revisions.push(revision);
                        let (seen, at) = store.get("/counter", None).await.unwrap();
                        current = seen.unwrap();
                        assert!(at >= revision && current.modified >= revision, "what is acknowledged is visible");
                    }
                    Err(Error::Conflict { current: Some(now), .. }) => current = now,
                    Err(other) => panic!("{other}"),
                }
            }
            revisions
        }));
    }
    let mut revisions = vec![first];
    for writer in writers {
        revisions.extend(writer.await.unwrap());
    }
    revisions.sort();
    let total = WRITERS as u64 * STEPS;
    assert_eq!(value(&*store, "/counter", None).await.unwrap(), total.to_be_bytes().to_vec());
    for (step, revision) in revisions.iter().enumerate() {
        let then = value(&*store, "/counter", Some(*revision)).await.unwrap();
        assert_eq!(then, (step as u64).to_be_bytes().to_vec(), "revisions are the order of the commits");
    }
}

async fn slow_and_vanished_readers_hold_nobody_up(store: Arc<dyn Storage>) {
    let start = store.current_revision().await.unwrap();
    let mut slow = store.changes("/", start).await.unwrap();
    drop(store.changes("/", start).await.unwrap());
    let value = Bytes::from(vec![1; 100_000]);
    let mut revisions = Vec::new();
    for i in 0..300 {
        revisions.push(store.commit(vec![put(&format!("/k/{}", i % 10), value.clone(), Expect::Any)]).await.unwrap());
    }
    for revision in &revisions {
        assert_eq!(next(&mut slow).await.revision, *revision);
    }
    // A reader that falls behind the compaction is told so, rather than skipping anything.
    let mut cut_off = store.changes("/", revisions[0]).await.unwrap();
    for i in 0..600 {
        revisions.push(store.commit(vec![put(&format!("/k/{}", i % 10), value.clone(), Expect::Any)]).await.unwrap());
    }
    store.compact(*revisions.last().unwrap()).await.unwrap();
    let mut expected = revisions[0];
    loop {
        match tokio::time::timeout(PATIENCE, cut_off.next()).await.expect("word was due") {
            Some(Ok(changes)) => {
                assert_eq!(changes.revision.0, expected.0 + 1);
                expected = changes.revision;
            }
            Some(Err(Error::Compacted { .. })) => break,
            None => panic!("ended without a word"),
            Some(Err(other)) => panic!("{other}"),
        }
        if expected == *revisions.last().unwrap() {
            break;
        }
    }
}

async fn data_outlives_the_store(factory: &dyn Factory) {
    let store = factory.fresh().await;
    let r1 = put_any(&*store, "/a", "1").await;
    let r2 = put_any(&*store, "/a", "2").await;
    let r3 = store.commit(vec![put("/b", "1", Expect::Any), delete("/a", Expect::Any)]).await.unwrap();
    let ttl = Some(Duration::from_millis(1_500));
    let op = Op::Put { value: "v".into(), ttl };
    let r4 = store.commit(vec![Write { key: "/short".into(), expect: Expect::Absent, op }]).await.unwrap();
    drop(store);
    let store = factory.reopen().await;
    assert_eq!(store.current_revision().await.unwrap(), r4);
    assert_eq!(value(&*store, "/a", Some(r1)).await.as_deref(), Some(&b"1"[..]));
    assert_eq!(keys(&*store, "/", Some(r3)).await, ["/b"]);
    let mut stream = store.changes("/", r1).await.unwrap();
    for revision in [r2, r3, r4] {
        assert_eq!(next(&mut stream).await.revision, revision);
    }
    let expired = next(&mut stream).await;
    assert!(expired.revision > r4 && &*expired.changes[0].key == "/short", "keys expire across restarts");
    assert!(put_any(&*store, "/c", "1").await > expired.revision);
}

/// Random batches against a plain map, read back at every revision, before and after reopening.
async fn any_sequence_agrees_with_the_model(factory: &dyn Factory) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let store = factory.fresh().await;
    let mut model: BTreeMap<String, Entry> = BTreeMap::new();
    let mut history = vec![(store.current_revision().await.unwrap(), model.clone())];
    for step in 0..150 {
        let mut batch = Vec::new();
        let mut holds = true;
        let mut changed = false;
        for key in (0..12).map(|k| format!("/m/{k:02}")) {
            if rng.random_bool(0.8) {
                continue;
            }
            let present = model.get(&key).map(|e| e.modified);
            let expect = match rng.random_range(0..20) {
                0 => Expect::Absent,
                1 => Expect::At(history[rng.random_range(0..history.len())].0),
                2..10 => present.map_or(Expect::Absent, Expect::At),
                _ => Expect::Any,
            };
            holds &= match expect {
                Expect::Any => true,
                Expect::Absent => present.is_none(),
                Expect::At(revision) => present == Some(revision),
            };
            let remove = rng.random_bool(0.3);
            changed |= !remove || present.is_some();
            batch.push(if remove { delete(&key, expect) } else { put(&key, format!("{step}"), expect) });
        }
        let before = history.last().unwrap().0;
        match store.commit(batch.clone()).await {
            Ok(revision) => {
                assert!(holds, "seed {seed}");
                assert_eq!(revision > before, changed, "seed {seed}");
                for write in batch {
                    let key = write.key.to_string();
                    match write.op {
                        Op::Put { value, .. } => {
                            let created = model.get(&key).map_or(revision, |e| e.created);
                            model.insert(key, Entry { key: write.key, value, created, modified: revision });
                        }
                        Op::Delete => drop(model.remove(&key)),
                    }
                }
                if changed {
                    history.push((revision, model.clone()));
                }
            }
            Err(Error::Conflict { .. }) => assert!(!holds, "seed {seed}"),
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    check_history(&*store, &history, seed).await;
    drop(store);
    check_history(&*factory.reopen().await, &history, seed).await;
}

async fn check_history(store: &dyn Storage, history: &[(Revision, BTreeMap<String, Entry>)], seed: u64) {
    let mut replayed = BTreeMap::new();
    let mut stream = store.changes("/m/", history[0].0).await.unwrap();
    for (index, (revision, model)) in history.iter().enumerate() {
        let page = store.list("/m/", ListOptions { at: Some(*revision), ..Default::default() }).await.unwrap();
        assert_eq!(page.entries, model.values().cloned().collect::<Vec<_>>(), "seed {seed}, at {revision}");
        if index == 0 {
            continue;
        }
        let changes = next(&mut stream).await;
        assert_eq!(changes.revision, *revision, "seed {seed}");
        for change in changes.changes {
            let key = change.key.to_string();
            assert_eq!(replayed.get(&key), change.previous.as_ref(), "seed {seed}, at {revision}");
            match change.value {
                Some(entry) => replayed.insert(key, entry),
                None => replayed.remove(&key),
            };
        }
        assert_eq!(&replayed, model, "seed {seed}, at {revision}");
    }
}
