//! What is wrong with the CEL rules of a schema (upstream: `pkg/apis/apiextensions/validation`). Expressions are compiled, and
//! the fields that they read of `self` are looked up; their costs are not estimated.

use super::rules::escaped;
use crate::admission::cel::{self, Wanted};
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::structural::Structural;
use coxswain_api::{Value, json};

/// The reasons that a rule can give, as upstream lists them.
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Everything wrong with the rules of an `openAPIV3Schema`, which is right otherwise.
pub(super) fn check(schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    schema_at(schema, &Structural::parse(schema), path, None, true, &mut errors);
    errors
}

/// `lost` is the list whose elements have no former selves, if there is one on the way.
fn schema_at(
    schema: &Value,
    parsed: &Structural,
    path: &Path,
    lost: Option<&Path>,
    is_resource: bool,
    errors: &mut ErrorList,
) {
    if let (found @ Value::Object(_), Some(parsed)) = (&schema["additionalProperties"], &parsed.additional) {
        schema_at(found, parsed, &path.child("additionalProperties"), lost, parsed.embedded, errors);
    }
    for (name, found) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(parsed) = parsed.properties.get(name.as_str()) {
            schema_at(found, parsed, &path.child("properties").key(name), lost, parsed.embedded, errors);
        }
    }
    if let (found @ Value::Object(_), Some(items)) = (&schema["items"], &parsed.items) {
        let here = (&*parsed.list_type != "map").then_some(path);
        schema_at(found, items, &path.child("items"), lost.or(here), items.embedded, errors);
    }
    let rules = View::new(Some(schema), path.clone()).child("x-kubernetes-validations");
    let before = errors.len();
    rules.items().for_each(|rule| form(&rule, parsed, errors));
    // Expressions are looked at only if their surroundings are in order.
    if errors.len() == before {
        rules.items().for_each(|rule| expressions(&rule, parsed, lost, is_resource, errors));
    }
}

fn has_newlines(text: &str) -> bool {
    text.contains(['\n', '\r'])
}

/// What is wrong with a rule before its expressions are read.
fn form(rule: &View<'_>, schema: &Structural, errors: &mut ErrorList) {
    let (expression, message) = (rule.child("rule"), rule.child("message"));
    let trimmed = message.str().trim();
    if expression.str().trim().is_empty() {
        errors.push(Error::required(expression.path(), "rule is not specified"));
    } else if !message.is_empty() && trimmed.is_empty() {
        errors.push(Error::invalid(message.path(), &message, "must be non-empty if specified"));
    } else if has_newlines(trimmed) {
        errors.push(Error::invalid(message.path(), &message, "must not contain line breaks"));
    } else if has_newlines(expression.str().trim()) && trimmed.is_empty() {
        errors.push(Error::required(message.path(), "must be specified if rule contains line breaks"));
    }
    let made = rule.child("messageExpression");
    if !made.is_empty() && made.str().trim().is_empty() {
        errors.push(Error::required(made.path(), "must be non-empty if specified"));
    }
    let reason = rule.child("reason");
    if reason.exists() && !REASONS.contains(&reason.str()) {
        errors.push(Error::not_supported(reason.path(), &reason, &REASONS));
    }
    let at = rule.child("fieldPath");
    if !at.is_empty() {
        if at.str().trim().is_empty() {
            errors.push(Error::invalid(at.path(), &at, "must be non-empty if specified"));
        }
        if has_newlines(at.str()) {
            errors.push(Error::invalid(at.path(), &at, "must not contain line breaks"));
        }
        if !leads_somewhere(at.str(), schema) {
            errors.push(Error::invalid(at.path(), &at, "must be a valid path"));
        }
    }
}

/// Whether a path such as `.spec['a.b']` names a field of the schema.
fn leads_somewhere(path: &str, schema: &Structural) -> bool {
    let (mut at, mut rest) = (schema, path);
    while !rest.is_empty() {
        let (name, after) = if let Some(quoted) = rest.strip_prefix("['") {
            let Some((name, after)) = quoted.split_once("']") else { return false };
            (name, after)
        } else if let Some(plain) = rest.strip_prefix('.') {
            plain.split_at(plain.find(['.', '[']).unwrap_or(plain.len()))
        } else {
            return false;
        };
        let next = if at.properties.is_empty() { at.additional.as_deref() } else { at.properties.get(name) };
        let Some(next) = next.filter(|_| !name.is_empty()) else { return false };
        (at, rest) = (next, after);
    }
    true
}

