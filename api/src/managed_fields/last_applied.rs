//! The annotation of client-side apply, which kubectl's server-side apply reads and renews (upstream:
//! `managedfields/internal/lastappliedmanager.go` and `lastappliedupdater.go`).

use super::Write;
use super::ownership::Conflict;
use crate::apply::{compare, to_field_set, validate};
use crate::field_set::{Set, go_json};
use serde_json::Value;

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// What all annotations of an object may add up to.
const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

fn annotation(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("annotations")?.get(ANNOTATION)?.as_str().filter(|t| !t.is_empty())
}

/// The fields that client-side apply wrote and that nobody has changed since.
pub(super) fn own_fields(write: &Write<'_>, live: &Value) -> Option<Set> {
    let last: Value = serde_json::from_str(annotation(live)?).ok()?;
    let same_version = last.get("apiVersion").and_then(Value::as_str) == Some(write.api_version);
    if !same_version || !validate(&last, write.schema).is_empty() {
        return None;
    }
    let changed = compare(&last, live, write.schema);
    let fields = to_field_set(&last, write.schema);
    Some(fields.difference(&changed.modified).difference(&changed.added).difference(&changed.removed))
}

/// The conflicts that remain when these fields are none.
pub(super) fn without(conflicts: Vec<Conflict>, own: &Set) -> Vec<Conflict> {
    let rest = conflicts.into_iter().map(|c| Conflict { fields: c.fields.difference(own), id: c.id });
    rest.filter(|c| !c.fields.is_empty()).collect()
}

/// Keeps the annotation in step with what was applied, for clients that still apply by themselves.
pub(super) fn renew(object: &mut Value, config: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut config = config.clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut)
        && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
    {
        annotations.remove(ANNOTATION);
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
    let text = format!("{}\n", go_json(&config));
    let Some(annotations) = object["metadata"]["annotations"].as_object_mut() else { return };
    annotations.insert(ANNOTATION.to_owned(), text.into());
    let size: usize = annotations.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size > MAX_ANNOTATION_BYTES {
        annotations.remove(ANNOTATION);
    }
}
