//! CBOR (upstream: `apimachinery/pkg/runtime/serializer/cbor`, on RFC 8949).
//!
//! Documents begin with the self-describing tag. Encoding is deterministic: keys sorted by their encoding, numbers in their
//! shortest form, texts as byte strings as upstream writes them, binary data under tag 22. Decoding goes by way of JSON's
//! decoder, so that both agree on what fits a field.

use super::json::{self, DEPTH_MAX};
use super::{DecodeError, Decoded, TypeMeta};
use crate::schema::{Scalar, Struct, StructRef, Type};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

/// Tag 55799, which says that what follows is CBOR.
pub const PREFIX: [u8; 3] = [0xd9, 0xd9, 0xf7];

type Result<T> = std::result::Result<T, DecodeError>;

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(DecodeError::Syntax(message.into()))
}

/// Decodes an object of a known type into its canonical tree.
pub fn decode(bytes: &[u8], schema: &StructRef) -> Result<Decoded> {
    json::decode_tree(&decode_any(bytes)?, schema)
}

/// The kind and version that the bytes name.
pub fn interpret(bytes: &[u8]) -> Result<TypeMeta> {
    let value = decode_any(bytes)?;
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(TypeMeta { api_version: text("apiVersion"), kind: text("kind") })
}

/// Decodes one document as it is.
pub fn decode_any(bytes: &[u8]) -> Result<Value> {
    let mut reader = Reader { rest: bytes };
    let value = reader.value(0, false)?;
    if !reader.rest.is_empty() {
        return refuse(format!(
            "cbor: {} bytes of extraneous data starting at index {}",
            reader.rest.len(),
            bytes.len() - reader.rest.len()
        ));
    }
    Ok(value)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        if n > self.rest.len() as u64 {
            return refuse("unexpected EOF");
        }
        let (taken, rest) = self.rest.split_at(n as usize);
        self.rest = rest;
        Ok(taken)
    }

    /// The major type, the additional information and, unless that says "indefinite", the argument.
    fn head(&mut self) -> Result<(u8, u8, u64)> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 0x1f);
        let argument = match info {
            0..=23 => u64::from(info),
            24..=27 => self.take(1 << (info - 24))?.iter().fold(0, |n, &b| n << 8 | u64::from(b)),
            31 if (2..=5).contains(&major) => 0,
            _ => return refuse(format!("cbor: invalid additional information {info} for type {major}")),
        };
        Ok((major, info, argument))
    }

    fn at_break(&mut self) -> bool {
        let found = self.rest.first() == Some(&0xff);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    /// The content of a string, whose parts are joined.
    fn string(&mut self, major: u8, info: u8, length: u64) -> Result<Vec<u8>> {
        if info != 31 {
            return Ok(self.take(length)?.to_vec());
        }
        let mut out = Vec::new();
        while !self.at_break() {
            let (part, info, length) = self.head()?;
            if part != major || info == 31 {
                return refuse("cbor: wrong element type in an indefinite-length string");
            }
            out.extend_from_slice(self.take(length)?);
        }
        Ok(out)
    }

    fn value(&mut self, depth: usize, later_base64: bool) -> Result<Value> {
        if depth > DEPTH_MAX {
            return refuse("cbor: exceeded max nested level");
        }
        let (major, info, argument) = self.head()?;
        Ok(match major {
            0 => match i64::try_from(argument) {
                Ok(n) => Value::from(n),
                Err(_) => {
                    return refuse(format!(
                        "cbor: cannot unmarshal positive integer {argument} into Go value of type int64"
                    ));
                }
            },
            1 => match i64::try_from(argument) {
                Ok(n) => Value::from(-1 - n),
                Err(_) => return refuse("cbor: cannot unmarshal negative integer into Go value of type int64"),
            },
            2 | 3 => {
                let bytes = self.string(major, info, argument)?;
                if later_base64 && major == 2 {
                    return Ok(Value::String(STANDARD.encode(bytes)));
                }
                match String::from_utf8(bytes) {
                    Ok(text) => Value::String(text),
                    Err(_) if major == 3 => return refuse("cbor: invalid UTF-8 string"),
                    Err(error) => Value::String(String::from_utf8_lossy(error.as_bytes()).into_owned()),
                }
            }
            4 => {
                // The count is not trusted with memory: every element takes a byte at least.
                let mut items = Vec::new();
                let mut left = argument;
                while if info == 31 { !self.at_break() } else { left > 0 } {
                    items.push(self.value(depth + 1, false)?);
                    left = left.saturating_sub(1);
                }
                Value::Array(items)
            }
            5 => {
                let mut map = Map::new();
                let mut left = argument;
                while if info == 31 { !self.at_break() } else { left > 0 } {
                    let Value::String(key) = self.value(depth + 1, false)? else {
                        return refuse("cbor: map keys must be strings");
                    };
                    let value = self.value(depth + 1, false)?;
                    if map.contains_key(&key) {
                        return refuse(format!("cbor: found duplicate map key {key:?}"));
                    }
                    map.insert(key, value);
                    left = left.saturating_sub(1);
                }
                Value::Object(map)
            }
            6 => match argument {
                2 | 3 => return refuse("cbor: bignums are not accepted"),
                21 => return refuse("cbor: base64url is not accepted"),
                22 => self.value(depth + 1, true)?,
                _ => self.value(depth + 1, later_base64)?,
            },
            _ => match info {
                20 => Value::Bool(false),
                21 => Value::Bool(true),
                22 => Value::Null,
                25 => float(half(argument as u16))?,
                26 => float(f64::from(f32::from_bits(argument as u32)))?,
                27 => float(f64::from_bits(argument))?,
                _ => return refuse(format!("cbor: simple value {argument} is not accepted")),
            },
        })
    }
}