fn expressions(rule: &View<'_>, schema: &Structural, lost: Option<&Path>, is_resource: bool, errors: &mut ErrorList) {
    let whole = printed(rule);
    let refuse = |path: &Path, detail: String| Error {
        bad_value: Some(whole.clone()),
        ..Error::invalid(path, &Value::Null, detail)
    };
    let source = rule.child("rule");
    let expression = source.str().trim();
    let names = ["self", "oldSelf"];
    let optional = rule.child("optionalOldSelf");
    let wrong = cel::check(expression, Wanted::Bool, &names).map(|why| {
        // Other users of CEL name the type that was found.
        if why.starts_with("must evaluate to") { "cel expression must evaluate to a bool".to_owned() } else { why }
    });
    let reads = Reads { schema, is_resource, old_is_optional: optional.bool() };
    let wrong = wrong.or_else(|| reads.undefined_field(expression)).or_else(|| {
        let ty = reads.type_of(expression)?;
        (ty != "boolean").then(|| "cel expression must evaluate to a bool".to_owned())
    });
    let is_wrong = wrong.is_some();
    errors.extend(wrong.map(|why| refuse(source.path(), why)));
    let made = rule.child("messageExpression");
    if !made.is_empty() {
        let text = made.str().trim();
        let wrong = cel::check(text, Wanted::Text, &names).map(|why| {
            let form = why.starts_with("must evaluate to");
            if form {
                "messageExpression must evaluate to a string".to_owned()
            } else {
                format!("messageExpression {why}")
            }
        });
        let wrong = wrong.or_else(|| reads.undefined_field(text).map(|why| format!("messageExpression {why}")));
        errors.extend(wrong.map(|why| refuse(made.path(), why)));
    }
    if is_wrong {
        return;
    }
    let uses_old = cel::names(expression).is_ok_and(|names| names.iter().any(|name| name == "oldSelf"));
    if let Some(lost) = lost.filter(|_| uses_old) {
        let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {lost}");
        errors.push(Error::invalid(source.path(), &source, why));
    }
    if !uses_old && optional.exists() {
        errors.push(Error::invalid(optional.path(), &optional, "may not be set if oldSelf is not used in rule"));
    }
}

/// A rule as upstream's internal type prints it.
fn printed(rule: &View<'_>) -> String {
    let text = |name: &'static str| {
        let quoted = json!(rule.child(name).str()).to_string();
        quoted.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
    };
    let or_null = |name: &'static str| rule.child(name).value().cloned().unwrap_or(Value::Null);
    format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{}}}",
        text("rule"),
        text("message"),
        text("messageExpression"),
        or_null("reason"),
        text("fieldPath"),
        or_null("optionalOldSelf"),
    )
}

/// What an expression reads of `self`, told from its text alone.
struct Reads<'a> {
    schema: &'a Structural,
    is_resource: bool,
    old_is_optional: bool,
}

/// Where a chain of fields ends.
enum End<'a, 't> {
    At(&'a Structural),
    /// At something whose fields are not known.
    Open,
    /// At a field that there is not.
    Undefined {
        dot: usize,
        name: &'t str,
    },
}

impl<'a> Reads<'a> {
    /// The first field that an expression reads and that its schema does not have.
    fn undefined_field(&self, expression: &str) -> Option<String> {
        chains(expression).into_iter().find_map(|(root, at, _)| {
            let End::Undefined { dot, name } = self.follow(root, expression, at) else { return None };
            let why = format!("undefined field '{name}'");
            Some(format!("compilation failed: {}", cel::pointed(&why, expression, dot)))
        })
    }

