//! What only the API server reads: the texts of requests, definitions with their expressions.

use crate::objects::context;
use coxswain_api::{Value, names};
use coxswain_apiserver::authentication::jwt::Unverified;
use coxswain_apiserver::list::{Continue, parse_resource_version};
use coxswain_apiserver::negotiate;
use coxswain_apiserver::registry::apiextensions::custom_resource::CustomResource;
use coxswain_apiserver::registry::apiextensions::json_path::JsonPath;
use coxswain_apiserver::registry::builtin;
use coxswain_apiserver::registry::options::{DeleteOptions, OptionsKind, Query, WriteOptions};
use coxswain_apiserver::registry::resource::Resource;
use http::{HeaderMap, HeaderValue};
use serde_json::json;

/// A definition with this schema.
fn definition(schema: &Value) -> Value {
    json!({"metadata": {"name": "as.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "as", "singular": "a", "kind": "A", "listKind": "AList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
            "additionalPrinterColumns": [{"name": "n", "type": "string", "jsonPath": ".spec.n"}],
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}}}]}})
}

/// Everything the API server does with a definition and an object of it: checks with their expressions, rules, columns.
pub(crate) fn serve(schema: &Value, object: &Value, old: &Value) {
    let ctx = context();
    let definition = definition(schema);
    let refused = builtin::strategy("apiextensions.k8s.io", "customresourcedefinitions").validate(&ctx, &definition);
    let resource = CustomResource::new(&definition["spec"], &definition["spec"]["versions"][0]);
    if refused.is_empty() {
        let _ = resource.validate(&ctx, object);
        let _ = resource.validate_update(&ctx, object, old, "");
        let _ = resource.cells(object, ctx.now);
    }
}

/// Expressions: each is compiled, and evaluated if that is possible, within bounds of time and stack.
pub(crate) fn cel(bytes: &[u8]) {
    let Ok(rule) = std::str::from_utf8(bytes) else { return };
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
        "x-kubernetes-validations": [{"rule": rule, "messageExpression": "string(self.n)"}],
        "properties": {
            "n": {"type": "integer"}, "s": {"type": "string", "maxLength": 10}, "d": {"type": "number"}, "b": {"type": "boolean"},
            "t": {"type": "string", "format": "date-time"},
            "l": {"type": "array", "maxItems": 3, "items": {"type": "string", "maxLength": 3}},
            "m": {"type": "object", "maxProperties": 3, "additionalProperties": {"type": "integer"}}}}}});
    let object = json!({"apiVersion": "example.com/v1", "kind": "A", "metadata": {"name": "a"}, "spec": {"n": 3, "s": "abc",
        "d": 1.5, "b": true, "t": "2001-02-03T04:05:06Z", "l": ["a", "b"], "m": {"a": 1, "b": 2}}});
    let started = std::time::Instant::now();
    serve(&schema, &object, &object);
    assert!(started.elapsed().as_secs() < 10, "an expression takes {:?}", started.elapsed());
}

/// What requests carry in queries, headers and fields; the first byte says which parser gets the text.
pub(crate) fn request_texts(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match first % 7 {
        0 => {
            if let Ok((key, revision)) = Continue::decode(text, "/registry/pods/") {
                assert!(key.starts_with("/registry/pods/") && !key.contains("/../"), "{key} climbs out of its prefix");
                let token = Continue::encode(&key, "/registry/pods/", revision);
                assert_eq!(Continue::decode(&token, "/registry/pods/").ok(), Some((key, revision)));
            }
        }
        1 => {
            let mut headers = HeaderMap::new();
            let Ok(value) = HeaderValue::from_str(text) else { return };
            headers.insert(http::header::ACCEPT, value);
            let _ = negotiate::accept(&headers, &Query::parse(None), rest.len() % 2 == 0);
        }
        2 => {
            let spec = json!({"spec": {"schedule": text, "timeZone": text}});
            let _ = builtin::strategy("batch", "cronjobs").validate(&context(), &spec);
        }
        3 => {
            if let Some(path) = JsonPath::parse(text) {
                let object = json!({"spec": {"list": [{"name": "a", "n": [1]}], "x": {"b": 1}}, "a": {"b": [[1]]}});
                let _ = path.find(&object);
            }
        }
        4 => {
            let query = Query::parse(Some(text));
            let _ = (query.first("limit"), query.all("dryRun"));
            for kind in [OptionsKind::Create, OptionsKind::Update, OptionsKind::Patch { apply: true }] {
                let _ = WriteOptions::of_query(&query, kind);
            }
            let _ = DeleteOptions::of_query(&query);
        }
        5 => drop(Unverified::parse(text)),
        _ => {
            let _ = (parse_resource_version(text), names::dns1123_subdomain(text, true));
        }
    }
}
