//! LimitRanges give containers defaults and bound what pods and claims may ask for
//! (upstream: `plugin/pkg/admission/limitranger`).

use super::pod_resources::{Amounts, Side, amounts, of_pod};
use super::{Attributes, Operation, Plugin};
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::quantity::Quantity;
use coxswain_api::{Status, Value};
use serde_json::{Map, json};
use std::sync::Arc;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger {
    pub objects: Arc<dyn Objects>,
}

impl LimitRanger {
    fn ranges(&self, attributes: &Attributes<'_>) -> Vec<Arc<Value>> {
        if attributes.namespace.is_empty() {
            return Vec::new();
        }
        self.objects.list("", "limitranges", Some(attributes.namespace))
    }

    /// Pods are looked at when they are created and when they are resized, claims always.
    fn concerns(attributes: &Attributes<'_>) -> bool {
        // What is going away may do so whatever it asks for.
        let deleting = attributes.new_object().is_none_or(|o| !o["metadata"]["deletionTimestamp"].is_null());
        let pod = attributes.is_of("", "pods")
            && match attributes.operation {
                Operation::Create => attributes.subresource.is_empty(),
                _ => attributes.subresource == "resize",
            };
        (pod || attributes.is("", "persistentvolumeclaims")) && !deleting
    }
}

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !Self::concerns(attributes) || attributes.plural() != "pods" {
            return Ok(());
        }
        let ranges = self.ranges(attributes);
        if let Some(pod) = attributes.object.as_deref_mut() {
            ranges.iter().for_each(|range| set_defaults(pod, range));
        }
        Ok(())
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !Self::concerns(attributes) {
            return Ok(());
        }
        let Some(object) = attributes.new_object() else { return Ok(()) };
        for range in self.ranges(attributes) {
            let errors = match attributes.plural() {
                "pods" => check_pod(object, &range),
                _ => check_claim(object, &range),
            };
            match errors.as_slice() {
                [] => {}
                [one] => return Err(attributes.forbidden(one)),
                many => return Err(attributes.forbidden(format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

fn limits_of<'a>(range: &'a Value, kind: &str) -> impl Iterator<Item = &'a Value> {
    range["spec"]["limits"].as_array().into_iter().flatten().filter(move |l| l["type"] == kind)
}

/// Gives every container what it does not state, and notes it in an annotation.
fn set_defaults(pod: &mut Value, range: &Value) {
    let merged = |key: &str| -> Map<String, Value> {
        limits_of(range, "Container").flat_map(|l| l[key].as_object().cloned().unwrap_or_default()).collect()
    };
    let (requests, limits) = (merged("defaultRequest"), merged("default"));
    let mut notes = Vec::new();
    for (kind, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][kind].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (key, defaults, word) in [("requests", &requests, "request"), ("limits", &limits, "limit")] {
                let set = fill(&mut container["resources"], key, defaults);
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        if !pod["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = json!({});
        }
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod["metadata"]["annotations"][ANNOTATION] = json!(text);
    }
}

/// Returns the names that were filled in, sorted.
fn fill(resources: &mut Value, key: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let missing = |name: &String| resources[key][name].is_null();
    let mut set: Vec<String> = defaults.keys().filter(|name| missing(name)).cloned().collect();
    set.sort();
    for name in &set {
        if !resources.is_object() {
            *resources = json!({});
        }
        if !resources[key].is_object() {
            resources[key] = json!({});
        }
        resources[key][name] = defaults[name].clone();
    }
    set
}

fn check_pod(pod: &Value, range: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    for limit in range["spec"]["limits"].as_array().into_iter().flatten() {
        match limit["type"].as_str() {
            Some("Container") => {
                for kind in ["containers", "initContainers"] {
                    for container in pod["spec"][kind].as_array().into_iter().flatten() {
                        let requests = amounts(&container["resources"]["requests"]);
                        let limits = amounts(&container["resources"]["limits"]);
                        check(limit, "Container", &requests, &limits, &mut errors);
                    }
                }
            }
            Some("Pod") => {
                let requests = of_pod(pod, Side::Requests, false);
                let limits = of_pod(pod, Side::Limits, false);
                check(limit, "Pod", &requests, &limits, &mut errors);
            }
            _ => {}
        }
    }
    errors
}

fn check(limit: &Value, kind: &str, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
    for (name, bound) in amounts(&limit["min"]) {
        let usage = format!("minimum {name} usage per {kind} is {bound}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => errors.push(format!("{usage}.  No request is specified")),
            (Some(request), _) if *request < bound => errors.push(format!("{usage}, but request is {request}")),
            (_, Some(limit)) if *limit < bound => errors.push(format!("{usage}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, bound) in amounts(&limit["max"]) {
        let usage = format!("maximum {name} usage per {kind} is {bound}");
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => errors.push(format!("{usage}.  No limit is specified")),
            (_, Some(limit)) if *limit > bound => errors.push(format!("{usage}, but limit is {limit}")),
            (Some(request), _) if *request > bound => errors.push(format!("{usage}, but request is {request}")),
            _ => {}
        }
    }
    for (name, bound) in amounts(&limit["maxLimitRequestRatio"]) {
        let usage = format!("{name} max limit to request ratio per {kind} is {bound}");
        let given = |list: &Amounts| list.get(&name).filter(|q| !q.is_zero()).map(Quantity::as_f64);
        match (given(requests), given(limits)) {
            (None, _) => errors.push(format!("{usage}, but no request is specified or request is 0")),
            (_, None) => errors.push(format!("{usage}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit / request;
                if ratio > bound.as_f64() {
                    errors.push(format!("{usage}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

fn check_claim(claim: &Value, range: &Value) -> Vec<String> {
    const KIND: &str = "PersistentVolumeClaim";
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    let mut errors = Vec::new();
    for limit in limits_of(range, KIND) {
        for (key, word) in [("min", "minimum"), ("max", "maximum")] {
            for (name, bound) in amounts(&limit[key]) {
                let usage = format!("{word} {name} usage per {KIND} is {bound}");
                match requests.get(&name) {
                    None => errors.push(format!("{usage}.  No request is specified")),
                    Some(request) if (key == "min" && *request < bound) || (key == "max" && *request > bound) => {
                        errors.push(format!("{usage}, but request is {request}"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_come_before_bounds() {
        let range = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "100m"},
            "max": {"cpu": "2"}, "min": {"cpu": "200m"}}]}});
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{"name": "c"}, {"name": "d", "resources": {"limits": {"cpu": "3"}}}]}});
        set_defaults(&mut pod, &range);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}})
        );
        let note = "LimitRanger plugin set: cpu request for container c; cpu limit for container c; cpu request for container d";
        assert_eq!(pod["metadata"]["annotations"][ANNOTATION], note);
        assert_eq!(
            check_pod(&pod, &range),
            [
                "minimum cpu usage per Container is 200m, but request is 100m",
                "minimum cpu usage per Container is 200m, but request is 100m",
                "maximum cpu usage per Container is 2, but limit is 3",
            ]
        );
    }
}
