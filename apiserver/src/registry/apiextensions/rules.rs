//! The CEL rules of a schema, `x-kubernetes-validations`, held against objects (upstream: `pkg/apiserver/schema/cel`).
//!
//! A [`Rules`] follows the shape of its [`Structural`], but has only the nodes below which a rule is. Expressions are compiled
//! when they are first asked, so that a definition nobody writes to costs nothing. What they cost when they run is counted: all
//! rules of an object share one budget.

use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorKind, ErrorList, Path, go_value};
use coxswain_api::structural::Structural;
use coxswain_cel::{
    Bindings, CALL_COST_MAX, Compiled, DeclType, Env, Outcome, Type, Value as CelValue, compile, evaluate,
};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// A message that an expression makes may be so long.
const MESSAGE_MAX: usize = 5 * 1024;

/// What all rules of an object may cost together (upstream: `RuntimeCELCostBudget`).
const OBJECT_COST_MAX: u64 = 10_000_000;

#[derive(Default)]
pub struct Rules {
    own: Vec<Rule>,
    /// The type of the node, made when its rules are first asked; none if expressions see nothing of it.
    decl: OnceLock<Option<Arc<DeclType>>>,
    properties: BTreeMap<Box<str>, Rules>,
    additional: Option<Box<Rules>>,
    items: Option<Box<Rules>>,
    all_of: Vec<Rules>,
}

struct Rule {
    rule: String,
    message: String,
    message_expression: String,
    reason: String,
    field_path: String,
    optional_old: bool,
    compiled: OnceLock<Result<Compiled, String>>,
    compiled_message: OnceLock<Option<Compiled>>,
}

/// What rules can name. A rule that asks for its former self optionally sees it as an optional value.
pub(super) fn environment(decl: &Arc<DeclType>, optional_old: bool) -> Env {
    let old = if optional_old { Type::optional(decl.ty()) } else { decl.ty() };
    Env { variables: vec![("self", decl.ty()), ("oldSelf", old)], constructs: false }
}

impl Rule {
    fn new(rule: &Value) -> Self {
        let text = |name: &str| rule[name].as_str().unwrap_or_default().trim().to_owned();
        Self {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: normalized(&text("fieldPath")),
            optional_old: rule["optionalOldSelf"] == true,
            compiled: OnceLock::new(),
            compiled_message: OnceLock::new(),
        }
    }

    fn compiled(&self, decl: &Arc<DeclType>) -> &Result<Compiled, String> {
        self.compiled.get_or_init(|| {
            let made = compile(&environment(decl, self.optional_old), &self.rule);
            made.map(Compiled::without_types).map_err(|e| format!("compilation failed: {e}"))
        })
    }

    fn compiled_message(&self, decl: &Arc<DeclType>) -> Option<&Compiled> {
        let made = self.compiled_message.get_or_init(|| {
            let environment = environment(decl, self.optional_old);
            compile(&environment, &self.message_expression).ok().map(Compiled::without_types)
        });
        made.as_ref()
    }

    fn title(&self) -> &str {
        if self.message.is_empty() { &self.rule } else { &self.message }
    }

    fn default_message(&self) -> String {
        if self.message.is_empty() { format!("failed rule: {}", self.rule) } else { self.message.clone() }
    }
}

/// A path within an object without its leading dot, its keys without quotes.
fn normalized(path: &str) -> String {
    path.trim_start_matches('.').replace("['", "[").replace("']", "]")
}

/// What a node was before the change.
#[derive(Clone, Copy)]
struct Before<'a> {
    /// What rules see as `oldSelf`.
    old: Option<&'a Value>,
    /// Whether the nearest part that can be compared with its former self is the same.
    unchanged: bool,
}

/// Which rules are asked: those that decide, or those that only warn, because what they judge has not changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Deciding,
    Warning,
}

impl Rules {
    /// The rules of a schema, `None` if it has none.
    pub fn of(schema: &Structural) -> Option<Self> {
        Self::within(schema, schema)
    }

