//! Defaults fit the schema that they are in (upstream: `schema/defaulting/validation.go`).

use super::super::Structural;
use super::Asks;
use crate::field::{Error, ErrorList, Path};
use serde_json::{Value, json};

/// How defaults within the type or the metadata of an object reach the surface of that object.
#[derive(Clone)]
enum Step {
    Name(Box<str>),
    Element,
}

/// The object that a part of the schema belongs to.
#[derive(Clone)]
struct Within<'s> {
    root: &'s Structural,
    steps: Vec<Step>,
    inside_meta: bool,
}

pub(super) fn check(schema: &Value, path: &Path, ask: &Asks<'_>) -> ErrorList {
    let mut parsed = Structural::parse(schema);
    parsed.embedded = true;
    let mut errors = ErrorList::new();
    if has_defaults(&parsed) {
        let within = Within { root: &parsed, steps: Vec::new(), inside_meta: false };
        part(&parsed, path, &within, ask, &mut errors);
    }
    errors
}

fn has_defaults(schema: &Structural) -> bool {
    schema.default.is_some()
        || schema.items.as_deref().is_some_and(has_defaults)
        || schema.properties.values().any(has_defaults)
}

fn part(schema: &Structural, path: &Path, within: &Within<'_>, ask: &Asks<'_>, errors: &mut ErrorList) {
    let own;
    let within = if schema.embedded {
        own = Within { root: schema, steps: Vec::new(), inside_meta: false };
        &own
    } else {
        within
    };
    if let Some(default) = &schema.default {
        let at = path.child("default");
        if within.inside_meta {
            in_metadata(default, &at, within, ask, errors);
        } else {
            let mut pruned = default.clone();
            let unknown = schema.prune_part(&mut pruned);
            if unknown || pruned != *default {
                errors.push(Error::invalid(&at, default, "must not have unknown fields"));
            }
        }
        let before = errors.len();
        errors.extend(prefixed(schema.validate_embedded_part(default, ask.metadata), &at));
        if errors.len() == before {
            errors.extend(schema.validate_part(default, None, &at.to_string()));
        }
        if errors.len() == before {
            errors.extend(prefixed((ask.rules)(schema, default), &at));
        }
    }
    // Defaults below `additionalProperties` are of no effect, and refused where they could have one.
    let below = |step: Step, inside_meta: bool| {
        let mut steps = within.steps.clone();
        steps.push(step);
        Within { root: within.root, steps, inside_meta }
    };
    if let Some(items) = &schema.items {
        part(items, &path.child("items"), &below(Step::Element, within.inside_meta), ask, errors);
    }
    for (name, property) in &schema.properties {
        let is_meta = schema.embedded && matches!(&**name, "metadata" | "apiVersion" | "kind");
        let below = below(Step::Name(name.clone()), within.inside_meta || is_meta);
        part(property, &path.child("properties").key(name), &below, ask, errors);
    }
}

/// The object that has nothing but this default is a right one.
fn in_metadata(default: &Value, at: &Path, within: &Within<'_>, ask: &Asks<'_>, errors: &mut ErrorList) {
    let mut whole = default.clone();
    for step in within.steps.iter().rev() {
        whole = match step {
            Step::Name(name) => Value::Object([(name.to_string(), whole)].into_iter().collect()),
            Step::Element => json!([whole]),
        };
    }
    let Some(map) = whole.as_object_mut() else { return };
    map.entry("kind").or_insert_with(|| "Validation".into());
    map.entry("apiVersion").or_insert_with(|| "validation/v1".into());
    let wrong = match within.root.prune(&mut whole.clone()) {
        Err(why) => Some(why.to_string()),
        Ok(_) => {
            let found = within.root.validate_embedded_part(&whole, ask.metadata);
            let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
            match texts.as_slice() {
                [] => None,
                [one] => Some(one.clone()),
                many => Some(format!("[{}]", many.join(", "))),
            }
        }
    };
    if let Some(why) = wrong {
        errors.push(Error::invalid(at, default, format!("must result in valid metadata: {why}")));
    }
}

/// Errors within a value that is at a path.
fn prefixed(found: ErrorList, at: &Path) -> impl Iterator<Item = Error> {
    let at = at.to_string();
    found.into_iter().map(move |error| {
        let field = match error.field.as_str() {
            "<nil>" | "" => at.clone(),
            field if field.starts_with('[') => format!("{at}{field}"),
            field => format!("{at}.{field}"),
        };
        Error { field, ..error }
    })
}
