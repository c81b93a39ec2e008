//! Tables: what kubectl prints (upstream: `pkg/printers/internalversion`).
//!
//! A printer is a list of columns and a function from an object to its cells. Kinds without a printer of their own here
//! print what their [`Resource`](super::resource::Resource) says, by default name and age.

use super::resource::Column;
use crate::resources::Served;
use coxswain_api::{Value, json};

/// How one kind is printed.
pub struct Printer {
    pub columns: &'static [Col],
    /// One cell for each column, from the object in the hub version.
    pub cells: fn(&Value, jiff::Timestamp) -> Vec<Value>,
}

/// A column: name, type, format, description and priority (0 is shown always, 1 with `-o wide`).
pub struct Col(pub &'static str, pub &'static str, pub &'static str, pub &'static str, pub i32);

/// The printer of a built-in kind.
fn printer(served: &Served) -> Option<&'static Printer> {
    let _ = served;
    None
}

/// `columnDefinitions`.
pub fn definitions(served: &Served) -> Value {
    let definition = |name: &str, kind: &str, format: &str, description: &str, priority: i32| {
        json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority})
    };
    Value::Array(match printer(served) {
        Some(printer) => printer.columns.iter().map(|c| definition(c.0, c.1, c.2, c.3, c.4)).collect(),
        None => {
            let columns = served.strategy.columns();
            columns.iter().map(|c| definition(c.name, c.kind, c.format, c.description, c.priority)).collect()
        }
    })
}

pub fn cells(served: &Served, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    match printer(served) {
        Some(printer) => (printer.cells)(object, now),
        None => served.strategy.cells(object, now),
    }
}

impl Column {
    /// The columns of a resource that has none of its own.
    pub fn name_and_age() -> Vec<Column> {
        vec![
            Column { name: "Name", kind: "string", format: "name", description: NAME, priority: 0 },
            Column { name: "Created At", kind: "date", format: "", description: CREATED_AT, priority: 0 },
        ]
    }
}

/// The description of every column of names.
pub const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some \
     resources may allow a client to request the generation of an appropriate name automatically. Name is primarily \
     intended for creation idempotence and configuration definition. Cannot be updated. More info: \
     https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

/// The description of every column of ages.
pub const CREATED_AT: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not \
     guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in \
     RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: \
     https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// The cells for [`Column::name_and_age`].
pub fn name_and_age(object: &Value, _now: jiff::Timestamp) -> Vec<Value> {
    let metadata = |field: &str| object.get("metadata").and_then(|m| m.get(field)).cloned();
    vec![
        metadata("name").unwrap_or_else(|| "".into()),
        metadata("creationTimestamp").unwrap_or_else(|| "<unknown>".into()),
    ]
}
