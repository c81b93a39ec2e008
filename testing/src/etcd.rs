//! An etcd of a test's own, and etcd's own tool to look into it.

use crate::ports;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Names another etcd than the one that is installed.
const PROGRAM: &str = "COXSWAIN_TEST_ETCD";

pub struct Etcd {
    process: Child,
    url: String,
    peers: String,
    directory: TempDir,
    more: Vec<String>,
}

impl Etcd {
    /// Returns at once: it is for the caller to try until it answers.
    pub fn start() -> Self {
        Self::start_with("http", |_| Vec::new())
    }

    /// `more` are arguments that may need the directory.
    pub fn start_with(scheme: &str, more: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("{scheme}://127.0.0.1:{}", ports::free());
        let peers = format!("http://127.0.0.1:{}", ports::free());
        let more = more(directory.path());
        let process = run(&url, &peers, directory.path(), &more);
        Self { process, url, peers, directory, more }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// As an address of this project's commands.
    pub fn address(&self) -> String {
        self.url.replace("http", "etcd")
    }

    pub fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it runs");
    }

    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.process = run(&self.url, &self.peers, self.directory.path(), &self.more);
    }

    /// What etcd's tool prints, as an administrator would use it.
    pub fn etcdctl(&self, arguments: &[&str]) -> Vec<u8> {
        let mut command = Command::new("etcdctl");
        let output = command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url]).args(arguments).output();
        let output = output.expect("an etcdctl to test with");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

fn run(url: &str, peers: &str, directory: &Path, more: &[String]) -> Child {
    Command::new(std::env::var_os(PROGRAM).unwrap_or_else(|| "etcd".into()))
        .args(["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peers])
        .args(["--initial-advertise-peer-urls", peers, "--initial-cluster", &format!("default={peers}")])
        .arg("--data-dir")
        .arg(directory)
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("an etcd to test with")
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
