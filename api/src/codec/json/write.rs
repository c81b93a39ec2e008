//! Writing JSON as Go's encoder does: fields in the order of the schema, maps sorted, HTML escaped.

use crate::codec::canonical::{left_out, zero_of_field};
use crate::schema::{Struct, Type};
use serde_json::{Number, Value};

/// Appends an object as upstream writes it, without the line feed that upstream ends a document with. The tree need not be
/// canonical. Objects of custom resources are written with all members sorted, as upstream writes them.
pub fn encode(value: &Value, schema: &Struct, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) if !schema.name.is_empty() => {
            out.push(b'{');
            let mut first = true;
            let mut always = schema.always().iter().copied().peekable();
            for (i, field) in schema.fields.iter().enumerate() {
                let always_there = always.next_if(|&a| usize::from(a) == i).is_some();
                match map.get(&*field.name) {
                    Some(value) if !left_out(field, value) => {
                        name(&field.name, &mut first, out);
                        if value.is_null() && !field.pointer {
                            encode_type(&zero_of_field(field), &field.ty, out);
                        } else {
                            encode_type(value, &field.ty, out);
                        }
                    }
                    None if always_there => {
                        name(&field.name, &mut first, out);
                        encode_type(&zero_of_field(field), &field.ty, out);
                    }
                    _ => {}
                }
            }
            if schema.preserve_unknown {
                for (key, value) in map.iter().filter(|(key, _)| schema.position(key).is_none()) {
                    name(key, &mut first, out);
                    encode_value(value, out);
                }
            }
            out.push(b'}');
        }
        _ => encode_value(value, out),
    }
}

fn name(name: &str, first: &mut bool, out: &mut Vec<u8>) {
    if !std::mem::take(first) {
        out.push(b',');
    }
    write_string(name, out);
    out.push(b':');
}

fn encode_type(value: &Value, ty: &Type, out: &mut Vec<u8>) {
    match (ty, value) {
        (Type::Struct(schema), _) => encode(value, schema, out),
        (Type::List(list), Value::Array(items)) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                encode_type(item, &list.element, out);
            }
            out.push(b']');
        }
        (Type::Map(map), Value::Object(entries)) => {
            out.push(b'{');
            let mut first = true;
            for (key, entry) in entries {
                name(key, &mut first, out);
                encode_type(entry, &map.value, out);
            }
            out.push(b'}');
        }
        _ => encode_value(value, out),
    }
}

/// Appends any JSON, members sorted.
pub fn encode_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(n) => write_number(n, out),
        Value::String(s) => write_string(s, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                encode_value(item, out);
            }
            out.push(b']');
        }
        Value::Object(map) => {
            out.push(b'{');
            let mut first = true;
            for (key, value) in map {
                name(key, &mut first, out);
                encode_value(value, out);
            }
            out.push(b'}');
        }
    }
}

fn write_number(n: &Number, out: &mut Vec<u8>) {
    use std::io::Write;
    // Writing to a vector cannot fail.
    let _ = match (n.as_i64(), n.as_u64(), n.as_f64()) {
        (Some(i), _, _) => write!(out, "{i}"),
        (_, Some(u), _) => write!(out, "{u}"),
        (_, _, Some(f)) => write!(out, "{}", go_float(f)),
        _ => Ok(()),
    };
}

/// A float as Go's JSON encoder writes it: plain digits between 1e-6 and 1e21, an exponent beyond.
pub(crate) fn go_float(f: f64) -> String {
    let abs = f.abs();
    if f == 0.0 {
        return if f.is_sign_negative() { "-0".into() } else { "0".into() };
    }
    if (1e-6..1e21).contains(&abs) {
        return format!("{f}");
    }
    let text = format!("{f:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.strip_prefix('-') {
        // Go writes at least two digits, then removes the zero of a negative exponent.
        Some(exponent) => format!("{digits}e-{exponent}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

/// A float as a number of the tree: whole numbers are integers, as they print.
pub(crate) fn number_of_float(f: f64) -> Value {
    if f.fract() == 0.0 && f.abs() < 9.0e15 {
        return Value::from(f as i64);
    }
    Number::from_f64(f).map_or(Value::Null, Value::Number)
}

/// Appends a string in quotes.
pub fn write_string(s: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let bytes = s.as_bytes();
    let mut start = 0;
    let mut i = 0;
    while i < bytes.len() {
        let c = bytes[i];
        if PLAIN[c as usize] {
            i += 1;
            continue;
        }
        // U+2028 and U+2029 break JavaScript; Go escapes them.
        if c == 0xe2 && !(bytes.get(i + 1) == Some(&0x80) && matches!(bytes.get(i + 2), Some(0xa8 | 0xa9))) {
            i += 1;
            continue;
        }
        out.extend_from_slice(&bytes[start..i]);
        match c {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x8 => out.extend_from_slice(b"\\b"),
            0xc => out.extend_from_slice(b"\\f"),
            0xe2 => {
                out.extend_from_slice(if bytes[i + 2] == 0xa8 { b"\\u2028" } else { b"\\u2029" });
                i += 2;
            }
            _ => out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[(c >> 4) as usize], HEX[(c & 15) as usize]]),
        }
        i += 1;
        start = i;
    }
    out.extend_from_slice(&bytes[start..]);
    out.push(b'"');
}

/// Bytes that need no escape; 0xe2 may begin one that does.
static PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut c = 0;
    while c < 0x20 {
        plain[c] = false;
        c += 1;
    }
    plain[b'"' as usize] = false;
    plain[b'\\' as usize] = false;
    plain[b'<' as usize] = false;
    plain[b'>' as usize] = false;
    plain[b'&' as usize] = false;
    plain[0xe2] = false;
    plain
};
