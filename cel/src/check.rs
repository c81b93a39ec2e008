//! The type checker (upstream: cel-go `checker`). It gives every node its type, every call its overloads, and tells what is wrong
//! in cel-go's words, with the place.

use crate::functions::{self, Overload};
use crate::library::format;
use crate::parse;
use crate::types::{Substitutions, Type, most_general};
use crate::value::{library_type, runtime_name};
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, SourceInfo, operators,
};
use coxswain_api::go_regex;
use std::sync::Arc;

/// What an expression can name.
#[derive(Clone, Debug, Default)]
pub struct Env {
    pub variables: Vec<(&'static str, Type)>,
    /// Whether it may construct objects and JSON patches.
    pub constructs: bool,
}

/// Something wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue(String);

impl std::fmt::Display for Issue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Issue {}

/// An expression that was read and checked.
#[derive(Debug)]
pub struct Compiled {
    pub(crate) expr: IdedExpr,
    /// By the number of a node.
    pub(crate) types: Vec<Type>,
    pub(crate) overloads: Vec<Vec<&'static str>>,
    /// The variables of the environment that it names.
    used: Vec<&'static str>,
    result: Type,
}

impl Compiled {
    /// The type of its value.
    pub fn result(&self) -> &Type {
        &self.result
    }

    /// Why no program can be made of it, though its types are right.
    pub fn failure(&self) -> Option<String> {
        constant_failure(&self.expr)
    }

    pub fn uses(&self, variable: &str) -> bool {
        self.used.contains(&variable)
    }

    /// The same, fit to be evaluated but no more to be estimated: what is kept for long need not keep its types.
    pub fn without_types(mut self) -> Self {
        self.types = Vec::new();
        self.overloads = Vec::new();
        self
    }
}

/// Reads and checks an expression. The issue is what cel-go would print: all errors, each with its line and a caret.
pub fn compile(env: &Env, source: &str) -> Result<Compiled, Issue> {
    let (mut expr, places) = parse::parse(source).map_err(Issue)?;
    let mut checker = Checker {
        env,
        places,
        scopes: Vec::new(),
        known: Substitutions::default(),
        variables: 0,
        types: Vec::new(),
        overloads: Vec::new(),
        used: Vec::new(),
        issues: Vec::new(),
    };
    checker.check(&mut expr);
    if checker.issues.is_empty() {
        checker.literals(&expr, false);
    }
    if !checker.issues.is_empty() {
        checker.issues.sort_by_key(|(at, _)| *at);
        let told = checker.issues.iter().map(|((line, column), why)| parse::pointed_at(why, source, *line, *column));
        return Err(Issue(told.collect::<Vec<_>>().join("\n")));
    }
    let known = checker.known;
    let types: Vec<Type> = checker.types.iter().map(|t| known.apply(t, true)).collect();
    let result = types.get(expr.id as usize).cloned().unwrap_or(Type::Dyn);
    Ok(Compiled { expr, types, overloads: checker.overloads, used: checker.used, result })
}

struct Checker<'e> {
    env: &'e Env,
    places: SourceInfo,
    /// What macros introduce, the innermost last.
    scopes: Vec<(String, Type)>,
    known: Substitutions,
    variables: u32,
    types: Vec<Type>,
    overloads: Vec<Vec<&'static str>>,
    used: Vec<&'static str>,
    issues: Vec<((usize, usize), String)>,
}

