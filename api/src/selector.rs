//! Label selectors and field selectors (upstream: `apimachinery/pkg/labels`, `pkg/fields` and
//! `metav1.LabelSelectorAsSelector`).

pub mod field_selector;
mod parse;

pub use field_selector::{FieldRequirement, FieldSelector, escape_field_value};

use crate::field::{Error, ErrorList, Path};
use crate::names;
use serde_json::Value;
use std::fmt;

/// How a requirement relates a label to its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    DoesNotExist,
    Equals,
    DoubleEquals,
    In,
    NotEquals,
    NotIn,
    Exists,
    GreaterThan,
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: Box<str>,
    operator: Operator,
    /// Sorted, without duplicates.
    values: Vec<Box<str>>,
}

/// A conjunction of conditions on labels. The default matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Sorted by key.
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Requirement {
    /// Checks the parts as upstream's `NewRequirement`; the error is all that is wrong, in one text.
    pub fn new(key: &str, operator: Operator, mut values: Vec<Box<str>>) -> Result<Self, String> {
        let mut errors = ErrorList::new();
        check_key(&Path::new("key"), key, &mut errors);
        let path = Path::new("values");
        let list = || Value::from(values.iter().map(|v| v.to_string()).collect::<Vec<_>>());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                errors.push(Error::invalid(&path, &list(), "for 'in', 'notin' operators, values set can't be empty"));
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                errors.push(Error::invalid(&path, &list(), "exact-match compatibility requires one single value"));
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                let why = "values set must be empty for exists and does not exist";
                errors.push(Error::invalid(&path, &list(), why));
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    let why = "for 'Gt', 'Lt' operators, exactly one value is required";
                    errors.push(Error::invalid(&path, &list(), why));
                }
                for (i, value) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                    let why = "for 'Gt', 'Lt' operators, the value must be an integer";
                    errors.push(Error::invalid(&path.index(i), &**value, why));
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let wrong = names::label_value(value);
            if !wrong.is_empty() {
                errors.push(Error::invalid(&path.index(i).key(key), &**value, wrong.join("; ")));
            }
        }
        if errors.is_empty() {
            values.sort_unstable();
            values.dedup();
            Ok(Self { key: key.into(), operator, values })
        } else {
            Err(aggregate(&errors))
        }
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn operator(&self) -> Operator {
        self.operator
    }

    pub fn values(&self) -> &[Box<str>] {
        &self.values
    }

    fn has(&self, value: &str) -> bool {
        self.values.iter().any(|v| **v == *value)
    }

    /// `value` is what the label says, if there is one.
    pub fn matches(&self, value: Option<&str>) -> bool {
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(|v| self.has(v)),
            Operator::NotIn | Operator::NotEquals => value.is_none_or(|v| !self.has(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let bound = self.values.first().and_then(|v| v.parse::<i64>().ok());
                match (value.and_then(|v| v.parse::<i64>().ok()), bound) {
                    (Some(v), Some(bound)) if self.operator == Operator::GreaterThan => v > bound,
                    (Some(v), Some(bound)) => v < bound,
                    _ => false,
                }
            }
        }
    }
}

impl Selector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn from_requirements(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Parses `a=b,c!=d,e in (f,g),!h` with upstream's sentences for what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse::requirements(text).map(Self::from_requirements)
    }

    /// The selector of a `metav1.LabelSelector`; an absent one matches nothing, an empty one everything.
    pub fn from_label_selector(selector: Option<&Value>) -> Result<Self, String> {
        let Some(selector) = selector.filter(|s| !s.is_null()) else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            requirements.push(Requirement::new(key, Operator::Equals, vec![value.into()])?);
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(format!("{} is not a valid label selector operator", crate::field::go_quote(other)));
                }
            };
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.map(|v| v.as_str().unwrap_or_default().into()).collect();
            requirements.push(Requirement::new(text("key"), operator, values)?);
        }
        Ok(Self::from_requirements(requirements))
    }

    /// The selector of a plain map, which must match entirely. Nothing is checked, as upstream's `SelectorFromSet`.
    pub fn from_map(map: Option<&Value>) -> Self {
        let entries = map.and_then(Value::as_object).into_iter().flatten();
        let requirement = |(key, value): (&String, &Value)| Requirement {
            key: key.as_str().into(),
            operator: Operator::Equals,
            values: vec![value.as_str().unwrap_or_default().into()],
        };
        Self::from_requirements(entries.map(requirement).collect())
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it matches everything.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// `label` says what an object has for a key.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// Whether a label map (`metadata.labels`) matches.
    pub fn matches_labels(&self, labels: Option<&Value>) -> bool {
        self.matches(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }
}

fn check_key(path: &Path, key: &str, errors: &mut ErrorList) {
    let wrong = names::qualified_name(key);
    if !wrong.is_empty() {
        errors.push(Error::invalid(path, key, wrong.join("; ")));
    }
}

/// The texts of several errors in one, as upstream's `Aggregate` prints them.
fn aggregate(errors: &[Error]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for text in errors.iter().map(Error::to_string) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.join(",");
        match self.operator {
            Operator::DoesNotExist => write!(f, "!{}", self.key),
            Operator::Exists => write!(f, "{}", self.key),
            Operator::Equals => write!(f, "{}={values}", self.key),
            Operator::DoubleEquals => write!(f, "{}=={values}", self.key),
            Operator::NotEquals => write!(f, "{}!={values}", self.key),
            Operator::In => write!(f, "{} in ({values})", self.key),
            Operator::NotIn => write!(f, "{} notin ({values})", self.key),
            Operator::GreaterThan => write!(f, "{}>{values}", self.key),
            Operator::LessThan => write!(f, "{}<{values}", self.key),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{requirement}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_read_print_and_match() {
        let s = Selector::parse("x in (b,,a), !y,z notin (in) ,w!=1,v>3, a.b/c == d").unwrap();
        assert_eq!(s.to_string(), "a.b/c==d,v>3,w!=1,x in (,a,b),!y,z notin (in)");
        assert!(s.matches_labels(Some(&json!({"x": "a", "v": "4", "a.b/c": "d"}))));
        assert!(!s.matches_labels(Some(&json!({"x": "a", "v": "3", "a.b/c": "d"}))));
        assert!(!s.matches_labels(None));
        assert!(Selector::parse("").unwrap().matches_labels(None));
        assert!(!Selector::from_label_selector(None).unwrap().matches_labels(None));
    }

    #[test]
    fn what_is_wrong_is_said_in_upstreams_words() {
        let error = |text| Selector::parse(text).unwrap_err();
        assert_eq!(error("a b"), "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt");
        assert_eq!(error("a,"), "found '', expected: identifier after ','");
        assert_eq!(error("=a"), "found '=', expected: !, identifier, or 'end of string'");
        assert_eq!(error("a in b"), "unable to parse requirement: found 'b' expected: '('");
        assert!(
            error("a/b/c=1")
                .starts_with("unable to parse requirement: <nil>: Invalid value: \"a/b/c\": a valid label key")
        );
        assert!(error("a=b-").starts_with("unable to parse requirement: values[0][a]: Invalid value: \"b-\": "));
    }
}
