//! Types with what a schema says of their sizes (upstream: `apiserver/pkg/cel/types.go` and `common/schemas.go`).

use crate::types::Type;
use coxswain_api::structural::Structural;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// The largest request, from which sizes follow where a schema sets no bound.
pub const MAX_REQUEST_BYTES: u64 = 3 * 1024 * 1024;

/// A type and how large its values can be.
#[derive(Debug)]
pub struct DeclType {
    pub(crate) kind: Kind,
    /// Characters, bytes, elements or entries at most.
    pub(crate) max_elements: u64,
    /// What a value takes at least in JSON.
    pub(crate) min_size: u64,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// A type without parts.
    Plain(Type),
    List {
        items: Arc<DeclType>,
        elements: ListType,
    },
    Map(Arc<DeclType>),
    Object {
        name: Box<str>,
        /// By the name that expressions use, with the name that it has in JSON.
        fields: BTreeMap<Box<str>, (Box<str>, Arc<DeclType>)>,
    },
}

/// What makes two elements of a list the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListType {
    Atomic,
    Set,
    Map(Vec<Box<str>>),
}

static DYN: LazyLock<DeclType> =
    LazyLock::new(|| DeclType { kind: Kind::Plain(Type::Dyn), max_elements: 0, min_size: 0 });

