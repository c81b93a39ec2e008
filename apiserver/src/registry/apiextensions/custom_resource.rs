//! A custom resource as one version of its definition describes it (upstream: `pkg/registry/customresource`).

use super::json_path::JsonPath;
use super::printer_columns::{cell, columns, printed};
use super::rules::{self, Asked, Rules};
use crate::registry::metadata;
use crate::registry::resource::{Column, OpenApiSchema, Resource, ScalePaths};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path};
use coxswain_api::schema::StructRef;
use coxswain_api::structural::Structural;
use coxswain_api::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

pub struct CustomResource {
    schema: Arc<Schema>,
    /// What its clients are warned of, if it is deprecated.
    deprecation: Option<String>,
    scale: Option<ScalePaths>,
    has_status: bool,
    columns: Vec<(Column, JsonPath)>,
    selectable: Vec<(&'static str, JsonPath)>,
    labels: &'static [&'static str],
}

/// The schema of a version, read when the first object is held against it: many definitions are never written to.
struct Schema {
    source: OpenApiSchema,
    read: OnceLock<(Structural, Option<Rules>)>,
}

impl Schema {
    fn read(&self) -> &(Structural, Option<Rules>) {
        self.read.get_or_init(|| {
            let structural = Structural::parse(&self.source.tree());
            let rules = Rules::of(&structural);
            (structural, rules)
        })
    }
}

impl CustomResource {
    /// From the specification of a definition and one element of its `versions`.
    pub fn new(spec: &Value, version: &Value) -> Self {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let usual = || {
            let (group, kind) = (text(spec.get("group")), text(spec.pointer("/names/kind")));
            format!("{group}/{} {kind} is deprecated", text(version.get("name")))
        };
        let warning = version.get("deprecationWarning").and_then(Value::as_str);
        let deprecation =
            (version.get("deprecated") == Some(&Value::Bool(true))).then(|| warning.map_or_else(usual, str::to_owned));
        let source = match version.pointer("/schema/openAPIV3Schema") {
            Some(schema) => OpenApiSchema::new(schema),
            // A version without a schema takes any object.
            None => OpenApiSchema::new(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})),
        };
        let list = |name: &str| version.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
        let selectable: Vec<(&'static str, JsonPath)> = list("selectableFields")
            .iter()
            .filter_map(|f| f.get("jsonPath")?.as_str())
            .filter_map(|path| Some((interned(path.trim_start_matches('.')), JsonPath::parse(path)?)))
            .collect();
        let labels: Vec<&'static str> = selectable.iter().map(|(label, _)| *label).collect();
        let scale = version.pointer("/subresources/scale").filter(|s| !s.is_null()).map(|scale| {
            let path = |name: &str| -> Vec<String> {
                // Names alone, as the definition's validation has it.
                let path = scale.get(name).and_then(Value::as_str).unwrap_or_default();
                path.split('.').filter(|name| !name.is_empty()).map(String::from).collect()
            };
            let (spec, status) = (path("specReplicasPath"), path("statusReplicasPath"));
            ScalePaths { spec, status, selector: path("labelSelectorPath") }
        });
        Self {
            schema: Arc::new(Schema { source, read: OnceLock::new() }),
            deprecation,
            scale,
            has_status: version.pointer("/subresources/status").is_some_and(|s| !s.is_null()),
            columns: columns(&list("additionalPrinterColumns")),
            selectable,
            labels: interned_list(labels),
        }
    }
}

impl CustomResource {
    fn rules(&self) -> Option<&Rules> {
        self.schema.read().1.as_ref()
    }

    fn schema(&self) -> &Structural {
        &self.schema.read().0
    }

    /// The type of the objects, likewise read when it is first looked at.
    pub fn object_type(&self) -> StructRef {
        let schema = self.schema.clone();
        StructRef::lazy(move || schema.read().0.to_root())
    }

