//! Expressions of policies and match conditions in the Common Expression Language (upstream: `admission/plugin/cel`).

mod request;

use crate::authorization::{Authorization, Authorizer as _};
use crate::request::{RequestInfo, User};
use coxswain_api::Value;
use coxswain_cel::{
    AccessRequest, Authorizer, Bindings, CALL_COST_MAX, Compiled, Decision, DeclType, Env, Error, Type, compile,
};
use coxswain_cel::{Value as CelValue, evaluate};
use futures::FutureExt as _;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// So many compiled expressions are kept; beyond it all are forgotten.
const CACHE_MAX: usize = 2_000;

/// What all expressions of a policy may cost for one request (upstream: `RuntimeCELCostBudget`).
const POLICY_COST_MAX: u64 = 10_000_000;
/// What all match conditions together may cost (upstream: `RuntimeCELCostBudgetMatchConditions`).
const CONDITIONS_COST_MAX: u64 = 2_500_000;

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

static CACHE: LazyLock<parking_lot::Mutex<HashMap<String, Arc<Compiled>>>> = LazyLock::new(Default::default);

/// When a request is judged, expressions have been checked against their types; then every name is just there.
static ANYTHING: LazyLock<Env> = LazyLock::new(|| {
    let names = ["object", "oldObject", "request", "params", "namespaceObject", "authorizer", "variables"];
    Env { variables: names.map(|name| (name, Type::Dyn)).into(), constructs: true }
});

fn compiled(expression: &str) -> Result<Arc<Compiled>, String> {
    if let Some(known) = CACHE.lock().get(expression) {
        return Ok(known.clone());
    }
    let made = compile(&ANYTHING, expression).map_err(|e| format!("compilation failed: {e}"))?;
    let made = Arc::new(made.without_types());
    let mut cache = CACHE.lock();
    if cache.len() >= CACHE_MAX {
        cache.clear();
    }
    cache.insert(expression.to_owned(), made.clone());
    Ok(made)
}

/// What expressions can name.
pub(crate) struct Variables<'a> {
    values: Vec<(&'static str, CelValue<'a>)>,
    /// The question whether the caller may do what the request does.
    resource_check: Option<CelValue<'a>>,
    /// Computed variables: their names and expressions, and their values once somebody asked for them.
    defined: Vec<(String, String)>,
    computed: RefCell<HashMap<String, Result<CelValue<'a>, Error>>>,
    /// What may still be spent.
    budget: Cell<u64>,
}

impl<'a> Variables<'a> {
    pub(crate) fn new() -> Self {
        Self {
            values: Vec::new(),
            resource_check: None,
            defined: Vec::new(),
            computed: RefCell::default(),
            budget: Cell::new(POLICY_COST_MAX),
        }
    }

    pub(super) fn set(&mut self, name: &'static str, value: Option<&'a Value>) {
        self.values.push((name, value.map_or(CelValue::Null, CelValue::untyped)));
    }

    /// Lets expressions ask what the caller may do.
    pub(super) fn set_authorizer(&mut self, asked: &'a Asked, request: AccessRequest) {
        self.values.push(("authorizer", CelValue::authorizer(asked)));
        self.resource_check = Some(CelValue::resource_authorizer(asked, request));
    }

    /// Adds a computed variable. It is computed when it is first asked for; one that cannot be is an error only for those
    /// who use it.
    pub(super) fn define(&mut self, name: &str, expression: &str) {
        self.defined.push((name.to_owned(), expression.to_owned()));
    }

    fn value(&self, expression: &str) -> Result<CelValue<'a>, String> {
        let compiled = compiled(expression)?;
        self.run(&compiled).map_err(|e| e.to_string())
    }

    fn run(&self, compiled: &Compiled) -> Result<CelValue<'a>, Error> {
        let outcome = evaluate(compiled, self, CALL_COST_MAX);
        match self.budget.get().checked_sub(outcome.cost) {
            Some(left) => self.budget.set(left),
            None => {
                self.budget.set(0);
                return Err(Error::new(OUT_OF_BUDGET));
            }
        }
        outcome.value
    }

    pub(super) fn is_true(&self, expression: &str) -> Result<bool, String> {
        match self.value(expression)? {
            CelValue::Bool(value) => Ok(value),
            _ => Err("cel expression does not evaluate to bool".into()),
        }
    }

    /// What an expression describes, as a tree.
    pub(super) fn tree(&self, expression: &str) -> Result<Value, String> {
        self.value(expression)?.to_tree().map_err(|e| e.to_string())
    }

    pub(crate) fn text(&self, expression: &str) -> Result<String, String> {
        match self.value(expression)? {
            CelValue::Text(text) => Ok(text.to_string()),
            _ => Err("cel expression does not evaluate to string".into()),
        }
    }
}

