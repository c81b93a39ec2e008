//! Objects and lists in the form a client asked for (upstream: `endpoints/handlers/response.go` and `rest.go`).
//!
//! The common form, JSON of the hub version, is bytes that exist already: they are handed out or spliced together. Any other
//! form is made of the tree on demand, and kept beside the object where several clients are likely to want it.

pub(crate) mod blocks;
pub(crate) mod spliced;

use crate::negotiate::{Accepted, Media, Shape};
use crate::registry::options::Query;
use crate::registry::table;
use crate::resources::Served;
use crate::respond::{Answer, Body, answer, json_line, pretty_line};
use crate::store::Object;
use crate::store::forms::Form;
use bytes::{Bytes, BytesMut};
use coxswain_api::codec::cbor;
use coxswain_api::schema::{self, StructRef};
use coxswain_api::{Map, Status, Value, json};
use coxswain_storage::Revision;
use http::StatusCode;
use spliced::{Items, Spliced};
use std::sync::Arc;

/// Lists above this size are made while they are sent.
const STREAM_BYTES_MIN: usize = 512 * 1024;

/// `metav1.ListMeta`.
#[derive(Clone, Debug, Default)]
pub struct ListMeta {
    pub revision: Revision,
    pub continue_token: Option<String>,
    pub remaining: Option<u64>,
}

impl ListMeta {
    fn tree(&self) -> Value {
        let mut meta = Map::new();
        meta.insert("resourceVersion".into(), self.revision.to_string().into());
        if let Some(token) = &self.continue_token {
            meta.insert("continue".into(), token.clone().into());
        }
        if let Some(remaining) = self.remaining {
            meta.insert("remainingItemCount".into(), remaining.into());
        }
        Value::Object(meta)
    }
}

/// What a Table's rows carry beside their cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    Metadata,
    None,
    Object,
}

/// How the objects of one resource are written for one client.
#[derive(Clone)]
pub struct Encoder {
    pub served: Arc<Served>,
    pub accepted: Accepted,
    pub include: Include,
    pub now: jiff::Timestamp,
}

/// What upstream calls a kind inside, which some refusals print: the package of the internal type is its group.
fn internal_type(group: &str, kind: &str) -> String {
    let package = match group {
        "" | "events.k8s.io" => "core",
        group => group.split('.').next().unwrap_or_default(),
    };
    format!("*{package}.{kind}")
}

fn not_a_list(what: &str) -> Status {
    let message = format!("you requested PartialObjectMetadataList, but the requested object is not a list ({what})");
    Status::new(406, "NotAcceptable", message)
}

impl Encoder {
    pub fn new(served: Arc<Served>, accepted: Accepted, query: &Query, now: jiff::Timestamp) -> Result<Self, Status> {
        let include = match query.first("includeObject").unwrap_or_default() {
            "" | "Metadata" => Include::Metadata,
            "None" => Include::None,
            "Object" => Include::Object,
            other if matches!(accepted.shape, Shape::Table(_)) => {
                let what = coxswain_api::field::go_quote(other);
                return Err(Status::bad_request(format!(
                    "Unable to convert to Table as requested: includeObject: Invalid value: {what}: must be 'Metadata', 'Object', 'None', or empty"
                )));
            }
            _ => Include::Metadata,
        };
        Ok(Self { served, accepted, include, now })
    }

    fn schema(&self) -> &StructRef {
        &self.served.ty.schema
    }

    /// Whether the stored bytes are what the client gets.
    fn is_plain(&self) -> bool {
        self.accepted.media == Media::Json && !self.accepted.pretty && self.served.is_hub()
    }

    /// Whether a watch event is the line that [`crate::cache::Event`] keeps.
    pub fn sends_plain_lines(&self) -> bool {
        self.is_plain() && self.accepted.shape == Shape::Object
    }

    /// An object's tree in the version of this resource.
    pub fn tree(&self, object: &Object) -> Result<Value, Status> {
        self.converted(object.to_tree())
    }

    /// A hub tree in the version of this resource.
    pub fn converted(&self, hub: Value) -> Result<Value, Status> {
        crate::convert::from_hub(&self.served, hub)
    }

