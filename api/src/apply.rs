//! Values with a schema: validate, list their fields, compare, merge and prune them (upstream: `structured-merge-diff/typed`
//! and `kube-openapi/pkg/schemaconv`). Who owns what, and server-side apply itself, is in [`crate::managed_fields`].
//!
//! What upstream derives from OpenAPI is read from the schema here, by [`Atom`]: lists are atomic unless their list type says
//! otherwise, maps and structs are granular unless marked atomic.

mod compare;
mod merge;
mod remove;

pub use compare::{Comparison, compare};
pub use merge::merge;
pub use remove::{ensure_named, reconcile, remove};

use crate::field::go_quote;
use crate::field_set::{PathElement, Set};
use crate::schema::{AnyKind, Field, List, ListKind, Omit, Scalar, Struct, StructRef, Type};
use serde_json::{Map, Value};

/// How a value of some type is merged.
#[derive(Clone, Copy)]
pub(crate) enum Atom<'a> {
    /// Replaced as a whole.
    Scalar(ScalarKind),
    List {
        element: &'a Type,
        keys: Keys<'a>,
    },
    Struct {
        this: &'a Struct,
        atomic: bool,
    },
    Map {
        value: &'a Type,
        atomic: bool,
    },
    /// Untyped: lists are atomic, maps granular, everything else a scalar.
    Deduced,
    /// Untyped and replaced as a whole.
    Opaque,
}

/// Which values a scalar takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScalarKind {
    Text,
    Number,
    Truth,
    Any,
}

/// How the elements of a list are told apart.
#[derive(Clone, Copy)]
pub(crate) enum Keys<'a> {
    /// They are not: the list is replaced as a whole.
    Atomic,
    /// By their value.
    Set,
    /// By the values of these fields.
    Fields(&'a [Box<str>]),
}

impl<'a> Atom<'a> {
    /// `field` is the field that has the type, if it is one: markers of the field take part.
    pub(crate) fn of(ty: &'a Type, field: Option<&'a Field>) -> Self {
        match ty {
            Type::Scalar(scalar) => Atom::Scalar(match scalar {
                Scalar::String | Scalar::Bytes | Scalar::Duration => ScalarKind::Text,
                Scalar::Bool => ScalarKind::Truth,
                Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::Uint64 | Scalar::Float64 => ScalarKind::Number,
                Scalar::IntOrString | Scalar::Quantity | Scalar::Time | Scalar::MicroTime => ScalarKind::Any,
            }),
            Type::Struct(s) => {
                let atomic = field.map_or(s.atomic, |f| f.atomic || s.atomic && !f.granular);
                Atom::Struct { this: s, atomic }
            }
            Type::Map(map) => Atom::Map { value: &map.value, atomic: map.atomic || field.is_some_and(|f| f.atomic) },
            Type::List(list) => Atom::List { element: &list.element, keys: Keys::of(list) },
            Type::Any(AnyKind::RawExtension) => Atom::Opaque,
            Type::Any(_) => Atom::Deduced,
        }
    }

    /// What an untyped value is.
    fn deduce(self, value: &Value) -> Self {
        match (self, value) {
            (Atom::Deduced, Value::Object(_)) => Atom::Map { value: &ANY, atomic: false },
            (Atom::Deduced, Value::Array(_)) => Atom::List { element: &ANY, keys: Keys::Atomic },
            (Atom::Deduced, Value::Null) | (Atom::Opaque, _) => Atom::Opaque,
            (Atom::Deduced, _) => Atom::Scalar(ScalarKind::Any),
            (typed, _) => typed,
        }
    }

    fn is_atomic(self) -> bool {
        match self {
            Atom::Scalar(_) | Atom::Opaque => true,
            Atom::List { keys, .. } => matches!(keys, Keys::Atomic),
            Atom::Struct { atomic, .. } | Atom::Map { atomic, .. } => atomic,
            Atom::Deduced => false,
        }
    }

