//! What can be done at a path, before it is said in a dialect (upstream: `endpoints/installer.go`).

use super::definitions::pointer;
use super::{Dialect, descriptions};
use crate::features::Feature;
use crate::schema::{self, Scalar, Type};
use serde_json::{Map, Value, json};

pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// What a document about the server itself is read as.
pub(super) const DOCUMENT_MEDIA: &[&str] =
    &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// One list where CBOR is served, another where it is not.
fn by_gate(with: &'static [&'static str], without: &'static [&'static str]) -> &'static [&'static str] {
    if Feature::CBORServingAndStorage.enabled() { with } else { without }
}

/// What an object is read and written as.
pub(super) fn object_media() -> &'static [&'static str] {
    const WITH: &[&str] =
        &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"];
    by_gate(WITH, DOCUMENT_MEDIA)
}

/// What a watch can be read as besides.
pub(super) fn watch_media() -> Vec<&'static str> {
    const STREAMS: &[&str] =
        &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch", "application/cbor-seq"];
    [object_media(), by_gate(STREAMS, &STREAMS[..2])].concat()
}

pub(super) fn patch_media() -> &'static [&'static str] {
    const WITH: &[&str] = &[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
        "application/apply-patch+cbor",
    ];
    by_gate(WITH, &WITH[..4])
}

/// Custom resources have no protobuf form.
pub(super) const CUSTOM_MEDIA: &[&str] = &["application/json", "application/yaml"];
pub(super) const CUSTOM_PATCH_MEDIA: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    pub name: String,
    pub in_path: bool,
    pub ty: &'static str,
    pub description: String,
}

/// What a body or an answer is.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Definition(String),
    Text,
}

impl Content {
    pub(super) fn schema(&self, dialect: Dialect) -> Value {
        match self {
            Content::Definition(name) => json!({ "$ref": pointer(name, dialect) }),
            Content::Text => json!({ "type": "string" }),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Body {
    pub content: Content,
    pub required: bool,
    pub media: &'static [&'static str],
}

#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub method: &'static str,
    pub id: String,
    pub description: String,
    pub tag: String,
    /// `list`, `get`, `watchlist`…; empty where the path is no resource.
    pub action: &'static str,
    /// Group, version and kind.
    pub kind: Option<(String, String, String)>,
    pub parameters: Vec<Parameter>,
    pub body: Option<Body>,
    pub produces: Vec<&'static str>,
    /// Code and content.
    pub answers: Vec<(u16, Option<Content>)>,
}

impl Parameter {
    pub(super) fn path(name: &str, description: impl Into<String>) -> Self {
        Self { name: name.into(), in_path: true, ty: "string", description: description.into() }
    }

