//! Puts a document together. Each path and each definition is written as soon as it is made, so that the whole never exists as
//! a tree.

use super::operations::{Content, Operation, Parameter};
use super::paths::Routes;
use super::{Dialect, Source, definitions};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Definitions that the schema table lacks, encoded one by one: as trees, those of a thousand custom resources take ten times
/// the room of the whole document.
#[derive(Default)]
pub(super) struct Definitions {
    encoded: BTreeMap<String, Vec<u8>>,
    /// What they refer to.
    reached: BTreeSet<String>,
}

impl Definitions {
    pub(super) fn add(&mut self, name: String, schema: &Value) {
        definitions::reach_custom(schema, &mut self.reached);
        let mut bytes = Vec::new();
        write(schema, &mut bytes);
        self.encoded.insert(name, bytes);
    }
}

pub(super) fn document(dialect: Dialect, source: &Source, routes: Routes, custom: Definitions) -> Vec<u8> {
    let _held = super::descriptions::hold();
    let Definitions { encoded: custom, reached: mut names } = custom;
    for operation in routes.values().flatten() {
        let bodies = operation.body.iter().map(|b| &b.content);
        for content in bodies.chain(operation.answers.iter().filter_map(|(_, content)| content.as_ref())) {
            if let Content::Definition(name) = content
                && !custom.contains_key(name)
            {
                definitions::reach(name, &mut names);
            }
        }
    }
    names.retain(|name| !custom.contains_key(name));
    let kinds: Vec<(String, String)> = kinds(dialect, &routes);

    let mut out = Vec::with_capacity(256 * 1024);
    let (opening, closing): (String, &str) = match dialect {
        Dialect::V3 => (r#"{"openapi":"3.0.0","info":"#.into(), "}"),
        Dialect::V2 => (r#"{"swagger":"2.0","info":"#.into(), "}"),
    };
    out.extend_from_slice(opening.as_bytes());
    write(&json!({"title": "Kubernetes", "version": source.server_version}), &mut out);
    out.extend_from_slice(br#","paths":{"#);
    let mut shared_parameters = BTreeMap::new();
    for (i, (path, operations)) in routes.iter().enumerate() {
        member(i, path, &mut out);
        write(&path_item(dialect, operations, &mut shared_parameters), &mut out);
    }
    out.push(b'}');
    let bearer = json!({"BearerToken": {
        "description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey"}});
    let any = !names.is_empty() || !custom.is_empty();
    match dialect {
        Dialect::V3 if !any => out.extend_from_slice(br#","components":{"#),
        Dialect::V3 => out.extend_from_slice(br#","components":{"schemas":{"#),
        Dialect::V2 => out.extend_from_slice(br#","definitions":{"#),
    }
    let mut i = 0;
    let mut builtin = names.iter().peekable();
    let mut customs = custom.iter().peekable();
    loop {
        // Both are sorted; so is the document.
        let take_builtin = match (builtin.peek(), customs.peek()) {
            (None, None) => break,
            (Some(name), Some((other, _))) => *name < *other,
            (name, _) => name.is_some(),
        };
        if take_builtin && let Some(name) = builtin.next() {
            member(i, name, &mut out);
            write(&definitions::definition(name, dialect, &kinds), &mut out);
        } else if let Some((name, schema)) = customs.next() {
            member(i, name, &mut out);
            out.extend_from_slice(schema);
        }
        i += 1;
    }
    match dialect {
        Dialect::V3 => {
            out.extend_from_slice(if any { br#"},"securitySchemes":"# } else { br#""securitySchemes":"# });
            write(&bearer, &mut out);
            out.push(b'}');
        }
        Dialect::V2 => {
            out.push(b'}');
            if !shared_parameters.is_empty() {
                out.extend_from_slice(br#","parameters":"#);
                write(&json!(shared_parameters), &mut out);
            }
            out.extend_from_slice(br#","securityDefinitions":"#);
            write(&bearer, &mut out);
            out.extend_from_slice(br#","security":[{"BearerToken":[]}]"#);
        }
    }
    out.extend_from_slice(closing.as_bytes());
    out
}

fn write(value: &Value, out: &mut Vec<u8>) {
    crate::codec::json::encode_value(value, out);
}

fn member(i: usize, name: &str, out: &mut Vec<u8>) {
    if i > 0 {
        out.push(b',');
    }
    crate::codec::json::write_string(name, out);
    out.push(b':');
}

/// The groups and versions of which the options are kinds: in version 2 all that the program knows.
fn kinds(dialect: Dialect, routes: &Routes) -> Vec<(String, String)> {
    let mut out: BTreeSet<(String, String)> = BTreeSet::new();
    match dialect {
        Dialect::V2 => {
            let elsewhere = ["meta.k8s.io", "apidiscovery.k8s.io"];
            for (group, version, _, _) in crate::schema::builtin().kinds() {
                if !elsewhere.contains(&group) && !group.ends_with("metrics.k8s.io") {
                    out.insert((group.into(), version.into()));
                }
            }
            // Old versions that are nothing but registered.
            out.insert(("apiextensions.k8s.io".into(), "v1beta1".into()));
            out.insert(("apiregistration.k8s.io".into(), "v1beta1".into()));
        }
        Dialect::V3 => {
            for path in routes.keys() {
                if let Some((group, rest)) = path.strip_prefix("/apis/").and_then(|p| p.split_once('/'))
                    && let Some((version, _)) = rest.split_once('/')
                {
                    out.insert((group.into(), version.into()));
                }
            }
        }
    }
    out.into_iter().collect()
}

fn path_item(dialect: Dialect, operations: &[Operation], shared_parameters: &mut BTreeMap<String, Value>) -> Value {
    let shared: Vec<Parameter> = match operations {
        [] => Vec::new(),
        [first, rest @ ..] => {
            first.parameters.iter().filter(|p| rest.iter().all(|op| op.parameters.contains(p))).cloned().collect()
        }
    };
    let mut out = Map::new();
    for operation in operations {
        out.insert(operation.method.into(), operation.json(dialect, &shared));
    }
    if !shared.is_empty() {
        let parameters: Vec<Value> = shared.iter().map(|p| p.json(dialect)).collect();
        out.insert("parameters".into(), parameters.into());
    }
    if dialect == Dialect::V2 {
        share(&mut out, shared_parameters);
    }
    Value::Object(out)
}

/// Replaces parameters by references to the document's own list of them: they make up most of a version 2 document.
fn share(item: &mut Map<String, Value>, shared: &mut BTreeMap<String, Value>) {
    use sha2::{Digest, Sha256};
    let mut replace = |parameters: &mut Value| {
        for parameter in parameters.as_array_mut().into_iter().flatten() {
            // The names of objects differ from path to path, and so do most bodies.
            let name = parameter["name"].as_str().unwrap_or_default().to_owned();
            let is_own_body = name == "body" && !is_common_body(parameter);
            if (name == "name" && parameter["in"] == "path") || is_own_body {
                continue;
            }
            let digest = Sha256::digest(parameter.to_string());
            let key =
                format!("{name}-{}", base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, &digest[..6]));
            let reference = json!({"$ref": format!("#/parameters/{key}")});
            shared.insert(key, std::mem::replace(parameter, reference));
        }
    };
    for (_, value) in item.iter_mut() {
        match value {
            Value::Array(_) => replace(value),
            Value::Object(operation) => {
                if let Some(parameters) = operation.get_mut("parameters") {
                    replace(parameters);
                }
            }
            _ => {}
        }
    }
}

fn is_common_body(parameter: &Value) -> bool {
    let reference = parameter["schema"]["$ref"].as_str().unwrap_or_default();
    reference.ends_with(".DeleteOptions") || reference.ends_with(".Patch")
}
