//! Parts of a definition as upstream's internal types print them in errors: by the names of their Go fields, with every
//! field that is not set.

use super::super::rule_check;
use coxswain_api::Value;
use coxswain_api::field::{Path, View, go_json};
use std::fmt::Write;

/// How a field is shown.
#[derive(Clone, Copy)]
enum Shown {
    Text,
    Flag,
    /// As it is, or null.
    AsIs,
    Schema,
    Schemas,
    ByName,
    SchemaOrBool,
    SchemaOrArray,
    SchemasOrNames,
    Docs,
    Rules,
}

#[rustfmt::skip]
const SCHEMA: [(&str, &str, Shown); 44] = [
    ("ID", "id", Shown::Text), ("Schema", "$schema", Shown::Text), ("Ref", "$ref", Shown::AsIs),
    ("Description", "description", Shown::Text), ("Type", "type", Shown::Text), ("Nullable", "nullable", Shown::Flag),
    ("Format", "format", Shown::Text), ("Title", "title", Shown::Text), ("Default", "default", Shown::AsIs),
    ("Maximum", "maximum", Shown::AsIs), ("ExclusiveMaximum", "exclusiveMaximum", Shown::Flag),
    ("Minimum", "minimum", Shown::AsIs), ("ExclusiveMinimum", "exclusiveMinimum", Shown::Flag),
    ("MaxLength", "maxLength", Shown::AsIs), ("MinLength", "minLength", Shown::AsIs), ("Pattern", "pattern", Shown::Text),
    ("MaxItems", "maxItems", Shown::AsIs), ("MinItems", "minItems", Shown::AsIs),
    ("UniqueItems", "uniqueItems", Shown::Flag), ("MultipleOf", "multipleOf", Shown::AsIs), ("Enum", "enum", Shown::AsIs),
    ("MaxProperties", "maxProperties", Shown::AsIs), ("MinProperties", "minProperties", Shown::AsIs),
    ("Required", "required", Shown::AsIs), ("Items", "items", Shown::SchemaOrArray), ("AllOf", "allOf", Shown::Schemas),
    ("OneOf", "oneOf", Shown::Schemas), ("AnyOf", "anyOf", Shown::Schemas), ("Not", "not", Shown::Schema),
    ("Properties", "properties", Shown::ByName), ("AdditionalProperties", "additionalProperties", Shown::SchemaOrBool),
    ("PatternProperties", "patternProperties", Shown::ByName), ("Dependencies", "dependencies", Shown::SchemasOrNames),
    ("AdditionalItems", "additionalItems", Shown::SchemaOrBool), ("Definitions", "definitions", Shown::ByName),
    ("ExternalDocs", "externalDocs", Shown::Docs), ("Example", "example", Shown::AsIs),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields", Shown::AsIs),
    ("XEmbeddedResource", "x-kubernetes-embedded-resource", Shown::Flag),
    ("XIntOrString", "x-kubernetes-int-or-string", Shown::Flag),
    ("XListMapKeys", "x-kubernetes-list-map-keys", Shown::AsIs), ("XListType", "x-kubernetes-list-type", Shown::AsIs),
    ("XMapType", "x-kubernetes-map-type", Shown::AsIs), ("XValidations", "x-kubernetes-validations", Shown::Rules),
];

/// The Go names of the fields that a schema sets, in their order.
pub(super) fn fields_set(schema: &Value) -> impl Iterator<Item = &'static str> + '_ {
    SCHEMA
        .iter()
        .filter(|(_, name, shown)| {
            let value = &schema[*name];
            match shown {
                Shown::Text => value.as_str().is_some_and(|text| !text.is_empty()),
                Shown::Flag => *value == true,
                _ => !value.is_null(),
            }
        })
        .map(|(go, _, _)| *go)
}

fn object(members: impl Iterator<Item = (String, String)>) -> String {
    let members: Vec<String> = members.map(|(name, value)| format!("{}:{value}", go_json(&name.into()))).collect();
    format!("{{{}}}", members.join(","))
}

fn array(elements: impl Iterator<Item = String>) -> String {
    format!("[{}]", elements.collect::<Vec<_>>().join(","))
}

pub(super) fn schema(value: &Value) -> String {
    if !value.is_object() {
        return "null".into();
    }
    object(SCHEMA.iter().map(|(go, name, shown)| ((*go).to_owned(), field(&value[*name], *shown))))
}

fn by_name(value: &Value, each: impl Fn(&Value) -> String) -> String {
    match value.as_object() {
        Some(map) => {
            let mut members: Vec<_> = map.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            object(members.into_iter().map(|(name, value)| (name.clone(), each(value))))
        }
        None => "null".into(),
    }
}

