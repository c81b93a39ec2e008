//! The stored form of an object: its encoding, and what seals it (upstream: the storage codec and the transformer of
//! `etcd3.store`).
//!
//! Written in one encoding, read in any: what an upstream server or an older one of ours left behind is decoded, given its
//! defaults and brought into the hub version.

use super::object::stored_bytes;
use crate::registry::resource::Resource;
use bytes::Bytes;
use coxswain_api::catalogue::ResourceType;
use coxswain_api::codec::{self, Format, protobuf};
use coxswain_api::schema::StructRef;
use coxswain_api::{Status, Value, conversion, defaults, schema};
use coxswain_storage::Entry;
use coxswain_storage::encryption::Transformer;
use std::borrow::Cow;
use std::sync::Arc;

/// Turns the objects of one resource into stored values and back.
pub struct Values {
    hub: Arc<ResourceType>,
    format: Format,
    transformer: Option<Arc<dyn Transformer>>,
    /// Of the hub version.
    api_version: Box<str>,
    custom: bool,
}

/// A stored value, understood.
pub struct Decoded {
    /// In the hub version.
    pub tree: Value,
    /// JSON of the hub version without a resourceVersion.
    pub json: Bytes,
    /// The store has it in another form than it would be written in now.
    pub stale: bool,
}

impl Values {
    pub fn new(
        hub: Arc<ResourceType>,
        format: Format,
        transformer: Option<Arc<dyn Transformer>>,
        custom: bool,
    ) -> Self {
        let api_version = hub.group_version.api_version().into();
        Self { hub, format, transformer, api_version, custom }
    }

    pub fn schema(&self) -> &StructRef {
        &self.hub.schema
    }

    /// What is stored for an object, of which `json` is the stored form in JSON.
    pub async fn seal(&self, key: &str, object: &Value, json: &Bytes) -> Result<Bytes, Status> {
        let plain = self.encode(object, json);
        match &self.transformer {
            None => Ok(plain),
            Some(transformer) => transformer.seal(plain, key).await.map_err(Status::internal),
        }
    }

