//! Typed decoding: the schema walks along with the bytes.

use super::parser::Parser;
use crate::codec::canonical::{fill, left_out, zero};
use crate::codec::{DecodeError, Decoded, gotime};
use crate::quantity::Quantity;
use crate::schema::{self, AnyKind, Field, Scalar, Struct, StructRef, Type};
use base64::Engine;
use serde_json::{Map, Number, Value};
use std::borrow::Cow;

/// Whether nothing is left of a value that says no more than its absence would.
fn forgotten(field: &Field, value: &Value) -> bool {
    left_out(field, value) && !(field.keeps_empty && (value.is_array() || value.is_object()))
}

type Result<T> = std::result::Result<T, DecodeError>;

/// How many complaints are kept, as upstream does.
const STRICT_ERRORS_MAX: usize = 100;

/// A step of the path to the value at hand.
enum Step<'a> {
    /// A field of a struct, whose Go type is named in messages.
    Field(&'a Field, &'a Struct),
    Key(Cow<'a, str>),
    Index(usize),
}

/// What strict decoding complains of, without repetition.
#[derive(Default)]
pub(super) struct StrictErrors {
    errors: Vec<String>,
    path: Vec<String>,
}

impl StrictErrors {
    pub(super) fn finish(self) -> Vec<String> {
        self.errors
    }

    fn add(&mut self, error: String) {
        if self.errors.len() < STRICT_ERRORS_MAX && !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }
}

struct Decoder<'a> {
    path: Vec<Step<'a>>,
    strict: StrictErrors,
    /// The first value of a wrong type: Go goes on after it.
    mistyped: Option<DecodeError>,
    /// The first value that its own decoder refused: Go stops there, but only after the syntax of everything was checked.
    refused: Option<DecodeError>,
}

pub(super) fn decode(bytes: &[u8], schema: &StructRef) -> Result<Decoded> {
    if schema.name.is_empty() {
        return super::decode_any(bytes);
    }
    let mut decoder =
        Decoder { path: Vec::with_capacity(16), strict: StrictErrors::default(), mistyped: None, refused: None };
    let mut parser = Parser::new(bytes);
    let value = parser.document(|p| match p.peek_value()? {
        b'{' => decoder.object(p, schema).map(Value::Object),
        _ => {
            let what = p.skip_value()?;
            let go_type = go_type(&short_name(schema));
            decoder.mistyped =
                Some(DecodeError::Value(format!("json: cannot unmarshal {what} into Go value of type {go_type}")));
            Ok(Value::Null)
        }
    })?;
    match decoder.refused.or(decoder.mistyped) {
        Some(error) => Err(error),
        None => Ok(Decoded { value, strict_errors: decoder.strict.finish() }),
    }
}

/// `io.k8s.api.core.v1.Pod` as `core.v1.Pod`.
fn short_name(schema: &Struct) -> String {
    let mut parts = schema.name.rsplitn(4, '.');
    let (name, version, group) = (parts.next(), parts.next(), parts.next());
    format!("{}.{}.{}", group.unwrap_or_default(), version.unwrap_or_default(), name.unwrap_or_default())
}

/// A type of the schema table as Go prints it: `[]core.v1.Container` is `[]v1.Container`.
fn go_type(name: &str) -> String {
    let name = name.trim_start_matches('*');
    if let Some(element) = name.strip_prefix("[]") {
        return format!("[]{}", go_type_inner(element));
    }
    go_type_inner(name)
}

fn go_type_inner(name: &str) -> String {
    if let Some(rest) = name.strip_prefix('*') {
        return format!("*{}", go_type_inner(rest));
    }
    if let Some(rest) = name.strip_prefix("[]") {
        return format!("[]{}", go_type_inner(rest));
    }
    if let Some(rest) = name.strip_prefix("map[") {
        let (key, value) = rest.split_once(']').unwrap_or((rest, ""));
        return format!("map[{}]{}", go_type_inner(key), go_type_inner(value));
    }
    match name {
        "bytes" => "[]uint8".into(),
        "Quantity" => "resource.Quantity".into(),
        "IntOrString" => "intstr.IntOrString".into(),
        "Time" | "MicroTime" | "Duration" | "FieldsV1" | "JSON" => format!("v1.{name}"),
        "RawExtension" => "runtime.RawExtension".into(),
        _ => match name.rsplitn(3, '.').collect::<Vec<_>>()[..] {
            [base, version, _] => format!("{version}.{base}"),
            _ => name.to_owned(),
        },
    }
}

