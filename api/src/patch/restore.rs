//! Why a patched tree is no object of its kind, in the words of the library that upstream restores objects with after a
//! strategic merge patch (`DefaultUnstructuredConverter.FromUnstructured`).

use crate::schema::{Scalar, Struct, Type};
use serde_json::Value;

/// The first value that does not fit; none where the reason is one that a decoder of the type itself gives.
pub fn refusal(tree: &Value, schema: &Struct) -> Option<String> {
    let Value::Object(map) = tree else {
        return (!tree.is_null()).then(|| format!("cannot restore struct from: {}", kind(tree)));
    };
    schema.fields.iter().find_map(|field| fits(map.get(&*field.name)?, &field.ty, field.type_name))
}

fn fits(value: &Value, ty: &Type, type_name: &str) -> Option<String> {
    if value.is_null() {
        return None;
    }
    match ty {
        Type::Scalar(scalar) => fits_scalar(value, *scalar, type_name),
        Type::Struct(schema) => refusal(value, schema),
        Type::List(list) => match value {
            Value::Array(items) => {
                let element = type_name.trim_start_matches('*').trim_start_matches("[]");
                items.iter().find_map(|item| fits(item, &list.element, element))
            }
            other => Some(format!("cannot restore slice from {}", kind(other))),
        },
        Type::Map(of) => match value {
            Value::Object(map) => {
                let element = type_name.split_once(']').map_or("", |(_, element)| element);
                map.values().find_map(|item| fits(item, &of.value, element))
            }
            other => Some(format!("cannot restore map from {}", kind(other))),
        },
        Type::Any(_) => None,
    }
}

fn fits_scalar(value: &Value, scalar: Scalar, type_name: &str) -> Option<String> {
    let is_whole = value.as_f64().is_some_and(|f| f.fract() == 0.0);
    let (fits, wanted) = match scalar {
        Scalar::String => (value.is_string(), "string"),
        Scalar::Bool => (value.is_boolean(), "bool"),
        Scalar::Int32 => (is_whole, "int32"),
        Scalar::Int64 => (is_whole, "int64"),
        Scalar::Uint32 => (is_whole, "uint32"),
        Scalar::Uint64 => (is_whole, "uint64"),
        Scalar::Float64 => (value.is_number(), "float64"),
        Scalar::Bytes if !value.is_string() => {
            return Some(format!("cannot restore slice from {}", kind(value)));
        }
        // These read their values themselves.
        _ => return None,
    };
    if fits {
        return None;
    }
    // Go has conversions between numbers, and from whole numbers to text, which JSON has not.
    let is_number = value.is_number() && !matches!(scalar, Scalar::Bool | Scalar::String);
    let is_rune = kind(value) == "int64" && scalar == Scalar::String;
    Some(if is_number || is_rune {
        let name = if type_name.is_empty() { wanted } else { type_name.trim_start_matches('*') };
        format!("cannot convert {} to {name}", kind(value))
    } else {
        format!("unrecognized type: {wanted}")
    })
}

/// How Go holds a value that it decoded into no type in particular.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_does_not_fit_is_named_as_go_does() {
        let schema = crate::schema::builtin().kind("apps", "v1", "Deployment").expect("a kind");
        for (spec, why) in [
            (json!({"replicas": 1}), None),
            (json!({"replicas": "x"}), Some("unrecognized type: int32")),
            (json!({"replicas": 1.5}), Some("cannot convert float64 to int32")),
            (json!({"paused": 1}), Some("unrecognized type: bool")),
            (json!({"selector": []}), Some("cannot restore struct from: slice")),
            (json!({"selector": {"matchLabels": "x"}}), Some("cannot restore map from string")),
            (json!({"selector": {"matchLabels": {"a": 1}}}), Some("cannot convert int64 to string")),
            (json!({"template": {"spec": {"containers": {}}}}), Some("cannot restore slice from map")),
            (json!({"template": {"spec": {"containers": [{"image": true}]}}}), Some("unrecognized type: string")),
        ] {
            assert_eq!(refusal(&json!({"spec": spec}), schema).as_deref(), why, "{spec}");
        }
    }
}
