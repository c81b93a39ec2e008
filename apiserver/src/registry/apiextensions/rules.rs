//! The CEL rules of a schema, `x-kubernetes-validations`, held against objects (upstream: `pkg/apiserver/schema/cel`).
//!
//! A [`Rules`] follows the shape of its [`Structural`], but has only the nodes below which a rule is. Costs are not limited
//! by counting them; the sizes that the schema allows bound them.

use crate::admission::cel::{self, Variables};
use ::cel::Value as CelValue;
use ::cel::objects::{Key, Map, OptionalValue};
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorKind, ErrorList, Path, go_value};
use coxswain_api::structural::Structural;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A message that an expression makes may be so long.
const MESSAGE_MAX: usize = 5 * 1024;

#[derive(Default)]
pub struct Rules {
    own: Vec<Rule>,
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
    /// Whether it tells of a change.
    uses_old: bool,
    broken: Option<String>,
}

impl Rule {
    fn new(rule: &Value) -> Self {
        let text = |name: &str| rule[name].as_str().unwrap_or_default().trim().to_owned();
        let expression = text("rule");
        let names = cel::names(&expression);
        Self {
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: normalized(&text("fieldPath")),
            optional_old: rule["optionalOldSelf"] == true,
            uses_old: names.as_ref().is_ok_and(|names| names.iter().any(|n| n == "oldSelf")),
            broken: names.err(),
            rule: expression,
        }
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
        let mut walk = Walk { asked, errors: ErrorList::new() };
        let before = Before { old, unchanged: old == Some(object) };
        walk.node(self, &Node { schema, value: object, before, is_resource: true }, &Path::root());
        walk.errors
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

    /// What rules can name. `optional` says in which form they ask for the former self.
    fn variables(&self, optional: bool) -> Variables {
        let mut made = Variables::new();
        made.bind("self", to_cel(self.value, self.schema, self.is_resource));
        let old = self.before.old.map(|old| to_cel(old, self.schema, self.is_resource));
        if optional {
            let old = old.map_or_else(OptionalValue::none, OptionalValue::of);
            made.bind("oldSelf", CelValue::Opaque(Arc::new(old)));
        } else if let Some(old) = old {
            made.bind("oldSelf", old);
        }
        made
    }
}

struct Walk {
    asked: Asked,
    errors: ErrorList,
}

impl Walk {
    fn node(&mut self, rules: &Rules, node: &Node<'_>, path: &Path) {
        if node.value.is_null() {
            return;
        }
        if !rules.own.is_empty() {
            self.ask(&rules.own, node, path);
        }
        for rules in &rules.all_of {
            // Upstream spares nothing that `allOf` says.
            let before = Before { unchanged: false, ..node.before };
            self.node(rules, &Node { before, ..*node }, path);
        }
        match node.value {
            Value::Object(map) => {
                for (name, value) in map {
                    let old = node.before.old.and_then(|old| old.get(name)).filter(|old| !old.is_null());
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
    fn ask(&mut self, rules: &[Rule], node: &Node<'_>, path: &Path) {
        // Made once for all rules, and only if one is asked.
        let mut made: [Option<Variables>; 2] = [None, None];
        for rule in rules {
            // What has not changed may stay, unless the rule is about the change itself.
            let spared = node.before.unchanged && !rule.uses_old;
            let is_asked = spared == (self.asked == Asked::Warning);
            if !is_asked || (rule.uses_old && node.before.old.is_none() && !rule.optional_old) {
                continue;
            }
            let variables =
                made[usize::from(rule.optional_old)].get_or_insert_with(|| node.variables(rule.optional_old));
            if let Some(error) = rule.ask(variables, node, path) {
                self.errors.push(error);
            }
        }
    }
}

impl Rule {
    fn ask(&self, variables: &Variables, node: &Node<'_>, path: &Path) -> Option<Error> {
        let of_type = |detail: String| Some(Error::invalid(path, &*node.schema.ty, detail));
        if let Some(why) = &self.broken {
            return of_type(format!("rule compile error: {why}"));
        }
        match variables.evaluate(&self.rule) {
            Ok(CelValue::Bool(true)) => return None,
            Ok(_) => {}
            Err(why) if why.starts_with("no such overload") => {
                return of_type(format!(
                    "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {}",
                    self.title()
                ));
            }
            Err(why) => return of_type(format!("{why} evaluating rule: {}", self.title())),
        }
        let at = if self.field_path.is_empty() { path.clone() } else { path.child_named(&self.field_path) };
        let made = self.made_message(node);
        // A made message names the value if it wants to; what is not a scalar would be too much to show.
        let shown = match node.value {
            _ if made.is_some() => None,
            Value::Object(_) | Value::Array(_) => None,
            scalar => Some(go_value(scalar)),
        };
        let detail = made.unwrap_or_else(|| self.default_message());
        Some(match self.reason.as_str() {
            "FieldValueForbidden" => Error::forbidden(&at, detail),
            "FieldValueRequired" => Error::required(&at, detail),
            "FieldValueDuplicate" => Error { bad_value: shown, ..Error::duplicate(&at, node.value) },
            _ => Error { bad_value: shown, ..Error::invalid(&at, node.value, detail) },
        })
    }

    /// What `messageExpression` says, if it is fit for a message.
    fn made_message(&self, node: &Node<'_>) -> Option<String> {
        if self.message_expression.is_empty() {
            return None;
        }
        let text = node.variables(false).text(&self.message_expression).ok()?;
        let text = text.trim();
        let fit = !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n');
        fit.then(|| text.to_owned())
    }
}

/// A value as rules see it: of an object only what its schema names, under names that are identifiers.
fn to_cel(value: &Value, schema: &Structural, is_resource: bool) -> CelValue {
    match value {
        Value::Null => CelValue::Null,
        Value::Bool(b) => CelValue::Bool(*b),
        Value::Number(n) => match (n.as_i64(), &*schema.ty) {
            (Some(int), ty) if ty != "number" => CelValue::Int(int),
            (_, "integer") => CelValue::Int(n.as_f64().unwrap_or_default() as i64),
            _ => CelValue::Float(n.as_f64().unwrap_or_default()),
        },
        Value::String(s) => CelValue::String(Arc::new(s.clone())),
        Value::Array(items) => {
            let untyped = Structural::default();
            let schema = schema.items.as_deref().unwrap_or(&untyped);
            CelValue::List(Arc::new(items.iter().map(|item| to_cel(item, schema, schema.embedded)).collect()))
        }
        Value::Object(map) => {
            let mut made: HashMap<Key, CelValue> = HashMap::with_capacity(map.len());
            for (name, value) in map {
                let (key, value) = if let Some(schema) = schema.properties.get(name.as_str()) {
                    let value = match (is_resource, name.as_str()) {
                        (true, "metadata") => metadata(value),
                        _ => to_cel(value, schema, schema.embedded),
                    };
                    match escaped(name) {
                        Some(key) => (key, value),
                        None => continue,
                    }
                } else if let Some(schema) = &schema.additional {
                    (name.clone(), to_cel(value, schema, schema.embedded))
                } else if is_resource && matches!(name.as_str(), "apiVersion" | "kind") {
                    (name.clone(), to_cel(value, &Structural::default(), false))
                } else if is_resource && name == "metadata" {
                    (name.clone(), metadata(value))
                } else {
                    continue;
                };
                made.insert(Key::String(Arc::new(key)), value);
            }
            CelValue::Map(Map { map: Arc::new(made) })
        }
    }
}

/// Rules see no more of the metadata than the name.
fn metadata(value: &Value) -> CelValue {
    let names = ["name", "generateName"].into_iter().filter_map(|name| Some((name, value.get(name)?.as_str()?)));
    let entry = |(name, text): (&str, &str)| {
        (Key::String(Arc::new(name.to_owned())), CelValue::String(Arc::new(text.to_owned())))
    };
    CelValue::Map(Map { map: Arc::new(names.map(entry).collect()) })
}

/// The name of a property as an identifier of CEL, if it can be made one (upstream: `cel.Escape`).
pub(super) fn escaped(name: &str) -> Option<String> {
    #[rustfmt::skip]
    const RESERVED: [&str; 21] = [
        "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import",
        "let", "loop", "package", "namespace", "return", "var", "void", "while",
    ];
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut made = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        match c {
            '_' if rest.starts_with("__") => {
                made.push_str("__underscores__");
                taken = 2;
            }
            '.' => made.push_str("__dot__"),
            '-' => made.push_str("__dash__"),
            '/' => made.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => made.push(c),
            _ => return None,
        }
        rest = &rest[taken..];
    }
    Some(made)
}

/// Whether an object is so wrong that rules could not be told of it, as upstream says at the end of its errors.
pub fn blocking(errors: &[Error]) -> Option<Error> {
    use ErrorKind::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
    let blocks = |e: &Error| matches!(e.kind, NotSupported | Required | TooLong | TooMany | TypeInvalid);
    errors.iter().any(blocks).then(|| {
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
