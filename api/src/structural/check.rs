//! What is wrong with a schema itself (upstream: `apiextensions/validation` and `schema/validation.go`).

use super::{DEPTH_MAX, Structural};
use crate::field::{Error, ErrorList, Path};
use regex::Regex;
use serde_json::Value;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

/// Everything that is wrong with an `openAPIV3Schema`, CEL rules aside. `path` leads to it.
pub fn check(schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    standard(schema, path, 0, &mut errors);
    // Upstream looks at the structure only of what is a schema at all.
    if errors.is_empty() {
        structure(schema, Level::Root, path, &mut errors);
    }
    if errors.is_empty() {
        defaults(schema, path, true, 0, &mut errors);
    }
    errors
}

fn text<'a>(schema: &'a Value, name: &str) -> &'a str {
    schema[name].as_str().unwrap_or_default()
}

fn flag(schema: &Value, name: &str) -> bool {
    schema[name].as_bool().unwrap_or_default()
}

fn is_set(schema: &Value, name: &str) -> bool {
    match schema.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(map)) => !map.is_empty() || name == "default",
        Some(Value::String(text)) => !text.is_empty() || name == "$ref" || name == "default",
        Some(_) => true,
    }
}

/// Calls `visit` with every schema within a schema.
fn each(schema: &Value, path: &Path, mut visit: impl FnMut(&Value, Path, Level)) {
    if let found @ Value::Object(_) = &schema["additionalProperties"] {
        visit(found, path.child("additionalProperties"), Level::Field);
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        visit(property, path.child("properties").key(name), Level::Field);
    }
    match &schema["items"] {
        found @ Value::Object(_) => visit(found, path.child("items"), Level::Item),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, s)| visit(s, path.child("items").index(i), Level::Item));
        }
        _ => {}
    }
}

/// The alternatives within a schema, which may say of values only.
fn each_alternative(schema: &Value, path: &Path, mut visit: impl FnMut(&Value, Path)) {
    for name in ["allOf", "anyOf", "oneOf"] {
        for (i, found) in schema[name].as_array().into_iter().flatten().enumerate() {
            visit(found, path.child(name).index(i));
        }
    }
    if let found @ Value::Object(_) = &schema["not"] {
        visit(found, path.child("not"));
    }
}

/// The rules that hold for any schema.
fn standard(schema: &Value, path: &Path, depth: usize, errors: &mut ErrorList) {
    if depth > DEPTH_MAX {
        errors.push(Error::forbidden(path, "schemas must not be nested so deeply"));
        return;
    }
    if flag(schema, "uniqueItems") {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(Error::forbidden(&path.child("uniqueItems"), why));
    }
    let additional = &schema["additionalProperties"];
    if is_set(schema, "properties") && (additional == &Value::Bool(false) || additional.is_object()) {
        let why = "additionalProperties and properties are mutual exclusive";
        errors.push(Error::forbidden(&path.child("additionalProperties"), why));
    }
    each(schema, path, |found, path, _| standard(found, &path, depth + 1, errors));
    each_alternative(schema, path, |found, path| standard(found, &path, depth + 1, errors));
    if schema["x-kubernetes-preserve-unknown-fields"] == Value::Bool(false) {
        let at = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(Error::invalid(&at, false, "must be true or undefined"));
    }
    merging(schema, path, errors);
    for name in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        if is_set(schema, name) {
            errors.push(Error::forbidden(&path.child(name), format!("{name} is not supported")));
        }
    }
    if text(schema, "type") == "null" {
        let why = "type cannot be set to null, use nullable as an alternative";
        errors.push(Error::forbidden(&path.child("type"), why));
    }
    if schema["items"].as_array().is_some_and(|list| !list.is_empty()) {
        errors.push(Error::forbidden(&path.child("items"), "items must be a schema object and not an array"));
    }
    let pattern = text(schema, "pattern");
    if let Err(error) = Regex::new(pattern) {
        let why = format!("must be a valid regular expression, but isn't: {}", go_regex_error(&error, pattern));
        errors.push(Error::invalid(&path.child("pattern"), pattern, why));
    }
}

/// The most common complaints of Go's parser; others in the words of ours.
fn go_regex_error(error: &regex::Error, pattern: &str) -> String {
    let said = error.to_string();
    let what = if said.contains("unclosed group") {
        "missing closing )"
    } else if said.contains("unopened group") {
        "unexpected )"
    } else if said.contains("unclosed character class") {
        "missing closing ]"
    } else if said.contains("repetition operator missing expression") {
        "missing argument to repetition operator"
    } else {
        return format!(
            "error parsing regexp: {}",
            said.lines().last().unwrap_or_default().trim_start_matches("error: ")
        );
    };
    format!("error parsing regexp: {what}: `{pattern}`")
}

