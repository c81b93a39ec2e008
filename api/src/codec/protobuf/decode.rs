//! The wire to trees. Every length is checked against what is there; unknown fields are skipped.

use super::layout::{Layout, Slot};
use super::{DEPTH_MAX, PREFIX};
use crate::codec::canonical::{fill, left_out, zero};
use crate::codec::{DecodeError, json};
use crate::quantity::Quantity;
use crate::schema::{self, AnyKind, Field, Scalar, Struct, Type};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

type Result<T> = std::result::Result<T, DecodeError>;

fn refuse(message: impl Into<String>) -> DecodeError {
    DecodeError::Value(message.into())
}

/// Reads fields off a message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    /// The number and wire type of the next field; none at the end of the message.
    pub(super) fn tag(&mut self) -> Result<Option<(u32, u8)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = (tag >> 3) as i32;
        if number <= 0 {
            return Err(refuse(format!("proto: illegal tag {number} (wire type {})", tag & 7)));
        }
        if tag & 7 == 4 {
            return Err(refuse("proto: wiretype end group for non-group"));
        }
        Ok(Some((number as u32, (tag & 7) as u8)))
    }

    fn varint(&mut self) -> Result<u64> {
        let mut n = 0u64;
        for (i, &byte) in self.rest.iter().enumerate() {
            if i == 10 {
                return Err(refuse("proto: integer overflow"));
            }
            n |= u64::from(byte & 0x7f) << (7 * i as u32);
            if byte < 0x80 {
                self.rest = &self.rest[i + 1..];
                return Ok(n);
            }
        }
        Err(refuse("unexpected EOF"))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.varint()?;
        if length > i64::MAX as u64 {
            return Err(refuse("proto: negative length found during unmarshaling"));
        }
        self.take(length)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8]> {
        if length > self.rest.len() as u64 {
            return Err(refuse("unexpected EOF"));
        }
        let (taken, rest) = self.rest.split_at(length as usize);
        self.rest = rest;
        Ok(taken)
    }

    /// Go takes any bytes as text; a tree needs UTF-8, so that what is not is replaced.
    pub(super) fn text(&mut self) -> Result<String> {
        self.bytes().map(|b| String::from_utf8_lossy(b).into_owned())
    }

    pub(super) fn skip(&mut self, wire: u8) -> Result<()> {
        match wire {
            0 => self.varint().map(drop),
            1 => self.take(8).map(drop),
            2 => self.bytes().map(drop),
            5 => self.take(4).map(drop),
            3 => {
                // Groups nest without recursion.
                let mut open = 1;
                while open > 0 {
                    let tag = self.varint()?;
                    match tag & 7 {
                        3 => open += 1,
                        4 => open -= 1,
                        wire => self.skip(wire as u8)?,
                    }
                }
                Ok(())
            }
            _ => Err(refuse(format!("proto: illegal wireType {wire}"))),
        }
    }
}

pub(super) fn message(bytes: &[u8], schema: &Struct, depth: usize) -> Result<Value> {
    let mut map = Map::new();
    merge(&mut map, bytes, schema, schema.layout(), depth)?;
    fill(&mut map, schema);
    Ok(Value::Object(map))
}

/// Reads a message into a struct, which an earlier part of the same message may have begun.
fn merge(map: &mut Map<String, Value>, bytes: &[u8], schema: &Struct, layout: &Layout, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(refuse("proto: exceeded max depth"));
    }
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.tag()? {
        match layout.slot(number) {
            None => reader.skip(wire)?,
            Some(Slot::Embedded(inner)) => {
                expect(wire, 2, "embedded message")?;
                merge(map, reader.bytes()?, schema, inner, depth)?;
            }
            Some(Slot::Field(i)) => field(map, &mut reader, wire, &schema.fields[*i], depth)?,
        }
    }
    Ok(())
}

fn expect(wire: u8, want: u8, field: &str) -> Result<()> {
    if wire == want { Ok(()) } else { Err(refuse(format!("proto: wrong wireType = {wire} for field {field}"))) }
}

