//! Sets of fields: who owns what in an object (upstream: `structured-merge-diff/fieldpath`).
//!
//! A set is a tree of path elements. A node may be a member itself, and may lead to members below it; the two are
//! independent: `f:spec` can lead to `f:replicas` without being owned.

mod fields_v1;

pub(crate) use fields_v1::go_json;

use crate::field::go_quote;
use serde_json::Value;
use smallvec::SmallVec;
use std::cmp::Ordering;
use std::fmt;

/// One step of a path.
#[derive(Clone, Debug)]
pub enum PathElement {
    /// A field of a struct or a key of a map.
    Field(Box<str>),
    /// The element of a list whose key fields have these values, sorted by name.
    Key(SmallVec<[(Box<str>, Value); 1]>),
    /// The element of a set.
    Value(Value),
    /// The element of a list by its position.
    Index(i64),
}

impl PathElement {
    pub fn field(name: &str) -> Self {
        PathElement::Field(name.into())
    }

    fn rank(&self) -> u8 {
        match self {
            PathElement::Field(_) => 0,
            PathElement::Key(_) => 1,
            PathElement::Value(_) => 2,
            PathElement::Index(_) => 3,
        }
    }
}

/// Values in upstream's order: numbers, texts, truth values, lists, maps, null.
fn compare_values(a: &Value, b: &Value) -> Ordering {
    fn rank(v: &Value) -> u8 {
        match v {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => x.as_f64().unwrap_or_default().total_cmp(&y.as_f64().unwrap_or_default()),
        },
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let first = a.iter().zip(b).map(|(a, b)| compare_values(a, b)).find(|o| *o != Ordering::Equal);
            first.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let pair = |((ka, va), (kb, vb)): ((&String, &Value), (&String, &Value))| {
                ka.cmp(kb).then_with(|| compare_values(va, vb))
            };
            let first = a.iter().zip(b).map(pair).find(|o| *o != Ordering::Equal);
            first.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (PathElement::Field(a), PathElement::Field(b)) => a.cmp(b),
            (PathElement::Key(a), PathElement::Key(b)) => {
                for ((name_a, value_a), (name_b, value_b)) in a.iter().zip(b) {
                    let order = name_a.cmp(name_b).then_with(|| compare_values(value_a, value_b));
                    if order != Ordering::Equal {
                        return order;
                    }
                }
                a.len().cmp(&b.len())
            }
            (PathElement::Value(a), PathElement::Value(b)) => compare_values(a, b),
            (PathElement::Index(a), PathElement::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}
impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for PathElement {}

/// As messages show it: `.name`, `[name="c"]`, `[="x"]`, `[0]`.
impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathElement::Field(name) => write!(f, ".{name}"),
            PathElement::Key(fields) => {
                f.write_str("[")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(f, "{comma}{name}={}", show(value))?;
                }
                f.write_str("]")
            }
            PathElement::Value(value) => write!(f, "[={}]", show(value)),
            PathElement::Index(i) => write!(f, "[{i}]"),
        }
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(s) => go_quote(s),
        Value::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(",")),
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(k, v)| format!("{k}={}", show(v))).collect();
            format!("{{{}}}", entries.join(";"))
        }
        other => other.to_string(),
    }
}

/// A set of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Sorted by element. No node is both no member and childless.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub element: PathElement,
    /// Whether the path that ends here is in the set.
    pub member: bool,
    /// What lies below.
    pub children: Set,
}

impl Set {
    pub const fn new() -> Self {
        Self { nodes: Vec::new() }
    }