fn float(f: f64) -> Result<Value> {
    match Number::from_f64(f) {
        Some(n) => Ok(Value::Number(n)),
        None => refuse("cbor: floating-point NaN or infinity is not accepted"),
    }
}

/// IEEE 754 half precision.
fn half(bits: u16) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (mantissa + 1024.0) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// Appends a document. The tree is best canonical: fields are written as they are.
pub fn encode(value: &Value, schema: &StructRef, out: &mut Vec<u8>) {
    out.extend_from_slice(&PREFIX);
    write_struct(value, schema, out);
}

/// Appends a document of no known type.
pub fn encode_any(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(&PREFIX);
    write(value, out);
}

/// Appends a watch event around the document of its object.
pub fn encode_event(kind: &str, object: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&PREFIX);
    head(5, 2, out);
    text("type", out);
    text(kind, out);
    text("object", out);
    out.extend_from_slice(object);
}

fn head(major: u8, n: u64, out: &mut Vec<u8>) {
    let major = major << 5;
    match n {
        0..=23 => out.push(major | n as u8),
        24..=0xff => out.extend_from_slice(&[major | 24, n as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&(n as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&n.to_be_bytes());
        }
    }
}

fn text(s: &str, out: &mut Vec<u8>) {
    head(2, s.len() as u64, out);
    out.extend_from_slice(s.as_bytes());
}

/// Keys in the order of their encodings: shorter ones first.
fn sorted(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| key.len());
    entries
}

fn write_struct(value: &Value, schema: &Struct, out: &mut Vec<u8>) {
    let Value::Object(map) = value else { return write(value, out) };
    head(5, map.len() as u64, out);
    for (key, value) in sorted(map) {
        text(key, out);
        match schema.field(key) {
            Some(field) => write_typed(value, &field.ty, out),
            None => write(value, out),
        }
    }
}

