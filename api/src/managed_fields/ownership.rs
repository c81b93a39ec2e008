//! How ownership moves between managers when an object changes (upstream: `structured-merge-diff/merge/update.go`).

use super::Write;
use super::entries::{Entry, Managed, ManagerId};
use crate::apply::{Comparison, compare, ensure_named, reconcile, remove, to_field_set};
use crate::field_set::Set;
use crate::schema::StructRef;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The fields of one manager that a change would take from it.
pub(super) struct Conflict {
    pub id: ManagerId,
    pub fields: Set,
}

/// The object and its schema in a version.
fn in_version<'a>(
    write: &'a Write<'_>,
    object: &'a Value,
    version: &str,
) -> Option<(Cow<'a, Value>, Cow<'a, StructRef>)> {
    if version == write.api_version {
        return Some((Cow::Borrowed(object), Cow::Borrowed(write.schema)));
    }
    let schema = write.versions.schema(version)?;
    Some((Cow::Owned(write.versions.convert(object, version)?), Cow::Owned(schema)))
}

/// Drops entries of versions that are no more, and makes the rest fit the schema as it is now.
fn reconcile_all(write: &Write<'_>, managed: &mut Managed) {
    managed.entries.retain(|_, entry| {
        let schema = if *entry.api_version == *write.api_version {
            Some(Cow::Borrowed(write.schema))
        } else {
            write.versions.schema(&entry.api_version).map(Cow::Owned)
        };
        let Some(schema) = schema else { return false };
        if let Some(set) = reconcile(entry.set(), &schema) {
            entry.replace(set);
        }
        true
    });
}

/// Takes what changed from everybody but `writer`. Without `force` nothing is taken where somebody would lose something:
/// the conflicts come back instead.
fn transfer(
    write: &Write<'_>,
    live: &Value,
    new: &Value,
    managed: &mut Managed,
    writer: Option<&ManagerId>,
    force: bool,
) -> Result<Comparison, Vec<Conflict>> {
    let compare_in = |live: &Value, new: &Value, schema: &StructRef| {
        let mut comparison = compare(live, new, schema);
        if let Some(reset) = write.reset {
            comparison.exclude(reset);
        }
        comparison
    };
    let ours = compare_in(live, new, write.schema);
    let mut others: BTreeMap<Box<str>, Comparison> = BTreeMap::new();
    for (_, entry) in
        managed.entries.iter().filter(|(id, e)| Some(*id) != writer && *e.api_version != *write.api_version)
    {
        if others.contains_key(&entry.api_version) {
            continue;
        }
        let converted = in_version(write, live, &entry.api_version).zip(in_version(write, new, &entry.api_version));
        if let Some(((live, schema), (new, _))) = converted {
            others.insert(entry.api_version.clone(), compare_in(&live, &new, &schema));
        }
    }
    managed.entries.retain(|id, e| {
        Some(id) == writer || *e.api_version == *write.api_version || others.contains_key(&e.api_version)
    });

    let mut conflicts = Vec::new();
    let changed = |c: &Comparison| c.modified.union(&c.added);
    let our_change = changed(&ours);
    let their_changes: BTreeMap<&str, Set> = others.iter().map(|(v, c)| (&**v, changed(c))).collect();
    let of_version = |version: &str| match version == write.api_version {
        true => (&our_change, &ours.removed),
        false => (&their_changes[version], &others[version].removed),
    };
    for (id, entry) in managed.entries.iter().filter(|(id, _)| Some(*id) != writer) {
        let (change, _) = of_version(&entry.api_version);
        if !change.is_empty() {
            let fields = entry.set().intersection(change);
            if !fields.is_empty() {
                conflicts.push(Conflict { id: id.clone(), fields });
            }
        }
    }
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    for conflict in conflicts {
        if let Some(entry) = managed.entries.get_mut(&conflict.id) {
            let rest = entry.set().difference(&conflict.fields);
            entry.replace(rest);
        }
    }
    for (id, entry) in &mut managed.entries {
        let (_, removed) = of_version(&entry.api_version);
        if Some(id) != writer && !removed.is_empty() && !entry.set().intersection(removed).is_empty() {
            let rest = entry.set().difference(removed);
            entry.replace(rest);
        }
    }
    managed.entries.retain(|_, entry| !entry.set().is_empty());
    Ok(ours)
}

