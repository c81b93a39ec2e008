//! The JSON paths of definitions: `.spec.a`, `.spec.list[0].b`, `.status.conditions[?(@.type=='Ready')].status`, `.a[*].b`,
//! `.a[1:3]`, `.a['b','c']`, `..name` (upstream: `client-go/util/jsonpath`, which kubectl's templates use as well).
//!
//! A path is a chain of nodes; each takes the values that the one before has left to those that come after it. What is not
//! there is left out; a node that does not fit its values, such as an index into an object, makes the whole path fail.

mod parse;

use coxswain_api::Value;
use std::borrow::Cow;

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Field(Box<str>),
    Slice(Slice),
    Filter(Box<Filter>),
    Union(Vec<Vec<Node>>),
    Wildcard,
    /// A value and everything below it.
    Recursive,
    /// Of the path itself, as the right side of a filter.
    Literal(Value),
    /// A bare word, such as a template's `range`: nothing that a path could mean.
    Identifier,
}

/// `[from:to:step]`; `[n]` is one from `n`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Slice {
    from: Option<i64>,
    to: Option<i64>,
    step: Option<i64>,
    /// There was no colon.
    single: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    left: Vec<Node>,
    operator: Operator,
    right: Vec<Node>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Exists,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Such as `=`, of which upstream complains only when a filter meets a value.
    Unknown,
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Node>);

type Values<'a> = Vec<Cow<'a, Value>>;

/// A node that does not fit its values. Whether there were any is all that a filter asks which looks for existence.
struct Stuck {
    any: bool,
}

impl JsonPath {
    /// None if the text is no path.
    pub fn parse(text: &str) -> Option<Self> {
        parse::path(text).map(JsonPath)
    }

    /// The first value at the path.
    pub fn find<'a>(&self, object: &'a Value) -> Option<Cow<'a, Value>> {
        // Most paths are names alone, and need no lists.
        let mut at = object;
        for (i, node) in self.0.iter().enumerate() {
            match node {
                Node::Field(name) => at = at.get(&**name)?,
                _ => return eval(vec![Cow::Borrowed(at)], &self.0[i..]).ok()?.into_iter().next(),
            }
        }
        Some(Cow::Borrowed(at))
    }
}

fn eval<'a>(input: Values<'a>, nodes: &[Node]) -> Result<Values<'a>, Stuck> {
    nodes.iter().try_fold(input, step)
}

fn step<'a>(input: Values<'a>, node: &Node) -> Result<Values<'a>, Stuck> {
    match node {
        Node::Field(name) => Ok(input.iter().filter_map(|value| field(value, name)).collect()),
        Node::Wildcard => Ok(input.iter().flat_map(children).collect()),
        Node::Recursive => {
            let mut found = Vec::new();
            descend(input, &mut found);
            Ok(found)
        }
        Node::Literal(value) => Ok(input.iter().map(|_| Cow::Owned(value.clone())).collect()),
        Node::Identifier => Err(Stuck { any: !input.is_empty() }),
        Node::Slice(slice) => {
            let mut found = Vec::new();
            for value in input.iter().filter(|value| !value.is_null()) {
                let range = value.as_array().and_then(|list| slice.of(list.len())).ok_or(Stuck { any: true })?;
                let elements = children(value);
                let step = slice.step.and_then(|s| usize::try_from(s).ok()).unwrap_or(1).max(1);
                found.extend(elements.into_iter().take(range.end).skip(range.start).step_by(step));
            }
            Ok(found)
        }
        Node::Union(branches) => {
            let mut found = Vec::new();
            for nodes in branches {
                found.extend(eval(input.clone(), nodes).map_err(|_| Stuck { any: !input.is_empty() })?);
            }
            Ok(found)
        }
        Node::Filter(filter) => {
            let mut found = Vec::new();
            for value in &input {
                if !value.is_array() {
                    return Err(Stuck { any: true });
                }
                for element in children(value) {
                    if filter.takes(&element)? {
                        found.push(element);
                    }
                }
            }
            Ok(found)
        }
    }
}

/// Shares what is shared, and takes from what is owned.
fn field<'a>(value: &Cow<'a, Value>, name: &str) -> Option<Cow<'a, Value>> {
    match value {
        Cow::Borrowed(value) => value.get(name).map(Cow::Borrowed),
        Cow::Owned(value) => value.get(name).cloned().map(Cow::Owned),
    }
}

/// Members, elements, or the bytes of a text.
fn children<'a>(value: &Cow<'a, Value>) -> Values<'a> {
    match value {
        Cow::Borrowed(Value::Array(list)) => list.iter().map(Cow::Borrowed).collect(),
        Cow::Borrowed(Value::Object(map)) => map.values().map(Cow::Borrowed).collect(),
        Cow::Borrowed(Value::String(text)) | Cow::Owned(Value::String(text)) => {
            text.bytes().map(|byte| Cow::Owned(byte.into())).collect()
        }
        // What is owned comes from the path, which has no lists and objects.
        _ => Vec::new(),
    }
}

/// Everything that has parts, each before its parts.
fn descend<'a>(values: Values<'a>, found: &mut Values<'a>) {
    for value in values {
        let parts = children(&value);
        if !parts.is_empty() {
            let below = !value.is_string();
            found.push(value);
            if below {
                descend(parts, found);
            }
        }
    }
}

impl Slice {
    /// The elements meant of so many; none if there are not as many as it takes.
    fn of(&self, length: usize) -> Option<std::ops::Range<usize>> {
        let length = i64::try_from(length).ok()?;
        let from_end = |at: i64| if at < 0 { at + length } else { at };
        let from = from_end(self.from.unwrap_or(0));
        let to = match self.to {
            _ if self.single => from + 1,
            Some(to) => from_end(to),
            None => length,
        };
        if from == to {
            return Some(0..0);
        }
        let fits = (0..length).contains(&from) && from < to && to <= length && self.step.is_none_or(|step| step > 0);
        fits.then_some(())?;
        Some(usize::try_from(from).ok()?..usize::try_from(to).ok()?)
    }
}

