//! Decoders of API objects: what they make of any bytes comes out of every encoder and back unchanged.

use crate::source::{KINDS, Source};
use coxswain_api::codec::{Format, canonicalize, cbor, convert, decode, encode, interpret, json, protobuf, yaml};
use coxswain_api::schema::{Omit, Scalar, Struct, StructRef, Type};
use coxswain_api::{Value, defaults};

/// Kinds whose types need the most care: unions, quantities, raw JSON, recursion, times.
fn some_kind(first: u8) -> (&'static str, &'static StructRef) {
    let wanted =
        ["Pod", "CustomResourceDefinition", "Event", "ControllerRevision", "Secret", "HorizontalPodAutoscaler"];
    let kind = wanted[usize::from(first) % wanted.len()];
    let (_, kind, schema) = KINDS.iter().find(|(_, k, _)| k == kind).expect("the kinds above are built in");
    (kind, schema)
}

/// A decoded object stays what it is: decoding what was encoded of it, in any format, gives the same.
fn survives(value: &Value, schema: &StructRef, formats: &[Format]) {
    let canonical = canonical(value, schema);
    assert_eq!(self::canonical(&canonical, schema), canonical, "a canonical tree is not canonical");
    for format in formats {
        let mut bytes = Vec::new();
        encode(value, *format, schema, &mut bytes);
        let again = decode(&bytes, *format, schema).unwrap_or_else(|e| panic!("{format:?} of {value} is refused: {e}"));
        let told = alike(&without_empty_maps(value, schema));
        let got = alike(&without_empty_maps(&again.value, schema));
        assert_eq!(got, told, "{format:?}: {}", String::from_utf8_lossy(&bytes));
        assert!(again.strict_errors.is_empty(), "{format:?}: {:?}", again.strict_errors);
        let mut second = Vec::new();
        encode(&again.value, *format, schema, &mut second);
        assert_eq!(second, bytes, "{format:?} encodes one tree in two ways");
    }
}

/// Without the maps that an encoder leaves out where they are empty.
fn without_empty_maps(value: &Value, schema: &Struct) -> Value {
    fn of_type(value: &Value, ty: &Type) -> Value {
        match (ty, value) {
            (Type::Struct(schema), _) => without_empty_maps(value, schema),
            (Type::List(list), Value::Array(items)) => items.iter().map(|item| of_type(item, &list.element)).collect(),
            (Type::Map(of), Value::Object(map)) => {
                // Protobuf has no bytes that are not there.
                let is_null_bytes = |item: &Value| item.is_null() && matches!(of.value, Type::Scalar(Scalar::Bytes));
                let told = |item: &Value| if is_null_bytes(item) { "".into() } else { of_type(item, &of.value) };
                Value::Object(map.iter().map(|(key, item)| (key.clone(), told(item))).collect())
            }
            _ => value.clone(),
        }
    }
    let Value::Object(map) = value else { return value.clone() };
    let mut kept = map.clone();
    for field in schema.fields.iter() {
        let Some(inner) = kept.get_mut(&*field.name) else { continue };
        let is_empty_map = matches!(field.ty, Type::Map(_)) && inner.as_object().is_some_and(|map| map.is_empty());
        if is_empty_map && field.omit != Omit::Never {
            kept.remove(&*field.name);
        } else {
            *inner = of_type(inner, &field.ty);
        }
    }
    Value::Object(kept)
}

/// As it is read from storage: an empty list that must be there is null, since protobuf does not know the difference.
fn canonical(value: &Value, schema: &StructRef) -> Value {
    let mut canonical = value.clone();
    canonicalize(&mut canonical, schema);
    canonical
}

/// What is the same once it is written: an empty list and none, and untyped numbers, of which Go writes a whole float
/// without a fraction.
fn alike(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(alike).collect(),
        Value::Object(map) => {
            let told = map.iter().filter(|(_, v)| !v.is_null() && v.as_array().is_none_or(|items| !items.is_empty()));
            Value::Object(told.map(|(k, v)| (k.clone(), alike(v))).collect())
        }
        Value::Number(n) if n.is_f64() => {
            let mut text = Vec::new();
            json::encode_value(value, &mut text);
            json::decode_any(&text).map_or(Value::Null, |decoded| decoded.value)
        }
        other => other.clone(),
    }
}

