//! One version of one object: its bytes, and the few facts that selectors and indexes need.

use super::forms::{Form, Forms};
use super::recent::RecentTrees;
use crate::registry::resource::Resource;
use bytes::Bytes;
use coxswain_api::Value;
use coxswain_api::schema::StructRef;
use coxswain_storage::Revision;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// An immutable version of an object, shared by the cache, lists, watches and answers.
pub struct Object {
    pub key: Arc<str>,
    pub revision: Revision,
    /// Length of the resource's key prefix, so that namespace and name are parts of the key.
    prefix: u32,
    /// JSON of the hub version with its resourceVersion, closed by a newline as answers are.
    line: Bytes,
    facts: Arc<Facts>,
    /// The store has it in another form than it would be written in now.
    pub(super) stale: bool,
    /// The tree, as long as somebody reads it.
    tree: Mutex<Weak<Value>>,
    /// Other encodings, made on first demand.
    forms: Forms,
    /// No other object of this process has it.
    id: u64,
}

/// What selectors and indexes need to know of an object without reading it.
pub struct Facts {
    /// Sorted by key.
    labels: Box<[(Box<str>, Box<str>)]>,
    /// The selectable fields that are not empty.
    fields: Box<[(&'static str, Box<str>)]>,
}

impl Facts {
    pub fn of(tree: &Value, strategy: &dyn Resource) -> Self {
        let mut labels: Vec<(Box<str>, Box<str>)> = tree
            .get("metadata")
            .and_then(|m| m.get("labels"))
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(k, v)| Some((k.as_str().into(), v.as_str()?.into())))
            .collect();
        labels.sort_unstable();
        let fields = strategy
            .selectable_fields(tree)
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(label, value)| (label, value.into_boxed_str()))
            .collect();
        Self { labels: labels.into(), fields }
    }
}

impl Object {
    /// `stored` are the bytes without a resourceVersion, `facts` are those of the tree that they say.
    pub fn new(key: Arc<str>, prefix: usize, revision: Revision, stored: &[u8], facts: Arc<Facts>) -> Self {
        Self {
            key,
            revision,
            prefix: prefix as u32,
            line: splice(stored, revision),
            facts,
            stale: false,
            tree: Mutex::new(Weak::new()),
            forms: Forms::default(),
            id: next_id(),
        }
    }

    pub(super) fn into_stale(mut self) -> Self {
        self.stale = true;
        self
    }

    /// The same state at another revision: what a deletion reports.
    pub fn at(&self, revision: Revision) -> Object {
        Object {
            key: self.key.clone(),
            revision,
            prefix: self.prefix,
            line: respliced(&self.line, revision),
            facts: self.facts.clone(),
            stale: self.stale,
            tree: Mutex::new(Weak::new()),
            forms: Forms::default(),
            id: next_id(),
        }
    }

    /// JSON of the hub version, with its resourceVersion.
    pub fn json(&self) -> &[u8] {
        &self.line[..self.line.len() - 1]
    }

    /// As [`Object::json`], shared.
    pub fn json_bytes(&self) -> Bytes {
        self.line.slice(..self.line.len() - 1)
    }

    /// As [`Object::json`], closed by a newline.
    pub fn line(&self) -> Bytes {
        self.line.clone()
    }

    /// The `metadata` with its braces.
    pub fn metadata_json(&self) -> &[u8] {
        let json = self.json();
        metadata_open(json).and_then(|open| Some(&json[open..skip_value(json, open)?])).unwrap_or(b"{}")
    }

    /// The object as an item of a list: without its kind, which the list names.
    pub fn write_item(&self, out: &mut Vec<u8>) {
        write_item(self.json(), out);
    }

    /// Empty for cluster-wide objects.
    pub fn namespace(&self) -> &str {
        let path = &self.key[self.prefix as usize..];
        path.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        let path = &self.key[self.prefix as usize..];
        path.split_once('/').map_or(path, |(_, name)| name)
    }