    /// The type of an expression that is a chain of fields and no more.
    fn type_of(&self, expression: &str) -> Option<&'a str> {
        let [(root, at, whole)] = chains(expression)[..] else { return None };
        match self.follow(root, expression, at) {
            End::At(schema) if whole && !schema.int_or_string && !schema.ty.is_empty() => Some(&schema.ty),
            _ => None,
        }
    }

    fn follow<'t>(&self, root: &str, expression: &'t str, mut at: usize) -> End<'a, 't> {
        if root == "oldSelf" && self.old_is_optional {
            return End::Open;
        }
        let mut schema = self.schema;
        let mut is_root = self.is_resource;
        while let Some((name, end)) = next_field(expression, at) {
            if expression[end..].trim_start().starts_with('(') {
                return End::Open;
            }
            let found = schema.properties.iter().find(|(key, _)| escaped(key).as_deref() == Some(name));
            let of_every = matches!(name, "apiVersion" | "kind" | "metadata");
            match found {
                // The metadata has fields that its schema need not name.
                _ if is_root && of_every => return End::Open,
                Some((_, next)) => schema = next,
                None if &*schema.ty != "object" || schema.properties.is_empty() || schema.additional.is_some() => {
                    return End::Open;
                }
                None => return End::Undefined { dot: at, name },
            }
            is_root = schema.embedded;
            at = end;
        }
        End::At(schema)
    }
}

/// The field that is read right at this place, and where its name ends.
fn next_field(expression: &str, at: usize) -> Option<(&str, usize)> {
    let name = expression[at..].strip_prefix('.')?;
    let length = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
    (length > 0).then(|| (&name[..length], at + 1 + length))
}

/// Where `self` and `oldSelf` end in an expression, and whether the expression is one chain of fields from there.
fn chains(expression: &str) -> Vec<(&'static str, usize, bool)> {
    let mut found = Vec::new();
    let mut quote = None;
    let mut word = None;
    let mut escaped = false;
    let chars = expression.char_indices().chain([(expression.len(), ' ')]);
    for (at, c) in chars {
        if let Some(open) = quote {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == open => quote = None,
                _ => {}
            }
            continue;
        }
        if c.is_ascii_alphanumeric() || c == '_' {
            word.get_or_insert(at);
            continue;
        }
        if let Some(start) = word.take() {
            let after_dot = expression[..start].trim_end().ends_with('.');
            let root = ["self", "oldSelf"].into_iter().find(|name| *name == &expression[start..at]);
            if let Some(root) = root.filter(|_| !after_dot) {
                let mut end = at;
                while let Some((_, next)) = next_field(expression, end) {
                    end = next;
                }
                found.push((root, at, start == 0 && end == expression.len()));
            }
        }
        if c == '"' || c == '\'' {
            quote = Some(c);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string"}, "m": {"type": "object",
            "additionalProperties": {"type": "integer"}}, "a-b": {"type": "boolean"}}, "x-kubernetes-validations": [rule]});
        check(&schema, &Path::new("s")).iter().map(|e| format!("{}: {}", e.field, e.detail)).collect()
    }

    #[test]
    fn fields_that_a_rule_reads_must_be_there() {
        let at = "s.x-kubernetes-validations[0]";
        for good in
            ["has(self.a) && self.a != 'self.zz'", "self.a__dash__b", "self.m.any > 1", "self.metadata.name != self.a"]
        {
            assert_eq!(found(json!({"rule": good})), Vec::<String>::new(), "{good}");
        }
        let undefined = "compilation failed: ERROR: <input>:1:5: undefined field 'zz'\n | self.zz == 1\n | ....^";
        assert_eq!(found(json!({"rule": "self.zz == 1"})), [format!("{at}.rule: {undefined}")]);
        assert_eq!(found(json!({"rule": "self.a"})), [format!("{at}.rule: cel expression must evaluate to a bool")]);
        let why = "may not be set if oldSelf is not used in rule";
        assert_eq!(found(json!({"rule": "true", "optionalOldSelf": true})), [format!("{at}.optionalOldSelf: {why}")]);
        assert_eq!(
            found(json!({"rule": "true", "fieldPath": ".zz"})),
            [format!("{at}.fieldPath: must be a valid path")]
        );
    }
}