    /// JSON of an object in the version of this resource, without newline.
    fn json(&self, object: &Object) -> Result<Bytes, Status> {
        if self.served.is_hub() {
            return Ok(object.json_bytes());
        }
        object.form(&self.form("json", "object"), || {
            let mut out = Vec::new();
            crate::convert::write(&self.tree(object)?, self.schema(), &mut out);
            Ok(out.into())
        })
    }

    fn form(&self, media: &'static str, shape: &'static str) -> Form {
        // Group and version: events are served by two groups.
        Form { version: self.served.ty.group_version.api_version().into(), media, shape }
    }

    /// An object's whole document in protobuf.
    fn document(&self, object: &Object, form: &Form) -> Result<Bytes, Status> {
        object.form(form, || self.whole(&self.tree(object)?))
    }

    /// The answer that carries one object.
    pub fn object(&self, object: &Object, code: StatusCode) -> Result<Answer, Status> {
        Ok(answer(code, self.accepted.media.content_type(), self.object_bytes(object)?))
    }

    /// An object in the negotiated form, as a whole document.
    pub fn object_bytes(&self, object: &Object) -> Result<Bytes, Status> {
        match self.accepted.shape {
            Shape::Object if self.is_plain() => Ok(object.line()),
            Shape::Object if self.accepted.media == Media::Protobuf => {
                self.document(object, &self.form("protobuf", "object"))
            }
            Shape::Object => self.whole(&self.tree(object)?),
            Shape::Partial(version) if self.accepted.media == Media::Json && !self.accepted.pretty => {
                let mut out = self.partial(object, version);
                out.push(b'\n');
                Ok(out.into())
            }
            _ => self.tree_bytes(self.tree(object)?),
        }
    }

    /// An object that exists only as a tree, in the version of this resource.
    pub fn tree_answer(&self, tree: Value, code: StatusCode) -> Result<Answer, Status> {
        Ok(answer(code, self.accepted.media.content_type(), self.tree_bytes(tree)?))
    }

    fn tree_bytes(&self, tree: Value) -> Result<Bytes, Status> {
        match self.accepted.shape {
            Shape::Object => self.whole(&tree),
            Shape::Partial(version) => self.meta(&partial_tree(&tree, version), "PartialObjectMetadata"),
            Shape::Table(version) => {
                let version_of = tree.pointer("/metadata/resourceVersion").cloned();
                let meta = version_of.map_or_else(|| json!({}), |rv| json!({"resourceVersion": rv}));
                let rows = vec![self.row(&tree, version)?];
                self.meta(&self.table(version, meta, rows, true), "Table")
            }
            Shape::PartialList(_) => Err(not_a_list(&self.internal_type(&self.served.ty.kind))),
        }
    }

    /// A tree of this resource's kind in the negotiated media type.
    fn whole(&self, tree: &Value) -> Result<Bytes, Status> {
        crate::convert::document(tree, self.schema(), self.accepted)
    }

    /// A tree of a `meta.k8s.io` kind.
    fn meta(&self, tree: &Value, kind: &str) -> Result<Bytes, Status> {
        match self.accepted.media {
            Media::Json if self.accepted.pretty => Ok(pretty_line(tree)),
            Media::Json => Ok(json_line(tree)),
            _ => crate::convert::meta_document(tree, kind, self.accepted),
        }
    }

    /// Whether lists are spliced of bytes that exist already.
    pub fn splices(&self) -> bool {
        self.is_plain() && !matches!(self.accepted.shape, Shape::Table(_))
    }

