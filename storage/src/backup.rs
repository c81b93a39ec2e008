//! Backups: all entries of a store as of one revision, in one stream that tells by itself whether it is whole.
//!
//! # The format
//!
//! A file is the eight bytes `CXBACKUP` and then records. A record is a kind (1 byte), the length of its content (4 bytes),
//! the content, and a check: the first 8 bytes of the SHA-256 of everything in the file up to there. So a damaged, missing,
//! doubled or displaced record is noticed where it is. Integers are little-endian.
//!
//! | kind | content |
//! | --- | --- |
//! | 1, the first | JSON: `format` (1), `revision`, `time` (ms since 1970), `root` |
//! | 2, an entry | created (8), modified (8), expires in ms since 1970 or 0 (8), length of the key (4), the key, the value |
//! | 3, the last | JSON: `entries`, `bytes` (of the values), `sha256` of everything before this record |
//!
//! Entries are in the order of keys. Programs refuse a `format` that they do not know; unknown fields of the JSON parts are
//! passed over.

use crate::transfer::{Filling, PAGE, each_page};
use crate::{Entry, Error, Result, Revision, Storage};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const MAGIC: &[u8; 8] = b"CXBACKUP";
const FORMAT: u32 = 1;
const HEADER: u8 = 1;
const ENTRY: u8 = 2;
const TRAILER: u8 = 3;
/// No record is longer, as no value is.
const RECORD_BYTES_MAX: usize = 8 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    /// The revision as of which the entries are.
    pub revision: u64,
    pub time: u64,
    /// What all keys begin with, if the store knows.
    #[serde(default)]
    pub root: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trailer {
    pub entries: u64,
    pub bytes: u64,
    pub sha256: String,
}

/// Writes all of a store; it may be in use meanwhile. `told` is called now and then with the number of entries.
pub async fn write(
    store: &dyn Storage,
    to: &mut (impl AsyncWrite + Unpin),
    told: impl Fn(u64),
) -> Result<(Header, Trailer)> {
    let revision = store.current_revision().await?;
    let expires: HashMap<Arc<str>, u64> = store.expiring(Revision(0)).await?.into_iter().collect();
    let header =
        Header { format: FORMAT, revision: revision.0, time: crate::moved::now_ms(), root: store.root().to_owned() };
    let mut writer = Writer { to, hash: Sha256::new(), buffer: Vec::new() };
    writer.put(MAGIC);
    writer.record(HEADER, &[&json(&header)?]);
    let (mut entries, mut bytes) = (0, 0);
    let state = tokio::sync::Mutex::new((&mut writer, &mut entries, &mut bytes));
    each_page(store, Some(revision), async |page| {
        let mut state = state.lock().await;
        let (writer, entries, bytes) = &mut *state;
        for entry in page {
            let ends = expires.get(&entry.key).copied().unwrap_or(0);
            let numbers = [entry.created.0, entry.modified.0, ends].map(u64::to_le_bytes).concat();
            let length = (entry.key.len() as u32).to_le_bytes();
            writer.record(ENTRY, &[&numbers, &length, entry.key.as_bytes(), &entry.value]);
            **entries += 1;
            **bytes += entry.value.len() as u64;
        }
        writer.flush().await?;
        told(**entries);
        Ok(())
    })
    .await?;
    let trailer = Trailer { entries, bytes, sha256: hex(&writer.hash.clone().finalize()) };
    writer.record(TRAILER, &[&json(&trailer)?]);
    writer.flush().await?;
    writer.to.flush().await.map_err(|e| failed("write", e))?;
    Ok((header, trailer))
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Unavailable { operation: "backup", source: e.into() })
}

struct Writer<'a, W> {
    to: &'a mut W,
    hash: Sha256,
    buffer: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> Writer<'_, W> {
    fn put(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.buffer.extend_from_slice(bytes);
    }

    fn record(&mut self, kind: u8, parts: &[&[u8]]) {
        let length = parts.iter().map(|p| p.len()).sum::<usize>() as u32;
        self.put(&[kind]);
        self.put(&length.to_le_bytes());
        parts.iter().for_each(|part| self.put(part));
        let check = self.hash.clone().finalize();
        self.put(&check[..8]);
    }

    async fn flush(&mut self) -> Result<()> {
        self.to.write_all(&self.buffer).await.map_err(|e| failed("write", e))?;
        self.buffer.clear();
        Ok(())
    }
}