fn field(value: &Value, shown: Shown) -> String {
    let list = || value.as_array().into_iter().flatten();
    match shown {
        Shown::Text => go_json(&value.as_str().unwrap_or_default().into()),
        Shown::Flag => (*value == true).to_string(),
        _ if value.is_null() => "null".into(),
        Shown::AsIs => go_json(value),
        Shown::Schema => schema(value),
        Shown::Schemas => array(list().map(schema)),
        Shown::ByName => by_name(value, schema),
        Shown::SchemaOrBool => {
            format!("{{\"Allows\":{},\"Schema\":{}}}", value.is_object() || *value == true, schema(value))
        }
        Shown::SchemaOrArray => {
            let several = if value.is_array() { array(list().map(schema)) } else { "null".into() };
            format!("{{\"Schema\":{},\"JSONSchemas\":{several}}}", schema(value))
        }
        Shown::SchemasOrNames => by_name(value, |one| {
            let names = if one.is_array() { go_json(one) } else { "null".into() };
            format!("{{\"Schema\":{},\"Property\":{names}}}", schema(one))
        }),
        Shown::Docs => {
            let text = |name: &str| field(&value[name], Shown::Text);
            format!("{{\"Description\":{},\"URL\":{}}}", text("description"), text("url"))
        }
        Shown::Rules => array(View::new(Some(value), Path::root()).items().map(|rule| rule_check::printed(&rule))),
    }
}

/// What is said alike in all versions is shown as absent from each.
pub(super) struct Shared {
    pub schema: bool,
    pub subresources: bool,
    pub columns: bool,
    pub selectable: bool,
}

pub(super) fn versions(versions: &[View<'_>], shared: &Shared) -> String {
    array(versions.iter().map(|version| one_version(version, shared)))
}

fn one_version(version: &View<'_>, shared: &Shared) -> String {
    let empty = Value::Null;
    let of = |name: &'static str, hidden: bool| {
        let found = version.child(name).value();
        found.filter(|_| !hidden).unwrap_or(&empty).clone()
    };
    let or_null =
        |value: &Value, made: &dyn Fn(&Value) -> String| if value.is_null() { "null".into() } else { made(value) };
    let mut out = format!(
        "{{\"Name\":{},\"Served\":{},\"Storage\":{},\"Deprecated\":{},\"DeprecationWarning\":{}",
        go_json(&version.child("name").str().into()),
        version.child("served").bool(),
        version.child("storage").bool(),
        version.child("deprecated").bool(),
        go_json(&of("deprecationWarning", false)),
    );
    let schema_shown = or_null(&of("schema", shared.schema), &|found| {
        format!("{{\"OpenAPIV3Schema\":{}}}", schema(&found["openAPIV3Schema"]))
    });
    let _ = write!(out, ",\"Schema\":{schema_shown}");
    let subresources = or_null(&of("subresources", shared.subresources), &|found| {
        let status = if found["status"].is_null() { "null" } else { "{}" };
        let scale = or_null(&found["scale"], &|scale| {
            let text = |name: &str| field(&scale[name], Shown::Text);
            format!(
                "{{\"SpecReplicasPath\":{},\"StatusReplicasPath\":{},\"LabelSelectorPath\":{}}}",
                text("specReplicasPath"),
                text("statusReplicasPath"),
                go_json(&scale["labelSelectorPath"])
            )
        });
        format!("{{\"Status\":{status},\"Scale\":{scale}}}")
    });
    let _ = write!(out, ",\"Subresources\":{subresources}");
    let list = |value: &Value, each: &dyn Fn(&Value) -> String| array(value.as_array().into_iter().flatten().map(each));
    let columns = or_null(&of("additionalPrinterColumns", shared.columns), &|found| {
        list(found, &|column| {
            let text = |name: &str| field(&column[name], Shown::Text);
            format!(
                "{{\"Name\":{},\"Type\":{},\"Format\":{},\"Description\":{},\"Priority\":{},\"JSONPath\":{}}}",
                text("name"),
                text("type"),
                text("format"),
                text("description"),
                column["priority"].as_i64().unwrap_or_default(),
                text("jsonPath")
            )
        })
    });
    let selectable = or_null(&of("selectableFields", shared.selectable), &|found| {
        list(found, &|one| format!("{{\"JSONPath\":{}}}", field(&one["jsonPath"], Shown::Text)))
    });
    let _ = write!(out, ",\"AdditionalPrinterColumns\":{columns},\"SelectableFields\":{selectable}}}");
    out
}
