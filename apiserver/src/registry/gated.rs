//! Fields that belong to a feature (upstream: `DropDisabledFields` of each kind).
//!
//! While its gate is shut, a field is dropped from what is written, unless the object used the feature before: what is stored
//! goes on to be valid, and a server with the gate open finds nothing half written.

use coxswain_api::Value;
use coxswain_api::features::Feature;

/// Features, each with the paths of its fields. In a path `*` is every element of a list or every value of a map; a name that ends
/// in `?` goes too when nothing else is left in it; `name!Value` excepts one value, which any server knows.
pub type Fields = &'static [(Feature, &'static [&'static str])];

#[rustfmt::skip]
pub const POD_SPEC: Fields = &[
    (Feature::ClusterTrustBundleProjection, &["volumes/*/projected/sources/*/clusterTrustBundle"]),
    (Feature::ContainerRestartRules, &[
        "initContainers/*/restartPolicy!Always", "initContainers/*/restartPolicyRules",
        "containers/*/restartPolicy", "containers/*/restartPolicyRules",
        "ephemeralContainers/*/restartPolicy", "ephemeralContainers/*/restartPolicyRules",
    ]),
    (Feature::ContainerStopSignals, &[
        "initContainers/*/lifecycle?/stopSignal", "containers/*/lifecycle?/stopSignal", "ephemeralContainers/*/lifecycle?/stopSignal",
    ]),
    (Feature::EnvFiles, &[
        "initContainers/*/env/*/valueFrom/fileKeyRef", "containers/*/env/*/valueFrom/fileKeyRef",
        "ephemeralContainers/*/env/*/valueFrom/fileKeyRef",
    ]),
    (Feature::GenericWorkload, &["schedulingGroup"]),
    (Feature::HostnameOverride, &["hostnameOverride"]),
    (Feature::MatchLabelKeysInPodTopologySpread, &["topologySpreadConstraints/*/matchLabelKeys"]),
    (Feature::PodCertificateRequest, &["volumes/*/projected/sources/*/podCertificate"]),
    (Feature::PodLevelResources, &["resources"]),
];

#[rustfmt::skip]
pub const POD_STATUS: Fields = &[
    (Feature::DRAExtendedResource, &["extendedResourceClaimStatus"]),
    (Feature::DRANodeAllocatableResources, &["nodeAllocatableResourceClaimStatuses"]),
    (Feature::ImageVolumeWithDigest, &[
        "initContainerStatuses/*/volumeMounts/*/volumeStatus", "containerStatuses/*/volumeMounts/*/volumeStatus",
        "ephemeralContainerStatuses/*/volumeMounts/*/volumeStatus",
    ]),
    (Feature::InPlacePodLevelResourcesVerticalScaling, &["resources", "allocatedResources"]),
    (Feature::ResourceHealthStatus, &[
        "initContainerStatuses/*/allocatedResourcesStatus", "containerStatuses/*/allocatedResourcesStatus",
        "ephemeralContainerStatuses/*/allocatedResourcesStatus",
    ]),
    (Feature::ResourceHealthStatusMessage, &[
        "initContainerStatuses/*/allocatedResourcesStatus/*/resources/*/message",
        "containerStatuses/*/allocatedResourcesStatus/*/resources/*/message",
        "ephemeralContainerStatuses/*/allocatedResourcesStatus/*/resources/*/message",
    ]),
];

pub const REPLICAS_STATUS: Fields = &[(Feature::DeploymentReplicaSetTerminatingReplicas, &["terminatingReplicas"])];

pub const STATEFUL_SET_SPEC: Fields =
    &[(Feature::MaxUnavailableStatefulSet, &["updateStrategy/rollingUpdate/maxUnavailable"])];

pub const AUTOSCALER_SPEC: Fields =
    &[(Feature::HPAConfigurableTolerance, &["behavior/scaleDown/tolerance", "behavior/scaleUp/tolerance"])];

pub const NODE_STATUS: Fields = &[(Feature::NodeDeclaredFeatures, &["declaredFeatures"])];

pub const DEVICE_CLASS_SPEC: Fields = &[(Feature::DRAExtendedResource, &["extendedResourceName"])];

#[rustfmt::skip]
pub const CLAIM_SPEC: Fields = &[
    // Before the tolerations, which are not looked for in alternatives that go.
    (Feature::DRAPrioritizedList, &["devices/requests/*/firstAvailable"]),
    (Feature::DRADeviceTaints, &[
        "devices/requests/*/exactly/tolerations", "devices/requests/*/firstAvailable/*/tolerations",
    ]),
    (Feature::DRAConsumableCapacity, &[
        "devices/constraints/*/distinctAttribute", "devices/requests/*/exactly/capacity",
        "devices/requests/*/firstAvailable/*/capacity",
    ]),
];

#[rustfmt::skip]
pub const CLAIM_STATUS: Fields = &[
    (Feature::DRAResourceClaimDeviceStatus, &["devices"]),
    (Feature::DRAConsumableCapacity, &[
        "allocation/devices/results/*/shareID", "allocation/devices/results/*/consumedCapacity", "devices/*/shareID",
    ]),
    (Feature::DRADeviceBindingConditions, &[
        "allocation/devices/results/*/bindingConditions", "allocation/devices/results/*/bindingFailureConditions",
    ]),
];

#[rustfmt::skip]
pub const SLICE_SPEC: Fields = &[
    (Feature::DRADeviceTaints, &["devices/*/taints"]),
    (Feature::DRAPartitionableDevices, &[
        "sharedCounters", "perDeviceNodeSelection", "devices/*/consumesCounters", "devices/*/nodeName",
        "devices/*/nodeSelector", "devices/*/allNodes",
    ]),
    (Feature::DRADeviceBindingConditions, SLICE_BINDING),
    // Without a place for the conditions in a claim's status, there are none to wait for.
    (Feature::DRAResourceClaimDeviceStatus, SLICE_BINDING),
    (Feature::DRAConsumableCapacity, &["devices/*/allowMultipleAllocations", "devices/*/capacity/*/requestPolicy"]),
    (Feature::DRANodeAllocatableResources, &["devices/*/nodeAllocatableResourceMappings"]),
    (Feature::DRAListTypeAttributes, &[
        "devices/*/attributes/*/ints", "devices/*/attributes/*/bools", "devices/*/attributes/*/strings",
        "devices/*/attributes/*/versions",
    ]),
];

const SLICE_BINDING: &[&str] =
    &["devices/*/bindingConditions", "devices/*/bindingFailureConditions", "devices/*/bindsToNode"];

/// Drops from the part of an object at `pointer` what belongs to features that are off. `old` is the object before, if there
/// was one.
pub fn drop_disabled(object: &mut Value, old: Option<&Value>, pointer: &str, fields: Fields) {
    drop_shut(object, old, pointer, fields, Feature::enabled);
}

fn drop_shut(
    object: &mut Value,
    old: Option<&Value>,
    pointer: &str,
    fields: Fields,
    is_open: impl Fn(Feature) -> bool,
) {
    let Some(part) = object.pointer_mut(pointer) else { return };
    let old = old.and_then(|old| old.pointer(pointer));
    for (_, paths) in fields.iter().filter(|(feature, _)| !is_open(*feature)) {
        drop_unused(part, old, paths);
    }
}

fn drop_unused(part: &mut Value, old: Option<&Value>, paths: &[&str]) {
    if old.is_some_and(|old| paths.iter().any(|path| is_used(old, path))) {
        return;
    }
    paths.iter().for_each(|path| remove(part, path));
}

/// A step of a path, the value that is excepted at its end, and the rest of the path.
fn step(path: &str) -> (&str, &str, &str) {
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    let (name, excepted) = first.split_once('!').unwrap_or((first, ""));
    (name, excepted, rest)
}

fn is_used(value: &Value, path: &str) -> bool {
    let (name, excepted, rest) = step(path);
    match (name, value) {
        ("*", Value::Array(items)) => items.iter().any(|item| is_used(item, rest)),
        ("*", Value::Object(map)) => map.values().any(|item| is_used(item, rest)),
        (name, Value::Object(map)) => map.get(name.trim_end_matches('?')).is_some_and(|field| match field {
            field if !rest.is_empty() => is_used(field, rest),
            Value::Null => false,
            Value::Array(items) => !items.is_empty(),
            Value::String(text) => text != excepted || excepted.is_empty(),
            _ => true,
        }),
        _ => false,
    }
}

fn remove(value: &mut Value, path: &str) {
    let (name, excepted, rest) = step(path);
    match (name, value) {
        ("*", Value::Array(items)) => items.iter_mut().for_each(|item| remove(item, rest)),
        ("*", Value::Object(map)) => map.values_mut().for_each(|item| remove(item, rest)),
        (name, Value::Object(map)) => {
            let key = name.trim_end_matches('?');
            let Some(field) = map.get_mut(key) else { return };
            let goes = if rest.is_empty() {
                excepted.is_empty() || field != excepted
            } else {
                let was_used = is_used(field, rest);
                remove(field, rest);
                name.ends_with('?') && was_used && field.as_object().is_some_and(|left| left.is_empty())
            };
            if goes {
                map.remove(key);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn fields_of_a_feature_that_is_off_go_unless_they_were_used() {
        let spec = || {
            json!({
                "schedulingGroup": {"podGroupName": "g"},
                "containers": [
                    {"name": "a", "lifecycle": {"stopSignal": "SIGINT"}},
                    {"name": "b", "lifecycle": {"stopSignal": "SIGINT", "preStop": {"sleep": {"seconds": 1}}}},
                    {"name": "c", "lifecycle": {}},
                ],
                "hostnameOverride": "h",
            })
        };
        let mut new = spec();
        drop_disabled(&mut new, None, "", POD_SPEC);
        let want = json!({
            "containers": [
                {"name": "a"},
                {"name": "b", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}},
                {"name": "c", "lifecycle": {}},
            ],
            "hostnameOverride": "h",
        });
        assert_eq!(new, want);
        let old = json!({"containers": [{"name": "z", "lifecycle": {"stopSignal": "SIGINT"}}]});
        let mut new = spec();
        drop_disabled(&mut new, Some(&old), "", POD_SPEC);
        assert_eq!(new["containers"], spec()["containers"]);
        assert!(new.get("schedulingGroup").is_none());
    }

    #[test]
    fn a_gate_that_is_opened_or_shut_decides() {
        let mut new = json!({
            "schedulingGroup": {"podGroupName": "g"},
            "initContainers": [{"restartPolicy": "Always"}, {"restartPolicy": "Never"}],
            "containers": [{"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart"}]}],
        });
        drop_shut(&mut new, None, "", POD_SPEC, |feature| feature != Feature::ContainerRestartRules);
        let want = json!({
            "schedulingGroup": {"podGroupName": "g"},
            "initContainers": [{"restartPolicy": "Always"}, {}],
            "containers": [{}],
        });
        assert_eq!(new, want);
    }

    #[test]
    fn values_of_maps_are_reached() {
        let mut slice = json!({"spec": {"devices": [{"attributes": {"x": {"ints": [1]}, "y": {"int": 1}}}]}});
        drop_disabled(&mut slice, None, "/spec", SLICE_SPEC);
        assert_eq!(slice, json!({"spec": {"devices": [{"attributes": {"x": {}, "y": {"int": 1}}}]}}));
    }
}
