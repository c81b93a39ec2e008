//! Values of expressions (upstream: cel-go `common/types`, `apiserver/pkg/cel/common/valuesunstructured.go`).
//!
//! A value that comes from a tree stays there: a list, a map or an object is a reference to its place in the tree and to the
//! type that its schema gives it, and its parts become values when they are asked for.

use crate::decl::{DeclType, Kind, ListType};
use crate::eval::Error;
use crate::library::authorizer::{Check, Decision};
use crate::library::names::NameFormat;
use crate::library::net::Cidr;
use crate::library::semver::Semver;
use crate::library::time;
use crate::library::url::Url;
use crate::types::Type;
use base64::Engine as _;
use coxswain_api::quantity::Quantity;
use serde_json::Value as Json;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Text<'a>),
    Bytes(Arc<[u8]>),
    /// In nanoseconds.
    Duration(i64),
    Timestamp(jiff::Timestamp),
    List(Arc<Vec<Value<'a>>>),
    Map(Arc<BTreeMap<Key, Value<'a>>>),
    /// A list, a map or an object as it stands in a tree.
    Tree(&'a Json, &'a DeclType),
    OfType(Type),
    Optional(Option<Arc<Value<'a>>>),
    Url(Arc<Url>),
    Quantity(Arc<Quantity>),
    Semver(Arc<Semver>),
    Ip(IpAddr),
    Cidr(Cidr),
    Format(&'static NameFormat),
    /// Something that can be asked what somebody may do.
    Check(Arc<Check<'a>>),
    Decision(Arc<Decision>),
}

/// A text, of a tree or made.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Lent(&'a str),
    Made(Arc<str>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Text::Lent(text) => text,
            Text::Made(text) => text,
        }
    }
}

/// A key of a map that an expression made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Text(Arc<str>),
}

impl Key {
    pub(crate) fn value<'a>(&self) -> Value<'a> {
        match self {
            Key::Bool(b) => Value::Bool(*b),
            Key::Int(n) => Value::Int(*n),
            Key::Uint(n) => Value::Uint(*n),
            Key::Text(text) => Value::Text(Text::Made(text.clone())),
        }
    }

    pub(crate) fn of(value: &Value<'_>) -> Result<Self, Error> {
        Ok(match value {
            Value::Bool(b) => Key::Bool(*b),
            Value::Int(n) => Key::Int(*n),
            // One number is one key, whatever its type.
            Value::Uint(n) => i64::try_from(*n).map_or(Key::Uint(*n), Key::Int),
            Value::Double(n) if n.fract() == 0.0 && n.abs() < 9e15 => Key::Int(*n as i64),
            Value::Text(text) => Key::Text(Arc::from(&**text)),
            other => return Err(Error::new(format!("unsupported key type: {}", other.type_name()))),
        })
    }
}

impl From<&str> for Value<'_> {
    fn from(text: &str) -> Self {
        Value::Text(Text::Made(text.into()))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Value::Text(Text::Made(text.into()))
    }
}

impl From<bool> for Value<'_> {
    fn from(b: bool) -> Self {
        Value::Bool(b)
    }
}

