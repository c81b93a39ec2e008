//! Protobuf (upstream: `apimachinery/pkg/runtime/serializer/protobuf` and the generated `Marshal` and `Unmarshal`).
//!
//! The schema's field numbers drive a codec between the wire and the tree. An object travels in an envelope: the four
//! bytes `k8s\0` and a `runtime.Unknown` that names apiVersion and kind. Custom resources have no protobuf form.

mod decode;
mod encode;
mod layout;

use super::{DecodeError, Decoded, TypeMeta};
use crate::schema::StructRef;
use decode::Reader;
use serde_json::Value;

pub(crate) use layout::Layout;

/// What every enveloped object begins with.
pub const PREFIX: [u8; 4] = *b"k8s\0";

/// How deep messages may nest: only schemas of custom resources nest without end by themselves.
const DEPTH_MAX: usize = 256;

/// An opened envelope.
#[derive(Debug)]
pub struct Envelope<'a> {
    pub type_meta: TypeMeta,
    /// The object's message.
    pub raw: &'a [u8],
}

/// Opens the envelope, so that the kind is known before the object is decoded.
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, DecodeError> {
    let refuse = |message: &str| Err(DecodeError::Syntax(message.into()));
    if bytes.is_empty() {
        return refuse("empty data");
    }
    let Some(body) = bytes.strip_prefix(&PREFIX) else {
        return refuse("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]");
    };
    if body.is_empty() {
        return refuse("empty body");
    }
    let mut envelope = Envelope { type_meta: TypeMeta::default(), raw: &[] };
    let mut reader = Reader::new(body);
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 2) => {
                let mut inner = Reader::new(reader.bytes()?);
                while let Some((number, wire)) = inner.tag()? {
                    match (number, wire) {
                        (1, 2) => envelope.type_meta.api_version = inner.text()?,
                        (2, 2) => envelope.type_meta.kind = inner.text()?,
                        _ => inner.skip(wire)?,
                    }
                }
            }
            (2, 2) => envelope.raw = reader.bytes()?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(envelope)
}

/// Decodes an opened object into its canonical tree, with the apiVersion and kind of the envelope. Protobuf has no strict
/// errors: unknown fields are skipped.
pub fn decode(envelope: &Envelope<'_>, schema: &StructRef) -> Result<Decoded, DecodeError> {
    let mut value = decode_message(envelope.raw, schema)?;
    if let Value::Object(map) = &mut value {
        let TypeMeta { api_version, kind } = &envelope.type_meta;
        for (name, text) in [("apiVersion", api_version), ("kind", kind)] {
            if !text.is_empty() && schema.field(name).is_some_and(|f| f.proto.is_none()) {
                map.insert(name.into(), text.as_str().into());
            }
        }
    }
    Ok(Decoded { value, strict_errors: Vec::new() })
}

/// Decodes a bare message, such as the parts of a watch frame.
pub fn decode_message(bytes: &[u8], schema: &StructRef) -> Result<Value, DecodeError> {
    decode::message(bytes, schema, 0)
}

/// Appends an enveloped object. Its apiVersion and kind are taken from the tree.
pub fn encode(value: &Value, schema: &StructRef, out: &mut Vec<u8>) {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    encode_envelope(text("apiVersion"), text("kind"), out, |out| encode::message(value, schema, out));
}

/// Appends an envelope around a message that `write` appends: lists and watch events are spliced of encoded parts.
pub fn encode_envelope(api_version: &str, kind: &str, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&PREFIX);
    encode::nested(1, out, |out| {
        encode::bytes(1, api_version.as_bytes(), out);
        encode::bytes(2, kind.as_bytes(), out);
    });
    encode::nested(2, out, write);
    encode::bytes(3, b"", out);
    encode::bytes(4, b"", out);
}

/// What an envelope has after its message: no content encoding, no content type.
pub const ENVELOPE_END: &[u8] = &[3 << 3 | 2, 0, 4 << 3 | 2, 0];

