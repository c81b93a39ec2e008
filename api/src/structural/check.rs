//! What is wrong with a schema itself, CEL aside (upstream: `apiextensions/validation`, `schema/validation.go`,
//! `schema/complete.go` and `schema/defaulting/validation.go`).
//!
//! Upstream looks at a schema twice: whether it is structural, and whether each of its parts may say what it says. Both are
//! told of, in this order; defaults are looked at only within what is structural.

mod defaults;
mod merging;
mod rules;
mod standard;
mod structure;

use crate::field::{Error, ErrorList, Path};
use serde_json::Value;

use super::{CheckMetadata, Structural};

pub use rules::{Step, field_path, path_text};

/// What others know of defaults; paths of errors are those within the value.
pub struct Asks<'a> {
    /// Holds the CEL rules of a schema against a default of it.
    pub rules: &'a dyn Fn(&Structural, &Value) -> ErrorList,
    pub metadata: CheckMetadata<'a>,
}

/// What is wrong with a schema.
pub struct Findings {
    /// That it is not structural, or else what is wrong with its defaults.
    pub structure: ErrorList,
    /// What its parts must not say.
    pub parts: ErrorList,
    /// A field that cannot be read at all: told of only if nothing else is wrong.
    pub unsupported: Option<String>,
}

impl Findings {
    /// Whether CEL rules can be told of the schema.
    pub fn is_structural(&self) -> bool {
        self.structure.is_empty() && self.unsupported.is_none()
    }
}

/// Everything that is wrong with an `openAPIV3Schema`, CEL rules aside. `path` leads to it.
pub fn check(schema: &Value, path: &Path, ask: &Asks<'_>) -> Findings {
    let mut found = Findings { structure: ErrorList::new(), parts: ErrorList::new(), unsupported: None };
    if standard::is_too_deep(schema) {
        found.parts.push(Error::forbidden(path, "schemas must not be nested so deeply"));
        return found;
    }
    found.unsupported = standard::unsupported(schema);
    if found.unsupported.is_none() {
        found.structure = structure::check(schema, path);
        if found.structure.is_empty() {
            found.structure = defaults::check(schema, path, ask);
        }
    }
    found.parts = standard::check(schema, path);
    found
}

fn text<'a>(schema: &'a Value, name: &str) -> &'a str {
    schema[name].as_str().unwrap_or_default()
}

fn flag(schema: &Value, name: &str) -> bool {
    schema[name].as_bool().unwrap_or_default()
}

/// Whether a field says something: what is empty or false does not.
fn is_set(schema: &Value, name: &str) -> bool {
    match schema.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(map)) => !map.is_empty() || matches!(name, "default" | "additionalProperties"),
        Some(Value::String(text)) => !text.is_empty() || name == "default",
        Some(Value::Bool(set)) => *set || matches!(name, "default" | "additionalProperties"),
        Some(_) => true,
    }
}

/// Whether a field is there at all.
fn is_there(schema: &Value, name: &str) -> bool {
    schema.get(name).is_some_and(|value| !value.is_null())
}

fn list<'a>(schema: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    schema[name].as_array().into_iter().flatten()
}

fn members<'a>(schema: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    schema[name].as_object().into_iter().flatten()
}

fn object<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    schema.get(name).filter(|found| found.is_object())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(a: Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"a": a}});
        let asks = Asks { rules: &|_, _| ErrorList::new(), metadata: &|_, _| ErrorList::new() };
        let Findings { structure, parts, unsupported } = check(&schema, &Path::new("S"), &asks);
        let all = structure.iter().chain(&parts).map(ToString::to_string);
        all.chain(unsupported.map(|why| format!("S: {why}"))).collect()
    }

    #[test]
    fn schemas_are_refused_in_upstreams_words() {
        for good in [
            json!({"type": "string", "default": "x"}),
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"maximum": 3}]}),
            json!({"type": "object", "properties": {"b": {"type": "string"}}, "anyOf": [{"required": ["b"]}, {"properties": {"b": {"minLength": 1}}}]}),
        ] {
            assert_eq!(found(good.clone()), Vec::<String>::new(), "{good}");
        }
        let one = |a: Value, want: &str| assert_eq!(found(a), [want]);
        one(json!({}), "S.properties[a].type: Required value: must not be empty for specified object fields");
        one(
            json!({"type": "text"}),
            r#"S.properties[a].type: Unsupported value: "text": supported values: "array", "boolean", "integer", "number", "object", "string""#,
        );
        one(json!({"type": "array"}), "S.properties[a].items: Required value: must be specified");
        one(
            json!({"type": "string", "anyOf": [{"type": "string"}]}),
            "S.properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
        );
        one(
            json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object", "properties": {"k": {"type": "string"}}}}),
            "S.properties[a].items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set",
        );
        one(
            json!({"type": "string", "default": 5}),
            r#"S.properties[a].default: Invalid value: "integer":  in body must be of type string: "integer""#,
        );
        one(
            json!({"type": "object", "properties": {"b": {"type": "string"}}, "default": {"zz": 1}}),
            r#"S.properties[a].default: Invalid value: {"zz":1}: must not have unknown fields"#,
        );
        one(
            json!({"type": "string", "pattern": "("}),
            r#"S.properties[a].pattern: Invalid value: "(": must be a valid regular expression, but isn't: error parsing regexp: missing closing ): `(`"#,
        );
        one(json!({"type": "string", "$schema": "x"}), "S: OpenAPIV3Schema 'schema' is not supported");
        // Of alternatives only those at the root are held against the structure.
        assert!(found(json!({"type": "object", "not": {"properties": {"z": {}}}})).is_empty());
        let root = json!({"type": "object", "not": {"properties": {"z": {}}}});
        let asks = Asks { rules: &|_, _| ErrorList::new(), metadata: &|_, _| ErrorList::new() };
        assert_eq!(
            check(&root, &Path::new("S"), &asks).structure[0].to_string(),
            "S.properties[z]: Required value: because it is defined in S.not.properties[z]"
        );
    }

    #[test]
    fn what_is_not_structural_is_told_before_what_parts_must_not_say_and_sorted() {
        assert_eq!(
            found(json!({"type": "string", "oneOf": [{"x-kubernetes-list-type": "", "title": "t"}]})),
            [
                "S.properties[a].oneOf[0].title: Forbidden: must be empty to be structural",
                "S.properties[a].oneOf[0].x-kubernetes-list-type: Forbidden: must be undefined to be structural",
                "S.properties[a].oneOf[0].type: Required value: must be array if x-kubernetes-list-type is specified",
                r#"S.properties[a].oneOf[0].x-kubernetes-list-type: Unsupported value: "": supported values: "atomic", "set", "map""#,
            ]
        );
    }

    #[test]
    fn keys_of_lists_are_there_whenever_they_are_needed() {
        let map = |keys: Value, k: Value| {
            found(json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys,
                "items": {"type": "object", "properties": {"k": k}}}))
        };
        assert!(map(json!(["k"]), json!({"type": "string", "default": "x"})).is_empty());
        let at = "S.properties[a]";
        assert_eq!(
            map(json!(["k", "k"]), json!({"type": "string", "default": "x"})),
            [format!(
                "{at}.x-kubernetes-list-map-keys: Invalid value: [\"k\",\"k\"]: must not contain duplicate entries"
            )]
        );
        assert_eq!(
            map(json!(["k"]), json!({"type": "string", "nullable": true})),
            [
                format!(
                    "{at}.items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
                ),
                format!(
                    "{at}.items.properties[k].nullable: Forbidden: this property is in x-kubernetes-list-map-keys, so it cannot be nullable"
                ),
            ]
        );
    }
}