impl<'a> Value<'a> {
    /// A tree, or a part of one, as a value of its type.
    pub fn of(tree: &'a Json, decl: &'a DeclType) -> Self {
        match (tree, &decl.kind) {
            (Json::Null, _) => Value::Null,
            (Json::Bool(b), _) => Value::Bool(*b),
            (Json::Number(n), Kind::Plain(Type::Double)) => Value::Double(n.as_f64().unwrap_or_default()),
            (Json::Number(n), Kind::Plain(Type::Int)) => {
                Value::Int(n.as_i64().unwrap_or_else(|| n.as_f64().unwrap_or_default() as i64))
            }
            (Json::Number(n), _) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Value::Int(n),
                (_, Some(n)) => Value::Uint(n),
                _ => Value::Double(n.as_f64().unwrap_or_default()),
            },
            (Json::String(text), Kind::Plain(Type::Bytes)) => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
                Value::Bytes(bytes.into())
            }
            (Json::String(text), Kind::Plain(Type::Duration)) => {
                time::parse_duration(text).map_or_else(|| Value::Text(Text::Lent(text)), Value::Duration)
            }
            (Json::String(text), Kind::Plain(Type::Timestamp)) => {
                let date = || time::parse_timestamp(&format!("{text}T00:00:00Z"));
                let time = time::parse_timestamp(text).or_else(date);
                time.map_or_else(|| Value::Text(Text::Lent(text)), Value::Timestamp)
            }
            (Json::String(text), _) => Value::Text(Text::Lent(text)),
            (Json::Array(_) | Json::Object(_), _) => Value::Tree(tree, decl),
        }
    }

    /// A tree that no schema describes.
    pub fn untyped(tree: &'a Json) -> Self {
        Self::of(tree, DeclType::untyped())
    }

    pub fn list(items: Vec<Value<'a>>) -> Self {
        Value::List(Arc::new(items))
    }

    pub fn some(value: Value<'a>) -> Self {
        Value::Optional(Some(Arc::new(value)))
    }

    /// Its type as it names itself when an expression runs.
    pub(crate) fn type_name(&self) -> Cow<'static, str> {
        runtime_name(&self.ty())
    }

    pub(crate) fn ty(&self) -> Type {
        match self {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::Text(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            Value::Duration(_) => Type::Duration,
            Value::Timestamp(_) => Type::Timestamp,
            Value::List(_) | Value::Tree(Json::Array(_), _) => Type::list(Type::Dyn),
            Value::Map(_) | Value::Tree(..) => Type::map(Type::Dyn, Type::Dyn),
            Value::OfType(_) => Type::Meta(Arc::new(Type::Dyn)),
            Value::Optional(_) => Type::optional(Type::Dyn),
            Value::Url(_) => Type::Named("kubernetes.URL"),
            Value::Quantity(_) => Type::Named("kubernetes.Quantity"),
            Value::Semver(_) => Type::Named("kubernetes.Semver"),
            Value::Ip(_) => Type::Named("net.IP"),
            Value::Cidr(_) => Type::Named("net.CIDR"),
            Value::Format(_) => Type::Named("kubernetes.NamedFormat"),
            Value::Check(check) => Type::Named(check.type_name()),
            Value::Decision(_) => Type::Named("kubernetes.authorization.Decision"),
        }
    }

    /// The elements, if it is a list.
    pub(crate) fn elements(&self) -> Option<Cow<'_, [Value<'a>]>> {
        match self {
            Value::List(list) => Some(Cow::Borrowed(list)),
            Value::Tree(Json::Array(list), decl) => {
                let of = decl.items();
                Some(list.iter().map(|item| Value::of(item, of)).collect())
            }
            _ => None,
        }
    }

    /// The entries, if it is a map or an object.
    pub(crate) fn entries(&self) -> Option<Vec<(Value<'a>, Value<'a>)>> {
        match self {
            Value::Map(map) => Some(map.iter().map(|(k, v)| (k.value(), v.clone())).collect()),
            Value::Tree(Json::Object(map), decl) => {
                let entry = |(name, _): (&'a String, &'a Json)| {
                    let (shown, value) = decl.entry(map, name)?;
                    Some((Value::Text(shown), value))
                };
                Some(map.iter().filter_map(entry).collect())
            }
            _ => None,
        }
    }

    /// How many elements, entries, characters or bytes it has.
    pub(crate) fn size(&self) -> Option<u64> {
        let size = match self {
            Value::Text(text) => text.chars().count(),
            Value::Bytes(bytes) => bytes.len(),
            Value::List(list) => list.len(),
            Value::Map(map) => map.len(),
            Value::Tree(Json::Array(list), _) => list.len(),
            Value::Tree(..) => self.entries()?.len(),
            Value::Ip(ip) => return Some(if ip.is_ipv4() { 4 } else { 16 }),
            Value::Cidr(cidr) => return Some(u64::from(cidr.bits).div_ceil(8)),
            _ => return None,
        };
        Some(size as u64)
    }

    /// The value of a key or of a field, none if there is none.
    pub(crate) fn find(&self, key: &Value<'_>) -> Result<Option<Value<'a>>, Error> {
        match (self, key) {
            (Value::Map(map), key) => Ok(map.get(&Key::of(key)?).cloned()),
            (Value::Tree(Json::Object(map), decl), Value::Text(name)) => Ok(decl.find(map, name)),
            (Value::Tree(Json::Object(_), _), _) => Ok(None),
            _ => Err(Error::no_overload()),
        }
    }

    pub(crate) fn equals(&self, other: &Value<'_>) -> bool {
        use Value::*;
        match (self, other) {
            (Null, Null) => true,
            (Bool(a), Bool(b)) => a == b,
            (Text(a), Text(b)) => **a == **b,
            (Bytes(a), Bytes(b)) => a == b,
            (Duration(a), Duration(b)) => a == b,
            (Timestamp(a), Timestamp(b)) => a == b,
            (OfType(a), OfType(b)) => runtime_name(a) == runtime_name(b),
            (Optional(a), Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            (Url(a), Url(b)) => a == b,
            (Quantity(a), Quantity(b)) => a.cmp(b) == Ordering::Equal,
            (Semver(a), Semver(b)) => a.compare(b) == Ordering::Equal,
            (Ip(a), Ip(b)) => a == b,
            (Cidr(a), Cidr(b)) => a == b,
            (Format(a), Format(b)) => std::ptr::eq(*a, *b),
            (Int(_) | Uint(_) | Double(_), Int(_) | Uint(_) | Double(_)) => {
                self.compare(other).is_ok_and(|o| o == Some(Ordering::Equal))
            }
            (List(_) | Tree(Json::Array(_), _), List(_) | Tree(Json::Array(_), _)) => self.equal_lists(other),
            (Map(_) | Tree(..), Map(_) | Tree(..)) => {
                let (Some(a), Some(b)) = (self.entries(), other.entries()) else { return false };
                a.len() == b.len()
                    && a.iter().all(|(key, value)| matches!(other.find(key), Ok(Some(found)) if value.equals(&found)))
            }
            _ => false,
        }
    }

    /// Lists that are sets are equal in any order; those that are maps by their keys.
    fn equal_lists(&self, other: &Value<'_>) -> bool {
        let (Some(a), Some(b)) = (self.elements(), other.elements()) else { return false };
        if a.len() != b.len() {
            return false;
        }
        match self.list_type() {
            ListType::Atomic => a.iter().zip(b.iter()).all(|(a, b)| a.equals(b)),
            ListType::Set | ListType::Map(_) => a.iter().all(|a| b.iter().any(|b| a.equals(b))),
        }
    }

    pub(crate) fn list_type(&self) -> ListType {
        match self {
            Value::Tree(_, DeclType { kind: Kind::List { elements, .. }, .. }) => elements.clone(),
            _ => ListType::Atomic,
        }
    }

    /// The order of two values; none for numbers that have none.
    pub(crate) fn compare(&self, other: &Value<'_>) -> Result<Option<Ordering>, Error> {
        use Value::*;
        let exact = |a: i128, b: i128| Ok(Some(a.cmp(&b)));
        match (self, other) {
            (Bool(a), Bool(b)) => Ok(Some(a.cmp(b))),
            (Int(a), Int(b)) => Ok(Some(a.cmp(b))),
            (Uint(a), Uint(b)) => Ok(Some(a.cmp(b))),
            (Int(a), Uint(b)) => exact(i128::from(*a), i128::from(*b)),
            (Uint(a), Int(b)) => exact(i128::from(*a), i128::from(*b)),
            (Double(a), Double(b)) => Ok(a.partial_cmp(b)),
            (Double(a), Int(b)) => Ok(a.partial_cmp(&(*b as f64))),
            (Double(a), Uint(b)) => Ok(a.partial_cmp(&(*b as f64))),
            (Int(a), Double(b)) => Ok((*a as f64).partial_cmp(b)),
            (Uint(a), Double(b)) => Ok((*a as f64).partial_cmp(b)),
            (Text(a), Text(b)) => Ok(Some((**a).cmp(&**b))),
            (Bytes(a), Bytes(b)) => Ok(Some(a.cmp(b))),
            (Duration(a), Duration(b)) => Ok(Some(a.cmp(b))),
            (Timestamp(a), Timestamp(b)) => Ok(Some(a.cmp(b))),
            _ => Err(Error::no_overload()),
        }
    }

    /// What it is as a tree; an error if no tree holds it.
    pub fn to_tree(&self) -> Result<Json, Error> {
        Ok(match self {
            Value::Null | Value::Optional(None) => Json::Null,
            Value::Optional(Some(value)) => value.to_tree()?,
            Value::Bool(b) => (*b).into(),
            Value::Int(n) => (*n).into(),
            Value::Uint(n) => (*n).into(),
            Value::Double(n) => (*n).into(),
            Value::Text(text) => Json::String((**text).to_owned()),
            Value::Bytes(bytes) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
            Value::Duration(n) => time::duration_text(*n).into(),
            Value::Timestamp(t) => t.to_string().into(),
            Value::Quantity(q) => q.to_string().into(),
            Value::Tree(tree, _) => (*tree).clone(),
            Value::List(list) => Json::Array(list.iter().map(Value::to_tree).collect::<Result<_, _>>()?),
            Value::Map(map) => {
                let entry = |(key, value): (&Key, &Value<'_>)| match key {
                    Key::Text(key) => Ok((key.to_string(), value.to_tree()?)),
                    _ => Err(Error::new("a key of an object is not a string")),
                };
                Json::Object(map.iter().map(entry).collect::<Result<_, Error>>()?)
            }
            _ => return Err(Error::new("the expression gives something that no object holds")),
        })
    }
}

impl DeclType {
    fn items(&self) -> &DeclType {
        match &self.kind {
            Kind::List { items, .. } => items,
            _ => DeclType::untyped(),
        }
    }

    /// An entry by its name in JSON, under the name that expressions use; none if they do not see it.
    fn entry<'a>(&'a self, map: &'a serde_json::Map<String, Json>, name: &'a str) -> Option<(Text<'a>, Value<'a>)> {
        let value = map.get(name)?;
        match &self.kind {
            Kind::Object { fields, .. } => {
                let (shown, (_, decl)) = match fields.get_key_value(name) {
                    Some((shown, field)) if *field.0 == *name => (shown, field),
                    _ => fields.iter().find(|(_, (json, _))| **json == *name)?,
                };
                Some((Text::Lent(shown), Value::of(value, decl)))
            }
            Kind::Map(values) => Some((Text::Lent(name), Value::of(value, values))),
            // Where nothing is known, what is null is as if it were not there.
            _ => (!value.is_null()).then(|| (Text::Lent(name), Value::untyped(value))),
        }
    }

    fn find<'a>(&'a self, map: &'a serde_json::Map<String, Json>, name: &str) -> Option<Value<'a>> {
        match &self.kind {
            Kind::Object { fields, .. } => {
                let (json, decl) = fields.get(name)?;
                Some(Value::of(map.get(&**json)?, decl))
            }
            Kind::Map(values) => Some(Value::of(map.get(name)?, values)),
            _ => map.get(name).filter(|v| !v.is_null()).map(Value::untyped),
        }
    }
}

