//! A socket that gathers what an HTTP/2 connection writes, so that it leaves in few large pieces.
//!
//! The HTTP/2 layer flushes after every data frame. With TLS below, each flush is a record and a system call of its own, which
//! costs more than making a small answer. Here a flush is put off until the connection is polled again, which is asked for
//! at once: everything that the streams of a connection have ready by then goes out together.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes gathered at most before they are written in any case.
const BUFFER_MAX: usize = 64 * 1024;
/// Buffers that each thread keeps for whoever writes next: most connections are idle most of the time and need none.
const SPARE_MAX: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Only for connections whose every poll begins with a read, as HTTP/2's does: a flush that was put off happens there.
pub struct Coalesced<S> {
    inner: S,
    buffer: Vec<u8>,
    /// How much of the buffer has been written.
    written: usize,
    /// A flush was asked for and has not been completed.
    owed: bool,
}

impl<S: AsyncWrite + Unpin> Coalesced<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, buffer: Vec::new(), written: 0, owed: false }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.buffer.len() {
            let n = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.buffer[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.written = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        SPARE.with_borrow_mut(|spare| {
            if buffer.capacity() == BUFFER_MAX && spare.len() < SPARE_MAX {
                spare.push(buffer);
            }
        });
        Poll::Ready(Ok(()))
    }

    fn poll_settle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.owed = false;
        Poll::Ready(Ok(()))
    }

    /// Room in the buffer, made if there is none.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.len() >= BUFFER_MAX {
            ready!(self.poll_drain(cx))?;
        }
        if self.buffer.capacity() == 0 {
            let spare = SPARE.with_borrow_mut(Vec::pop);
            self.buffer = spare.unwrap_or_else(|| Vec::with_capacity(BUFFER_MAX));
        }
        Poll::Ready(Ok(BUFFER_MAX - self.buffer.len()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Coalesced<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.owed
            && let Poll::Ready(Err(error)) = this.poll_settle(cx)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesced<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(this.poll_room(cx))?.min(buf.len());
        this.buffer.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let room = ready!(this.poll_room(cx))?;
        let mut left = room;
        for buf in bufs {
            let n = left.min(buf.len());
            this.buffer.extend_from_slice(&buf[..n]);
            left -= n;
        }
        Poll::Ready(Ok(room - left))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.owed && !this.buffer.is_empty() {
            this.owed = true;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_settle(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_was_flushed_leaves_at_the_next_read_and_all_of_it_at_the_end() {
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = Coalesced::new(near);
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        });
        near.write_all(b"one ").await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(near.buffer, b"one ");
        let mut none = [0; 1];
        let read = tokio::time::timeout(std::time::Duration::from_millis(50), near.read(&mut none)).await;
        assert!(read.is_err() && near.buffer.is_empty() && !near.owed);
        let long = vec![b'x'; 3 * BUFFER_MAX];
        near.write_all(&long).await.unwrap();
        near.shutdown().await.unwrap();
        drop(near);
        assert_eq!(reader.await.unwrap(), [b"one ".as_slice(), &long].concat());
    }
}
