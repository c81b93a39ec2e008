//! Ingresses of versions that are no longer served, as they may still be stored.

use super::rename;
use serde_json::{Value, json};

/// An Ingress of `extensions/v1beta1` or `networking.k8s.io/v1beta1` in the shape of `v1`.
pub fn ingress_from_v1beta1(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    rename(spec, "backend", "defaultBackend");
    if let Some(backend) = spec.get_mut("defaultBackend") {
        backend_from_v1beta1(backend);
    }
    for rule in spec.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
        let paths = rule.get_mut("http").and_then(|http| http.get_mut("paths")).and_then(Value::as_array_mut);
        for path in paths.into_iter().flatten() {
            if path.get("pathType").is_none_or(Value::is_null) {
                path["pathType"] = "ImplementationSpecific".into();
            }
            if let Some(backend) = path.get_mut("backend") {
                backend_from_v1beta1(backend);
            }
        }
    }
}

fn backend_from_v1beta1(backend: &mut Value) {
    let Some(map) = backend.as_object_mut() else { return };
    let name = map.remove("serviceName").filter(|n| n.as_str().is_some_and(|n| !n.is_empty()));
    let port = map.remove("servicePort").unwrap_or_default();
    let port = match &port {
        Value::String(name) if !name.is_empty() => json!({"name": name}),
        Value::Number(number) if number.as_i64() != Some(0) => json!({"number": number}),
        _ => json!({}),
    };
    // A resource stands in the place of a service.
    if name.is_some() || port != json!({}) {
        map.insert("service".into(), json!({"name": name.unwrap_or_else(|| "".into()), "port": port}));
    }
}

/// A priority level of a version in which the shares had another name.
pub fn priority_level_from_v1beta2(object: &mut Value) {
    if let Some(limited) = object.get_mut("spec").and_then(|s| s.get_mut("limited")) {
        rename(limited, "assuredConcurrencyShares", "nominalConcurrencyShares");
    }
}
