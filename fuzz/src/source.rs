//! Trees made of bytes: most are shaped by a schema, as mutated text hardly ever is, and a few places hold what does not fit.

use coxswain_api::schema::{AnyKind, Field, List, ListKind, Scalar, Struct, StructRef, Type, builtin};
use coxswain_api::{Map, Value};
use std::sync::LazyLock;

/// How large a tree may get: laws are about shapes, and small trees are tried faster.
const VALUES_MAX: usize = 300;
const DEPTH_MAX: usize = 12;

/// Every kind that has a protobuf form, sorted by group, version and kind.
pub(crate) static KINDS: LazyLock<Vec<(String, String, &'static StructRef)>> = LazyLock::new(|| {
    let mut kinds: Vec<_> = builtin()
        .kinds()
        .map(|(group, version, kind, schema)| {
            let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
            (api_version, kind.to_owned(), schema)
        })
        .collect();
    kinds.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    kinds
});

/// Texts that mean something somewhere.
const WORDS: [&str; 40] = [
    "a",
    "b",
    "c",
    "name",
    "default",
    "kube-system",
    "1",
    "0",
    "-1",
    "80",
    "http",
    "TCP",
    "UDP",
    "Always",
    "10%",
    "100m",
    "1Gi",
    "0.5",
    "10.0.0.1",
    "::1",
    "10.0.0.0/24",
    "2001-02-03T04:05:06Z",
    "2001-02-03T04:05:06.000007Z",
    "1m0s",
    "a=b",
    "/",
    "../x",
    "*",
    "example.com/a",
    "*/5 * * * *",
    "RollingUpdate",
    "IfNotPresent",
    "ClusterIP",
    "None",
    "",
    " ",
    "é\u{2028}<&>",
    "Deployment",
    "merge",
    "YQ==",
];

/// Bytes that decide, used up from the front; when there are none left every decision is the plainest one.
pub(crate) struct Source<'a> {
    bytes: &'a [u8],
    values: usize,
}

