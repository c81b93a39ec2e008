//! What is wrong with the CEL rules of a schema (upstream: `pkg/apis/apiextensions/validation`). Expressions are checked against
//! the types of the schema, and what they can cost at most is estimated from the sizes that it allows: a rule that could make
//! one write take very long is refused here and not found out later.

use super::rules::environment;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::structural::Structural;
use coxswain_api::{Value, json};
use coxswain_cel::{DeclType, Type, compile};

/// What one rule may cost, for all the values in an object that it is asked about.
const RULE_COST_MAX: u64 = 10_000_000;
/// What all rules of a schema may cost together.
const SCHEMA_COST_MAX: u64 = 100_000_000;
/// So many of the most expensive rules are named when they cost too much together.
const NAMED_MAX: usize = 4;

/// The reasons that a rule can give, as upstream lists them.
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Everything wrong with the rules of an `openAPIV3Schema`, which is right otherwise.
pub(super) fn check(schema: &Value, path: &Path) -> ErrorList {
    let parsed = Structural::parse(schema);
    if !has_rules(&parsed) {
        return ErrorList::new();
    }
    let mut checker = Checker { errors: ErrorList::new(), total: 0, most: Vec::new() };
    checker.schema_at(schema, &parsed, path, Surroundings { lost: None, is_resource: true, cardinality: Some(1) });
    let Checker { mut errors, total, most } = checker;
    if total > SCHEMA_COST_MAX {
        for (_, path) in most {
            let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            errors.push(Error::forbidden(&path, why));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.push(Error::forbidden(path, too_expensive(what, total, SCHEMA_COST_MAX)));
    }
    errors
}

fn has_rules(schema: &Structural) -> bool {
    let within = |schema: &Option<Box<Structural>>| schema.as_deref().is_some_and(has_rules);
    !schema.rules.is_empty()
        || schema.properties.values().any(has_rules)
        || within(&schema.additional)
        || within(&schema.items)
        || schema.checks.all_of.iter().any(has_rules)
}

fn too_expensive(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}

/// What lies around a schema.
#[derive(Clone, Copy)]
struct Surroundings<'p> {
    /// The list whose elements have no former selves, if there is one on the way.
    lost: Option<&'p Path>,
    is_resource: bool,
    /// How often a value of it may occur in an object; none if nothing bounds that.
    cardinality: Option<u64>,
}

impl Surroundings<'_> {
    fn times(self, most: Option<i64>) -> Option<u64> {
        Some(self.cardinality?.saturating_mul(u64::try_from(most?).unwrap_or(0)))
    }
}

struct Checker {
    errors: ErrorList,
    /// What all rules cost together.
    total: u64,
    /// The most expensive ones, the worst first.
    most: Vec<(u64, Path)>,
}

impl Checker {
    fn observe(&mut self, path: &Path, cost: u64) {
        self.total = self.total.saturating_add(cost);
        if cost < SCHEMA_COST_MAX / 100 {
            return;
        }
        self.most.push((cost, path.clone()));
        self.most.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        self.most.truncate(NAMED_MAX);
    }

    fn schema_at(&mut self, schema: &Value, parsed: &Structural, path: &Path, around: Surroundings<'_>) {
        if let (found @ Value::Object(_), Some(parsed_values)) = (&schema["additionalProperties"], &parsed.additional) {
            let cardinality = around.times(parsed.checks.max_properties);
            let around = Surroundings { is_resource: parsed_values.embedded, cardinality, ..around };
            self.schema_at(found, parsed_values, &path.child("additionalProperties"), around);
        }
        for (name, found) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(parsed) = parsed.properties.get(name.as_str()) {
                let around = Surroundings { is_resource: parsed.embedded, ..around };
                self.schema_at(found, parsed, &path.child("properties").key(name), around);
            }
        }
        if let (found @ Value::Object(_), Some(items)) = (&schema["items"], &parsed.items) {
            let here = (&*parsed.list_type != "map").then_some(path);
            let cardinality = around.times(parsed.checks.max_items);
            let around = Surroundings { lost: around.lost.or(here), is_resource: items.embedded, cardinality };
            self.schema_at(found, items, &path.child("items"), around);
        }
        let rules = View::new(Some(schema), path.clone()).child("x-kubernetes-validations");
        let before = self.errors.len();
        rules.items().for_each(|rule| form(&rule, parsed, &mut self.errors));
        // Expressions are looked at only if their surroundings are in order.
        if self.errors.len() == before && !rules.is_empty() {
            self.expressions(&rules, parsed, around);
        }
    }

    fn expressions(&mut self, rules: &View<'_>, schema: &Structural, around: Surroundings<'_>) {
        let Some(decl) = DeclType::of_schema(schema, around.is_resource) else { return };
        for rule in rules.items() {
            let whole = printed(&rule);
            let refuse = |path: &Path, detail: String| Error {
                bad_value: Some(whole.clone()),
                ..Error::invalid(path, &Value::Null, detail)
            };
            let (source, optional) = (rule.child("rule"), rule.child("optionalOldSelf"));
            let environment = environment(&decl, optional.bool());
            let mut uses_old = None;
            match compile(&environment, source.str()) {
                Err(why) => self.errors.push(refuse(source.path(), format!("compilation failed: {why}"))),
                Ok(compiled) if !matches!(compiled.result(), Type::Bool) => {
                    self.errors.push(refuse(source.path(), "cel expression must evaluate to a bool".into()));
                }
                Ok(compiled) => {
                    let occurs = around.cardinality.unwrap_or_else(|| decl.max_cardinality());
                    let cost = compiled.estimate(Some(&decl)).max.saturating_mul(occurs);
                    if cost > RULE_COST_MAX {
                        let why = too_expensive("estimated rule cost", cost, RULE_COST_MAX);
                        self.errors.push(Error::forbidden(source.path(), why));
                    }
                    self.observe(source.path(), cost);
                    uses_old = Some(compiled.uses("oldSelf"));
                }
            }
            let made = rule.child("messageExpression");
            if !made.is_empty() {
                match compile(&environment, made.str()) {
                    Err(why) => {
                        let why = format!("messageExpression compilation failed: {why}");
                        self.errors.push(refuse(made.path(), why));
                    }
                    Ok(compiled) if !matches!(compiled.result(), Type::String) => {
                        self.errors.push(refuse(made.path(), "messageExpression must evaluate to a string".into()));
                    }
                    Ok(compiled) => {
                        let cost = compiled.estimate(Some(&decl)).max;
                        if cost > RULE_COST_MAX {
                            let why = too_expensive("estimated messageExpression cost", cost, RULE_COST_MAX);
                            self.errors.push(Error::forbidden(made.path(), why));
                        }
                        self.observe(made.path(), cost);
                    }
                }
            }
            match uses_old {
                Some(true) => {
                    if let Some(lost) = around.lost {
                        let why =
                            format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {lost}");
                        self.errors.push(Error::invalid(source.path(), &source, why));
                    }
                }
                Some(false) if optional.exists() => {
                    let why = "may not be set if oldSelf is not used in rule";
                    self.errors.push(Error::invalid(optional.path(), &optional, why));
                }
                _ => {}
            }
        }
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