    fn encode(&self, object: &Value, json: &Bytes) -> Bytes {
        let mut out = Vec::with_capacity(json.len());
        match self.format {
            Format::Json => return json.clone(),
            Format::Protobuf => {
                let mut message = Vec::with_capacity(json.len());
                protobuf::encode_message(object, &self.hub.schema, &mut message);
                let message = without_version(&message).unwrap_or(Cow::Borrowed(&message));
                protobuf::encode_envelope(&self.api_version, &self.hub.kind, &mut out, |out| {
                    out.extend_from_slice(&message);
                });
            }
            format => {
                let mut object = object.clone();
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("resourceVersion");
                }
                codec::encode(&object, format, &self.hub.schema, &mut out);
            }
        }
        out.into()
    }

    /// What a stored value says.
    pub async fn open(&self, entry: &Entry, strategy: &dyn Resource) -> Result<Decoded, Status> {
        let (value, sealed_otherwise) = self.unseal(entry).await?;
        let mut decoded = self
            .decode(&value, strategy)
            .map_err(|e| Status::internal(format!("unable to decode an object in the store at {}: {e}", entry.key)))?;
        decoded.stale |= sealed_otherwise;
        Ok(decoded)
    }

    async fn unseal(&self, entry: &Entry) -> Result<(Bytes, bool), Status> {
        let Some(transformer) = &self.transformer else { return Ok((entry.value.clone(), false)) };
        let opened = transformer.open(entry.value.clone(), &entry.key).await;
        let opened = opened.map_err(|e| {
            let key = coxswain_api::field::go_quote(&entry.key);
            Status::internal(format!("unable to transform key {key}: {e}"))
        })?;
        Ok((opened.value, opened.stale))
    }

    /// Whether values may be sealed otherwise than they were when they were read.
    pub fn may_go_stale(&self) -> bool {
        self.transformer.is_some()
    }

    /// Whether a value should be written again although its object does not change.
    pub async fn is_stale(&self, entry: &Entry) -> bool {
        matches!(self.unseal(entry).await, Ok((_, true)))
    }

    /// A custom object as its definition is by now: with defaults that were added since it was written, and without what is
    /// no longer known. None if it is the same.
    fn as_defined(&self, tree: &Value, strategy: &dyn Resource) -> Result<Option<Value>, String> {
        let Some(schema) = strategy.structural().filter(|_| self.custom) else { return Ok(None) };
        let mut defined = tree.clone();
        schema.prune(&mut defined).map_err(|e| e.to_string())?;
        defaults::apply(&mut defined, &self.hub.schema);
        strategy.set_defaults(&mut defined);
        Ok((defined != *tree).then_some(defined))
    }

    fn decode(&self, bytes: &Bytes, strategy: &dyn Resource) -> Result<Decoded, String> {
        // Our own encoder leaves no line feed at the end, upstream's does: only our own JSON is kept as it is.
        if bytes.starts_with(b"{\"") && bytes.ends_with(b"}") {
            let tree = codec::json::read_back(bytes).map_err(|e| e.to_string())?;
            if tree.get("apiVersion").and_then(Value::as_str) == Some(&*self.api_version) {
                let stale = self.format != Format::Json;
                return Ok(match self.as_defined(&tree, strategy)? {
                    Some(tree) => {
                        let json = stored_bytes(&tree, &self.hub.schema);
                        Decoded { tree, json, stale: true }
                    }
                    None => Decoded { tree, json: bytes.clone(), stale },
                });
            }
        }
        let format = codec::detect(bytes);
        let type_meta = codec::interpret(bytes, format).map_err(|e| e.to_string())?;
        let (group, version) = type_meta.group_version().ok_or("no group and version")?;
        let mut tree = if self.custom {
            codec::decode(bytes, format, &self.hub.schema).map_err(|e| e.to_string())?.value
        } else if (group, version) == ("apiextensions.k8s.io", "v1beta1") {
            let old = codec::json::decode_any(bytes).map_err(|e| e.to_string())?.value;
            let tree = conversion::definition_from_v1beta1(old);
            codec::json::decode_tree(&tree, &self.hub.schema).map_err(|e| e.to_string())?.value
        } else {
            let schema = schema::builtin().kind(group, version, &type_meta.kind).ok_or_else(|| {
                format!("no kind {:?} is registered for version {:?}", type_meta.kind, type_meta.api_version)
            })?;
            let mut tree = codec::decode(bytes, format, schema).map_err(|e| e.to_string())?.value;
            defaults::apply(&mut tree, schema);
            tree
        };
        conversion::convert(&mut tree, &self.hub.group_version);
        if !self.custom {
            defaults::apply(&mut tree, &self.hub.schema);
        }
        match self.as_defined(&tree, strategy)? {
            Some(defined) => tree = defined,
            None => strategy.set_defaults(&mut tree),
        }
        codec::canonicalize(&mut tree, &self.hub.schema);
        let json = stored_bytes(&tree, &self.hub.schema);
        let stale = format != self.format || type_meta.api_version != *self.api_version;
        Ok(Decoded { tree, json, stale })
    }
}

