//! The files of the embedded store: opening the data directory, the room on its disk, and what the errors of the engine
//! mean to us.

use super::Options;
use crate::{Error, Result, Revision};
use fjall::config::PartitioningPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The format this code reads and writes. A directory of another format is refused.
const FORMAT: u64 = 1;

/// The open engine. When the last reference goes, its threads have ended and the directory is free again.
pub struct Disk {
    pub directory: PathBuf,
    pub database: Database,
    pub current: Keyspace,
    pub history: Keyspace,
    pub expiry: Keyspace,
    pub meta: Keyspace,
}

/// What the directory said of itself when it was opened.
pub struct Opened {
    pub disk: Disk,
    pub revision: Revision,
    pub compacted: Revision,
    pub pruned: Revision,
    /// The store's time at the last commit.
    pub time: u64,
}

/// What the engine takes for granted of its manifests, which bear no checksum there. It ends the process where that does not hold.
const MANIFEST: [(&[u8], &[u8]); 2] = [(b"level_count", &[7]), (b"filter_hash_type", &[0])];

/// Refuses manifests that the engine would not survive. Whatever else is wrong with them, it says itself.
fn check_manifests(keyspaces: &Path) -> Result<()> {
    for keyspace in std::fs::read_dir(keyspaces).into_iter().flatten().flatten() {
        let directory = keyspace.path();
        let current = std::fs::read(directory.join("current")).unwrap_or_default();
        let Some(number) = current.first_chunk::<8>() else { continue };
        let path = directory.join(format!("v{}", u64::from_le_bytes(*number)));
        let Ok(reader) = sfa::Reader::new(&path) else { continue };
        for (name, wanted) in MANIFEST {
            let section = reader.toc().section(name).and_then(|section| section.reader(&path).ok());
            let mut found = Vec::new();
            let read = section.map(|section| section.take(wanted.len() as u64 + 1).read_to_end(&mut found));
            if !matches!(read, Some(Ok(_))) || found != wanted {
                let what = format!("{} in it is not as it was written", String::from_utf8_lossy(name));
                return Err(Error::Corrupt { place: path.display().to_string(), what });
            }
        }
    }
    Ok(())
}

