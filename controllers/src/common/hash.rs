//! Hashes of pod templates, which name ReplicaSets and controller revisions.
//!
//! Upstream hashes the text that Go's spew library prints for a template in memory: every field of every struct in order,
//! with Go's names and types. A cluster taken over from upstream would roll out all its Deployments anew if the hashes
//! differed, so that text is made here from the template's JSON and a table of the types that a template reaches
//! (`hash/template.txt`: a type a line, its fields as `JSON_NAME[=GO_NAME]:GO_TYPE`, inlined structs without a JSON name).

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde::Serialize;
use serde_json::{Map, Value};

mod quantity;

struct Field {
    json: &'static str,
    go: String,
    kind: &'static str,
}

static TYPES: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    let parse = |text: &'static str| {
        let (name, kind) = text.split_once(':').expect("a field has a type");
        let (json, go) = match name.split_once('=') {
            Some((json, go)) => (json, go.to_owned()),
            None => (name, name[..1].to_uppercase() + &name[1..]),
        };
        Field { json, go, kind }
    };
    include_str!("hash/template.txt")
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, fields)| (name, fields.split(' ').map(parse).collect()))
        .collect()
});

/// The hash of a pod template, as upstream computes and encodes it. The count of collisions makes another hash of the same.
pub fn pod_template(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let value = serde_json::to_value(template).expect("a template is valid JSON");
    let mut hash = Fnv32a::new();
    hash.write(dump("v1.PodTemplateSpec", &value).as_bytes());
    if let Some(collisions) = collisions {
        hash.write(&u64::from(collisions as u32).to_le_bytes());
    }
    safe_encode(&hash.0.to_string())
}

/// The hash by which upstream orders the parts of Endpoints (`DeepHashObject` with FNV-1a of 128 bits). `kind` is the Go type.
pub fn deep(kind: &'static str, object: &impl Serialize) -> u128 {
    let value = serde_json::to_value(object).expect("an object is valid JSON");
    let step = |hash: u128, byte| (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    dump(kind, &value).bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, step)
}

fn dump(kind: &'static str, value: &Value) -> String {
    let mut out = String::with_capacity(8192);
    format(&mut out, kind, Some(value), true);
    out
}

/// FNV-1a of 32 bits.
pub struct Fnv32a(pub u32);

impl Default for Fnv32a {
    fn default() -> Self {
        Self::new()
    }
}

impl Fnv32a {
    pub fn new() -> Self {
        Self(0x811c_9dc5)
    }

    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

/// FNV-1 of 32 bits.
pub fn fnv32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| hash.wrapping_mul(0x0100_0193) ^ u32::from(*byte))
}

/// Digits written in an alphabet without vowels, so that no words come out.
pub fn safe_encode(text: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    text.bytes().map(|byte| ALPHABET[byte as usize % ALPHABET.len()] as char).collect()
}

/// Prints a value of a Go type; absent values are the type's zero.
fn format(out: &mut String, kind: &'static str, value: Option<&Value>, typed: bool) {
    let value = value.filter(|value| !value.is_null());
    let (shown, basic) = kind.split_once('~').unwrap_or((kind, kind));
    if let Some(target) = kind.strip_prefix('*') {
        match value {
            None if typed => {
                let _ = write!(out, "({shown})<nil>");
            }
            None => out.push_str("<nil>"),
            Some(value) => {
                if typed {
                    let _ = write!(out, "({shown})");
                } else {
                    out.push_str("<*>");
                }
                format(out, target, Some(value), false);
            }
        }
        return;
    }
    if typed {
        let _ = write!(out, "({shown})");
    }
    if let Some(element) = kind.strip_prefix("[]") {
        let items = value.and_then(Value::as_array).filter(|items| !items.is_empty());
        return match items {
            None => out.push_str("<nil>"),
            Some(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    format(out, element, Some(item), false);
                }
                out.push(']');
            }
        };
    }
    match basic {
        "map[string]string" => format_map(out, "string", value),
        "v1.ResourceList" => format_map(out, "resource.Quantity", value),
        "string" => out.push_str(value.and_then(Value::as_str).unwrap_or_default()),
        "bool" => {
            let _ = write!(out, "{}", value.and_then(Value::as_bool).unwrap_or(false));
        }
        "int32" | "int64" => {
            let _ = write!(out, "{}", value.and_then(Value::as_i64).unwrap_or(0));
        }
        "resource.Quantity" => quantity::format(out, value.and_then(Value::as_str)),
        "intstr.IntOrString" => {
            let (tag, number, text) = match value {
                Some(Value::String(text)) => (1, 0, text.as_str()),
                Some(number) => (0, number.as_i64().unwrap_or(0), ""),
                None => (0, 0, ""),
            };
            let _ = write!(out, "{{Type:(intstr.Type){tag} IntVal:(int32){number} StrVal:(string){text}}}");
        }
        // Templates carry no times: the field is there, and zero.
        "v1.Time" => out.push_str("{Time:(time.Time){wall:(uint64)0 ext:(int64)0 loc:(*time.Location)<nil>}}"),
        name => format_struct(out, name, value.and_then(Value::as_object)),
    }
}

