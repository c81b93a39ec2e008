//! Expressions of policies and match conditions in the Common Expression Language (upstream: `admission/plugin/cel`).

use cel::objects::{Key, Map};
use cel::{Context, Env, Program, Value as CelValue};
use coxswain_api::Value;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// So many compiled expressions are kept; beyond it all are forgotten.
const CACHE_MAX: usize = 2_000;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(true);
    for extension in [cel::extensions::strings, cel::extensions::lists] {
        // Both extend the same fresh environment, so no name is taken yet.
        env.add_extension(extension).expect("the extensions of CEL do not overlap");
    }
    Arc::new(env)
});

static CACHE: LazyLock<parking_lot::Mutex<HashMap<String, Arc<Program>>>> = LazyLock::new(Default::default);

/// What expressions can name.
pub(super) struct Variables(Vec<(&'static str, CelValue)>);

impl Variables {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn set(&mut self, name: &'static str, value: Option<&Value>) {
        self.0.push((name, value.map_or(CelValue::Null, to_cel)));
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
    pub(super) fn evaluate(&self, expression: &str) -> Result<CelValue, String> {
        let program = compile(expression)?;
        let mut context = Context::with_env(ENV.clone());
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

    pub(super) fn text(&self, expression: &str) -> Result<String, String> {
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
}
