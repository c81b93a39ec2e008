//! Definitions: how OpenAPI describes the types of the schema table (upstream: the generated `zz_generated.openapi.go`).

use super::{Dialect, descriptions};
use crate::catalogue::ResourceType;
use crate::schema::{self, AnyKind, Field, ListKind, Scalar, Struct, Type};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";

/// The names that documents give to types with an encoding of their own.
fn special(ty: &Type) -> Option<String> {
    Some(match ty {
        Type::Scalar(Scalar::Quantity) => "io.k8s.apimachinery.pkg.api.resource.Quantity".into(),
        Type::Scalar(Scalar::IntOrString) => "io.k8s.apimachinery.pkg.util.intstr.IntOrString".into(),
        Type::Scalar(Scalar::Time) => format!("{META}Time"),
        Type::Scalar(Scalar::MicroTime) => format!("{META}MicroTime"),
        Type::Scalar(Scalar::Duration) => format!("{META}Duration"),
        Type::Any(kind) => match kind {
            AnyKind::RawExtension | AnyKind::Unknown => "io.k8s.apimachinery.pkg.runtime.RawExtension".into(),
            AnyKind::FieldsV1 => format!("{META}FieldsV1"),
            AnyKind::Json => format!("{APIEXTENSIONS}JSON"),
            AnyKind::SchemaOrArray => format!("{APIEXTENSIONS}JSONSchemaPropsOrArray"),
            AnyKind::SchemaOrBool => format!("{APIEXTENSIONS}JSONSchemaPropsOrBool"),
            AnyKind::SchemaOrStrings => format!("{APIEXTENSIONS}JSONSchemaPropsOrStringArray"),
        },
        _ => return None,
    })
}

/// The name of the definition that a type refers to, if it refers to one.
fn reference(ty: &Type) -> Option<String> {
    match ty {
        Type::Struct(schema) if !schema.name.is_empty() => Some(schema.name.to_string()),
        _ => special(ty),
    }
}

/// Adds the definition and all that it refers to.
pub(super) fn reach(name: &str, found: &mut BTreeSet<String>) {
    if !found.insert(name.to_owned()) {
        return;
    }
    fn types(ty: &Type, found: &mut BTreeSet<String>) {
        match ty {
            Type::List(list) => types(&list.element, found),
            Type::Map(map) => types(&map.value, found),
            _ => {
                if let Some(name) = reference(ty) {
                    reach(&name, found);
                }
            }
        }
    }
    if let Some(schema) = schema::builtin().get(name) {
        schema.fields.iter().for_each(|f| types(&f.ty, found));
    }
}

/// Adds what a definition of a custom resource refers to.
pub(super) fn reach_custom(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                reach(reference.rsplit('/').next().unwrap_or_default(), found);
            }
            map.values().for_each(|v| reach_custom(v, found));
        }
        Value::Array(items) => items.iter().for_each(|v| reach_custom(v, found)),
        _ => {}
    }
}

pub(super) fn pointer(name: &str, dialect: Dialect) -> Value {
    Value::String(match dialect {
        Dialect::V2 => format!("#/definitions/{name}"),
        Dialect::V3 => format!("#/components/schemas/{name}"),
    })
}

