//! Moves between every two kinds of store, under writers and readers; backups and what is damaged in them.

use super::*;
use crate::address::Address;
use crate::contract::put;
use crate::switch::{Opener, Switch};
use crate::{ListOptions, Op, Write, backup, check};
use coxswain_testing::{etcd::Etcd, postgres::Postgres};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

const KEEP: Duration = Duration::from_secs(300);

/// One server of each kind, and names for any number of stores on them.
struct Places {
    directory: TempDir,
    etcd: Vec<Etcd>,
    postgres: Option<Postgres>,
    count: usize,
}

impl Places {
    fn new() -> Places {
        Places { directory: tempfile::tempdir().unwrap(), etcd: Vec::new(), postgres: None, count: 0 }
    }

    fn address(&mut self, kind: &str) -> String {
        self.count += 1;
        match kind {
            "embedded" => format!("embedded://{}/{}", self.directory.path().display(), self.count),
            "etcd" => {
                self.etcd.push(Etcd::start());
                self.etcd.last().unwrap().address()
            }
            _ => {
                let server = self.postgres.get_or_insert_with(Postgres::start);
                server.address(&format!("move_{}", self.count))
            }
        }
    }
}

async fn open(address: &str) -> Arc<dyn Storage> {
    let parsed = Address::parse(address).unwrap();
    let begun = Instant::now();
    loop {
        match parsed.open(KEEP).await {
            Ok(store) => return store,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(40), "{address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn opener() -> Opener {
    Arc::new(|to| {
        Box::pin(async move { Address::parse(&to)?.open_existing(KEEP).await })
            as futures::future::BoxFuture<'static, Result<Arc<dyn Storage>>>
    })
}

/// As a watch cache follows: where it was, or from a new list where that is forgotten. Returns the keys it knows.
async fn follow(
    store: Arc<Switch>,
    from: Revision,
    stop: Arc<AtomicBool>,
    until: impl Fn() -> usize,
) -> (HashSet<String>, usize) {
    let (mut seen, mut known, mut lists) = (from, HashSet::new(), 0);
    while !(stop.load(Ordering::Relaxed) && known.len() >= until()) {
        let mut stream = match store.changes("/registry/live/", seen).await {
            Ok(stream) => stream,
            Err(Error::Compacted { .. }) => {
                lists += 1;
                let page = store.list("/registry/live/", ListOptions::default()).await.unwrap();
                assert!(page.revision >= seen, "revisions went back from {seen} to {}", page.revision);
                (seen, known) = (page.revision, page.entries.iter().map(|e| e.key.to_string()).collect());
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        while let Ok(Some(Ok(commit))) = tokio::time::timeout(Duration::from_secs(2), stream.next()).await {
            assert!(commit.revision >= seen, "a revision came again: {} after {seen}", commit.revision);
            seen = commit.revision;
            for change in commit.changes {
                assert!(known.insert(change.key.to_string()), "{} was told of twice", change.key);
            }
            if stop.load(Ordering::Relaxed) && known.len() >= until() {
                break;
            }
        }
    }
    (known, lists)
}

async fn a_move(places: &mut Places, from: &str, to: &str) {
    let (from_address, to_address) = (places.address(from), places.address(to));
    let source = open(&from_address).await;
    for chunk in 0..10 {
        let batch = (0..50).map(|i| put(&format!("/registry/old/{chunk}/{i}"), format!("{i}"), Expect::Absent));
        source.commit(batch.collect()).await.unwrap();
    }
    let op = Op::Put { value: "soon gone".into(), ttl: Some(Duration::from_secs(600)) };
    let event = Write { key: "/registry/events/a".into(), expect: Expect::Any, op };
    source.commit(vec![event]).await.unwrap();
    let before = source.current_revision().await.unwrap();
    let switch = Arc::new(Switch::new(source, opener()).await.unwrap());
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let acknowledged = Arc::new(parking_lot::Mutex::new(HashSet::new()));
    let reader = tokio::spawn({
        let acknowledged = acknowledged.clone();
        follow(switch.clone(), before, written.clone(), move || acknowledged.lock().len())
    });
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (switch, stop, acknowledged) = (switch.clone(), stop.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let (mut last, mut longest) = (Revision(0), Duration::ZERO);
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("/registry/live/{writer}-{number}");
                    let begun = Instant::now();
                    loop {
                        match switch.commit(vec![put(&key, "v", Expect::Absent)]).await {
                            Ok(revision) => {
                                assert!(revision > last, "{revision} after {last}");
                                last = revision;
                                break;
                            }
                            Err(Error::Moved(_)) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    longest = longest.max(begun.elapsed());
                    acknowledged.lock().insert(key);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                longest
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let target = open(&to_address).await;
    let report =
        migrate(&*switch.store(), target, &to_address, &|_| {}).await.unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let mut longest = Duration::ZERO;
    for writer in writers {
        longest = longest.max(writer.await.unwrap());
    }
    written.store(true, Ordering::Relaxed);
    assert!(longest < Duration::from_secs(4), "{from} to {to}: a write waited {longest:?}");
    let (known, lists) = reader.await.unwrap();
    let acknowledged = acknowledged.lock().clone();
    let missing: Vec<_> = acknowledged.difference(&known).take(3).collect();
    assert!(
        missing.is_empty() && known.len() == acknowledged.len(),
        "{from} to {to}: readers were not told of {missing:?}"
    );
    assert_eq!(lists, usize::from(to == "etcd"), "{from} to {to}: readers list again only where revisions are new");

    // All of it is in the new store, and the old one takes nothing more.
    let now = switch.store();
    let page = now.list("/registry/", ListOptions::default()).await.unwrap();
    let keys: HashSet<String> = page.entries.iter().map(|e| e.key.to_string()).collect();
    assert!(acknowledged.iter().all(|key| keys.contains(key)));
    assert_eq!(keys.iter().filter(|k| k.starts_with("/registry/old/")).count(), 500);
    assert!(now.current_revision().await.unwrap() > Revision(report.source_revision));
    let expiring = now.expiring(Revision(0)).await.unwrap();
    // Each etcd adds a twentieth, so that keys of about the same time share a lease.
    assert!(
        matches!(&expiring[..], [(key, ends)] if &**key == "/registry/events/a"
        && (300_000..700_000).contains(&ends.saturating_sub(moved::now_ms()))),
        "{from} to {to}: {expiring:?}"
    );
    let found = check::check(&*now, &|_, _| Ok(()), |_| {}).await.unwrap();
    assert!(found.complaints.is_empty(), "{from} to {to}: {:?}", found.complaints);
    drop(now);
    drop(switch);
    let old = open(&from_address).await;
    let refused = old.commit(vec![put("/registry/live/late", "v", Expect::Any)]).await;
    assert!(matches!(refused, Err(Error::Moved(marker)) if marker.to.as_deref() == Some(&to_address)));
    // A server that starts with the old address uses the new store.
    let again = Switch::new(old, opener()).await.unwrap();
    assert!(again.get("/registry/live/0-0", None).await.unwrap().0.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_moves_from_the_embedded_store_to_any_other() {
    let mut places = Places::new();
    for to in ["embedded", "postgres", "etcd"] {
        a_move(&mut places, "embedded", to).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_moves_from_postgres_to_any_other() {
    let mut places = Places::new();
    for to in ["embedded", "postgres", "etcd"] {
        a_move(&mut places, "postgres", to).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_moves_from_etcd_to_any_other() {
    let mut places = Places::new();
    for to in ["embedded", "postgres", "etcd"] {
        a_move(&mut places, "etcd", to).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_fails_leaves_all_as_it_was() {
    let mut places = Places::new();
    let (from, to) = (places.address("embedded"), places.address("embedded"));
    let (source, target) = (open(&from).await, open(&to).await);
    source.commit(vec![put("/registry/a", "v", Expect::Absent)]).await.unwrap();
    target.commit(vec![put("/registry/b", "v", Expect::Absent)]).await.unwrap();
    let refused = migrate(&*source, target, &to, &|_| {}).await.unwrap_err().to_string();
    assert!(refused.contains("not empty"), "{refused}");
    source.commit(vec![put("/registry/c", "v", Expect::Absent)]).await.unwrap();
    // One that died in the middle loses its hold after a while.
    let marker = Marker { to: None, patience_ms: 300, time: moved::now_ms(), revision: 0 };
    moved::write(&*source, &marker, Expect::Absent).await.unwrap();
    let switch = Switch::new(source, opener()).await.unwrap();
    switch.commit(vec![put("/registry/d", "v", Expect::Absent)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_brings_everything_back_at_a_higher_revision() {
    let mut places = Places::new();
    let from = places.address("embedded");
    let source = open(&from).await;
    for i in 0..2_500 {
        source.commit(vec![put(&format!("/registry/x/{i}"), vec![b'v'; i % 300], Expect::Absent)]).await.unwrap();
    }
    let mut file = Vec::new();
    let (header, trailer) = backup::write(&*source, &mut file, |_| {}).await.unwrap();
    assert_eq!((header.revision, trailer.entries), (2_500, 2_500));
    for kind in ["embedded", "postgres", "etcd"] {
        let store = open(&places.address(kind)).await;
        let bump = if kind == "etcd" { 10 } else { 1_000_000 };
        let (_, revision) = backup::restore(&file[..], store.clone(), bump, |_| {}).await.unwrap();
        assert!(revision.0 >= 2_500 + bump, "{kind}: {revision}");
        let sums =
            [Checksum::of(&*source, None, kind != "etcd").await, Checksum::of(&*store, None, kind != "etcd").await];
        let [a, b] = sums.map(|sum| sum.unwrap().hex());
        assert_eq!(a, b, "{kind}");
        let old = store.changes("/registry/", Revision(2_400)).await.err();
        assert!(matches!(old, Some(Error::Compacted { .. })), "{kind}: {old:?}");
        let next = store.commit(vec![put("/registry/new", "v", Expect::Absent)]).await.unwrap();
        assert!(next > revision, "{kind}");
        let again = backup::restore(&file[..], store, bump, |_| {}).await.unwrap_err().to_string();
        assert!(again.contains("not empty"), "{again}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_backup_says_where() {
    let directory = tempfile::tempdir().unwrap();
    let source = open(&format!("embedded://{}", directory.path().display())).await;
    for i in 0..20 {
        source.commit(vec![put(&format!("/registry/x/{i:02}"), "value", Expect::Absent)]).await.unwrap();
    }
    let mut file = Vec::new();
    backup::write(&*source, &mut file, |_| {}).await.unwrap();
    let read = async |bytes: Vec<u8>| {
        let mut reader = backup::Reader::new(&bytes[..]).await?;
        loop {
            if let backup::Record::End(trailer) = reader.next().await? {
                return Ok::<_, Error>(trailer);
            }
        }
    };
    assert_eq!(read(file.clone()).await.unwrap().entries, 20);
    for at in (0..file.len()).step_by(7) {
        let mut damaged = file.clone();
        damaged[at] ^= 4;
        let error = read(damaged).await.unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        let mut cut = file.clone();
        cut.truncate(at);
        assert!(matches!(read(cut).await, Err(Error::Corrupt { .. })));
    }
}

/// What is measured for each pair: `COXSWAIN_MOVE=100000 cargo nextest run -p coxswain-storage --no-capture measured`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_of_many_objects_is_measured() {
    let count: usize = std::env::var("COXSWAIN_MOVE").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let mut places = Places::new();
    let kinds = ["embedded", "postgres", "etcd"];
    for from in kinds {
        let address = places.address(from);
        let source = open(&address).await;
        for chunk in 0..count / 100 {
            let value = vec![b'x'; 2_048];
            let batch = (0..100).map(|i| put(&format!("/registry/pods/{chunk}/{i}"), value.clone(), Expect::Absent));
            source.commit(batch.collect()).await.unwrap();
        }
        for to in kinds {
            let to_address = places.address(to);
            let report = migrate(&*source, open(&to_address).await, &to_address, &|_| {}).await.unwrap();
            assert_eq!(report.entries as usize, count);
            println!(
                "{from} to {to}: {count} objects in {:.1} s, writes refused for {:.3} s until the target was named",
                report.seconds, report.refused_seconds
            );
            assert!(report.refused_seconds < 2.0);
            let (_, revision) = moved::read(&*source).await.unwrap().unwrap();
            moved::remove(&*source, Expect::At(revision)).await.unwrap();
        }
    }
}