    /// The type of what lies at a key; none if a struct knows no such field.
    fn entry(self, key: &str) -> Option<Self> {
        match self {
            Atom::Struct { this, .. } => match this.field(key) {
                Some(field) => Some(Atom::of(&field.ty, Some(field))),
                None if this.preserve_unknown => Some(Atom::Deduced),
                None => None,
            },
            Atom::Map { value, .. } => Some(Atom::of(value, None)),
            _ => Some(Atom::Deduced),
        }
    }

    /// Whether the key is a field that the schema names.
    fn names(self, key: &str) -> bool {
        matches!(self, Atom::Struct { this, .. } if this.field(key).is_some())
    }
}

static ANY: Type = Type::Any(AnyKind::Unknown);

impl<'a> Keys<'a> {
    fn of(list: &'a List) -> Self {
        match &list.kind {
            ListKind::Set => Keys::Set,
            ListKind::Map(keys) => Keys::Fields(keys),
            ListKind::Atomic => Keys::Atomic,
        }
    }

    /// Whether [`Keys::element`] finds a path element, without making it.
    fn fit(self, element: &Type, item: &Value) -> bool {
        match (self, item) {
            (Keys::Atomic, _) => true,
            (Keys::Set, item) => !matches!(item, Value::Object(_) | Value::Array(_) | Value::Null),
            (Keys::Fields(keys), Value::Object(map)) => keys.iter().any(|key| {
                let default =
                    || matches!(element, Type::Struct(s) if s.field(key).is_some_and(|f| f.default.is_some()));
                map.contains_key(&**key) || default()
            }),
            (Keys::Fields(_), _) => false,
        }
    }

    /// The path element of an item of the list.
    fn element(self, element: &Type, item: &Value) -> Result<PathElement, String> {
        match self {
            Keys::Atomic => Err("invalid indexing of non-associative list".to_owned()),
            Keys::Set => match item {
                Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
                Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
                Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
                scalar => Ok(PathElement::Value(scalar.clone())),
            },
            Keys::Fields(keys) => {
                let map = match item {
                    Value::Object(map) => map,
                    Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
                    _ => return Err("associative list with keys may not have non-map elements".to_owned()),
                };
                let mut values: smallvec::SmallVec<[(Box<str>, Value); 1]> = smallvec::SmallVec::new();
                for key in keys {
                    let default = || match element {
                        Type::Struct(s) => s.field(key).and_then(Field::published_default),
                        _ => None,
                    };
                    if let Some(value) = map.get(&**key).cloned().or_else(default) {
                        values.push((key.clone(), value));
                    }
                }
                if values.is_empty() && !keys.is_empty() {
                    let quoted: Vec<String> = keys.iter().map(|k| go_quote(k)).collect();
                    return Err(format!(
                        "associative list with keys has an element that omits all key fields [{}] \
                         (and doesn't have default values for any key fields)",
                        quoted.join(" ")
                    ));
                }
                values.sort_by(|a, b| a.0.cmp(&b.0));
                Ok(PathElement::Key(values))
            }
        }
    }
}

/// What is wrong with a value, as upstream's `ValidationErrors` prints it.
#[derive(Debug, Default)]
pub struct Errors(Vec<(String, String)>);

impl Errors {
    fn new(message: impl Into<String>) -> Self {
        Errors(vec![(String::new(), message.into())])
    }

    fn prefixed(mut self, prefix: &dyn std::fmt::Display) -> Self {
        if !self.0.is_empty() {
            let prefix = prefix.to_string();
            self.0.iter_mut().for_each(|(path, _)| path.insert_str(0, &prefix));
        }
        self
    }

