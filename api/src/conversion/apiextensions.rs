//! CustomResourceDefinitions of `v1beta1`: no longer served, but what upstream still stores them in.

use serde_json::{Map, Value, json};

/// The parts that `v1beta1` may state once for all versions, and `v1` states in each.
const SHARED: [(&str, &str); 4] = [
    ("validation", "schema"),
    ("subresources", "subresources"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
    ("selectableFields", "selectableFields"),
];

/// A definition of `v1beta1` as one of `v1`.
pub fn definition_from_v1beta1(mut object: Value) -> Value {
    object["apiVersion"] = "apiextensions.k8s.io/v1".into();
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return object };
    let first = spec.remove("version").filter(|v| v.as_str().is_some_and(|v| !v.is_empty()));
    let mut versions = match spec.remove("versions") {
        Some(Value::Array(versions)) if !versions.is_empty() => versions,
        _ => first.into_iter().map(|name| json!({"name": name, "served": true, "storage": true})).collect(),
    };
    for (shared, own) in SHARED {
        let Some(value) = spec.remove(shared).filter(|v| !v.is_null()) else { continue };
        for version in versions.iter_mut().filter_map(Value::as_object_mut) {
            version.entry(own).or_insert_with(|| value.clone());
        }
    }
    for version in &mut versions {
        let columns = version.get_mut("additionalPrinterColumns").and_then(Value::as_array_mut);
        for column in columns.into_iter().flatten() {
            super::rename(column, "JSONPath", "jsonPath");
        }
    }
    spec.insert("versions".into(), versions.into());
    // What was not said was true then.
    spec.entry("preserveUnknownFields").or_insert(Value::Bool(true));
    if let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut) {
        let mut webhook = Map::new();
        for (old, new) in
            [("webhookClientConfig", "clientConfig"), ("conversionReviewVersions", "conversionReviewVersions")]
        {
            webhook.extend(conversion.remove(old).filter(|v| !v.is_null()).map(|v| (new.to_owned(), v)));
        }
        if !webhook.is_empty() && conversion.get("strategy").and_then(Value::as_str) == Some("Webhook") {
            conversion.insert("webhook".into(), webhook.into());
        }
    }
    object
}
