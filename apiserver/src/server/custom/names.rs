//! Which names of a definition are accepted (upstream: the naming controller of `apiextensions-apiserver`).

use super::{strings, text};
use crate::registry::apiextensions::definition::{is_true, set_condition};
use coxswain_api::field::go_quote;
use coxswain_api::{Value, json, time};
use coxswain_storage::Revision;
use std::collections::{BTreeMap, HashSet};

/// What others need to know of a definition, and whether there is anything left to do about it.
pub(super) struct Known {
    pub(super) revision: Revision,
    pub(super) group: String,
    /// Its accepted plural, singular and short names.
    resources: Vec<String>,
    /// Its accepted kinds.
    kinds: Vec<String>,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Something is to be done about it, or to be tried again.
    Pending,
    /// Somebody else has its names; it is looked at again when a definition of its group changes.
    Conflicted,
    Settled,
}

impl Known {
    pub(super) fn of(definition: &Value, revision: Revision) -> Self {
        let accepted = |field: &str| text(definition, &format!("/status/acceptedNames/{field}")).to_owned();
        let mut resources = vec![accepted("plural"), accepted("singular")];
        resources.extend(strings(definition, "/status/acceptedNames/shortNames"));
        let kinds = vec![accepted("kind"), accepted("listKind")];
        Self { revision, group: text(definition, "/spec/group").to_owned(), resources, kinds, state: State::Pending }
    }
}

/// What came of looking at the names of a definition.
pub(super) struct Accepted {
    /// The definition with its new status, if that differs from the one it has.
    pub(super) changed: Option<Value>,
    /// Whether nobody else has its names.
    pub(super) free: bool,
    /// Whether it may be served: names that were accepted once stay so.
    pub(super) servable: bool,
}

/// Checks the names of a definition against those of all others of its group.
pub(super) fn accept(definition: &Value, all: &BTreeMap<String, Known>) -> Accepted {
    let group = text(definition, "/spec/group");
    let own = text(definition, "/metadata/name");
    let others = || all.iter().filter(|(name, known)| known.group == group && *name != own);
    let resources: HashSet<String> = others().flat_map(|(_, known)| known.resources.iter().cloned()).collect();
    let kinds: HashSet<String> = others().flat_map(|(_, known)| known.kinds.iter().cloned()).collect();
    let requested = |field: &str| text(definition, &format!("/spec/names/{field}")).to_owned();
    let before = |field: &str| text(definition, &format!("/status/acceptedNames/{field}")).to_owned();
    let mut accepted = serde_json::Map::new();
    let mut conflict: Option<(&str, String)> = None;
    let mut take = |field: &'static str,
                    reason: &'static str,
                    used: &HashSet<String>,
                    accepted: &mut serde_json::Map<String, Value>| {
        let name = requested(field);
        if !name.is_empty() && used.contains(&name) {
            // The last conflict found is the one told.
            conflict = Some((reason, format!("{} is already in use", go_quote(&name))));
            accepted.insert(field.into(), before(field).into());
        } else {
            accepted.insert(field.into(), name.into());
        }
    };
    take("plural", "PluralConflict", &resources, &mut accepted);
    take("singular", "SingularConflict", &resources, &mut accepted);
    let short_names = strings(definition, "/spec/names/shortNames");
    let taken: Vec<&String> = short_names.iter().filter(|n| resources.contains(*n)).collect();
    let short_conflict: Option<(&str, String)> = (!taken.is_empty()).then(|| {
        let quoted: Vec<String> = taken.iter().map(|n| go_quote(n)).collect();
        let (list, verb) = (quoted.join(", "), if taken.len() == 1 { "is" } else { "are" });
        ("ShortNamesConflict", format!("{list} {verb} already in use"))
    });
    if short_conflict.is_none() && !short_names.is_empty() {
        accepted.insert("shortNames".into(), short_names.into());
    }
    take("kind", "KindConflict", &kinds, &mut accepted);
    take("listKind", "ListKindConflict", &kinds, &mut accepted);
    let late = conflict.as_ref().is_some_and(|(reason, _)| matches!(*reason, "KindConflict" | "ListKindConflict"));
    let conflict = if late { conflict } else { short_conflict.or(conflict) };
    let categories = strings(definition, "/spec/names/categories");
    if !categories.is_empty() {
        accepted.insert("categories".into(), categories.into());
    }
    accepted.retain(|field, value| matches!(field.as_str(), "plural" | "kind") || value != "");

    let now = time::format_seconds(jiff::Timestamp::now());
    let mut status = definition.get("status").cloned().unwrap_or_else(|| json!({}));
    status["acceptedNames"] = Value::Object(accepted);
    match &conflict {
        None => set_condition(&mut status, "NamesAccepted", "True", "NoConflicts", "no conflicts found", &now),
        Some((reason, message)) => set_condition(&mut status, "NamesAccepted", "False", reason, message, &now),
    }
    let established = is_true(definition, "Established");
    if conflict.is_none() && !established {
        let message = "the initial names have been accepted";
        set_condition(&mut status, "Established", "True", "InitialNamesAccepted", message, &now);
    } else if conflict.is_some() && !established {
        set_condition(&mut status, "Established", "False", "NotAccepted", "not all names are accepted", &now);
    }
    let unchanged = definition.get("status").is_some_and(|old| same_but_times(old, &status));
    let changed = (!unchanged).then(|| {
        let mut changed = definition.clone();
        changed["status"] = status;
        changed
    });
    Accepted { changed, free: conflict.is_none(), servable: conflict.is_none() || established }
}

/// Whether two statuses say the same, whenever it was that they came to say it.
fn same_but_times(a: &Value, b: &Value) -> bool {
    let without = |status: &Value| {
        let mut status = status.clone();
        for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                condition.remove("lastTransitionTime");
            }
        }
        status
    };
    without(a) == without(b)
}