    /// The answer that carries a list.
    pub fn list(&self, objects: Vec<Arc<Object>>, meta: &ListMeta) -> Result<Answer, Status> {
        let content_type = self.accepted.media.content_type();
        let streamable = self.accepted.media == Media::Json && !self.accepted.pretty;
        match self.accepted.shape {
            Shape::Object if streamable => Ok(self.spliced(Spliced::json(self, objects, meta, Items::Objects))),
            Shape::Object if self.accepted.media == Media::Protobuf && self.has_list_schema() => {
                Ok(self.spliced(Spliced::protobuf(self, objects, meta)?))
            }
            Shape::Partial(version) | Shape::PartialList(version) if streamable => {
                if let Shape::Partial(_) = self.accepted.shape {
                    return Err(self.not_one());
                }
                Ok(self.spliced(Spliced::json(self, objects, meta, Items::Partial(version))))
            }
            Shape::Partial(_) => Err(self.not_one()),
            Shape::Object => {
                let mut items = Vec::with_capacity(objects.len());
                for object in &objects {
                    let mut tree = self.tree(object)?;
                    if !self.served.custom
                        && let Some(map) = tree.as_object_mut()
                    {
                        map.remove("kind");
                        map.remove("apiVersion");
                    }
                    items.push(tree);
                }
                let ty = &self.served.ty;
                let tree = json!({
                    "kind": &*ty.list_kind, "apiVersion": ty.group_version.api_version(),
                    "metadata": meta.tree(), "items": items,
                });
                Ok(answer(StatusCode::OK, content_type, crate::convert::list_document(&tree, ty, self.accepted)?))
            }
            Shape::PartialList(version) => {
                let mut items = Vec::with_capacity(objects.len());
                for object in &objects {
                    items.push(partial_tree(&object.to_tree(), version));
                }
                let tree = json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": version,
                    "metadata": meta.tree(), "items": items,
                });
                Ok(answer(StatusCode::OK, content_type, self.meta(&tree, "PartialObjectMetadataList")?))
            }
            Shape::Table(version) => {
                let mut rows = Vec::with_capacity(objects.len());
                for object in &objects {
                    rows.push(self.row(&self.tree(object)?, version)?);
                }
                let tree = self.table(version, meta.tree(), rows, true);
                Ok(answer(StatusCode::OK, content_type, self.meta(&tree, "Table")?))
            }
        }
    }

    /// The answer that carries a list of objects that are stored nowhere.
    pub fn tree_list(&self, mut items: Vec<Value>) -> Result<Answer, Status> {
        let ty = &self.served.ty;
        let content_type = self.accepted.media.content_type();
        let bytes = match self.accepted.shape {
            Shape::Partial(_) => return Err(self.not_one()),
            Shape::PartialList(version) => {
                let items: Vec<Value> = items.iter().map(|tree| partial_tree(tree, version)).collect();
                let kind = "PartialObjectMetadataList";
                let tree = json!({"kind": kind, "apiVersion": version, "metadata": {}, "items": items});
                self.meta(&tree, kind)?
            }
            Shape::Table(version) => {
                let rows = items.iter().map(|tree| self.row(tree, version)).collect::<Result<Vec<_>, _>>()?;
                self.meta(&self.table(version, json!({}), rows, true), "Table")?
            }
            Shape::Object => {
                for map in items.iter_mut().filter_map(Value::as_object_mut) {
                    map.remove("kind");
                    map.remove("apiVersion");
                }
                let version = ty.group_version.api_version();
                let tree = json!({"kind": &*ty.list_kind, "apiVersion": version, "metadata": {}, "items": items});
                crate::convert::any_document(&tree, self.accepted)?
            }
        };
        Ok(answer(StatusCode::OK, content_type, bytes))
    }

    fn internal_type(&self, kind: &str) -> String {
        if self.served.custom {
            let list = if kind == &*self.served.ty.list_kind { "List" } else { "" };
            return format!("*unstructured.Unstructured{list}");
        }
        internal_type(&self.served.ty.group_version.group, kind)
    }

    fn not_one(&self) -> Status {
        let message = format!(
            "you requested PartialObjectMetadata, but the requested object is a list ({})",
            self.internal_type(&self.served.ty.list_kind)
        );
        Status::new(406, "NotAcceptable", message)
    }

    /// Whether lists of this kind have a protobuf form of their own.
    fn has_list_schema(&self) -> bool {
        let ty = &self.served.ty;
        schema::builtin().kind(&ty.group_version.group, &ty.group_version.version, &ty.list_kind).is_some()
    }

    /// At once if it is small, else while it is sent.
    fn spliced(&self, list: Spliced) -> Answer {
        let content_type = self.accepted.media.content_type();
        if list.size() < STREAM_BYTES_MIN {
            return answer(StatusCode::OK, content_type, list.whole());
        }
        let mut response = answer(StatusCode::OK, content_type, Bytes::new());
        *response.body_mut() = Body::List(Box::new(list));
        response
    }

    /// `PartialObjectMetadata` in JSON.
    fn partial(&self, object: &Object, version: &str) -> Vec<u8> {
        if *self.served.ty.kind != *DAEMON_SET {
            return partial_bytes(object.metadata_json(), version);
        }
        let mut out = Vec::new();
        crate::store::object::write_json(&partial_tree(&object.to_tree(), version), &mut out);
        out
    }

    fn write_item(&self, object: &Object, items: Items, out: &mut Vec<u8>) {
        match items {
            Items::Partial(version) => out.extend_from_slice(&self.partial(object, version)),
            Items::Objects if self.served.is_hub() && !self.served.custom => object.write_item(out),
            Items::Objects => match self.json(object) {
                Ok(json) if self.served.custom => out.extend_from_slice(&json),
                Ok(json) => crate::store::object::write_item(&json, out),
                Err(status) => tracing::error!(key = %object.key, %status, "left an object out of a list"),
            },
        }
    }

    /// A row of a table. `tree` is in the version that is served, the cells are made of the one that is stored.
    fn row(&self, tree: &Value, version: &str) -> Result<Value, Status> {
        let cells = if self.served.is_hub() || self.served.store.is_none() {
            table::cells(&self.served, tree, self.now)
        } else {
            table::cells(&self.served, &crate::convert::to_hub(&self.served, tree.clone())?, self.now)
        };
        Ok(self.row_of(cells, table::row_conditions(&self.served.ty.kind, tree), tree, version))
    }

    fn row_of(&self, cells: Vec<Value>, conditions: Option<Value>, tree: &Value, version: &str) -> Value {
        let mut row = Map::new();
        row.insert("cells".into(), Value::Array(cells));
        if let Some(conditions) = conditions {
            row.insert("conditions".into(), conditions);
        }
        match self.include {
            Include::Metadata => row.insert("object".into(), partial_tree(tree, version)),
            Include::Object => row.insert("object".into(), tree.clone()),
            Include::None => row.insert("object".into(), Value::Null),
        };
        Value::Object(row)
    }

    /// The answer that carries a tree of another kind than the resource's: a scale, a review, a `Status`.
    pub fn other_tree(&self, tree: &Value, code: StatusCode) -> Result<Answer, Status> {
        let text = |field: &str| tree.get(field).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let plain = kind == "Status";
        let bytes = match self.accepted.shape {
            Shape::Table(version) if !plain => match table::cells_of(group, kind, tree, self.now) {
                Some(cells) => {
                    let columns = table::definitions_of(group, kind).unwrap_or_default();
                    let row = self.row_of(cells, None, tree, version);
                    let meta = match tree.pointer("/metadata/resourceVersion") {
                        Some(revision) => json!({"resourceVersion": revision}),
                        None => json!({}),
                    };
                    let table = json!({
                        "kind": "Table", "apiVersion": version, "metadata": meta, "columnDefinitions": columns, "rows": [row],
                    });
                    self.meta(&table, "Table")?
                }
                None => crate::convert::any_document(tree, self.accepted)?,
            },
            Shape::Partial(version) if !plain => self.meta(&partial_tree(tree, version), "PartialObjectMetadata")?,
            Shape::PartialList(_) if !plain => return Err(not_a_list(&internal_type(group, kind))),
            _ => crate::convert::any_document(tree, self.accepted)?,
        };
        Ok(answer(code, self.accepted.media.content_type(), bytes))
    }

    fn table(&self, version: &str, meta: Value, rows: Vec<Value>, headers: bool) -> Value {
        let columns = if headers { table::definitions(&self.served) } else { Value::Null };
        json!({"kind": "Table", "apiVersion": version, "metadata": meta, "columnDefinitions": columns, "rows": rows})
    }

    /// One watch event: a line in JSON, a frame in protobuf, a document in CBOR. `first`: no event with columns has been sent yet.
    pub fn event(&self, kind: &str, object: &Object, first: bool) -> Result<Bytes, Status> {
        let json = match self.accepted.shape {
            Shape::Object if self.accepted.media == Media::Json => self.json(object)?,
            Shape::Partial(version) | Shape::PartialList(version) if self.accepted.media == Media::Json => {
                self.partial(object, version).into()
            }
            Shape::Table(version) => {
                let tree = self.tree(object)?;
                let meta = json!({"resourceVersion": object.revision.to_string()});
                let rows = vec![self.row(&tree, version)?];
                self.meta(&self.table(version, meta, rows, first), "Table")?
            }
            Shape::Object => self.object_bytes(object)?,
            Shape::Partial(version) | Shape::PartialList(version) => {
                self.meta(&partial_tree(&self.tree(object)?, version), "PartialObjectMetadata")?
            }
        };
        self.frame(kind, &json)
    }

    /// A bookmark: an object of the kind with nothing but a resourceVersion.
    pub fn bookmark(&self, revision: Revision, initial_events_end: bool, first: bool) -> Result<Bytes, Status> {
        let ty = &self.served.ty;
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let tree = json!({"kind": &*ty.kind, "apiVersion": ty.group_version.api_version(), "metadata": metadata});
        match self.accepted.shape {
            Shape::Object => {
                if self.accepted.media == Media::Json {
                    let mut out = Vec::new();
                    crate::convert::write(&tree, self.schema(), &mut out);
                    return self.frame("BOOKMARK", &out);
                }
                self.frame("BOOKMARK", &self.whole(&tree)?)
            }
            Shape::Partial(version) | Shape::PartialList(version) => {
                let document = self.meta(&partial_tree(&tree, version), "PartialObjectMetadata")?;
                self.frame("BOOKMARK", &document)
            }
            Shape::Table(version) => {
                let row = json!({"cells": [], "object": partial_tree(&tree, version)});
                let meta = json!({"resourceVersion": revision.to_string()});
                let table = self.meta(&self.table(version, meta, vec![row], first), "Table")?;
                self.frame("BOOKMARK", &table)
            }
        }
    }

    /// The event that ends a watch with a refusal.
    pub fn error_event(&self, status: &Status) -> Result<Bytes, Status> {
        let tree = serde_json::to_value(status).expect("a status has only text keys");
        match self.accepted.media {
            Media::Protobuf | Media::Cbor => {
                self.frame("ERROR", &crate::convert::meta_document(&tree, "Status", self.accepted)?)
            }
            Media::Json | Media::Yaml => {
                let mut out = Vec::new();
                crate::store::object::write_json(&tree, &mut out);
                self.frame("ERROR", &out)
            }
        }
    }

    fn frame(&self, kind: &str, object: &[u8]) -> Result<Bytes, Status> {
        match self.accepted.media {
            Media::Json => Ok(crate::cache::event::event_line(kind, object.trim_ascii_end())),
            Media::Protobuf => Ok(protobuf_frame(kind, object)),
            Media::Cbor => {
                let mut out = Vec::with_capacity(object.len() + 32);
                cbor::encode_event(kind, object, &mut out);
                Ok(out.into())
            }
            // Upstream has no framer for YAML streams.
            Media::Yaml => Err(Status::new(406, "NotAcceptable", "watch streams are not offered as application/yaml")),
        }
    }
}

