//! Who owns which field of an object, kept in `metadata.managedFields` (upstream: `apimachinery/pkg/util/managedfields` and
//! `structured-merge-diff/merge`).
//!
//! Every write passes here once, after admission: [`update`] for create, update and patch, [`apply`] for server-side apply.
//! Both are pure; the clock is passed in. An entry is one manager, operation, version and subresource. An update takes over
//! the fields it changed; an apply owns what its configuration says, and what it no longer says is removed unless someone
//! else owns it.

mod apply;
mod entries;
mod last_applied;
mod ownership;
pub mod scale;

pub use apply::{Applied, apply, describe};
pub use entries::validate_entries;

use crate::apply::{is_keyed, zero};
use crate::field_set::Set;
use crate::schema::StructRef;
use entries::{Managed, ManagerId, Operation};
use jiff::Timestamp;
use serde_json::Value;
use std::sync::LazyLock;

/// The other versions of a resource, in which some managers may have written.
pub trait Versions {
    /// The schema of the kind in another version; none if that version is not served any more.
    fn schema(&self, api_version: &str) -> Option<StructRef>;

    /// An object in another version; none as above.
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value>;
}

/// A resource with a single version.
pub struct SingleVersion;

impl Versions for SingleVersion {
    fn schema(&self, _api_version: &str) -> Option<StructRef> {
        None
    }
    fn convert(&self, _object: &Value, _api_version: &str) -> Option<Value> {
        None
    }
}

/// A write, as far as ownership is concerned.
pub struct Write<'a> {
    /// The schema of the kind in the version of the request; the objects given are in this version.
    pub schema: &'a StructRef,
    /// `apps/v1`.
    pub api_version: &'a str,
    pub kind: &'a str,
    /// The field manager; empty stands for `unknown`.
    pub manager: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// What a write of this subresource leaves alone, so that its manager does not come to own it.
    pub reset: Option<&'a Set>,
    pub versions: &'a dyn Versions,
    pub now: Timestamp,
}

/// What nobody owns: the identity of an object and what the server keeps in its metadata.
static STRIPPED: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        "apiVersion",
        "kind",
        "metadata",
        "metadata.name",
        "metadata.namespace",
        "metadata.creationTimestamp",
        "metadata.selfLink",
        "metadata.uid",
        "metadata.clusterName",
        "metadata.generation",
        "metadata.managedFields",
        "metadata.resourceVersion",
    ])
});

/// How many entries of updates an object keeps; older ones are merged into one.
const MAX_UPDATE_MANAGERS: usize = 10;

/// The path of the list in an object.
pub fn entries_of(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

/// Takes the list out of an object.
pub fn take_entries(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Puts a list into an object; none leaves the object without.
pub fn set_entries(object: &mut Value, entries: Option<Value>) {
    let Some(root) = object.as_object_mut() else { return };
    let metadata = root.entry("metadata").or_insert_with(|| Value::Object(Default::default()));
    if let Some(metadata) = metadata.as_object_mut() {
        match entries {
            Some(entries) => metadata.insert("managedFields".to_owned(), entries),
            None => metadata.remove("managedFields"),
        };
    }
}

/// Whether the list says "forget who owns what": it is there but empty, or holds one empty entry.
fn is_reset(entries: Option<&Value>) -> bool {
    match entries.and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => true,
        Some([Value::Object(only)]) => only.values().all(|v| v.is_null() || v.as_str() == Some("")),
        _ => false,
    }
}

/// Reckons the ownership of a write that is no apply, and sets `metadata.managedFields` of the new object accordingly.
/// `live` is the object before; none on create. Never fails: where the present list cannot be read, it starts anew, as
/// upstream's does.
pub fn update(write: &Write<'_>, live: Option<&Value>, new: &mut Value) {
    let given = take_entries(new);
    // Upstream cannot type an object with an item that has none of its list's keys, and gives ownership up.
    if !is_keyed(new, write.schema) || live.is_some_and(|live| !is_keyed(live, write.schema)) {
        return;
    }
    let entries = live.and_then(entries_of);
    let from_live = || Managed::decode(entries.cloned()).unwrap_or_default();
    let mut managed = if !write.subresource.is_empty() {
        // The list of the main resource is not to be set by way of a subresource; mostly nobody tried, and then it is at hand.
        match given {
            Some(given) if Some(&given) == entries => Managed::decode(Some(given)).unwrap_or_default(),
            _ => from_live(),
        }
    } else if is_reset(given.as_ref()) {
        Managed::default()
    } else {
        match Managed::decode(given) {
            Ok(managed) if !managed.is_empty() => managed,
            _ => from_live(),
        }
    };
    // An object whose ownership was reset stays without until it is applied.
    if managed.is_empty() && live.is_some() {
        return;
    }
    let zero_object;
    let live = match live {
        Some(live) => live,
        None => {
            zero_object = zero(write.schema);
            &zero_object
        }
    };
    track_update(write, write.manager, live, new, &mut managed);
    set_entries(new, managed.encode());
}

/// Gives the fields that changed between `live` and `new` to the manager.
fn track_update(write: &Write<'_>, manager: &str, live: &Value, new: &Value, managed: &mut Managed) {
    let taken = ownership::update(write, live, new, managed).difference(&STRIPPED);
    if !taken.is_empty() {
        let id = ManagerId {
            manager: if manager.is_empty() { "unknown".into() } else { manager.into() },
            operation: Operation::Update,
            api_version: write.api_version.into(),
            subresource: write.subresource.into(),
        };
        managed.extend(id, write.api_version, &taken, write.now);
    }
    managed.cap_updates(MAX_UPDATE_MANAGERS);
}

/// If nothing but times differs between the lists of two otherwise equal objects, takes the old times, so that a write that
/// changes nothing is none (upstream: `IgnoreManagedFieldsTimestampsTransformer`).
pub fn ignore_timestamps(new: &mut Value, old: &Value) {
    let (Some(Value::Array(ours)), Some(Value::Array(theirs))) = (entries_of(new), entries_of(old)) else { return };
    let same_but_time = |a: &Value, b: &Value| match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => a.iter().filter(|(k, _)| *k != "time").eq(b.iter().filter(|(k, _)| *k != "time")),
        _ => a == b,
    };
    let times_differ = ours.len() == theirs.len() && !ours.is_empty() && ours != theirs;
    if !times_differ || !ours.iter().zip(theirs).all(|(a, b)| same_but_time(a, b)) || !equal_but_entries(new, old) {
        return;
    }
    let old_entries = entries_of(old).cloned();
    set_entries(new, old_entries);
}

fn metadata_of(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.get("metadata").and_then(Value::as_object).into_iter().flatten()
}

fn equal_but_entries(a: &Value, b: &Value) -> bool {
    let without = |skip: &'static str| move |entry: &(&String, &Value)| entry.0 != skip;
    match (a.as_object(), b.as_object()) {
        (Some(x), Some(y)) => {
            x.iter().filter(without("metadata")).eq(y.iter().filter(without("metadata")))
                && metadata_of(a).filter(without("managedFields")).eq(metadata_of(b).filter(without("managedFields")))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests;