impl Checker<'_> {
    fn issue(&mut self, id: u64, why: String) {
        let at = self.places.offset_for(id).map_or(0, |(start, _)| start as usize);
        let place = parse::position(&self.places.source, at);
        if !self.issues.iter().any(|(p, w)| *p == place && *w == why) {
            self.issues.push((place, why));
        }
    }

    fn set(&mut self, id: u64, ty: Type) {
        let at = id as usize;
        if self.types.len() <= at {
            self.types.resize(at + 1, Type::Dyn);
        }
        self.types[at] = ty;
    }

    fn get(&self, expr: &IdedExpr) -> Type {
        self.types.get(expr.id as usize).cloned().unwrap_or(Type::Dyn)
    }

    /// The type of a node as far as it is known by now.
    fn resolved(&self, expr: &IdedExpr) -> Type {
        self.known.apply(&self.get(expr), false)
    }

    fn variable(&mut self) -> Type {
        self.variables += 1;
        Type::Variable(self.variables - 1)
    }

    /// The type of a name, and whether it is one of the environment.
    fn lookup(&mut self, name: &str) -> Option<Type> {
        if let Some((_, ty)) = self.scopes.iter().rev().find(|(n, _)| n == name) {
            return Some(ty.clone());
        }
        if let Some((name, ty)) = self.env.variables.iter().find(|(n, _)| *n == name) {
            if !self.used.contains(name) {
                self.used.push(name);
            }
            return Some(ty.clone());
        }
        library_type(name).map(|ty| Type::Meta(Arc::new(ty)))
    }

    fn check(&mut self, expr: &mut IdedExpr) {
        let id = expr.id;
        if let Some(name) = qualified(&expr.expr).filter(|name| name.contains('.')) {
            // A variable may have a name of several parts; it is looked up in its parts when it is evaluated.
            if let Some((_, ty)) = self.env.variables.iter().find(|(n, _)| **n == name) {
                return self.set(id, ty.clone());
            }
            if let Some(ty) = library_type(&name) {
                expr.expr = Expr::Ident(name);
                return self.set(id, Type::Meta(Arc::new(ty)));
            }
        }
        match &mut expr.expr {
            Expr::Unspecified => self.set(id, Type::Error),
            Expr::Literal(value) => {
                let ty = match value {
                    LiteralValue::Boolean(_) => Type::Bool,
                    LiteralValue::Bytes(_) => Type::Bytes,
                    LiteralValue::Double(_) => Type::Double,
                    LiteralValue::Int(_) => Type::Int,
                    LiteralValue::Null => Type::Null,
                    LiteralValue::String(_) => Type::String,
                    LiteralValue::UInt(_) => Type::Uint,
                };
                self.set(id, ty);
            }
            Expr::Ident(name) => {
                if let Some(plain) = name.strip_prefix('.') {
                    *name = plain.to_owned();
                }
                match self.lookup(name) {
                    Some(ty) => self.set(id, ty),
                    None => {
                        let why = undeclared(name);
                        self.issue(id, why);
                        self.set(id, Type::Error);
                    }
                }
            }
            Expr::Select(SelectExpr { operand, field, test }) => {
                self.check(operand);
                let ty = self.select(id, operand, field, false);
                let ty = if *test { Type::Bool } else { ty };
                self.set(id, ty);
            }
            Expr::Call(_) => self.call(expr),
            Expr::List(list) => {
                let mut of: Option<Type> = None;
                for (at, element) in list.elements.iter_mut().enumerate() {
                    self.check(element);
                    let is_optional = list.optional_indices.contains(&at);
                    let ty = self.unwrapped(element, is_optional);
                    of = Some(self.join(of, ty));
                }
                let of = of.unwrap_or_else(|| self.variable());
                self.set(id, Type::list(of));
            }
            Expr::Map(map) => {
                let (mut keys, mut values): (Option<Type>, Option<Type>) = (None, None);
                for entry in &mut map.entries {
                    let EntryExpr::MapEntry(entry) = &mut entry.expr else { continue };
                    self.check(&mut entry.key);
                    let key = self.get(&entry.key);
                    keys = Some(self.join(keys, key));
                    self.check(&mut entry.value);
                    let value = self.unwrapped(&entry.value, entry.optional);
                    values = Some(self.join(values, value));
                }
                let key = keys.unwrap_or_else(|| self.variable());
                let value = values.unwrap_or_else(|| self.variable());
                self.set(id, Type::map(key, value));
            }
            Expr::Struct(made) => {
                let ty = match made.type_name.as_str() {
                    "JSONPatch" if self.env.constructs => Type::Named("JSONPatch"),
                    name if self.env.constructs && (name == "Object" || name.starts_with("Object.")) => {
                        Type::Named("Object")
                    }
                    name => {
                        let why = undeclared(name);
                        self.issue(id, why);
                        Type::Error
                    }
                };
                for entry in &mut made.entries {
                    if let EntryExpr::StructField(field) = &mut entry.expr {
                        self.check(&mut field.value);
                    }
                }
                self.set(id, ty);
            }
            Expr::Comprehension(comprehension) => self.comprehension(id, comprehension),
        }
    }

    /// The type of an element, of one that may be absent the type that it has if it is there.
    fn unwrapped(&mut self, element: &IdedExpr, is_optional: bool) -> Type {
        let ty = self.resolved(element);
        match ty {
            Type::Optional(of) if is_optional => (*of).clone(),
            ty if is_optional && !ty.is_dyn_or_error() => {
                self.mismatch(element.id, &Type::optional(ty.clone()), &ty);
                ty
            }
            ty => ty,
        }
    }

    fn mismatch(&mut self, id: u64, wanted: &Type, found: &Type) {
        let (wanted, found) = (self.known.apply(wanted, false), self.known.apply(found, false));
        self.issue(id, format!("expected type '{wanted}' but found '{found}'"));
    }

    /// The type of elements that are of these types.
    fn join(&mut self, before: Option<Type>, ty: Type) -> Type {
        let Some(before) = before else { return ty };
        if self.known.assign(&before, &ty) {
            return most_general(before, ty);
        }
        // Whether it may be so is looked at when all types are known.
        Type::Dyn
    }

    fn select(&mut self, id: u64, operand: &IdedExpr, field: &str, optional: bool) -> Type {
        let (target, is_optional) = match self.resolved(operand) {
            Type::Optional(of) => ((*of).clone(), true),
            ty => (ty, false),
        };
        let found = match &target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(decl) => match decl.field(field) {
                Some(field) => field.ty(),
                None => {
                    self.issue(id, format!("undefined field '{field}'"));
                    Type::Error
                }
            },
            Type::Variable(_) => {
                self.known.assign(&Type::Dyn, &target);
                Type::Dyn
            }
            Type::Dyn | Type::Error | Type::Named("Object") => Type::Dyn,
            other => {
                self.issue(id, format!("type '{other}' does not support field selection"));
                Type::Dyn
            }
        };
        if is_optional || optional { Type::optional(found) } else { found }
    }

    fn call(&mut self, expr: &mut IdedExpr) {
        let id = expr.id;
        let Expr::Call(call) = &mut expr.expr else { return };
        if call.func_name == operators::OPT_SELECT {
            return self.optional_select(id, call);
        }
        call.args.iter_mut().for_each(|argument| self.check(argument));
        if let Some(plain) = call.func_name.strip_prefix('.') {
            call.func_name = plain.to_owned();
        }
        // What looks like a target may be the first part of the function's name.
        if let Some(target) = &call.target
            && let Some(prefix) = qualified(&target.expr)
        {
            let name = format!("{}.{}", prefix.trim_start_matches('.'), call.func_name);
            if !functions::overloads(&name).is_empty() {
                call.func_name = name;
                call.target = None;
            }
        }
        if let Some(target) = &mut call.target {
            self.check(target);
        }
        let known = functions::overloads(&call.func_name);
        if known.is_empty() {
            let why = undeclared(&call.func_name);
            self.issue(id, why);
            return self.set(id, Type::Error);
        }
        let ty = self.resolve(id, call, known);
        self.set(id, ty);
    }

    fn optional_select(&mut self, id: u64, call: &mut CallExpr) {
        let [operand, name] = &mut call.args[..] else { return self.set(id, Type::Error) };
        self.check(operand);
        let Expr::Literal(LiteralValue::String(field)) = &name.expr else {
            self.issue(id, "unsupported optional field selection".into());
            return self.set(id, Type::Error);
        };
        let field = field.inner().to_owned();
        self.set(name.id, Type::String);
        let ty = self.select(id, operand, &field, true);
        self.set(id, ty);
        self.note_overload(id, "select_optional_field");
    }

    fn note_overload(&mut self, id: u64, overload: &'static str) {
        let at = id as usize;
        if self.overloads.len() <= at {
            self.overloads.resize(at + 1, Vec::new());
        }
        self.overloads[at].push(overload);
    }

    /// Finds the overloads that fit; the type is theirs, or open if they differ.
    fn resolve(&mut self, id: u64, call: &CallExpr, known: &'static [Overload]) -> Type {
        let is_member = call.target.is_some();
        let given: Vec<Type> = call.target.as_deref().into_iter().chain(&call.args).map(|e| self.resolved(e)).collect();
        let mut result: Option<Type> = None;
        for overload in known.iter().filter(|o| o.is_member == is_member) {
            let by = self.variables;
            let wanted: Vec<Type> = overload.arguments.iter().map(|t| t.shifted(by)).collect();
            if !self.known.assign_all(&given, &wanted) {
                continue;
            }
            self.variables += overload.variables;
            self.note_overload(id, overload.id);
            let found = self.known.apply(&overload.result.shifted(by), false);
            result = Some(match result {
                None => found,
                Some(before) if matches!(before, Type::Dyn) || before.same(&found) => before,
                Some(_) => Type::Dyn,
            });
        }
        if let Some(result) = result {
            return result;
        }
        let mut told: Vec<String> = given.iter().map(|t| self.known.apply(t, true).to_string()).collect();
        let target = if is_member { format!("{}.", told.remove(0)) } else { String::new() };
        let name = &call.func_name;
        self.issue(id, format!("found no matching overload for '{name}' applied to '{target}({})'", told.join(", ")));
        Type::Error
    }

    fn comprehension(&mut self, id: u64, comprehension: &mut ComprehensionExpr) {
        self.check(&mut comprehension.iter_range);
        self.check(&mut comprehension.accu_init);
        let range = self.resolved(&comprehension.iter_range);
        let accumulated = self.get(&comprehension.accu_init);
        let two = comprehension.iter_var2.is_some();
        let (first, second) = match &range {
            Type::List(of) if two => (Type::Int, (**of).clone()),
            Type::List(of) => ((**of).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error => (Type::Dyn, Type::Dyn),
            Type::Variable(_) => {
                self.known.assign(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let why = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.issue(comprehension.iter_range.id, why);
                (Type::Error, Type::Error)
            }
        };
        let outside = self.scopes.len();
        self.scopes.push((comprehension.accu_var.clone(), accumulated.clone()));
        let with_accumulator = self.scopes.len();
        self.scopes.push((comprehension.iter_var.clone(), first));
        if let Some(name) = &comprehension.iter_var2 {
            self.scopes.push((name.clone(), second));
        }
        self.check(&mut comprehension.loop_cond);
        self.demand(&comprehension.loop_cond, &Type::Bool);
        self.check(&mut comprehension.loop_step);
        self.demand(&comprehension.loop_step, &accumulated);
        self.scopes.truncate(with_accumulator);
        self.check(&mut comprehension.result);
        self.scopes.truncate(outside);
        let ty = self.resolved(&comprehension.result);
        self.set(id, ty);
    }

    fn demand(&mut self, expr: &IdedExpr, wanted: &Type) {
        let found = self.get(expr);
        if !self.known.assign(wanted, &found) {
            self.mismatch(expr.id, wanted, &found);
        }
    }

    /// Literals that are right by their types may still be wrong (upstream: the validators of the base environment): texts
    /// that are times, durations or regular expressions, templates, and lists and maps of several types. What is handed to
    /// `format` may be of any types.
    fn literals(&mut self, expr: &IdedExpr, for_format: bool) {
        match &expr.expr {
            Expr::Call(call) => self.constant_arguments(expr.id, call),
            Expr::List(list) if !for_format => {
                let elements = list.elements.iter().enumerate();
                let types: Vec<(u64, Type)> =
                    elements.map(|(at, e)| (e.id, self.final_type(e, list.optional_indices.contains(&at)))).collect();
                self.one_type(&types, 1);
            }
            Expr::Map(map) if !for_format => {
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    keys.push((entry.key.id, self.final_type(&entry.key, false)));
                    values.push((entry.value.id, self.final_type(&entry.value, entry.optional)));
                }
                self.one_type(&keys, usize::MAX);
                self.one_type(&values, usize::MAX);
            }
            _ => {}
        }
        let for_format = for_format || matches!(&expr.expr, Expr::Call(call) if call.func_name == "format");
        each_child(expr, &mut |child| self.literals(child, for_format));
    }

    fn final_type(&self, expr: &IdedExpr, is_optional: bool) -> Type {
        match self.known.apply(&self.get(expr), true) {
            Type::Optional(of) if is_optional => (*of).clone(),
            ty => ty,
        }
    }

    /// Tells of elements that are not of the type of the first, of so many at most.
    fn one_type(&mut self, types: &[(u64, Type)], told_max: usize) {
        let Some((_, wanted)) = types.first() else { return };
        let odd: Vec<_> = types.iter().filter(|(_, ty)| !wanted.same(ty)).take(told_max).collect();
        for (id, found) in odd {
            self.mismatch(*id, wanted, found);
        }
    }

    fn constant_arguments(&mut self, id: u64, call: &CallExpr) {
        let argument = match (call.func_name.as_str(), &call.target, &call.args[..]) {
            ("duration" | "timestamp", None, [one]) | ("matches", Some(_), [one]) | ("matches", None, [_, one]) => {
                Some(one)
            }
            ("format", Some(template), [IdedExpr { expr: Expr::List(args), .. }]) => {
                if let Expr::Literal(LiteralValue::String(template)) = &template.expr {
                    self.template(id, template.inner(), &args.elements);
                }
                None
            }
            _ => None,
        };
        if let Some(IdedExpr { id, expr: Expr::Literal(LiteralValue::String(text)) }) = argument {
            let text = text.inner();
            let is_right = match call.func_name.as_str() {
                "duration" => crate::library::time::parse_duration(text).is_some(),
                "timestamp" => crate::library::time::parse_timestamp(text).is_some(),
                _ => go_regex::compile(text).is_ok(),
            };
            if !is_right {
                self.issue(*id, format!("invalid {} argument", call.func_name));
            }
        }
    }

    /// A template that is constant fits the arguments of its clauses.
    fn template(&mut self, id: u64, template: &str, args: &[IdedExpr]) {
        let mut at = id;
        let seen = format::parse(template, args.len(), &mut |_| {}, &mut |index, clause| {
            let Some(odd) = self.unfit(clause.letter, &args[index]) else { return Ok(()) };
            at = odd.id;
            Err(format::unfit(clause.letter, &runtime_name(&self.final_type(odd, false))))
        });
        match seen {
            Err(why) => self.issue(at, why.to_string()),
            Ok(seen) if args.len() > seen => {
                let count = args.len();
                let why = format!("too many arguments supplied to string.format (expected {seen}, got {count})");
                self.issue(id, why);
            }
            Ok(_) => {}
        }
    }

    /// The part of an argument that a clause cannot show.
    fn unfit<'a>(&self, letter: char, arg: &'a IdedExpr) -> Option<&'a IdedExpr> {
        let ty = self.final_type(arg, false);
        let number = matches!(ty, Type::Int | Type::Uint);
        let text = matches!(ty, Type::String | Type::Bytes);
        let fits = match letter {
            's' => {
                let time = matches!(ty, Type::Timestamp | Type::Duration);
                let other = matches!(ty, Type::List(_) | Type::Map(..) | Type::Meta(_) | Type::Null);
                number || text || time || other || matches!(ty, Type::Double | Type::Bool)
            }
            'd' | 'o' => number,
            'f' | 'e' => matches!(ty, Type::Double | Type::String),
            'b' => number || matches!(ty, Type::Bool),
            _ => number || text,
        };
        if !fits && !matches!(ty, Type::Dyn) {
            return Some(arg);
        }
        match &arg.expr {
            Expr::List(list) if letter == 's' => list.elements.iter().find_map(|e| self.unfit('s', e)),
            Expr::Map(map) if letter == 's' => map.entries.iter().find_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => self.unfit('s', &entry.key).or_else(|| self.unfit('s', &entry.value)),
                EntryExpr::StructField(_) => None,
            }),
            _ => None,
        }
    }
}