fn write_typed(value: &Value, ty: &Type, out: &mut Vec<u8>) {
    match (ty, value) {
        (Type::Struct(schema), _) => write_struct(value, schema, out),
        (Type::List(list), Value::Array(items)) => {
            head(4, items.len() as u64, out);
            items.iter().for_each(|item| write_typed(item, &list.element, out));
        }
        (Type::Map(map_of), Value::Object(map)) => {
            head(5, map.len() as u64, out);
            for (key, value) in sorted(map) {
                text(key, out);
                write_typed(value, &map_of.value, out);
            }
        }
        (Type::Scalar(Scalar::Bytes), Value::String(encoded)) => match STANDARD.decode(encoded) {
            Ok(bytes) => {
                head(6, 22, out);
                head(2, bytes.len() as u64, out);
                out.extend_from_slice(&bytes);
            }
            Err(_) => write(value, out),
        },
        _ => write(value, out),
    }
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(0xf6),
        Value::Bool(b) => out.push(if *b { 0xf5 } else { 0xf4 }),
        Value::String(s) => text(s, out),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) if n < 0 => head(1, !n as u64, out),
            (_, Some(n)) => head(0, n, out),
            _ => write_float(n.as_f64().unwrap_or_default(), out),
        },
        Value::Array(items) => {
            head(4, items.len() as u64, out);
            items.iter().for_each(|item| write(item, out));
        }
        Value::Object(map) => {
            head(5, map.len() as u64, out);
            for (key, value) in sorted(map) {
                text(key, out);
                write(value, out);
            }
        }
    }
}

/// The narrowest width that keeps the value.
fn write_float(f: f64, out: &mut Vec<u8>) {
    if let Some(bits) = as_half(f) {
        out.push(0xf9);
        out.extend_from_slice(&bits.to_be_bytes());
    } else if f64::from(f as f32) == f {
        out.push(0xfa);
        out.extend_from_slice(&(f as f32).to_be_bytes());
    } else {
        out.push(0xfb);
        out.extend_from_slice(&f.to_be_bytes());
    }
}

fn as_half(f: f64) -> Option<u16> {
    let bits = f.to_bits();
    let sign = ((bits >> 63) as u16) << 15;
    if f == 0.0 {
        return Some(sign);
    }
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1023;
    let mantissa = bits & 0xf_ffff_ffff_ffff;
    if (-14..=15).contains(&exponent) && mantissa.trailing_zeros() >= 42 {
        return Some(sign | ((exponent + 15) as u16) << 10 | (mantissa >> 42) as u16);
    }
    let tiny = f.abs() * 2f64.powi(24);
    (tiny.fract() == 0.0 && tiny < 1024.0).then_some(sign | tiny as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_are_deterministic_and_survive() {
        let schema = crate::schema::builtin().short("core.v1.Secret").unwrap();
        let value =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "data": {"kk": "AQI=", "k": ""}});
        let mut bytes = Vec::new();
        encode(&value, schema, &mut bytes);
        // Keys by length, then by content; data under tag 22.
        let want = [
            b"\xd9\xd9\xf7\xa4\x44data\xa2\x41k\xd6\x40\x42kk\xd6\x42\x01\x02".as_slice(),
            b"\x44kind\x46Secret\x48metadata\xa1\x44name\x41a\x4aapiVersion\x42v1",
        ];
        assert_eq!(bytes, want.concat());
        assert_eq!(decode(&bytes, schema).unwrap().value, value);
    }

    #[test]
    fn numbers_take_their_shortest_form() {
        for (value, want) in [
            (json!(1.5), b"\xf9\x3e\x00".as_slice()),
            (json!(100_000.5), b"\xfa\x47\xc3\x50\x40"),
            (json!(1.1), b"\xfb\x3f\xf1\x99\x99\x99\x99\x99\x9a"),
            (json!(-500), b"\x39\x01\xf3"),
            (json!(5.960464477539063e-8), b"\xf9\x00\x01"),
        ] {
            let mut out = Vec::new();
            write(&value, &mut out);
            assert_eq!(out, want);
            assert_eq!(decode_any(&out).unwrap(), value);
        }
    }

    #[test]
    fn hostile_bytes_are_refused() {
        for bytes in
            [&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff][..], &[0x81; 100_000], b"\xa1\x01\x01", b"\xff"]
        {
            assert!(decode_any(bytes).is_err());
        }
    }
}
