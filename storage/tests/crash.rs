//! kill -9 at any moment: what was acknowledged is there afterwards, revisions go on without reuse, changes have no gap.
//!
//! The test starts itself as a child, which writes from many tasks and tells each acknowledged commit on its standard
//! output. `COXSWAIN_CRASH_ROUNDS` makes it longer, `COXSWAIN_CRASH_SEED` repeats a run.

use bytes::Bytes;
use coxswain_storage::embedded::Options;
use coxswain_storage::{Embedded, Expect, ListOptions, Op, Revision, Storage, Write as StorageWrite};
use futures::StreamExt;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const WRITERS: u64 = 16;
const KEYS: u64 = 40;
const CHILD: &str = "COXSWAIN_CRASH_CHILD";

/// Small memtables and a short history, so that flushes, compactions and pruning are among what is interrupted.
fn options() -> Options {
    Options { memtable_bytes: 1 << 20, keep_history: Duration::from_millis(1_500), ..Options::default() }
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Ok(argument) = std::env::var(CHILD) {
        let (seed, directory) = argument.split_once(' ').unwrap();
        runtime.block_on(write_until_killed(Path::new(directory), seed.parse().unwrap()));
        return;
    }
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().unwrap());
    let seed = number("COXSWAIN_CRASH_SEED").unwrap_or_else(rand::random);
    println!("COXSWAIN_CRASH_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut known = Known::default();
    for round in 0..number("COXSWAIN_CRASH_ROUNDS").unwrap_or(20) {
        let acknowledged =
            run_and_kill(directory.path(), rng.random(), Duration::from_millis(rng.random_range(30..500)));
        println!("round {round}: {} acknowledged", acknowledged.len());
        runtime.block_on(known.check(directory.path(), acknowledged));
    }
    assert!(known.revision.0 > 1_000, "the children wrote too little for this to be a test");
}

async fn write_until_killed(directory: &Path, seed: u64) {
    let store = Arc::new(Embedded::open(directory, options()).unwrap());
    println!("\nopen");
    let tasks = (0..WRITERS).map(|writer| tokio::spawn(write_forever(store.clone(), writer, seed)));
    futures::future::join_all(tasks).await;
}

/// Each writer has keys of its own, so that it knows what they are.
async fn write_forever(store: Arc<Embedded>, writer: u64, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed ^ writer);
    loop {
        let key: Arc<str> = format!("/{writer}/{}", rng.random_range(0..KEYS)).into();
        let (present, _) = store.get(&key, None).await.unwrap();
        let expect = present.as_ref().map_or(Expect::Absent, |e| Expect::At(e.modified));
        let stamp: u64 = rng.random();
        let put = present.is_none() || rng.random_bool(0.8);
        let op = match put {
            true => Op::Put { value: value(stamp, rng.random_range(8..4_000)), ttl: None },
            false => Op::Delete,
        };
        let revision = store.commit(vec![StorageWrite { key: key.clone(), expect, op }]).await.unwrap();
        let line = format!("\nack {revision} {key} {}\n", if put { stamp } else { 0 });
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}

fn value(stamp: u64, length: usize) -> Bytes {
    stamp.to_be_bytes().iter().copied().cycle().take(length).collect()
}

fn stamp(value: &[u8]) -> u64 {
    u64::from_be_bytes(value[..8].try_into().unwrap())
}