    /// `said` holds the rules, `spine` the types: they differ below `allOf`.
    fn within(said: &Structural, spine: &Structural) -> Option<Self> {
        let child = |said: &Option<Box<Structural>>, spine: &Option<Box<Structural>>| {
            Self::within(said.as_deref()?, spine.as_deref()?).map(Box::new)
        };
        let properties = said
            .properties
            .iter()
            .filter_map(|(name, said)| Some((name.clone(), Self::within(said, spine.properties.get(name)?)?)));
        let made = Self {
            decl: OnceLock::new(),
            own: said.rules.iter().map(Rule::new).filter(|r| !r.rule.is_empty()).collect(),
            properties: properties.collect(),
            additional: child(&said.additional, &spine.additional),
            items: child(&said.items, &spine.items),
            all_of: said.checks.all_of.iter().filter_map(|said| Self::within(said, spine)).collect(),
        };
        let empty = made.own.is_empty()
            && made.properties.is_empty()
            && made.additional.is_none()
            && made.items.is_none()
            && made.all_of.is_empty();
        (!empty).then_some(made)
    }

    /// What the rules have against an object, `schema` being what they were made of.
    pub fn check(&self, schema: &Structural, object: &Value, old: Option<&Value>, asked: Asked) -> ErrorList {
        let mut walk = Walk { asked, errors: ErrorList::new(), budget: Some(OBJECT_COST_MAX) };
        let before = Before { old, unchanged: old == Some(object) };
        walk.node(self, &Node { schema, value: object, before, is_resource: true }, &Path::root());
        walk.errors
    }

    /// What the rules have against a part of an object, such as a default.
    pub fn check_part(&self, schema: &Structural, value: &Value, old: Option<&Value>) -> ErrorList {
        let mut walk = Walk { asked: Asked::Deciding, errors: ErrorList::new(), budget: Some(OBJECT_COST_MAX) };
        let before = Before { old, unchanged: false };
        walk.node(self, &Node { schema, value, before, is_resource: schema.embedded }, &Path::root());
        walk.errors
    }

    fn decl(&self, node: &Node<'_>) -> Option<&Arc<DeclType>> {
        self.decl.get_or_init(|| DeclType::of_schema(node.schema, node.is_resource)).as_ref()
    }
}

/// A value on the way through an object.
#[derive(Clone, Copy)]
struct Node<'a> {
    schema: &'a Structural,
    value: &'a Value,
    before: Before<'a>,
    /// Whether it is a whole resource, or one embedded, whose type and name rules see.
    is_resource: bool,
}

impl<'a> Node<'a> {
    /// A part of it. One that has a former self is compared with that; any other shares the fate of the whole.
    fn part(&self, schema: &'a Structural, value: &'a Value, old: Option<&'a Value>) -> Self {
        let unchanged = self.before.unchanged || old == Some(value);
        Self { schema, value, before: Before { old, unchanged }, is_resource: schema.embedded }
    }
}

/// What the variables of a rule are.
struct Selves<'a> {
    current: CelValue<'a>,
    old: Option<CelValue<'a>>,
}

impl<'a> Bindings<'a> for Selves<'a> {
    fn variable(&self, name: &str) -> Option<CelValue<'a>> {
        match name {
            "self" => Some(self.current.clone()),
            "oldSelf" => self.old.clone(),
            _ => None,
        }
    }
}

struct Walk {
    asked: Asked,
    errors: ErrorList,
    /// What rules may still cost; none when it is used up, and then nothing more is asked.
    budget: Option<u64>,
}