impl<'a> Bindings<'a> for Variables<'a> {
    fn variable(&self, name: &str) -> Option<CelValue<'a>> {
        self.values.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone())
    }

    fn field(&self, variable: &str, field: &str) -> Option<Result<CelValue<'a>, Error>> {
        match (variable, field) {
            ("authorizer", "requestResource") => self.resource_check.clone().map(Ok),
            ("variables", name) => {
                if let Some(known) = self.computed.borrow().get(name) {
                    return Some(known.clone());
                }
                let (_, expression) = self.defined.iter().find(|(n, _)| n == name)?;
                let value = compiled(expression).map_err(Error::new).and_then(|compiled| self.run(&compiled));
                let told = |e: Error| {
                    let name = coxswain_api::field::go_quote(name);
                    Error::new(format!("composited variable {name} fails to evaluate: {e}"))
                };
                let value = value.map_err(told);
                self.computed.borrow_mut().insert(name.to_owned(), value.clone());
                Some(value)
            }
            _ => None,
        }
    }
}

/// Who is asked what somebody may do, on behalf of the caller of a request.
pub(super) struct Asked {
    pub(super) authorization: Arc<Authorization>,
    pub(super) user: Arc<User>,
}

impl Authorizer for Asked {
    fn authorize(&self, request: &AccessRequest) -> Decision {
        let user = match &request.service_account {
            None => self.user.clone(),
            Some((namespace, name)) => Arc::new(User {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                groups: vec![
                    "system:serviceaccounts".into(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".into(),
                ],
                ..User::default()
            }),
        };
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let info = RequestInfo {
            is_resource: request.path.is_empty(),
            path: request.path.clone(),
            verb: request.verb.clone(),
            group: request.group.clone(),
            version: "*".into(),
            namespace: request.namespace.clone(),
            resource: request.resource.clone(),
            subresource: request.subresource.clone(),
            name: request.name.clone(),
            field_selector: some(&request.field_selector),
            label_selector: some(&request.label_selector),
            ..RequestInfo::default()
        };
        // The authorizers of a server answer from what they remember. One that has to ask somebody else would need this
        // thread meanwhile.
        let answer = self.authorization.authorize(&user, &info);
        let decision = match answer.now_or_never() {
            Some(decision) => decision,
            None => tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(self.authorization.authorize(&user, &info))
            }),
        };
        Decision { allowed: decision.is_allow(), reason: decision.reason().to_owned(), error: None }
    }
}

/// What an expression has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Bool,
    /// Also what is known only when it runs.
    BoolOrUnknown,
    Text,
    TextOrNull,
    /// An object to apply.
    Object,
    /// A JSON patch.
    Patches,
    /// Anything: of a variable.
    Any,
}

/// The names that an expression may use, with their types.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    known: Vec<(&'static str, Type)>,
    computed: Vec<(String, Type)>,
}

