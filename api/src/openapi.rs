//! OpenAPI documents, made from the schema table and the catalogue (upstream: `kube-openapi` and the handlers' installer).
//!
//! There is a version 3 document for every path prefix (`api/v1`, `apis/apps`, `apis/apps/v1`, `version`…) and one version 2
//! document for everything. A document is made when it is asked for and never kept: it takes some milliseconds, it is some
//! hundred kilobytes long, and clients ask again only when its hash has changed. The hash comes from what a document is made
//! of, so that the index costs nothing.

mod definitions;
mod descriptions;
mod operations;
mod paths;
mod wire;
mod writer;

use crate::catalogue::{GroupVersion, Version};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};
use std::collections::BTreeMap;
use std::sync::Arc;

pub use definitions::{custom_definition_name, custom_definitions};

/// The dialect of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

/// What the documents describe: a snapshot, cheap to make.
pub struct Source {
    /// The versions that are served, built-in and custom, in the order of discovery.
    pub versions: Vec<Served>,
    /// The server's own version, such as `v1.36.2`.
    pub server_version: String,
}

/// A served version with the definitions that the schema table lacks.
pub struct Served {
    pub version: Arc<Version>,
    pub custom: Custom,
}

/// Definitions of custom resources by name, as [`custom_definitions`] makes them. They are made when a document needs them:
/// most requests are for another document, or only ask whether one has changed.
pub struct Custom {
    fingerprint: Vec<u8>,
    make: Box<dyn Fn() -> BTreeMap<String, Value> + Send>,
}

impl Custom {
    /// `fingerprint` differs whenever what `make` gives does; empty for versions without custom resources.
    pub fn new(fingerprint: Vec<u8>, make: impl Fn() -> BTreeMap<String, Value> + Send + 'static) -> Self {
        Self { fingerprint, make: Box::new(make) }
    }
}

impl Default for Custom {
    fn default() -> Self {
        Self::new(Vec::new(), BTreeMap::new)
    }
}

/// The documentation of fields, each given as the short name of its type (`core.v1.PodSpec`) and its JSON name.
pub fn field_descriptions(fields: &[(&str, &str)]) -> Vec<Option<String>> {
    let _held = descriptions::hold();
    let schemas = crate::schema::builtin();
    let described = |(owner, field): &(&str, &str)| descriptions::of_field(&schemas.short(owner)?.name, field);
    fields.iter().map(described).collect()
}

impl Source {
    /// The paths of all version 3 documents, sorted, relative to `/openapi/v3/`.
    pub fn v3_paths(&self) -> Vec<String> {
        let mut paths: Vec<String> =
            [".well-known/openid-configuration", "api", "apis", "openid/v1/jwks", "version"].map(String::from).into();
        for served in &self.versions {
            let gv = &served.version.group_version;
            paths.push(prefix(gv));
            if !gv.group.is_empty() {
                paths.push(format!("apis/{}", gv.group));
            }
        }
        paths.sort();
        paths.dedup();
        paths
    }

    /// The index at `/openapi/v3`.
    pub fn v3_index(&self) -> Value {
        let by_prefix: BTreeMap<String, &Served> =
            self.versions.iter().map(|s| (prefix(&s.version.group_version), s)).collect();
        let entry = |path: &String| {
            let url = format!("/openapi/v3/{path}?hash={}", self.hash_of(path, by_prefix.get(path).copied()));
            (path.clone(), json!({ "serverRelativeURL": url }))
        };
        json!({ "paths": self.v3_paths().iter().map(entry).collect::<serde_json::Map<_, _>>() })
    }

    /// The hash of a version 3 document, for the index and the entity tag; none if there is no such document.
    pub fn v3_hash(&self, path: &str) -> Option<String> {
        if !self.v3_paths().iter().any(|p| p == path) {
            return None;
        }
        Some(self.hash_of(path, self.versions.iter().find(|s| prefix(&s.version.group_version) == path)))
    }

    fn hash_of(&self, path: &str, served: Option<&Served>) -> String {
        let mut hash = Sha512::new();
        hash.update(path);
        hash.update([0]);
        hash.update(&self.server_version);
        if let Some(served) = served {
            fingerprint(served, &mut hash);
        }
        hex(&hash.finalize())
    }

    /// The hash of the version 2 document.
    pub fn v2_hash(&self) -> String {
        let mut hash = Sha512::new();
        hash.update(&self.server_version);
        self.versions.iter().for_each(|served| fingerprint(served, &mut hash));
        hex(&hash.finalize())
    }