impl DeclType {
    /// Of a tree that no schema describes. Nulls in it are as if they were not there.
    pub fn untyped() -> &'static DeclType {
        &DYN
    }

    /// A type without parts, such as that of a field of a request.
    pub fn plain(ty: Type) -> Arc<Self> {
        Arc::new(Self { kind: Kind::Plain(ty), max_elements: 0, min_size: 0 })
    }

    pub fn list_of(items: Arc<DeclType>) -> Arc<Self> {
        Arc::new(Self { kind: Kind::List { items, elements: ListType::Atomic }, max_elements: 0, min_size: 0 })
    }

    pub fn map_of(values: Arc<DeclType>) -> Arc<Self> {
        Arc::new(Self { kind: Kind::Map(values), max_elements: 0, min_size: 0 })
    }

    /// An object with these fields, under the names that they have.
    pub fn object<'n>(name: &str, fields: impl IntoIterator<Item = (&'n str, Arc<DeclType>)>) -> Arc<Self> {
        let fields = fields.into_iter().map(|(field, ty)| (field.into(), (field.into(), ty)));
        let kind = Kind::Object { name: name.into(), fields: fields.collect() };
        Arc::new(Self { kind, max_elements: 0, min_size: 2 })
    }

    /// The type of a schema, none if expressions see nothing of what it describes. `is_resource` says that it is a whole
    /// resource, or one embedded, of which they see type and name in any case.
    pub fn of_schema(schema: &Structural, is_resource: bool) -> Option<Arc<Self>> {
        Self::within(schema, is_resource, "selfType")
    }

    fn within(schema: &Structural, is_resource: bool, name: &str) -> Option<Arc<Self>> {
        let checks = &schema.checks;
        let bound = |n: i64| u64::try_from(n).unwrap_or(0);
        let made = |kind: Kind, max_elements: u64, min_size: u64| Some(Arc::new(Self { kind, max_elements, min_size }));
        let plain = |ty: Type, max: u64, min: u64| made(Kind::Plain(ty), max, min);
        if schema.int_or_string {
            let max = checks.max_length.map_or(MAX_REQUEST_BYTES - 2, |n| bound(n) * 4);
            return plain(Type::Dyn, max, 1);
        }
        match &*schema.ty {
            "array" => {
                let items = schema.items.as_deref()?;
                let items = Self::within(items, items.embedded, &format!("{name}.@idx"))?;
                let max = checks.max_items.map_or((MAX_REQUEST_BYTES - 2) / (items.min_size + 1), bound);
                let elements = match &*schema.list_type {
                    "set" => ListType::Set,
                    "map" => ListType::Map(schema.list_map_keys.clone()),
                    _ => ListType::Atomic,
                };
                made(Kind::List { items, elements }, max, 2)
            }
            "object" => {
                if let Some(values) = schema.additional.as_deref().filter(|_| !is_resource) {
                    let values = Self::within(values, values.embedded, &format!("{name}.@elem"))?;
                    let max = checks.max_properties.map_or((MAX_REQUEST_BYTES - 2) / (values.min_size + 6), bound);
                    return made(Kind::Map(values), max, 2);
                }
                Some(Self::of_object(schema, is_resource, name))
            }
            "string" => {
                let request = MAX_REQUEST_BYTES - 2;
                match &*checks.format {
                    "byte" => plain(Type::Bytes, checks.max_length.map_or(request, bound), 2),
                    "duration" => plain(Type::Duration, 32, 3),
                    "date" => plain(Type::Timestamp, 12, 12),
                    "date-time" => plain(Type::Timestamp, 32, 21),
                    _ => {
                        let longest = checks.allowed.iter().filter_map(|v| v.as_str()).map(|s| s.len() as u64).max();
                        let max = checks.max_length.map(|n| bound(n) * 4).or(longest).unwrap_or(request);
                        plain(Type::String, max, 2)
                    }
                }
            }
            "boolean" => plain(Type::Bool, 0, 4),
            "number" => plain(Type::Double, 0, 1),
            "integer" => plain(Type::Int, 0, 1),
            _ => None,
        }
    }

    fn of_object(schema: &Structural, is_resource: bool, name: &str) -> Arc<Self> {
        let mut fields = BTreeMap::new();
        let mut min_size = 2;
        for (json, property) in &schema.properties {
            if is_resource && matches!(&**json, "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let Some(ty) = Self::within(property, property.embedded, &format!("{name}.{json}")) else { continue };
            if schema.checks.required.contains(json) && property.default.is_none() {
                min_size += json.len() as u64 + ty.min_size + 4;
            }
            if let Some(escaped) = escape(json) {
                fields.insert(escaped.into(), (json.clone(), ty));
            }
        }
        if is_resource {
            let text =
                || Arc::new(Self { kind: Kind::Plain(Type::String), max_elements: MAX_REQUEST_BYTES - 2, min_size: 2 });
            let named = ["name", "generateName"].map(|field| (field.into(), (field.into(), text())));
            let kind = Kind::Object { name: format!("{name}.metadata").into(), fields: named.into() };
            let metadata = Arc::new(Self { kind, max_elements: 0, min_size: 2 });
            for (field, ty) in [("apiVersion", text()), ("kind", text()), ("metadata", metadata)] {
                fields.insert(field.into(), (field.into(), ty));
            }
        }
        Arc::new(Self { kind: Kind::Object { name: name.into(), fields }, max_elements: 0, min_size })
    }

    /// The type that the checker knows it by.
    pub fn ty(self: &Arc<Self>) -> Type {
        match &self.kind {
            Kind::Plain(ty) => ty.clone(),
            Kind::List { items, .. } => Type::list(items.ty()),
            Kind::Map(values) => Type::map(Type::String, values.ty()),
            Kind::Object { .. } => Type::Object(self.clone()),
        }
    }

    /// How often a value of this type fits into one request, if it is repeated without bound.
    pub fn max_cardinality(&self) -> u64 {
        MAX_REQUEST_BYTES / (self.min_size + 1)
    }

    pub(crate) fn name(&self) -> &str {
        match &self.kind {
            Kind::Object { name, .. } => name,
            _ => "",
        }
    }

    pub(crate) fn field(&self, name: &str) -> Option<&Arc<DeclType>> {
        match &self.kind {
            Kind::Object { fields, .. } => fields.get(name).map(|(_, ty)| ty),
            _ => None,
        }
    }

    /// Objects with one name are one type: where they come from names them.
    pub(crate) fn is_same_object(&self, other: &DeclType) -> bool {
        matches!((&self.kind, &other.kind), (Kind::Object { name: a, .. }, Kind::Object { name: b, .. }) if a == b)
    }
}

/// The name of a property as an identifier of CEL, if it can be made one (upstream: `cel.Escape`).
pub fn escape(name: &str) -> Option<String> {
    #[rustfmt::skip]
    const RESERVED: [&str; 21] = [
        "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import",
        "let", "loop", "package", "namespace", "return", "var", "void", "while",
    ];
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut made = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        match c {
            '_' if rest.starts_with("__") => {
                made.push_str("__underscores__");
                taken = 2;
            }
            '.' => made.push_str("__dot__"),
            '-' => made.push_str("__dash__"),
            '/' => made.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => made.push(c),
            _ => return None,
        }
        rest = &rest[taken..];
    }
    Some(made)
}
