//! The evaluator, which counts what an expression costs while it runs (upstream: cel-go `interpreter`, with its `runtimecost.go`).

use crate::check::Compiled;
use crate::cost::{LIST_COST, MAP_COST, STRUCT_COST};
use crate::library;
use crate::parse::MAP_INSERT;
use crate::value::{Key, Text, Value};
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one expression may cost: roughly a tenth of a second of upstream's.
pub const CALL_COST_MAX: u64 = 1_000_000;

/// Why an expression has no value, in cel-go's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: Cow<'static, str>,
    /// It was stopped because it cost too much.
    pub is_over_limit: bool,
}

impl Error {
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), is_over_limit: false }
    }

    pub(crate) fn no_overload() -> Self {
        Self::new("no such overload")
    }

    pub(crate) fn no_key(key: &Value<'_>) -> Self {
        Self::new(format!("no such key: {}", library::convert::shown(key)))
    }
}

/// What the variables of an expression are.
pub trait Bindings<'a> {
    fn variable(&self, name: &str) -> Option<Value<'a>>;

    /// A field of a variable whose fields are computed when they are asked for.
    fn field(&self, _variable: &str, _field: &str) -> Option<Result<Value<'a>, Error>> {
        None
    }
}

/// The value of an expression, and what it cost.
#[derive(Clone, Debug)]
pub struct Outcome<'a> {
    pub value: Result<Value<'a>, Error>,
    pub cost: u64,
}

pub fn evaluate<'a>(compiled: &Compiled, bindings: &dyn Bindings<'a>, limit: u64) -> Outcome<'a> {
    let mut evaluator = Evaluator { bindings, locals: Vec::new(), cost: 0, limit };
    let value = evaluator.eval(&compiled.expr);
    Outcome { value, cost: evaluator.cost }
}

type Found<'a> = Result<Value<'a>, Error>;

struct Evaluator<'p, 'a> {
    bindings: &'p dyn Bindings<'a>,
    /// What macros introduce, the innermost last. An error is a value here, for some operators pass over it.
    locals: Vec<(&'p str, Found<'a>)>,
    cost: u64,
    limit: u64,
}