    /// Everything that is wrong with an object that replaces `old`. What was wrong before and has not changed may stay.
    fn check(&self, object: &Value, old: Option<&Value>, subresource: &str) -> ErrorList {
        let of_status = subresource == "status";
        let mut errors = match (of_status, old) {
            (true, _) => self.check_status(object, old),
            (_, Some(old)) => self.schema().validate_update(object, old),
            _ => self.schema().validate(object),
        };
        // Lists that were wrong already may stay so.
        if old.is_none_or(|old| self.schema().validate_lists(old).is_empty()) {
            errors.extend(self.schema().validate_lists(object));
        }
        errors.extend(self.schema().validate_embedded(object, &check_metadata));
        if let Some(paths) = &self.scale {
            for path in [&paths.spec, &paths.status].into_iter().skip(usize::from(of_status)) {
                errors.extend(check_replicas(object, path));
            }
        }
        // Upstream looks at the metadata first, where a name that is missing keeps rules from being asked too.
        let unnamed = old.is_none() && metadata::text(object, "name").is_empty();
        if let Some(found) = self.rules() {
            let missing = unnamed.then(|| Error::required(&Path::root(), ""));
            match rules::blocking(errors.iter().chain(&missing)) {
                Some(error) => errors.push(error),
                None => errors.extend(found.check(self.schema(), object, old, Asked::Deciding)),
            }
        }
        errors
    }

    /// The status on its own, as its writers are told of it: texts name its fields from there.
    fn check_status(&self, object: &Value, old: Option<&Value>) -> ErrorList {
        let (Some(schema), Some(status)) = (self.schema().properties.get("status"), object.get("status")) else {
            return ErrorList::new();
        };
        schema.validate_part(status, old.and_then(|old| old.get("status")), "status")
    }
}

/// The metadata of an embedded object that is at a path. It needs no name.
pub(super) fn check_metadata(object: &Value, path: &str) -> ErrorList {
    let mut found = json!({"metadata": object.get("metadata").cloned().unwrap_or_default()});
    let named = |found: &Value, field: &str| found["metadata"][field].as_str().is_some_and(|name| !name.is_empty());
    if !named(&found, "name") {
        found["metadata"]["name"] = "fakename".into();
    }
    let namespaced = named(&found, "namespace");
    let mut errors = metadata::validate(&found, namespaced, &coxswain_api::names::path_segment);
    for error in &mut errors {
        if !path.is_empty() {
            error.field = format!("{path}.{}", error.field);
        }
    }
    errors
}

/// Field labels live as long as the process, because objects in the caches name them. There are as many as definitions ever
/// had, and they come from administrators.
fn interned(text: &str) -> &'static str {
    static KNOWN: parking_lot::Mutex<Option<HashMap<String, &'static str>>> = parking_lot::Mutex::new(None);
    let mut known = KNOWN.lock();
    let known = known.get_or_insert_default();
    if let Some(kept) = known.get(text) {
        return kept;
    }
    let kept: &'static str = Box::leak(text.to_owned().into_boxed_str());
    known.insert(text.to_owned(), kept);
    kept
}

fn interned_list(labels: Vec<&'static str>) -> &'static [&'static str] {
    static KNOWN: parking_lot::Mutex<Vec<&'static [&'static str]>> = parking_lot::Mutex::new(Vec::new());
    let mut known = KNOWN.lock();
    if let Some(kept) = known.iter().find(|k| ***k == *labels) {
        return kept;
    }
    let kept: &'static [&'static str] = Box::leak(labels.into_boxed_slice());
    known.push(kept);
    kept
}

impl Resource for CustomResource {
    fn structural(&self) -> Option<&Structural> {
        Some(self.schema())
    }

    fn deprecation(&self) -> Option<&str> {
        self.deprecation.as_deref()
    }

    fn open_api(&self) -> Option<&OpenApiSchema> {
        Some(&self.schema.source)
    }

    fn scale_paths(&self) -> Option<&ScalePaths> {
        self.scale.as_ref()
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        match subresource {
            "status" => Some(&["metadata", "spec"]),
            _ if self.has_status => Some(&["status"]),
            _ => None,
        }
    }

    /// A status writer changes nothing of the metadata but who manages what.
    fn reset_for_status(&self, object: &mut Value, old: &Value) {
        let metadata = object.get("metadata");
        let kept = ["managedFields", "resourceVersion"].map(|f| (f, metadata.and_then(|m| m.get(f)).cloned()));
        object["metadata"] = old.get("metadata").cloned().unwrap_or_default();
        for (field, value) in kept {
            match value {
                Some(value) => object["metadata"][field] = value,
                None => crate::registry::metadata::remove(object, field),
            }
        }
    }

    fn set_defaults(&self, object: &mut Value) {
        self.schema().drop_nulls(object);
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        self.check(object, None, "")
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        self.check(object, Some(old), subresource)
    }

