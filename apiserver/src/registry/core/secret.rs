//! Secret (upstream: `pkg/registry/core/secret`, `ValidateSecret`).

use super::config_map::{DATA_BYTES_MAX, base64_len, immutable_errors};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Map, Value, names};

pub struct Secrets;

impl Resource for Secrets {
    fn set_defaults(&self, object: &mut Value) {
        let Some(map) = object.as_object_mut() else { return };
        // `stringData` is a way of writing `data`, never stored.
        if let Some(Value::Object(plain)) = map.remove("stringData") {
            let data = map.entry("data").or_insert_with(|| Value::Object(Map::new()));
            if !data.is_object() {
                *data = Value::Object(Map::new());
            }
            for (key, value) in plain {
                data[key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
            }
        }
        if map.get("type").and_then(Value::as_str).unwrap_or_default().is_empty() {
            map.insert("type".into(), "Opaque".into());
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let root = View::root(object);
        let data = root.child("data");
        let mut errors = ErrorList::new();
        let mut bytes = 0;
        for (key, value) in data.entries() {
            for why in names::config_map_key(key) {
                errors.push(Error::invalid(value.path(), key, why));
            }
            bytes += base64_len(value.str());
        }
        if bytes > DATA_BYTES_MAX {
            errors.push(Error::too_long(data.path(), DATA_BYTES_MAX as i64));
        }
        let mut require = |keys: &[&str]| {
            for key in keys {
                errors.push(Error::required(&data.path().key(key), ""));
            }
        };
        let has = |key: &str| data.child_named(key).exists();
        match root.child("type").str() {
            "kubernetes.io/service-account-token" => {
                const NAME: &str = "kubernetes.io/service-account.name";
                let annotations = root.child("metadata").child("annotations");
                if annotations.child_named(NAME).is_empty() {
                    errors.push(Error::required(&annotations.path().key(NAME), ""));
                }
            }
            kind @ ("kubernetes.io/dockercfg" | "kubernetes.io/dockerconfigjson") => {
                let key = if kind == "kubernetes.io/dockercfg" { ".dockercfg" } else { ".dockerconfigjson" };
                let value = data.child_named(key);
                if !value.exists() {
                    require(&[key]);
                } else if let Err(why) = json_object(value.str()) {
                    errors.push(Error::invalid(&data.path().key(key), "<secret contents redacted>", why));
                }
            }
            "kubernetes.io/basic-auth" if !has("username") && !has("password") => require(&["username", "password"]),
            "kubernetes.io/ssh-auth" if data.child_named("ssh-privatekey").is_empty() => require(&["ssh-privatekey"]),
            "kubernetes.io/tls" => {
                for key in ["tls.crt", "tls.key"] {
                    if !has(key) {
                        require(&[key]);
                    }
                }
            }
            _ => {}
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        let kind = View::root(object).child("type");
        if kind.str() != View::root(old).child("type").str() {
            errors.push(Error::invalid(&Path::new("type"), kind.str(), "field is immutable"));
        }
        errors.extend(immutable_errors(object, old, &["data"]));
        errors.extend(self.validate(ctx, object));
        errors
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: true, whole_first: false }
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("type", View::root(object).child("type").str().to_owned())]
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &["type"]
    }
}

/// Whether base64 text holds a JSON object; the error is what Go's decoder says.
fn json_object(text: &str) -> Result<(), String> {
    let bytes = STANDARD.decode(text).unwrap_or_default();
    match coxswain_api::codec::json::decode_any(&bytes) {
        Err(e) => Err(e.to_string()),
        Ok(decoded) => match decoded.value {
            Value::Object(_) | Value::Null => Ok(()),
            other => {
                let kind = match other {
                    Value::Bool(_) => "bool",
                    Value::Number(_) => "number",
                    Value::String(_) => "string",
                    _ => "array",
                };
                Err(format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"))
            }
        },
    }
}
