//! What is wrong with the CEL rules of a schema (upstream: `pkg/apis/apiextensions/validation`). Expressions are checked against
//! the types of the schema, and what they can cost at most is estimated from the sizes that it allows: a rule that could make
//! one write take very long is refused here and not found out later.

use super::rules::environment;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::structural::Structural;
use coxswain_api::{Value, json};
use coxswain_cel::{DeclType, Env, Type, compile};
use std::sync::Arc;

/// What one rule may cost, for all the values in an object that it is asked about.
const RULE_COST_MAX: u64 = 10_000_000;
/// What all rules of a schema may cost together.
const SCHEMA_COST_MAX: u64 = 100_000_000;
/// So many of the most expensive rules are named when they cost too much together.
const NAMED_MAX: usize = 4;

/// Everything wrong with the rules of an `openAPIV3Schema`. Parts in or below which something else is wrong, of which
/// `wrong` are the errors, are passed over. `spare_costs` spares each rule, but not all together.
pub(super) fn check(schema: &Value, path: &Path, wrong: &[Error], spare_costs: bool) -> ErrorList {
    let parsed = Structural::parse(schema);
    if !has_rules(&parsed) {
        return ErrorList::new();
    }
    let mut checker = Checker { errors: ErrorList::new(), total: 0, most: Vec::new(), wrong, spare_costs };
    checker.schema_at(schema, &parsed, path, Surroundings { lost: None, is_resource: true, cardinality: Some(1) });
    let Checker { mut errors, total, most, .. } = checker;
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

struct Checker<'w> {
    errors: ErrorList,
    wrong: &'w [Error],
    spare_costs: bool,
    /// What all rules cost together.
    total: u64,
    /// The most expensive ones, the worst first.
    most: Vec<(u64, Path)>,
}

impl Checker<'_> {
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
        let is_whole = !matches!(schema["x-kubernetes-map-type"].as_str(), None | Some("granular"));
        for (name, found) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(parsed) = parsed.properties.get(name.as_str()) {
                // The members of a map that is replaced as a whole have no former selves.
                let here = is_whole.then_some(path);
                let around = Surroundings { lost: around.lost.or(here), is_resource: parsed.embedded, ..around };
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
        // Expressions are looked at only if what they speak of is in order.
        let is_wrong = || {
            let here = path.to_string();
            self.wrong.iter().any(|error| is_within(&error.field, &here))
        };
        if !rules.is_empty() && !is_wrong() {
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
            let compiled = match compile(&environment, source.str()) {
                Err(why) => Err(format!("compilation failed: {why}")),
                Ok(compiled) if !matches!(compiled.result(), Type::Bool) => {
                    Err("cel expression must evaluate to a bool".to_owned())
                }
                Ok(compiled) => match compiled.failure() {
                    Some(why) => Err(format!("program instantiation failed: {why}")),
                    None => Ok(compiled),
                },
            };
            let mut uses_old = false;
            match compiled {
                Err(why) => self.errors.push(refuse(source.path(), why)),
                Ok(compiled) => {
                    let occurs = around.cardinality.unwrap_or_else(|| decl.max_cardinality());
                    let cost = compiled.estimate(Some(&decl)).max.saturating_mul(occurs);
                    self.costs("estimated rule cost", source.path(), cost);
                    uses_old = compiled.uses("oldSelf");
                    // A message is not asked for where there is no rule.
                    self.message(&rule.child("messageExpression"), &environment, &decl, &refuse);
                }
            }
            if let Some(lost) = around.lost.filter(|_| uses_old) {
                let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {lost}");
                self.errors.push(Error::invalid(source.path(), &source, why));
            } else if !uses_old && optional.exists() {
                let why = "may not be set if oldSelf is not used in rule";
                self.errors.push(Error::invalid(optional.path(), &optional, why));
            }
        }
    }

    fn costs(&mut self, what: &str, at: &Path, cost: u64) {
        if cost > RULE_COST_MAX && !self.spare_costs {
            self.errors.push(Error::forbidden(at, too_expensive(what, cost, RULE_COST_MAX)));
        }
        self.observe(at, cost);
    }

    fn message(
        &mut self,
        made: &View<'_>,
        environment: &Env,
        decl: &Arc<DeclType>,
        refuse: &dyn Fn(&Path, String) -> Error,
    ) {
        if made.is_empty() {
            return;
        }
        match compile(environment, made.str()) {
            Err(why) => {
                let why = format!("messageExpression compilation failed: {why}");
                self.errors.push(refuse(made.path(), why));
            }
            Ok(compiled) if !matches!(compiled.result(), Type::String) => {
                self.errors.push(refuse(made.path(), "messageExpression must evaluate to a string".into()));
            }
            Ok(compiled) if compiled.failure().is_some() => {
                let why = compiled.failure().unwrap_or_default();
                self.errors.push(refuse(made.path(), format!("messageExpression instantiation failed: {why}")));
            }
            Ok(compiled) => {
                let cost = compiled.estimate(Some(decl)).max;
                self.costs("estimated messageExpression cost", made.path(), cost);
            }
        }
    }
}

/// Whether a field is at a path or below it.
fn is_within(field: &str, path: &str) -> bool {
    field.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// A rule as upstream's internal type prints it.
pub(super) fn printed(rule: &View<'_>) -> String {
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
        check(&schema, &Path::new("s"), &[], false).iter().map(|e| format!("{}: {}", e.field, e.detail)).collect()
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
        // What is wrong elsewhere does not keep a rule from being read, what is wrong within does.
        let schema = json!({"type": "object", "properties": {"a": {"type": "object", "x-kubernetes-validations": [{"rule": "1"}]}}});
        let count = |wrong: &str| {
            let wrong = [Error { field: wrong.into(), ..Error::required(&Path::root(), "") }];
            check(&schema, &Path::new("s"), &wrong, false).len()
        };
        assert_eq!((count("s.properties[b].type"), count("s.properties[a].items")), (1, 0));
    }
}
