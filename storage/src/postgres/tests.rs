//! The contract on a Postgres server of the test's own, and what only several servers on one database have.

mod failures;
mod plans;
mod security;

use super::{Options, Postgres, VALUE_BYTES_MAX};
use crate::contract::{self, Factory, put};
use crate::{Changes, Error, Expect, Revision, Storage};
use async_trait::async_trait;
use futures::StreamExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// A Postgres that listens on a socket in a temporary directory and ends with the test.
pub(crate) struct Server {
    directory: TempDir,
    settings: Vec<String>,
    process: Child,
    schemas: AtomicUsize,
}

fn program(name: &str) -> PathBuf {
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        let program = Path::new(String::from_utf8(output.stdout).unwrap().trim()).join(name);
        if program.exists() {
            return program;
        }
    }
    // Debian keeps the servers of each version apart, and installs pg_config only with the headers.
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("Postgres is installed");
    let mut programs: Vec<PathBuf> = versions.flatten().map(|v| v.path().join("bin").join(name)).collect();
    programs.retain(|p| p.exists());
    programs.sort();
    programs.pop().expect("Postgres is installed")
}

/// Postgres refuses to run as root, so root runs it as the user that its package makes.
fn command(program: PathBuf) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// Gives a file to the user that the server runs as, if root runs the test.
fn own(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().expect("a user named postgres");
        nix::unistd::chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}

