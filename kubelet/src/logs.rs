//! Reads the log files that container runtimes write (upstream: `cri-client/pkg/logs`): `<time> stdout|stderr F|P <text>` a line.

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// A file that is followed is looked at this often.
const FOLLOW_POLL: Duration = Duration::from_millis(200);
const BLOCK_BYTES: usize = 64 << 10;

#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub follow: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit_bytes: Option<u64>,
    /// `Some("stdout")` or `Some("stderr")` for one stream only.
    pub stream: Option<String>,
}

struct Line<'a> {
    time: &'a [u8],
    stream: &'a [u8],
    partial: bool,
    text: &'a [u8],
}

/// Splits a line, without its newline. `None` for a line that no runtime wrote.
fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let text = parts.next().unwrap_or_default();
    if !matches!(stream, b"stdout" | b"stderr") {
        return None;
    }
    // Tags may be several, divided by colons; the first one says whether the line goes on.
    Some(Line { time, stream, partial: tag.split(|b| *b == b':').next() == Some(b"P"), text })
}

/// Turns lines of the file into what the client is to see. Keeps count of the limit.
struct Formatter {
    options: LogOptions,
    left: Option<u64>,
    at_line_start: bool,
}

impl Formatter {
    fn new(options: LogOptions) -> Self {
        let left = options.limit_bytes;
        Formatter { options, left, at_line_start: true }
    }

    fn exhausted(&self) -> bool {
        self.left == Some(0)
    }

    fn write(&mut self, line: &[u8], out: &mut BytesMut) {
        let Some(line) = parse(line) else { return };
        if self.options.stream.as_deref().is_some_and(|s| s.as_bytes() != line.stream) {
            return;
        }
        if let Some(since) = self.options.since {
            let time = std::str::from_utf8(line.time).ok().and_then(|t| t.parse::<Timestamp>().ok());
            if time.is_some_and(|t| t < since) {
                return;
            }
        }
        if self.options.timestamps && self.at_line_start {
            self.put(line.time, out);
            self.put(b" ", out);
        }
        self.put(line.text, out);
        if !line.partial {
            self.put(b"\n", out);
        }
        self.at_line_start = !line.partial;
    }

    fn put(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let take = self.left.map_or(bytes.len(), |left| bytes.len().min(left as usize));
        out.put_slice(&bytes[..take]);
        if let Some(left) = &mut self.left {
            *left -= take as u64;
        }
    }
}

/// Where the last `lines` lines of a file begin.
fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata()?.len();
    if lines == 0 {
        return Ok(length);
    }
    let mut block = vec![0; BLOCK_BYTES];
    let mut seen = 0;
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES as u64);
        let size = (end - start) as usize;
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block[..size])?;
        for i in (0..size).rev() {
            // The newline at the very end closes the last line; it does not begin another.
            if block[i] == b'\n' && start + i as u64 + 1 != length {
                seen += 1;
                if seen == lines {
                    return Ok(start + i as u64 + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

/// The tail of a log as text, for termination messages.
pub fn tail_text(path: &Path, lines_max: usize, bytes_max: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let start = tail_start(&mut file, lines_max as u64)?;
        file.seek(SeekFrom::Start(start))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        let mut formatter = Formatter::new(LogOptions { limit_bytes: Some(bytes_max), ..Default::default() });
        let mut out = BytesMut::new();
        for line in content.split(|b| *b == b'\n') {
            formatter.write(line, &mut out);
        }
        Ok(String::from_utf8_lossy(&out).into_owned())
    };
    read().unwrap_or_default()
}

/// Sends a container's log in pieces until its end, or as long as `is_running` says so when following. Ends early, without an error,
/// when the receiver is gone or the limit is reached.
pub async fn stream<F, R>(
    path: PathBuf,
    options: LogOptions,
    out: mpsc::Sender<io::Result<Bytes>>,
    is_running: F,
) -> io::Result<()>
where
    F: Fn() -> R,
    R: Future<Output = bool>,
{
    let follow = options.follow;
    let mut file = File::open(&path)?;
    let start = match options.tail_lines {
        Some(lines) => tail_start(&mut file, lines)?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start))?;
    let mut formatter = Formatter::new(options);
    let mut pending = BytesMut::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut last_look = false;
    loop {
        let count = file.read(&mut block)?;
        if count > 0 {
            pending.extend_from_slice(&block[..count]);
            let mut text = BytesMut::new();
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let line = pending.split_to(end + 1);
                formatter.write(&line[..end], &mut text);
                if formatter.exhausted() {
                    break;
                }
            }
            if !text.is_empty() && out.send(Ok(text.freeze())).await.is_err() {
                return Ok(());
            }
            if formatter.exhausted() {
                return Ok(());
            }
            continue;
        }
        if !follow {
            break;
        }
        // After rotation the name leads to another file: finish this one, then go on with that.
        if let Ok(now) = std::fs::metadata(&path)
            && now.ino() != file.metadata()?.ino()
        {
            file = File::open(&path)?;
            continue;
        }
        if last_look {
            break;
        }
        // What was written between the last read and the container's end must still be delivered: read once more after it.
        last_look = !is_running().await;
        if !last_look {
            tokio::select! {
                _ = tokio::time::sleep(FOLLOW_POLL) => {}
                _ = out.closed() => return Ok(()),
            }
        }
    }
    if !pending.is_empty() {
        let mut text = BytesMut::new();
        formatter.write(&pending, &mut text);
        let _ = out.send(Ok(text.freeze())).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr F two\n2026-01-01T00:00:03Z stdout P th\n2026-01-01T00:00:03Z stdout F ree\n";

    async fn read(options: LogOptions) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (sender, mut receiver) = mpsc::channel(16);
        stream(path, options, sender, || async { false }).await.unwrap();
        let mut text = Vec::new();
        while let Ok(piece) = receiver.try_recv() {
            text.extend_from_slice(&piece.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn options_select_lines() {
        assert_eq!(read(LogOptions::default()).await, "one\ntwo\nthree\n");
        assert_eq!(read(LogOptions { tail_lines: Some(3), ..Default::default() }).await, "two\nthree\n");
        assert_eq!(read(LogOptions { limit_bytes: Some(5), ..Default::default() }).await, "one\nt");
        let since = "2026-01-01T00:00:02Z".parse().ok();
        assert_eq!(
            read(LogOptions { since, timestamps: true, follow: true, ..Default::default() }).await,
            "2026-01-01T00:00:02Z two\n2026-01-01T00:00:03Z three\n"
        );
        assert_eq!(read(LogOptions { stream: Some("stderr".into()), ..Default::default() }).await, "two\n");
    }
}