/// Appends the beginning of an envelope whose message, of so many bytes, is still to come. [`ENVELOPE_END`] follows it.
pub fn begin_envelope(api_version: &str, kind: &str, message_len: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&PREFIX);
    encode::nested(1, out, |out| {
        encode::bytes(1, api_version.as_bytes(), out);
        encode::bytes(2, kind.as_bytes(), out);
    });
    out.push(2 << 3 | 2);
    encode::varint(message_len as u64, out);
}

/// How many bytes [`encode_bytes_field`] appends for so many.
pub fn bytes_field_len(number: u32, len: usize) -> usize {
    encode::varint_len(u64::from(number) << 3) + encode::varint_len(len as u64) + len
}

/// Appends the bare message of an object, without apiVersion and kind.
pub fn encode_message(value: &Value, schema: &StructRef, out: &mut Vec<u8>) {
    encode::message(value, schema, out);
}

/// Appends one field of bytes, such as an item of a list (field 2) whose message is encoded already.
pub fn encode_bytes_field(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode::bytes(number, bytes, out);
}

/// Appends a field that is a message, which `write` appends.
pub(crate) fn encode_nested_field(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    encode::nested(number, out, write);
}

/// Appends a field that is a number or a truth value.
pub(crate) fn encode_varint_field(number: u32, n: u64, out: &mut Vec<u8>) {
    encode::number(number, n, out);
}

/// Appends a field that is a float.
pub(crate) fn encode_double_field(number: u32, f: f64, out: &mut Vec<u8>) {
    encode::double(number, f, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;
    use serde_json::json;

    fn round_trip(kind: &str, value: Value) -> Vec<u8> {
        let schema = builtin().short(kind).unwrap();
        let mut bytes = Vec::new();
        encode(&value, schema, &mut bytes);
        let envelope = open(&bytes).unwrap();
        assert_eq!(decode(&envelope, schema).unwrap().value, value);
        bytes
    }

    #[test]
    fn zero_values_are_written_and_nil_pointers_are_not() {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "data": {"k": "AQI="}});
        let bytes = round_trip("core.v1.Secret", secret);
        // The metadata writes its empty texts, its zero generation and an empty creationTimestamp.
        let meta = b"\x0a\x01a\x12\0\x1a\0\x22\0\x2a\0\x32\0\x38\0\x42\0";
        let data = b"\x12\x07\x0a\x01k\x12\x02\x01\x02";
        let mut want = b"k8s\0\x0a\x0c\x0a\x02v1\x12\x06Secret\x12\x1e\x0a\x11".to_vec();
        want.extend_from_slice(meta);
        want.extend_from_slice(data);
        want.extend_from_slice(b"\x1a\0\x1a\0\x22\0");
        assert_eq!(bytes, want);
    }

    #[test]
    fn embedded_messages_and_special_types_survive() {
        round_trip(
            "core.v1.Pod",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"creationTimestamp": "2001-02-03T04:05:06Z"}, "spec": {
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "w"}],
                "containers": [{"name": "c", "livenessProbe": {"httpGet": {"port": "http", "path": "/"}},
                    "resources": {"limits": {"cpu": "500m"}}}], "hostUsers": false}, "status": {}}),
        );
        round_trip(
            "apiextensions.v1.CustomResourceValidation",
            json!({"openAPIV3Schema": {"type": "object", "maximum": 1.5, "properties": {
                "a": {"items": {"type": "string", "default": {"x": [1]}}, "additionalProperties": true},
                "b": {"additionalProperties": false}}}}),
        );
    }

    #[test]
    fn hostile_bytes_are_refused_without_panic() {
        let schema = builtin().short("core.v1.Pod").unwrap();
        for bytes in [&b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"[..], b"\x0b", b"\x0a\x05a", b"\x00", b"\xff"] {
            assert!(decode_message(bytes, schema).is_err());
        }
        assert!(open(b"k8s").unwrap_err().to_string().ends_with("expected prefix [107 56 115 0]"));
        assert_eq!(open(b"").unwrap_err().to_string(), "empty data");
    }
}