impl Walk {
    fn node(&mut self, rules: &Rules, node: &Node<'_>, path: &Path) {
        if node.value.is_null() || self.budget.is_none() {
            return;
        }
        if !rules.own.is_empty() {
            self.ask(rules, node, path);
        }
        for rules in &rules.all_of {
            // Upstream spares nothing that `allOf` says.
            let before = Before { unchanged: false, ..node.before };
            self.node(rules, &Node { before, ..*node }, path);
        }
        match node.value {
            Value::Object(map) => {
                // The parts of a map that is replaced as a whole have no former selves.
                let before = node.before.old.filter(|_| &*node.schema.map_type != "atomic");
                for (name, value) in map {
                    let old = before.and_then(|old| old.get(name)).filter(|old| !old.is_null());
                    let name = name.as_str();
                    if let (Some(rules), Some(schema)) = (rules.properties.get(name), node.schema.properties.get(name))
                    {
                        self.node(rules, &node.part(schema, value, old), &path.child_named(name));
                    } else if let (Some(rules), Some(schema)) = (&rules.additional, &node.schema.additional) {
                        self.node(rules, &node.part(schema, value, old), &path.key(name));
                    }
                }
            }
            Value::Array(items) => {
                let (Some(rules), Some(schema)) = (&rules.items, &node.schema.items) else { return };
                let keys = &node.schema.list_map_keys;
                let old_items = node.before.old.and_then(Value::as_array).filter(|_| &*node.schema.list_type == "map");
                for (i, item) in items.iter().enumerate() {
                    let same = |old: &&Value| keys.iter().all(|key| old.get(&**key) == item.get(&**key));
                    let old = old_items.and_then(|old| old.iter().find(same));
                    self.node(rules, &node.part(schema, item, old), &path.index(i));
                }
            }
            _ => {}
        }
    }

    /// Asks the rules of this very node.
    fn ask(&mut self, rules: &Rules, node: &Node<'_>, path: &Path) {
        let Some(decl) = rules.decl(node) else { return };
        for rule in &rules.own {
            let compiled = rule.compiled(decl);
            let uses_old = compiled.as_ref().is_ok_and(|c| c.uses("oldSelf"));
            // What has not changed may stay, unless the rule is about the change itself.
            let spared = node.before.unchanged && !uses_old;
            let is_asked = spared == (self.asked == Asked::Warning);
            if !is_asked || (uses_old && node.before.old.is_none() && !rule.optional_old) {
                continue;
            }
            let of_type = |detail: String| Error::invalid(path, &*node.schema.ty, detail);
            let compiled = match compiled {
                Ok(compiled) => compiled,
                Err(why) => {
                    self.errors.push(of_type(format!("rule compile error: {why}")));
                    continue;
                }
            };
            let old = node.before.old.map(|old| CelValue::of(old, decl));
            let old = if rule.optional_old { Some(CelValue::Optional(old.map(Arc::new))) } else { old };
            let selves = Selves { current: CelValue::of(node.value, decl), old };
            let outcome = evaluate(compiled, &selves, CALL_COST_MAX);
            if !self.spend(outcome.cost) {
                let why =
                    "validation failed due to running out of cost budget, no further validation rules will be run";
                self.errors.push(of_type(why.into()));
                return;
            }
            match &outcome.value {
                Ok(CelValue::Bool(true)) => continue,
                Ok(_) => {}
                Err(why) => {
                    let (why, title) = (why.to_string(), rule.title());
                    let is_over = outcome.value.as_ref().is_err_and(|e| e.is_over_limit);
                    self.errors.push(of_type(if why.starts_with("no such overload") {
                        format!(
                            "'{why}': call arguments did not match a supported operator, function or macro signature for \
                             rule: {title}"
                        )
                    } else if is_over {
                        format!(
                            "'{why}': no further validation rules will be run due to call cost exceeds limit for rule: \
                             {title}"
                        )
                    } else {
                        format!("{why} evaluating rule: {title}")
                    }));
                    if is_over {
                        self.budget = None;
                        return;
                    }
                    continue;
                }
            }
            let made = match self.made_message(rule, decl, &selves) {
                Ok(made) => made,
                Err(why) => {
                    self.errors.push(of_type(why));
                    self.budget = None;
                    return;
                }
            };
            self.errors.push(rule.error(node, path, made));
        }
    }

    /// False if there is nothing left to spend.
    fn spend(&mut self, cost: u64) -> bool {
        self.budget = self.budget.and_then(|budget| budget.checked_sub(cost));
        self.budget.is_some()
    }