    /// Key and value, sorted by key.
    pub fn labels(&self) -> &[(Box<str>, Box<str>)] {
        &self.facts.labels
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        let labels = self.labels();
        labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|i| &*labels[i].1)
    }

    /// The value of a selectable field, `""` if it has none.
    pub fn field(&self, label: &str) -> &str {
        match label {
            "metadata.name" => self.name(),
            "metadata.namespace" => self.namespace(),
            _ => self.facts.fields.iter().find(|(l, _)| *l == label).map_or("", |(_, v)| v),
        }
    }

    /// The hub tree with its resourceVersion; parsed now, and shared by all who read it at the same time.
    pub fn tree(&self) -> Arc<Value> {
        let mut slot = self.tree.lock();
        if let Some(tree) = slot.upgrade() {
            return tree;
        }
        let tree = Arc::new(self.parse());
        *slot = Arc::downgrade(&tree);
        tree
    }

    /// Takes the tree that the object was made of, so that the next reader need not parse it.
    pub(super) fn remember(&self, mut tree: Value, recent: &RecentTrees) {
        crate::registry::metadata::set(&mut tree, "resourceVersion", self.revision.to_string());
        debug_assert_eq!(tree, self.parse(), "what is written of {} is not what is read", self.key);
        let tree = Arc::new(tree);
        *self.tree.lock() = Arc::downgrade(&tree);
        recent.keep(tree, self.line.len());
    }

    /// The hub tree with its resourceVersion, for a caller that goes on to change it.
    pub fn to_tree(&self) -> Value {
        let kept = self.tree.lock().upgrade();
        kept.map_or_else(|| self.parse(), Arc::unwrap_or_clone)
    }

    fn parse(&self) -> Value {
        coxswain_api::codec::json::read_back(&self.line)
            .expect("the bytes of an object were made by an encoder or parsed before")
    }

    /// Another encoding, made by `make` where it is not kept.
    pub fn form<E>(&self, form: &Form, make: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        if let Some(bytes) = self.forms.get(form) {
            return Ok(bytes);
        }
        let bytes = make()?;
        self.forms.put(form, &bytes);
        Ok(bytes)
    }

    /// Tells this version of this object from everything else that this process has seen.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How many bytes it holds on to, for bounds.
    pub fn size(&self) -> usize {
        self.line.len() + 256
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Object({} at {})", self.key, self.revision)
    }
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Writes a tree with `kind`, `apiVersion` and `metadata` first, as upstream's encoder orders them.
pub fn write_json(tree: &Value, out: &mut Vec<u8>) {
    const LEADING: [&str; 3] = ["kind", "apiVersion", "metadata"];
    let Some(map) = tree.as_object() else {
        return serde_json::to_writer(out, tree).expect("writing to memory does not fail");
    };
    let leading = LEADING.iter().filter_map(|k| Some((*k, map.get(*k)?)));
    let others = map.iter().filter(|(k, _)| !LEADING.contains(&k.as_str())).map(|(k, v)| (k.as_str(), v));
    out.push(b'{');
    for (i, (key, value)) in leading.chain(others).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, key).expect("writing to memory does not fail");
        out.push(b':');
        serde_json::to_writer(&mut *out, value).expect("writing to memory does not fail");
    }
    out.push(b'}');
}

/// Writes an encoded object without the `kind` and `apiVersion` it begins with.
pub fn write_item(json: &[u8], out: &mut Vec<u8>) {
    out.push(b'{');
    let mut at = 1;
    while let Some(key_end) = skip_value(json, at).filter(|_| json.get(at) == Some(&b'"')) {
        if !matches!(&json[at..key_end], b"\"kind\"" | b"\"apiVersion\"") {
            break;
        }
        let Some(end) = skip_value(json, key_end + 1) else { break };
        at = if json.get(end) == Some(&b',') { end + 1 } else { end };
    }
    out.extend_from_slice(&json[at..]);
}

/// The stored form: JSON of the hub version without `metadata.resourceVersion`.
pub fn stored_bytes(object: &Value, schema: &StructRef) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    crate::convert::write(object, schema, &mut out);
    if let Some(span) = version_span(&out) {
        out.drain(span);
    }
    out.into()
}

/// The bytes with the resourceVersion in its place and a newline at the end.
fn splice(stored: &[u8], revision: Revision) -> Bytes {
    let mut out = Vec::with_capacity(stored.len() + 40);
    match version_slot(stored) {
        Some(slot) => {
            out.extend_from_slice(&stored[..slot.at]);
            if slot.comma_before {
                out.push(b',');
            }
            out.extend_from_slice(b"\"resourceVersion\":\"");
            out.extend_from_slice(revision.0.to_string().as_bytes());
            out.push(b'"');
            if slot.comma_after {
                out.push(b',');
            }
            out.extend_from_slice(&stored[slot.at..]);
        }
        None => out.extend_from_slice(stored),
    }
    out.push(b'\n');
    out.into()
}

fn respliced(line: &[u8], revision: Revision) -> Bytes {
    let mut stored = line[..line.len() - 1].to_vec();
    if let Some(span) = version_span(&stored) {
        stored.drain(span);
    }
    splice(&stored, revision)
}

struct Slot {
    at: usize,
    comma_before: bool,
    comma_after: bool,
}

