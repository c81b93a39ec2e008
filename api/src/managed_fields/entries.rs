//! The entries of `metadata.managedFields`, read and written (upstream: `managedfields/internal/managedfields.go` and
//! `capmanagers.go`).

use crate::field_set::Set;
use crate::time;
use jiff::Timestamp;
use serde_json::{Map, Value};
use std::cell::OnceCell;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// What makes two entries the same one. An applier is the same in all versions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ManagerId {
    pub manager: Box<str>,
    pub operation: Operation,
    /// Empty for appliers.
    pub api_version: Box<str>,
    pub subresource: Box<str>,
}

impl ManagerId {
    /// As conflicts name it.
    pub(super) fn describe(&self) -> String {
        let mut out = crate::field::go_quote(&self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {}", crate::field::go_quote(&self.subresource)));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
}

/// One manager's fields.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The version in which the fields are to be understood.
    pub api_version: Box<str>,
    pub time: Option<Value>,
    /// The wire form, as long as it is true.
    wire: Option<Value>,
    set: OnceCell<Set>,
}

impl Entry {
    pub(super) fn new(api_version: &str, set: Set, time: Option<Timestamp>) -> Self {
        let time = time.map(|t| time::format_seconds(t).into());
        Self { api_version: api_version.into(), time, wire: None, set: set.into() }
    }

    /// The fields, read from the wire form when first asked for.
    pub(super) fn set(&self) -> &Set {
        self.set.get_or_init(|| {
            let wire = self.wire.as_ref().unwrap_or(&Value::Null);
            // It was checked when the entry was read.
            Set::from_fields_v1(wire).unwrap_or_default()
        })
    }

    pub(super) fn replace(&mut self, set: Set) {
        self.wire = None;
        self.set = set.into();
    }

    fn seconds(&self) -> i64 {
        self.time.as_ref().and_then(Value::as_str).and_then(time::parse).map_or(0, Timestamp::as_second)
    }
}

/// All entries of an object.
#[derive(Clone, Debug, Default)]
pub(super) struct Managed {
    pub entries: BTreeMap<ManagerId, Entry>,
}

impl Managed {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reads the list.
    pub(super) fn decode(list: Option<Value>) -> Result<Self, String> {
        let mut managed = Managed::default();
        let Some(Value::Array(list)) = list else { return Ok(managed) };
        for (i, mut entry) in list.into_iter().enumerate() {
            let mut take = |name| entry.get_mut(name).map(Value::take).unwrap_or_default();
            let (wire, time) = (take("fieldsV1"), take("time"));
            let text = |name| entry.get(name).and_then(Value::as_str).unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                other => return Err(format!("invalid operation {other:?} in managed fields entry {i}")),
            };
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
                other => return Err(format!("invalid fieldsType {other:?} in managed fields entry {i}")),
            }
            let api_version = text("apiVersion");
            let id = ManagerId {
                manager: text("manager").into(),
                operation,
                api_version: if operation == Operation::Apply { "".into() } else { api_version.into() },
                subresource: text("subresource").into(),
            };
            let set = Set::from_fields_v1(&wire).map_err(|e| format!("error decoding set: {e}"))?;
            let time = Some(time).filter(|t| !t.is_null());
            let api_version = api_version.into();
            managed.entries.insert(id, Entry { api_version, time, wire: Some(wire), set: set.into() });
        }
        Ok(managed)
    }

    /// Writes the list in upstream's order: by operation, time, manager, version and subresource. None if it is empty.
    pub(super) fn encode(self) -> Option<Value> {
        if self.entries.is_empty() {
            return None;
        }
        let mut entries: Vec<(ManagerId, Entry)> = self.entries.into_iter().collect();
        entries.sort_by(|(a_id, a), (b_id, b)| {
            (a_id.operation, a.seconds(), &a_id.manager, &a.api_version, &a_id.subresource).cmp(&(
                b_id.operation,
                b.seconds(),
                &b_id.manager,
                &b.api_version,
                &b_id.subresource,
            ))
        });
        let write = |(id, entry): (ManagerId, Entry)| {
            let mut map = Map::new();
            let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
            let Entry { api_version, time, wire, set } = entry;
            if !id.manager.is_empty() {
                put("manager", (*id.manager).into());
            }
            put("operation", if id.operation == Operation::Apply { "Apply" } else { "Update" }.into());
            if !api_version.is_empty() {
                put("apiVersion", (*api_version).into());
            }
            if let Some(time) = time {
                put("time", time);
            }
            put("fieldsType", "FieldsV1".into());
            let wire = wire.filter(|w| !w.is_null());
            put("fieldsV1", wire.unwrap_or_else(|| set.into_inner().unwrap_or_default().to_fields_v1()));
            if !id.subresource.is_empty() {
                put("subresource", (*id.subresource).into());
            }
            Value::Object(map)
        };
        Some(Value::Array(entries.into_iter().map(write).collect()))
    }

    /// Adds fields to a manager's entry and sets its time.
    pub(super) fn extend(&mut self, id: ManagerId, api_version: &str, taken: &Set, now: Timestamp) {
        let all = match self.entries.get(&id) {
            Some(entry) => taken.union(entry.set()),
            None => taken.clone(),
        };
        self.entries.insert(id, Entry::new(api_version, all, Some(now)));
    }

    /// Merges the oldest entries of updates until there are no more than `max`, version by version.
    pub(super) fn cap_updates(&mut self, max: usize) {
        let mut updaters: Vec<(i64, ManagerId)> = self
            .entries
            .iter()
            .filter(|(id, _)| id.operation == Operation::Update)
            .map(|(id, entry)| (entry.seconds(), id.clone()))
            .collect();
        if updaters.len() <= max {
            return;
        }
        updaters.sort();
        let mut left = updaters.len();
        let mut first_of_version: BTreeMap<Box<str>, ManagerId> = BTreeMap::new();
        for (_, id) in updaters {
            if left <= max {
                return;
            }
            let Some(version) = self.entries.get(&id).map(|e| e.api_version.clone()) else { continue };
            let Some(first) = first_of_version.get(&version) else {
                first_of_version.insert(version, id);
                continue;
            };
            let bucket = ManagerId {
                manager: "ancient-changes".into(),
                operation: Operation::Update,
                api_version: version,
                subresource: "".into(),
            };
            if !self.entries.contains_key(&bucket)
                && let Some(entry) = self.entries.remove(first)
            {
                self.entries.insert(bucket.clone(), entry);
            }
            if id == bucket {
                continue;
            }
            if let Some(entry) = self.entries.remove(&id)
                && let Some(into) = self.entries.get_mut(&bucket)
            {
                into.replace(entry.set().union(into.set()));
                into.time = entry.time;
                left -= 1;
            }
        }
    }
}

/// Checks a list given by a client as upstream's `ValidateManagedFields` of field managers does.
pub fn validate_entries(list: &Value) -> Result<(), String> {
    Managed::decode(Some(list.clone())).map(|_| ())
}