/// Starts a child, kills it some time after it has opened the store, and returns the commits that it told.
fn run_and_kill(directory: &Path, seed: u64, after: Duration) -> Vec<(Revision, String, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nothing_acknowledged_is_lost_by_kill_9", "--nocapture"])
        .env(CHILD, format!("{seed} {}", directory.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while lines.next().expect("the child could not open the store").unwrap() != "open" {}
    let killer = std::thread::spawn(move || {
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    let mut acknowledged = Vec::new();
    for line in lines.map(Result::unwrap) {
        let words: Vec<&str> = line.split(' ').collect();
        // The last line may have been cut off: only a whole one counts, and a number cut short would be wrong.
        if let ["ack", revision, key, stamp] = words[..] {
            acknowledged.push((Revision(revision.parse().unwrap()), key.to_owned(), stamp.parse().unwrap_or(0)));
        }
    }
    killer.join().unwrap();
    acknowledged
}

/// What earlier rounds have established.
#[derive(Default)]
struct Known {
    revision: Revision,
    state: BTreeMap<String, (Revision, u64)>,
}

impl Known {
    async fn check(&mut self, directory: &Path, acknowledged: Vec<(Revision, String, u64)>) {
        // Only the children prune: on a busy machine history would end while it is read here.
        let store =
            Embedded::open(directory, Options { keep_history: Duration::from_secs(3600), ..options() }).unwrap();
        let revision = store.current_revision().await.unwrap();
        let highest = acknowledged.iter().map(|a| a.0).max().unwrap_or_default();
        assert!(revision >= highest, "acknowledged up to {highest}, but the store is at {revision}");
        assert!(revision >= self.revision, "the store went back");
        let mut by_revision = HashMap::new();
        let mut newest: BTreeMap<&str, Revision> = BTreeMap::new();
        for (at, key, stamp) in &acknowledged {
            assert!(*at > self.revision, "revision {at} was given twice");
            assert!(by_revision.insert(*at, (key, *stamp)).is_none(), "revision {at} was given twice in a round");
            let entry = newest.entry(key).or_default();
            *entry = (*entry).max(*at);
        }
        // The changes since the last round, or since what is left of them, lead to the present state.
        let mut state = std::mem::take(&mut self.state);
        let (mut seen, mut stream) = match store.changes("/", self.revision).await {
            Ok(stream) => (self.revision, stream),
            Err(coxswain_storage::Error::Compacted { oldest, .. }) => {
                let page = store.list("/", ListOptions { at: Some(oldest), ..Default::default() }).await.unwrap();
                state = page.entries.iter().map(|e| (e.key.to_string(), (e.modified, stamp(&e.value)))).collect();
                (oldest, store.changes("/", oldest).await.unwrap())
            }
            Err(other) => panic!("{other}"),
        };
        while seen < revision {
            let changes = stream.next().await.unwrap().unwrap();
            assert_eq!(changes.revision.0, seen.0 + 1, "a revision is missing");
            seen = changes.revision;
            for change in changes.changes {
                let now = change.value.as_ref().map_or(0, |e| stamp(&e.value));
                if let Some((key, told)) = by_revision.get(&seen) {
                    assert_eq!((&*change.key, change.value.is_some()), (key.as_str(), *told != 0));
                    assert!(*told == now || *told == 0, "revision {seen} is not what was acknowledged");
                }
                match change.value {
                    Some(entry) => state.insert(change.key.to_string(), (entry.modified, now)),
                    None => state.remove(&*change.key),
                };
            }
        }
        let page = store.list("/", ListOptions::default()).await.unwrap();
        let listed: BTreeMap<_, _> =
            page.entries.iter().map(|e| (e.key.to_string(), (e.modified, stamp(&e.value)))).collect();
        assert_eq!(listed, state, "the changes do not lead to the present state");
        // Whatever was acknowledged last for a key still stands, unless a later write, not yet acknowledged, replaced it.
        for (key, at) in newest {
            let (_, told) = by_revision[&at];
            match listed.get(key) {
                Some((modified, now)) if *modified == at => assert_eq!(*now, told, "{key}"),
                Some((modified, _)) => {
                    assert!(*modified > at, "{key} has gone back to {modified}, {at} was acknowledged")
                }
                None if told == 0 => {}
                None => assert!(revision > at, "{key} is gone, {at} was acknowledged"),
            }
        }
        (self.revision, self.state) = (revision, listed);
    }
}