/// The type of the elements of a list or map, following named types.
fn element_type(name: &'static str) -> &'static str {
    let name = name.trim_start_matches('*');
    if let Some(element) = name.strip_prefix("[]") {
        return element;
    }
    if let Some(rest) = name.strip_prefix("map[") {
        return rest.split_once(']').map_or("", |(_, value)| value);
    }
    schema::builtin().named(name).map_or("", |named| element_type(named.underlying))
}

impl<'a> Decoder<'a> {
    fn object(&mut self, p: &mut Parser<'a>, schema: &'a Struct) -> Result<Map<String, Value>> {
        let mut map = Map::new();
        let mut seen = Seen::default();
        p.object(|p, key| {
            let Some(i) = schema.position(&key) else {
                let path = self.strict_path(&key);
                self.strict.add(format!("unknown field {}", crate::field::go_quote(&path)));
                return p.skip_value().map(drop);
            };
            let field = &schema.fields[i];
            let again = seen.insert(i);
            if again {
                let path = self.strict_path(&key);
                self.strict.add(format!("duplicate field {}", crate::field::go_quote(&path)));
            }
            self.path.push(Step::Field(field, schema));
            let value = if field.pointer && p.peek_value()? == b'n' {
                p.literal("null")?;
                Value::Null
            } else {
                self.value(p, &field.ty, field.type_name)?
            };
            self.path.pop();
            if again {
                // Go decodes into what is there already.
                let old = map.remove(&*field.name);
                let value = over(old, value);
                if !forgotten(field, &value) {
                    map.insert(key.into_owned(), value);
                }
            } else if !forgotten(field, &value) {
                map.insert(key.into_owned(), value);
            }
            Ok(())
        })?;
        fill(&mut map, schema);
        Ok(map)
    }

    fn value(&mut self, p: &mut Parser<'a>, ty: &'a Type, type_name: &'static str) -> Result<Value> {
        let first = p.peek_value()?;
        match ty {
            Type::Scalar(scalar) => self.scalar(p, *scalar, type_name, first),
            _ if first == b'n' => {
                p.literal("null")?;
                Ok(zero(ty))
            }
            Type::Struct(schema) => match first {
                b'{' => self.object(p, schema).map(Value::Object),
                _ => self.mistyped(p, ty, type_name),
            },
            Type::List(list) => {
                if first != b'[' {
                    return self.mistyped(p, ty, type_name);
                }
                let element_name = element_type(type_name);
                let mut items = Vec::new();
                p.array(|p, i| {
                    self.path.push(Step::Index(i));
                    items.push(self.value(p, &list.element, element_name)?);
                    self.path.pop();
                    Ok(())
                })?;
                Ok(Value::Array(items))
            }
            Type::Map(map_of) => {
                if first != b'{' {
                    return self.mistyped(p, ty, type_name);
                }
                let element_name = element_type(type_name);
                let mut map = Map::new();
                p.object(|p, key| {
                    if map.contains_key(&*key) {
                        let path = self.strict_path(&key);
                        self.strict.add(format!("duplicate field {}", crate::field::go_quote(&path)));
                    }
                    self.path.push(Step::Key(key));
                    let value = self.value(p, &map_of.value, element_name)?;
                    if let Some(Step::Key(key)) = self.path.pop() {
                        map.insert(key.into_owned(), value);
                    }
                    Ok(())
                })?;
                Ok(Value::Object(map))
            }
            Type::Any(kind) => self.any_kind(p, *kind, first),
        }
    }

    fn scalar(&mut self, p: &mut Parser<'a>, scalar: Scalar, type_name: &'static str, first: u8) -> Result<Value> {
        match (scalar, first) {
            (_, b'n') => {
                p.literal("null")?;
                Ok(zero(&Type::Scalar(scalar)))
            }
            (Scalar::String, b'"') => Ok(Value::String(p.string()?.into_owned())),
            (Scalar::Bool, b't') => {
                p.literal("true")?;
                Ok(Value::Bool(true))
            }
            (Scalar::Bool, b'f') => {
                p.literal("false")?;
                Ok(Value::Bool(false))
            }
            (Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::Uint64, b'-' | b'0'..=b'9') => {
                let text = p.number()?;
                match integer(scalar, text) {
                    Some(number) => Ok(Value::Number(number)),
                    None => Ok(self.mistyped_as(&format!("number {text}"), type_name)),
                }
            }
            (Scalar::Float64, b'-' | b'0'..=b'9') => {
                let text = p.number()?;
                match text.parse::<f64>().ok().filter(|f| f.is_finite()) {
                    Some(f) => Ok(super::write::number_of_float(f)),
                    None => Ok(self.mistyped_as(&format!("number {text}"), type_name)),
                }
            }
            (Scalar::Bytes, b'"') => {
                let text = p.string()?;
                match canonical_base64(&text) {
                    Ok(canonical) => Ok(Value::String(canonical)),
                    Err(at) => {
                        let error = DecodeError::Value(format!("illegal base64 data at input byte {at}"));
                        self.mistyped.get_or_insert(error);
                        Ok(Value::Null)
                    }
                }
            }
            (Scalar::IntOrString, b'"') => Ok(Value::String(p.string()?.into_owned())),
            (Scalar::IntOrString, b'-' | b'0'..=b'9') => {
                let text = p.number()?;
                match integer(Scalar::Int32, text) {
                    Some(number) => Ok(Value::Number(number)),
                    None => {
                        let what = format!("number {text}");
                        Ok(self.refused_type(&what, "int32"))
                    }
                }
            }
            (Scalar::IntOrString, _) => {
                let what = p.skip_value()?;
                Ok(self.refused_type(what, "int32"))
            }
            (Scalar::Quantity, b'"') => {
                let text = p.string()?;
                Ok(self.refuse(Quantity::canonical(&text).map(Value::String).map_err(|e| e.to_string())))
            }
            (Scalar::Quantity, b'-' | b'0'..=b'9') => {
                let text = p.number()?;
                Ok(self.refuse(Quantity::canonical(text).map(Value::String).map_err(|e| e.to_string())))
            }
            (Scalar::Quantity, _) => {
                p.skip_value()?;
                // Whatever it is, upstream tries to read its text as a quantity.
                Ok(self.refuse(Quantity::canonical("{").map(Value::String).map_err(|e| e.to_string())))
            }
            (Scalar::Time, b'"') => {
                let text = p.string()?;
                Ok(self.refuse(gotime::canonical_time(&text).map(|t| t.map_or(Value::Null, Value::String))))
            }
            (Scalar::MicroTime, b'"') => {
                let text = p.string()?;
                Ok(self.refuse(gotime::canonical_micro_time(&text).map(|t| t.map_or(Value::Null, Value::String))))
            }
            (Scalar::Duration, b'"') => {
                let text = p.string()?;
                let parsed = crate::time::parse_duration(&text)
                    .map(|nanos| Value::String(crate::time::format_duration(nanos)))
                    .ok_or_else(|| format!("time: invalid duration {}", crate::field::go_quote(&text)));
                Ok(self.refuse(parsed))
            }
            (Scalar::Time | Scalar::MicroTime | Scalar::Duration, _) => {
                let what = p.skip_value()?;
                Ok(self.refused_type(what, "string"))
            }
            _ => {
                let what = p.skip_value()?;
                Ok(self.mistyped_as(what, type_name))
            }
        }
    }

    fn any_kind(&mut self, p: &mut Parser<'a>, kind: AnyKind, first: u8) -> Result<Value> {
        let props = || schema::builtin().short("apiextensions.v1.JSONSchemaProps").expect("the table has schemas");
        match (kind, first) {
            (AnyKind::SchemaOrArray | AnyKind::SchemaOrBool | AnyKind::SchemaOrStrings, b'{') => {
                // Upstream decodes these on their own: what is unknown in them is pruned without a word.
                let strict = std::mem::take(&mut self.strict);
                let path = std::mem::take(&mut self.path);
                let value = self.object(p, props());
                (self.strict, self.path) = (strict, path);
                value.map(Value::Object)
            }
            (AnyKind::SchemaOrArray, b'[') => {
                let strict = std::mem::take(&mut self.strict);
                let path = std::mem::take(&mut self.path);
                let mut items = Vec::new();
                let read = p.array(|p, _| {
                    items.push(match p.peek_value()? {
                        b'{' => Value::Object(self.object(p, props())?),
                        _ => {
                            let what = p.skip_value()?;
                            self.mistyped_as(what, "apiextensions.v1.JSONSchemaProps")
                        }
                    });
                    Ok(())
                });
                (self.strict, self.path) = (strict, path);
                read?;
                Ok(Value::Array(items))
            }
            (AnyKind::SchemaOrArray, _) => {
                p.skip_value()?;
                Ok(Value::Null)
            }
            (AnyKind::SchemaOrBool, b't' | b'f') => any(p, &mut StrictErrors::default()),
            (AnyKind::SchemaOrBool, _) => {
                p.skip_value()?;
                Ok(self.refuse(Err("boolean or JSON schema expected".into())))
            }
            (AnyKind::SchemaOrStrings, b'[') => {
                const STRINGS: Type = Type::Scalar(Scalar::String);
                let mut items = Vec::new();
                p.array(|p, _| {
                    let first = p.peek_value()?;
                    let Type::Scalar(scalar) = STRINGS else { return Ok(()) };
                    items.push(self.scalar(p, scalar, "string", first)?);
                    Ok(())
                })?;
                Ok(Value::Array(items))
            }
            (AnyKind::SchemaOrStrings, _) => {
                p.skip_value()?;
                Ok(Value::Null)
            }
            _ => any(p, &mut StrictErrors::default()),
        }
    }

    /// Skips a value of the wrong type.
    fn mistyped(&mut self, p: &mut Parser<'a>, ty: &Type, type_name: &'static str) -> Result<Value> {
        let what = p.skip_value()?;
        self.mistyped_as(what, type_name);
        Ok(zero(ty))
    }

    fn mistyped_as(&mut self, what: &str, type_name: &str) -> Value {
        if self.mistyped.is_none() {
            // A number is shown only where a number was wanted.
            self.mistyped = Some(self.type_error(what, &go_type(type_name)));
        }
        Value::Null
    }

    /// A value that its own decoder refuses because of its type.
    fn refused_type(&mut self, what: &str, go_type: &str) -> Value {
        if self.refused.is_none() {
            self.refused = Some(self.type_error(what, go_type));
        }
        Value::Null
    }

    fn refuse(&mut self, result: std::result::Result<Value, String>) -> Value {
        result.unwrap_or_else(|error| {
            self.refused.get_or_insert(DecodeError::Value(error));
            Value::Null
        })
    }

    fn type_error(&self, what: &str, go_type: &str) -> DecodeError {
        let mut field = String::new();
        let mut owner = "";
        for step in &self.path {
            if let Step::Field(f, schema) = step {
                if !field.is_empty() {
                    field.push('.');
                }
                field.push_str(&f.name);
                owner = schema.type_name();
            }
        }
        DecodeError::Value(if field.is_empty() {
            format!("json: cannot unmarshal {what} into Go value of type {go_type}")
        } else {
            format!("json: cannot unmarshal {what} into Go struct field {owner}.{field} of type {go_type}")
        })
    }

    /// The path of a member as strict errors name it.
    fn strict_path(&self, last: &str) -> String {
        let mut out = String::new();
        let name = |out: &mut String, text: &str| {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(text);
        };
        for step in &self.path {
            match step {
                Step::Field(field, _) => name(&mut out, &field.name),
                Step::Key(key) => name(&mut out, key),
                Step::Index(i) => out.push_str(&format!("[{i}]")),
            }
        }
        name(&mut out, last);
        out
    }
}

/// The fields of a struct that have been seen.
#[derive(Default)]
struct Seen {
    first: u128,
    rest: Vec<usize>,
}

impl Seen {
    /// Whether the field was there already.
    fn insert(&mut self, i: usize) -> bool {
        if i < 128 {
            let again = self.first >> i & 1 == 1;
            self.first |= 1 << i;
            return again;
        }
        let again = self.rest.contains(&i);
        if !again {
            self.rest.push(i);
        }
        again
    }
}

/// What decoding a second value into a first one leaves.
fn over(old: Option<Value>, new: Value) -> Value {
    match (old, new) {
        (Some(Value::Object(mut old)), Value::Object(new)) => {
            for (key, value) in new {
                let value = over(old.remove(&key), value);
                old.insert(key, value);
            }
            Value::Object(old)
        }
        (_, new) => new,
    }
}

fn integer(scalar: Scalar, text: &str) -> Option<Number> {
    match scalar {
        Scalar::Int32 => text.parse::<i32>().ok().map(Number::from),
        Scalar::Uint32 => text.parse::<u32>().ok().map(Number::from),
        Scalar::Uint64 => text.parse::<u64>().ok().map(Number::from),
        _ => text.parse::<i64>().ok().map(Number::from),
    }
}

/// Base64 as Go's decoder takes it, line breaks included, and its encoder writes it; or where it is wrong.
fn canonical_base64(text: &str) -> std::result::Result<String, usize> {
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
    );
    let clean: Cow<str> =
        if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], "").into() } else { Cow::Borrowed(text) };
    match LENIENT.decode(clean.as_bytes()) {
        Ok(bytes) => Ok(LENIENT.encode(bytes)),
        Err(_) => Err(corrupt_base64(text.as_bytes())),
    }
}

