//! The records of the embedded store and their bytes. Integers in keys are big-endian, so that they sort; integers in
//! values are little-endian. Every decoder checks what it reads: a record that makes no sense is reported, never guessed.

use crate::group::{ChangeRecord, State};
use crate::{Error, Result, Revision};
use bytes::Bytes;

const LIVE: u8 = 1;
const DELETED: u8 = 2;
const STATE_HEAD: usize = 1 + 8 + 4 + 8 + 8;
const CHANGE_HEAD: usize = 8 + 4;

impl State {
    pub fn encode(&self) -> Vec<u8> {
        let value = self.value.as_deref().unwrap_or_default();
        let mut out = Vec::with_capacity(STATE_HEAD + value.len());
        self.encode_into(&mut out);
        out
    }

    fn encode_into(&self, out: &mut Vec<u8>) {
        out.push(if self.value.is_some() { LIVE } else { DELETED });
        out.extend_from_slice(&self.modified.0.to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.created.0.to_le_bytes());
        out.extend_from_slice(&self.expires.to_le_bytes());
        out.extend_from_slice(self.value.as_deref().unwrap_or_default());
    }

    pub fn decode(bytes: &[u8], place: &dyn Fn() -> String) -> Result<State> {
        let mut input = Input { bytes, place };
        let tag = input.take(1)?[0];
        let modified = Revision(input.u64()?);
        let index = input.u32()?;
        let created = Revision(input.u64()?);
        let expires = input.u64()?;
        let value = match tag {
            LIVE => Some(Bytes::copy_from_slice(input.bytes)),
            DELETED if input.bytes.is_empty() => None,
            _ => return Err(input.corrupt(format!("a state cannot begin with {tag}"))),
        };
        Ok(State { modified, index, created, expires, value })
    }
}

impl ChangeRecord {
    pub fn encode(&self) -> Vec<u8> {
        let prior = self.prior.as_ref().map_or(0, |p| STATE_HEAD + p.value.as_ref().map_or(0, |v| v.len()));
        let mut out = Vec::with_capacity(CHANGE_HEAD + self.key.len() + prior);
        out.extend_from_slice(&self.time.to_le_bytes());
        out.extend_from_slice(&(self.key.len() as u32).to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        if let Some(prior) = &self.prior {
            prior.encode_into(&mut out);
        }
        out
    }

    /// The time and the key alone, without copying the value.
    pub fn head<'a>(bytes: &'a [u8], place: &dyn Fn() -> String) -> Result<(u64, &'a str, &'a [u8])> {
        let mut input = Input { bytes, place };
        let time = input.u64()?;
        let length = input.u32()? as usize;
        let key = input.take(length)?;
        let key = std::str::from_utf8(key).map_err(|_| input.corrupt("a key is not UTF-8".to_owned()))?;
        Ok((time, key, input.bytes))
    }

    pub fn decode(bytes: &[u8], place: &dyn Fn() -> String) -> Result<ChangeRecord> {
        let (time, key, prior) = ChangeRecord::head(bytes, place)?;
        let prior = if prior.is_empty() { None } else { Some(State::decode(prior, place)?) };
        Ok(ChangeRecord { time, key: key.into(), prior })
    }
}

/// The key of a change in the history.
pub fn change_key(revision: Revision, index: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&revision.0.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

pub fn parse_change_key(key: &[u8], place: &dyn Fn() -> String) -> Result<(Revision, u32)> {
    let input = Input { bytes: key, place };
    let key: [u8; 12] =
        key.try_into().map_err(|_| input.corrupt(format!("a history key of {} bytes", input.bytes.len())))?;
    let (revision, index) = key.split_at(8);
    Ok((Revision(u64::from_be_bytes(fixed(revision))), u32::from_be_bytes(fixed(index))))
}

/// The key of an entry in the expiry index.
pub fn expiry_key(expires: u64, key: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + key.len());
    out.extend_from_slice(&expires.to_be_bytes());
    out.extend_from_slice(key.as_bytes());
    out
}

pub fn parse_expiry_key<'a>(bytes: &'a [u8], place: &dyn Fn() -> String) -> Result<(u64, &'a str)> {
    let mut input = Input { bytes, place };
    let expires = u64::from_be_bytes(fixed(input.take(8)?));
    let key = std::str::from_utf8(input.bytes).map_err(|_| input.corrupt("a key is not UTF-8".to_owned()))?;
    Ok((expires, key))
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

struct Input<'a, 'p> {
    bytes: &'a [u8],
    place: &'p dyn Fn() -> String,
}

impl<'a> Input<'a, '_> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        if self.bytes.len() < count {
            return Err(self.corrupt(format!("{} bytes where {count} are needed", self.bytes.len())));
        }
        let (head, rest) = self.bytes.split_at(count);
        self.bytes = rest;
        Ok(head)
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(fixed(self.take(8)?)))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(fixed(self.take(4)?)))
    }

    fn corrupt(&self, what: String) -> Error {
        Error::Corrupt { place: (self.place)(), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nowhere() -> String {
        "a test".to_owned()
    }

    fn state() -> impl Strategy<Value = State> {
        let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
        (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>(), value).prop_map(|(m, index, c, expires, value)| {
            State { modified: Revision(m), index, created: Revision(c), expires, value: value.map(Bytes::from) }
        })
    }

    proptest! {
        #[test]
        fn a_change_record_survives_its_encoding(time: u64, key in "[a-z/]{0,20}", prior in prop::option::of(state())) {
            let record = ChangeRecord { time, key: key.as_str().into(), prior };
            prop_assert_eq!(ChangeRecord::decode(&record.encode(), &nowhere).unwrap(), record);
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = ChangeRecord::decode(&bytes, &nowhere);
            let _ = State::decode(&bytes, &nowhere);
            let _ = parse_change_key(&bytes, &nowhere);
            let _ = parse_expiry_key(&bytes, &nowhere);
        }

        #[test]
        fn history_keys_sort_by_revision_and_index(a: (u64, u32), b: (u64, u32)) {
            let (left, right) = (change_key(Revision(a.0), a.1), change_key(Revision(b.0), b.1));
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
        }
    }
}