    /// The set of paths made of fields only, each given as `spec.replicas`.
    pub fn of_fields(paths: &[&str]) -> Self {
        let mut set = Set::new();
        for path in paths {
            let elements: Vec<PathElement> = path.split('.').map(PathElement::field).collect();
            set.insert(&elements);
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    fn find(&self, element: &PathElement) -> Result<usize, usize> {
        self.nodes.binary_search_by(|n| n.element.cmp(element))
    }

    /// The node of an element, if it is a member or leads to one.
    pub fn get(&self, element: &PathElement) -> Option<&Node> {
        self.find(element).ok().map(|i| &self.nodes[i])
    }

    /// The node of a field, found without making a path element.
    pub fn get_field(&self, name: &str) -> Option<&Node> {
        let found = self.nodes.binary_search_by(|n| match &n.element {
            PathElement::Field(field) => (**field).cmp(name),
            _ => Ordering::Greater,
        });
        found.ok().map(|i| &self.nodes[i])
    }

    /// Adds a path; its parents are not added. The empty path is the object itself, which nobody owns.
    pub fn insert(&mut self, path: &[PathElement]) {
        let Some((first, rest)) = path.split_first() else { return };
        let node = self.node(first);
        if rest.is_empty() {
            node.member = true;
        } else {
            node.children.insert(rest);
        }
    }

    fn node(&mut self, element: &PathElement) -> &mut Node {
        let i = self.find(element).unwrap_or_else(|i| {
            self.nodes.insert(i, Node { element: element.clone(), member: false, children: Set::new() });
            i
        });
        &mut self.nodes[i]
    }

    /// Adds a node made elsewhere, unless it is empty. An element that is there already is joined with it.
    pub fn push(&mut self, element: PathElement, member: bool, children: Set) {
        if !member && children.is_empty() {
            return;
        }
        match self.nodes.last() {
            Some(last) if last.element >= element => match self.find(&element) {
                Ok(i) => {
                    let node = &mut self.nodes[i];
                    node.member |= member;
                    node.children = std::mem::take(&mut node.children).union(&children);
                }
                Err(i) => self.nodes.insert(i, Node { element, member, children }),
            },
            _ => self.nodes.push(Node { element, member, children }),
        }
    }

    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.get(last).is_some_and(|n| n.member),
            [first, rest @ ..] => self.get(first).is_some_and(|n| n.children.has(rest)),
        }
    }