/// The name that a type has when an expression runs: without what it holds.
pub(crate) fn runtime_name(ty: &Type) -> Cow<'static, str> {
    Cow::Borrowed(match ty {
        Type::List(_) => "list",
        Type::Map(..) => "map",
        Type::Null => "null_type",
        Type::Meta(_) => "type",
        Type::Optional(_) => "optional_type",
        Type::Timestamp => "google.protobuf.Timestamp",
        Type::Duration => "google.protobuf.Duration",
        other => return Cow::Owned(other.to_string()),
    })
}

/// The types that expressions can name.
pub(crate) fn library_type(name: &str) -> Option<Type> {
    const NAMED: [&str; 11] = [
        "kubernetes.URL",
        "kubernetes.Quantity",
        "kubernetes.Semver",
        "kubernetes.NamedFormat",
        "net.IP",
        "net.CIDR",
        "kubernetes.authorization.Authorizer",
        "kubernetes.authorization.PathCheck",
        "kubernetes.authorization.GroupCheck",
        "kubernetes.authorization.ResourceCheck",
        "kubernetes.authorization.Decision",
    ];
    Some(match name {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "null_type" => Type::Null,
        "type" => Type::Meta(Arc::new(Type::Dyn)),
        "optional_type" => Type::optional(Type::Dyn),
        "google.protobuf.Timestamp" => Type::Timestamp,
        "google.protobuf.Duration" => Type::Duration,
        name => Type::Named(NAMED.into_iter().find(|known| *known == name)?),
    })
}