    /// A version 3 document.
    pub fn v3(&self, path: &str) -> Option<Vec<u8>> {
        let _held = descriptions::hold();
        let one =
            |routes: paths::Routes| Some(writer::document(Dialect::V3, self, routes, writer::Definitions::default()));
        match path {
            "api" => return one(paths::core_versions()),
            "apis" => return one(paths::groups()),
            "version" => return one(paths::version()),
            "openid/v1/jwks" => return one(paths::openid_keys()),
            ".well-known/openid-configuration" => return one(paths::openid_configuration()),
            _ => {}
        }
        if let Some(served) = self.versions.iter().find(|s| prefix(&s.version.group_version) == path) {
            let mut custom = writer::Definitions::default();
            (served.custom.make)().into_iter().for_each(|(name, schema)| custom.add(name, &schema));
            return Some(writer::document(Dialect::V3, self, paths::version_routes(&served.version), custom));
        }
        let group = path.strip_prefix("apis/")?;
        let known = self.versions.iter().any(|s| &*s.version.group_version.group == group);
        if known { one(paths::group(group)) } else { None }
    }

    /// The version 2 document.
    pub fn v2(&self) -> Vec<u8> {
        let _held = descriptions::hold();
        let mut routes = paths::core_versions();
        for more in [paths::groups(), paths::version(), paths::openid_keys(), paths::openid_configuration()] {
            routes.extend(more);
        }
        let mut custom = writer::Definitions::default();
        for served in &self.versions {
            routes.extend(paths::version_routes(&served.version));
            if !served.version.group_version.group.is_empty() {
                routes.extend(paths::group(&served.version.group_version.group));
            }
            for (name, schema) in (served.custom.make)() {
                custom.add(name, &definitions::for_v2(&schema));
            }
        }
        writer::document(Dialect::V2, self, routes, custom)
    }
}

/// A document in protobuf, made of its JSON.
pub fn protobuf(json: &[u8], dialect: Dialect) -> Vec<u8> {
    let document = crate::codec::json::decode_any(json).map(|decoded| decoded.value).unwrap_or_default();
    wire::encode(&document, dialect)
}

impl Dialect {
    /// The media type of the protobuf form, as answers name it; requests have `@` for the last dot before `v1.0`.
    pub fn protobuf_media_type(self) -> &'static str {
        match self {
            Dialect::V2 => "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            Dialect::V3 => "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
        }
    }
}

/// `api/v1` or `apis/apps/v1`.
fn prefix(gv: &GroupVersion) -> String {
    if gv.group.is_empty() { format!("api/{}", gv.version) } else { format!("apis/{}/{}", gv.group, gv.version) }
}

/// What a document of this version depends on, the program itself aside, which its version stands for.
fn fingerprint(served: &Served, hash: &mut Sha512) {
    hash.update(prefix(&served.version.group_version));
    for resource in &served.version.resources {
        hash.update(&*resource.plural);
        hash.update([0]);
    }
    hash.update(&served.custom.fingerprint);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        let versions = crate::catalogue::builtin().groups.iter().flat_map(|g| &g.versions);
        let served = versions.filter(|v| v.served_by_default).map(|v| Served {
            version: Arc::new(Version {
                group_version: v.group_version.clone(),
                served_by_default: true,
                resources: v.resources.clone(),
            }),
            custom: Custom::default(),
        });
        Source { versions: served.collect(), server_version: "v1.36.2".into() }
    }

    #[test]
    fn a_version_3_document_is_closed_under_references() {
        let source = source();
        for path in source.v3_paths() {
            let document: Value = serde_json::from_slice(&source.v3(&path).unwrap()).unwrap();
            let mut references = Vec::new();
            collect(&document, &mut references);
            for reference in references {
                let name = reference.strip_prefix("#/components/schemas/").unwrap();
                assert!(document["components"]["schemas"][name].is_object(), "{path}: {name}");
            }
        }
    }

    fn collect(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    out.push(reference.clone());
                }
                map.values().for_each(|v| collect(v, out));
            }
            Value::Array(items) => items.iter().for_each(|v| collect(v, out)),
            _ => {}
        }
    }

    #[test]
    fn operations_say_what_they_take_and_give() {
        let document: Value = serde_json::from_slice(&source().v3("apis/apps/v1").unwrap()).unwrap();
        let path = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
        assert_eq!(path["patch"]["operationId"], "patchAppsV1NamespacedDeployment");
        assert_eq!(path["delete"]["x-kubernetes-action"], "delete");
        let names: Vec<&str> =
            path["parameters"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
        assert_eq!(names, ["name", "namespace", "pretty"]);
        let strategy =
            &document["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"];
        assert_eq!(strategy["x-kubernetes-patch-strategy"], "retainKeys");
        assert_eq!(strategy["default"], json!({}));
    }
}
