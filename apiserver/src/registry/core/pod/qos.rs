//! The quality of service of a pod (upstream: `pkg/apis/core/helper/qos`).

use coxswain_api::Value;
use coxswain_api::field::View;
use coxswain_api::quantity::Quantity;
use std::collections::BTreeMap;

type Sums = BTreeMap<&'static str, Quantity>;

const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// Adds what is more than nothing; says whether both CPU and memory are there.
fn collect(into: &mut Sums, list: &View<'_>) -> bool {
    let mut found = 0;
    for name in COMPUTE {
        let Some(amount) = Quantity::parse(list.child(name).str()).ok().filter(|q| q.sign() > 0) else { continue };
        found += 1;
        match into.get_mut(name) {
            Some(sum) => sum.add(&amount),
            None => {
                into.insert(name, amount);
            }
        }
    }
    found == COMPUTE.len()
}

/// `BestEffort`, `Burstable` or `Guaranteed`, reckoned from the spec.
pub fn compute(pod: &Value) -> &'static str {
    let root = View::root(pod);
    let spec = root.child("spec");
    let (mut requests, mut limits) = (Sums::new(), Sums::new());
    let mut guaranteed = true;
    let own = spec.child("resources");
    if own.exists() {
        collect(&mut requests, &own.child("requests"));
        if !own.child("limits").is_empty() {
            guaranteed &= collect(&mut limits, &own.child("limits"));
        }
    } else {
        for container in spec.child("containers").items().chain(spec.child("initContainers").items()) {
            let resources = container.child("resources");
            collect(&mut requests, &resources.child("requests"));
            guaranteed &= collect(&mut limits, &resources.child("limits"));
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    if guaranteed && requests.len() == limits.len() && requests.iter().all(|(name, r)| limits.get(name) == Some(r)) {
        return "Guaranteed";
    }
    "Burstable"
}

/// What the status says, else what the spec makes of it.
pub fn qos_class(pod: &Value) -> String {
    match pod.pointer("/status/qosClass").and_then(Value::as_str) {
        Some(class) if !class.is_empty() => class.to_owned(),
        _ => compute(pod).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn the_class_follows_from_requests_and_limits() {
        let class = |resources: Value| compute(&json!({"spec": {"containers": [{"resources": resources}]}}));
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        let all = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(class(json!({"requests": all, "limits": all})), "Guaranteed");
        assert_eq!(class(json!({"requests": {"cpu": "1"}, "limits": all})), "Burstable");
    }
}
