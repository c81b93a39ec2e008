//! Tables: what kubectl prints (upstream: `pkg/printers/internalversion`).
//!
//! A printer is a list of columns and a function from an object to its cells. Kinds without a printer of their own here
//! print what their [`Resource`](super::resource::Resource) says, by default name and time of creation.

mod cells;
mod cluster;
mod core;
mod network;
mod on_request;
mod policy;
mod storage;
mod workloads;

use super::resource::Column;
use crate::resources::Served;
use coxswain_api::catalogue::GroupVersion;
use coxswain_api::field::View;
use coxswain_api::{Map, Value, json};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// How one kind is printed.
pub struct Printer {
    group: &'static str,
    kind: &'static str,
    columns: &'static [Col],
    /// One cell for each column, from the object in the version it is stored in.
    cells: fn(View<'_>, jiff::Timestamp) -> Vec<Value>,
}

/// A column: name, type, format, description and priority (0 is shown always, 1 with `-o wide`). A description `@Type.field`
/// is that of the field.
pub struct Col(pub &'static str, pub &'static str, pub &'static str, pub &'static str, pub i32);

const NAME: Col = Col("Name", "string", "name", "@meta.v1.ObjectMeta.name", 0);
const AGE: Col = Col("Age", "string", "", "@meta.v1.ObjectMeta.creationTimestamp", 0);
const CREATED: Col = Col("Created At", "date", "", "@meta.v1.ObjectMeta.creationTimestamp", 0);
const CONTAINERS: Col = Col("Containers", "string", "", "Names of each container in the template.", 1);
const IMAGES: Col = Col("Images", "string", "", "Images referenced by each container in the template.", 1);

const fn text(name: &'static str, description: &'static str) -> Col {
    Col(name, "string", "", description, 0)
}
const fn number(name: &'static str, description: &'static str) -> Col {
    Col(name, "integer", "", description, 0)
}
const fn truth(name: &'static str, description: &'static str) -> Col {
    Col(name, "boolean", "", description, 0)
}
const fn wide(name: &'static str, description: &'static str) -> Col {
    Col(name, "string", "", description, 1)
}

/// Every printer by group and kind.
static PRINTERS: LazyLock<HashMap<(&'static str, &'static str), &'static Printer>> = LazyLock::new(|| {
    [
        core::PRINTERS,
        workloads::PRINTERS,
        network::PRINTERS,
        policy::PRINTERS,
        storage::PRINTERS,
        cluster::PRINTERS,
        on_request::PRINTERS,
    ]
    .into_iter()
    .flatten()
    .map(|p| ((p.group, p.kind), p))
    .collect()
});

fn printer(group: &str, kind: &str) -> Option<&'static Printer> {
    // Both groups serve the same events.
    let group = if group == "events.k8s.io" { "" } else { group };
    PRINTERS.get(&(group, kind)).copied()
}

/// `columnDefinitions` of a resource.
pub fn definitions(served: &Served) -> Value {
    if served.custom {
        return Value::Array(served.strategy.columns().iter().map(definition_of_column).collect());
    }
    definitions_of(&served.ty.group_version.group, &served.ty.kind)
        .unwrap_or_else(|| Value::Array(served.strategy.columns().iter().map(definition_of_column).collect()))
}

fn definition_of_column(c: &Column) -> Value {
    let description = described(&[&c.description]).remove(0);
    json!({"name": c.name, "type": c.kind, "format": c.format, "description": description, "priority": c.priority})
}

/// `columnDefinitions` of a built-in kind, made once.
pub fn definitions_of(group: &str, kind: &str) -> Option<Value> {
    static MADE: LazyLock<parking_lot::Mutex<HashMap<(&'static str, &'static str), Arc<Value>>>> =
        LazyLock::new(Default::default);
    let printer = printer(group, kind)?;
    let key = (printer.group, printer.kind);
    if let Some(made) = MADE.lock().get(&key) {
        return Some(Value::clone(made));
    }
    let descriptions = described(&printer.columns.iter().map(|c| c.3).collect::<Vec<_>>());
    let columns = printer.columns.iter().zip(descriptions).map(|(Col(name, kind, format, _, priority), description)| {
        json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority})
    });
    let made = Value::Array(columns.collect());
    MADE.lock().insert(key, Arc::new(made.clone()));
    Some(made)
}

/// Replaces `@Type.field` by what the documentation says of the field.
fn described(texts: &[&str]) -> Vec<String> {
    let fields: Vec<(&str, &str)> = texts.iter().filter_map(|t| t.strip_prefix('@')?.rsplit_once('.')).collect();
    let mut found = coxswain_api::openapi::field_descriptions(&fields).into_iter();
    texts
        .iter()
        .map(|text| match text.strip_prefix('@') {
            Some(_) => found.next().flatten().unwrap_or_default(),
            None => (*text).to_owned(),
        })
        .collect()
}

/// The cells of an object, which is in the version that is stored.
pub fn cells(served: &Served, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    if served.custom {
        return served.strategy.cells(object, now);
    }
    cells_of(&served.ty.group_version.group, &served.ty.kind, object, now)
        .unwrap_or_else(|| served.strategy.cells(object, now))
}

/// The cells of an object of a built-in kind.
pub fn cells_of(group: &str, kind: &str, object: &Value, now: jiff::Timestamp) -> Option<Vec<Value>> {
    let printer = printer(group, kind)?;
    if kind == "HorizontalPodAutoscaler" {
        // Metrics other than of the processor are only there in the later version.
        let mut object = object.clone();
        let version = GroupVersion { group: "autoscaling".into(), version: "v2".into() };
        coxswain_api::conversion::convert(&mut object, &version);
        return Some((printer.cells)(View::root(&object), now));
    }
    Some((printer.cells)(View::root(object), now))
}

/// How long ago a time in text was.
pub fn age_of(time: &str, now: jiff::Timestamp) -> String {
    let time = Value::from(time);
    cells::since(&View::root(&time), now)
}

/// What a row says beside its cells: pods that have ended.
pub fn row_conditions(kind: &str, object: &Value) -> Option<Value> {
    if kind != "Pod" {
        return None;
    }
    let (reason, message) = match object.pointer("/status/phase").and_then(Value::as_str)? {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

impl Column {
    /// The columns of a resource that has none of its own.
    pub fn name_and_age() -> Vec<Column> {
        let column = |Col(name, kind, format, description, priority): Col| Column {
            name: name.into(),
            kind: kind.into(),
            format: format.into(),
            description: description.into(),
            priority,
        };
        vec![column(NAME), column(CREATED)]
    }
}

/// The cells for [`Column::name_and_age`].
pub fn name_and_age(object: &Value, _now: jiff::Timestamp) -> Vec<Value> {
    let none = Map::new();
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&none);
    vec![
        metadata.get("name").cloned().unwrap_or_else(|| "".into()),
        metadata.get("creationTimestamp").cloned().unwrap_or_else(|| "<unknown>".into()),
    ]
}
