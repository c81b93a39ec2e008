//! Lists that are sets or maps, and embedded objects (upstream: `schema/listtype`, `schema/objectmeta`).

use super::Structural;
use crate::field::{Error, ErrorKind, ErrorList, go_value};
use crate::names;
use serde_json::{Map, Value};

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
                let key_of = |item: &Value| -> Value {
                    if &*self.list_type == "map" {
                        let keys = self.list_map_keys.iter();
                        let found = keys.filter_map(|k| item.get(&**k).map(|v| (k.to_string(), v.clone())));
                        return found.collect::<Map<_, _>>().into();
                    }
                    item.clone()
                };
                if matches!(&*self.list_type, "set" | "map") {
                    let mut seen = std::collections::HashMap::new();
                    for (i, item) in items.iter().enumerate() {
                        let key = key_of(item);
                        // Each value is reported once, at its second place.
                        let count = seen.entry(key.to_string()).or_insert(0u32);
                        *count += 1;
                        if *count == 2 {
                            let at = format!("{path}[{i}]");
                            errors.push(error(ErrorKind::Duplicate, at, Some(go_value(&key)), String::new()));
                        }
                    }
                }
                if let Some(schema) = &self.items {
                    items.iter().enumerate().for_each(|(i, item)| schema.lists(item, &format!("{path}[{i}]"), errors));
                }
            }
            _ => {}
        }
    }

    /// Embedded objects say what they are.
    pub fn validate_embedded(&self, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        self.embedded_in(object, "", true, &mut errors);
        errors
    }

    fn embedded_in(&self, value: &Value, path: &str, root: bool, errors: &mut ErrorList) {
        match value {
            Value::Object(map) => {
                if self.embedded && !root {
                    type_meta(map, path, errors);
                }
                for (name, value) in map {
                    if let Some(schema) = self.properties.get(name.as_str()) {
                        schema.embedded_in(value, &child(path, name), false, errors);
                    } else if let Some(schema) = &self.additional {
                        schema.embedded_in(value, &format!("{path}[{name}]"), false, errors);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    for (i, item) in items.iter().enumerate() {
                        schema.embedded_in(item, &format!("{path}[{i}]"), false, errors);
                    }
                }
            }
            _ => {}
        }
    }
}

fn type_meta(map: &Map<String, Value>, path: &str, errors: &mut ErrorList) {
    for name in ["apiVersion", "kind"] {
        let at = child(path, name);
        match map.get(name) {
            None => errors.push(error(ErrorKind::Required, at, None, String::new())),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(error(ErrorKind::Required, at, None, String::new()));
            }
            Some(value @ Value::String(text)) => {
                let wrong = if name == "kind" {
                    let found = names::dns1035_label(&text.to_lowercase(), false);
                    found.into_iter().map(|m| format!("may have mixed case, but should otherwise match: {m}")).collect()
                } else if text.matches('/').count() > 1 {
                    vec![format!("unexpected GroupVersion string: {text}")]
                } else {
                    Vec::new()
                };
                for detail in wrong {
                    errors.push(error(ErrorKind::Invalid, at.clone(), Some(go_value(value)), detail));
                }
            }
            Some(value) => {
                errors.push(error(ErrorKind::Invalid, at, Some(go_value(value)), "must be a string".into()));
            }
        }
    }
}