impl Names {
    pub(crate) fn of(names: &[&'static str]) -> Self {
        let known = names.iter().map(|name| (*name, request::type_of(name))).collect();
        Self { known, computed: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &'static str) {
        self.known.push((name, request::type_of(name)));
    }

    /// Adds a computed variable, which expressions see as a field of `variables`.
    pub(crate) fn define(&mut self, name: &str, ty: Type) {
        // Of two that have one name, the later one counts.
        self.computed.retain(|(known, _)| known != name);
        self.computed.push((name.to_owned(), ty));
    }

    fn env(&self, constructs: bool) -> Env {
        let mut variables = self.known.clone();
        if let Some((_, ty)) = variables.iter_mut().find(|(name, _)| *name == "variables") {
            let fields = self.computed.iter().map(|(name, ty)| (name.as_str(), DeclType::plain(ty.clone())));
            *ty = DeclType::object("kubernetes.variables", fields).ty();
        }
        Env { variables, constructs }
    }
}

/// What is wrong with an expression, or the type of what it gives.
pub(crate) fn check(expression: &str, wanted: Wanted, names: &Names) -> Result<Type, String> {
    let constructs = matches!(wanted, Wanted::Object | Wanted::Patches);
    let compiled = compile(&names.env(constructs), expression).map_err(|e| format!("compilation failed: {e}"))?;
    let got = compiled.result();
    let is_patch = |ty: &Type| matches!(ty, Type::Named("JSONPatch"));
    let (fits, name) = match (wanted, got) {
        (Wanted::Bool, got) => (matches!(got, Type::Bool), "bool"),
        (Wanted::BoolOrUnknown, Type::Bool | Type::Dyn) | (Wanted::Any, _) => (true, ""),
        (Wanted::BoolOrUnknown, _) => (false, "bool or the unknown type"),
        (Wanted::Text, got) => (matches!(got, Type::String), "string"),
        (Wanted::TextOrNull, got) => (matches!(got, Type::String | Type::Null), "one of [string null_type]"),
        (Wanted::Object, got) => (matches!(got, Type::Named("Object")), "Object"),
        (Wanted::Patches, Type::List(of)) => (is_patch(of) || matches!(**of, Type::Dyn), "list(JSONPatch)"),
        (Wanted::Patches, _) => (false, "list(JSONPatch)"),
    };
    let told = || match got {
        Type::Null => "null_type".to_owned(),
        other => other.to_string(),
    };
    if fits {
        Ok(got.clone())
    } else if wanted == Wanted::BoolOrUnknown {
        Err(format!("must evaluate to {name}, not {}", told()))
    } else {
        Err(format!("must evaluate to {name} but got {}", told()))
    }
}

/// Whether all match conditions hold. `Err` names the first that could not be told; one that is false decides even so.
pub(super) fn conditions_hold(conditions: &Value, variables: &Variables<'_>) -> Result<bool, String> {
    let before = variables.budget.replace(CONDITIONS_COST_MAX);
    let mut failure = None;
    let mut holds = true;
    for condition in conditions.as_array().into_iter().flatten() {
        match variables.is_true(condition["expression"].as_str().unwrap_or_default().trim()) {
            Ok(true) => {}
            Ok(false) => {
                holds = false;
                break;
            }
            Err(why) => {
                let name = condition["name"].as_str().unwrap_or_default();
                failure.get_or_insert(format!("matchCondition {}: {why}", coxswain_api::field::go_quote(name)));
            }
        }
    }
    variables.budget.set(before);
    if holds { failure.map_or(Ok(true), Err) } else { Ok(false) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_false_condition_decides_before_a_broken_one() {
        let object = json!({"metadata": {"name": "spared"}, "data": {"n": 3}});
        let mut variables = Variables::new();
        variables.set("object", Some(&object));
        variables.set("oldObject", None);
        let conditions = json!([
            {"name": "broken", "expression": "object.nothing.there"},
            {"name": "spared", "expression": "object.metadata.name != 'spared'"},
        ]);
        assert_eq!(conditions_hold(&conditions, &variables), Ok(false));
        assert_eq!(variables.is_true("oldObject == null && object.data.n < 4 && !has(object.spec)"), Ok(true));
        variables.define("size", "object.data.size()");
        variables.define("broken", "object.nothing");
        assert_eq!(variables.text("'has ' + string(variables.size)").as_deref(), Ok("has 1"));
        let why = "composited variable \"broken\" fails to evaluate: no such key: nothing";
        assert_eq!(variables.is_true("variables.broken == 1"), Err(why.to_owned()));
    }

    #[test]
    fn objects_are_constructed_as_maps() {
        let variables = Variables::new();
        let made = variables.tree("Object{metadata: Object.metadata{labels: {'a: b{': true ? 'x' : 'y'}}}");
        assert_eq!(made, Ok(json!({"metadata": {"labels": {"a: b{": "x"}}})));
        let made = variables.tree("[JSONPatch{op: 'add', path: '/spec/x', value: 1}]");
        assert_eq!(made, Ok(json!([{"op": "add", "path": "/spec/x", "value": 1}])));
    }

    #[test]
    fn what_is_wrong_with_an_expression_is_told_with_its_place() {
        let names = Names::of(&["object", "request"]);
        let told = |source: &str| check(source, Wanted::Bool, &names).map(|t| t.to_string());
        assert_eq!(told("object.x.all(y, y > 1)"), Ok("bool".into()));
        assert_eq!(told("1 + 1"), Err("must evaluate to bool but got int".into()));
        assert_eq!(told("request.namespace == 'x' && request.kind.group == ''"), Ok("bool".into()));
        assert_eq!(
            told("foo.bar"),
            Err("compilation failed: ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n | foo.bar\n | ^"
                .into())
        );
    }
}
