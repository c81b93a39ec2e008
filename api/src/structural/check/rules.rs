//! What is wrong with CEL rules before their expressions are read, and the paths that they and selectable fields name.

use super::super::Structural;
use super::list;
use super::standard;
use crate::field::{Error, ErrorList, Path, View};
use serde_json::Value;

/// The reasons that a rule can give, as upstream lists them.
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

pub(super) fn check(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let rules = View::new(Some(schema), path.clone()).child("x-kubernetes-validations");
    if rules.is_empty() {
        return;
    }
    // Paths in what cannot be read are let be: it is refused anyway.
    let names_paths = list(schema, "x-kubernetes-validations").any(|rule| rule["fieldPath"].is_string());
    let parsed = (names_paths && standard::unsupported(schema).is_none()).then(|| Structural::parse(schema));
    rules.items().for_each(|rule| form(&rule, parsed.as_ref(), errors));
}

fn has_newlines(text: &str) -> bool {
    text.contains(['\n', '\r'])
}

fn form(rule: &View<'_>, schema: Option<&Structural>, errors: &mut ErrorList) {
    let (expression, message) = (rule.child("rule"), rule.child("message"));
    let trimmed = message.str().trim();
    if expression.str().trim().is_empty() {
        errors.push(Error::required(expression.path(), "rule is not specified"));
    } else if !message.is_empty() && trimmed.is_empty() {
        errors.push(Error::invalid(message.path(), &message, "must be non-empty if specified"));
    } else if has_newlines(trimmed) {
        errors.push(Error::invalid(message.path(), &message, "must not contain line breaks"));
    } else if has_newlines(expression.str().trim()) && trimmed.is_empty() {
        errors.push(Error::required(message.path(), "message must be specified if rule contains line breaks"));
    }
    let made = rule.child("messageExpression");
    if !made.is_empty() && made.str().trim().is_empty() {
        errors.push(Error::required(made.path(), "messageExpression must be non-empty if specified"));
    }
    let reason = rule.child("reason");
    if reason.exists() && !REASONS.contains(&reason.str()) {
        errors.push(Error::not_supported(reason.path(), &reason, &REASONS));
    }
    let at = rule.child("fieldPath");
    if at.is_empty() {
        return;
    }
    if at.str().trim().is_empty() {
        errors.push(Error::invalid(at.path(), &at, "must be non-empty if specified"));
    }
    if has_newlines(at.str()) {
        errors.push(Error::invalid(at.path(), &at, "must not contain line breaks"));
    }
    if schema.is_some_and(|schema| field_path(at.str(), schema, true).is_err()) {
        errors.push(Error::invalid(at.path(), &at, "must be a valid path"));
    }
}

/// A step of a path: the name of a property, or the key of a map.
pub enum Step {
    Name(String),
    Key(String),
}

/// The steps as error paths show them.
pub fn path_text(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Name(name) if text.is_empty() => text.push_str(name),
            Step::Name(name) => text.extend([".", name]),
            Step::Key(key) => text.extend(["[", key, "]"]),
        }
    }
    text
}

/// Reads a path such as `.spec['a.b']`, and finds the schema that it leads to (upstream: `cel.ValidFieldPath`).
pub fn field_path<'s>(
    path: &str,
    schema: &'s Structural,
    allow_brackets: bool,
) -> Result<(Vec<Step>, &'s Structural), String> {
    let mut steps = Vec::new();
    let (mut at, mut rest) = (schema, path);
    let end = || "unexpected end of JSON path".to_owned();
    while !rest.is_empty() {
        let delimiter = token(&mut rest);
        let name = match delimiter {
            "[" if !allow_brackets => return Err("array notation is not allowed".into()),
            "[" => {
                if rest.is_empty() {
                    return Err(end());
                }
                let quoted = token(&mut rest);
                let inner = quoted.strip_prefix('\'').and_then(|q| q.strip_suffix('\''));
                let inner = inner.ok_or_else(|| format!("expected single quoted string but got {quoted}"))?;
                unescaped(inner)?
            }
            "." if rest.is_empty() => return Err(end()),
            "." => token(&mut rest).to_owned(),
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        let unknown = || "does not refer to a valid field".to_owned();
        if at.properties.is_empty() {
            at = at.additional.as_deref().ok_or_else(unknown)?;
            steps.push(Step::Key(name));
        } else {
            at = at.properties.get(name.as_str()).ok_or_else(unknown)?;
            steps.push(Step::Name(name));
        }
        if delimiter == "[" {
            if rest.is_empty() {
                return Err(end());
            }
            let close = token(&mut rest);
            if close != "]" {
                return Err(format!("expected ] but got {close}"));
            }
        }
    }
    Ok((steps, at))
}

/// Takes a delimiter, a quoted text, or what stands before the next delimiter. There is something left.
fn token<'p>(rest: &mut &'p str) -> &'p str {
    let bytes = rest.as_bytes();
    let length = if bytes[0] == b'\'' {
        (1..bytes.len()).find(|i| bytes[*i] == b'\'' && bytes[i - 1] != b'\\').map_or(bytes.len(), |i| i + 1)
    } else {
        rest.find(['.', '[', ']']).unwrap_or(bytes.len()).max(1)
    };
    let (found, after) = rest.split_at(length);
    *rest = after;
    found
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut made = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            made.push(c);
            continue;
        }
        made.push(match chars.next() {
            Some('a') => '\u{7}',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\u{b}',
            Some(same @ ('\'' | '\\')) => same,
            Some(other) => return Err(format!("invalid string literal: invalid escape char \\{other}")),
            None => '\\',
        });
    }
    Ok(made)
}