impl<'a> Source<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, values: 0 }
    }

    pub(crate) fn byte(&mut self) -> u8 {
        match self.bytes.split_first() {
            Some((first, rest)) => {
                self.bytes = rest;
                *first
            }
            None => 0,
        }
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let wide = if bound > 256 { usize::from(self.byte()) << 8 } else { 0 };
        (wide | usize::from(self.byte())) % bound.max(1)
    }

    pub(crate) fn rarely(&mut self) -> bool {
        self.byte() > 245
    }

    pub(crate) fn kind(&mut self) -> &'static (String, String, &'static StructRef) {
        let at = self.below(KINDS.len());
        &KINDS[at]
    }

    /// An object of this kind with a name.
    pub(crate) fn object(&mut self, api_version: &str, kind: &str, schema: &Struct) -> Value {
        let mut object = self.of_struct(schema, 0);
        object["apiVersion"] = api_version.into();
        object["kind"] = kind.into();
        object
    }

    pub(crate) fn of_struct(&mut self, schema: &Struct, depth: usize) -> Value {
        let mut map = Map::new();
        if schema.fields.is_empty() || depth > DEPTH_MAX {
            return Value::Object(map);
        }
        // The kind of a part is nothing that protobuf keeps.
        let has_protobuf = schema.fields.iter().any(|f| f.proto.is_some());
        for _ in 0..self.below(6) {
            let at = self.below(schema.fields.len());
            let field = &schema.fields[at];
            if has_protobuf && field.proto.is_none() {
                continue;
            }
            map.insert(field.name.to_string(), self.of_field(field, depth + 1));
        }
        // What the union and key fields of lists need is there more often than by chance.
        if let Some(name) = schema.field("name").filter(|f| matches!(f.ty, Type::Scalar(Scalar::String))) {
            let text = self.word();
            map.entry(name.name.to_string()).or_insert(text);
        }
        if self.rarely() {
            let name = self.word();
            map.insert(name.as_str().unwrap_or_default().to_owned(), self.any(depth + 1));
        }
        Value::Object(map)
    }

    fn of_field(&mut self, field: &Field, depth: usize) -> Value {
        match self.byte() {
            250..=252 => Value::Null,
            253.. => self.any(depth),
            _ => self.of_type(&field.ty, depth),
        }
    }

    fn of_type(&mut self, ty: &Type, depth: usize) -> Value {
        self.values += 1;
        if self.values > VALUES_MAX {
            return Value::Null;
        }
        match ty {
            Type::Scalar(scalar) => self.scalar(*scalar),
            Type::Struct(schema) => self.of_struct(schema, depth),
            Type::List(list) => self.list(list, depth),
            Type::Map(map) => {
                let entries = (0..self.below(4)).map(|_| {
                    let key = self.word().as_str().unwrap_or_default().to_owned();
                    (key, self.of_type(&map.value, depth + 1))
                });
                Value::Object(entries.collect())
            }
            Type::Any(AnyKind::FieldsV1) => serde_json::json!({"f:spec": {"f:a": {}}}),
            Type::Any(AnyKind::SchemaOrArray | AnyKind::SchemaOrBool | AnyKind::SchemaOrStrings) => {
                serde_json::json!({"type": "string"})
            }
            Type::Any(_) => self.any(depth),
        }
    }

    fn list(&mut self, list: &List, depth: usize) -> Value {
        let mut items: Vec<Value> = (0..self.below(4)).map(|_| self.of_type(&list.element, depth + 1)).collect();
        // Lists by keys are tried with keys that are there and differ, most of the time.
        if let ListKind::Map(keys) = &list.kind
            && self.byte() < 220
            && let Type::Struct(schema) = &list.element
        {
            for (i, item) in items.iter_mut().enumerate() {
                for key in keys {
                    let number = schema.field(key).is_some_and(|f| !matches!(f.ty, Type::Scalar(Scalar::String)));
                    item[&**key] = if number { (80 + i).into() } else { WORDS[i].into() };
                }
            }
        }
        Value::Array(items)
    }

    pub(crate) fn word(&mut self) -> Value {
        let at = self.below(WORDS.len());
        WORDS[at].into()
    }

    fn scalar(&mut self, scalar: Scalar) -> Value {
        let number = |s: &mut Self| match s.byte() {
            250 => i64::from(i32::MAX),
            251 => i64::from(i32::MIN),
            n => i64::from(n) - 3,
        };
        match scalar {
            Scalar::String => self.word(),
            Scalar::Bool => (self.byte() & 1 == 1).into(),
            Scalar::Int32 | Scalar::Int64 => number(self).into(),
            Scalar::Uint32 | Scalar::Uint64 => number(self).unsigned_abs().into(),
            Scalar::Float64 => (number(self) as f64 / 4.0).into(),
            Scalar::Bytes => ["", "YQ==", "AQID"][self.below(3)].into(),
            Scalar::IntOrString if self.byte() & 1 == 1 => number(self).into(),
            Scalar::IntOrString => ["10%", "http", "", "5"][self.below(4)].into(),
            Scalar::Quantity => ["1", "100m", "1Gi", "0", "1e3", "-5k", "0.001n"][self.below(7)].into(),
            Scalar::Time => ["2001-02-03T04:05:06Z", "2031-02-03T04:05:06+01:00"][self.below(2)].into(),
            Scalar::MicroTime => "2001-02-03T04:05:06.000007Z".into(),
            Scalar::Duration => ["1m0s", "0s", "-1.5h"][self.below(3)].into(),
        }
    }

    /// Anything, without a shape.
    pub(crate) fn any(&mut self, depth: usize) -> Value {
        self.values += 1;
        let choices = if depth > DEPTH_MAX || self.values > VALUES_MAX { 5 } else { 7 };
        match self.below(choices) {
            0 => Value::Null,
            1 => (self.byte() & 1 == 1).into(),
            2 => (i64::from(self.byte()) - 100).into(),
            3 => self.word(),
            4 => (f64::from(self.byte()) / 8.0 + 0.0625).into(),
            5 => (0..self.below(4)).map(|_| self.any(depth + 1)).collect(),
            _ => {
                let entries = (0..self.below(4)).map(|_| {
                    let key = self.word().as_str().unwrap_or_default().to_owned();
                    (key, self.any(depth + 1))
                });
                Value::Object(entries.collect())
            }
        }
    }
}