fn field(map: &mut Map<String, Value>, reader: &mut Reader, wire: u8, field: &Field, depth: usize) -> Result<()> {
    let wrapped = field.proto.is_some_and(|p| p.wrapped);
    match &field.ty {
        Type::List(list) if !wrapped => {
            let slot = map.entry(&*field.name).or_insert(Value::Null);
            if !slot.is_array() {
                *slot = Value::Array(Vec::new());
            }
            let Value::Array(items) = slot else { return Ok(()) };
            let packed = wire == 2 && matches!(&list.element, Type::Scalar(s) if wire_of(*s) == 0);
            if packed {
                let mut inner = Reader::new(reader.bytes()?);
                while !inner.rest.is_empty() {
                    items.push(value(&mut inner, 0, &list.element, &field.name, depth)?);
                }
            } else {
                items.push(value(reader, wire, &list.element, &field.name, depth)?);
            }
        }
        Type::Map(map_of) => {
            expect(wire, 2, &field.name)?;
            let (key, entry) = map_entry(reader.bytes()?, &map_of.value, &field.name, depth)?;
            let slot = map.entry(&*field.name).or_insert(Value::Null);
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            if let Value::Object(entries) = slot {
                entries.insert(key, entry);
            }
        }
        Type::Struct(schema) => {
            expect(wire, 2, &field.name)?;
            let bytes = reader.bytes()?;
            // A message that comes in several parts is one.
            let mut inner = match map.remove(&*field.name) {
                Some(Value::Object(begun)) => begun,
                _ => Map::new(),
            };
            merge(&mut inner, bytes, schema, schema.layout(), depth + 1)?;
            fill(&mut inner, schema);
            let value = Value::Object(inner);
            if !left_out(field, &value) {
                map.insert(field.name.to_string(), value);
            }
        }
        ty => {
            let value = value(reader, wire, ty, &field.name, depth)?;
            if left_out(field, &value) {
                map.remove(&*field.name);
            } else {
                map.insert(field.name.to_string(), value);
            }
        }
    }
    Ok(())
}

fn map_entry(bytes: &[u8], ty: &Type, name: &str, depth: usize) -> Result<(String, Value)> {
    let mut reader = Reader::new(bytes);
    let mut key = String::new();
    let mut entry = None;
    while let Some((number, wire)) = reader.tag()? {
        match number {
            1 => {
                expect(wire, 2, name)?;
                key = reader.text()?;
            }
            2 => entry = Some(value(&mut reader, wire, ty, name, depth)?),
            _ => reader.skip(wire)?,
        }
    }
    // An entry without a value has empty bytes, or the zero value of its type.
    let absent = || if matches!(ty, Type::Scalar(Scalar::Bytes)) { Value::from("") } else { zero(ty) };
    Ok((key, entry.unwrap_or_else(absent)))
}

fn wire_of(scalar: Scalar) -> u8 {
    match scalar {
        Scalar::Bool | Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::Uint64 => 0,
        Scalar::Float64 => 1,
        _ => 2,
    }
}

fn value(reader: &mut Reader, wire: u8, ty: &Type, name: &str, depth: usize) -> Result<Value> {
    let scalar = match ty {
        Type::Scalar(scalar) => *scalar,
        _ => {
            expect(wire, 2, name)?;
            let bytes = reader.bytes()?;
            return match ty {
                Type::Struct(schema) => message(bytes, schema, depth + 1),
                Type::List(list) => wrapped_list(bytes, &list.element, name, depth + 1),
                Type::Any(kind) => any(bytes, *kind, depth + 1),
                _ => Ok(Value::Null),
            };
        }
    };
    expect(wire, wire_of(scalar), name)?;
    Ok(match scalar {
        Scalar::Bool => Value::Bool(reader.varint()? != 0),
        Scalar::Int32 => Value::from(reader.varint()? as i32),
        Scalar::Int64 => Value::from(reader.varint()? as i64),
        Scalar::Uint32 => Value::from(reader.varint()? as u32),
        Scalar::Uint64 => Value::from(reader.varint()?),
        Scalar::Float64 => {
            let bytes: [u8; 8] = reader.take(8)?.try_into().unwrap_or_default();
            json::number_of_float(f64::from_le_bytes(bytes))
        }
        Scalar::String => Value::String(reader.text()?),
        Scalar::Bytes => Value::String(STANDARD.encode(reader.bytes()?)),
        Scalar::IntOrString => {
            let (mut is_text, mut number, mut text) = (false, 0, String::new());
            each(reader.bytes()?, |reader, field, wire| {
                match (field, wire) {
                    (1, 0) => is_text = reader.varint()? == 1,
                    (2, 0) => number = reader.varint()? as i32,
                    (3, 2) => text = reader.text()?,
                    _ => reader.skip(wire)?,
                }
                Ok(())
            })?;
            if is_text { Value::String(text) } else { Value::from(number) }
        }
        Scalar::Quantity => {
            let mut text = String::from("0");
            each(reader.bytes()?, |reader, field, wire| {
                match (field, wire) {
                    (1, 2) => text = reader.text()?,
                    _ => reader.skip(wire)?,
                }
                Ok(())
            })?;
            Value::String(Quantity::canonical(&text).map_err(|e| refuse(e.to_string()))?)
        }
        Scalar::Time | Scalar::MicroTime => {
            let bytes = reader.bytes()?;
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            let (mut seconds, mut nanos) = (0i64, 0i32);
            each(bytes, |reader, field, wire| {
                match (field, wire) {
                    (1, 0) => seconds = reader.varint()? as i64,
                    (2, 0) => nanos = reader.varint()? as i32,
                    _ => reader.skip(wire)?,
                }
                Ok(())
            })?;
            let nanos = if scalar == Scalar::MicroTime { nanos.clamp(0, 999_999_999) } else { 0 };
            let time = Timestamp::new(seconds, nanos).map_err(|_| refuse("proto: timestamp out of range"))?;
            Value::String(match scalar {
                Scalar::Time => crate::time::format_seconds(time),
                _ => crate::time::format_micros(time),
            })
        }
        Scalar::Duration => {
            let mut nanos = 0i64;
            each(reader.bytes()?, |reader, field, wire| {
                match (field, wire) {
                    (1, 0) => nanos = reader.varint()? as i64,
                    _ => reader.skip(wire)?,
                }
                Ok(())
            })?;
            Value::String(crate::time::format_duration(nanos))
        }
    })
}