/// Where Go's base64 decoder finds the first fault (upstream: `CorruptInputError`).
fn corrupt_base64(text: &[u8]) -> usize {
    let at: Vec<usize> = (0..text.len()).filter(|&i| !matches!(text[i], b'\n' | b'\r')).collect();
    let is_digit = |c: u8| c.is_ascii_alphanumeric() || c == b'+' || c == b'/';
    for (group, four) in at.chunks(4).enumerate() {
        for (j, &i) in four.iter().enumerate() {
            if is_digit(text[i]) {
                continue;
            }
            if text[i] != b'=' || j < 2 {
                return i;
            }
            // Padding: the rest of this group must be padding, and nothing may follow.
            if j == 2 {
                match four.get(3) {
                    None => return text.len(),
                    Some(&k) if text[k] != b'=' => return k,
                    Some(_) => {}
                }
            }
            return at.get((group + 1) * 4).copied().unwrap_or(text.len());
        }
        if four.len() < 4 {
            return four.first().copied().unwrap_or(text.len());
        }
    }
    text.len()
}

/// Any JSON, as it is. Duplicate members are reported; the last one counts.
pub(super) fn any(p: &mut Parser<'_>, strict: &mut StrictErrors) -> Result<Value> {
    Ok(match p.peek_value()? {
        b'"' => Value::String(p.string()?.into_owned()),
        b't' => {
            p.literal("true")?;
            Value::Bool(true)
        }
        b'f' => {
            p.literal("false")?;
            Value::Bool(false)
        }
        b'n' => {
            p.literal("null")?;
            Value::Null
        }
        b'{' => {
            let mut map = Map::new();
            p.object(|p, key| {
                if map.contains_key(&*key) {
                    let at: String = strict.path.concat();
                    let path = if at.is_empty() { key.to_string() } else { format!("{at}.{key}") };
                    strict.add(format!("duplicate field {}", crate::field::go_quote(&path)));
                }
                let step = if strict.path.is_empty() { key.to_string() } else { format!(".{key}") };
                strict.path.push(step);
                let value = any(p, strict)?;
                strict.path.pop();
                map.insert(key.into_owned(), value);
                Ok(())
            })?;
            Value::Object(map)
        }
        b'[' => {
            let mut items = Vec::new();
            p.array(|p, i| {
                strict.path.push(format!("[{i}]"));
                items.push(any(p, strict)?);
                strict.path.pop();
                Ok(())
            })?;
            Value::Array(items)
        }
        _ => {
            let text = p.number()?;
            match (text.parse::<i64>(), text.parse::<u64>()) {
                (Ok(n), _) => Value::from(n),
                (_, Ok(n)) => Value::from(n),
                _ => match text.parse::<f64>().ok().and_then(Number::from_f64) {
                    Some(n) => Value::Number(n),
                    None => {
                        let message = format!("json: cannot unmarshal number {text} into Go value of type float64");
                        return Err(DecodeError::Value(message));
                    }
                },
            }
        }
    })
}