impl<'p, 'a> Evaluator<'p, 'a> {
    fn charge(&mut self, cost: u64) -> Result<(), Error> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit {
            let message = "operation cancelled: actual cost limit exceeded".into();
            return Err(Error { message, is_over_limit: true });
        }
        Ok(())
    }

    fn eval(&mut self, expr: &'p IdedExpr) -> Found<'a> {
        match &expr.expr {
            Expr::Unspecified => Err(Error::new("unspecified expression")),
            Expr::Literal(value) => Ok(literal(value)),
            Expr::Ident(name) => {
                self.charge(1)?;
                self.name(name)
            }
            Expr::Select(select) => {
                let local = |name: &str| self.locals.iter().any(|(n, _)| *n == name);
                if let Expr::Ident(name) = &select.operand.expr
                    && !local(name)
                    && let Some(found) = self.bindings.field(name, &select.field)
                {
                    self.charge(2)?;
                    return if select.test { Ok(Value::Bool(found.is_ok())) } else { found };
                }
                let operand = self.eval(&select.operand)?;
                if select.test {
                    return has(&operand, &select.field).map(Value::Bool);
                }
                self.charge(1)?;
                select_field(&operand, &select.field)
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                let mut made = Vec::with_capacity(list.elements.len());
                for (at, element) in list.elements.iter().enumerate() {
                    match self.eval(element)? {
                        Value::Optional(inner) if list.optional_indices.contains(&at) => {
                            made.extend(inner.map(|v| (*v).clone()));
                        }
                        value => made.push(value),
                    }
                }
                self.charge(LIST_COST)?;
                Ok(Value::list(made))
            }
            Expr::Map(map) => {
                let mut made = BTreeMap::new();
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    let key = Key::of(&self.eval(&entry.key)?)?;
                    let value = match self.eval(&entry.value)? {
                        Value::Optional(None) if entry.optional => continue,
                        Value::Optional(Some(inner)) if entry.optional => (*inner).clone(),
                        value => value,
                    };
                    made.insert(key, value);
                }
                self.charge(MAP_COST)?;
                Ok(Value::Map(Arc::new(made)))
            }
            Expr::Struct(made) => {
                let mut fields = BTreeMap::new();
                for entry in &made.entries {
                    let EntryExpr::StructField(field) = &entry.expr else { continue };
                    let value = match self.eval(&field.value)? {
                        Value::Optional(None) if field.optional => continue,
                        Value::Optional(Some(inner)) if field.optional => (*inner).clone(),
                        value => value,
                    };
                    fields.insert(Key::Text(field.field.as_str().into()), value);
                }
                self.charge(STRUCT_COST)?;
                Ok(Value::Map(Arc::new(fields)))
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
        }
    }

    fn name(&self, name: &str) -> Found<'a> {
        if let Some((_, value)) = self.locals.iter().rev().find(|(n, _)| *n == name) {
            return value.clone();
        }
        let ty = || crate::value::library_type(name).map(Value::OfType);
        self.bindings.variable(name).or_else(ty).ok_or_else(|| Error::new(format!("no such attribute(s): {name}")))
    }

    fn comprehension(&mut self, c: &'p ComprehensionExpr) -> Found<'a> {
        let range = self.eval(&c.iter_range)?;
        let rounds: Vec<(Value<'a>, Value<'a>)> = match (range.elements(), &c.iter_var2) {
            (Some(list), Some(_)) => (0..).map(Value::Int).zip(list.iter().cloned()).collect(),
            (Some(list), None) => list.iter().map(|v| (v.clone(), Value::Null)).collect(),
            (None, _) => range.entries().ok_or_else(Error::no_overload)?,
        };
        let outside = self.locals.len();
        let initial = self.eval(&c.accu_init);
        self.locals.push((&c.accu_var, initial));
        for (first, second) in rounds {
            self.locals.push((&c.iter_var, Ok(first)));
            if let Some(name) = &c.iter_var2 {
                self.locals.push((name, Ok(second)));
            }
            let goes_on = self.eval(&c.loop_cond);
            if !matches!(goes_on, Ok(Value::Bool(true))) {
                self.locals.truncate(outside + 1);
                if let Err(error) = goes_on {
                    self.locals.truncate(outside);
                    return Err(error);
                }
                break;
            }
            let step = self.eval(&c.loop_step);
            self.locals.truncate(outside + 1);
            if let Err(error) = &step
                && error.is_over_limit
            {
                self.locals.truncate(outside);
                return step;
            }
            self.locals[outside].1 = step;
        }
        let result = self.eval(&c.result);
        self.locals.truncate(outside);
        result
    }

    fn call(&mut self, call: &'p CallExpr) -> Found<'a> {
        let name = call.func_name.as_str();
        match (name, &call.args[..]) {
            (operators::LOGICAL_AND, [a, b]) => return self.logical(a, b, false),
            (operators::LOGICAL_OR, [a, b]) => return self.logical(a, b, true),
            (operators::CONDITIONAL, [condition, yes, no]) => {
                return match self.eval(condition)? {
                    Value::Bool(true) => self.eval(yes),
                    Value::Bool(false) => self.eval(no),
                    _ => Err(Error::no_overload()),
                };
            }
            (operators::NOT_STRICTLY_FALSE, [a]) => {
                let value = self.eval(a);
                if let Err(error) = &value
                    && error.is_over_limit
                {
                    return value;
                }
                self.charge(1)?;
                return Ok(Value::Bool(!matches!(value, Ok(Value::Bool(false)))));
            }
            (operators::ADD, [accumulated, IdedExpr { expr: Expr::List(list), .. }])
                if list.optional_indices.is_empty() =>
            {
                if let Some(grown) = self.grow(accumulated, &list.elements) {
                    return grown;
                }
            }
            (operators::OPT_SELECT, [operand, IdedExpr { expr: Expr::Literal(LiteralValue::String(field)), .. }]) => {
                let operand = self.eval(operand)?;
                self.charge(1)?;
                return optional_find(&operand, &Value::from(field.inner()));
            }
            (operators::OPT_INDEX, [operand, index]) => {
                let operand = self.eval(operand)?;
                let index = self.eval(index)?;
                self.charge(1)?;
                return optional_find(&operand, &index);
            }
            (operators::INDEX, [operand, index]) => {
                let operand = self.eval(operand)?;
                let index = self.eval(index)?;
                self.charge(1)?;
                return match &operand {
                    Value::Optional(_) => optional_find(&operand, &index),
                    _ => library::lists::at(&operand, &index),
                };
            }
            ("or" | "orValue", [other]) => {
                if let Some(target) = &call.target {
                    let target = self.eval(target)?;
                    self.charge(1)?;
                    return match target {
                        Value::Optional(Some(value)) if name == "orValue" => Ok((*value).clone()),
                        Value::Optional(Some(_)) => Ok(target),
                        Value::Optional(None) => self.eval(other),
                        _ => Err(Error::no_overload()),
                    };
                }
            }
            (MAP_INSERT, [accumulated, rest @ ..]) => return self.insert(accumulated, rest),
            _ => {}
        }
        let mut args = Vec::with_capacity(call.args.len() + 1);
        if let Some(target) = &call.target {
            args.push(self.eval(target)?);
        }
        for argument in &call.args {
            args.push(self.eval(argument)?);
        }
        // What an authorizer or a large regular expression would cost is known before; it is not begun in vain.
        self.charge(library::cost_before(name, &args))?;
        let value = library::call(name, call.target.is_some(), &args)?;
        self.charge(library::cost_after(name, &value))?;
        Ok(value)
    }

    /// The operator that its first decisive side decides; an error of one side is passed over if the other decides.
    fn logical(&mut self, a: &'p IdedExpr, b: &'p IdedExpr, decisive: bool) -> Found<'a> {
        let left = self.eval(a);
        match &left {
            Ok(Value::Bool(value)) if *value == decisive => return left,
            Err(error) if error.is_over_limit => return left,
            _ => {}
        }
        let right = self.eval(b);
        match (&left, &right) {
            (_, Ok(Value::Bool(value))) if *value == decisive => right,
            (_, Err(error)) if error.is_over_limit => right,
            (Err(_), _) => left,
            (_, Err(_)) => right,
            (Ok(Value::Bool(_)), Ok(Value::Bool(_))) => Ok(Value::Bool(!decisive)),
            _ => Err(Error::no_overload()),
        }
    }

    /// The place of an accumulator, if that is what an expression names.
    fn accumulator(&self, expr: &IdedExpr) -> Option<usize> {
        let Expr::Ident(name) = &expr.expr else { return None };
        if name != "@result" {
            return None;
        }
        self.locals.iter().rposition(|(n, _)| n == name)
    }

    /// `@result + [x]` without a copy of what there is: nobody else holds an accumulator while it is built.
    fn grow(&mut self, accumulated: &'p IdedExpr, more: &'p [IdedExpr]) -> Option<Found<'a>> {
        let at = self.accumulator(accumulated)?;
        if !matches!(self.locals[at].1, Ok(Value::List(_))) {
            return None;
        }
        Some(self.grow_at(at, more))
    }

    fn grow_at(&mut self, at: usize, more: &'p [IdedExpr]) -> Found<'a> {
        self.charge(1)?;
        let mut made = Vec::with_capacity(more.len());
        for element in more {
            made.push(self.eval(element)?);
        }
        self.charge(LIST_COST + 1)?;
        let taken = std::mem::replace(&mut self.locals[at].1, Ok(Value::Null))?;
        let Value::List(mut list) = taken else { return Err(Error::no_overload()) };
        Arc::make_mut(&mut list).extend(made);
        Ok(Value::List(list))
    }

    fn insert(&mut self, accumulated: &'p IdedExpr, rest: &'p [IdedExpr]) -> Found<'a> {
        let values: Vec<Value<'a>> = rest.iter().map(|e| self.eval(e)).collect::<Result<_, _>>()?;
        self.charge(1)?;
        let before = match self.accumulator(accumulated) {
            Some(at) => std::mem::replace(&mut self.locals[at].1, Ok(Value::Null))?,
            None => self.eval(accumulated)?,
        };
        let Value::Map(mut map) = before else { return Err(Error::no_overload()) };
        let new: Vec<(Value<'a>, Value<'a>)> = match &values[..] {
            [key, value] => vec![(key.clone(), value.clone())],
            [entries] => entries.entries().ok_or_else(Error::no_overload)?,
            _ => return Err(Error::no_overload()),
        };
        let made = Arc::make_mut(&mut map);
        for (key, value) in new {
            if made.insert(Key::of(&key)?, value).is_some() {
                return Err(Error::new(format!("insert failed: key {} already exists", library::convert::shown(&key))));
            }
        }
        Ok(Value::Map(map))
    }
}

