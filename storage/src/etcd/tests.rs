//! The contract on etcd servers of the test's own.

use super::{Etcd, Options, VALUE_BYTES_MAX};
use crate::contract::{self, Factory, put};
use crate::{Error, Expect, Storage};
use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

struct Server {
    process: Child,
    url: String,
    peers: String,
    directory: TempDir,
}

impl Server {
    fn start() -> Server {
        let directory = tempfile::tempdir().unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (url, peers) = (format!("http://127.0.0.1:{}", free()), format!("http://127.0.0.1:{}", free()));
        let process = run(&url, &peers, directory.path());
        Server { process, url, peers, directory }
    }

    fn kill_and_restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = run(&self.url, &self.peers, self.directory.path());
    }
}

fn run(url: &str, peers: &str, directory: &Path) -> Child {
    Command::new("etcd")
        .args(["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peers])
        .args(["--initial-advertise-peer-urls", peers, "--initial-cluster", &format!("default={peers}")])
        .arg("--data-dir")
        .arg(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("an etcd to test with")
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Default)]
struct Servers(Mutex<Option<Server>>);

#[async_trait]
impl Factory for Servers {
    async fn fresh(&self) -> Arc<dyn Storage> {
        *self.0.lock() = Some(Server::start());
        self.reopen().await
    }

    async fn reopen(&self) -> Arc<dyn Storage> {
        let url = self.0.lock().as_ref().unwrap().url.clone();
        let mut tries = 0;
        loop {
            match Etcd::open(std::slice::from_ref(&url), Options::default()).await {
                Ok(store) => return Arc::new(store),
                Err(error) if tries > 100 => panic!("{error}"),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn value_bytes_max(&self) -> usize {
        VALUE_BYTES_MAX
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds() {
    contract::run(&Servers::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_go_on_without_a_gap_when_etcd_was_killed() {
    let servers = Servers::default();
    let store = servers.fresh().await;
    let start = store.current_revision().await.unwrap();
    let mut stream = store.changes("/", start).await.unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut number = 0;
        while number < 20 {
            number += 1;
            let key = format!("/{round}/{number}");
            match store.commit(vec![put(&key, "v", Expect::Any)]).await {
                Ok(revision) => acknowledged.push((revision, key)),
                Err(Error::Unavailable { .. }) => {
                    number -= 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
        servers.0.lock().as_mut().unwrap().kill_and_restart();
    }
    let mut last = start;
    let mut seen = Vec::new();
    while last < acknowledged.last().unwrap().0 {
        let commit = tokio::time::timeout(Duration::from_secs(30), stream.next()).await.expect("a change was due");
        let commit = commit.unwrap().unwrap();
        for change in &commit.changes {
            assert_eq!(commit.revision.0, last.0 + 1, "no gap");
            last = commit.revision;
            seen.push((commit.revision, change.key.to_string()));
        }
    }
    for commit in acknowledged {
        assert!(seen.contains(&commit), "{commit:?} was acknowledged");
    }
}