    /// What broke a rule before, and is the same, is let be.
    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        let (Some(rules), Some(old)) = (self.rules(), old) else { return Vec::new() };
        let errors = rules.check(self.schema(), object, Some(old), Asked::Warning);
        errors.iter().map(ToString::to_string).collect()
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// Everything but the metadata is the specification, and the status only if it is a subresource.
    fn spec_changed(&self, object: &Value, old: &Value) -> bool {
        let members = |tree: &Value| -> Vec<(String, Value)> {
            let map = tree.as_object().into_iter().flatten();
            let own = map.filter(|(k, _)| *k != "metadata" && !(self.has_status && *k == "status"));
            own.map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        members(object) != members(old)
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn restricts_finalizers(&self) -> bool {
        false
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let text = |value: &Value| if value.is_null() { String::new() } else { printed(value) };
        let found = |path: &JsonPath| path.find(object).map(|value| text(&value)).unwrap_or_default();
        self.selectable.iter().map(|(label, path)| (*label, found(path))).collect()
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        self.labels
    }

    fn columns(&self) -> Vec<Column> {
        self.columns.iter().map(|(column, _)| column.clone()).collect()
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        self.columns
            .iter()
            .map(|(column, path)| path.find(object).map_or(Value::Null, |value| cell(&column.kind, &value, now)))
            .collect()
    }
}

/// Replicas are numbers that are not negative, wherever they are.
fn check_replicas(object: &Value, path: &[String]) -> Option<Error> {
    let name = ScalePaths::text(path);
    let refuse =
        |value: i64, detail: String| Error { field: name.clone(), ..Error::invalid(&Path::root(), value, detail) };
    // What replicas should be within may be something else.
    let mut at = object;
    for step in &path[..path.len().saturating_sub(1)] {
        at = at.get(step).filter(|found| !found.is_null())?;
        if !at.is_object() {
            let (shown, kind) = as_in_go(at);
            let why =
                format!("{name} accessor error: {shown} is of the type {kind}, expected map[string]interface{{}}");
            return Some(refuse(0, why));
        }
    }
    let value = ScalePaths::get(object, path)?;
    match value.as_i64() {
        Some(n) if n < 0 => Some(refuse(n, "should be a non-negative integer".into())),
        Some(n) if n > i64::from(i32::MAX) => Some(refuse(n, format!("should be less than or equal to {}", i32::MAX))),
        Some(_) => None,
        None => {
            let (shown, kind) = as_in_go(value);
            let detail = format!("{name} accessor error: {shown} is of the type {kind}, expected int64");
            Some(refuse(0, detail))
        }
    }
}

/// A value as Go prints it, and the name of its type there.
fn as_in_go(value: &Value) -> (String, &'static str) {
    let kind = match value {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::Array(_) => "[]interface {}",
        _ => "map[string]interface {}",
    };
    (printed(value), kind)
}

/// What is wrong with a path that a definition names.
pub(super) fn check_path(path: &str, at: &Path) -> Option<Error> {
    // What follows the dot is not looked at: filters such as `[?(@.type=='Ready')]` are common in columns.
    (!path.starts_with('.')).then(|| Error::invalid(at, path, "must be a simple json path starting with ."))
}

/// Kept by whoever serves a definition, so that its versions share it.
pub type Shared = Arc<CustomResource>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrong_before_may_stay_wrong() {
        let version = json!({"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {
            "type": "object", "required": ["r"], "properties": {"r": {"type": "string"}, "n": {"type": "integer", "maximum": 3},
                "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
                    "type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "string", "maxLength": 1}}}},
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}}}}}});
        let resource = CustomResource::new(&json!({"group": "g.h", "names": {"kind": "K"}}), &version);
        let old = json!({"spec": {"n": 9, "l": [{"k": "a", "v": "xx"}], "set": ["a", "a"]}});
        let found = |new: Value, old: Option<&Value>| -> Vec<String> {
            resource.check(&new, old, "").into_iter().map(|e| e.field).collect()
        };
        assert_eq!(found(old.clone(), None), ["spec.l[0].v", "spec.n", "spec.r", "spec.set[1]"]);
        assert!(found(old.clone(), Some(&old)).is_empty());
        let moved = json!({"spec": {"n": 9, "l": [{"k": "b", "v": "xx"}, {"k": "a", "v": "xx"}]}});
        assert_eq!(found(moved, Some(&old)), ["spec.l[0].v", "spec.r"]);
    }
}
