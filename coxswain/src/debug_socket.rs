//! `--debug-socket-path`: profiles and the level of the log for whoever may open a socket on this machine, so that they can be had from
//! an API server that authenticates nobody any more (upstream: `apiserver/pkg/server/routes/debugsocket.go`).

use crate::secure_port::debug;
use coxswain_profiling::routes;
use http::Request;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 16;
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until the shutdown. A socket that cannot be made is no reason not to serve the API.
pub fn start(path: &Path, shutdown: CancellationToken) {
    match listen(path) {
        Ok(listener) => {
            tokio::spawn(async move {
                tokio::select! {
                    () = accept(listener) => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
        Err(error) => tracing::error!(path = %path.display(), %error, "no debug socket"),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

async fn accept(listener: UnixListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    connection(stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection on the debug socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream) {
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(match request.uri().path() {
            "/debug/pprof/cmdline" => routes::cmdline().map(Full::new),
            _ => debug(request).await,
        })
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
    // Who goes away in the middle of an answer is no concern of ours.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(path: &Path, request: &str) -> io::Result<String> {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n").as_bytes()).await?;
        stream.write_all(b"content-length: 1\r\n\r\n3").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn the_socket_asks_for_no_credential() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("debug.sock");
        // What an earlier process left behind is replaced.
        std::fs::write(&path, "")?;
        let shutdown = CancellationToken::new();
        start(&path, shutdown.clone());
        let answer = ask(&path, "GET /debug/pprof/cmdline").await?;
        let program = std::env::args().next().unwrap_or_default();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(&program), "{answer}");
        let answer = ask(&path, "PUT /debug/flags/v").await?;
        assert!(answer.ends_with("\r\n\r\nsuccessfully set klog.logging.verbosity to 3\n"), "{answer}");
        let answer = ask(&path, "GET /metrics").await?;
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
        Ok(())
    }
}