fn failed(operation: &'static str, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::StorageFull => Error::NoSpace(error.to_string()),
        _ => Error::Unavailable { operation, source: error.into() },
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a backup record by record, and vouches for what it gives out; the whole is only vouched for by the trailer.
pub struct Reader<R> {
    from: R,
    hash: Sha256,
    position: u64,
    last_key: Option<Arc<str>>,
    counted: (u64, u64),
    pub header: Header,
}

pub enum Record {
    Entry(Entry, u64),
    End(Trailer),
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub async fn new(from: R) -> Result<Reader<R>> {
        let header = Header { format: 0, revision: 0, time: 0, root: String::new() };
        let mut reader = Reader { from, hash: Sha256::new(), position: 0, last_key: None, counted: (0, 0), header };
        let magic = reader.take(MAGIC.len()).await?;
        if magic != MAGIC {
            return Err(reader.corrupt(0, "this is not a backup: it does not begin with CXBACKUP"));
        }
        let (kind, content, at) = reader.record().await?;
        if kind != HEADER {
            return Err(reader.corrupt(at, "the first record is not the header"));
        }
        reader.header =
            serde_json::from_slice(&content).map_err(|e| reader.corrupt(at, &format!("the header: {e}")))?;
        if reader.header.format != FORMAT {
            let what = format!("format {}; this version of Coxswain reads format {FORMAT}", reader.header.format);
            return Err(reader.corrupt(at, &what));
        }
        Ok(reader)
    }

    fn corrupt(&self, at: u64, what: &str) -> Error {
        Error::Corrupt { place: format!("the backup, byte {at}"), what: what.to_owned() }
    }

    async fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        match self.from.read_exact(&mut bytes).await {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(self.corrupt(self.position, "the file ends within a record"));
            }
            Err(e) => return Err(failed("read", e)),
        }
        self.hash.update(&bytes);
        self.position += count as u64;
        Ok(bytes)
    }

    async fn record(&mut self) -> Result<(u8, Vec<u8>, u64)> {
        let at = self.position;
        let head = self.take(5).await?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > RECORD_BYTES_MAX {
            return Err(self.corrupt(at, &format!("a record of {length} bytes cannot be")));
        }
        let content = self.take(length).await?;
        let expected = self.hash.clone().finalize();
        if self.take(8).await? != expected[..8] {
            return Err(self.corrupt(at, "the record does not fit its check"));
        }
        Ok((head[0], content, at))
    }

    pub async fn next(&mut self) -> Result<Record> {
        let before = hex(&self.hash.clone().finalize());
        let (kind, content, at) = self.record().await?;
        match kind {
            ENTRY => {
                let (entry, expires) = self.entry(content, at)?;
                if self.last_key.as_ref().is_some_and(|last| *last >= entry.key) {
                    return Err(self.corrupt(at, &format!("{} is out of order", entry.key)));
                }
                self.last_key = Some(entry.key.clone());
                self.counted.0 += 1;
                self.counted.1 += entry.value.len() as u64;
                Ok(Record::Entry(entry, expires))
            }
            TRAILER => {
                let trailer: Trailer =
                    serde_json::from_slice(&content).map_err(|e| self.corrupt(at, &format!("the trailer: {e}")))?;
                let found = Trailer { entries: self.counted.0, bytes: self.counted.1, sha256: before };
                if trailer != found {
                    return Err(self.corrupt(at, &format!("the trailer says {trailer:?}, but it is {found:?}")));
                }
                let mut more = [0];
                if self.from.read(&mut more).await.map_err(|e| failed("read", e))? > 0 {
                    return Err(self.corrupt(self.position, "there is something after the trailer"));
                }
                Ok(Record::End(trailer))
            }
            other => Err(self.corrupt(at, &format!("no record is of kind {other}"))),
        }
    }

    fn entry(&self, content: Vec<u8>, at: u64) -> Result<(Entry, u64)> {
        let short = || self.corrupt(at, "the entry is too short");
        let number = |from: usize| {
            let bytes = content.get(from..from + 8).ok_or_else(short)?;
            Ok::<u64, Error>(u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
        };
        let (created, modified, expires) = (number(0)?, number(8)?, number(16)?);
        let length = content.get(24..28).ok_or_else(short)?;
        let length = u32::from_le_bytes(length.try_into().unwrap_or_default()) as usize;
        let key = content.get(28..28 + length).ok_or_else(short)?;
        let key = std::str::from_utf8(key).map_err(|_| self.corrupt(at, "a key is not UTF-8"))?.into();
        if created > modified || modified > self.header.revision {
            let what = format!("{key} was made at {created} and changed at {modified}, of {}", self.header.revision);
            return Err(self.corrupt(at, &what));
        }
        let value = Bytes::from(content).slice(28 + length..);
        Ok((Entry { key, value, created: Revision(created), modified: Revision(modified) }, expires))
    }
}

/// Fills an empty store from a backup. What the lost store did after the backup was seen by clients under revisions that
/// must not come again, so the store goes on `bump` revisions behind the backup. Nothing is readable as of older ones.
pub async fn restore(
    from: impl AsyncRead + Unpin,
    store: Arc<dyn Storage>,
    bump: u64,
    told: impl Fn(u64),
) -> Result<(Trailer, Revision)> {
    let mut reader = Reader::new(from).await?;
    let target = Filling::new(store).await?;
    let at = Revision(reader.header.revision);
    let (mut page, mut expiries, mut count) = (Vec::with_capacity(PAGE), Vec::new(), 0);
    let trailer = loop {
        match reader.next().await? {
            Record::Entry(entry, expires) => {
                if expires > 0 {
                    expiries.push((entry.key.clone(), expires));
                }
                page.push(entry);
            }
            Record::End(trailer) => break trailer,
        }
        if page.len() == PAGE {
            count += PAGE as u64;
            target.load(std::mem::replace(&mut page, Vec::with_capacity(PAGE)), at).await?;
            told(count);
        }
    };
    target.load(page, at).await?;
    let revision = target.advance(Revision(at.0 + bump)).await?;
    target.expire(expiries).await?;
    target.forget_history().await?;
    if target.keeps_revisions {
        target.store.compact(revision).await?;
    }
    Ok((trailer, target.store.current_revision().await?))
}
