//! What changed between two values of one type (upstream: `structured-merge-diff/typed/compare.go`).

use super::{Atom, Keys};
use crate::field_set::{PathElement, Set};
use crate::schema::{StructRef, Type};
use serde_json::{Map, Value};

/// The fields that differ; no field is in more than one set.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

impl Comparison {
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    /// Leaves out fields, with all that lies below them.
    pub fn exclude(&mut self, fields: &Set) {
        for set in [&mut self.removed, &mut self.modified, &mut self.added] {
            *set = set.recursive_difference(fields);
        }
    }

    /// Records an entry: what lies below it, and what became of itself.
    fn push(&mut self, element: PathElement, below: Comparison, this: Fate) {
        // Elements are only copied where two sets need them.
        let wanted = [
            this == Fate::Removed || !below.removed.is_empty(),
            this == Fate::Modified || !below.modified.is_empty(),
            this == Fate::Added || !below.added.is_empty(),
        ];
        if wanted[0] {
            self.removed.push(element.clone(), this == Fate::Removed, below.removed);
        }
        if wanted[1] {
            self.modified.push(element.clone(), this == Fate::Modified, below.modified);
        }
        if wanted[2] {
            self.added.push(element, this == Fate::Added, below.added);
        }
    }

    fn join(&mut self, other: Comparison) {
        self.removed = self.removed.union(&other.removed);
        self.modified = self.modified.union(&other.modified);
        self.added = self.added.union(&other.added);
    }
}

/// What became of the value itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Removed,
    Modified,
    Added,
}

/// Compares two objects of the schema.
pub fn compare(old: &Value, new: &Value, schema: &StructRef) -> Comparison {
    walk(Some(old), Some(new), Atom::Struct { this: schema, atomic: schema.atomic }).0
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Fate {
    match (old, new) {
        (None, _) => Fate::Added,
        (_, None) => Fate::Removed,
        (Some(old), Some(new)) if old == new => Fate::Kept,
        _ => Fate::Modified,
    }
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        _ => true,
    }
}

fn walk(old: Option<&Value>, new: Option<&Value>, atom: Atom<'_>) -> (Comparison, Fate) {
    if let (Atom::Deduced, Some(old), Some(new)) = (atom, old, new)
        && std::mem::discriminant(old) != std::mem::discriminant(new)
        && !old.is_null()
        && !new.is_null()
    {
        // An untyped value changed its kind: both kinds are walked, each seeing the other side as nothing.
        let (mut below, first) = walk_as(Some(old), Some(new), atom.deduce(old));
        let (second_below, second) = walk_as(Some(old), Some(new), atom.deduce(new));
        below.join(second_below);
        return (below, if first == Fate::Kept { second } else { first });
    }
    let known = match (old, new) {
        (_, Some(new)) if !new.is_null() => new,
        (Some(old), _) => old,
        (None, Some(new)) => new,
        (None, None) => return (Comparison::default(), Fate::Kept),
    };
    walk_as(old, new, atom.deduce(known))
}

fn walk_as(old: Option<&Value>, new: Option<&Value>, atom: Atom<'_>) -> (Comparison, Fate) {
    // Two empty containers are a leaf, which tells an empty one from none.
    if atom.is_atomic() || is_empty(old) && is_empty(new) {
        return (Comparison::default(), leaf(old, new));
    }
    let mut below = Comparison::default();
    match atom {
        Atom::List { element, keys } => {
            if old != new {
                let (old, new) = (sorted_items(old, element, keys), sorted_items(new, element, keys));
                compare_items(old, new, Atom::of(element, None), &mut below);
            }
        }
        _ => {
            compare_entries(old.and_then(Value::as_object), new.and_then(Value::as_object), atom, &mut below);
        }
    }
    let fate = match (old, new) {
        (None, _) => Fate::Added,
        (_, None) => Fate::Removed,
        _ => Fate::Kept,
    };
    (below, fate)
}

/// The items of a list by their path elements; stable, so that duplicates keep their order.
fn sorted_items<'a>(list: Option<&'a Value>, element: &Type, keys: Keys<'_>) -> Vec<(PathElement, &'a Value)> {
    let items = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut all: Vec<_> = items.iter().filter_map(|i| Some((keys.element(element, i).ok()?, i))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Both maps are sorted: one pass sees every key once.
fn compare_entries(
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
    atom: Atom<'_>,
    below: &mut Comparison,
) {
    let mut olds = old.into_iter().flatten().peekable();
    let mut news = new.into_iter().flatten().peekable();
    loop {
        let order = match (olds.peek(), news.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let old = if order.is_le() { olds.next() } else { None };
        let new = if order.is_ge() { news.next() } else { None };
        let Some(key) = old.or(new).map(|(k, _)| k) else { return };
        let Some(entry) = atom.entry(key) else { continue };
        let (inner, fate) = walk(old.map(|(_, v)| v), new.map(|(_, v)| v), entry);
        if fate != Fate::Kept || !inner.is_same() {
            below.push(PathElement::field(key), inner, fate);
        }
    }
}

/// Both lists are sorted by element. Items that a list has twice are compared as one, whole.
fn compare_items(
    old: Vec<(PathElement, &Value)>,
    new: Vec<(PathElement, &Value)>,
    atom: Atom<'_>,
    below: &mut Comparison,
) {
    let (mut o, mut n) = (old.as_slice(), new.as_slice());
    loop {
        let element = match (o.first(), n.first()) {
            (None, None) => return,
            (Some((a, _)), Some((b, _))) => a.min(b),
            (Some((a, _)), None) => a,
            (None, Some((b, _))) => b,
        };
        let run = |list: &[(PathElement, &Value)]| list.iter().take_while(|(e, _)| e == element).count();
        let ((olds, o_rest), (news, n_rest)) = (o.split_at(run(o)), n.split_at(run(n)));
        (o, n) = (o_rest, n_rest);
        let (inner, fate) = match (olds, news) {
            ([], [(_, one)]) => walk(None, Some(one), atom),
            ([(_, one)], []) => walk(Some(one), None, atom),
            ([(_, a)], [(_, b)]) => walk(Some(a), Some(b), atom),
            ([_, _, ..], [_, _, ..]) => {
                let same = olds.len() == news.len() && olds.iter().zip(news).all(|(a, b)| a.1 == b.1);
                (Comparison::default(), if same { Fate::Kept } else { Fate::Modified })
            }
            // The list had it twice and has it once or never.
            ([_, _, ..], rest) => {
                let (mut inner, fate) = rest.first().map_or_else(Default::default, |(_, v)| {
                    let (inner, fate) = walk(None, Some(v), atom);
                    (inner, Some(fate))
                });
                if fate == Some(Fate::Added) {
                    below.added.push(element.clone(), true, std::mem::take(&mut inner.added));
                }
                (inner, Fate::Removed)
            }
            (rest, _) => {
                let (mut inner, fate) = rest.first().map_or_else(Default::default, |(_, v)| {
                    let (inner, fate) = walk(Some(v), None, atom);
                    (inner, Some(fate))
                });
                if fate == Some(Fate::Removed) {
                    below.removed.push(element.clone(), true, std::mem::take(&mut inner.removed));
                }
                (inner, Fate::Added)
            }
        };
        if fate != Fate::Kept || !inner.is_same() {
            below.push(element.clone(), inner, fate);
        }
    }
}
