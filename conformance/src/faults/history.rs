//! What clients asked of single objects and what they were told, with the times of both: the material that the checks of a
//! fault run work on.
//!
//! Every write has an id of its own, and the object that it leaves carries the id and a filling made of it. So whoever reads
//! an object knows which write it comes from and whether all of it does.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

/// An object as some write left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The write.
    pub id: u64,
    /// The resourceVersion of it.
    pub revision: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Get,
    Create(u64),
    /// At an expected resourceVersion.
    Update {
        from: Version,
        to: u64,
    },
    /// At an expected resourceVersion, or whatever there is.
    Delete {
        from: Option<Version>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Got(Option<Version>),
    Put(Version),
    Deleted,
    /// The object to be created is there already.
    Exists,
    /// The object is not at the expected resourceVersion.
    Conflict,
    Absent,
    /// The answer was lost: a write may take place at any time from now on, or never.
    Unknown,
    /// The call did not reach anybody, and is no part of the history.
    NeverSent,
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub call: Call,
    pub answer: Answer,
    /// Microseconds since the run began.
    pub invoked: u64,
    pub returned: u64,
}

/// All operations by object.
pub struct History {
    begun: Instant,
    operations: Mutex<BTreeMap<String, Vec<Operation>>>,
}

impl History {
    pub fn new() -> History {
        History { begun: Instant::now(), operations: Mutex::default() }
    }

    pub fn now(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    pub fn record(&self, key: &str, operation: Operation) {
        let mut operations = super::lock(&self.operations);
        operations.entry(key.to_owned()).or_default().push(operation);
    }

    pub fn take(&self) -> BTreeMap<String, Vec<Operation>> {
        std::mem::take(&mut *super::lock(&self.operations))
    }
}

/// The filling of a write's object: between nothing and 6,000 characters that no other write has.
fn filling(id: u64) -> String {
    let mut state = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let length = (state >> 40) as usize % 6_000;
    let mut filling = String::with_capacity(length + 16);
    while filling.len() < length {
        // xorshift: any stream that differs by id will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        filling.push_str(&format!("{state:016x}"));
    }
    filling.truncate(length);
    filling
}

/// The data of the ConfigMap that a write leaves.
pub fn data(key: &str, id: u64) -> Value {
    json!({"key": key, "id": id.to_string(), "filling": filling(id)})
}

/// The write that a ConfigMap's data comes from; an error if it is not whole, or another object's.
pub fn read_data(key: &str, data: &BTreeMap<String, String>) -> Result<u64, String> {
    let field = |name: &str| data.get(name).map(String::as_str).unwrap_or_default();
    let id: u64 = field("id").parse().map_err(|_| format!("{key} was served without an id: {data:?}"))?;
    if field("key") != key {
        return Err(format!("{key} was served with the data of {}", field("key")));
    }
    if field("filling") != filling(id) {
        return Err(format!("{key} was served torn: not all of it comes from write {id}"));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_object_is_noticed() {
        let whole = |id| -> BTreeMap<String, String> { serde_json::from_value(data("a", id)).unwrap() };
        assert_eq!(read_data("a", &whole(7)), Ok(7));
        assert!(read_data("b", &whole(7)).is_err());
        let torn = BTreeMap::from([("filling".to_owned(), whole(8)["filling"].clone())]);
        assert!(read_data("a", &whole(7).into_iter().chain(torn).collect()).is_err());
    }
}
