//! What makes a schema structural: every value has a known schema, and alternatives speak of values only.

use super::{flag, is_set, is_there, list, members, object, text};
use crate::field::{Error, ErrorList, Path};
use crate::go_regex;
use serde_json::Value;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

/// Sorted by their texts, as upstream does for maps that it walks in no order.
pub(super) fn check(schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    node(schema, Level::Root, path, &mut errors);
    complete(schema, Some(schema), path, path, &mut errors);
    errors.sort_by_cached_key(ToString::to_string);
    errors
}

fn node(schema: &Value, level: Level, path: &Path, errors: &mut ErrorList) {
    let ty = text(schema, "type");
    let type_at = path.child("type");
    let preserve = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let int_or_string = flag(schema, "x-kubernetes-int-or-string");
    match object(schema, "items") {
        Some(items) => node(items, Level::Item, &path.child("items"), errors),
        None if ty == "array" => errors.push(Error::required(&path.child("items"), "must be specified")),
        None => {}
    }
    for (name, property) in members(schema, "properties") {
        node(property, Level::Field, &path.child("properties").key(name), errors);
    }
    let additional_at = path.child("additionalProperties");
    if is_there(schema, "additionalProperties") && level == Level::Root {
        errors.push(Error::forbidden(&additional_at, "must not be used at the root"));
    }
    if let Some(values) = object(schema, "additionalProperties") {
        node(values, Level::Field, &additional_at, errors);
    }
    for (name, on) in [("x-kubernetes-preserve-unknown-fields", preserve), ("x-kubernetes-embedded-resource", embedded)]
    {
        if int_or_string && on {
            errors.push(Error::invalid(&path.child(name), true, "must be false if x-kubernetes-int-or-string is true"));
        }
    }
    let skip_any_of = is_int_or_string(schema);
    let skip_in_all_of = list(schema, "allOf").next().is_some_and(is_int_or_string);
    values(schema, skip_any_of, skip_in_all_of, path, errors);
    if embedded && ty != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if ty.is_empty() { Error::required(&type_at, why) } else { Error::invalid(&type_at, ty, why) });
    } else if ty.is_empty() && !int_or_string && !preserve {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(Error::required(&type_at, why));
    }
    if embedded && is_there(schema, "additionalProperties") {
        errors.push(Error::forbidden(&additional_at, "must not be used if x-kubernetes-embedded-resource is set"));
    }
    if level == Level::Root && !matches!(ty, "" | "object") {
        errors.push(Error::invalid(&type_at, ty, "must be object at the root"));
    }
    object_fields(schema, level == Level::Root || embedded, level, path, errors);
    if embedded && !preserve && !is_set(schema, "properties") {
        let why =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(Error::required(&path.child("properties"), why));
    }
}

/// The fields that every object has may be said little of.
fn object_fields(schema: &Value, is_object: bool, level: Level, path: &Path, errors: &mut ErrorList) {
    let properties = path.child("properties");
    for name in ["kind", "apiVersion"] {
        if let Some(found) = schema["properties"].get(name).filter(|_| is_object)
            && found["type"] != "string"
        {
            errors.push(Error::invalid(&properties.key(name).child("type"), text(found, "type"), "must be string"));
        }
    }
    let Some(metadata) = schema["properties"].get("metadata") else { return };
    let at = properties.key("metadata");
    if is_object && metadata["type"] != "object" {
        errors.push(Error::invalid(&at.child("type"), text(metadata, "type"), "must be object"));
    }
    let names_only = members(metadata, "properties").all(|(name, _)| matches!(&**name, "name" | "generateName"));
    let known = |key: &str| match key {
        // Defaults are looked at elsewhere.
        "type" | "default" => true,
        "properties" => names_only,
        _ => !is_set(metadata, key),
    };
    if level == Level::Root && !metadata.as_object().into_iter().flatten().all(|(key, _)| known(key)) {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.push(Error::forbidden(&at, why));
    }
}

/// Whether `anyOf` is that of an int-or-string, which may name the two types.
fn is_int_or_string(schema: &Value) -> bool {
    let says_type = |found: &Value, ty: &str| {
        let map = found.as_object().into_iter().flatten();
        map.filter(|(key, _)| is_set(found, key)).all(|(key, value)| key == "type" && value == ty)
            && found["type"] == ty
    };
    schema["anyOf"].as_array().is_some_and(|found| match found.as_slice() {
        [first, second] => says_type(first, "integer") && says_type(second, "string"),
        _ => false,
    })
}

