//! Labels and the selectors over them, compiled once per pod so that matching allocates nothing.

use std::collections::BTreeMap;

use coxswain_client::k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use coxswain_client::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    pub fn new(labels: Option<&BTreeMap<String, String>>) -> Self {
        let labels = labels.into_iter().flatten();
        Self(labels.map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Test {
    In(Box<[Box<str>]>),
    NotIn(Box<[Box<str>]>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
    /// An operator or a number that nothing satisfies.
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Requirement {
    key: Box<str>,
    test: Test,
}

impl Requirement {
    fn new(key: &str, operator: &str, values: Option<&Vec<String>>) -> Self {
        let values = values.map(Vec::as_slice).unwrap_or_default();
        let set = || values.iter().map(|v| v.as_str().into()).collect();
        let number = || values.first().and_then(|v| v.parse::<i64>().ok());
        let test = match operator {
            "In" => Test::In(set()),
            "NotIn" => Test::NotIn(set()),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::Absent,
            "Gt" => number().map_or(Test::Never, Test::Greater),
            "Lt" => number().map_or(Test::Never, Test::Less),
            _ => Test::Never,
        };
        Self { key: key.into(), test }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        match (&self.test, value) {
            (Test::In(set), Some(value)) => set.iter().any(|v| **v == *value),
            (Test::NotIn(set), value) => value.is_none_or(|value| set.iter().all(|v| **v != *value)),
            (Test::Exists, value) => value.is_some(),
            (Test::Absent, value) => value.is_none(),
            (Test::Greater(bound), Some(value)) => value.parse::<i64>().is_ok_and(|v| v > *bound),
            (Test::Less(bound), Some(value)) => value.parse::<i64>().is_ok_and(|v| v < *bound),
            _ => false,
        }
    }
}

/// A label selector; the default one matches nothing, as an absent selector does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector(Option<Box<[Requirement]>>);

impl Selector {
    pub fn new(selector: Option<&LabelSelector>) -> Self {
        Self(selector.map(|selector| {
            let labels = selector.match_labels.iter().flatten();
            let exact = labels.map(|(k, v)| Requirement::new(k, "In", Some(&vec![v.clone()])));
            let expressions = selector.match_expressions.iter().flatten();
            exact.chain(expressions.map(|r| Requirement::new(&r.key, &r.operator, r.values.as_ref()))).collect()
        }))
    }

    /// Matches what carries all of these labels.
    pub fn exact(labels: Option<&BTreeMap<String, String>>) -> Self {
        let labels = labels.into_iter().flatten();
        Self(Some(labels.map(|(k, v)| Requirement::new(k, "In", Some(&vec![v.clone()]))).collect()))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.as_ref().is_some_and(|all| all.iter().all(|r| r.matches(labels.get(&r.key))))
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.0.as_ref().is_some_and(|all| all.is_empty())
    }

    /// Narrows the selector by another.
    pub fn and(&self, other: &Self) -> Self {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Self(Some(a.iter().chain(b.iter()).cloned().collect())),
            _ => Self(None),
        }
    }

    /// Narrows the selector to labels with the values that `labels` has under these keys.
    pub fn with_keys(&self, keys: &[String], labels: Option<&BTreeMap<String, String>>) -> Self {
        let Some(own) = &self.0 else { return Self(None) };
        let found =
            keys.iter().filter_map(|k| labels?.get(k).map(|v| Requirement::new(k, "In", Some(&vec![v.clone()]))));
        Self(Some(own.iter().cloned().chain(found).collect()))
    }
}

/// One term of a node selector: requirements on labels and on the node's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeTerm {
    labels: Box<[Requirement]>,
    fields: Box<[Requirement]>,
}

impl NodeTerm {
    pub fn new(term: &NodeSelectorTerm) -> Self {
        let compile = |all: &Option<Vec<NodeSelectorRequirement>>| {
            all.iter().flatten().map(|r| Requirement::new(&r.key, &r.operator, r.values.as_ref())).collect()
        };
        Self { labels: compile(&term.match_expressions), fields: compile(&term.match_fields) }
    }

    /// An empty term matches no node.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        !(self.labels.is_empty() && self.fields.is_empty())
            && self.labels.iter().all(|r| r.matches(labels.get(&r.key)))
            && self.fields.iter().all(|r| r.matches((*r.key == *"metadata.name").then_some(name)))
    }

    /// The names of nodes that the term is confined to, if it names any.
    pub fn names(&self) -> Option<Vec<&str>> {
        let mut named: Option<Vec<&str>> = None;
        for requirement in &self.fields {
            if let (Test::In(names), "metadata.name") = (&requirement.test, &*requirement.key) {
                let all = names.iter().map(|n| &**n);
                named = Some(match named {
                    None => all.collect(),
                    Some(before) => all.filter(|n| before.contains(n)).collect(),
                });
            }
        }
        named
    }
}