const TEXTS: [Format; 3] = [Format::Json, Format::Yaml, Format::Cbor];

pub(crate) fn json_decode(bytes: &[u8]) {
    let _ = json::interpret(bytes);
    let (_, schema) = some_kind(bytes.len() as u8);
    if let Ok(decoded) = json::decode(bytes, schema) {
        survives(&decoded.value, schema, &TEXTS);
    }
    if let Ok(decoded) = json::decode_any(bytes) {
        let mut text = Vec::new();
        json::encode_value(&decoded.value, &mut text);
        let again = json::decode_any(&text).expect("our own JSON is read back").value;
        assert_eq!(alike(&again), alike(&decoded.value));
        // Whatever is JSON to us is JSON to others, but for numbers that are not finite and lone surrogates.
        assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok());
    }
}

pub(crate) fn yaml_decode(bytes: &[u8]) {
    let _ = yaml::interpret(bytes);
    let (_, schema) = some_kind(bytes.len() as u8);
    if let Ok(decoded) = yaml::decode(bytes, schema) {
        survives(&decoded.value, schema, &TEXTS);
    }
    if let Ok(decoded) = yaml::decode_any(bytes) {
        let mut text = Vec::new();
        yaml::encode_value(&decoded.value, &mut text);
        let again = yaml::decode_any(&text).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&text)));
        assert_eq!(alike(&again.value), alike(&decoded.value), "{}", String::from_utf8_lossy(&text));
    }
}

pub(crate) fn cbor_decode(bytes: &[u8]) {
    let _ = cbor::interpret(bytes);
    let _ = cbor::decode_any(bytes);
    let (_, schema) = some_kind(bytes.len() as u8);
    if let Ok(decoded) = cbor::decode(bytes, schema) {
        survives(&decoded.value, schema, &TEXTS);
    }
}

pub(crate) fn protobuf_decode(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    if let Ok(envelope) = protobuf::open(bytes)
        && let Some((group, version)) = envelope.type_meta.group_version()
        && let Some(schema) = coxswain_api::schema::builtin().kind(group, version, &envelope.type_meta.kind)
    {
        let _ = protobuf::decode(&envelope, schema);
    }
    let (_, schema) = some_kind(*first);
    if let Ok(mut value) = protobuf::decode_message(bytes, schema) {
        let mut wire = Vec::new();
        protobuf::encode_message(&value, schema, &mut wire);
        let again = protobuf::decode_message(&wire, schema).unwrap_or_else(|e| panic!("{e}: of {value}"));
        assert_eq!(again, value);
        // A canonical tree says more than the wire only where Go's decoder does, too.
        canonicalize(&mut value, schema);
        let mut second = Vec::new();
        protobuf::encode_message(&value, schema, &mut second);
        assert_eq!(protobuf::decode_message(&second, schema).expect("what was encoded is read back"), value);
    }
}

/// An object of any kind survives every encoding, and defaults change nothing the second time.
pub(crate) fn every_encoding(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let (api_version, kind, schema) = source.kind();
    let tree = source.object(api_version, kind, schema);
    let Ok(decoded) = json::decode_tree(&tree, schema) else { return };
    let mut value = decoded.value;
    survives(&value, schema, &TEXTS);
    let has_protobuf = schema.fields.iter().any(|f| f.proto.is_some());
    if has_protobuf {
        survives(&canonical(&value, schema), schema, &[Format::Protobuf]);
    }
    defaults::apply(&mut value, schema);
    let once = value.clone();
    defaults::apply(&mut value, schema);
    assert_eq!(value, once, "defaults change something the second time");
    let mut text = Vec::new();
    json::encode(&value, schema, &mut text);
    assert!(interpret(&text, Format::Json).is_ok());
    let _ = convert(&text, Format::Yaml);
}
