//! Compressed blocks of lists, kept from one list to the next.
//!
//! A gzip stream may be put together of parts that were deflated each for itself and end at a whole byte; only the checksum
//! spans them all, and checksums can be combined. Where one block ends and the next begins is decided by the objects' keys
//! and not by their number, so that an object that comes, goes or changes makes one block anew and leaves the others.

use crate::store::Object;
use crate::store::forms::Form;
use bytes::Bytes;
use flate2::{Compress, Compression, Crc, FlushCompress};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// About as much text as a block holds, if objects are of usual size.
pub const BLOCK_BYTES: usize = 256 * 1024;
/// One key in so many ends a block…
const ENDS_ONE_IN: u64 = 48;
/// …and after so many objects any does.
const OBJECTS_MAX: usize = 192;
/// …or after so much text.
const TEXT_MAX: usize = 4 * BLOCK_BYTES;
/// Bytes of blocks that are kept at most.
const KEPT_MAX: usize = 32 << 20;
/// Blocks that no list has used for so long are dropped when room is needed, and the others after them.
const UNUSED: Duration = Duration::from_secs(30);
/// Upstream's level: bandwidth is cheaper than the time of a server.
const LEVEL: u32 = 1;

/// Deflated text that ends at a whole byte and refers to nothing before it.
pub struct Block {
    deflated: Bytes,
    crc: Crc,
}

impl Block {
    pub fn of(text: &[u8]) -> Self {
        let mut deflate = Compress::new(Compression::new(LEVEL), false);
        let mut deflated = Vec::with_capacity(text.len() / 6 + 64);
        let mut rest = text;
        loop {
            let before = deflate.total_in();
            let state = deflate.compress_vec(rest, &mut deflated, FlushCompress::Sync);
            rest = &rest[(deflate.total_in() - before) as usize..];
            // Room left over means that all was flushed.
            if state.is_err() || (rest.is_empty() && deflated.len() < deflated.capacity()) {
                break;
            }
            deflated.reserve(deflated.capacity().max(1024));
        }
        let mut crc = Crc::new();
        crc.update(text);
        deflated.shrink_to_fit();
        Self { deflated: deflated.into(), crc }
    }
}

/// A gzip stream under construction.
#[derive(Default)]
pub struct Stream {
    crc: Crc,
}

impl Stream {
    pub fn begin(&self, out: &mut Vec<u8>) {
        // Magic, deflate, no flags, no time, no extra flags, unknown system.
        out.extend_from_slice(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    }

    pub fn add(&mut self, block: &Block, out: &mut Vec<u8>) {
        out.extend_from_slice(&block.deflated);
        self.crc.combine(&block.crc);
    }

    pub fn end(&self, out: &mut Vec<u8>) {
        // An empty last block, the checksum, and the length modulo 2^32.
        out.extend_from_slice(&[3, 0]);
        out.extend_from_slice(&self.crc.sum().to_le_bytes());
        out.extend_from_slice(&self.crc.amount().to_le_bytes());
    }
}

/// How many of these objects the block that begins with them has.
pub fn length(objects: &[Arc<Object>]) -> usize {
    let mut text = 0;
    for (i, object) in objects.iter().enumerate().take(OBJECTS_MAX) {
        text += object.size();
        if ends_block(&object.key) || text > TEXT_MAX {
            return i + 1;
        }
    }
    objects.len().min(OBJECTS_MAX)
}

fn ends_block(key: &str) -> bool {
    // FNV-1a, finished by a multiplication so that its high bits depend on all.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in key.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).is_multiple_of(ENDS_ONE_IN)
}

/// The block of these objects in this form, made of `text` where it is not kept.
pub fn block(objects: &[Arc<Object>], form: &Form, leads: bool, text: impl FnOnce() -> Vec<u8>) -> Arc<Block> {
    let name = Name { form: form.clone(), leads, ids: objects.iter().map(|o| o.id()).collect() };
    if let Some(kept) = KEPT.lock().get(&name) {
        return kept;
    }
    let block = Arc::new(Block::of(&text()));
    KEPT.lock().put(name, block.clone());
    block
}

/// What a block holds: versions of objects, which never change, in a form.
#[derive(PartialEq, Eq)]
struct Name {
    form: Form,
    leads: bool,
    ids: Box<[u64]>,
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.ids.hash(state);
    }
}

static KEPT: Mutex<Kept> = Mutex::new(Kept { blocks: None, bytes: 0 });

struct Kept {
    blocks: Option<HashMap<Name, (Arc<Block>, Instant)>>,
    bytes: usize,
}

/// A block with its name, about.
fn cost(name: &Name, block: &Block) -> usize {
    block.deflated.len() + name.ids.len() * 8 + 200
}

impl Kept {
    fn get(&mut self, name: &Name) -> Option<Arc<Block>> {
        let (block, used) = self.blocks.as_mut()?.get_mut(name)?;
        *used = Instant::now();
        Some(block.clone())
    }

    fn put(&mut self, name: Name, block: Arc<Block>) {
        let cost = cost(&name, &block);
        if self.bytes + cost > KEPT_MAX {
            self.drop_unused(UNUSED);
        }
        if self.bytes + cost > KEPT_MAX {
            self.drop_unused(Duration::ZERO);
        }
        let blocks = self.blocks.get_or_insert_default();
        if blocks.insert(name, (block, Instant::now())).is_none() {
            self.bytes += cost;
        }
    }

    fn drop_unused(&mut self, since: Duration) {
        let now = Instant::now();
        let blocks = self.blocks.get_or_insert_default();
        blocks.retain(|_, (_, used)| now.duration_since(*used) < since);
        self.bytes = blocks.iter().map(|(name, (block, _))| cost(name, block)).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn blocks_put_together_are_one_gzip_stream() {
        let texts: Vec<Vec<u8>> = vec![
            Vec::new(),
            b"{\"items\":[".to_vec(),
            (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect(),
            vec![b'x'; 1_000_000],
            b"]}\n".to_vec(),
        ];
        let mut stream = Stream::default();
        let mut out = Vec::new();
        stream.begin(&mut out);
        texts.iter().for_each(|text| stream.add(&Block::of(text), &mut out));
        stream.end(&mut out);
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&out[..]).read_to_end(&mut read).unwrap();
        assert!(read == texts.concat());
    }

    #[test]
    fn some_keys_end_a_block_and_most_do_not() {
        let ends = (0..48_000).filter(|i| ends_block(&format!("/registry/pods/default/pod-{i:06}"))).count();
        assert!((500..2000).contains(&ends), "{ends}");
    }
}