fn format_map(out: &mut String, element: &'static str, value: Option<&Value>) {
    let Some(entries) = value.and_then(Value::as_object).filter(|entries| !entries.is_empty()) else {
        return out.push_str("<nil>");
    };
    let mut keys: Vec<&String> = entries.keys().collect();
    keys.sort();
    out.push_str("map[");
    for (index, key) in keys.into_iter().enumerate() {
        if index > 0 {
            out.push(' ');
        }
        let _ = write!(out, "{key}:");
        format(out, element, entries.get(key), false);
    }
    out.push(']');
}

fn format_struct(out: &mut String, name: &str, object: Option<&Map<String, Value>>) {
    out.push('{');
    for (index, field) in TYPES.get(name).into_iter().flatten().enumerate() {
        if index > 0 {
            out.push(' ');
        }
        let _ = write!(out, "{}:", field.go);
        if field.json.is_empty() {
            // An inlined struct has its fields in the same JSON object.
            let _ = write!(out, "({})", field.kind);
            format_struct(out, field.kind, object);
        } else {
            format(out, field.kind, object.and_then(|object| object.get(field.json)), true);
        }
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a template as defaulted by the API server.
    fn hash(template: Value) -> String {
        pod_template(&serde_json::from_value(template).unwrap(), None)
    }

    #[test]
    fn ports_are_in_upstreams_order() {
        let port = |name: &str, port: i32, protocol: &str| {
            deep("v1.EndpointPort", &serde_json::json!({"name": name, "port": port, "protocol": protocol}))
        };
        assert!(port("b", 8081, "UDP") < port("a", 8080, "TCP"));
        let in_slice = |name: &str, port: i32| {
            let port = serde_json::json!({"name": name, "port": port, "protocol": "TCP"});
            deep("v1.EndpointPort~discovery.EndpointPort", &port)
        };
        assert!(in_slice("plain", 8081) < in_slice("web", 8080));
    }

    #[test]
    fn a_plain_template_has_upstreams_hash() {
        let template = serde_json::json!({
            "metadata": {"labels": {"app": "de00"}},
            "spec": {
                "containers": [{"name": "c", "image": "registry.k8s.io/e2e-test-images/agnhost:2.63.0", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    "imagePullPolicy": "IfNotPresent"}],
                "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                "securityContext": {}, "schedulerName": "default-scheduler",
            },
        });
        assert_eq!(hash(template), "f844b9cbb");
    }

    #[test]
    fn quantities_and_pointers_show_in_the_hash_as_go_holds_them() {
        let template = serde_json::json!({
            "metadata": {"labels": {"app": "de38"}},
            "spec": {
                "containers": [{"name": "c", "image": "registry.k8s.io/e2e-test-images/agnhost:2.63.0", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    "imagePullPolicy": "IfNotPresent"}],
                "restartPolicy": "Always", "terminationGracePeriodSeconds": 0, "dnsPolicy": "ClusterFirst",
                "securityContext": {}, "schedulerName": "default-scheduler", "shareProcessNamespace": true,
                "runtimeClassName": "rc", "preemptionPolicy": "Never",
                "resources": {"requests": {"cpu": "1", "memory": "100Mi"}, "limits": {"memory": "256Mi"}},
            },
        });
        assert_eq!(hash(template), "67dd5bf897");
    }
}
