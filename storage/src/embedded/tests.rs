//! The contract on the embedded store, and what only this backend has: its lock, its files, its disk.

use super::{Embedded, Options, VALUE_BYTES_MAX};
use crate::contract::{self, Factory, delete, put};
use crate::{Error, Expect, ListOptions, Revision, Storage};
use async_trait::async_trait;
use parking_lot::Mutex;
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
