//! Conversions between the versions of built-in kinds (upstream: the generated `zz_generated.conversion.go` and the few
//! conversions written by hand).
//!
//! Most kinds have one version, or versions of the same shape: only `apiVersion` changes. The others are told apart here.
//! A conversion never fails and loses nothing on the way there and back: what the other version cannot say travels in
//! annotations, as upstream has it.

mod apiextensions;
mod autoscaling;
mod events;
mod networking;
mod resource;

pub use apiextensions::definition_from_v1beta1;

use crate::catalogue::GroupVersion;
use crate::{codec, schema};
use serde_json::Value;

/// Whether objects of a kind differ between two versions in more than `apiVersion`.
pub fn changes_shape(kind: &str, from: &GroupVersion, to: &GroupVersion) -> bool {
    route(kind, from, to).is_some()
}

/// Brings a canonical object into another version of its kind; the result is canonical in that version.
pub fn convert(object: &mut Value, to: &GroupVersion) {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let from = GroupVersion { group: group.into(), version: version.into() };
    if from == *to {
        return;
    }
    if let Some(change) = route(&kind, &from, to) {
        change(object);
    }
    let Some(map) = object.as_object_mut() else { return };
    map.insert("apiVersion".into(), to.api_version().into());
    if let Some(schema) = schema::builtin().kind(&to.group, &to.version, &kind) {
        codec::canonicalize(object, schema);
    }
}

fn route(kind: &str, from: &GroupVersion, to: &GroupVersion) -> Option<fn(&mut Value)> {
    let between = [(&*from.group, &*from.version), (&*to.group, &*to.version)];
    match (kind, between) {
        ("HorizontalPodAutoscaler", [("autoscaling", "v1"), ("autoscaling", "v2")]) => Some(autoscaling::v1_to_v2),
        ("HorizontalPodAutoscaler", [("autoscaling", "v2"), ("autoscaling", "v1")]) => Some(autoscaling::v2_to_v1),
        ("Event", [("events.k8s.io", _), ("", "v1")]) => Some(events::to_core),
        ("Event", [("", "v1"), ("events.k8s.io", _)]) => Some(events::from_core),
        (_, [("resource.k8s.io", "v1beta1"), ("resource.k8s.io", "v1" | "v1beta2")]) => resource::from_v1beta1(kind),
        (_, [("resource.k8s.io", "v1" | "v1beta2"), ("resource.k8s.io", "v1beta1")]) => resource::to_v1beta1(kind),
        ("Ingress", [("extensions" | "networking.k8s.io", "v1beta1"), ("networking.k8s.io", "v1")]) => {
            Some(networking::ingress_from_v1beta1)
        }
        ("PriorityLevelConfiguration", [(_, "v1beta1" | "v1beta2"), (_, "v1" | "v1beta3")]) => {
            Some(networking::priority_level_from_v1beta2)
        }
        _ => None,
    }
}

/// Moves a field to another name, if it is there.
fn rename(object: &mut Value, from: &str, to: &str) {
    if let Some(map) = object.as_object_mut()
        && let Some(value) = map.remove(from)
    {
        map.insert(to.into(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn there_and_back(object: &Value, version: &GroupVersion) -> Value {
        let mut converted = object.clone();
        convert(&mut converted, version);
        let mut back = converted.clone();
        let (group, v) =
            object["apiVersion"].as_str().map(|a| a.split_once('/').unwrap_or(("", a))).unwrap_or_default();
        convert(&mut back, &GroupVersion { group: group.into(), version: v.into() });
        assert_eq!(&back, object);
        converted
    }

    #[test]
    fn an_autoscaler_keeps_in_annotations_what_v1_cannot_say() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 5,
                "metrics": [
                    {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "10"}}},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}],
                "behavior": {"scaleUp": {"selectPolicy": "Min", "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}}},
            "status": {"desiredReplicas": 0, "currentMetrics": null}});
        let v1 = there_and_back(&v2, &GroupVersion { group: "autoscaling".into(), version: "v1".into() });
        assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(
            v1["metadata"]["annotations"],
            json!({
                "autoscaling.alpha.kubernetes.io/metrics": r#"[{"type":"Pods","pods":{"metricName":"m","targetAverageValue":"10"}}]"#,
                "autoscaling.alpha.kubernetes.io/behavior": concat!(
                    r#"{"ScaleUp":{"StabilizationWindowSeconds":null,"SelectPolicy":"Min","#,
                    r#""Policies":[{"Type":"Pods","Value":4,"PeriodSeconds":15}],"Tolerance":null},"ScaleDown":null}"#)
            })
        );
    }

    #[test]
    fn events_and_claims_survive_the_way_there_and_back() {
        let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"name": "p"},
            "message": "m", "source": {"component": "c"}, "firstTimestamp": null, "lastTimestamp": null, "eventTime": null,
            "count": 2, "reportingComponent": "r", "reportingInstance": ""});
        let converted = there_and_back(&event, &GroupVersion { group: "events.k8s.io".into(), version: "v1".into() });
        assert_eq!(converted["regarding"], json!({"name": "p"}));
        assert_eq!(converted["reportingController"], "r");
        let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "c"},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "x", "count": 2}}]}}, "status": {}});
        let beta = there_and_back(&claim, &GroupVersion { group: "resource.k8s.io".into(), version: "v1beta1".into() });
        assert_eq!(beta["spec"]["devices"]["requests"], json!([{"name": "r", "deviceClassName": "x", "count": 2}]));
    }

    #[test]
    fn an_old_ingress_keeps_its_backends() {
        let mut ingress = json!({"apiVersion": "extensions/v1beta1", "kind": "Ingress", "metadata": {"name": "a"},
            "spec": {"backend": {"serviceName": "s", "servicePort": 80}, "rules": [{"host": "h", "http": {"paths": [
                {"path": "/", "backend": {"serviceName": "t", "servicePort": "web"}},
                {"path": "/r", "pathType": "Prefix", "backend": {"resource": {"apiGroup": "g", "kind": "B", "name": "b"}, "serviceName": "", "servicePort": 0}}]}}]}});
        convert(&mut ingress, &GroupVersion { group: "networking.k8s.io".into(), version: "v1".into() });
        assert_eq!(
            ingress["spec"],
            json!({"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}, "rules": [{"host": "h", "http": {"paths": [
                {"path": "/", "pathType": "ImplementationSpecific", "backend": {"service": {"name": "t", "port": {"name": "web"}}}},
                {"path": "/r", "pathType": "Prefix", "backend": {"resource": {"apiGroup": "g", "kind": "B", "name": "b"}}}]}}]})
        );
    }
}