/// Takes the fields that changed from whoever owns them; they are the writer's now, and come back.
pub(super) fn update(write: &Write<'_>, live: &Value, new: &Value, managed: &mut Managed) -> Set {
    reconcile_all(write, managed);
    match transfer(write, live, new, managed, None, true) {
        Ok(change) => change.modified.union(&change.added),
        // With force there are no conflicts.
        Err(_) => Set::new(),
    }
}

/// Gives `applier` the fields of its configuration, takes away what it no longer says, and sees who else is concerned.
/// `merged` is the object with the configuration merged in. Gives the object to be stored.
pub(super) fn apply(
    write: &Write<'_>,
    live: &Value,
    merged: Value,
    config: &Value,
    managed: &mut Managed,
    applier: &ManagerId,
    force: bool,
) -> Result<Value, Vec<Conflict>> {
    reconcile_all(write, managed);
    let last = managed.entries.get(applier).cloned();
    let mut set = to_field_set(config, write.schema);
    if let Some(reset) = write.reset {
        set = set.recursive_difference(reset);
    }
    let time = last.as_ref().and_then(|e| e.time.clone());
    let mut entry = Entry::new(write.api_version, set, None);
    entry.time = time;
    managed.entries.insert(applier.clone(), entry);
    let new = prune(write, merged, managed, last.as_ref());
    transfer(write, live, &new, managed, Some(applier), force)?;
    Ok(new)
}

/// Removes what the applier said last time, says no more, and nobody else owns.
fn prune(write: &Write<'_>, merged: Value, managed: &Managed, last: Option<&Entry>) -> Value {
    let Some(last) = last.filter(|l| !l.set().is_empty()) else { return merged };
    let Some((in_last, schema)) = in_version(write, &merged, &last.api_version) else { return merged };
    let (in_last, schema) = (in_last.into_owned(), schema.into_owned());
    let last_named = ensure_named(last.set(), &schema);
    let mut pruned = remove(&in_last, &last_named, &schema);

    // What anybody owns comes back, version by version: first the one at hand.
    let mut owned: BTreeMap<&str, Set> = BTreeMap::new();
    for entry in managed.entries.values() {
        let set = owned.entry(&entry.api_version).or_default();
        *set = set.union(entry.set());
    }
    let mut versions: Vec<&str> = owned.keys().copied().collect();
    versions.sort_by_key(|v| **v != *last.api_version);
    let mut at: Box<str> = last.api_version.clone();
    let mut whole = in_last.clone();
    for version in versions {
        let Some(((w, version_schema), (p, _))) =
            between(write, &whole, &at, version).zip(between(write, &pruned, &at, version))
        else {
            continue;
        };
        let all = ensure_named(&to_field_set(&w, &version_schema), &version_schema);
        let left = ensure_named(&to_field_set(&p, &version_schema), &version_schema);
        let keep = left.union(&ensure_named(&owned[version], &version_schema));
        pruned = remove(&w, &all.difference(&keep), &version_schema);
        whole = w;
        at = version.into();
    }

    // What the applier did not own before is not its to remove.
    let Some((pruned, _)) = between(write, &pruned, &at, &last.api_version) else { return merged };
    let left = ensure_named(&to_field_set(&pruned, &schema), &schema);
    let all = ensure_named(&to_field_set(&in_last, &schema), &schema);
    let gone = all.difference(&left).intersection(&last_named);
    let pruned = remove(&in_last, &gone, &schema);
    match between(write, &pruned, &last.api_version, write.api_version) {
        Some((pruned, _)) => pruned,
        None => merged,
    }
}

/// An object of one version in another, with that version's schema.
fn between(write: &Write<'_>, object: &Value, from: &str, to: &str) -> Option<(Value, StructRef)> {
    let schema = if to == write.api_version { write.schema.clone() } else { write.versions.schema(to)? };
    if from == to {
        return Some((object.clone(), schema));
    }
    Some((write.versions.convert(object, to)?, schema))
}
