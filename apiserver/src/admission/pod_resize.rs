//! A pod is not resized beyond what its node has (upstream: `plugin/pkg/admission/podresize`), nor in ways that its
//! node has not declared to know (upstream: `plugin/pkg/admission/nodedeclaredfeatures`, KEP-5328).

use super::pod_resources::{Side, amounts, of_pod};
use super::{Attributes, Operation, Plugin};
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::quantity::Quantity;
use coxswain_api::status::Cause;
use coxswain_api::{Status, Value};
use std::sync::Arc;

pub struct PodResizeValidator {
    pub objects: Arc<dyn Objects>,
}

pub struct NodeDeclaredFeatureValidator {
    pub objects: Arc<dyn Objects>,
}

/// The pod, as it was and as it is to be, if the write changes the spec of one that is bound.
fn bound_and_changed<'a>(attributes: &'a Attributes<'_>) -> Option<(&'a Value, &'a Value, &'a str)> {
    let (new, old) = (attributes.new_object()?, attributes.old?);
    let node = new["spec"]["nodeName"].as_str().filter(|name| !name.is_empty())?;
    (new["metadata"]["generation"] != old["metadata"]["generation"]).then_some((old, new, node))
}

fn node(objects: &dyn Objects, attributes: &Attributes<'_>, name: &str) -> Result<Arc<Value>, Status> {
    let missing = || attributes.forbidden(format!("node {name:?} not found"));
    objects.get("", "nodes", "", name).ok_or_else(missing)
}

#[async_trait]
impl Plugin for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !attributes.is_of("", "pods") || attributes.subresource != "resize" {
            return Ok(());
        }
        let Some((_, pod, name)) = bound_and_changed(attributes) else { return Ok(()) };
        let node = node(self.objects.as_ref(), attributes, name)?;
        let refused = |why: String, cause: &str| {
            let mut status = attributes.forbidden(why);
            if let Some(details) = &mut status.details {
                details.causes.push(Cause { reason: cause.into(), ..Cause::default() });
            }
            status
        };
        if let Some(system) = node["metadata"]["labels"]["kubernetes.io/os"].as_str().filter(|os| *os != "linux") {
            let why = format!("pod resize is only supported on linux nodes, node {name:?} is {system:?}");
            return Err(refused(why, "UnsupportedPlatform"));
        }
        let lacking = lacking(pod, &node);
        if lacking.is_empty() {
            return Ok(());
        }
        let why = format!("node didn't have enough allocatable resources: {}", lacking.join("; "));
        Err(refused(why, "NodeCapacity"))
    }
}

/// What a pod asks for beyond all that its node has to give.
fn lacking(pod: &Value, node: &Value) -> Vec<String> {
    let (wanted, offered) = (of_pod(pod, Side::Requests, true), amounts(&node["status"]["allocatable"]));
    let beyond = |resource: &str, count: fn(&Quantity) -> i64| {
        let wanted = wanted.get(resource)?;
        let offered = offered.get(resource).cloned().unwrap_or_default();
        (*wanted > offered)
            .then(|| format!("{resource}, requested: {}, allocatable: {}", count(wanted), count(&offered)))
    };
    [beyond("cpu", Quantity::milli_value), beyond("memory", Quantity::value)].into_iter().flatten().collect()
}

#[async_trait]
impl Plugin for NodeDeclaredFeatureValidator {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatureValidator"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !attributes.is_of("", "pods") || !matches!(attributes.subresource, "" | "resize") {
            return Ok(());
        }
        let Some((old, new, name)) = bound_and_changed(attributes) else { return Ok(()) };
        let required = required_features(old, new);
        if required.is_empty() {
            return Ok(());
        }
        let node = node(self.objects.as_ref(), attributes, name)?;
        let declared = node["status"]["declaredFeatures"].as_array().map(Vec::as_slice).unwrap_or_default();
        let unknown: Vec<&str> =
            required.into_iter().filter(|feature| !declared.iter().any(|known| known == feature)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let features = unknown.join(", ");
        Err(attributes
            .forbidden(format!("pod update requires features {features} which are not available on node {name:?}")))
    }
}

/// What a node has to know so that it can follow the change of a pod.
fn required_features(old: &Value, new: &Value) -> Vec<&'static str> {
    let mut required = Vec::new();
    if old["spec"]["resources"] != new["spec"]["resources"] {
        required.push("InPlacePodLevelResourcesVerticalScaling");
    }
    let resized = |(before, after): (&Value, &Value)| {
        before["restartPolicy"] != "Always" && before["resources"] != after["resources"]
    };
    if init_containers(old).iter().zip(init_containers(new)).any(resized) {
        required.push("InPlacePodVerticalScalingInitContainers");
    }
    required
}

fn init_containers(pod: &Value) -> &[Value] {
    pod["spec"]["initContainers"].as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_does_not_grow_beyond_its_node() {
        let node = json!({"status": {"allocatable": {"cpu": "2", "memory": "1Gi"}}});
        let pod = |cpu: &str, memory: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]}});
        assert_eq!(lacking(&pod("2", "1Gi"), &node), [""; 0]);
        assert_eq!(
            lacking(&pod("200", "2Gi"), &node),
            ["cpu, requested: 200000, allocatable: 2000", "memory, requested: 2147483648, allocatable: 1073741824"]
        );
    }

    #[test]
    fn what_changes_says_what_a_node_has_to_know() {
        let pod = |whole: &str, init: &str, side: &str| {
            json!({"spec": {"resources": {"requests": {"cpu": whole}}, "initContainers": [
                {"resources": {"requests": {"cpu": init}}}, {"restartPolicy": "Always", "resources": {"requests": {"cpu": side}}},
            ]}})
        };
        let check = |new: Value| required_features(&pod("1", "1", "1"), &new);
        assert_eq!(check(pod("1", "1", "2")), [""; 0]);
        assert_eq!(
            check(pod("2", "2", "1")),
            ["InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers"]
        );
    }
}
