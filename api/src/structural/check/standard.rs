//! What each part of a schema must not say (upstream: `ValidateCustomResourceDefinitionOpenAPISchema`).

use super::super::DEPTH_MAX;
use super::{flag, is_set, is_there, list, members, merging, object, rules, text};
use crate::field::{Error, ErrorList, Path};
use serde_json::Value;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// What lies around a part.
#[derive(Clone, Default)]
struct Around {
    /// Why there must be no default, if there must not.
    no_default: Option<String>,
    /// Within the type or the metadata of an object.
    inside_meta: bool,
}

pub(super) fn check(schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    part(schema, path, true, &Around::default(), &mut errors);
    errors
}

/// Every schema within a schema, in the order in which upstream walks them.
fn within(schema: &Value) -> Vec<(&'static str, &Value)> {
    let mut found: Vec<(&'static str, &Value)> = Vec::new();
    found.extend(object(schema, "additionalProperties").map(|s| ("additionalProperties", s)));
    found.extend(members(schema, "properties").map(|(_, s)| ("properties", s)));
    found.extend(object(schema, "not").map(|s| ("not", s)));
    for name in ["allOf", "oneOf", "anyOf"] {
        found.extend(list(schema, name).map(|s| (name, s)));
    }
    found.extend(members(schema, "definitions").map(|(_, s)| ("definitions", s)));
    found.extend(object(schema, "items").map(|s| ("items", s)));
    found.extend(list(schema, "items").map(|s| ("items", s)));
    found.extend(members(schema, "dependencies").map(|(_, s)| ("dependencies", s)));
    found
}

pub(super) fn is_too_deep(schema: &Value) -> bool {
    fn deeper(schema: &Value, left: usize) -> bool {
        left == 0 || within(schema).into_iter().any(|(_, found)| deeper(found, left - 1))
    }
    deeper(schema, DEPTH_MAX)
}

/// The first field that upstream's reader of schemas stumbles over.
pub(super) fn unsupported(schema: &Value) -> Option<String> {
    for (field, name) in [
        ("id", "id"),
        ("$schema", "schema"),
        ("$ref", "$ref"),
        ("patternProperties", "patternProperties"),
        ("dependencies", "dependencies"),
    ] {
        if is_set(schema, field) {
            return Some(format!("OpenAPIV3Schema '{name}' is not supported"));
        }
    }
    if is_there(schema, "additionalItems") {
        return Some("OpenAPIV3Schema 'additionalItems' is not supported".into());
    }
    if is_set(schema, "definitions") {
        return Some("OpenAPIV3Schema 'definitions' is not supported".into());
    }
    let alternatives = object(schema, "not")
        .into_iter()
        .chain(["allOf", "anyOf", "oneOf"].into_iter().flat_map(|name| list(schema, name)));
    if let Some(why) = alternatives.into_iter().find_map(unsupported) {
        return Some(why);
    }
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        let why = "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined";
        return Some(why.into());
    }
    if is_set(schema, "items") && schema["items"].is_array() {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".into());
    }
    let structure = object(schema, "items")
        .into_iter()
        .chain(members(schema, "properties").map(|(_, s)| s))
        .chain(object(schema, "additionalProperties"));
    structure.into_iter().find_map(unsupported)
}

fn part(schema: &Value, path: &Path, is_root: bool, around: &Around, errors: &mut ErrorList) {
    plain(schema, path, around, errors);
    if flag(schema, "uniqueItems") {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(Error::forbidden(&path.child("uniqueItems"), why));
    }
    let additional = &schema["additionalProperties"];
    if is_set(schema, "properties") && (additional == &Value::Bool(false) || additional.is_object()) {
        let why = "additionalProperties and properties are mutual exclusive";
        errors.push(Error::forbidden(&path.child("additionalProperties"), why));
    }
    if let Some(values) = object(schema, "additionalProperties") {
        let mut around = around.clone();
        if around.inside_meta {
            around.no_default = Some("inside additionalProperties applying to object metadata".into());
        }
        part(values, &path.child("additionalProperties"), false, &around, errors);
    }
    for (name, property) in members(schema, "properties") {
        let mut around = around.clone();
        let is_object = is_root || flag(schema, "x-kubernetes-embedded-resource");
        if is_object && matches!(&**name, "metadata" | "kind" | "apiVersion") {
            around.inside_meta = true;
            if is_root {
                around.no_default = Some(format!("in top-level {name}"));
            }
        }
        part(property, &path.child("properties").key(name), false, &around, errors);
    }
    if let Some(found) = object(schema, "not") {
        part(found, &path.child("not"), false, around, errors);
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        for (i, found) in list(schema, name).enumerate() {
            part(found, &path.child(name).index(i), false, around, errors);
        }
    }
    for (name, found) in members(schema, "definitions") {
        part(found, &path.child("definitions").key(name), false, around, errors);
    }
    if let Some(items) = object(schema, "items") {
        part(items, &path.child("items"), false, around, errors);
    }
    for (i, items) in list(schema, "items").enumerate() {
        part(items, &path.child("items").index(i), false, around, errors);
    }
    for (name, found) in members(schema, "dependencies").filter(|(_, found)| found.is_object()) {
        part(found, &path.child("dependencies").key(name), false, around, errors);
    }
    if schema["x-kubernetes-preserve-unknown-fields"] == Value::Bool(false) {
        let at = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(Error::invalid(&at, false, "must be true or undefined"));
    }
    merging::check(schema, path, errors);
    rules::check(schema, path, errors);
}

/// The fields that need no other to be judged.
fn plain(schema: &Value, path: &Path, around: &Around, errors: &mut ErrorList) {
    let ty = text(schema, "type");
    if !ty.is_empty() && !TYPES.contains(&ty) {
        errors.push(Error::not_supported(&path.child("type"), ty, &TYPES));
    }
    if let Some(reason) = around.no_default.as_deref().filter(|_| is_there(schema, "default")) {
        errors.push(Error::forbidden(&path.child("default"), format!("must not be set {reason}")));
    }
    for (name, said) in [
        ("id", is_set(schema, "id")),
        ("additionalItems", is_there(schema, "additionalItems")),
        ("patternProperties", is_set(schema, "patternProperties")),
        ("definitions", is_set(schema, "definitions")),
        ("dependencies", is_there(schema, "dependencies")),
        ("$ref", is_there(schema, "$ref")),
    ] {
        if said {
            errors.push(Error::forbidden(&path.child(name), format!("{name} is not supported")));
        }
    }
    if ty == "null" {
        let why = "type cannot be set to null, use nullable as an alternative";
        errors.push(Error::forbidden(&path.child("type"), why));
    }
    if is_set(schema, "items") && schema["items"].is_array() {
        errors.push(Error::forbidden(&path.child("items"), "items must be a schema object and not an array"));
    }
    if around.inside_meta && flag(schema, "x-kubernetes-embedded-resource") {
        let at = path.child("x-kubernetes-embedded-resource");
        errors.push(Error::forbidden(&at, "must not be used inside of resource meta"));
    }
}
