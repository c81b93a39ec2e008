//! The contract on the embedded store, and what only this backend has: its lock, its files, its disk.

use super::{Embedded, Options, VALUE_BYTES_MAX};
use crate::contract::{self, Factory, delete, put};
use crate::{Error, Expect, ListOptions, Op, Revision, Storage, Write};
use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

struct Directories {
    options: Options,
    made: Mutex<Vec<TempDir>>,
}

#[async_trait]
impl Factory for Directories {
    async fn fresh(&self) -> Arc<dyn Storage> {
        self.made.lock().push(tempfile::tempdir().unwrap());
        self.reopen().await
    }

    async fn reopen(&self) -> Arc<dyn Storage> {
        let directory = self.made.lock().last().unwrap().path().to_owned();
        Arc::new(Embedded::open(&directory, self.options.clone()).unwrap())
    }

    fn value_bytes_max(&self) -> usize {
        VALUE_BYTES_MAX
    }
}

async fn contract_with(options: Options) {
    contract::run(&Directories { options, made: Mutex::default() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds() {
    contract_with(Options::default()).await;
}

/// Every reader of changes soon falls out of so small a ring and reads from disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds_when_changes_come_from_disk() {
    contract_with(Options { ring_bytes: 500, memtable_bytes: 1 << 20, ..Options::default() }).await;
}

fn open(directory: &Path) -> crate::Result<Embedded> {
    Embedded::open(directory, Options::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let _first = open(directory.path()).unwrap();
    let refusal = open(directory.path()).err().unwrap().to_string();
    assert!(refusal.contains("in use by another process"), "{refusal}");
    assert!(refusal.contains(directory.path().to_str().unwrap()), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn history_older_than_asked_for_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { keep_history: Duration::from_millis(500), ..Options::default() };
    let store = Embedded::open(directory.path(), options.clone()).unwrap();
    let first = store.commit(vec![put("/a", "1", Expect::Any)]).await.unwrap();
    for i in 0..1_000 {
        let gone = store.commit(vec![put("/gone", format!("{i}"), Expect::Any)]).await.unwrap();
        store.commit(vec![delete("/gone", Expect::At(gone))]).await.unwrap();
    }
    let last = store.commit(vec![put("/a", "2", Expect::Any)]).await.unwrap();
    wait_for("the history to be removed", || store.published.now().unwrap().disk.history.is_empty().unwrap()).await;
    assert!(matches!(store.get("/a", Some(first)).await, Err(Error::Compacted { oldest, .. }) if oldest == last));
    let view = store.published.now().unwrap();
    assert_eq!(view.disk.current.len().unwrap(), 1, "no mark of a deletion is left behind");
    drop(view);
    drop(store);
    let store = Embedded::open(directory.path(), options).unwrap();
    assert_eq!(store.current_revision().await.unwrap(), last, "revisions go on where they were, without any history");
    assert_eq!(store.get("/a", None).await.unwrap().0.unwrap().modified, last);
    assert_eq!(store.commit(vec![put("/a", "3", Expect::At(last))]).await.unwrap(), Revision(last.0 + 1));
}

async fn wait_for(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain for {what}");
}

/// The clock of a machine that came up ten years ahead and was then set right.
#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_was_wrong_neither_ends_nor_prolongs_anything() {
    let directory = tempfile::tempdir().unwrap();
    let ahead = || std::time::SystemTime::now() + Duration::from_secs(10 * 365 * 86_400);
    let with_ttl = |key: &str, ms| {
        let op = Op::Put { value: "v".into(), ttl: Some(Duration::from_millis(ms)) };
        vec![Write { key: key.into(), expect: Expect::Any, op }]
    };
    let store = Embedded::open(directory.path(), Options { wall_clock: ahead, ..Options::default() }).unwrap();
    let first = store.commit(with_ttl("/long", 3_600_000)).await.unwrap();
    store.commit(with_ttl("/short", 2_000)).await.unwrap();
    drop(store);
    let store = open(directory.path()).unwrap();
    store.commit(with_ttl("/later", 1_000)).await.unwrap();
    let begun = std::time::Instant::now();
    let left = loop {
        let left = store.list("/", ListOptions::default()).await.unwrap().entries;
        if left.len() == 1 || begun.elapsed() > Duration::from_secs(10) {
            break left;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(left.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["/long"]);
    assert!(store.get("/long", Some(first)).await.unwrap().0.is_some(), "history stays as long as it is to be kept");
}

/// Writes some data, closes, lets `damage` loose on the directory, and returns what opening and reading says.
async fn after_damage(damage: impl FnOnce(&Path)) -> crate::Result<usize> {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    for i in 0..200 {
        store.commit(vec![put(&format!("/k/{i}"), vec![i as u8; 1_000], Expect::Any)]).await.unwrap();
    }
    store.published.now().unwrap().disk.current.rotate_memtable_and_wait().unwrap();
    drop(store);
    damage(directory.path());
    let store = open(directory.path())?;
    Ok(store.list("/", ListOptions::default()).await?.entries.len())
}

fn files_below(directory: &Path, keep: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path, keep));
        } else if keep(&path) {
            found.push(path);
        }
    }
    found
}

fn is_journal(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "jnl")
}

