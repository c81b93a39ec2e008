//! Structural schemas: what a CustomResourceDefinition says of its objects (upstream:
//! `apiextensions-apiserver/pkg/apiserver/schema`).
//!
//! A [`Structural`] is read once from a version's `openAPIV3Schema`. It prunes, validates and checks objects; its
//! [`Structural::to_struct`] is the same schema as [`crate::schema::Struct`], which defaults, patches, field sets and apply
//! read. `check` says what is wrong with a schema itself.
//!
//! The way of a custom object: decode as it is ([`crate::codec::json::decode_any`]) → [`Structural::prune`] (strict errors) →
//! [`crate::defaults::apply`] with the struct → [`Structural::drop_nulls`] → validation ([`Structural::validate`],
//! [`Structural::validate_lists`], [`Structural::validate_embedded`]).

mod check;
mod formats;
mod lists;
mod prune;
mod validate;

use crate::go_regex;
use crate::schema::{self, AnyKind, Field, List, ListKind, MapOf, Omit, Scalar, Struct, StructRef, Type};
use regex::Regex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, OnceLock};

pub use check::{Asks, Findings, Step, check, field_path, path_text};
pub use formats::supported as supported_format;
pub use formats::unrecognized as unrecognized_formats;
pub use lists::CheckMetadata;

/// How deep a schema may nest; deeper parts are as if they were not there.
const DEPTH_MAX: usize = 128;

/// One node of a schema, or of a value validation within one (`anyOf` and its like).
#[derive(Debug, Default)]
pub struct Structural {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean`, or nothing.
    pub ty: Box<str>,
    pub nullable: bool,
    pub preserve_unknown: bool,
    pub embedded: bool,
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`, empty if it is not said.
    pub list_type: Box<str>,
    pub list_map_keys: Vec<Box<str>>,
    pub map_type: Box<str>,
    pub default: Option<Value>,
    pub properties: BTreeMap<Box<str>, Structural>,
    pub additional: Option<Box<Structural>>,
    /// `additionalProperties: false`.
    pub no_others: bool,
    pub items: Option<Box<Structural>>,
    /// `x-kubernetes-validations` as the definition has them: CEL is not this crate's.
    pub rules: Vec<Value>,
    /// Shared by all nodes that say nothing beyond their type, as most do.
    pub checks: SharedChecks,
}

/// [`Checks`] in a form that costs nothing where there are none.
#[derive(Clone, Debug)]
pub struct SharedChecks(Arc<Checks>);

static NO_CHECKS: LazyLock<SharedChecks> = LazyLock::new(|| SharedChecks(Arc::default()));

impl SharedChecks {
    fn new(checks: Checks) -> Self {
        if checks.say_nothing() { Self::default() } else { Self(Arc::new(checks)) }
    }
}

impl Default for SharedChecks {
    fn default() -> Self {
        NO_CHECKS.clone()
    }
}

impl std::ops::Deref for SharedChecks {
    type Target = Checks;
    fn deref(&self) -> &Checks {
        &self.0
    }
}

impl Checks {
    fn say_nothing(&self) -> bool {
        let numbers = [self.minimum, self.maximum, self.multiple_of];
        let counts = [
            self.min_length,
            self.max_length,
            self.min_items,
            self.max_items,
            self.min_properties,
            self.max_properties,
        ];
        self.format.is_empty()
            && self.pattern.is_none()
            && !self.exclusive_minimum
            && !self.exclusive_maximum
            && numbers.iter().all(Option::is_none)
            && counts.iter().all(Option::is_none)
            && self.allowed.is_empty()
            && self.required.is_empty()
            && [&self.all_of, &self.any_of, &self.one_of].iter().all(|list| list.is_empty())
            && self.not.is_none()
    }
}

/// A regular expression, compiled when the first value is held against it: many definitions are never written to, and a
/// compiled expression takes far more room than its source.
#[derive(Debug)]
pub struct Pattern {
    pub source: Box<str>,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    /// Whether a text fits. One that is no expression was refused with its definition; it lets anything pass.
    pub fn fits(&self, text: &str) -> bool {
        self.compiled
            .get_or_init(|| go_regex::compile(&self.source).ok())
            .as_ref()
            .is_none_or(|regex| regex.is_match(text))
    }
}

/// What a value must be beyond its type.
#[derive(Debug, Default)]
pub struct Checks {
    pub format: Box<str>,
    pub pattern: Option<Pattern>,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<i64>,
    pub max_length: Option<i64>,
    pub min_items: Option<i64>,
    pub max_items: Option<i64>,
    pub min_properties: Option<i64>,
    pub max_properties: Option<i64>,
    pub allowed: Vec<Value>,
    pub required: Vec<Box<str>>,
    pub all_of: Vec<Structural>,
    pub any_of: Vec<Structural>,
    pub one_of: Vec<Structural>,
    pub not: Option<Box<Structural>>,
}

