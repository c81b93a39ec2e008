//! Fields of features that are off: they are dropped, unless the object has used them before (upstream:
//! `pkg/api/pod.DropDisabledTemplateFields`).

use coxswain_api::Value;

/// Drops what this release leaves switched off from a pod spec. `old` is the spec before, if there was one.
pub fn drop_disabled_fields(spec: &mut Value, old: Option<&Value>) {
    // GenericWorkload
    if let Some(map) = spec.as_object_mut()
        && old.is_none_or(|o| o.get("schedulingGroup").is_none_or(Value::is_null))
    {
        map.remove("schedulingGroup");
    }
    drop_stop_signals(spec, old);
    drop_projections(spec, old);
}

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

fn lists<'a>(spec: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    spec.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// ContainerStopSignals
fn drop_stop_signals(spec: &mut Value, old: Option<&Value>) {
    let used = |spec: &Value| {
        CONTAINERS
            .iter()
            .any(|c| lists(spec, c).any(|c| c.pointer("/lifecycle/stopSignal").is_some_and(|s| !s.is_null())))
    };
    if !used(spec) || old.is_some_and(used) {
        return;
    }
    for key in CONTAINERS {
        for container in spec.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut) else { continue };
            lifecycle.remove("stopSignal");
            if lifecycle.is_empty() {
                container.remove("lifecycle");
            }
        }
    }
}

/// ClusterTrustBundleProjection and PodCertificateRequest
fn drop_projections(spec: &mut Value, old: Option<&Value>) {
    for kind in ["clusterTrustBundle", "podCertificate"] {
        let used = |spec: &Value| {
            lists(spec, "volumes").any(|v| {
                let sources = v.pointer("/projected/sources").and_then(Value::as_array);
                sources.into_iter().flatten().any(|s| s.get(kind).is_some_and(|k| !k.is_null()))
            })
        };
        if !used(spec) || old.is_some_and(used) {
            continue;
        }
        for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
            let sources = volume.pointer_mut("/projected/sources").and_then(Value::as_array_mut);
            for source in sources.into_iter().flatten().filter_map(Value::as_object_mut) {
                source.remove(kind);
            }
        }
    }
}