    fn extend(&mut self, other: Errors) {
        self.0.extend(other.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for Errors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let one = |(path, message): &(String, String)| match path.is_empty() {
            true => message.clone(),
            false => format!("{path}: {message}"),
        };
        match self.0.as_slice() {
            [only] => f.write_str(&one(only)),
            all => {
                f.write_str("errors:")?;
                all.iter().try_for_each(|e| write!(f, "\n  {}", one(e)))
            }
        }
    }
}

/// Whether every item of every list that is told apart by keys has one of them, so that the value can be walked by path.
pub fn is_keyed(value: &Value, schema: &StructRef) -> bool {
    all_keyed(value, Atom::Struct { this: schema, atomic: schema.atomic })
}

fn all_keyed(value: &Value, atom: Atom<'_>) -> bool {
    match (atom.deduce(value), value) {
        (Atom::List { element, keys }, Value::Array(items)) => {
            items.iter().all(|item| keys.fit(element, item) && all_keyed(item, Atom::of(element, None)))
        }
        (atom @ (Atom::Struct { .. } | Atom::Map { .. }), Value::Object(map)) => {
            map.iter().all(|(key, value)| atom.entry(key).is_none_or(|entry| all_keyed(value, entry)))
        }
        _ => true,
    }
}

/// Checks a value against its schema: known fields, kinds of scalars, keys of lists, no duplicates.
pub fn validate(value: &Value, schema: &StructRef) -> Errors {
    check(value, Atom::Struct { this: schema, atomic: schema.atomic })
}

fn check(value: &Value, atom: Atom<'_>) -> Errors {
    match atom.deduce(value) {
        Atom::Opaque | Atom::Deduced => Errors::default(),
        Atom::Scalar(kind) => check_scalar(value, kind),
        Atom::List { element, keys } => match value {
            Value::Null => Errors::default(),
            Value::Array(items) => check_items(items, element, keys),
            other => Errors::new(format!("expected list, got {}", go_unstructured(other))),
        },
        atom @ (Atom::Struct { .. } | Atom::Map { .. }) => match value {
            Value::Null => Errors::default(),
            Value::Object(map) => check_entries(map, atom),
            other => Errors::new(format!("expected map, got {}", go_unstructured(other))),
        },
    }
}

fn check_entries(map: &Map<String, Value>, atom: Atom<'_>) -> Errors {
    let mut errors = Errors::default();
    for (key, value) in map {
        let element = format_args!(".{key}").to_string();
        match atom.entry(key) {
            // Upstream stops at the first unknown field of a map.
            None => {
                errors.extend(Errors::new("field not declared in schema").prefixed(&element));
                break;
            }
            Some(entry) => errors.extend(check(value, entry).prefixed(&element)),
        }
    }
    errors
}

fn check_items(items: &[Value], element: &Type, keys: Keys<'_>) -> Errors {
    let mut errors = Errors::default();
    let mut seen = std::collections::BTreeSet::new();
    for (i, item) in items.iter().enumerate() {
        let path = match keys {
            Keys::Atomic => PathElement::Index(i as i64),
            _ => match keys.element(element, item) {
                Ok(path) => path,
                Err(why) => {
                    errors.extend(Errors::new(format!("element {i}: {why}")));
                    return errors;
                }
            },
        };
        let wrong = check(item, Atom::of(element, None)).prefixed(&path);
        if !matches!(keys, Keys::Atomic) && !seen.insert(path.clone()) {
            errors.extend(Errors::new(format!("duplicate entries for key {path}")));
        }
        errors.extend(wrong);
    }
    errors
}

fn check_scalar(value: &Value, kind: ScalarKind) -> Errors {
    let good = match (kind, value) {
        (_, Value::Null) => true,
        (ScalarKind::Text, v) => v.is_string(),
        (ScalarKind::Number, v) => v.is_number(),
        (ScalarKind::Truth, v) => v.is_boolean(),
        (ScalarKind::Any, v) => !v.is_array() && !v.is_object(),
    };
    if good {
        return Errors::default();
    }
    Errors::new(match kind {
        ScalarKind::Text => format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(value)),
        ScalarKind::Number => format!("expected numeric (int or float), got {}", go_type(value)),
        ScalarKind::Truth => format!("expected boolean, got {}", go_unstructured(value)),
        ScalarKind::Any => format!("expected any scalar, got {}", go_unstructured(value)),
    })
}

