//! The connection between a server and its store, as bad as one likes: a TCP relay that passes bytes on, slowly, not at all,
//! or cuts everything off in the middle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Flow,
    /// Each piece of at most this many bytes waits this long.
    Slow {
        pause: Duration,
        bytes: usize,
    },
    /// Nothing moves, and nobody is told.
    Stall,
    /// New connections are closed at once.
    Refuse,
}

pub struct Wire {
    pub address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    cuts: Arc<watch::Sender<u64>>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    /// Relays from a port of its own to `target`.
    pub async fn to(target: SocketAddr) -> std::io::Result<Wire> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (mode, cuts) = (Arc::new(watch::Sender::new(Mode::Flow)), Arc::new(watch::Sender::new(0)));
        let task = tokio::spawn(accept(listener, target, mode.clone(), cuts.clone()));
        Ok(Wire { address, mode, cuts, task })
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Ends every connection there is, whatever is on its way.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    cuts: Arc<watch::Sender<u64>>,
) {
    loop {
        let Ok((near, _)) = listener.accept().await else { continue };
        if *mode.borrow() == Mode::Refuse {
            continue;
        }
        let (mode, mut cut) = (mode.subscribe(), cuts.subscribe());
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(target).await else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::select! {
                () = pump(near_in, far_out, mode.clone()) => {}
                () = pump(far_in, near_out, mode) => {}
                _ = cut.changed() => {}
            }
        });
    }
}

/// Moves bytes until either side ends, which ends both directions: a half-open connection is no use to these protocols.
async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut mode: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        let mut left = &buffer[..count];
        while !left.is_empty() {
            let now = *mode.borrow_and_update();
            let bytes = match now {
                Mode::Flow | Mode::Refuse => left.len(),
                Mode::Slow { pause, bytes } => {
                    tokio::time::sleep(pause).await;
                    left.len().min(bytes)
                }
                Mode::Stall => match mode.changed().await {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            if to.write_all(&left[..bytes]).await.is_err() {
                return;
            }
            left = &left[bytes..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    async fn answered(stream: &mut TcpStream) -> bool {
        let mut byte = [0];
        let ask = async { stream.write_all(b"x").await.is_ok() && stream.read_exact(&mut byte).await.is_ok() };
        tokio::time::timeout(Duration::from_millis(200), ask).await.unwrap_or(false)
    }

    #[tokio::test]
    async fn bytes_flow_stall_and_are_cut() {
        let wire = Wire::to(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(wire.address).await.unwrap();
        assert!(answered(&mut stream).await);
        wire.set(Mode::Stall);
        assert!(!answered(&mut stream).await);
        wire.set(Mode::Flow);
        let mut stalled = [0];
        stream.read_exact(&mut stalled).await.unwrap();
        assert!(answered(&mut stream).await, "what had stalled came, and then the rest");
        wire.cut();
        assert!(!answered(&mut stream).await);
        let mut stream = TcpStream::connect(wire.address).await.unwrap();
        assert!(answered(&mut stream).await, "new connections work after a cut");
    }
}