#[track_caller]
fn assert_corrupt(result: crate::Result<usize>) {
    match result {
        Err(Error::Corrupt { place, .. }) => assert!(place.contains('/'), "a place is named: {place}"),
        other => panic!("damage went unnoticed: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_without_damage_opens() {
    assert_eq!(after_damage(|_| ()).await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_lost_its_end_is_noticed() {
    let cut = |directory: &Path| {
        for journal in files_below(directory, &is_journal) {
            std::fs::OpenOptions::new().write(true).open(journal).unwrap().set_len(20_000).unwrap();
        }
    };
    assert_corrupt(after_damage(cut).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_a_table_is_noticed() {
    let flip = |directory: &Path| {
        let tables = files_below(directory, &|p| p.parent().unwrap().ends_with("tables"));
        let table = tables.iter().max_by_key(|p| p.metadata().unwrap().len()).unwrap();
        let mut bytes = std::fs::read(table).unwrap();
        bytes[5_000] ^= 1;
        std::fs::write(table, bytes).unwrap();
    };
    assert_corrupt(after_damage(flip).await);
}

/// The engine ends the process over these, as it takes them for granted.
#[tokio::test]
async fn a_manifest_that_the_engine_would_not_survive_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let number = |p: &Path| p.file_name()?.to_str()?.strip_prefix('v')?.parse::<u64>().ok();
    let in_force = |p: &Path| {
        let current = std::fs::read(p.with_file_name("current")).ok()?;
        Some(u64::from_le_bytes(*current.first_chunk()?))
    };
    let is_manifest = |p: &Path| number(p).is_some() && number(p) == in_force(p);
    let manifests = files_below(dir.path(), &is_manifest);
    assert!(!manifests.is_empty());
    for manifest in manifests {
        let whole = std::fs::read(&manifest).unwrap();
        for (section, wrong) in [(&b"level_count"[..], 135), (b"filter_hash_type", 1)] {
            let reader = sfa::Reader::new(&manifest).unwrap();
            let at = reader.toc().section(section).unwrap().pos() as usize;
            let mut bytes = whole.clone();
            bytes[at] = wrong;
            std::fs::write(&manifest, bytes).unwrap();
            let refused = open(dir.path()).err().unwrap();
            assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
            std::fs::write(&manifest, &whole).unwrap();
        }
    }
    open(dir.path()).unwrap();
}

/// Whatever bit of whatever file is turned over or cut off: the store says that it is damaged, or has everything as it was.
/// It never serves anything else.
#[tokio::test(flavor = "multi_thread")]
async fn no_damage_makes_the_store_serve_what_was_never_written() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let value = |i: usize| vec![i as u8; 400 + i];
    let whole = tempfile::tempdir().unwrap();
    let store = open(whole.path()).unwrap();
    for i in 0..400 {
        store.commit(vec![put(&format!("/k/{i}"), value(i), Expect::Any)]).await.unwrap();
        // A part of it is in tables, the rest in the journal only.
        if i == 250 {
            let view = store.published.now().unwrap();
            view.disk.current.rotate_memtable_and_wait().unwrap();
            view.disk.history.rotate_memtable_and_wait().unwrap();
        }
    }
    drop(store);
    let (mut refused, mut unharmed) = (0, 0);
    for round in 0..60 {
        let copy = tempfile::tempdir().unwrap();
        let copied = std::process::Command::new("cp").arg("-a").arg(whole.path().join(".")).arg(copy.path()).status();
        assert!(copied.unwrap().success());
        let files = files_below(copy.path(), &|p| p.metadata().unwrap().len() > 0);
        let file = &files[rng.random_range(0..files.len())];
        let mut bytes = std::fs::read(file).unwrap();
        // Journals are allocated ahead: what lies behind the data is nobody's.
        let end = bytes.iter().rposition(|b| *b != 0).map_or(1, |at| at + 1);
        let at = rng.random_range(0..end);
        match rng.random_bool(0.7) {
            true => bytes[at] ^= 1 << rng.random_range(0..8),
            false => bytes.truncate(at),
        }
        std::fs::write(file, bytes).unwrap();
        let what = format!("seed {seed}, round {round}: {} at {at} of {end}", file.display());
        let read = async {
            let store = open(copy.path())?;
            let page = store.list("/", ListOptions::default()).await?;
            let mut stream = store.changes("/", Revision(0)).await?;
            let mut seen = Revision(0);
            while seen < page.revision {
                let commit = stream.next().await.unwrap()?;
                assert_eq!(commit.revision.0, seen.0 + 1, "{what}");
                seen = commit.revision;
            }
            Ok::<_, Error>(page)
        };
        match read.await {
            Ok(page) => {
                unharmed += 1;
                let found: BTreeMap<String, Vec<u8>> =
                    page.entries.iter().map(|e| (e.key.to_string(), e.value.to_vec())).collect();
                let written: BTreeMap<String, Vec<u8>> = (0..400).map(|i| (format!("/k/{i}"), value(i))).collect();
                assert!(found == written, "{what}: {} entries are served, of which not all are right", found.len());
            }
            Err(Error::Corrupt { .. } | Error::Unavailable { .. }) => refused += 1,
            Err(other) => panic!("{what}: {other}"),
        }
    }
    println!("{refused} refused, {unharmed} unharmed");
    assert!(refused > 10, "of 60 damages only {refused} were noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_a_newer_version_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let disk = store.published.now().unwrap().disk.clone();
    disk.meta.insert("format", 2u64.to_le_bytes()).unwrap();
    drop((disk, store));
    let refusal = open(directory.path()).err().unwrap().to_string();
    assert!(refusal.contains("format 2") && refusal.contains("newer version of Coxswain"), "{refusal}");
}