/// `PartialObjectMetadata` around the bytes of a metadata.
fn partial_bytes(metadata: &[u8], version: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(metadata.len() + 96);
    out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"");
    out.extend_from_slice(version.as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    out.extend_from_slice(metadata);
    out.push(b'}');
    out
}

const DAEMON_SET: &str = "DaemonSet";

/// A field that became an annotation: upstream makes one of the other when it encodes, but not for metadata alone.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn partial_tree(tree: &Value, version: &str) -> Value {
    let mut metadata = tree.get("metadata").cloned().unwrap_or_else(|| json!({}));
    if tree.get("kind").is_some_and(|kind| kind == DAEMON_SET)
        && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
        && annotations.remove(TEMPLATE_GENERATION).is_some()
        && annotations.is_empty()
        && let Some(metadata) = metadata.as_object_mut()
    {
        metadata.remove("annotations");
    }
    json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": metadata})
}

/// A length-prefixed `WatchEvent` message: field 1 the kind, field 2 a `RawExtension` with the object's document.
fn protobuf_frame(kind: &str, object: &[u8]) -> Bytes {
    let mut raw = BytesMut::new();
    put_field(&mut raw, 1, object);
    let mut event = BytesMut::new();
    put_field(&mut event, 1, kind.as_bytes());
    put_field(&mut event, 2, &raw);
    let mut out = BytesMut::with_capacity(event.len() + 4);
    out.extend_from_slice(&u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&event);
    out.freeze()
}

fn put_field(out: &mut BytesMut, number: u8, value: &[u8]) {
    out.extend_from_slice(&[number << 3 | 2]);
    let mut length = value.len();
    while length >= 0x80 {
        out.extend_from_slice(&[(length as u8 & 0x7f) | 0x80]);
        length >>= 7;
    }
    out.extend_from_slice(&[length as u8]);
    out.extend_from_slice(value);
}
