//! Any encoding in, any out: what `coxswain convert` does to an object of a built-in kind.

use super::{DecodeError, Decoded, Format, TypeMeta, cbor, json, protobuf, yaml};
use crate::schema::{self, StructRef};
use serde_json::Value;

/// The encoding that bytes look like.
pub fn detect(bytes: &[u8]) -> Format {
    if bytes.starts_with(&protobuf::PREFIX) {
        Format::Protobuf
    } else if bytes.starts_with(&cbor::PREFIX) {
        Format::Cbor
    } else if json::looks_like_json(bytes) {
        Format::Json
    } else {
        Format::Yaml
    }
}

/// The kind and version that bytes of this format name.
pub fn interpret(bytes: &[u8], format: Format) -> Result<TypeMeta, DecodeError> {
    match format {
        Format::Json => json::interpret(bytes),
        Format::Yaml => yaml::interpret(bytes),
        Format::Cbor => cbor::interpret(bytes),
        Format::Protobuf => protobuf::open(bytes).map(|envelope| envelope.type_meta),
    }
}

/// Decodes an object of a known type into its canonical tree.
pub fn decode(bytes: &[u8], format: Format, schema: &StructRef) -> Result<Decoded, DecodeError> {
    match format {
        Format::Json => json::decode(bytes, schema),
        Format::Yaml => yaml::decode(bytes, schema),
        Format::Cbor => cbor::decode(bytes, schema),
        Format::Protobuf => protobuf::decode(&protobuf::open(bytes)?, schema),
    }
}

/// Appends an object; JSON without a line feed at its end.
pub fn encode(value: &Value, format: Format, schema: &StructRef, out: &mut Vec<u8>) {
    match format {
        Format::Json => json::encode(value, schema, out),
        Format::Yaml => yaml::encode(value, schema, out),
        Format::Cbor => cbor::encode(value, schema, out),
        Format::Protobuf => protobuf::encode(value, schema, out),
    }
}

/// Converts an object of a built-in kind. The bytes end as files do: text with a line feed.
pub fn convert(bytes: &[u8], to: Format) -> Result<Vec<u8>, DecodeError> {
    let from = detect(bytes);
    let type_meta = interpret(bytes, from)?;
    let refuse = || {
        let TypeMeta { api_version, kind } = &type_meta;
        DecodeError::Value(format!(
            "no kind {} is registered for version {}",
            crate::field::go_quote(kind),
            crate::field::go_quote(api_version)
        ))
    };
    let (group, version) = type_meta.group_version().ok_or_else(refuse)?;
    let schema = schema::builtin().kind(group, version, &type_meta.kind).ok_or_else(refuse)?;
    let decoded = decode(bytes, from, schema)?;
    let mut out = Vec::with_capacity(bytes.len());
    encode(&decoded.value, to, schema, &mut out);
    if to == Format::Json {
        out.push(b'\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_survives_every_encoding() {
        let text = br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data":{"k":"1"}}"#;
        for via in [Format::Json, Format::Yaml, Format::Protobuf, Format::Cbor] {
            let there = convert(text, via).unwrap();
            assert_eq!(detect(&there), via);
            assert_eq!(convert(&there, Format::Json).unwrap().trim_ascii_end(), text);
        }
        assert!(convert(b"kind: Nothing\napiVersion: v1\n", Format::Json).is_err());
    }
}
