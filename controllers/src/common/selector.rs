//! Label selectors, as objects carry them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub type Labels = BTreeMap<String, String>;

/// Whether labels match. A selector without requirements matches everything, an absent one nothing.
pub fn matches(selector: Option<&LabelSelector>, labels: Option<&Labels>) -> bool {
    let Some(selector) = selector else { return false };
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector.match_labels.iter().flatten().all(|(key, wanted)| value(key) == Some(wanted));
    equal
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let found = value(&requirement.key);
            let listed = || found.is_some_and(|found| requirement.values.iter().flatten().any(|value| value == found));
            match requirement.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

/// A selector as Go prints it, which is how it appears in events.
pub fn print(selector: &LabelSelector) -> String {
    let mut labels = String::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        labels.push_str(&format!("{key}: {value},"));
    }
    let mut expressions = String::new();
    for wanted in selector.match_expressions.iter().flatten() {
        let values = wanted.values.as_deref().unwrap_or_default().join(" ");
        expressions.push_str(&format!(
            "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},",
            wanted.key, wanted.operator
        ));
    }
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

pub fn is_empty(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Whether labels have all the wanted pairs.
pub fn has_all(labels: Option<&Labels>, wanted: Option<&Labels>) -> bool {
    wanted.into_iter().flatten().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// A selector of exactly these labels.
pub fn of_labels(labels: Option<&Labels>) -> LabelSelector {
    LabelSelector { match_labels: labels.cloned(), match_expressions: None }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;

    #[test]
    fn operators_treat_an_absent_label_as_upstream_does() {
        let labels = Labels::from([("a".to_owned(), "1".to_owned())]);
        let check = |key: &str, operator: &str, values: &[&str]| {
            let selector = LabelSelector {
                match_labels: None,
                match_expressions: Some(vec![LabelSelectorRequirement {
                    key: key.to_owned(),
                    operator: operator.to_owned(),
                    values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
                }]),
            };
            matches(Some(&selector), Some(&labels))
        };
        assert!(check("a", "In", &["1", "2"]));
        assert!(!check("b", "In", &["1"]));
        assert!(check("b", "NotIn", &["1"]));
        assert!(check("b", "DoesNotExist", &[]));
        assert!(check("a", "Exists", &[]));
        assert!(!matches(None, Some(&labels)));
    }
}
