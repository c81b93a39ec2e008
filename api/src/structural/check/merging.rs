//! `x-kubernetes-map-type`, `x-kubernetes-list-type` and the keys of lists.

use super::{flag, is_there, list, object, text};
use crate::field::{Error, ErrorList, Path};
use serde_json::Value;

pub(super) fn check(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let ty = text(schema, "type");
    let must_be = |wanted: &str, name: &str| {
        let why = format!("must be {wanted} if {name} is specified");
        let at = path.child("type");
        if ty.is_empty() { Error::required(&at, why) } else { Error::invalid(&at, ty, why) }
    };
    if let Some(map_type) = schema["x-kubernetes-map-type"].as_str() {
        if ty != "object" {
            errors.push(must_be("object", "x-kubernetes-map-type"));
        }
        if !matches!(map_type, "atomic" | "granular") {
            let at = path.child("x-kubernetes-map-type");
            errors.push(Error::not_supported(&at, map_type, &["atomic", "granular"]));
        }
    }
    let keys: Vec<&str> = list(schema, "x-kubernetes-list-map-keys").filter_map(Value::as_str).collect();
    let list_type = schema["x-kubernetes-list-type"].as_str();
    let list_type_at = path.child("x-kubernetes-list-type");
    let items = object(schema, "items");
    if let Some(list_type) = list_type {
        if ty != "array" {
            errors.push(must_be("array", "x-kubernetes-list-type"));
        } else if list_type == "set"
            && let Some(items) = items
        {
            set(items, &path.child("items"), errors);
        }
        if !matches!(list_type, "atomic" | "set" | "map") {
            errors.push(Error::not_supported(&list_type_at, list_type, &["atomic", "set", "map"]));
        }
    }
    let why = "must be map if x-kubernetes-list-map-keys is non-empty";
    match list_type {
        None if !keys.is_empty() => errors.push(Error::required(&list_type_at, why)),
        Some(other) if !keys.is_empty() && other != "map" => errors.push(Error::invalid(&list_type_at, other, why)),
        _ => {}
    }
    if list_type == Some("map") {
        map(schema, &keys, path, errors);
    }
    if let (Some("map" | "set"), Some(items)) = (list_type, items) {
        present(list_type.unwrap_or_default(), items, &keys, &path.child("items"), errors);
    }
}

/// The elements of a set are compared as wholes.
fn set(items: &Value, at: &Path, errors: &mut ErrorList) {
    let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let (name, fits) = match text(items, "type") {
        "object" => ("x-kubernetes-map-type", items["x-kubernetes-map-type"] == "atomic"),
        "array" => {
            ("x-kubernetes-list-type", matches!(items["x-kubernetes-list-type"].as_str(), None | Some("atomic")))
        }
        _ => return,
    };
    if !fits {
        // Upstream shows the type of a list in both cases.
        errors.push(Error::invalid(&at.child(name), &items["x-kubernetes-list-type"], why));
    }
}

fn map(schema: &Value, keys: &[&str], path: &Path, errors: &mut ErrorList) {
    let items_at = path.child("items");
    let keys_at = path.child("x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.push(Error::required(&keys_at, "must not be empty if x-kubernetes-list-type is map"));
    }
    let Some(items) = object(schema, "items") else {
        if !is_there(schema, "items") {
            errors.push(Error::required(&items_at, "must have a schema if x-kubernetes-list-type is map"));
        }
        return;
    };
    if items["type"] != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(Error::invalid(&items_at.child("type"), text(items, "type"), why));
        return;
    }
    for (i, key) in keys.iter().enumerate() {
        let all = &schema["x-kubernetes-list-map-keys"];
        match items["properties"].get(*key) {
            Some(property) if matches!(text(property, "type"), "object" | "array") => {
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                let at = items_at.child("properties").key(key).child("type");
                // Upstream shows the type of the elements.
                errors.push(Error::invalid(&at, text(items, "type"), why));
            }
            Some(_) => {}
            None => errors.push(Error::invalid(&keys_at, all, "entries must all be names of item properties")),
        }
        if keys[..i].contains(key) {
            errors.push(Error::invalid(&keys_at, all, "must not contain duplicate entries"));
        }
    }
}

/// Elements of sets and maps, and the keys of maps, are never null.
fn present(list_type: &str, items: &Value, keys: &[&str], at: &Path, errors: &mut ErrorList) {
    if flag(items, "nullable") {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.push(Error::forbidden(&at.child("nullable"), why));
    }
    for key in keys.iter().filter(|_| list_type == "map") {
        let Some(property) = items["properties"].get(*key) else { continue };
        let property_at = at.child("properties").key(key);
        if !list(items, "required").any(|name| name == *key) && !is_there(property, "default") {
            let why =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(Error::required(&property_at.child("default"), why));
        }
        if flag(property, "nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(Error::forbidden(&property_at.child("nullable"), why));
        }
    }
}