impl Filter {
    fn takes(&self, element: &Value) -> Result<bool, Stuck> {
        let left = eval(vec![Cow::Borrowed(element)], &self.left);
        if self.operator == Operator::Exists {
            return Ok(left.map_or_else(|stuck| stuck.any, |found| !found.is_empty()));
        }
        let one = |side: Result<Values<'_>, Stuck>| match side.unwrap_or_default().as_slice() {
            [value] => Ok(Value::clone(value)),
            _ => Err(Stuck { any: true }),
        };
        let (left, right) = (one(left)?, one(eval(vec![Cow::Borrowed(element)], &self.right))?);
        self.operator.holds(&left, &right).ok_or(Stuck { any: true })
    }
}

impl Operator {
    /// None if the two cannot be compared: numbers with and without a fraction are different types.
    fn holds(self, left: &Value, right: &Value) -> Option<bool> {
        use std::cmp::Ordering;
        let order = match (left, right) {
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
                (Some(a), Some(b)) => Some(a.cmp(&b)),
                (None, None) => a.as_f64()?.partial_cmp(&b.as_f64()?),
                _ => return None,
            },
            (Value::Bool(a), Value::Bool(b)) => match self {
                Operator::Equal | Operator::NotEqual => Some(a.cmp(b)),
                _ => return None,
            },
            _ => return None,
        };
        Some(match self {
            Operator::Equal => order == Some(Ordering::Equal),
            Operator::NotEqual => order != Some(Ordering::Equal),
            Operator::Less => order == Some(Ordering::Less),
            Operator::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Operator::Greater => order == Some(Ordering::Greater),
            Operator::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            Operator::Exists | Operator::Unknown => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    fn object() -> Value {
        json!({
            "a": {"b": [{"c": 1}, {"c": 2}, {"c": 3, "d": true}], "f": 1.5}, "m": {"x.y": "z", "k": "v", "none": null},
            "status": {"conditions": [
                {"type": "Synced", "status": "True"}, {"type": "Ready", "status": "False", "reason": "it's (not)"}]},
        })
    }

    fn at(path: &str) -> Option<Value> {
        JsonPath::parse(path)?.find(&object()).map(Cow::into_owned)
    }

    #[test]
    fn a_path_leads_to_the_first_value() {
        assert_eq!(at(".a.b[1].c"), Some(json!(2)));
        assert_eq!(at(".a.b[-1].c"), Some(json!(3)));
        assert_eq!(at(".a.b[*].c"), Some(json!(1)));
        assert_eq!(at(".a.*[0].c"), None);
        assert_eq!(at(".m.x\\.y"), Some(json!("z")));
        assert_eq!(at(".m['x\\.y']"), Some(json!("z")));
        assert_eq!(at(".m['k']"), Some(json!("v")));
        assert_eq!(at(".m.none"), Some(json!(null)));
        assert_eq!(at(".a.none"), None);
        assert_eq!(at(".a[0]"), None);
    }

    #[test]
    fn slices_unions_and_descent_lead_to_theirs() {
        assert_eq!(at(".a.b[1:].c"), Some(json!(2)));
        assert_eq!(at(".a.b[:2][1].c"), None);
        assert_eq!(at(".a.b[-2:-1].c"), Some(json!(2)));
        assert_eq!(at(".a.b[1:3:2].c"), Some(json!(2)));
        assert_eq!(at(".a.b[5].c"), None);
        assert_eq!(at(".a.b[0:9].c"), None);
        assert_eq!(at(".a.b[2,0].c"), Some(json!(3)));
        assert_eq!(at(".m['none2','k']"), Some(json!("v")));
        assert_eq!(at("..d"), Some(json!(true)));
        assert_eq!(at(".status..reason"), Some(json!("it's (not)")));
    }

    #[test]
    fn filters_take_what_fits() {
        assert_eq!(at(".status.conditions[?(@.type=='Ready')].status"), Some(json!("False")));
        assert_eq!(at(".status.conditions[?(@.type == \"Ready\")].reason"), Some(json!("it's (not)")));
        assert_eq!(at(".status.conditions[?(@.type!='Synced')].type"), Some(json!("Ready")));
        assert_eq!(at(".status.conditions[?(@.reason)].type"), Some(json!("Ready")));
        assert_eq!(at(".status.conditions[?(@.type=='None')].status"), None);
        assert_eq!(at(".a.b[?(@.c>1)].c"), Some(json!(2)));
        assert_eq!(at(".a.b[?(@.c>=3)].d"), Some(json!(true)));
        // A number with a fraction is another type, and one that is missing cannot be compared.
        assert_eq!(at(".a.b[?(@.c>1.5)].c"), None);
        assert_eq!(at(".a.b[?(@.d==true)].c"), None);
        assert_eq!(at(".a[?(@.c>1)].c"), None);
    }

    #[test]
    fn what_is_no_path_is_none() {
        for text in
            [".a[", ".a[x]", ".a[\"k\"]", ".a[-]", ".a[?(@.b]", ".a[?(@.b==1)x", ".a[?(@.b=='\\q')]", "..a....b", "#"]
        {
            assert_eq!(JsonPath::parse(text), None, "{text}");
        }
        assert!(JsonPath::parse(&format!(".a{}{}", "[?(@.b".repeat(1000), ")]".repeat(1000))).is_none());
    }
}