impl Disk {
    pub fn open(directory: &Path, options: &Options) -> Result<Opened> {
        std::fs::create_dir_all(directory).map_err(|e| unavailable("open", directory, e))?;
        let fail = |e| engine_error("open", directory, "the engine's files", e);
        check_manifests(&directory.join("engine").join("keyspaces"))?;
        let database = Database::builder(directory.join("engine"))
            .cache_size(options.cache_bytes)
            .max_journaling_size(64 << 20)
            .max_cached_files(Some(128))
            .worker_threads(2)
            .open()
            .map_err(fail)?;
        let keyspace = |name, memtable| {
            // Indexes and filters in parts: otherwise a read that misses the small cache loads those of a whole table.
            let create = || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(memtable)
                    .index_block_partitioning_policy(PartitioningPolicy::all(true))
                    .filter_block_partitioning_policy(PartitioningPolicy::all(true))
            };
            database.keyspace(name, create).map_err(fail)
        };
        let disk = Disk {
            directory: directory.to_owned(),
            current: keyspace("current", options.memtable_bytes)?,
            history: keyspace("history", options.memtable_bytes)?,
            expiry: keyspace("expiry", 1 << 20)?,
            meta: keyspace("meta", 1 << 20)?,
            database,
        };
        let format = match disk.read_meta("format")? {
            Some(format) => format,
            None => {
                let mut batch = disk.database.batch().durability(Some(PersistMode::SyncAll));
                batch.insert(&disk.meta, "format", FORMAT.to_le_bytes());
                batch.commit().map_err(fail)?;
                FORMAT
            }
        };
        if format != FORMAT {
            let what = format!(
                "it is of format {format}, which a newer version of Coxswain has made; this one reads format {FORMAT}"
            );
            return Err(Error::Unavailable {
                operation: "open",
                source: format!("{}: {what}", directory.display()).into(),
            });
        }
        let revision = Revision(disk.read_meta("revision")?.unwrap_or(0));
        let compacted = Revision(disk.read_meta("compacted")?.unwrap_or(0));
        let pruned = Revision(disk.read_meta("pruned")?.unwrap_or(0));
        let time = disk.read_meta("time")?.unwrap_or(0);
        disk.check_revision(revision, compacted)?;
        Ok(Opened { disk, revision, compacted, pruned, time })
    }

    /// The engine takes a journal that is cut short for one that was cut by a crash. What was durable before is known
    /// from two other places: the newest change of the history, and the watermark.
    fn check_revision(&self, revision: Revision, compacted: Revision) -> Result<()> {
        let newest = match self.history.last_key_value() {
            Some(guard) => {
                let key = guard.key().map_err(|e| self.error("open", "history", e))?;
                super::record::parse_change_key(&key, &|| self.place("history"))?.0
            }
            None => compacted,
        };
        if newest > revision || compacted > revision {
            return Err(self.corrupt(format!("the store says it is at revision {revision}, its history at {newest}")));
        }
        let watermark = self.read_watermark()?;
        if watermark > revision {
            let what = format!("revision {watermark} had been made durable, but the data ends at {revision}");
            return Err(self.corrupt(what));
        }
        Ok(())
    }

    fn read_meta(&self, name: &str) -> Result<Option<u64>> {
        let Some(value) = self.meta.get(name).map_err(|e| self.error("open", "meta", e))? else {
            return Ok(None);
        };
        let value: [u8; 8] = (&*value).try_into().map_err(|_| self.corrupt(format!("{name} is not 8 bytes")))?;
        Ok(Some(u64::from_le_bytes(value)))
    }

    fn watermark_path(&self) -> PathBuf {
        self.directory.join("watermark")
    }

    /// Writes down, outside the engine, that `revision` is durable. It need not be durable itself: it only ever lags.
    pub fn write_watermark(&self, revision: Revision) -> std::io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&revision.0.to_le_bytes());
        bytes[8..].copy_from_slice(&(!revision.0).to_le_bytes());
        let new = self.directory.join("watermark.new");
        std::fs::write(&new, bytes)?;
        std::fs::rename(new, self.watermark_path())
    }

    /// A watermark that is absent or torn by a power cut says nothing, which is no error.
    fn read_watermark(&self) -> Result<Revision> {
        let bytes = match std::fs::read(self.watermark_path()) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Revision(0)),
            Err(e) => return Err(unavailable("open", &self.watermark_path(), e)),
        };
        let Ok(bytes) = <[u8; 16]>::try_from(bytes.as_slice()) else { return Ok(Revision(0)) };
        let value = u128::from_le_bytes(bytes);
        let (revision, complement) = (value as u64, (value >> 64) as u64);
        Ok(Revision(if complement == !revision { revision } else { 0 }))
    }

    pub fn place(&self, keyspace: &str) -> String {
        format!("{} ({keyspace})", self.directory.display())
    }

    pub fn corrupt(&self, what: String) -> Error {
        Error::Corrupt { place: self.directory.display().to_string(), what }
    }

    pub fn error(&self, operation: &'static str, keyspace: &str, error: fjall::Error) -> Error {
        engine_error(operation, &self.directory, keyspace, error)
    }
}

/// Bytes that may still be written to the disk of a directory.
pub fn free_bytes(directory: &Path) -> std::io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(directory)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

fn engine_error(operation: &'static str, directory: &Path, what: &str, error: fjall::Error) -> Error {
    use fjall::LsmError as Tree;
    let place = || format!("{} ({what})", directory.display());
    match error {
        fjall::Error::Locked => Error::Unavailable {
            operation,
            source: format!("the data directory {} is in use by another process", directory.display()).into(),
        },
        fjall::Error::Io(e) | fjall::Error::Storage(Tree::Io(e)) if out_of_room(&e) => {
            Error::NoSpace(format!("{}: {e}", directory.display()))
        }
        // A file that ends too early or has gone is damage, other I/O errors are the disk's.
        fjall::Error::Io(e) | fjall::Error::Storage(Tree::Io(e))
            if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::NotFound | ErrorKind::InvalidData) =>
        {
            Error::Corrupt { place: place(), what: e.to_string() }
        }
        fjall::Error::Io(e) | fjall::Error::Storage(Tree::Io(e)) => unavailable(operation, directory, e),
        fjall::Error::Poisoned => Error::Unavailable { operation, source: "an earlier write has failed".into() },
        e => Error::Corrupt { place: place(), what: e.to_string() },
    }
}

fn out_of_room(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

fn unavailable(operation: &'static str, path: &Path, error: std::io::Error) -> Error {
    if out_of_room(&error) {
        return Error::NoSpace(format!("{}: {error}", path.display()));
    }
    Error::Unavailable { operation, source: format!("{}: {error}", path.display()).into() }
}