/// A message whose metadata (its first field) names no resourceVersion (field 6): upstream stores it empty. None if it
/// is so already.
fn without_version(message: &[u8]) -> Option<Cow<'_, [u8]>> {
    const METADATA: u8 = 1 << 3 | 2;
    const VERSION: u8 = 6 << 3 | 2;
    let mut at = 1;
    if message.first() != Some(&METADATA) {
        return None;
    }
    let length = varint(message, &mut at)?;
    let (start, end) = (at, at.checked_add(length)?);
    let metadata = message.get(start..end)?;
    let mut at = 0;
    while at < metadata.len() {
        let tag = at;
        let number = varint(metadata, &mut at)?;
        match number & 7 {
            0 => {
                varint(metadata, &mut at)?;
            }
            2 => {
                let length = varint(metadata, &mut at)?;
                at = at.checked_add(length)?;
                if metadata.get(tag) == Some(&VERSION) {
                    if length == 0 {
                        return None;
                    }
                    let mut shorter = Vec::with_capacity(metadata.len());
                    shorter.extend_from_slice(&metadata[..tag]);
                    shorter.extend_from_slice(&[VERSION, 0]);
                    shorter.extend_from_slice(metadata.get(at..)?);
                    let mut out = Vec::with_capacity(message.len());
                    protobuf::encode_bytes_field(1, &shorter, &mut out);
                    out.extend_from_slice(&message[end..]);
                    return Some(Cow::Owned(out));
                }
            }
            _ => return None,
        }
    }
    None
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<usize> {
    let mut value = 0usize;
    for shift in (0..usize::BITS).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::builtin;
    use coxswain_api::catalogue;
    use coxswain_api::json;

    fn values(group: &str, version: &str, plural: &str, format: Format) -> Values {
        let hub = catalogue::builtin().resource(group, version, plural).unwrap().clone();
        Values::new(hub, format, None, false)
    }

    fn decoded(values: &Values, bytes: &[u8]) -> Decoded {
        let strategy = builtin::strategy(&values.hub.group_version.group, &values.hub.plural);
        values.decode(&Bytes::copy_from_slice(bytes), &*strategy).unwrap()
    }

    #[test]
    fn protobuf_is_stored_without_a_resource_version() {
        let values = values("", "v1", "configmaps", Format::Protobuf);
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a",
            "namespace": "n", "uid": "u", "resourceVersion": "4711", "labels": {"x": "y"}}, "data": {"k": "v"}});
        let json = stored_bytes(&object, &values.hub.schema);
        let stored = values.encode(&object, &json);
        assert!(stored.starts_with(b"k8s\0\n\x0f\n\x02v1\x12\tConfigMap"));
        assert!(!stored.windows(4).any(|w| w == b"4711"));
        assert!(stored.windows(5).any(|w| w == b"*\x01u2\0"), "the resourceVersion is there and empty");
        let again = decoded(&values, &stored);
        assert_eq!(again.json, json);
        assert!(!again.stale);
    }

    #[test]
    fn every_encoding_is_read_and_known_to_be_another() {
        let values = values("", "v1", "configmaps", Format::Json);
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "<"}});
        let json = stored_bytes(&object, &values.hub.schema);
        for format in [Format::Json, Format::Yaml, Format::Protobuf, Format::Cbor] {
            let other =
                Values { format, hub: values.hub.clone(), transformer: None, api_version: "v1".into(), custom: false };
            let read = decoded(&values, &other.encode(&object, &json));
            assert_eq!((read.json, read.stale), (json.clone(), format != Format::Json));
        }
        // As Go writes it.
        let go = br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data":{"k":"\u003c"}}
"#;
        assert_eq!(decoded(&values, go).json, json);
    }

    #[test]
    fn an_older_version_is_read_as_the_present_one() {
        let values = values("autoscaling", "v2", "horizontalpodautoscalers", Format::Protobuf);
        let old = br#"{"kind":"HorizontalPodAutoscaler","apiVersion":"autoscaling/v1","metadata":{"name":"a"},"spec":{"scaleTargetRef":{"kind":"Deployment","name":"d","apiVersion":"apps/v1"},"maxReplicas":3,"targetCPUUtilizationPercentage":50}}"#;
        let read = decoded(&values, old);
        assert!(read.stale);
        assert_eq!(read.tree["apiVersion"], "autoscaling/v2");
        assert_eq!(read.tree["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
        assert_eq!(read.tree["spec"]["minReplicas"], 1, "defaults are filled in");
    }

    #[test]
    fn a_definition_in_v1beta1_is_read_as_v1() {
        let values = values("apiextensions.k8s.io", "v1", "customresourcedefinitions", Format::Json);
        let old = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1beta1",
            "metadata": {"name": "boats.example.com"},
            "spec": {"group": "example.com", "version": "v1", "scope": "Namespaced", "preserveUnknownFields": false,
                "names": {"plural": "boats", "singular": "boat", "kind": "Boat", "listKind": "BoatList"},
                "validation": {"openAPIV3Schema": {"type": "object"}}, "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "A", "type": "string", "JSONPath": ".spec.a"}],
                "versions": [{"name": "v1", "served": true, "storage": true}],
                "conversion": {"strategy": "None"}},
            "status": {"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": ["v1"]}});
        let read = decoded(&values, format!("{old}\n").as_bytes());
        assert!(read.stale);
        let version = &read.tree["spec"]["versions"][0];
        assert_eq!(version["schema"]["openAPIV3Schema"], json!({"type": "object"}));
        assert_eq!(version["subresources"], json!({"status": {}}));
        assert_eq!(version["additionalPrinterColumns"][0]["jsonPath"], ".spec.a");
        assert_eq!(read.tree["spec"].get("validation"), None);
        assert_eq!(read.tree["apiVersion"], "apiextensions.k8s.io/v1");
    }
}