fn run(directory: &Path, settings: &[String]) -> Child {
    let mut command = command(program("postgres"));
    command.arg("-D").arg(directory.join("data")).args(["-c", "listen_addresses=", "-c", "shared_buffers=32MB"]);
    for setting in settings {
        command.args(["-c", setting]);
    }
    command.arg("-k").arg(directory).stderr(Stdio::null()).spawn().unwrap()
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::start_with(&[], |_| {})
    }

    /// With more settings, after the data directory was prepared.
    fn start_with(settings: &[&str], prepare: impl FnOnce(&Path)) -> Server {
        let directory = tempfile::tempdir().unwrap();
        own(directory.path());
        let data = directory.path().join("data");
        let made = command(program("initdb"))
            .args(["--username=coxswain", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        prepare(&data);
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        let process = run(directory.path(), &settings);
        Server { directory, settings, process, schemas: AtomicUsize::new(0) }
    }

    /// Ends it without a word to anybody, as a crash would, and starts it again.
    fn crash(&mut self) {
        self.end(nix::sys::signal::Signal::SIGQUIT);
        self.process = run(self.directory.path(), &self.settings);
    }

    fn end(&mut self, signal: nix::sys::signal::Signal) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.process.id() as i32), signal);
        let _ = self.process.wait();
    }

    /// As an address of this project's commands.
    pub(crate) fn address(&self, schema: &str) -> String {
        let directory = self.directory.path().display().to_string().replace('/', "%2F");
        format!("postgres://coxswain@{directory}/postgres?schema={schema}")
    }

    fn url(&self) -> String {
        format!("host={} user=coxswain dbname=postgres", self.directory.path().display())
    }

    async fn open(&self, schema: usize, options: Options) -> Postgres {
        let url = self.url();
        let options = Options { schema: format!("test_{schema}"), ..options };
        let mut tries = 0;
        loop {
            match Postgres::open(&url, options.clone()).await {
                Ok(store) => return store,
                Err(error) if tries > 200 => panic!("{error}"),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Has the database cut every connection but the one that asks for it.
    async fn cut_connections(&self, store: &Postgres) {
        let client = store.shared.connections.connect().await.unwrap();
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name = 'coxswain' AND pid <> pg_backend_pid()";
        client.batch_execute(sql).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A fast shutdown, which cuts the connections there are.
        self.end(nix::sys::signal::Signal::SIGINT);
    }
}

#[async_trait]
impl Factory for Server {
    async fn fresh(&self) -> Arc<dyn Storage> {
        self.schemas.fetch_add(1, Ordering::Relaxed);
        self.reopen().await
    }

    async fn reopen(&self) -> Arc<dyn Storage> {
        Arc::new(self.open(self.schemas.load(Ordering::Relaxed), Options::default()).await)
    }

    fn value_bytes_max(&self) -> usize {
        VALUE_BYTES_MAX
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds() {
    contract::run(&Server::start()).await;
}

async fn next(stream: &mut (impl futures::Stream<Item = crate::Result<Changes>> + Unpin)) -> Changes {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("a change was due");
        let changes = next.unwrap().unwrap();
        if !changes.changes.is_empty() {
            return changes;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_share_one_order_even_when_connections_are_lost() {
    let server = Server::start();
    let stores = [server.open(1, Options::default()).await, server.open(1, Options::default()).await].map(Arc::new);
    let mut streams = Vec::new();
    for store in &stores {
        streams.push(store.changes("/", Revision(0)).await.unwrap());
    }
    let write = |store: Arc<Postgres>, name: usize| async move {
        let mut acknowledged = Vec::new();
        let mut number = 0;
        while acknowledged.len() < 200 {
            number += 1;
            let key = format!("/{name}/{number:05}");
            match store.commit(vec![put(&key, "v", Expect::Absent)]).await {
                Ok(revision) => {
                    acknowledged.push((revision, key.clone()));
                    let mut read = store.get(&key, None).await;
                    while let Err(Error::Unavailable { .. }) = read {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        read = store.get(&key, None).await;
                    }
                    assert!(read.unwrap().0.is_some(), "{key} was acknowledged and cannot be read");
                }
                // A lost connection leaves the outcome open; the write is not counted.
                Err(Error::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(other) => panic!("{other}"),
            }
        }
        acknowledged
    };
    let writers: Vec<_> = stores.iter().enumerate().map(|(name, s)| tokio::spawn(write(s.clone(), name))).collect();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.cut_connections(&stores[0]).await;
    }
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    acknowledged.sort();
    let newest = acknowledged.last().unwrap().0;
    let mut seen = [Vec::new(), Vec::new()];
    for (stream, seen) in streams.iter_mut().zip(&mut seen) {
        let mut last = Revision(0);
        while last < newest {
            let commit = next(stream).await;
            assert_eq!(commit.revision.0, last.0 + 1, "no gap");
            last = commit.revision;
            seen.push((commit.revision, commit.changes[0].key.to_string()));
        }
    }
    assert_eq!(seen[0], seen[1], "all servers tell the same");
    for commit in acknowledged {
        assert!(seen[0].contains(&commit), "{commit:?} was acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_one_server_is_at_once_visible_at_the_other() {
    let server = Server::start();
    let [here, there] = [server.open(1, Options::default()).await, server.open(1, Options::default()).await];
    let mut stream = there.changes("/", Revision(0)).await.unwrap();
    for number in 0..20 {
        let key = format!("/{number}");
        let revision = here.commit(vec![put(&key, "v", Expect::Absent)]).await.unwrap();
        assert_eq!(there.get(&key, None).await.unwrap().0.unwrap().modified, revision);
        assert_eq!(next(&mut stream).await.revision, revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_older_than_asked_for_is_removed() {
    let server = Server::start();
    let options = Options { keep_history: Duration::from_millis(200), ..Options::default() };
    let store = server.open(1, options).await;
    let mut last = Revision(0);
    for number in 0..50 {
        last = store.commit(vec![put("/a", format!("{number}"), Expect::Any)]).await.unwrap();
    }
    let client = store.shared.connections.session().await;
    let mut left = 1;
    for _ in 0..100 {
        left = client.query_one("SELECT count(*) FROM history", &[]).await.unwrap().get::<_, i64>(0);
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(left, 0);
    assert!(matches!(store.get("/a", Some(Revision(1))).await, Err(Error::Compacted { oldest, .. }) if oldest == last));
    assert_eq!(store.get("/a", Some(last)).await.unwrap().0.unwrap().modified, last);
}
