//! A disk that runs full: writes fail with `NoSpace`, reads go on, and once there is room again so do writes, without a
//! restart. The disk is a small tmpfs in a mount namespace that the test makes by starting itself under `unshare`.

use coxswain_storage::embedded::Options;
use coxswain_storage::{Embedded, Error, Expect, ListOptions, Op, Revision, Storage, Write};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const CHILD: &str = "COXSWAIN_DISK_FULL_CHILD";

/// Runs `test` again as the only one of a child whose directory is a disk of 200 MiB.
fn on_a_small_disk(test: &str, body: impl AsyncFnOnce(&Path)) {
    if let Some(directory) = std::env::var_os(CHILD) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(body(Path::new(&directory)));
    }
    let directory = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size=200m tmpfs \"${CHILD}\" && exec \"$0\" --exact {test} --nocapture");
    let mut unshare = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    let status = unshare
        .args(["--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, directory.path())
        .status()
        .unwrap();
    assert!(status.success(), "the child failed: {status}");
}

async fn put(store: &Embedded, number: usize) -> coxswain_storage::Result<Revision> {
    let op = Op::Put { value: vec![number as u8; 50_000].into(), ttl: None };
    store.commit(vec![Write { key: format!("/k/{number:05}").into(), expect: Expect::Any, op }]).await
}

/// Fills the disk up to the last byte by a file beside the data.
fn fill(ballast: &Path) {
    let mut file = std::fs::File::create(ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

async fn count(store: &Embedded) -> usize {
    store.list("/k/", ListOptions::default()).await.unwrap().entries.len()
}

#[test]
fn a_nearly_full_disk_takes_no_values_but_deletions() {
    on_a_small_disk("a_nearly_full_disk_takes_no_values_but_deletions", async |directory| {
        let options = Options { reserve_bytes: 64 << 20, ..Options::default() };
        let store = Embedded::open(&directory.join("data"), options).unwrap();
        let mut written = 0;
        let refusal = loop {
            match put(&store, written).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refusal, Error::NoSpace(_)), "{refusal}");
        assert!(written > 100, "there was room for {written} only");
        assert_eq!(count(&store).await, written);
        // The engine's own tidying may need the room for a moment.
        let delete = Write { key: "/k/00000".into(), expect: Expect::Any, op: Op::Delete };
        let refused = Instant::now();
        while let Err(error) = store.commit(vec![delete.clone()]).await {
            assert!(refused.elapsed() < Duration::from_secs(60), "a deletion is refused: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(count(&store).await, written - 1);
    });
}

#[test]
fn a_write_that_finds_the_disk_full_is_refused_and_later_ones_recover() {
    on_a_small_disk("a_write_that_finds_the_disk_full_is_refused_and_later_ones_recover", async |directory| {
        let data = directory.join("data");
        let ballast = directory.join("ballast");
        let options = Options { reserve_bytes: 0, ..Options::default() };
        let store = Embedded::open(&data, options.clone()).unwrap();
        let mut written = 0;
        let mut last = Revision(0);
        for _ in 0..20 {
            last = put(&store, written).await.unwrap();
            written += 1;
        }
        fill(&ballast);
        let refusal = loop {
            match put(&store, written).await {
                Ok(revision) => (written, last) = (written + 1, revision),
                Err(error) => break error,
            }
        };
        // Of the very write that found the disk full, nobody knows yet whether it will turn out to be there.
        assert!(matches!(refusal, Error::Unavailable { operation: "commit", .. }), "{refusal}");
        for _ in 0..3 {
            assert_eq!(count(&store).await, written, "reads go on");
            assert!(matches!(put(&store, written).await, Err(Error::NoSpace(_))), "still full");
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        std::fs::remove_file(&ballast).unwrap();
        let freed = Instant::now();
        let recovered = loop {
            match put(&store, written).await {
                Ok(revision) => break revision,
                Err(_) if freed.elapsed() < Duration::from_secs(10) => {
                    tokio::time::sleep(Duration::from_millis(50)).await
                }
                Err(error) => panic!("no recovery: {error}"),
            }
        };
        assert!(recovered > last);
        assert_eq!(count(&store).await, written + 1);
        drop(store);
        let store = Embedded::open(&data, options).unwrap();
        assert_eq!((count(&store).await, store.current_revision().await.unwrap()), (written + 1, recovered));
    });
}
