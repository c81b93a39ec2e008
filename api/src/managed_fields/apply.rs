//! Server-side apply (upstream: `FieldManager.Apply` with its chain of managers).

use super::entries::{Managed, ManagerId, Operation};
use super::ownership::{self, Conflict};
use super::{STRIPPED, Write, entries_of, last_applied, set_entries, take_entries, track_update};
use crate::Status;
use crate::apply::{merge, validate, zero};
use crate::field_set::path_text;
use crate::status::{Cause, Details};
use serde_json::Value;

/// The outcome of an apply.
#[derive(Debug)]
pub struct Applied {
    /// The merged object with its `managedFields`. It has not been decoded: it may hold nulls and values that are not
    /// canonical or not valid, so the caller decodes and defaults it like any other object.
    pub object: Value,
    /// Whether the configuration changed nothing in the object (its ownership may have changed).
    pub unchanged: bool,
}

/// Merges a configuration into the live object, or says who is in the way. `live` is none if the object does not exist yet.
pub fn apply(write: &Write<'_>, live: Option<&Value>, config: &Value, force: bool) -> Result<Applied, Status> {
    let text = |name| config.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("apiVersion") != write.api_version || text("kind") != write.kind {
        let message = format!("invalid object type: {}", kind_text(text("apiVersion"), text("kind")));
        return Err(Status::bad_request(message));
    }
    let mut live = match live {
        Some(live) => live.clone(),
        None => {
            let mut object = zero(write.schema);
            object["apiVersion"] = write.api_version.into();
            object["kind"] = write.kind.into();
            object
        }
    };
    let mut managed = Managed::decode(entries_of(&live).cloned())
        .map_err(|e| Status::new(500, "", format!("failed to decode managed fields: {e}")))?;
    take_entries(&mut live);
    if managed.is_empty() {
        // Nobody kept track so far: what is there belongs to whoever wrote before.
        let mut empty = zero(write.schema);
        if write.schema.name.is_empty() {
            empty["apiVersion"] = write.api_version.into();
            empty["kind"] = write.kind.into();
        }
        track_update(write, "before-first-apply", &empty, &live, &mut managed);
    }
    if entries_of(config).is_some_and(|e| !e.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }

    let attempt = |managed: &Managed, force: bool| {
        let mut managed = managed.clone();
        merge_and_own(write, &live, config, &mut managed, force).map(|object| (object, managed))
    };
    let (object, mut managed) = match attempt(&managed, force) {
        Err(Failure::Conflicts(conflicts)) if write.manager == "kubectl" => {
            // What client-side apply wrote last is this manager's own: moving from one to the other is no conflict.
            match last_applied::own_fields(write, &live) {
                None => return Err(conflict_status(&conflicts)),
                Some(own) => {
                    let rest = last_applied::without(conflicts, &own);
                    if !rest.is_empty() {
                        return Err(conflict_status(&rest));
                    }
                    attempt(&managed, true).map_err(Failure::into_status)?
                }
            }
        }
        other => other.map_err(Failure::into_status)?,
    };

    let id = applier(write);
    if let Some(entry) = managed.entries.get_mut(&id) {
        let set = entry.set().difference(&STRIPPED);
        if set.is_empty() {
            managed.entries.remove(&id);
        } else {
            entry.replace(set);
        }
    }
    let unchanged = object == live;
    if !unchanged && let Some(entry) = managed.entries.get_mut(&id) {
        entry.time = Some(crate::time::format_seconds(write.now).into());
    }
    let mut object = if unchanged { live } else { object };
    if write.manager == "kubectl" {
        last_applied::renew(&mut object, config);
    }
    set_entries(&mut object, managed.encode());
    Ok(Applied { object, unchanged })
}

fn applier(write: &Write<'_>) -> ManagerId {
    ManagerId {
        manager: if write.manager.is_empty() { "unknown".into() } else { write.manager.into() },
        operation: Operation::Apply,
        api_version: "".into(),
        subresource: write.subresource.into(),
    }
}

enum Failure {
    Refused(Status),
    Conflicts(Vec<Conflict>),
}

impl Failure {
    fn into_status(self) -> Status {
        match self {
            Failure::Refused(status) => status,
            Failure::Conflicts(conflicts) => conflict_status(&conflicts),
        }
    }
}

fn merge_and_own(
    write: &Write<'_>,
    live: &Value,
    config: &Value,
    managed: &mut Managed,
    force: bool,
) -> Result<Value, Failure> {
    let internal = |message: String| Failure::Refused(Status::new(500, "", message));
    let errors = validate(config, write.schema);
    if !errors.is_empty() {
        let who = describe(config, write);
        return Err(internal(format!("failed to create typed patch object ({who}): {errors}")));
    }
    let merged = merge(live, config, write.schema).map_err(|e| internal(format!("failed to merge config: {e}")))?;
    ownership::apply(write, live, merged, config, managed, &applier(write), force).map_err(Failure::Conflicts)
}

/// `namespace/name; group/version, Kind=kind` of a configuration, as upstream's messages name it.
pub fn describe(config: &Value, write: &Write<'_>) -> String {
    let metadata = |name| {
        let value = config.get("metadata").and_then(|m| m.get(name));
        value.and_then(Value::as_str).unwrap_or_default()
    };
    format!("{}/{}; {}", metadata("namespace"), metadata("name"), kind_text(write.api_version, write.kind))
}

/// `apps/v1, Kind=Deployment`; the core group is written `/v1`.
fn kind_text(api_version: &str, kind: &str) -> String {
    let slash = if api_version.contains('/') { "" } else { "/" };
    format!("{slash}{api_version}, Kind={kind}")
}

/// The refusal that names every manager and field in the way.
fn conflict_status(conflicts: &[Conflict]) -> Status {
    let mut causes = Vec::new();
    let mut grouped: Vec<String> = Vec::new();
    let mut single = String::new();
    for conflict in conflicts {
        let who = conflict.id.describe();
        grouped.push(format!("conflicts with {who}:"));
        conflict.fields.visit(&mut |path| {
            let field = path_text(path);
            grouped.push(format!("- {field}"));
            single = format!("conflict with {who}: {field}");
            let message = format!("conflict with {who}");
            causes.push(Cause { reason: "FieldManagerConflict".into(), message, field });
        });
    }
    let message = match causes.len() {
        1 => format!("Apply failed with 1 conflict: {single}"),
        n => format!("Apply failed with {n} conflicts: {}", grouped.join("\n")),
    };
    Status::new(409, "Conflict", message).with_details(Details { causes, ..Details::default() })
}
