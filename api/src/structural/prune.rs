//! Pruning: what a schema does not name is dropped (upstream: `schema/pruning`, `schema/objectmeta`, and the dropping of nulls
//! in `schema/defaulting`).

use super::Structural;
use crate::codec::{self, DecodeError};
use crate::schema;
use serde_json::{Map, Value};

impl Structural {
    /// Drops what the schema does not know from a whole object, its metadata included, and gives the paths of what was dropped,
    /// sorted: strict decoding reports them as `unknown field "spec.x"`. Fails if metadata is not what metadata is.
    pub fn prune(&self, object: &mut Value) -> Result<Vec<String>, DecodeError> {
        let mut pruner = Pruner::default();
        pruner.prune(object, Some(self), true, String::new());
        if let Some(error) = pruner.refused {
            return Err(error);
        }
        pruner.dropped.sort();
        Ok(pruner.dropped)
    }

    /// Drops nulls where the schema allows none, after defaults had their chance.
    pub fn drop_nulls(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|name, value| {
                    let known = self.properties.get(name.as_str()).or(self.additional.as_deref());
                    !(value.is_null() && known.is_some_and(|s| !s.nullable && s.default.is_none() && !s.says_nothing()))
                });
                for (name, value) in map.iter_mut() {
                    if let Some(schema) = self.properties.get(name.as_str()).or(self.additional.as_deref()) {
                        schema.drop_nulls(value);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    items.iter_mut().for_each(|item| schema.drop_nulls(item));
                }
            }
            _ => {}
        }
    }

    /// `additionalProperties: true` stands for no schema at all.
    fn says_nothing(&self) -> bool {
        self.ty.is_empty() && !self.int_or_string && !self.preserve_unknown
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What pruning finds on its way.
#[derive(Default)]
struct Pruner {
    dropped: Vec<String>,
    refused: Option<DecodeError>,
}

impl Pruner {
    fn prune(&mut self, value: &mut Value, schema: Option<&Structural>, root: bool, path: String) {
        match value {
            Value::Object(map) => {
                let is_object = root || schema.is_some_and(|s| s.embedded);
                let preserve = schema.is_some_and(|s| s.preserve_unknown);
                if is_object && let Some(metadata) = map.get_mut("metadata") {
                    self.prune_metadata(metadata, &join(&path, "metadata"));
                }
                map.retain(|name, value| {
                    if is_object && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                        return true;
                    }
                    let known = schema.and_then(|s| s.properties.get(name.as_str()).or(s.additional.as_deref()));
                    if known.is_some() {
                        self.prune(value, known, false, join(&path, name));
                    } else if !preserve {
                        self.dropped.push(join(&path, name));
                    }
                    known.is_some() || preserve
                });
            }
            Value::Array(items) => {
                let element = schema.and_then(|s| s.items.as_deref());
                // A list that nothing is said of is kept as it is where unknown fields are.
                if element.is_none() && schema.is_some_and(|s| s.preserve_unknown) {
                    return;
                }
                for (i, item) in items.iter_mut().enumerate() {
                    self.prune(item, element, false, format!("{path}[{i}]"));
                }
            }
            _ => {}
        }
    }

    /// Metadata is of a known type wherever it stands.
    fn prune_metadata(&mut self, metadata: &mut Value, path: &str) {
        let Some(schema) = schema::builtin().short("meta.v1.ObjectMeta") else { return };
        match codec::json::decode_tree(metadata, schema) {
            Ok(decoded) => {
                for error in decoded.strict_errors {
                    if let Some(name) = error.strip_prefix("unknown field \"").and_then(|e| e.strip_suffix('"')) {
                        self.dropped.push(join(path, name));
                    }
                }
                *metadata = if metadata.is_null() { Value::Object(Map::new()) } else { decoded.value };
            }
            Err(error) => {
                self.refused.get_or_insert(error);
            }
        }
    }
}
