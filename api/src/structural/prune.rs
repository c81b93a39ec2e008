//! Pruning: what a schema does not name is dropped (upstream: `schema/pruning`, `schema/objectmeta`, and the dropping of nulls
//! in `schema/defaulting`).

use super::Structural;
use crate::codec::{self, DecodeError};
use crate::field::go_value;
use crate::schema;
use serde_json::{Map, Value};

impl Structural {
    /// Drops what the schema does not know from a whole object, its metadata included, and gives the paths of what was dropped:
    /// strict decoding reports them as `unknown field "spec.x"`, those of the metadata first and those of embedded objects' last.
    /// Fails if the type or the metadata of an object is not what they are.
    pub fn prune(&self, object: &mut Value) -> Result<Vec<String>, DecodeError> {
        let mut found = Vec::new();
        if let Some(metadata) = object.get_mut("metadata") {
            coerce_metadata(metadata, "metadata", &mut found)?;
        }
        let mut dropped = Vec::new();
        prune(object, Some(self), true, "", &mut dropped);
        dropped.sort();
        found.append(&mut dropped);
        self.coerce(object, "", true, &mut dropped)?;
        dropped.sort();
        found.append(&mut dropped);
        Ok(found)
    }

    /// Whether anything was dropped from a part of an object, such as a default.
    pub fn prune_part(&self, value: &mut Value) -> bool {
        let mut dropped = Vec::new();
        prune(value, Some(self), self.embedded, "", &mut dropped);
        !dropped.is_empty()
    }

    /// Looks at the type and the metadata of embedded objects, whose unknown fields go.
    pub(super) fn coerce(
        &self,
        value: &mut Value,
        path: &str,
        is_root: bool,
        dropped: &mut Vec<String>,
    ) -> Result<(), DecodeError> {
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    let at = join(path, name);
                    match name.as_str() {
                        "apiVersion" | "kind" if self.embedded && !is_root && !value.is_string() => {
                            let why = format!("{at}: Invalid value: {}: must be a string", go_value(value));
                            return Err(DecodeError::Value(why));
                        }
                        "metadata" if self.embedded && !is_root => {
                            let shown = go_value(value);
                            coerce_metadata(value, &at, dropped)
                                .map_err(|why| DecodeError::Value(format!("{at}: Invalid value: {shown}: {why}")))?;
                        }
                        _ => {}
                    }
                    if let Some(schema) = self.properties.get(name.as_str()) {
                        schema.coerce(value, &at, false, dropped)?;
                    } else if let Some(schema) = &self.additional {
                        schema.coerce(value, &format!("{path}[{name}]"), false, dropped)?;
                    }
                }
            }
            Value::Array(items) => {
                let Some(schema) = &self.items else { return Ok(()) };
                for (i, item) in items.iter_mut().enumerate() {
                    schema.coerce(item, &format!("{path}[{i}]"), false, dropped)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Drops nulls where the schema allows none, after defaults had their chance. Elements cannot go: they take their default.
    pub fn drop_nulls(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|name, value| {
                    let known = self.properties.get(name.as_str()).or(self.additional.as_deref());
                    !(value.is_null() && known.is_some_and(|s| !s.nullable && s.default.is_none() && !s.says_nothing()))
                });
                for (name, value) in map.iter_mut() {
                    if let Some(schema) = self.properties.get(name.as_str()) {
                        schema.drop_nulls(value);
                    } else if let Some(schema) = &self.additional {
                        schema.fill_null(value);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    items.iter_mut().for_each(|item| schema.fill_null(item));
                }
            }
            _ => {}
        }
    }

    fn fill_null(&self, value: &mut Value) {
        if let Some(default) = self.default.as_ref().filter(|_| value.is_null() && !self.nullable) {
            value.clone_from(default);
        }
        self.drop_nulls(value);
    }

    /// `additionalProperties: true` stands for no schema at all.
    fn says_nothing(&self) -> bool {
        self.ty.is_empty() && !self.int_or_string && !self.preserve_unknown
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn prune(value: &mut Value, schema: Option<&Structural>, is_object: bool, path: &str, dropped: &mut Vec<String>) {
    let preserve = schema.is_some_and(|s| s.preserve_unknown);
    match value {
        Value::Object(map) => map.retain(|name, value| {
            if is_object && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                return true;
            }
            let known = schema.and_then(|s| s.properties.get(name.as_str()).or(s.additional.as_deref()));
            match known {
                Some(known) => {
                    let known = (!known.is_empty()).then_some(known);
                    prune(value, known, known.is_some_and(|s| s.embedded), &join(path, name), dropped);
                }
                None if !preserve => dropped.push(join(path, name)),
                None => {}
            }
            known.is_some() || preserve
        }),
        Value::Array(items) => {
            let element = schema.and_then(|s| s.items.as_deref());
            for (i, item) in items.iter_mut().enumerate() {
                let path = format!("{path}[{i}]");
                match element {
                    // What may have unknown fields passes that on to the elements of its lists.
                    _ if preserve => skip(item, element, &path, dropped),
                    _ => prune(item, element, element.is_some_and(|s| s.embedded), &path, dropped),
                }
            }
        }
        _ => {}
    }
}

/// Keeps unknown fields, but looks into known ones.
fn skip(value: &mut Value, schema: Option<&Structural>, path: &str, dropped: &mut Vec<String>) {
    let Some(schema) = schema else { return };
    match value {
        Value::Object(map) => {
            for (name, value) in map.iter_mut() {
                if schema.embedded && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                    continue;
                }
                if let Some(known) = schema.properties.get(name.as_str()).or(schema.additional.as_deref()) {
                    let known = (!known.is_empty()).then_some(known);
                    prune(value, known, known.is_some_and(|s| s.embedded), &join(path, name), dropped);
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                skip(item, schema.items.as_deref(), &format!("{path}[{i}]"), dropped);
            }
        }
        _ => {}
    }
}

/// Metadata is of a known type wherever it stands.
fn coerce_metadata(metadata: &mut Value, path: &str, dropped: &mut Vec<String>) -> Result<(), DecodeError> {
    let Some(schema) = schema::builtin().short("meta.v1.ObjectMeta") else { return Ok(()) };
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
        return Ok(());
    }
    let decoded = codec::json::decode_tree(metadata, schema)?;
    for error in decoded.strict_errors {
        if let Some(name) = error.strip_prefix("unknown field \"").and_then(|e| e.strip_suffix('"')) {
            dropped.push(join(path, name));
        }
    }
    *metadata = decoded.value;
    Ok(())
}