    pub(super) fn json(&self, dialect: Dialect) -> Value {
        let mut out = Map::new();
        if !self.description.is_empty() {
            out.insert("description".into(), self.description.as_str().into());
        }
        out.insert("in".into(), if self.in_path { "path" } else { "query" }.into());
        out.insert("name".into(), self.name.as_str().into());
        if self.in_path {
            out.insert("required".into(), true.into());
        }
        match dialect {
            Dialect::V2 => {
                out.insert("type".into(), self.ty.into());
                out.insert("uniqueItems".into(), true.into());
            }
            Dialect::V3 => {
                out.insert("schema".into(), json!({"type": self.ty, "uniqueItems": true}));
            }
        }
        Value::Object(out)
    }
}

/// The query parameters that a kind of options stands for, but those named.
pub(super) fn options(short_name: &str, without: &[&str]) -> Vec<Parameter> {
    let Some(schema) = schema::builtin().short(short_name) else { return Vec::new() };
    let mut out = Vec::new();
    for field in &schema.fields {
        if matches!(&*field.name, "kind" | "apiVersion") || without.contains(&&*field.name) {
            continue;
        }
        let ty = match &field.ty {
            Type::List(list) => &list.element,
            ty => ty,
        };
        let ty = match ty {
            Type::Scalar(Scalar::Bool) => "boolean",
            Type::Scalar(Scalar::Int32 | Scalar::Int64) => "integer",
            Type::Scalar(Scalar::String) => "string",
            _ => continue,
        };
        let description = descriptions::of_field(&schema.name, &field.name).unwrap_or_default();
        out.push(Parameter { name: field.name.to_string(), in_path: false, ty, description });
    }
    out
}

pub(super) fn pretty() -> Parameter {
    let description = "If 'true', then the output is pretty printed. Defaults to 'false' unless the user-agent indicates a \
        browser or command-line HTTP tool (curl and wget).";
    Parameter { name: "pretty".into(), in_path: false, ty: "string", description: description.into() }
}

impl Operation {
    /// The operation without the parameters that all operations of its path share.
    pub(super) fn json(&self, dialect: Dialect, shared: &[Parameter]) -> Value {
        let mut out = Map::new();
        if !self.description.is_empty() {
            out.insert("description".into(), self.description.as_str().into());
        }
        out.insert("operationId".into(), self.id.as_str().into());
        out.insert("tags".into(), json!([self.tag]));
        if !self.action.is_empty() {
            out.insert("x-kubernetes-action".into(), self.action.into());
        }
        if let Some((group, version, kind)) = &self.kind {
            let gvk = json!({"group": group, "version": version, "kind": kind});
            out.insert("x-kubernetes-group-version-kind".into(), gvk);
        }
        let own = self.parameters.iter().filter(|p| !shared.contains(p));
        let mut parameters: Vec<Value> = own.map(|p| p.json(dialect)).collect();
        match dialect {
            Dialect::V3 => {
                if let Some(body) = &self.body {
                    let schema = body.content.schema(dialect);
                    let content: Map<String, Value> =
                        body.media.iter().map(|m| ((*m).to_owned(), json!({ "schema": schema }))).collect();
                    let mut request = json!({ "content": content });
                    if body.required {
                        request["required"] = true.into();
                    }
                    out.insert("requestBody".into(), request);
                }
            }
            Dialect::V2 => {
                out.insert("schemes".into(), json!(["https"]));
                if let Some(body) = &self.body {
                    let mut parameter = json!({"in": "body", "name": "body", "schema": body.content.schema(dialect)});
                    if body.required {
                        parameter["required"] = true.into();
                    }
                    let first_after = own_position(&parameters, "body");
                    parameters.insert(first_after, parameter);
                }
                let consumes: &[&str] = match &self.body {
                    Some(body) if body.media.len() > 1 => body.media,
                    _ if self.action.is_empty() => &self.produces,
                    _ => &["*/*"],
                };
                if self.tag != "openid" && self.tag != "WellKnown" {
                    out.insert("consumes".into(), consumes.into());
                }
                out.insert("produces".into(), self.produces.clone().into());
            }
        }
        if !parameters.is_empty() {
            out.insert("parameters".into(), parameters.into());
        }
        let mut responses = Map::new();
        for (code, content) in &self.answers {
            let description = match code {
                200 => "OK",
                201 => "Created",
                _ => "Accepted",
            };
            let mut response = json!({ "description": description });
            if let Some(content) = content {
                let schema = content.schema(dialect);
                match dialect {
                    Dialect::V2 => response["schema"] = schema,
                    Dialect::V3 => {
                        let by_media = self.produces.iter().map(|m| ((*m).to_owned(), json!({ "schema": schema })));
                        response["content"] = by_media.collect::<Map<_, _>>().into();
                    }
                }
            }
            responses.insert(code.to_string(), response);
        }
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        out.insert("responses".into(), responses.into());
        Value::Object(out)
    }
}

/// Where a parameter of this name sorts in.
fn own_position(parameters: &[Value], name: &str) -> usize {
    parameters.iter().position(|p| p["name"].as_str().is_some_and(|n| n > name)).unwrap_or(parameters.len())
}