/// The first constant that cannot be turned into what it is turned into: such calls are made when a program is made of an
/// expression (upstream: `OptOptimize`).
fn constant_failure(expr: &IdedExpr) -> Option<String> {
    let mut found = None;
    each_child(expr, &mut |child| found = found.take().or_else(|| constant_failure(child)));
    let (None, Expr::Call(call)) = (&found, &expr.expr) else { return found };
    let literal = |e: &IdedExpr| match &e.expr {
        Expr::Literal(value) => Some(crate::eval::literal(value)),
        _ => None,
    };
    match (call.func_name.as_str(), &call.target, &call.args[..]) {
        (name @ ("bool" | "bytes" | "double" | "int" | "string" | "uint" | "duration" | "timestamp"), None, [one]) => {
            crate::library::convert::to(name, &literal(one)?).err().map(|why| why.to_string())
        }
        ("find" | "findAll", Some(_), [one, ..]) => match literal(one)? {
            crate::value::Value::Text(source) => go_regex::compile(&source).err(),
            _ => None,
        },
        _ => None,
    }
}

fn undeclared(name: &str) -> String {
    format!("undeclared reference to '{name}' (in container '')")
}

/// The name that a chain of fields may be.
fn qualified(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(SelectExpr { operand, field, test: false }) => {
            Some(format!("{}.{field}", qualified(&operand.expr)?))
        }
        _ => None,
    }
}

fn each_child(expr: &IdedExpr, visit: &mut dyn FnMut(&IdedExpr)) {
    match &expr.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => {}
        Expr::Select(select) => visit(&select.operand),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).for_each(visit),
        Expr::List(list) => list.elements.iter().for_each(visit),
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    visit(&entry.key);
                    visit(&entry.value);
                }
            }
        }
        Expr::Struct(made) => {
            for entry in &made.entries {
                if let EntryExpr::StructField(field) = &entry.expr {
                    visit(&field.value);
                }
            }
        }
        Expr::Comprehension(c) => {
            [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result].into_iter().for_each(visit);
        }
    }
}
