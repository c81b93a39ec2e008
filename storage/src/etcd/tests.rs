//! The contract on etcd servers of the test's own.

use super::{Etcd, Options, VALUE_BYTES_MAX};
use crate::Storage;
use crate::contract::{self, Factory};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

struct Server {
    process: Child,
    url: String,
    _directory: TempDir,
}

impl Server {
    fn start() -> Server {
        let directory = tempfile::tempdir().unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (url, peers) = (format!("http://127.0.0.1:{}", free()), format!("http://127.0.0.1:{}", free()));
        let process = Command::new("etcd")
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers, "--initial-cluster", &format!("default={peers}")])
            .arg("--data-dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("an etcd to test with");
        Server { process, url, _directory: directory }
    }
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