/// One definition by name. `kinds` says which groups and versions the document covers: the options and watch events are
/// kinds of each.
pub(super) fn definition(name: &str, dialect: Dialect, kinds: &[(String, String)]) -> Value {
    let mut out = Map::new();
    if let Some(text) = descriptions::of_type(name) {
        out.insert("description".into(), text.into());
    }
    let Some(schema) = schema::builtin().get(name) else {
        out.extend(special_definition(name, dialect));
        return Value::Object(out);
    };
    out.insert("type".into(), "object".into());
    let properties: Map<String, Value> =
        schema.fields.iter().map(|f| (f.name.to_string(), property(schema, f, dialect))).collect();
    if !properties.is_empty() {
        out.insert("properties".into(), properties.into());
    }
    let required: Vec<&str> = schema.fields.iter().filter(|f| f.required).map(|f| &*f.name).collect();
    if !required.is_empty() {
        out.insert("required".into(), required.into());
    }
    if schema.atomic {
        out.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if schema.markers.iter().any(|m| &**m == "+union") {
        out.insert("x-kubernetes-unions".into(), json!([union(schema)]));
    }
    if let Some(gvks) = group_version_kinds(schema, kinds) {
        out.insert("x-kubernetes-group-version-kind".into(), gvks);
    }
    Value::Object(out)
}

fn union(schema: &Struct) -> Value {
    let mut out = Map::new();
    let is_discriminator = |f: &&Field| f.markers.iter().any(|m| &**m == "+unionDiscriminator");
    if let Some(field) = schema.fields.iter().find(is_discriminator) {
        out.insert("discriminator".into(), (&*field.name).into());
    }
    let members = schema.fields.iter().filter(|f| !is_discriminator(f) && !f.required);
    // The values of the discriminator are the names of Go's fields.
    let go_name = |name: &str| {
        let mut chars = name.chars();
        chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
    };
    let members: Map<String, Value> = members.map(|f| (f.name.to_string(), go_name(&f.name).into())).collect();
    out.insert("fields-to-discriminateBy".into(), members.into());
    Value::Object(out)
}

fn group_version_kinds(schema: &Struct, kinds: &[(String, String)]) -> Option<Value> {
    let kind = schema.type_name();
    let gvk = |group: &str, version: &str| json!({"group": group, "version": version, "kind": kind});
    if let Some(name) = schema.name.strip_prefix(META) {
        return match name {
            "APIGroup" | "APIGroupList" | "APIResourceList" | "APIVersions" | "Status" => Some(json!([gvk("", "v1")])),
            "DeleteOptions" | "WatchEvent" => {
                let mut all = vec![gvk("", "v1")];
                all.extend(kinds.iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| gvk(g, v)));
                Some(Value::Array(all))
            }
            _ => None,
        };
    }
    let found = schema::builtin().kind_of(&schema.name)?;
    Some(json!([gvk(&found.0, &found.1)]))
}

/// What is true of a leaf, wherever it stands.
fn leaf(scalar: Scalar) -> Map<String, Value> {
    let (ty, format) = match scalar {
        Scalar::Bool => ("boolean", ""),
        Scalar::Int32 => ("integer", "int32"),
        Scalar::Int64 => ("integer", "int64"),
        // OpenAPI has no unsigned integers.
        Scalar::Uint32 | Scalar::Uint64 => ("integer", "int64"),
        Scalar::Float64 => ("number", "double"),
        Scalar::Bytes => ("string", "byte"),
        _ => ("string", ""),
    };
    let mut out = Map::new();
    out.insert("type".into(), ty.into());
    if !format.is_empty() {
        out.insert("format".into(), format.into());
    }
    out
}

/// A type without anything that a field says of it.
fn bare(ty: &Type, type_name: &'static str, dialect: Dialect) -> Map<String, Value> {
    let mut out = Map::new();
    if let Some(name) = reference(ty) {
        out.insert("$ref".into(), pointer(&name, dialect));
        return out;
    }
    match ty {
        Type::Scalar(scalar) => {
            out = leaf(*scalar);
            if let Some(values) = enum_values(type_name) {
                out.insert("enum".into(), values);
            }
        }
        Type::List(list) => {
            out.insert("type".into(), "array".into());
            out.insert("items".into(), bare(&list.element, element(type_name), dialect).into());
        }
        Type::Map(map) => {
            out.insert("type".into(), "object".into());
            out.insert("additionalProperties".into(), bare(&map.value, element(type_name), dialect).into());
        }
        Type::Struct(_) | Type::Any(_) => {
            out.insert("type".into(), "object".into());
        }
    }
    out
}

