//! What makes a node fit or not, as far as controllers decide it: selectors, affinity and taints.

use coxswain_api::taints;
use k8s_openapi::api::core::v1::{
    Node, NodeCondition, NodeSelector, NodeSelectorRequirement, PodSpec, Taint, Toleration,
};

use super::owners;

pub fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

pub fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    taints::Toleration {
        key: toleration.key.as_deref().unwrap_or_default(),
        operator: toleration.operator.as_deref().unwrap_or_default(),
        value: toleration.value.as_deref().unwrap_or_default(),
        effect: toleration.effect.as_deref().unwrap_or_default(),
    }
    .tolerates(taints::Taint {
        key: &taint.key,
        value: taint.value.as_deref().unwrap_or_default(),
        effect: &taint.effect,
    })
}

fn numbers(a: &str, b: &str) -> Option<(i64, i64)> {
    Some((a.parse().ok()?, b.parse().ok()?))
}

/// Whether a node has the labels and is among the nodes that a pod requires.
pub fn fits_selector(spec: &PodSpec, node: &Node) -> bool {
    let selected = super::selector::has_all(node.metadata.labels.as_ref(), spec.node_selector.as_ref());
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|required| selects(required, node))
}

fn selects(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        // A term that asks for nothing selects nothing.
        (!expressions.is_empty() || !fields.is_empty())
            && expressions.iter().all(|wanted| meets(wanted, owners::label(&node.metadata, &wanted.key)))
            && fields.iter().all(|wanted| wanted.key == "metadata.name" && meets(wanted, node.metadata.name.as_deref()))
    })
}

fn meets(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|wanted| wanted == value));
    match wanted.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => {
            numbers(value.unwrap_or_default(), values.first().map_or("", String::as_str)).is_some_and(|(a, b)| a > b)
        }
        "Lt" => {
            numbers(value.unwrap_or_default(), values.first().map_or("", String::as_str)).is_some_and(|(a, b)| a < b)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_key_with_exists_tolerates_everything() {
        let taint = Taint { key: "k".into(), value: Some("v".into()), effect: "NoExecute".into(), time_added: None };
        let check = |json: serde_json::Value| tolerates(&serde_json::from_value(json).unwrap(), &taint);
        assert!(check(serde_json::json!({"operator": "Exists"})));
        assert!(check(serde_json::json!({"key": "k", "value": "v", "effect": "NoExecute"})));
        assert!(!check(serde_json::json!({"key": "k", "value": "w"})));
        assert!(!check(serde_json::json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"})));
    }
}