/// `x-kubernetes-map-type`, `x-kubernetes-list-type` and the keys.
fn merging(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let ty = text(schema, "type");
    let must_be = |wanted: &str, name: &str, errors: &mut ErrorList| {
        let why = format!("must be {wanted} if {name} is specified");
        let at = path.child("type");
        errors.push(if ty.is_empty() { Error::required(&at, why) } else { Error::invalid(&at, ty, why) });
    };
    if let Some(map_type) = schema["x-kubernetes-map-type"].as_str() {
        if ty != "object" {
            must_be("object", "x-kubernetes-map-type", errors);
        }
        if !matches!(map_type, "atomic" | "granular") {
            let at = path.child("x-kubernetes-map-type");
            errors.push(Error::not_supported(&at, map_type, &["atomic", "granular"]));
        }
    }
    let keys: Vec<&str> =
        schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let list_type = schema["x-kubernetes-list-type"].as_str();
    let list_type_at = path.child("x-kubernetes-list-type");
    if let Some(list_type) = list_type {
        if ty != "array" {
            must_be("array", "x-kubernetes-list-type", errors);
        } else if !matches!(list_type, "atomic" | "set" | "map") {
            errors.push(Error::not_supported(&list_type_at, list_type, &["atomic", "set", "map"]));
        }
    }
    let why = "must be map if x-kubernetes-list-map-keys is non-empty";
    match list_type {
        None if !keys.is_empty() => errors.push(Error::required(&list_type_at, why)),
        Some(other) if !keys.is_empty() && other != "map" => errors.push(Error::invalid(&list_type_at, other, why)),
        _ => {}
    }
    let items = &schema["items"];
    let items_at = path.child("items");
    if list_type == Some("map") {
        map_list(schema, items, &keys, path, errors);
    }
    if list_type == Some("set") && items.is_object() {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let (name, fits) = match text(items, "type") {
            "object" => ("x-kubernetes-map-type", items["x-kubernetes-map-type"] == "atomic"),
            "array" => ("x-kubernetes-list-type", matches!(text(items, "x-kubernetes-list-type"), "" | "atomic")),
            _ => return,
        };
        if !fits {
            errors.push(Error::invalid(&items_at.child(name), &items[name], why));
        }
    }
}

fn map_list(schema: &Value, items: &Value, keys: &[&str], path: &Path, errors: &mut ErrorList) {
    let items_at = path.child("items");
    let keys_at = path.child("x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.push(Error::required(&keys_at, "must not be empty if x-kubernetes-list-type is map"));
    }
    if !items.is_object() {
        errors.push(Error::required(&items_at, "must have a schema if x-kubernetes-list-type is map"));
        return;
    }
    if items["type"] != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(Error::invalid(&items_at.child("type"), text(items, "type"), why));
        return;
    }
    if keys.iter().any(|key| items["properties"].get(*key).is_none()) {
        let all = &schema["x-kubernetes-list-map-keys"];
        errors.push(Error::invalid(&keys_at, all, "entries must all be names of item properties"));
    }
    for (i, key) in keys.iter().enumerate() {
        if keys[..i].contains(key) {
            errors.push(Error::duplicate(&keys_at.index(i), *key));
        }
        let Some(property) = items["properties"].get(*key) else { continue };
        let property_at = items_at.child("properties").key(key);
        if matches!(text(property, "type"), "object" | "array") {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.push(Error::invalid(&property_at.child("type"), text(property, "type"), why));
        }
        if flag(property, "nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(Error::forbidden(&property_at.child("nullable"), why));
        }
        let required = items["required"].as_array().is_some_and(|names| names.iter().any(|n| n == *key));
        if !required && !is_set(property, "default") {
            let why =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(Error::required(&property_at.child("default"), why));
        }
    }
}

/// The rules that make a schema structural. Its depth is bounded already.
fn structure(schema: &Value, level: Level, path: &Path, errors: &mut ErrorList) {
    let ty = text(schema, "type");
    let type_at = path.child("type");
    let (int_or_string, preserve, embedded) = (
        flag(schema, "x-kubernetes-int-or-string"),
        flag(schema, "x-kubernetes-preserve-unknown-fields"),
        flag(schema, "x-kubernetes-embedded-resource"),
    );
    each(schema, path, |found, path, level| structure(found, level, &path, errors));
    if level == Level::Root && is_set(schema, "additionalProperties") {
        errors.push(Error::forbidden(&path.child("additionalProperties"), "must not be used at the root"));
    }
    if int_or_string {
        for (name, on) in
            [("x-kubernetes-preserve-unknown-fields", preserve), ("x-kubernetes-embedded-resource", embedded)]
        {
            if on {
                let why = "must be false if x-kubernetes-int-or-string is true";
                errors.push(Error::invalid(&path.child(name), true, why));
            }
        }
    }
    if embedded && !preserve && !is_set(schema, "properties") {
        let why =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(Error::required(&path.child("properties"), why));
    }
    let exempt = usize::from(int_or_string);
    each_alternative(schema, path, |found, path| values_only(found, &path, exempt, errors));
    if embedded && ty != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if ty.is_empty() { Error::required(&type_at, why) } else { Error::invalid(&type_at, ty, why) });
    }
    match (ty, level) {
        ("", _) if int_or_string || preserve && level != Level::Root => {}
        ("", Level::Root) => errors.push(Error::required(&type_at, "must not be empty at the root")),
        ("", Level::Field) => errors.push(Error::required(&type_at, "must not be empty for specified object fields")),
        ("", Level::Item) => errors.push(Error::required(&type_at, "must not be empty for specified array items")),
        ("array" | "boolean" | "integer" | "number" | "object" | "string", _) => {}
        _ => {
            let known = ["array", "boolean", "integer", "number", "object", "string"];
            errors.push(Error::not_supported(&type_at, ty, &known));
        }
    }
    if level == Level::Root && !matches!(ty, "" | "object") {
        errors.push(Error::invalid(&type_at, ty, "must be object at the root"));
    }
    if ty == "array" && !schema["items"].is_object() {
        errors.push(Error::required(&path.child("items"), "must be specified"));
    }
    if level == Level::Root || embedded {
        object_fields(schema, path, errors);
    }
}

