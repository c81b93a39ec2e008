//! What an operator may ask of a server that uses an embedded store: a backup, and to move. Nobody else can open the
//! store's directory meanwhile.
//!
//! The server listens on the socket `admin.sock` in that directory, which only its own user may open. A client sends one
//! line of JSON. The answer to `{"do":"backup"}` is the backup; to `{"do":"migrate","to":ADDRESS}` lines of JSON, of which
//! the last has `done` or `error`.

use anyhow::{Context, Result, bail};
use coxswain_storage::migrate::{Progress, Report};
use coxswain_storage::switch::Switch;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

const REQUEST_BYTES_MAX: u64 = 64 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// One connection at a time is worked on: whoever moves a store is not to be disturbed.
const WAITING_MAX: u32 = 16;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "camelCase")]
enum Request {
    Backup,
    Migrate { to: String },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Progress(Progress),
    Done(Report),
    Error(String),
}

fn path(directory: &Path) -> PathBuf {
    directory.join("admin.sock")
}

/// Listens until the returned guard is dropped. A socket that cannot be made is no reason not to serve.
pub fn listen(directory: &Path, switch: Arc<Switch>) -> Option<Guard> {
    let path = path(directory);
    match bind(&path) {
        Ok(listener) => {
            let task = tokio::spawn(accept(listener, switch));
            Some(Guard { path, task })
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no backups and moves while the server runs");
            None
        }
    }
}

fn bind(path: &Path) -> std::io::Result<UnixListener> {
    // The directory is locked by this process, so a socket that is there belongs to one that has ended.
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let socket = tokio::net::UnixSocket::new_stream()?;
    socket.bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(WAITING_MAX)
}

pub struct Guard {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, switch: Arc<Switch>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = serve(stream, &switch).await {
                    tracing::warn!(%error, "a request of the operator failed");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection of the operator failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, switch: &Switch) -> Result<()> {
    let (from, mut to) = stream.into_split();
    let mut line = String::new();
    let mut from = BufReader::new(tokio::io::AsyncReadExt::take(from, REQUEST_BYTES_MAX));
    tokio::time::timeout(REQUEST_TIMEOUT, from.read_line(&mut line)).await.context("no request came")??;
    if line.is_empty() {
        return Ok(());
    }
    let request: Request = serde_json::from_str(&line).context("the request")?;
    let store = switch.store();
    match request {
        Request::Backup => {
            let mut to = tokio::io::BufWriter::with_capacity(256 << 10, to);
            coxswain_storage::backup::write(&*store, &mut to, |_| {}).await.map_err(|e| anyhow::anyhow!("{e}"))?;
            to.shutdown().await.context("answering")?;
        }
        Request::Migrate { to: address } => {
            let (tell, mut told) = mpsc::channel(64);
            let progress = move |progress| drop(tell.try_send(progress));
            let moving = async {
                let moved = crate::storage_command::move_to(&*store, &address, &progress).await;
                drop(progress);
                moved
            };
            let telling = async {
                while let Some(progress) = told.recv().await {
                    // Whoever asked may have gone; the move goes on.
                    let _ = to.write_all(&line_of(&Answer::Progress(progress))).await;
                }
            };
            let (moved, ()) = tokio::join!(moving, telling);
            let answer = match moved {
                Ok(report) => Answer::Done(report),
                Err(error) => Answer::Error(format!("{error:#}")),
            };
            to.write_all(&line_of(&answer)).await.context("answering")?;
        }
    }
    Ok(())
}

fn line_of(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Whether a server has the store open.
pub async fn is_served(directory: &Path) -> bool {
    UnixStream::connect(path(directory)).await.is_ok()
}

async fn ask(directory: &Path, request: &Request) -> Result<UnixStream> {
    let path = path(directory);
    let mut stream = UnixStream::connect(&path).await.with_context(|| format!("connecting to {}", path.display()))?;
    stream.write_all(&line_of(request)).await.context("asking the server")?;
    Ok(stream)
}

/// The server's backup, as it comes.
pub async fn backup(directory: &Path) -> Result<BufReader<UnixStream>> {
    Ok(BufReader::with_capacity(256 << 10, ask(directory, &Request::Backup).await?))
}

/// Has the server move, and go along.
pub async fn migrate(directory: &Path, to: &str, told: &(dyn Fn(Progress) + Send + Sync)) -> Result<Report> {
    let mut lines = BufReader::new(ask(directory, &Request::Migrate { to: to.to_owned() }).await?).lines();
    while let Some(line) = lines.next_line().await.context("listening to the server")? {
        match serde_json::from_str(&line).context("the server's answer")? {
            Answer::Progress(progress) => told(progress),
            Answer::Done(report) => return Ok(report),
            Answer::Error(error) => bail!("{error}"),
        }
    }
    bail!("the server ended without an answer; whether the data has moved shows when it starts again")
}