impl Structural {
    /// Reads `openAPIV3Schema`. What [`check`] would refuse is left out.
    pub fn parse(schema: &Value) -> Self {
        Self::parse_at(schema, 0)
    }

    fn parse_at(schema: &Value, depth: usize) -> Self {
        if depth > DEPTH_MAX {
            return Self { preserve_unknown: true, ..Self::default() };
        }
        let text = |name: &str| -> Box<str> { schema[name].as_str().unwrap_or_default().into() };
        let flag = |name: &str| schema[name].as_bool().unwrap_or_default();
        let number = |name: &str| schema[name].as_f64();
        let count = |name: &str| schema[name].as_i64();
        let texts = |name: &str| -> Vec<Box<str>> {
            schema[name].as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
        };
        let list = |name: &str| -> Vec<Structural> {
            schema[name].as_array().into_iter().flatten().map(|s| Self::parse_at(s, depth + 1)).collect()
        };
        let one = |name: &str| match &schema[name] {
            found @ Value::Object(_) => Some(Box::new(Self::parse_at(found, depth + 1))),
            _ => None,
        };
        let pattern = schema["pattern"].as_str().filter(|p| !p.is_empty());
        let pattern = pattern.map(|p| Pattern { source: p.into(), compiled: OnceLock::new() });
        let properties = schema["properties"].as_object().into_iter().flatten();
        let (ty, int_or_string) = (text("type"), flag("x-kubernetes-int-or-string"));
        Self {
            ty: ty.clone(),
            nullable: flag("nullable"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string,
            list_type: text("x-kubernetes-list-type"),
            list_map_keys: texts("x-kubernetes-list-map-keys"),
            map_type: text("x-kubernetes-map-type"),
            default: schema.get("default").filter(|d| !d.is_null()).cloned(),
            properties: properties.map(|(k, s)| (k.as_str().into(), Self::parse_at(s, depth + 1))).collect(),
            additional: match &schema["additionalProperties"] {
                // `true` lets any value in, but pruning empties what has no schema. `false` lets validation refuse it.
                Value::Bool(_) => Some(Box::default()),
                _ => one("additionalProperties"),
            },
            no_others: schema["additionalProperties"] == false,
            items: one("items"),
            rules: schema["x-kubernetes-validations"].as_array().cloned().unwrap_or_default(),
            checks: SharedChecks::new(Checks {
                format: formats::supported(if int_or_string { "" } else { &ty }, &text("format")).into(),
                pattern,
                minimum: number("minimum"),
                exclusive_minimum: flag("exclusiveMinimum"),
                maximum: number("maximum"),
                exclusive_maximum: flag("exclusiveMaximum"),
                multiple_of: number("multipleOf"),
                min_length: count("minLength"),
                max_length: count("maxLength"),
                min_items: count("minItems"),
                max_items: count("maxItems"),
                min_properties: count("minProperties"),
                max_properties: count("maxProperties"),
                allowed: schema["enum"].as_array().cloned().unwrap_or_default(),
                required: texts("required"),
                all_of: list("allOf"),
                any_of: list("anyOf"),
                one_of: list("oneOf"),
                not: one("not"),
            }),
        }
    }

    /// Whether it stands for no schema at all, as `additionalProperties: true` does.
    fn is_empty(&self) -> bool {
        self.ty.is_empty() && !self.int_or_string && !self.preserve_unknown && self.properties.is_empty()
    }

    /// The root as a struct: with `apiVersion`, `kind` and the metadata of every object.
    pub fn to_struct(&self) -> StructRef {
        StructRef::new(self.to_root())
    }

    /// As [`Structural::to_struct`], for whoever keeps it.
    pub fn to_root(&self) -> Struct {
        self.build(true)
    }

    fn build(&self, is_object_root: bool) -> Struct {
        let mut fields = Vec::with_capacity(self.properties.len() + 3);
        if is_object_root {
            let text = || Type::Scalar(Scalar::String);
            let meta = schema::builtin().short("meta.v1.ObjectMeta").expect("the table has ObjectMeta");
            fields.push(plain("apiVersion", text()));
            fields.push(plain("kind", text()));
            fields.push(plain("metadata", Type::Struct(meta.clone())));
        }
        for (name, property) in &self.properties {
            if is_object_root && matches!(&**name, "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let mut field = plain(name, property.to_type());
            field.nullable = property.nullable;
            field.required = self.checks.required.contains(name);
            field.default.clone_from(&property.default);
            field.atomic = &*property.map_type == "atomic";
            fields.push(field);
        }
        let mut made = Struct::new("", fields);
        made.preserve_unknown = self.preserve_unknown;
        made.atomic = &*self.map_type == "atomic";
        made
    }

    fn to_type(&self) -> Type {
        if self.int_or_string {
            return Type::Scalar(Scalar::IntOrString);
        }
        match &*self.ty {
            "string" => Type::Scalar(Scalar::String),
            "boolean" => Type::Scalar(Scalar::Bool),
            "integer" => Type::Scalar(Scalar::Int64),
            "number" => Type::Scalar(Scalar::Float64),
            "array" => {
                let element = self.items.as_ref().map_or(Type::Any(AnyKind::Unknown), |items| items.to_type());
                let kind = match &*self.list_type {
                    "set" => ListKind::Set,
                    "map" => ListKind::Map(self.list_map_keys.clone()),
                    _ => ListKind::Atomic,
                };
                Type::List(Arc::new(List { element, kind }))
            }
            "object" => match &self.additional {
                Some(value) if self.properties.is_empty() => {
                    let atomic = &*self.map_type == "atomic";
                    Type::Map(Arc::new(MapOf { value: value.to_type(), atomic }))
                }
                _ if self.properties.is_empty() && !self.embedded && self.preserve_unknown => {
                    Type::Any(AnyKind::Unknown)
                }
                _ => Type::Struct(StructRef::new(self.build(self.embedded))),
            },
            _ => Type::Any(AnyKind::Unknown),
        }
    }
}

/// A field that is there exactly if it was given.
fn plain(name: &str, ty: Type) -> Field {
    Field { pointer: true, omit: Omit::Empty, ..Field::new(name, ty) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults;
    use crate::field::ErrorList;
    use serde_json::json;

    fn schema() -> Structural {
        Structural::parse(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["a"], "properties": {
                "a": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^[a-z]+$"},
                "n": {"type": "integer", "minimum": 1, "maximum": 10, "default": 3},
                "i32": {"type": "integer", "format": "int32"},
                "ios": {"x-kubernetes-int-or-string": true},
                "one": {"type": "string", "oneOf": [{"pattern": "^a"}, {"pattern": "b$"}]},
                "when": {"type": "string", "format": "date-time"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                    "strict": {"type": "object", "properties": {"z": {"type": "integer"}}}}},
                "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                    "items": {"type": "object", "properties": {"k": {"type": "string"}, "d": {"type": "boolean", "default": true}}}},
                "emb": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}
            }}}}),
        )
    }

    fn causes(object: Value) -> Vec<String> {
        let mut errors = schema().validate(&object);
        errors.extend(schema().validate_lists(&object));
        errors.extend(schema().validate_embedded(&object, &|_, _| ErrorList::new()));
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_refused_in_upstreams_words() {
        assert_eq!(causes(json!({"spec": {"a": "abc", "n": 10, "ios": "x", "one": "ax"}})), Vec::<String>::new());
        let found = causes(json!({"spec": {"n": 11, "i32": 3_000_000_000_i64, "ios": 1.5, "one": "zz", "when": "x"}}));
        assert_eq!(
            found,
            [
                r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.i32"#,
                r#"spec.ios: Invalid value: "number": spec.ios in body must be of type integer,string: "number""#,
                "spec.n: Invalid value: 11: spec.n in body should be less than or equal to 10",
                r#"<nil>: Invalid value: "": "spec.one" must validate one and only one schema (oneOf). Found none valid"#,
                r#"spec.one: Invalid value: "zz": spec.one in body should match '^a'"#,
                r#"spec.when: Invalid value: "x": spec.when in body must be of type date-time: "x""#,
                "spec.a: Required value",
            ]
        );
        let found = causes(json!({"spec": {"a": "abcde", "map": [{"k": "x"}, {"k": "x"}], "emb": {"kind": "Pod"}}}));
        assert_eq!(
            found,
            [
                "spec.a: Too long: may not be more than 4 bytes",
                r#"spec.map[1]: Duplicate value: {"k":"x"}"#,
                "spec.emb.apiVersion: Required value",
            ]
        );
    }

    #[test]
    fn pruning_reports_what_it_drops() {
        let mut object = json!({"apiVersion": "x/v1", "kind": "W", "other": 1, "metadata": {"name": "w", "junk": 1}, "spec": {
            "b": 1, "free": {"x": 1, "strict": {"y": 1, "z": 2}}, "map": [{"k": "a", "q": 1}],
            "emb": {"kind": "Pod", "apiVersion": "v1", "metadata": {"junk": 1}, "spec": {"x": 1}}}});
        let unknown = schema().prune(&mut object).unwrap();
        assert_eq!(
            unknown,
            ["metadata.junk", "other", "spec.b", "spec.free.strict.y", "spec.map[0].q", "spec.emb.metadata.junk"]
        );
        assert_eq!(object["spec"]["free"], json!({"x": 1, "strict": {"z": 2}}));
        assert_eq!(object["spec"]["emb"]["spec"], json!({"x": 1}));
    }

    #[test]
    fn defaults_fill_in_and_nulls_go() {
        let mut object = json!({"spec": {"a": null, "n": null, "map": [{"k": "x"}]}});
        defaults::apply(&mut object, &schema().to_struct());
        schema().drop_nulls(&mut object);
        assert_eq!(object, json!({"spec": {"n": 3, "map": [{"k": "x", "d": true}]}}));
    }
}