/// The fields that every object has may be said little of.
fn object_fields(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let properties = path.child("properties");
    for name in ["apiVersion", "kind"] {
        if let Some(found) = schema["properties"].get(name)
            && found["type"] != "string"
        {
            let at = properties.key(name).child("type");
            errors.push(Error::invalid(&at, text(found, "type"), "must be string"));
        }
    }
    let Some(metadata) = schema["properties"].get("metadata") else { return };
    let at = properties.key("metadata");
    if metadata["type"] != "object" {
        errors.push(Error::invalid(&at.child("type"), text(metadata, "type"), "must be object"));
    }
    let known = ["type", "description", "properties", "title"];
    let says_more = metadata.as_object().into_iter().flatten().any(|(key, _)| !known.contains(&key.as_str()))
        || metadata["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .any(|(name, _)| !matches!(name.as_str(), "name" | "generateName"));
    if says_more {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(Error::forbidden(&at, why));
    }
}

/// Alternatives must not say anything of the structure. An int-or-string may name its two types.
fn values_only(schema: &Value, path: &Path, exempt: usize, errors: &mut ErrorList) {
    let why = "must be empty to be structural";
    let two_types = exempt > 0 && matches!(text(schema, "type"), "integer" | "string");
    for name in ["type", "default", "title", "description"] {
        if is_set(schema, name) && !(name == "type" && two_types) {
            errors.push(Error::forbidden(&path.child(name), why));
        }
    }
    if flag(schema, "nullable") {
        errors.push(Error::forbidden(&path.child("nullable"), "must be false to be structural"));
    }
    if is_set(schema, "additionalProperties") {
        errors.push(Error::forbidden(&path.child("additionalProperties"), "must be undefined to be structural"));
    }
    for name in [
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-map-type",
    ] {
        if is_set(schema, name) && schema[name] != Value::Bool(false) {
            let word = if name.ends_with("keys") { "empty" } else { "undefined" };
            let word = if schema[name].is_boolean() { "false" } else { word };
            errors.push(Error::forbidden(&path.child(name), format!("must be {word} to be structural")));
        }
    }
    each(schema, path, |found, path, _| values_only(found, &path, 0, errors));
    each_alternative(schema, path, |found, path| values_only(found, &path, exempt, errors));
}

/// Defaults fit the schema that they are in.
fn defaults(schema: &Value, path: &Path, root: bool, depth: usize, errors: &mut ErrorList) {
    if root {
        for name in ["apiVersion", "kind", "metadata"] {
            if is_set(&schema["properties"][name], "default") {
                let at = path.child("properties").key(name).child("default");
                errors.push(Error::forbidden(&at, format!("must not be set in top-level {name}")));
            }
        }
    }
    if let Some(default) = schema.get("default").filter(|d| !d.is_null()) {
        let at = path.child("default");
        if root {
            errors.push(Error::forbidden(&at, "must not be set at the root"));
        }
        let structural = Structural::parse(schema);
        let mut pruned = default.clone();
        // A default is a part, not a whole object: its own root is treated as such only if it is embedded.
        let wrapped = Structural { properties: [("v".into(), structural)].into(), ..Structural::default() };
        let mut outer = serde_json::json!({ "v": pruned });
        if wrapped.prune(&mut outer).is_ok() {
            pruned = outer["v"].take();
        }
        if pruned != *default {
            errors.push(Error::invalid(&at, default, "must not have unknown fields"));
        } else if let Some(structural) = wrapped.properties.get("v") {
            for error in structural.validate(default) {
                let field = if error.field == "<nil>" { at.to_string() } else { format!("{at}.{}", error.field) };
                errors.push(Error { field, ..error });
            }
        }
    }
    if depth < DEPTH_MAX {
        each(schema, path, |found, path, _| defaults(found, &path, false, depth + 1, errors));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(a: Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"a": a}});
        check(&schema, &Path::new("S")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn schemas_are_refused_in_upstreams_words() {
        assert!(found(json!({"type": "string", "default": "x"})).is_empty());
        assert!(
            found(json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}))
                .is_empty()
        );
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
    }
}
