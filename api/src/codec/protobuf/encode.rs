//! Trees to the wire, as gogo's generated code writes: fields by ascending number, zero values of what is no pointer
//! written, maps sorted by key.

use super::layout::{Layout, Slot};
use crate::schema::{self, AnyKind, Field, Scalar, Struct, Type};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

pub(super) fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

pub(super) fn varint_len(n: u64) -> usize {
    (64 - (n | 1).leading_zeros() as usize).div_ceil(7)
}

fn tag(number: u32, wire: u32, out: &mut Vec<u8>) {
    varint(u64::from(number << 3 | wire), out);
}

pub(super) fn bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    tag(number, 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

pub(super) fn double(field: u32, f: f64, out: &mut Vec<u8>) {
    tag(field, 1, out);
    out.extend_from_slice(&f.to_le_bytes());
}

pub(super) fn number(field: u32, n: u64, out: &mut Vec<u8>) {
    tag(field, 0, out);
    varint(n, out);
}

/// A message whose length is known only once it is written.
pub(super) fn nested(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    tag(number, 2, out);
    let length_at = out.len();
    out.push(0);
    write(out);
    let length = out.len() - length_at - 1;
    if length < 0x80 {
        out[length_at] = length as u8;
        return;
    }
    // Longer messages move by the few bytes that their length takes.
    let mut prefix = Vec::with_capacity(10);
    varint(length as u64, &mut prefix);
    out.splice(length_at..=length_at, prefix);
}

pub(super) fn message(value: &Value, schema: &Struct, out: &mut Vec<u8>) {
    match value.as_object() {
        Some(map) => slots(map, schema, schema.layout(), out),
        None => slots(&Map::new(), schema, schema.layout(), out),
    }
}

fn slots(map: &Map<String, Value>, schema: &Struct, layout: &Layout, out: &mut Vec<u8>) {
    for (number, slot) in &layout.slots {
        match slot {
            Slot::Embedded(inner) => nested(*number, out, |out| slots(map, schema, inner, out)),
            Slot::Field(i) => {
                let field = &schema.fields[*i];
                let value = map.get(&*field.name).unwrap_or(&Value::Null);
                if !(field.pointer && value.is_null()) {
                    write_field(*number, value, field, out);
                }
            }
        }
    }
}

fn write_field(number: u32, value: &Value, field: &Field, out: &mut Vec<u8>) {
    match (&field.ty, value) {
        (Type::List(_), Value::Array(_)) if field.proto.is_some_and(|p| p.wrapped) => {
            write(number, value, &field.ty, out)
        }
        (Type::List(list), Value::Array(items)) => {
            for item in items {
                write(number, item, &list.element, out);
            }
        }
        (Type::Map(map), Value::Object(entries)) => {
            for (key, entry) in entries {
                nested(number, out, |out| {
                    bytes(1, key.as_bytes(), out);
                    write(2, entry, &map.value, out);
                });
            }
        }
        (Type::List(_) | Type::Map(_), _) | (Type::Scalar(Scalar::Bytes), Value::Null) => {}
        (ty, _) => write(number, value, ty, out),
    }
}

/// One value; a list in this place is a message of its own.
fn write(field: u32, value: &Value, ty: &Type, out: &mut Vec<u8>) {
    let text = || value.as_str().unwrap_or_default();
    match ty {
        Type::Struct(schema) => nested(field, out, |out| message(value, schema, out)),
        Type::List(list) => nested(field, out, |out| {
            for item in value.as_array().into_iter().flatten() {
                write(1, item, &list.element, out);
            }
        }),
        Type::Map(map) => nested(field, out, |out| {
            for (key, entry) in value.as_object().into_iter().flatten() {
                nested(1, out, |out| {
                    bytes(1, key.as_bytes(), out);
                    write(2, entry, &map.value, out);
                });
            }
        }),
        Type::Any(kind) => nested(field, out, |out| any(value, *kind, out)),
        Type::Scalar(scalar) => match scalar {
            Scalar::String => bytes(field, text().as_bytes(), out),
            Scalar::Bytes => bytes(field, &STANDARD.decode(text()).unwrap_or_default(), out),
            Scalar::Bool => number(field, u64::from(value.as_bool().unwrap_or_default()), out),
            Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::Uint64 => number(field, integer(value), out),
            Scalar::Float64 => double(field, value.as_f64().unwrap_or_default(), out),
            Scalar::IntOrString => nested(field, out, |out| {
                let is_text = value.is_string();
                number(1, u64::from(is_text), out);
                number(2, if is_text { 0 } else { integer(value) }, out);
                bytes(3, text().as_bytes(), out);
            }),
            Scalar::Quantity => nested(field, out, |out| {
                bytes(1, value.as_str().unwrap_or("0").as_bytes(), out);
            }),
            Scalar::Time | Scalar::MicroTime => nested(field, out, |out| {
                // The zero time is an empty message.
                if let Some(time) = value.as_str().and_then(crate::time::parse) {
                    let seconds = time.as_nanosecond().div_euclid(1_000_000_000) as i64;
                    let nanos = time.as_nanosecond().rem_euclid(1_000_000_000) as u64;
                    number(1, seconds as u64, out);
                    number(2, if *scalar == Scalar::MicroTime { nanos } else { 0 }, out);
                }
            }),
            Scalar::Duration => nested(field, out, |out| {
                number(1, crate::time::parse_duration(text()).unwrap_or_default() as u64, out);
            }),
        },
    }
}

fn integer(value: &Value) -> u64 {
    value.as_i64().map_or_else(|| value.as_u64().unwrap_or_default(), |n| n as u64)
}

fn any(value: &Value, kind: AnyKind, out: &mut Vec<u8>) {
    let props = || schema::builtin().short("apiextensions.v1.JSONSchemaProps").expect("the table has schemas");
    match (kind, value) {
        (AnyKind::SchemaOrArray, Value::Object(_)) => nested(1, out, |out| message(value, props(), out)),
        (AnyKind::SchemaOrArray, Value::Array(items)) => {
            items.iter().for_each(|item| nested(2, out, |out| message(item, props(), out)));
        }
        (AnyKind::SchemaOrBool, _) => {
            // A schema allows what it describes.
            number(1, u64::from(value.as_bool().unwrap_or(value.is_object())), out);
            if value.is_object() {
                nested(2, out, |out| message(value, props(), out));
            }
        }
        (AnyKind::SchemaOrStrings, Value::Object(_)) => nested(1, out, |out| message(value, props(), out)),
        (AnyKind::SchemaOrStrings, Value::Array(items)) => {
            items.iter().for_each(|item| bytes(2, item.as_str().unwrap_or_default().as_bytes(), out));
        }
        (_, Value::Null) => {}
        _ => nested(1, out, |out| crate::codec::json::encode_value(value, out)),
    }
}
