//! Takes fields out of an object, and brings sets in line with a schema (upstream: `structured-merge-diff/typed/remove.go`,
//! `reconcile_schema.go`, and `Set.EnsureNamedFieldsAreMembers`).

use super::Atom;
use crate::field_set::{PathElement, Set};
use crate::schema::StructRef;
use serde_json::{Map, Value};

fn root(schema: &StructRef) -> Atom<'_> {
    Atom::Struct { this: schema, atomic: schema.atomic }
}

/// The object without the fields of the set. A container that loses everything becomes null; only a map of a custom resource,
/// where nothing else says that it is there, stays as an empty one.
pub fn remove(value: &Value, fields: &Set, schema: &StructRef) -> Value {
    let emptied = if schema.name.is_empty() { Value::Object(Map::new()) } else { Value::Null };
    if fields.is_empty() { value.clone() } else { walk(value, fields, root(schema), &emptied) }
}

fn walk(value: &Value, fields: &Set, atom: Atom<'_>, emptied: &Value) -> Value {
    let atom = atom.deduce(value);
    match (atom, value) {
        (Atom::Scalar(_), value) => value.clone(),
        (atom, _) if atom.is_atomic() => Value::Null,
        (Atom::List { element, keys }, Value::Array(items)) => {
            let mut kept = Vec::with_capacity(items.len());
            for item in items {
                let node = keys.element(element, item).ok().and_then(|e| fields.get(&e));
                match node {
                    Some(node) if node.member => {}
                    Some(node) => kept.push(walk(item, &node.children, Atom::of(element, None), emptied)),
                    None => kept.push(item.clone()),
                }
            }
            if kept.is_empty() { Value::Null } else { Value::Array(kept) }
        }
        (atom, Value::Object(map)) => {
            let mut kept = Map::new();
            for (key, value) in map {
                match fields.get_field(key) {
                    Some(node) if node.member => {}
                    Some(node) => {
                        let entry = atom.entry(key).unwrap_or(Atom::Deduced);
                        kept.insert(key.clone(), walk(value, &node.children, entry, emptied));
                    }
                    None => {
                        kept.insert(key.clone(), value.clone());
                    }
                }
            }
            match atom {
                _ if !kept.is_empty() => Value::Object(kept),
                Atom::Map { .. } => emptied.clone(),
                _ => Value::Null,
            }
        }
        _ => Value::Null,
    }
}

/// The set, and every field named by the schema that leads to a member of it.
pub fn ensure_named(set: &Set, schema: &StructRef) -> Set {
    named(set, Some(root(schema)))
}

fn named(set: &Set, atom: Option<Atom<'_>>) -> Set {
    let mut out = Set::new();
    for node in set.nodes() {
        let (below, is_named) = match (&node.element, atom) {
            (PathElement::Field(name), Some(atom @ (Atom::Struct { .. } | Atom::Map { .. }))) => {
                (atom.entry(name), atom.names(name))
            }
            (PathElement::Key(_), Some(Atom::List { element, .. })) => (Some(Atom::of(element, None)), false),
            (_, Some(Atom::Deduced)) => (Some(Atom::Deduced), false),
            _ => (None, false),
        };
        let member = node.member || is_named && !node.children.is_empty();
        out.push(node.element.clone(), member, named(&node.children, below));
    }
    out
}

/// Where the schema made a field atomic, whoever owned something below it owns the whole. None if nothing changes.
pub fn reconcile(set: &Set, schema: &StructRef) -> Option<Set> {
    outgrown(set, root(schema)).then(|| rebuilt(set, root(schema)))
}

fn below<'a>(element: &PathElement, atom: Atom<'a>) -> Option<Atom<'a>> {
    match (element, atom) {
        (PathElement::Field(name), atom @ (Atom::Struct { .. } | Atom::Map { .. })) => atom.entry(name),
        (PathElement::Key(_) | PathElement::Value(_), Atom::List { element, .. }) => Some(Atom::of(element, None)),
        _ => None,
    }
}

fn outgrown(set: &Set, atom: Atom<'_>) -> bool {
    set.nodes().iter().filter(|n| !n.children.is_empty()).any(|node| match below(&node.element, atom) {
        Some(Atom::Deduced) | None => false,
        Some(inner) => inner.is_atomic() || outgrown(&node.children, inner),
    })
}

fn rebuilt(set: &Set, atom: Atom<'_>) -> Set {
    let mut out = Set::new();
    for node in set.nodes() {
        let (member, children) = match below(&node.element, atom) {
            Some(inner) if !matches!(inner, Atom::Deduced) && !node.children.is_empty() => {
                if inner.is_atomic() {
                    (true, Set::new())
                } else {
                    (node.member, rebuilt(&node.children, inner))
                }
            }
            _ => (node.member, node.children.clone()),
        };
        out.push(node.element.clone(), member, children);
    }
    out
}