/// The element type of a list or map, by the name of its Go type.
fn element(type_name: &'static str) -> &'static str {
    let name = type_name.trim_start_matches('*');
    if let Some(rest) = name.strip_prefix("[]") {
        return rest;
    }
    if let Some(rest) = name.strip_prefix("map[") {
        return rest.split_once(']').map_or("", |(_, value)| value);
    }
    schema::builtin().named(name).map_or("", |n| element(n.underlying))
}

/// The values of an enum, sorted as upstream lists them.
fn enum_values(type_name: &str) -> Option<Value> {
    let mut name = type_name.trim_start_matches('*');
    loop {
        let named = schema::builtin().named(name)?;
        if named.is_enum && !named.values.is_empty() {
            let mut values = named.values.clone();
            values.sort_unstable();
            values.dedup();
            return Some(values.into());
        }
        name = named.underlying;
    }
}

/// What upstream adds to the description of an enum, without the documentation of each value.
fn possible_values(values: &Value) -> String {
    let lines = values.as_array().into_iter().flatten().map(|value| format!("\n - `{value}`"));
    format!("Possible enum values:{}", lines.collect::<String>())
}

fn property(owner: &Struct, field: &Field, dialect: Dialect) -> Value {
    let mut out = bare(&field.ty, field.type_name, dialect);
    let mut beside = Map::new();
    let text = [descriptions::of_field(&owner.name, &field.name), out.get("enum").map(possible_values)];
    let text: Vec<String> = text.into_iter().flatten().collect();
    if !text.is_empty() {
        beside.insert("description".into(), text.join("\n\n").into());
    }
    if dialect == Dialect::V3
        && let Some(default) = field.published_default()
    {
        beside.insert("default".into(), default);
    }
    let mut say = |key: &str, value: Value| beside.insert(format!("x-kubernetes-{key}"), value);
    if let Type::List(list) = &field.ty {
        match &list.kind {
            ListKind::Map(keys) => {
                say("list-type", "map".into());
                say("list-map-keys", keys.iter().map(|k| &**k).collect::<Vec<_>>().into());
            }
            ListKind::Set => drop(say("list-type", "set".into())),
            ListKind::Atomic if field.says_list_type => drop(say("list-type", "atomic".into())),
            ListKind::Atomic => {}
        }
    }
    if matches!(field.ty, Type::Scalar(Scalar::Bytes)) && field.says_list_type {
        say("list-type", "atomic".into());
    }
    if field.atomic {
        say("map-type", "atomic".into());
    } else if field.markers.iter().any(|m| m.ends_with("Type=granular")) {
        say("map-type", "granular".into());
    }
    let strategies =
        [("merge", field.patch.merge), ("replace", field.patch.replace), ("retainKeys", field.patch.retain_keys)];
    let strategies: Vec<&str> = strategies.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    if !strategies.is_empty() {
        say("patch-strategy", strategies.join(",").into());
    }
    if let Some(key) = &field.patch.merge_key {
        say("patch-merge-key", (&**key).into());
    }
    // Version 3 allows nothing beside a reference, so that it moves into an `allOf`.
    if dialect == Dialect::V3
        && !beside.is_empty()
        && let Some(reference) = out.remove("$ref")
    {
        out.insert("allOf".into(), json!([{ "$ref": reference }]));
    }
    out.extend(beside);
    Value::Object(out)
}

fn special_definition(name: &str, dialect: Dialect) -> Map<String, Value> {
    let value = match name.rsplit('.').next().unwrap_or_default() {
        "Quantity" if dialect == Dialect::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        "IntOrString" if dialect == Dialect::V3 => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        "IntOrString" => json!({"type": "string", "format": "int-or-string"}),
        "Time" | "MicroTime" => json!({"type": "string", "format": "date-time"}),
        "Quantity" | "Duration" => json!({"type": "string"}),
        "RawExtension" | "FieldsV1" | "Patch" => json!({"type": "object"}),
        "Info" => version_info(dialect),
        // JSON and the alternatives of a schema may be anything.
        _ => json!({}),
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn version_info(dialect: Dialect) -> Value {
    let required =
        ["major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"];
    let optional = ["emulationMajor", "emulationMinor", "minCompatibilityMajor", "minCompatibilityMinor"];
    let plain = |name: &&str| (name.to_string(), json!({"type": "string"}));
    let text = |name: &&str| match dialect {
        Dialect::V2 => plain(name),
        Dialect::V3 => (name.to_string(), json!({"type": "string", "default": ""})),
    };
    let properties: Map<String, Value> = required.iter().map(text).chain(optional.iter().map(plain)).collect();
    json!({"type": "object", "properties": properties, "required": required})
}

/// The name of a custom resource's definition: the group reversed, the version and the kind.
pub fn custom_definition_name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').rev().collect();
    parts.push(version);
    parts.push(kind);
    parts.join(".")
}

/// The definitions of a custom resource and its list, for [`super::Served::custom`]. `schema` is the version's
/// `openAPIV3Schema`; none stands for a resource that says nothing of its shape.
pub fn custom_definitions(resource: &ResourceType, schema: Option<&Value>) -> BTreeMap<String, Value> {
    let (group, version) = (&*resource.group_version.group, &*resource.group_version.version);
    let name = |kind: &str| custom_definition_name(group, version, kind);
    let gvk = |kind: &str| json!([{"group": group, "version": version, "kind": kind}]);
    let reference = |name: &str| json!({"allOf": [{"$ref": pointer(name, Dialect::V3)}]});
    let described = |name: &str, owner: &str, field: &str| {
        let mut out = reference(name);
        if let Some(text) = descriptions::of_field(owner, field) {
            out["description"] = text.into();
        }
        out
    };
    let type_meta = |properties: &mut Map<String, Value>| {
        for field in ["apiVersion", "kind"] {
            let mut text = json!({"type": "string"});
            if let Some(description) = descriptions::of_field("io.k8s.api.core.v1.Pod", field) {
                text["description"] = description.into();
            }
            properties.insert(field.into(), text);
        }
    };
    let mut object = match schema {
        Some(schema @ Value::Object(_)) => schema.clone(),
        _ => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
    };
    if schema.is_some() || object.get("properties").is_some() {
        let mut properties = object["properties"].as_object().cloned().unwrap_or_default();
        type_meta(&mut properties);
        let meta = described(&format!("{META}ObjectMeta"), "io.k8s.api.core.v1.Pod", "metadata");
        properties.insert("metadata".into(), meta);
        object["properties"] = properties.into();
    }
    object["x-kubernetes-group-version-kind"] = gvk(&resource.kind);
    let mut list_properties = Map::new();
    type_meta(&mut list_properties);
    let items = json!({
        "description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", resource.plural),
        "type": "array",
        "items": {"$ref": pointer(&name(&resource.kind), Dialect::V3)},
    });
    list_properties.insert("items".into(), items);
    let meta = described(&format!("{META}ListMeta"), "io.k8s.api.core.v1.PodList", "metadata");
    list_properties.insert("metadata".into(), meta);
    let list = json!({
        "description": format!("{} is a list of {}", resource.list_kind, resource.kind),
        "type": "object",
        "required": ["items"],
        "properties": list_properties,
        "x-kubernetes-group-version-kind": gvk(&resource.list_kind),
    });
    BTreeMap::from([(name(&resource.kind), object), (name(&resource.list_kind), list)])
}

/// A version 3 schema in the words of version 2, which lacks some of them; what it cannot say is left open.
pub(super) fn for_v2(schema: &Value) -> Value {
    let Value::Object(map) = schema else {
        return match schema {
            Value::Array(items) => Value::Array(items.iter().map(for_v2).collect()),
            other => other.clone(),
        };
    };
    if let Some([Value::Object(only)]) = map.get("allOf").and_then(Value::as_array).map(Vec::as_slice)
        && let Some(Value::String(reference)) = only.get("$ref")
    {
        let name = reference.rsplit('/').next().unwrap_or_default();
        let mut out = json!({"$ref": pointer(name, Dialect::V2)});
        if let Some(text) = map.get("description") {
            out["description"] = text.clone();
        }
        return out;
    }
    let open = map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true))
        || map.get("nullable") == Some(&Value::Bool(true));
    let mut out = Map::new();
    for (key, value) in map {
        match key.as_str() {
            "default" | "oneOf" | "anyOf" | "allOf" | "not" | "nullable" => {}
            // Old clients reject what is not of the one type that version 2 can name.
            "type" | "items" | "properties" | "required" if open && key != "properties" => {}
            "$ref" => {
                let name = value.as_str().and_then(|r| r.rsplit('/').next()).unwrap_or_default();
                out.insert(key.clone(), pointer(name, Dialect::V2));
            }
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                let properties: Map<String, Value> = properties.map(|(k, v)| (k.clone(), for_v2(v))).collect();
                out.insert(key.clone(), properties.into());
            }
            "items" | "additionalProperties" => {
                out.insert(key.clone(), for_v2(value));
            }
            _ => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(out)
}