/// The validations of a node's value.
fn values(schema: &Value, skip_any_of: bool, skip_in_all_of: bool, path: &Path, errors: &mut ErrorList) {
    for name in ["anyOf", "allOf", "oneOf"] {
        for (i, found) in list(schema, name).enumerate().filter(|_| !(skip_any_of && name == "anyOf")) {
            let skip = skip_in_all_of && name == "allOf" && i == 0;
            nested(found, skip, &path.child(name).index(i), errors);
        }
    }
    if let Some(found) = object(schema, "not") {
        nested(found, false, &path.child("not"), errors);
    }
    let source = text(schema, "pattern");
    if let Err(why) = go_regex::compile(source) {
        let why = format!("must be a valid regular expression, but isn't: {why}");
        errors.push(Error::invalid(&path.child("pattern"), source, why));
    }
}

/// An alternative, or a part of one: it must not say anything of the structure.
fn nested(schema: &Value, skip_any_of: bool, path: &Path, errors: &mut ErrorList) {
    values(schema, skip_any_of, false, path, errors);
    if let Some(items) = object(schema, "items") {
        nested(items, false, &path.child("items"), errors);
    }
    for (name, property) in members(schema, "properties") {
        nested(property, false, &path.child("properties").key(name), errors);
    }
    let additional = &schema["additionalProperties"];
    let empty_or = [
        ("type", is_set(schema, "type"), "empty"),
        ("additionalProperties", additional.is_object() || *additional == true, "undefined"),
        ("default", is_there(schema, "default"), "undefined"),
        ("title", is_set(schema, "title"), "empty"),
        ("description", is_set(schema, "description"), "empty"),
        ("nullable", is_set(schema, "nullable"), "false"),
        ("x-kubernetes-preserve-unknown-fields", is_set(schema, "x-kubernetes-preserve-unknown-fields"), "false"),
        ("x-kubernetes-embedded-resource", is_set(schema, "x-kubernetes-embedded-resource"), "false"),
        ("x-kubernetes-int-or-string", is_set(schema, "x-kubernetes-int-or-string"), "false"),
        ("x-kubernetes-list-map-keys", is_set(schema, "x-kubernetes-list-map-keys"), "empty"),
        ("x-kubernetes-list-type", is_there(schema, "x-kubernetes-list-type"), "undefined"),
        ("x-kubernetes-map-type", is_there(schema, "x-kubernetes-map-type"), "undefined"),
        ("x-kubernetes-validations", is_set(schema, "x-kubernetes-validations"), "empty"),
    ];
    for (name, _, word) in empty_or.into_iter().filter(|(_, set, _)| *set) {
        errors.push(Error::forbidden(&path.child(name), format!("must be {word} to be structural")));
    }
    if schema["properties"].get("metadata").is_some() {
        let at = path.child("properties").key("metadata");
        errors.push(Error::forbidden(&at, "must not be specified in a nested context"));
    }
}

/// What alternatives speak of is specified outside of them. `schema` is the node of the structure that they are about.
fn complete(said: &Value, schema: Option<&Value>, at: &Path, said_at: &Path, errors: &mut ErrorList) {
    if let Some(found) = object(said, "not") {
        complete_nested(found, schema, at, &said_at.child("not"), errors);
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (i, found) in list(said, name).enumerate() {
            complete_nested(found, schema, at, &said_at.child(name).index(i), errors);
        }
    }
}

fn complete_nested(said: &Value, schema: Option<&Value>, at: &Path, said_at: &Path, errors: &mut ErrorList) {
    let Some(schema) = schema else {
        errors.push(Error::required(at, format!("because it is defined in {said_at}")));
        return;
    };
    complete(said, Some(schema), at, said_at, errors);
    if let Some(items) = object(said, "items") {
        complete_nested(items, object(schema, "items"), &at.child("items"), &said_at.child("items"), errors);
    }
    for (name, property) in members(said, "properties") {
        let (at, said_at) = (at.child("properties").key(name), said_at.child("properties").key(name));
        complete_nested(property, schema["properties"].get(name), &at, &said_at, errors);
    }
}
