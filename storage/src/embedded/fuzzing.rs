//! The door through which fuzzing reaches the decoders of records.

use super::record::{change_key, parse_change_key, parse_expiry_key};
use crate::group::{ChangeRecord, State};

/// What can be read of any bytes is written as it was.
pub fn records(bytes: &[u8]) {
    let place = || "a fuzzed record".to_owned();
    if let Ok(state) = State::decode(bytes, &place) {
        assert_eq!(state.encode(), bytes);
    }
    if let Ok(record) = ChangeRecord::decode(bytes, &place) {
        assert_eq!(record.encode(), bytes);
    }
    if let Ok((revision, index)) = parse_change_key(bytes, &place) {
        assert_eq!(change_key(revision, index), bytes);
    }
    let _ = parse_expiry_key(bytes, &place);
}
