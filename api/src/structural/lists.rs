//! Lists that are sets or maps, and embedded objects (upstream: `schema/listtype`, `schema/objectmeta`).

use super::Structural;
use crate::field::{Error, ErrorKind, ErrorList, go_json, go_value};
use crate::names;
use serde_json::{Map, Value};

/// Says what is wrong with the metadata of an object that is at a path.
pub type CheckMetadata<'a> = &'a dyn Fn(&Value, &str) -> ErrorList;

fn error(kind: ErrorKind, field: String, bad_value: Option<String>, detail: String) -> Error {
    Error { kind, field, bad_value, detail }
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl Structural {
    /// No two elements of a set are equal, and no two of a map have equal keys.
    pub fn validate_lists(&self, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        self.lists(object, "", &mut errors);
        errors
    }

    fn lists(&self, value: &Value, path: &str, errors: &mut ErrorList) {
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    if let Some(schema) = self.properties.get(name.as_str()) {
                        schema.lists(value, &child(path, name), errors);
                    } else if let Some(schema) = &self.additional {
                        schema.lists(value, &format!("{path}[{name}]"), errors);
                    }
                }
            }
            Value::Array(items) => {
                self.unique(items, path, errors);
                if let Some(schema) = &self.items {
                    items.iter().enumerate().for_each(|(i, item)| schema.lists(item, &format!("{path}[{i}]"), errors));
                }
            }
            _ => {}
        }
    }

    fn unique(&self, items: &[Value], path: &str, errors: &mut ErrorList) {
        let is_map = &*self.list_type == "map";
        if !is_map && &*self.list_type != "set" {
            return;
        }
        let odd = |(_, item): &(usize, &Value)| is_map && !item.is_null() && !item.is_object();
        if let Some((i, item)) = items.iter().enumerate().find(odd) {
            let why = "must be an object for an array of list-type map";
            errors.push(error(ErrorKind::Invalid, format!("{path}[{i}]"), Some(go_value(item)), why.into()));
            return;
        }
        let mut seen = std::collections::HashMap::new();
        for (i, item) in items.iter().enumerate() {
            let shown = if is_map {
                let keys = self.list_map_keys.iter();
                let found = keys.filter_map(|k| item.get(&**k).map(|v| (k.to_string(), v.clone())));
                Value::Object(found.collect())
            } else {
                item.clone()
            };
            // Upstream compares scalars as Go has them, where 1 is not 1.0, and anything else as the JSON that it writes.
            let is_scalar = if is_map { self.list_map_keys.len() == 1 } else { !(item.is_object() || item.is_array()) };
            let key = if is_scalar { shown.to_string() } else { go_json(&shown) };
            let count = seen.entry(key).or_insert(0_u32);
            *count += 1;
            // Each value is reported once, at its second place.
            if *count == 2 {
                errors.push(error(ErrorKind::Duplicate, format!("{path}[{i}]"), Some(go_value(&shown)), String::new()));
            }
        }
    }

    /// Embedded objects say what they are, and their metadata is right, of which `check` knows.
    pub fn validate_embedded(&self, object: &Value, check: CheckMetadata<'_>) -> ErrorList {
        let mut errors = ErrorList::new();
        self.embedded_in(object, "", true, check, &mut errors);
        errors
    }

    /// The same of a part, such as a default.
    pub fn validate_embedded_part(&self, value: &Value, check: CheckMetadata<'_>) -> ErrorList {
        let mut errors = ErrorList::new();
        self.embedded_in(value, "", false, check, &mut errors);
        errors
    }

    fn embedded_in(&self, value: &Value, path: &str, root: bool, check: CheckMetadata<'_>, errors: &mut ErrorList) {
        match value {
            Value::Object(map) => {
                if self.embedded && !root {
                    type_meta(map, path, errors);
                    if map.get("metadata").is_some_and(Value::is_object) {
                        errors.extend(check(value, path));
                    }
                }
                for (name, value) in map {
                    if let Some(schema) = self.properties.get(name.as_str()) {
                        schema.embedded_in(value, &child(path, name), false, check, errors);
                    } else if let Some(schema) = &self.additional {
                        schema.embedded_in(value, &format!("{path}[{name}]"), false, check, errors);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    for (i, item) in items.iter().enumerate() {
                        schema.embedded_in(item, &format!("{path}[{i}]"), false, check, errors);
                    }
                }
            }
            _ => {}
        }
    }
}

fn type_meta(map: &Map<String, Value>, path: &str, errors: &mut ErrorList) {
    for name in ["apiVersion", "kind"] {
        if !map.contains_key(name) {
            errors.push(error(ErrorKind::Required, child(path, name), None, String::new()));
        }
    }
    for name in ["apiVersion", "kind"] {
        let Some(value) = map.get(name) else { continue };
        let wrong = match value.as_str() {
            None => "must be a string".to_owned(),
            Some("") => "must not be empty".to_owned(),
            Some(text) if name == "apiVersion" && text.matches('/').count() > 1 => {
                format!("unexpected GroupVersion string: {text}")
            }
            Some(text) if name == "kind" => {
                let found = names::dns1035_label(&text.to_lowercase(), false);
                if found.is_empty() {
                    continue;
                }
                format!("may have mixed case, but should otherwise match: {}", found.join(","))
            }
            Some(_) => continue,
        };
        errors.push(error(ErrorKind::Invalid, child(path, name), Some(go_value(value)), wrong));
    }
}
