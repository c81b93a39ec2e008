//! An etcd of the test's own, and etcd's own tool to look into it.

use anyhow::{Context, Result};
use coxswain_storage::Storage;
use coxswain_storage::etcd::Options;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

pub struct Etcd {
    process: Child,
    url: String,
    _directory: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Etcd {
    pub async fn start(root: &str) -> Result<(Etcd, Arc<dyn Storage>)> {
        let directory = tempfile::tempdir()?;
        let free = || Ok::<_, std::io::Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let (url, peers) = (format!("http://127.0.0.1:{}", free()?), format!("http://127.0.0.1:{}", free()?));
        let process = Command::new("etcd")
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers, "--initial-cluster", &format!("default={peers}")])
            .arg("--data-dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("an etcd to test with")?;
        let etcd = Etcd { process, url, _directory: directory };
        let options = Options { root: root.to_owned(), ..Options::default() };
        let mut tries = 0;
        loop {
            match coxswain_storage::Etcd::open(std::slice::from_ref(&etcd.url), options.clone()).await {
                Ok(storage) => return Ok((etcd, Arc::new(storage))),
                Err(error) if tries > 100 => return Err(error.into()),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn etcdctl(&self, arguments: &[&str]) -> Vec<u8> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url])
            .args(arguments)
            .output()
            .expect("an etcdctl to test with");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// The value of a key, as an administrator would look at it.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let mut value = self.etcdctl(&["get", key, "--print-value-only"]);
        // The tool ends each value with a line feed.
        value.pop()?;
        Some(value)
    }

    pub fn has_lease(&self, key: &str) -> bool {
        let fields = String::from_utf8_lossy(&self.etcdctl(&["get", key, "--write-out=fields"])).into_owned();
        fields.lines().any(|line| line.starts_with("\"Lease\" :") && !line.ends_with(" 0"))
    }
}