/// Where the resourceVersion goes: after `uid` in the order of built-in kinds, in its alphabetical place where keys are
/// sorted (custom resources).
fn version_slot(json: &[u8]) -> Option<Slot> {
    let open = metadata_open(json)?;
    let mut at = open + 1;
    let mut first = true;
    let mut sorted = false;
    loop {
        if json.get(at) == Some(&b'}') {
            return Some(Slot { at, comma_before: !first, comma_after: false });
        }
        let key_at = if first { at } else { at + 1 };
        let key_end = skip_value(json, key_at)?;
        let key = &json[key_at + 1..key_end - 1];
        let leading = matches!(key, b"name" | b"generateName" | b"namespace" | b"selfLink" | b"uid");
        if first {
            sorted = !leading;
        }
        let before = if sorted { key < b"resourceVersion".as_slice() } else { leading };
        if !before {
            return Some(Slot { at: key_at, comma_before: false, comma_after: true });
        }
        at = skip_value(json, key_end + 1)?;
        first = false;
    }
}

/// The resourceVersion member of the metadata with one of its commas.
fn version_span(json: &[u8]) -> Option<std::ops::Range<usize>> {
    let open = metadata_open(json)?;
    let mut at = open + 1;
    while json.get(at) == Some(&b'"') {
        let key_end = skip_value(json, at)?;
        let end = skip_value(json, key_end + 1)?;
        if &json[at..key_end] == b"\"resourceVersion\"" {
            return Some(match (json.get(end), json[at - 1]) {
                (Some(b','), _) => at..end + 1,
                (_, b',') => at - 1..end,
                _ => at..end,
            });
        }
        if json.get(end) != Some(&b',') {
            return None;
        }
        at = end + 1;
    }
    None
}

/// The position of the `{` of the top-level `metadata`. The JSON is our own encoder's: no space between tokens.
fn metadata_open(json: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        let key_end = skip_value(json, at)?;
        let value = key_end + 1;
        if &json[at..key_end] == b"\"metadata\"" {
            return (json.get(value) == Some(&b'{')).then_some(value);
        }
        let end = skip_value(json, value)?;
        if json.get(end) != Some(&b',') {
            return None;
        }
        at = end + 1;
    }
}

/// The position after the value that begins at `at`.
fn skip_value(json: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0usize;
    loop {
        match *json.get(at)? {
            b'"' => {
                at += 1;
                loop {
                    at += memchr::memchr2(b'"', b'\\', json.get(at..)?)?;
                    if json[at] == b'"' {
                        break;
                    }
                    at += 2;
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b',' | b':' => {}
            _ => {
                while !matches!(json.get(at + 1), None | Some(b',' | b'}' | b']')) {
                    at += 1;
                }
            }
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spliced(json: &str) -> String {
        String::from_utf8(splice(json.as_bytes(), Revision(7)).to_vec()).unwrap()
    }

    #[test]
    fn the_resource_version_goes_where_upstream_writes_it() {
        assert_eq!(
            spliced(r#"{"kind":"A","metadata":{"name":"x","uid":"u","labels":{"a":"b"}},"spec":{}}"#),
            "{\"kind\":\"A\",\"metadata\":{\"name\":\"x\",\"uid\":\"u\",\"resourceVersion\":\"7\",\"labels\":{\"a\":\"b\"}},\"spec\":{}}\n"
        );
        assert_eq!(
            spliced(r#"{"a":[{"metadata":1}],"metadata":{"annotations":{"}":"\"}"},"name":"x"}}"#),
            "{\"a\":[{\"metadata\":1}],\"metadata\":{\"annotations\":{\"}\":\"\\\"}\"},\"name\":\"x\",\"resourceVersion\":\"7\"}}\n"
        );
        assert_eq!(spliced(r#"{"metadata":{}}"#), "{\"metadata\":{\"resourceVersion\":\"7\"}}\n");
    }

    #[test]
    fn a_resource_version_is_taken_out_with_its_comma() {
        for json in [
            r#"{"kind":"A","metadata":{"name":"x","uid":"u","labels":{"a":"b"}}}"#,
            r#"{"metadata":{"annotations":{},"name":"x","uid":"u"},"n":-1.5}"#,
            r#"{"metadata":{}}"#,
        ] {
            let mut with = splice(json.as_bytes(), Revision(12)).to_vec();
            let again = respliced(&with, Revision(13));
            assert!(String::from_utf8_lossy(&again).contains("\"13\""));
            let span = version_span(&with).unwrap();
            with.drain(span);
            assert_eq!(String::from_utf8(with).unwrap(), format!("{json}\n"));
        }
    }
}
