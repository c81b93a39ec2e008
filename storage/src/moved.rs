//! The marker of a store whose data moves to another store, or has moved: an ordinary key, so that it is part of the one
//! order of commits. From the commit on that writes it, every backend refuses all others, whichever server they come from;
//! taking the marker away lets writes in again.

use crate::{Error, Expect, Op, Result, Revision, Storage, Write};
use serde::{Deserialize, Serialize};

/// Where the marker is, in stores that are ours alone: under no resource's prefix.
pub const KEY: &str = "/registry/coxswain/moved";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Where the data is. None while it is still on its way.
    pub to: Option<String>,
    /// For how many milliseconds whoever moves it may still be at work; after that the move has failed.
    pub patience_ms: u64,
    /// When the marker was written, in milliseconds since 1970.
    pub time: u64,
    /// The revision from which on the other store goes on.
    pub revision: u64,
}

impl std::fmt::Display for Marker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.to {
            Some(to) => write!(f, "its data has moved to {}", crate::address::without_password(to)),
            None => write!(f, "its data is moving to another store"),
        }
    }
}

impl Marker {
    pub fn decode(bytes: &[u8]) -> Result<Marker> {
        let corrupt = |e: serde_json::Error| Error::Corrupt { place: format!("the key {KEY}"), what: e.to_string() };
        serde_json::from_slice(bytes).map_err(corrupt)
    }

    /// Whether the move is neither done nor still under way.
    pub fn has_failed(&self) -> bool {
        self.to.is_none() && now_ms() > self.time.saturating_add(self.patience_ms)
    }

    /// Whether a batch of writes is about the marker, and so allowed while there is one.
    pub fn concerns(batch: &[Write], key: &str) -> bool {
        matches!(batch, [only] if &*only.key == key)
    }
}

pub fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_millis() as u64)
}

/// The marker of a store, if it has one, and the marker's revision.
pub async fn read(store: &dyn Storage) -> Result<Option<(Marker, Revision)>> {
    let (entry, _) = store.get(&store.marker_key(), None).await?;
    entry.map(|e| Ok((Marker::decode(&e.value)?, e.modified))).transpose()
}

pub async fn write(store: &dyn Storage, marker: &Marker, expect: Expect) -> Result<Revision> {
    let failed = |e: serde_json::Error| Error::Unavailable { operation: "commit", source: e.into() };
    let value = serde_json::to_vec(marker).map_err(failed)?.into();
    store.commit(vec![Write { key: store.marker_key().into(), expect, op: Op::Put { value, ttl: None } }]).await
}

pub async fn remove(store: &dyn Storage, expect: Expect) -> Result<Revision> {
    store.commit(vec![Write { key: store.marker_key().into(), expect, op: Op::Delete }]).await
}
