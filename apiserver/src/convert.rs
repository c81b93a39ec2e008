//! Between the hub version of a resource, the version a client speaks, and the media type it reads.

use crate::negotiate::{Accepted, Media};
use crate::resources::Served;
use crate::respond::{json_line, pretty_line};
use bytes::Bytes;
use coxswain_api::catalogue::ResourceType;
use coxswain_api::codec::{cbor, protobuf};
use coxswain_api::schema::{self, StructRef};
use coxswain_api::{Status, Value};

/// A hub tree in the version that `served` serves.
pub fn from_hub(served: &Served, mut tree: Value) -> Result<Value, Status> {
    if !served.is_hub() {
        coxswain_api::conversion::convert(&mut tree, &served.ty.group_version);
        // A version of a definition sees what its own schema has; defaults are those of the stored version.
        if let Some(schema) = served.strategy.structural() {
            schema.prune(&mut tree).map_err(|why| Status::internal(why.to_string()))?;
        }
    }
    Ok(tree)
}

/// JSON in the order and with the omissions of upstream's encoder.
pub fn write(tree: &Value, schema: &StructRef, out: &mut Vec<u8>) {
    coxswain_api::codec::json::encode(tree, schema, out);
}

/// A tree of a known kind as a whole document.
pub fn document(tree: &Value, schema: &StructRef, accepted: Accepted) -> Result<Bytes, Status> {
    match accepted.media {
        Media::Json if accepted.pretty => pretty(tree, schema),
        Media::Json => {
            let mut out = Vec::new();
            write(tree, schema, &mut out);
            out.push(b'\n');
            Ok(out.into())
        }
        Media::Yaml => {
            let mut out = Vec::new();
            coxswain_api::codec::yaml::encode(tree, schema, &mut out);
            Ok(out.into())
        }
        Media::Protobuf => {
            let mut out = Vec::new();
            protobuf::encode(tree, schema, &mut out);
            Ok(out.into())
        }
        Media::Cbor => {
            // What JSON leaves out, CBOR leaves out.
            let mut json = Vec::new();
            write(tree, schema, &mut json);
            let tree = serde_json::from_slice(&json).map_err(|why| Status::internal(why.to_string()))?;
            let mut out = Vec::with_capacity(json.len());
            cbor::encode(&tree, schema, &mut out);
            Ok(out.into())
        }
    }
}

/// Indented, but in the order of the schema.
fn pretty(tree: &Value, schema: &StructRef) -> Result<Bytes, Status> {
    let mut compact = Vec::new();
    write(tree, schema, &mut compact);
    let mut out = Vec::with_capacity(compact.len() * 2);
    indent(&compact, &mut out);
    out.push(b'\n');
    Ok(out.into())
}

/// Two spaces a level, as Go's `json.Indent`; `{}` and `[]` stay on their line.
pub fn indent(json: &[u8], out: &mut Vec<u8>) {
    let mut depth = 0usize;
    let mut text = false;
    let mut at = 0;
    let line = |depth: usize, out: &mut Vec<u8>| {
        out.push(b'\n');
        out.resize(out.len() + 2 * depth, b' ');
    };
    while at < json.len() {
        let byte = json[at];
        if text {
            out.push(byte);
            if byte == b'\\' && at + 1 < json.len() {
                at += 1;
                out.push(json[at]);
            } else if byte == b'"' {
                text = false;
            }
        } else {
            match byte {
                b'"' => {
                    text = true;
                    out.push(byte);
                }
                b'{' | b'[' => {
                    out.push(byte);
                    if matches!(json.get(at + 1), Some(b'}' | b']')) {
                        at += 1;
                        out.push(json[at]);
                    } else {
                        depth += 1;
                        line(depth, out);
                    }
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    line(depth, out);
                    out.push(byte);
                }
                b',' => {
                    out.push(byte);
                    line(depth, out);
                }
                b':' => out.extend_from_slice(b": "),
                _ => out.push(byte),
            }
        }
        at += 1;
    }
}

/// A list of a kind, as a tree.
pub fn list_document(tree: &Value, ty: &ResourceType, accepted: Accepted) -> Result<Bytes, Status> {
    let gv = &ty.group_version;
    match schema::builtin().kind(&gv.group, &gv.version, &ty.list_kind) {
        Some(schema) => document(tree, schema, accepted),
        None => any_document(tree, accepted),
    }
}

/// A tree of a `meta.k8s.io` kind (`Table`, `PartialObjectMetadata`, `Status`).
pub fn meta_document(tree: &Value, kind: &str, accepted: Accepted) -> Result<Bytes, Status> {
    if accepted.media == Media::Protobuf {
        let schema = schema::builtin().short(&format!("meta.v1.{kind}")).ok_or_else(no_protobuf)?;
        return document(tree, schema, accepted);
    }
    any_document(tree, accepted)
}

/// A tree that says itself what it is.
pub fn any_document(tree: &Value, accepted: Accepted) -> Result<Bytes, Status> {
    match accepted.media {
        Media::Json if accepted.pretty => Ok(pretty_line(tree)),
        Media::Json => Ok(json_line(tree)),
        Media::Yaml => Ok(yaml(tree)),
        Media::Protobuf => {
            let text = |name: &str| tree.get(name).and_then(Value::as_str).unwrap_or_default();
            let (api_version, kind) = (text("apiVersion"), text("kind"));
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let known = schema::builtin().kind(group, version, kind);
            let schema = known.or_else(|| schema::builtin().short(&format!("meta.v1.{kind}")));
            document(tree, schema.ok_or_else(no_protobuf)?, accepted)
        }
        Media::Cbor => {
            let mut out = Vec::new();
            cbor::encode_any(tree, &mut out);
            Ok(out.into())
        }
    }
}

/// A tree of the version that `served` serves in the hub version.
pub fn to_hub(served: &Served, mut tree: Value) -> Result<Value, Status> {
    if let Some(store) = &served.store {
        coxswain_api::conversion::convert(&mut tree, &store.hub.group_version);
    }
    Ok(tree)
}

fn yaml(tree: &Value) -> Bytes {
    let mut out = Vec::new();
    coxswain_api::codec::yaml::encode_value(tree, &mut out);
    out.into()
}

fn no_protobuf() -> Status {
    Status::new(406, "NotAcceptable", "the object has no protobuf form")
}
