//! Merges an applied configuration into an object (upstream: `structured-merge-diff/typed/merge.go`).
//!
//! What the configuration says wins; what it does not say stays. Lists keep the configuration's order for what it names,
//! and the object's order for the rest.

use super::{Atom, Errors, Keys};
use crate::field_set::PathElement;
use crate::schema::{StructRef, Type};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Merges `config` into `live`.
pub fn merge(live: &Value, config: &Value, schema: &StructRef) -> Result<Value, Errors> {
    let mut errors = Errors::default();
    let merged = walk(Some(live), Some(config), Atom::Struct { this: schema, atomic: schema.atomic }, &mut errors);
    if errors.is_empty() { Ok(merged.unwrap_or(Value::Null)) } else { Err(errors) }
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        _ => true,
    }
}

fn walk(live: Option<&Value>, config: Option<&Value>, atom: Atom<'_>, errors: &mut Errors) -> Option<Value> {
    let winner = || config.or(live).cloned();
    let known = config.filter(|v| !v.is_null()).or(live).or(config)?;
    let atom = atom.deduce(known);
    if config.is_none() || atom.is_atomic() || is_empty(live) && is_empty(config) {
        return winner();
    }
    match atom {
        Atom::List { element, keys } => {
            let items = |v: Option<&'_ Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
            let (live, config) = (items(live), items(config));
            let merged = merge_items(&live, &config, element, keys, errors);
            (!merged.is_empty()).then_some(Value::Array(merged))
        }
        _ => {
            let mut merged = Map::new();
            let none = Map::new();
            let live = live.and_then(Value::as_object).unwrap_or(&none);
            let config = config.and_then(Value::as_object).unwrap_or(&none);
            for (key, value) in live {
                let entry = atom.entry(key).unwrap_or(Atom::Deduced);
                let mut inner = Errors::default();
                let value = walk(Some(value), config.get(key), entry, &mut inner);
                errors.extend(inner.prefixed(&format_args!(".{key}")));
                if let Some(value) = value {
                    merged.insert(key.clone(), value);
                }
            }
            for (key, value) in config.iter().filter(|(k, _)| !live.contains_key(*k)) {
                let entry = atom.entry(key).unwrap_or(Atom::Deduced);
                let mut inner = Errors::default();
                let value = walk(None, Some(value), entry, &mut inner);
                errors.extend(inner.prefixed(&format_args!(".{key}")));
                if let Some(value) = value {
                    merged.insert(key.clone(), value);
                }
            }
            (!merged.is_empty()).then_some(Value::Object(merged))
        }
    }
}

/// The elements of a list in order, and where each is; an element that is there twice has no place of its own.
struct Indexed<'a> {
    order: Vec<(PathElement, &'a Value)>,
    by_element: BTreeMap<PathElement, Option<&'a Value>>,
}

fn index<'a>(items: &'a [Value], element: &Type, keys: Keys<'_>, duplicates: bool, errors: &mut Errors) -> Indexed<'a> {
    let mut out = Indexed { order: Vec::with_capacity(items.len()), by_element: BTreeMap::new() };
    for (i, item) in items.iter().enumerate() {
        match keys.element(element, item) {
            Err(why) => errors.extend(Errors::new(format!("element {i}: {why}"))),
            Ok(path) => {
                let found = out.by_element.contains_key(&path);
                if found && !duplicates {
                    errors.extend(Errors::new(format!("duplicate entries for key {path}")));
                    continue;
                }
                out.by_element.insert(path.clone(), if found { None } else { Some(item) });
                out.order.push((path, item));
            }
        }
    }
    out
}

fn merge_items(live: &[Value], config: &[Value], element: &Type, keys: Keys<'_>, errors: &mut Errors) -> Vec<Value> {
    let mut wrong = Errors::default();
    let right = index(config, element, keys, false, &mut wrong);
    let left = index(live, element, keys, true, &mut wrong);
    if !wrong.is_empty() {
        errors.extend(wrong);
        return Vec::new();
    }
    let atom = Atom::of(element, None);
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    // What both lists have, in the order of the configuration.
    let mut shared = right.order.iter().map(|(e, _)| e).filter(|e| left.by_element.contains_key(*e));
    let mut next_shared = shared.next();
    let mut merged = std::collections::BTreeSet::new();
    let (mut l, mut r) = (0, 0);
    let mut emit = |live: Option<&Value>, config: Option<&Value>, path: &PathElement| {
        let mut inner = Errors::default();
        let value = match (live, config) {
            // A duplicate of the object has nothing to merge with: null stands for it, as upstream has it.
            (None, None) => Some(Value::Null),
            (live, config) => walk(live, config, atom, &mut inner),
        };
        errors.extend(inner.prefixed(path));
        out.extend(value);
    };
    while l < left.order.len() || r < right.order.len() {
        if let (Some((path, _)), Some((right_path, _))) = (left.order.get(l), right.order.get(r)) {
            if path == right_path {
                merged.insert(path.clone());
                emit(left.by_element[path], right.by_element[path], path);
                (l, r) = (l + 1, r + 1);
                next_shared = shared.next();
                continue;
            }
            if right.by_element.contains_key(path) && next_shared.is_some_and(|next| next != path) {
                // Both have it, but it is not its turn: the configuration will bring it.
                l += 1;
                continue;
            }
        }
        if let Some((path, item)) = left.order.get(l) {
            if !right.by_element.contains_key(path) {
                emit(Some(item), None, path);
                l += 1;
                continue;
            }
            if merged.contains(path) {
                l += 1;
            }
        }
        if let Some((path, _)) = right.order.get(r) {
            merged.insert(path.clone());
            emit(left.by_element.get(path).copied().flatten(), right.by_element[path], path);
            r += 1;
            if next_shared == Some(path) {
                next_shared = shared.next();
            }
        }
    }
    out
}
