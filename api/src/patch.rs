//! Patches: JSON patch, JSON merge patch and strategic merge patch (upstream: `apiserver/pkg/endpoints/handlers/patch.go`,
//! `evanphx/json-patch` v4 and `apimachinery/pkg/util/strategicpatch`).
//!
//! All of them are pure: they take the present object and the decoded patch, and give the patched object or the refusal.
//! Decoding a patch (and finding what is not well-formed in it) is the codec's affair. Apply is not here but in
//! [`crate::apply`] and [`crate::managed_fields`].

mod json_patch;
pub mod restore;
mod strategic;

use crate::Status;
use crate::status::Details;
use serde_json::{Map, Value};

/// More operations than this in one JSON patch are refused.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// Applies an RFC 6902 patch. Like upstream's library it also takes negative indices, and a `test` for null passes where
/// there is no value.
pub fn json(document: &Value, patch: &Value) -> Result<Value, Status> {
    let operations: &[Value] = match patch {
        Value::Array(operations) => operations,
        Value::Null => &[],
        other => {
            let what =
                format!("json: cannot unmarshal {} into Go value of type []handlers.jsonPatchOp", json_kind(other));
            return Err(Status::bad_request(format!("error decoding patch: {what}")));
        }
    };
    if operations.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(Status::too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    json_patch::apply(document, operations).map_err(|_| unprocessable())
}

/// What strict decoding says of the operations of an RFC 6902 patch: which fields it does not know, or why it is none at all.
pub fn unknown_fields(patch: &Value) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    for (i, operation) in patch.as_array().into_iter().flatten().enumerate() {
        let fields = match operation {
            Value::Object(fields) => fields,
            Value::Null => continue,
            other => {
                let kind = json_kind(other);
                return Err(format!("json: cannot unmarshal {kind} into Go value of type handlers.jsonPatchOp"));
            }
        };
        for (name, value) in fields {
            match name.as_str() {
                "value" => {}
                "op" | "path" | "from" if value.is_string() || value.is_null() => {}
                "op" | "path" | "from" => {
                    let kind = json_kind(value);
                    return Err(format!(
                        "json: cannot unmarshal {kind} into Go struct field jsonPatchOp.{name} of type string"
                    ));
                }
                _ => unknown.push(format!("unknown field \"[{i}].{name}\"")),
            }
        }
    }
    Ok(unknown)
}

/// Applies an RFC 7386 merge patch.
pub fn merge(document: &Value, patch: &Value) -> Result<Value, Status> {
    let mut merged = document.clone();
    match patch {
        Value::Object(patch) => merge_object(&mut merged, patch),
        // Upstream's decoder takes null for an empty patch, and its library then refuses it.
        Value::Null => return Err(Status::bad_request("Invalid JSON Patch")),
        _ => {
            let what =
                format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", json_kind(patch));
            return Err(Status::bad_request(format!("error decoding patch: {what}")));
        }
    }
    Ok(merged)
}

fn merge_object(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { unreachable!("it was made an object just above") };
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(inner) if target.get(key).is_some_and(Value::is_object) => {
                if let Some(slot) = target.get_mut(key) {
                    merge_object(slot, inner);
                }
            }
            _ => {
                target.insert(key.clone(), without_nulls(value));
            }
        }
    }
}

/// A new value as a merge patch leaves it: nulls in it delete nothing, and are gone.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v)));
            Value::Object(kept.collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

pub use strategic::strategic;

/// What a refused patch answers when the reason is not told to the client.
fn unprocessable() -> Status {
    Status::new(422, "Invalid", "the server rejected our request due to an error in our request")
        .with_details(Details::default())
}

/// The kind of a JSON value in the words of Go's decoder.
pub fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A tree as Go's `%v` prints it: `map[image:q name:c]`, `[a b]`, `<nil>`. Some messages of upstream carry such dumps.
pub fn go_print(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(s) => s.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_print).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_print(v))).collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_patches_follow_upstreams_library() {
        let doc = json!({"a": {"b": [1, 2, 3]}, "~/": 1});
        let patched = |patch: Value| json(&doc, &patch);
        assert_eq!(
            patched(json!([
                {"op": "test", "path": "/a/c", "value": null},
                {"op": "add", "path": "/a/b/-", "value": 4},
                {"op": "remove", "path": "/a/b/-4"},
                {"op": "copy", "from": "/a/b/0", "path": "/x"},
                {"op": "move", "from": "/~0~1", "path": "/y"},
            ]))
            .unwrap(),
            json!({"a": {"b": [2, 3, 4]}, "x": 2, "y": 1})
        );
        for bad in [
            json!([{"op": "test", "path": "/a/b/0", "value": 2}]),
            json!([{"op": "remove", "path": "/a/z"}]),
            json!([{"op": "add", "path": "/z/z", "value": 1}]),
            json!([{"op": "add", "path": "/a/b/9", "value": 1}]),
            json!([{"op": "dance", "path": "/a"}]),
        ] {
            assert_eq!(patched(bad.clone()).unwrap_err().code, 422, "{bad}");
        }
        assert_eq!(patched(json!({})).unwrap_err().code, 400);
    }

    #[test]
    fn merge_patches_delete_by_null_and_replace_lists() {
        let doc = json!({"a": {"b": 1, "c": [1]}, "d": 1});
        let patch = json!({"a": {"b": null, "c": [2, null], "n": {"x": null, "y": [{"z": null}]}}, "d": {"e": 1}});
        assert_eq!(merge(&doc, &patch).unwrap(), json!({"a": {"c": [2, null], "n": {"y": [{}]}}, "d": {"e": 1}}));
    }
}