fn has(operand: &Value<'_>, field: &str) -> Result<bool, Error> {
    match operand {
        Value::Optional(None) => Ok(false),
        Value::Optional(Some(inner)) => has(inner, field),
        other => Ok(other.find(&Value::Text(Text::Made(field.into())))?.is_some()),
    }
}

fn select_field<'a>(operand: &Value<'a>, field: &str) -> Found<'a> {
    let key = Value::from(field);
    match operand {
        Value::Optional(_) => optional_find(operand, &key),
        other => other.find(&key)?.ok_or_else(|| Error::no_key(&key)),
    }
}

/// What is at a key, if there is something.
fn optional_find<'a>(operand: &Value<'a>, key: &Value<'_>) -> Found<'a> {
    let found = match operand {
        Value::Optional(None) => None,
        Value::Optional(Some(inner)) => return optional_find(inner, key),
        list if list.elements().is_some() => library::lists::at(list, key).ok(),
        other => other.find(key)?,
    };
    Ok(Value::Optional(found.map(Arc::new)))
}

/// The value of a literal.
pub(crate) fn literal<'a>(literal: &LiteralValue) -> Value<'a> {
    match literal {
        LiteralValue::Boolean(b) => Value::Bool(*b.inner()),
        LiteralValue::Bytes(bytes) => Value::Bytes(bytes.inner().into()),
        LiteralValue::Double(n) => Value::Double(*n.inner()),
        LiteralValue::Int(n) => Value::Int(*n.inner()),
        LiteralValue::UInt(n) => Value::Uint(*n.inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::String(text) => text.inner().to_owned().into(),
    }
}
