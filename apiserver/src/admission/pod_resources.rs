//! What a pod asks for as a whole (upstream: `component-helpers/resource` and `v1/helper/qos`).

use coxswain_api::Value;
use coxswain_api::quantity::Quantity;
use std::collections::BTreeMap;

pub type Amounts = BTreeMap<String, Quantity>;

/// A `ResourceList` of a tree.
pub fn amounts(list: &Value) -> Amounts {
    let entries = list.as_object().into_iter().flatten();
    entries.filter_map(|(name, q)| Some((name.clone(), Quantity::parse(q.as_str()?).ok()?))).collect()
}

pub fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        match total.get_mut(name) {
            Some(present) => present.add(amount),
            None => {
                total.insert(name.clone(), amount.clone());
            }
        }
    }
}

fn raise(total: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        match total.get(name) {
            Some(present) if present >= amount => {}
            _ => {
                total.insert(name.clone(), amount.clone());
            }
        }
    }
}

/// Which of both lists is summed up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Requests,
    Limits,
}

impl Side {
    fn key(self) -> &'static str {
        match self {
            Side::Requests => "requests",
            Side::Limits => "limits",
        }
    }
}

/// Containers run together and add up; init containers run one after the other, beside the sidecars started before
/// them. What the pod says as a whole replaces the sum.
pub fn of_pod(pod: &Value, side: Side, with_overhead: bool) -> Amounts {
    let spec = &pod["spec"];
    let own = |container: &Value| amounts(&container["resources"][side.key()]);
    let list = |kind: &str| spec[kind].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut total = Amounts::new();
    for container in list("containers") {
        add(&mut total, &own(container));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in list("initContainers") {
        let mut needed = own(container);
        if container["restartPolicy"] == "Always" {
            add(&mut total, &needed);
            add(&mut sidecars, &needed);
            needed.clone_from(&sidecars);
        } else {
            add(&mut needed, &sidecars);
        }
        raise(&mut peak, &needed);
    }
    raise(&mut total, &peak);
    for (name, amount) in amounts(&spec["resources"][side.key()]) {
        total.insert(name, amount);
    }
    if with_overhead {
        let mut overhead = amounts(&spec["overhead"]);
        if side == Side::Limits {
            // Overhead does not limit what is unlimited.
            overhead.retain(|name, _| total.get(name).is_some_and(|t| !t.is_zero()));
        }
        add(&mut total, &overhead);
    }
    total
}

/// Whether nothing of the pod asks for CPU or memory: quality of service `BestEffort`.
pub fn is_best_effort(pod: &Value) -> bool {
    if let Some(class) = pod["status"]["qosClass"].as_str().filter(|c| !c.is_empty()) {
        return class == "BestEffort";
    }
    let asks = |resources: &Value| {
        [Side::Requests, Side::Limits].iter().any(|side| {
            let list = amounts(&resources[side.key()]);
            ["cpu", "memory"].iter().any(|name| list.get(*name).is_some_and(|q| !q.is_zero()))
        })
    };
    let containers = ["containers", "initContainers"];
    let mut containers = containers.iter().flat_map(|kind| pod["spec"][kind].as_array().into_iter().flatten());
    !asks(&pod["spec"]["resources"]) && !containers.any(|c| asks(&c["resources"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn init_containers_count_beside_the_sidecars_before_them() {
        let ask = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let pod = json!({"spec": {"overhead": {"cpu": "10m"},
            "containers": [{"resources": ask("1")}, {"resources": ask("500m")}],
            "initContainers": [{"restartPolicy": "Always", "resources": ask("1")}, {"resources": ask("2")}]}});
        let cpu = |overhead| of_pod(&pod, Side::Requests, overhead)["cpu"].milli_value();
        assert_eq!(cpu(false), 3000);
        assert_eq!(cpu(true), 3010);
        assert!(!is_best_effort(&pod));
    }
}
