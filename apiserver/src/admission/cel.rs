//! Expressions of policies and match conditions in the Common Expression Language (upstream: `admission/plugin/cel`).

mod library;

use cel::objects::{Key, Map};
use cel::{Context, Env, Program, Value as CelValue};
use coxswain_api::Value;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// So many compiled expressions are kept; beyond it all are forgotten.
const CACHE_MAX: usize = 2_000;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(true);
    for extension in [cel::extensions::strings, cel::extensions::lists, library::extension] {
        // All extend the same fresh environment, so no name is taken yet.
        env.add_extension(extension).expect("the extensions of CEL do not overlap");
    }
    Arc::new(env)
});

static CACHE: LazyLock<parking_lot::Mutex<HashMap<String, Arc<Program>>>> = LazyLock::new(Default::default);

/// What expressions can name.
pub(crate) struct Variables(Vec<(&'static str, CelValue)>);

impl Variables {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn set(&mut self, name: &'static str, value: Option<&Value>) {
        self.0.push((name, value.map_or(CelValue::Null, to_cel)));
    }

    /// Names a value that is in CEL's form already.
    pub(crate) fn bind(&mut self, name: &'static str, value: CelValue) {
        self.0.push((name, value));
    }

    /// Adds a computed variable to the map `variables`.
    pub(super) fn define(&mut self, name: &str, value: CelValue) {
        let defined = self.0.iter().position(|(n, _)| *n == "variables");
        let mut map = match defined.map(|at| self.0.swap_remove(at).1) {
            Some(CelValue::Map(map)) => (*map.map).clone(),
            _ => HashMap::new(),
        };
        map.insert(Key::String(Arc::new(name.to_owned())), value);
        self.0.push(("variables", CelValue::Map(Map { map: Arc::new(map) })));
    }

    /// The value of an expression; the error is a sentence.
    pub(crate) fn evaluate(&self, expression: &str) -> Result<CelValue, String> {
        let program = compile(expression)?;
        let mut context = Context::with_env(ENV.clone());
        library::add_quantities(expression, &mut context).map_err(|e| e.to_string())?;
        for (name, value) in &self.0 {
            context.add_variable_from_value(*name, value.clone());
        }
        program.execute(&context).map_err(|e| match e {
            cel::ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
            other => other.to_string(),
        })
    }

    pub(super) fn is_true(&self, expression: &str) -> Result<bool, String> {
        match self.evaluate(expression)? {
            CelValue::Bool(value) => Ok(value),
            _ => Err("cel expression does not evaluate to bool".into()),
        }
    }

    /// What an expression describes, as a tree.
    pub(super) fn tree(&self, expression: &str) -> Result<Value, String> {
        to_tree(&self.evaluate(expression)?)
    }

    pub(crate) fn text(&self, expression: &str) -> Result<String, String> {
        match self.evaluate(expression)? {
            CelValue::String(text) => Ok(text.to_string()),
            _ => Err("cel expression does not evaluate to string".into()),
        }
    }
}

fn compile(expression: &str) -> Result<Arc<Program>, String> {
    if let Some(program) = CACHE.lock().get(expression) {
        return Ok(program.clone());
    }
    let program = Arc::new(ENV.compile(expression).map_err(|e| format!("compilation failed: {e}"))?);
    let mut cache = CACHE.lock();
    if cache.len() >= CACHE_MAX {
        cache.clear();
    }
    cache.insert(expression.to_owned(), program.clone());
    Ok(program)
}

/// The variables that an expression names; the error is a sentence.
pub(crate) fn names(expression: &str) -> Result<Vec<String>, String> {
    Ok(compile(expression)?.references().variables().into_iter().map(str::to_owned).collect())
}

fn to_cel(value: &Value) -> CelValue {
    match value {
        Value::Null => CelValue::Null,
        Value::Bool(b) => CelValue::Bool(*b),
        Value::Number(n) => match n.as_i64() {
            Some(int) => CelValue::Int(int),
            None => CelValue::Float(n.as_f64().unwrap_or_default()),
        },
        Value::String(s) => CelValue::String(Arc::new(s.clone())),
        Value::Array(list) => CelValue::List(Arc::new(list.iter().map(to_cel).collect())),
        Value::Object(map) => {
            // An absent field is no entry, as a null of the tree is.
            let entries = map.iter().filter(|(_, v)| !v.is_null());
            let map: HashMap<Key, CelValue> =
                entries.map(|(k, v)| (Key::String(Arc::new(k.clone())), to_cel(v))).collect();
            CelValue::Map(Map { map: Arc::new(map) })
        }
    }
}

fn to_tree(value: &CelValue) -> Result<Value, String> {
    Ok(match value {
        CelValue::Null => Value::Null,
        CelValue::Bool(b) => Value::Bool(*b),
        CelValue::Int(n) => (*n).into(),
        CelValue::UInt(n) => (*n).into(),
        CelValue::Float(n) => (*n).into(),
        CelValue::String(s) => Value::String(s.to_string()),
        CelValue::List(list) => Value::Array(list.iter().map(to_tree).collect::<Result<_, _>>()?),
        CelValue::Map(map) => {
            let entry = |(key, value): (&Key, &CelValue)| match key {
                Key::String(key) => Ok((key.to_string(), to_tree(value)?)),
                _ => Err("a key of an object is not a string".to_owned()),
            };
            Value::Object(map.map.iter().map(entry).collect::<Result<_, String>>()?)
        }
        _ => return Err("the expression gives something that no object holds".into()),
    })
}

/// Rewrites the construction of objects, `Object.spec{replicas: 1}` and `JSONPatch{op: "add"}`, to that of maps with the
/// same fields. The types themselves are not checked: the schema does that when the change is decoded.
pub(super) fn construct_maps(expression: &str) -> String {
    let mut out = String::with_capacity(expression.len() + 16);
    // For every open brace, whether it is of an object, whose keys are names of fields.
    let mut braces: Vec<bool> = Vec::new();
    let mut rest = expression;
    let mut key_may_follow = false;
    while let Some(c) = rest.chars().next() {
        if c == '"' || c == '\'' {
            let end = string_end(rest, c);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            key_may_follow = false;
            continue;
        }
        if c.is_alphabetic() || c == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '.').unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let constructs = word == "JSONPatch" || word == "Object" || word.starts_with("Object.");
            if constructs && after.trim_start().starts_with('{') {
                out.push('{');
                braces.push(true);
                rest = &after.trim_start()[1..];
                key_may_follow = true;
                continue;
            }
            if key_may_follow && braces.last() == Some(&true) && after.trim_start().starts_with(':') {
                out.push_str(&format!("\"{word}\""));
            } else {
                out.push_str(word);
            }
            rest = after;
            key_may_follow = false;
            continue;
        }
        match c {
            '{' => braces.push(false),
            '}' => {
                braces.pop();
            }
            _ => {}
        }
        if !c.is_whitespace() {
            key_may_follow = c == ',' || c == '{';
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// Where a string literal ends, its closing quote included.
fn string_end(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// What an expression has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Bool,
    Text,
    TextOrNull,
    /// Anything: of a variable.
    Any,
}

/// What is wrong with an expression as far as can be told without types: syntax, names, and the type of what is constant.
/// `declared` are the names that there are.
pub(crate) fn check(expression: &str, wanted: Wanted, declared: &[&str]) -> Option<String> {
    let program = match ENV.compile(expression) {
        Ok(program) => program,
        Err(e) => return Some(format!("compilation failed: {}", syntax_error(&e.to_string(), expression))),
    };
    let references = program.references();
    let mut unknown: Vec<(usize, &str)> = references
        .variables()
        .into_iter()
        .filter(|name| !declared.contains(name) && !TYPES.contains(name) && !is_bound(expression, name))
        .filter_map(|name| Some((position(expression, name)?, name)))
        .collect();
    // An unknown function is reported at its parenthesis.
    unknown.extend(references.functions().into_iter().filter(|name| !is_function(name)).filter_map(|name| {
        let at = position_of_call(expression, name)?;
        Some((at, name))
    }));
    unknown.sort_unstable();
    if let Some((at, name)) = unknown.first() {
        let why = format!("undeclared reference to '{name}' (in container '')");
        return Some(format!("compilation failed: {}", pointed(&why, expression, *at)));
    }
    if !references.variables().is_empty() {
        return None;
    }
    let got = match program.execute(&Context::with_env(ENV.clone())) {
        Ok(CelValue::Bool(_)) => "bool",
        Ok(CelValue::Int(_)) => "int",
        Ok(CelValue::UInt(_)) => "uint",
        Ok(CelValue::Float(_)) => "double",
        Ok(CelValue::String(_)) => "string",
        Ok(CelValue::Bytes(_)) => "bytes",
        Ok(CelValue::Null) => "null_type",
        _ => return None,
    };
    let (fits, name) = match wanted {
        Wanted::Bool => (got == "bool", "bool"),
        Wanted::Text => (got == "string", "string"),
        Wanted::TextOrNull => (got == "string" || got == "null_type", "one of [string null_type]"),
        Wanted::Any => (true, ""),
    };
    (!fits).then(|| format!("must evaluate to {name} but got {got}"))
}

/// Names of types, which are values too.
const TYPES: [&str; 10] = ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];

/// The functions of CEL and of Kubernetes' libraries; operators are written with `_` and `@`.
fn is_function(name: &str) -> bool {
    #[rustfmt::skip]
    const KNOWN: &[&str] = &[
        "all", "allowed", "annotate", "asApproximateFloat", "asInteger", "base64.decode", "base64.encode", "bool", "bytes", "charAt",
        "check", "cidr", "compareTo", "contains", "containsCIDR", "containsIP", "distinct", "double", "duration", "dyn",
        "endsWith", "error", "errored", "exists", "exists_one", "existsOne", "fieldSelector", "filter", "find", "findAll",
        "first", "flatten", "format", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getEscapedPath",
        "getFullYear", "getHost", "getHostname", "getHours", "getMilliseconds", "getMinutes", "getMonth", "getPort",
        "getQuery", "getScheme", "getSeconds", "group", "has", "hasValue", "indexOf", "int", "ip", "ip.isCanonical",
        "isCIDR", "isGreaterThan", "isIP", "isInteger", "isLessThan", "isQuantity", "isSemver", "isSorted", "isURL",
        "join", "jsonpatch.escapeKey", "labelSelector", "last", "lastIndexOf", "lowerAscii", "major", "map", "masked", "matches",
        "max", "min", "minor", "name", "namespace", "optFlatMap", "optMap", "optional.none", "optional.of",
        "optional.ofNonZeroValue", "or", "orValue", "patch", "path", "prefixLength", "quantity", "quote", "reason",
        "replace", "requestResource", "resource", "reverse", "semver", "serviceAccount", "sets.contains",
        "sets.equivalent", "sets.intersects", "sign", "size", "slice", "sort", "sortBy", "split", "startsWith",
        "string", "strings.quote", "sub", "add", "subresource", "substring", "sum", "timestamp", "transformList",
        "transformMap", "transformMapEntry", "trim", "type", "uint", "upperAscii", "url", "validate", "value",
        "escapeKey", "family", "isUnspecified", "isLoopback", "isLinkLocalMulticast", "isLinkLocalUnicast", "isGlobalUnicast",
        "of", "none", "ofNonZeroValue", "decode", "encode", "intersects", "equivalent", "isCanonical", "format.named",
    ];
    name.starts_with(['_', '@', '!', '-']) || KNOWN.contains(&name)
}

/// Whether a macro such as `all(x, …)` introduces the name.
fn is_bound(expression: &str, name: &str) -> bool {
    if name.starts_with('@') || name.starts_with("__") {
        return true;
    }
    let after = |at: usize| expression[at + name.len()..].trim_start().starts_with(',');
    let before = |at: usize| expression[..at].trim_end().ends_with(['(', ',']);
    expression.match_indices(name).any(|(at, _)| before(at) && after(at))
}

/// The parenthesis of a call.
fn position_of_call(expression: &str, name: &str) -> Option<usize> {
    let last = name.rsplit('.').next().unwrap_or(name);
    expression.match_indices(last).map(|(at, _)| at + last.len()).find(|at| expression[*at..].starts_with('('))
}

/// Where a name stands as a word of its own.
fn position(expression: &str, name: &str) -> Option<usize> {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    expression.match_indices(name).map(|(at, _)| at).find(|at| {
        !expression[..*at].chars().next_back().is_some_and(part_of_word)
            && !expression[at + name.len()..].chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// An error as CEL prints it: the line, and a caret under the place.
pub(crate) fn pointed(why: &str, expression: &str, at: usize) -> String {
    let before = &expression[..at];
    let line = before.matches('\n').count();
    let column = before.chars().rev().take_while(|c| *c != '\n').count();
    let text = expression.lines().nth(line).unwrap_or_default();
    format!("ERROR: <input>:{}:{}: {why}\n | {text}\n | {}^", line + 1, column + 1, ".".repeat(column))
}

/// The parser's first complaint, in the form of the other errors.
fn syntax_error(text: &str, expression: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    if first.contains("Syntax error:") && text.contains("\n |") {
        return text.trim_end().to_owned();
    }
    let why = first.rsplit("Syntax error: ").next().unwrap_or(first);
    pointed(&format!("Syntax error: {why}"), expression, expression.len())
}

/// Whether all match conditions hold. `Err` names the first that could not be told; one that is false decides even so.
pub(super) fn conditions_hold(conditions: &Value, variables: &Variables) -> Result<bool, String> {
    let mut failure = None;
    for condition in conditions.as_array().into_iter().flatten() {
        match variables.is_true(condition["expression"].as_str().unwrap_or_default().trim()) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => {
                let name = condition["name"].as_str().unwrap_or_default();
                failure.get_or_insert(format!("matchCondition {}: {why}", coxswain_api::field::go_quote(name)));
            }
        }
    }
    failure.map_or(Ok(true), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_false_condition_decides_before_a_broken_one() {
        let mut variables = Variables::new();
        variables.set("object", Some(&json!({"metadata": {"name": "spared"}, "data": {"n": 3}})));
        variables.set("oldObject", None);
        let conditions = json!([
            {"name": "broken", "expression": "object.nothing.there"},
            {"name": "spared", "expression": "object.metadata.name != 'spared'"},
        ]);
        assert_eq!(conditions_hold(&conditions, &variables), Ok(false));
        assert_eq!(variables.is_true("oldObject == null && object.data.n < 4 && !has(object.spec)"), Ok(true));
        variables.define("size", variables.evaluate("object.data.size()").unwrap());
        assert_eq!(variables.text("'has ' + string(variables.size)").as_deref(), Ok("has 1"));
    }

    #[test]
    fn objects_are_constructed_as_maps() {
        let made = construct_maps(
            r#"Object{metadata: Object.metadata{labels: {"a: b{": c.d ? "x" : y}}, spec: [JSONPatch{op: 'add'}]}"#,
        );
        assert_eq!(made, r#"{"metadata": {"labels": {"a: b{": c.d ? "x" : y}}, "spec": [{"op": 'add'}]}"#);
    }

    #[test]
    fn what_is_wrong_with_an_expression_is_told_with_its_place() {
        let names = ["object"];
        assert_eq!(check("object.x.all(y, y > 1)", Wanted::Bool, &names), None);
        assert_eq!(check("1 + 1", Wanted::Bool, &names).as_deref(), Some("must evaluate to bool but got int"));
        assert_eq!(
            check("foo.bar", Wanted::Bool, &names).as_deref(),
            Some(
                "compilation failed: ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n | foo.bar\n | ^"
            )
        );
    }
}