fn each<'a>(bytes: &'a [u8], mut read: impl FnMut(&mut Reader<'a>, u32, u8) -> Result<()>) -> Result<()> {
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.tag()? {
        read(&mut reader, number, wire)?;
    }
    Ok(())
}

fn wrapped_list(bytes: &[u8], element: &Type, name: &str, depth: usize) -> Result<Value> {
    let mut items = Vec::new();
    each(bytes, |reader, number, wire| {
        match number {
            1 => items.push(value(reader, wire, element, name, depth)?),
            _ => reader.skip(wire)?,
        }
        Ok(())
    })?;
    Ok(Value::Array(items))
}

fn any(bytes: &[u8], kind: AnyKind, depth: usize) -> Result<Value> {
    let props = || schema::builtin().short("apiextensions.v1.JSONSchemaProps").expect("the table has schemas");
    let mut found = Value::Null;
    let mut allows = false;
    let mut items = Vec::new();
    each(bytes, |reader, number, wire| {
        match (kind, number, wire) {
            (AnyKind::SchemaOrArray | AnyKind::SchemaOrStrings, 1, 2) | (AnyKind::SchemaOrBool, 2, 2) => {
                found = message(reader.bytes()?, props(), depth)?;
            }
            (AnyKind::SchemaOrArray, 2, 2) => items.push(message(reader.bytes()?, props(), depth)?),
            (AnyKind::SchemaOrStrings, 2, 2) => items.push(Value::String(reader.text()?)),
            (AnyKind::SchemaOrBool, 1, 0) => allows = reader.varint()? != 0,
            (AnyKind::RawExtension | AnyKind::FieldsV1 | AnyKind::Json | AnyKind::Unknown, 1, 2) => {
                found = raw(reader.bytes()?, depth)?;
            }
            _ => reader.skip(wire)?,
        }
        Ok(())
    })?;
    Ok(match kind {
        AnyKind::SchemaOrBool if found.is_null() => Value::Bool(allows),
        AnyKind::SchemaOrArray | AnyKind::SchemaOrStrings if !items.is_empty() => Value::Array(items),
        _ => found,
    })
}

/// What a `RawExtension` holds: JSON, or an object in an envelope of its own.
fn raw(bytes: &[u8], depth: usize) -> Result<Value> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    if !bytes.starts_with(&PREFIX) {
        return Ok(json::decode_any(bytes)?.value);
    }
    if depth > 8 {
        return Err(refuse("proto: exceeded max depth"));
    }
    let envelope = super::open(bytes)?;
    let found = envelope.type_meta.group_version().and_then(|(group, version)| {
        let kind = &envelope.type_meta.kind;
        schema::builtin().kind(group, version, kind)
    });
    match found {
        Some(schema) => {
            let mut value = message(envelope.raw, schema, depth)?;
            if let Value::Object(map) = &mut value {
                map.insert("apiVersion".into(), envelope.type_meta.api_version.as_str().into());
                map.insert("kind".into(), envelope.type_meta.kind.as_str().into());
            }
            Ok(value)
        }
        None => Err(refuse(format!(
            "no kind {} is registered for version {}",
            crate::field::go_quote(&envelope.type_meta.kind),
            crate::field::go_quote(&envelope.type_meta.api_version)
        ))),
    }
}