/// As Go's `%v` shows the wrapper that upstream prints.
fn go_unstructured(value: &Value) -> String {
    format!("&{{{}}}", crate::patch::go_print(value))
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// As Go's `%#v` shows a value.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::String(s) => go_quote(s),
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(go_syntax).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(k, v)| format!("{}:{}", go_quote(k), go_syntax(v))).collect();
            format!("map[string]interface {{}}{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

/// Every field that a value sets. Structs are not fields themselves unless they are empty; items of lists and entries of
/// maps are.
pub fn to_field_set(value: &Value, schema: &StructRef) -> Set {
    fields_below(value, Atom::Struct { this: schema, atomic: schema.atomic }).0
}

/// What lies below the value, and whether the value itself is a field.
fn fields_below(value: &Value, atom: Atom<'_>) -> (Set, bool) {
    let atom = atom.deduce(value);
    if atom.is_atomic() {
        return (Set::new(), true);
    }
    let mut set = Set::new();
    match (atom, value) {
        (Atom::List { element, keys }, Value::Array(items)) => {
            let mut elements: Vec<(PathElement, &Value)> = Vec::with_capacity(items.len());
            for item in items {
                elements.extend(keys.element(element, item).ok().map(|e| (e, item)));
            }
            // Stable, so that duplicates lie side by side; they are owned as one, whole.
            elements.sort_by(|a, b| a.0.cmp(&b.0));
            let mut rest = elements.into_iter().peekable();
            while let Some((path, item)) = rest.next() {
                let mut twice = false;
                while rest.next_if(|(next, _)| *next == path).is_some() {
                    twice = true;
                }
                let below = if twice { Set::new() } else { fields_below(item, Atom::of(element, None)).0 };
                set.push(path, true, below);
            }
        }
        (atom, Value::Object(map)) => {
            for (key, value) in map {
                let Some(entry) = atom.entry(key) else { continue };
                let (below, own) = fields_below(value, entry);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                set.push(PathElement::field(key), own || empty || !atom.names(key), below);
            }
        }
        _ => {}
    }
    (set, false)
}

/// The object that upstream's `New` makes: what a Go struct holds before anything was set, as its encoder writes it.
/// Ownership on create is reckoned from it: a struct that is always there is not set by anybody.
pub fn zero(schema: &Struct) -> Value {
    let mut map = Map::new();
    // Parts of a custom resource have no Go struct: nothing is there before it is set.
    if schema.name.is_empty() {
        return Value::Object(map);
    }
    for field in &schema.fields {
        let always = field.omit == Omit::Never;
        let value = match &field.ty {
            _ if field.pointer => always.then_some(Value::Null),
            Type::Struct(s) if field.omit != Omit::Zero => Some(zero(s)),
            Type::Struct(_) => None,
            Type::Scalar(scalar) if always => Some(match scalar {
                Scalar::String | Scalar::Duration => "".into(),
                Scalar::Bool => false.into(),
                Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::Uint64 | Scalar::IntOrString => 0.into(),
                Scalar::Float64 => 0.0.into(),
                Scalar::Quantity => "0".into(),
                Scalar::Time | Scalar::MicroTime | Scalar::Bytes => Value::Null,
            }),
            // Values with an encoder of their own are written even when empty.
            Type::Scalar(Scalar::IntOrString) if field.omit == Omit::Empty => Some(0.into()),
            Type::Scalar(Scalar::Quantity) if field.omit == Omit::Empty => Some("0".into()),
            Type::Scalar(Scalar::Duration) if field.omit == Omit::Empty => Some("0s".into()),
            Type::Scalar(Scalar::Time | Scalar::MicroTime) if field.omit == Omit::Empty => Some(Value::Null),
            Type::Any(_) if field.omit != Omit::Zero => Some(Value::Null),
            _ => always.then_some(Value::Null),
        };
        if let Some(value) = value {
            map.insert(field.name.to_string(), value);
        }
    }
    Value::Object(map)
}