    /// What `messageExpression` says, if it is fit for a message. The error ends everything: it cost too much.
    fn made_message(
        &mut self,
        rule: &Rule,
        decl: &Arc<DeclType>,
        selves: &Selves<'_>,
    ) -> Result<Option<String>, String> {
        if rule.message_expression.is_empty() {
            return Ok(None);
        }
        let Some(compiled) = rule.compiled_message(decl) else { return Ok(None) };
        let Outcome { value, cost } = evaluate(compiled, selves, CALL_COST_MAX);
        if !self.spend(cost) {
            return Err(
                "messageExpression evaluation failed due to running out of cost budget, no further validation rules \
                        will be run"
                    .into(),
            );
        }
        match value {
            Ok(CelValue::Text(text)) => {
                let text = text.trim();
                let fit = !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n');
                Ok(fit.then(|| text.to_owned()))
            }
            Err(error) if error.is_over_limit => Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {}",
                coxswain_api::field::go_quote(&rule.message_expression)
            )),
            _ => Ok(None),
        }
    }
}

impl Rule {
    /// The error of a rule that does not hold, with the message that an expression made if there is one.
    fn error(&self, node: &Node<'_>, path: &Path, made: Option<String>) -> Error {
        let at = if self.field_path.is_empty() { path.clone() } else { path.child_named(&self.field_path) };
        // A made message names the value if it wants to; what is not a scalar would be too much to show.
        let shown = match node.value {
            _ if made.is_some() => None,
            Value::Object(_) | Value::Array(_) => None,
            scalar => Some(go_value(scalar)),
        };
        let detail = made.unwrap_or_else(|| self.default_message());
        match self.reason.as_str() {
            "FieldValueForbidden" => Error::forbidden(&at, detail),
            "FieldValueRequired" => Error::required(&at, detail),
            "FieldValueDuplicate" => Error { bad_value: shown, ..Error::duplicate(&at, node.value) },
            _ => Error { bad_value: shown, ..Error::invalid(&at, node.value, detail) },
        }
    }
}

/// Whether an object is so wrong that rules could not be told of it, as upstream says at the end of its errors.
pub fn blocking<'e>(errors: impl IntoIterator<Item = &'e Error>) -> Option<Error> {
    use ErrorKind::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
    let blocks = |e: &Error| matches!(e.kind, NotSupported | Required | TooLong | TooMany | TypeInvalid);
    errors.into_iter().any(blocks).then(|| {
        let why = "some validation rules were not checked because the object was invalid; correct the existing errors to \
                   complete validation";
        Error::invalid(&Path::root(), &Value::Null, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(schema: Value, object: Value, old: Option<Value>) -> Vec<String> {
        let schema = Structural::parse(&schema);
        let rules = Rules::of(&schema).expect("the schema has rules");
        let errors = rules.check(&schema, &object, old.as_ref(), Asked::Deciding);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules_of_changes_are_asked_only_where_there_is_a_former_value() {
        let schema = json!({"type": "object", "properties": {"l": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "string"},
                "v": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf"}]}}}}}});
        let new = json!({"l": [{"k": "b", "v": 1}, {"k": "a", "v": 1}]});
        assert_eq!(found(schema.clone(), new.clone(), None), Vec::<String>::new());
        let old = json!({"l": [{"k": "a", "v": 2}]});
        assert_eq!(found(schema, new, Some(old)), ["l[1].v: Invalid value: 1: failed rule: self >= oldSelf"]);
    }

    #[test]
    fn what_has_not_changed_is_spared() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}, "x-y": {"type": "object",
            "properties": {"if": {"type": "string"}},
            "x-kubernetes-validations": [{"rule": "self.__if__ == 'x'", "fieldPath": ".if", "reason": "FieldValueRequired",
                "messageExpression": "'not ' + self.__if__"}]}},
            "x-kubernetes-validations": [{"rule": "self.x__dash__y.__if__.size() < 2", "message": "long"}]});
        let object = json!({"a": 1, "x-y": {"if": "yy"}});
        let errors = ["<nil>: Invalid value: long", "x-y.if: Required value: not yy"];
        assert_eq!(found(schema.clone(), object.clone(), None), errors);
        assert_eq!(found(schema.clone(), object.clone(), Some(json!({"x-y": {"if": "yy"}}))), errors[..1]);
        assert!(found(schema, object.clone(), Some(object)).is_empty());
    }
}