    /// What is in either.
    pub fn union(&self, other: &Set) -> Set {
        if other.is_empty() {
            return self.clone();
        }
        let mut out = Vec::with_capacity(self.nodes.len().max(other.nodes.len()));
        let (mut a, mut b) = (self.nodes.iter().peekable(), other.nodes.iter().peekable());
        loop {
            let order = match (a.peek(), b.peek()) {
                (None, None) => return Set { nodes: out },
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(x), Some(y)) => x.element.cmp(&y.element),
            };
            match order {
                Ordering::Less => out.extend(a.next().cloned()),
                Ordering::Greater => out.extend(b.next().cloned()),
                Ordering::Equal => {
                    if let (Some(x), Some(y)) = (a.next(), b.next()) {
                        out.push(Node {
                            element: x.element.clone(),
                            member: x.member || y.member,
                            children: x.children.union(&y.children),
                        });
                    }
                }
            }
        }
    }

    /// What is in both.
    pub fn intersection(&self, other: &Set) -> Set {
        let mut out = Set::new();
        let mut rest = other.nodes.as_slice();
        for node in &self.nodes {
            let skip = rest.partition_point(|n| n.element < node.element);
            rest = &rest[skip..];
            if let Some(theirs) = rest.first().filter(|n| n.element == node.element) {
                let children = node.children.intersection(&theirs.children);
                if (node.member && theirs.member) || !children.is_empty() {
                    out.nodes.push(Node {
                        element: node.element.clone(),
                        member: node.member && theirs.member,
                        children,
                    });
                }
            }
        }
        out
    }

    /// What is in this set and not in the other. A path in the other takes away only itself, nothing below it.
    pub fn difference(&self, other: &Set) -> Set {
        self.subtract(other, false)
    }

    /// What is in this set, without the other's paths and all that lies below them.
    pub fn recursive_difference(&self, other: &Set) -> Set {
        self.subtract(other, true)
    }

    fn subtract(&self, other: &Set, recursive: bool) -> Set {
        let mut out = Set::new();
        let mut rest = other.nodes.as_slice();
        for node in &self.nodes {
            let skip = rest.partition_point(|n| n.element < node.element);
            rest = &rest[skip..];
            match rest.first().filter(|n| n.element == node.element) {
                None => out.nodes.push(node.clone()),
                Some(theirs) => {
                    let children = if recursive && theirs.member {
                        Set::new()
                    } else {
                        node.children.subtract(&theirs.children, recursive)
                    };
                    let member = node.member && !theirs.member;
                    if member || !children.is_empty() {
                        out.nodes.push(Node { element: node.element.clone(), member, children });
                    }
                }
            }
        }
        out
    }

    /// The members that lead to no other member.
    pub fn leaves(&self) -> Set {
        let leaf = |node: &Node| Node {
            element: node.element.clone(),
            member: node.member && node.children.is_empty(),
            children: node.children.leaves(),
        };
        Set { nodes: self.nodes.iter().map(leaf).collect() }
    }

    /// Visits every path in upstream's order: the members of a level, then what lies below each.
    pub fn visit(&self, visitor: &mut dyn FnMut(&[PathElement])) {
        self.visit_below(&mut Vec::new(), visitor);
    }

    fn visit_below(&self, path: &mut Vec<PathElement>, visitor: &mut dyn FnMut(&[PathElement])) {
        for node in self.nodes.iter().filter(|n| n.member) {
            path.push(node.element.clone());
            visitor(path);
            path.pop();
        }
        for node in self.nodes.iter().filter(|n| !n.children.is_empty()) {
            path.push(node.element.clone());
            node.children.visit_below(path, visitor);
            path.pop();
        }
    }

    /// Every path as messages show it.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.visit(&mut |path| out.push(path_text(path)));
        out
    }
}

/// A path as messages show it, such as `.spec.containers[name="c"].image`.
pub fn path_text(path: &[PathElement]) -> String {
    path.iter().map(PathElement::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn element() -> impl Strategy<Value = PathElement> {
        prop_oneof![
            "[a-c]".prop_map(|s| PathElement::field(&s)),
            (0..3i64).prop_map(|i| PathElement::Value(i.into())),
            "[a-c]".prop_map(|s| PathElement::Key([("name".into(), s.into())].into_iter().collect())),
            (0..3i64).prop_map(PathElement::Index),
        ]
    }

    fn set() -> impl Strategy<Value = Set> {
        prop::collection::vec(prop::collection::vec(element(), 1..4), 0..12).prop_map(|paths| {
            let mut set = Set::new();
            paths.iter().for_each(|p| set.insert(p));
            set
        })
    }

    fn members(set: &Set) -> std::collections::BTreeSet<Vec<PathElement>> {
        let mut out = std::collections::BTreeSet::new();
        set.visit(&mut |p| {
            out.insert(p.to_vec());
        });
        out
    }

    proptest! {
        #[test]
        fn set_algebra_agrees_with_plain_sets(a in set(), b in set()) {
            let (x, y) = (members(&a), members(&b));
            prop_assert_eq!(members(&a.union(&b)), x.union(&y).cloned().collect());
            prop_assert_eq!(members(&a.intersection(&b)), x.intersection(&y).cloned().collect());
            prop_assert_eq!(members(&a.difference(&b)), x.difference(&y).cloned().collect());
            let below = |p: &Vec<PathElement>| (1..=p.len()).any(|n| y.contains(&p[..n]));
            prop_assert_eq!(members(&a.recursive_difference(&b)), x.into_iter().filter(|p| !below(p)).collect());
        }

        #[test]
        fn a_set_survives_the_wire(a in set()) {
            prop_assert_eq!(Set::from_fields_v1(&a.to_fields_v1()).unwrap(), a);
        }
    }
}
