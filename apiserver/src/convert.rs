//! Between the hub version of a resource, the version a client speaks, and the media type it reads.

use crate::negotiate::{Accepted, Media};
use crate::resources::Served;
use crate::respond::{json_line, pretty_line};
use bytes::Bytes;
use coxswain_api::catalogue::ResourceType;
use coxswain_api::schema::StructRef;
use coxswain_api::{Status, Value};

/// A hub tree in the version that `served` serves.
pub fn from_hub(served: &Served, mut tree: Value) -> Result<Value, Status> {
    if !served.is_hub()
        && let Some(map) = tree.as_object_mut()
    {
        map.insert("apiVersion".into(), served.ty.group_version.api_version().into());
    }
    Ok(tree)
}

/// JSON in the order and with the omissions of upstream's encoder.
pub fn write(tree: &Value, schema: &StructRef, out: &mut Vec<u8>) {
    let _ = schema;
    crate::store::object::write_json(tree, out);
}

/// A tree of a known kind as a whole document.
pub fn document(tree: &Value, schema: &StructRef, accepted: Accepted) -> Result<Bytes, Status> {
    match accepted.media {
        Media::Json if accepted.pretty => Ok(pretty_line(tree)),
        Media::Json => {
            let mut out = Vec::new();
            write(tree, schema, &mut out);
            out.push(b'\n');
            Ok(out.into())
        }
        Media::Yaml => yaml(tree),
        Media::Protobuf => Err(no_protobuf()),
    }
}

/// A list of a kind, as a tree.
pub fn list_document(tree: &Value, ty: &ResourceType, accepted: Accepted) -> Result<Bytes, Status> {
    let _ = ty;
    match accepted.media {
        Media::Json if accepted.pretty => Ok(pretty_line(tree)),
        Media::Json => Ok(json_line(tree)),
        Media::Yaml => yaml(tree),
        Media::Protobuf => Err(no_protobuf()),
    }
}

/// A tree of a `meta.k8s.io` kind (`Table`, `PartialObjectMetadata`, `Status`).
pub fn meta_document(tree: &Value, kind: &str, accepted: Accepted) -> Result<Bytes, Status> {
    let _ = kind;
    match accepted.media {
        Media::Json if accepted.pretty => Ok(pretty_line(tree)),
        Media::Json => Ok(json_line(tree)),
        Media::Yaml => yaml(tree),
        Media::Protobuf => Err(no_protobuf()),
    }
}

fn yaml(tree: &Value) -> Result<Bytes, Status> {
    serde_yaml_ng::to_string(tree).map(Into::into).map_err(Status::internal)
}

fn no_protobuf() -> Status {
    Status::new(406, "NotAcceptable", "the object has no protobuf form")
}
