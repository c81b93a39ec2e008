//! Lists that are spliced of encoded objects, made while they are sent.

use super::blocks::{self, BLOCK_BYTES};
use super::{Encoder, ListMeta};
use crate::negotiate::Media;
use crate::store::Object;
use crate::store::forms::Form;
use bytes::Bytes;
use coxswain_api::codec::protobuf;
use coxswain_api::{Status, schema};
use std::sync::Arc;

/// About the size of a piece of a list.
const PIECE_BYTES: usize = 128 * 1024;

/// What the items of a list are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Items {
    Objects,
    Partial(&'static str),
}

/// A list on its way to a client.
pub struct Spliced {
    head: Vec<u8>,
    tail: &'static [u8],
    encoder: Encoder,
    items: Items,
    objects: Vec<Arc<Object>>,
    /// Of lists in protobuf: the objects' own documents.
    documents: Vec<Bytes>,
    /// How many items have been written, and whether head and tail have.
    next: usize,
    begun: bool,
    ended: bool,
}

impl Spliced {
    /// In JSON.
    pub(super) fn json(encoder: &Encoder, objects: Vec<Arc<Object>>, meta: &ListMeta, items: Items) -> Self {
        let ty = &encoder.served.ty;
        let mut head = Vec::with_capacity(256);
        let mut put = |text: &str| head.extend_from_slice(text.as_bytes());
        let (kind, version) = match items {
            Items::Objects => (&*ty.list_kind, ty.group_version.api_version()),
            Items::Partial(version) => ("PartialObjectMetadataList", version.to_owned()),
        };
        put(&format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{{"));
        put(&format!("\"resourceVersion\":\"{}\"", meta.revision));
        // Lists of custom resources always say where they go on, if only with nothing.
        let empty = (encoder.served.custom && items == Items::Objects).then_some("");
        if let Some(token) = meta.continue_token.as_deref().or(empty) {
            put(&format!(",\"continue\":\"{token}\""));
        }
        if let Some(remaining) = meta.remaining {
            put(&format!(",\"remainingItemCount\":{remaining}"));
        }
        put("},\"items\":[");
        Self::new(encoder, head, b"]}\n", items, objects, Vec::new())
    }

    /// In protobuf, as the messages of a list's envelope are nested. The items' encodings are made now, as their lengths
    /// come first.
    pub(super) fn protobuf(encoder: &Encoder, objects: Vec<Arc<Object>>, meta: &ListMeta) -> Result<Self, Status> {
        let ty = &encoder.served.ty;
        let form = encoder.form("protobuf", "object");
        let documents: Vec<Bytes> = objects.iter().map(|o| encoder.document(o, &form)).collect::<Result<_, _>>()?;
        let meta_schema = schema::builtin().short("meta.v1.ListMeta").expect("every list has one");
        let mut meta_message = Vec::new();
        protobuf::encode_message(&meta.tree(), meta_schema, &mut meta_message);
        let mut list = Vec::new();
        protobuf::encode_bytes_field(1, &meta_message, &mut list);
        let items: usize = documents.iter().map(|d| protobuf::bytes_field_len(2, message_of(d).len())).sum();
        let mut head = Vec::with_capacity(256);
        protobuf::begin_envelope(&ty.group_version.api_version(), &ty.list_kind, list.len() + items, &mut head);
        head.extend_from_slice(&list);
        Ok(Self::new(encoder, head, protobuf::ENVELOPE_END, Items::Objects, objects, documents))
    }

    fn new(
        encoder: &Encoder,
        head: Vec<u8>,
        tail: &'static [u8],
        items: Items,
        objects: Vec<Arc<Object>>,
        documents: Vec<Bytes>,
    ) -> Self {
        let encoder = encoder.clone();
        Self { head, tail, encoder, items, objects, documents, next: 0, begun: false, ended: false }
    }

    /// About how many bytes it has.
    pub fn size(&self) -> usize {
        match self.documents.is_empty() {
            true => self.objects.iter().map(|o| o.size()).sum(),
            false => self.documents.iter().map(Bytes::len).sum(),
        }
    }

    /// The whole, for small lists.
    pub fn whole(mut self) -> Bytes {
        let mut out = std::mem::take(&mut self.head);
        out.reserve(self.size() + self.tail.len());
        for i in 0..self.objects.len() {
            self.write_item(i, &mut out);
        }
        out.extend_from_slice(self.tail);
        out.into()
    }

    /// The next piece; none after the last.
    pub fn next_piece(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 8);
        if !self.begun {
            self.begun = true;
            out.append(&mut self.head);
        }
        while out.len() < PIECE_BYTES {
            if self.next == self.objects.len() {
                out.extend_from_slice(self.tail);
                self.ended = true;
                break;
            }
            self.write_item(self.next, &mut out);
            self.next += 1;
        }
        Some(out.into())
    }

    fn write_item(&self, i: usize, out: &mut Vec<u8>) {
        if let Some(document) = self.documents.get(i) {
            return protobuf::encode_bytes_field(2, message_of(document), out);
        }
        if i > 0 {
            out.push(b',');
        }
        self.encoder.write_item(&self.objects[i], self.items, out);
    }

    /// The same list, compressed.
    pub fn compressed(self) -> Compressed {
        let (media, shape) = match (self.encoder.accepted.media, self.items) {
            (Media::Protobuf, _) => ("protobuf", "item"),
            (_, Items::Objects) => ("json", "item"),
            (_, Items::Partial(_)) => ("json", "partial"),
        };
        let mut form = self.encoder.form(media, shape);
        if let Items::Partial(version) = self.items {
            form.version = format!("{} of {}", version, form.version).into();
        }
        Compressed { list: self, form, stream: blocks::Stream::default() }
    }
}

/// The message in an object's document.
fn message_of(document: &Bytes) -> &[u8] {
    protobuf::open(document).map_or(&[], |envelope| envelope.raw)
}

/// A list on its way to a client that asked for gzip: blocks of consecutive items are compressed once, and again only where
/// an item has changed.
pub struct Compressed {
    list: Spliced,
    form: Form,
    stream: blocks::Stream,
}

impl Compressed {
    /// The next piece; none after the last.
    pub fn next_piece(&mut self) -> Option<Bytes> {
        let list = &mut self.list;
        if list.ended {
            return None;
        }
        let mut out = Vec::with_capacity(BLOCK_BYTES / 8);
        if !list.begun {
            list.begun = true;
            let head = std::mem::take(&mut list.head);
            self.stream.begin(&mut out);
            self.stream.add(&blocks::Block::of(&head), &mut out);
        }
        while out.len() < PIECE_BYTES / 2 {
            if list.next == list.objects.len() {
                self.stream.add(&blocks::Block::of(list.tail), &mut out);
                self.stream.end(&mut out);
                list.ended = true;
                break;
            }
            let from = list.next;
            let until = from + blocks::length(&list.objects[from..]);
            // The first item of a JSON list has no comma before it.
            let leads = from == 0 && list.documents.is_empty();
            let block = blocks::block(&list.objects[from..until], &self.form, leads, || {
                let mut text = Vec::with_capacity(BLOCK_BYTES);
                for i in from..until {
                    list.write_item(i, &mut text);
                }
                text
            });
            self.stream.add(&block, &mut out);
            list.next = until;
        }
        Some(out.into())
    }
}
