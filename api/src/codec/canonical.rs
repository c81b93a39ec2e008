//! Canonical form: what Go's decode and encode round trip leaves of a tree, and the zero values it writes.

use crate::schema::{Field, Omit, Scalar, Struct, Type};
use serde_json::{Map, Value};

/// Whether a type is a Go struct, which `omitempty` never leaves out.
fn is_go_struct(ty: &Type) -> bool {
    match ty {
        Type::Struct(_) | Type::Any(_) => true,
        Type::Scalar(s) => {
            matches!(s, Scalar::Quantity | Scalar::IntOrString | Scalar::Time | Scalar::MicroTime | Scalar::Duration)
        }
        Type::List(_) | Type::Map(_) => false,
    }
}

/// Whether a canonical tree has this field even when nothing was said about it.
pub(crate) fn always_there(field: &Field) -> bool {
    match field.omit {
        Omit::Never => true,
        Omit::Empty => !field.pointer && is_go_struct(&field.ty),
        Omit::Zero => false,
    }
}

/// Whether an encoder leaves out this value of the field.
pub(crate) fn left_out(field: &Field, value: &Value) -> bool {
    match field.omit {
        Omit::Never => false,
        Omit::Empty | Omit::Zero if field.pointer => value.is_null(),
        Omit::Empty => !is_go_struct(&field.ty) && is_empty(value),
        Omit::Zero => is_empty(value),
    }
}

fn is_empty_container(value: &Value, ty: &Type) -> bool {
    match (ty, value) {
        (Type::List(_), Value::Array(items)) => items.is_empty(),
        (Type::Map(_), Value::Object(entries)) => entries.is_empty(),
        _ => false,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(n) => n.as_i64() == Some(0) || n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

/// The value of an unset field, as an encoder writes it.
pub(crate) fn zero_of_field(field: &Field) -> Value {
    if field.pointer { Value::Null } else { zero(&field.ty) }
}

/// The zero value of a type, as an encoder writes it.
pub fn zero(ty: &Type) -> Value {
    match ty {
        Type::Struct(schema) => Value::Object(zero_struct(schema)),
        Type::List(_) | Type::Map(_) | Type::Any(_) => Value::Null,
        Type::Scalar(scalar) => match scalar {
            Scalar::String => Value::String(String::new()),
            Scalar::Bool => Value::Bool(false),
            Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::Uint64 | Scalar::Float64 | Scalar::IntOrString => {
                Value::from(0)
            }
            Scalar::Quantity => Value::from("0"),
            Scalar::Duration => Value::from("0s"),
            Scalar::Bytes | Scalar::Time | Scalar::MicroTime => Value::Null,
        },
    }
}

fn zero_struct(schema: &Struct) -> Map<String, Value> {
    let mut map = Map::new();
    fill(&mut map, schema);
    map
}

/// Adds the fields that a canonical struct always has.
pub(crate) fn fill(map: &mut Map<String, Value>, schema: &Struct) {
    for &i in schema.always() {
        let field = &schema.fields[i as usize];
        if !map.contains_key(&*field.name) {
            map.insert(field.name.to_string(), zero_of_field(field));
        }
    }
}

/// Brings a tree that code has changed back to canonical form: leaves out what an encoder leaves out, adds what it always
/// writes, drops what the schema does not know. Values are taken as they are: their types must fit already.
pub fn canonicalize(value: &mut Value, schema: &Struct) {
    let Value::Object(map) = value else { return };
    if schema.name.is_empty() {
        return;
    }
    map.retain(|name, value| match schema.field(name) {
        Some(field) => {
            canonicalize_value(value, &field.ty);
            if is_empty_container(value, &field.ty) {
                // Storage forgets the difference between an empty list and none: protobuf cannot say it.
                *value = Value::Null;
            }
            !left_out(field, value)
        }
        None => schema.preserve_unknown,
    });
    fill(map, schema);
}

fn canonicalize_value(value: &mut Value, ty: &Type) {
    match (ty, &mut *value) {
        (Type::Struct(schema), Value::Object(_)) => canonicalize(value, schema),
        (Type::List(list), Value::Array(items)) => {
            for item in items {
                if item.is_null() {
                    *item = zero(&list.element);
                }
                canonicalize_value(item, &list.element);
            }
        }
        (Type::Map(map), Value::Object(entries)) => {
            for (_, entry) in entries.iter_mut() {
                if entry.is_null() {
                    *entry = zero(&map.value);
                }
                canonicalize_value(entry, &map.value);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn empties_are_left_out_and_zeros_written_as_go_does() {
        let pod = crate::schema::builtin().short("core.v1.Pod").unwrap();
        let mut tree = json!({"kind": "Pod", "metadata": {"name": "a", "labels": {}, "bogus": 1}, "spec": {
            "hostNetwork": false, "automountServiceAccountToken": false,
            "containers": [{"image": "", "ports": [{"name": "x"}]}]}});
        canonicalize(&mut tree, pod);
        let want = json!({"kind": "Pod", "metadata": {"name": "a"}, "status": {}, "spec": {
            "automountServiceAccountToken": false,
            "containers": [{"name": "", "resources": {}, "ports": [{"name": "x", "containerPort": 0}]}]}});
        assert_eq!(tree, want);
    }
}
