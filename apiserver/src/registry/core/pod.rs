//! Pod (upstream: `pkg/registry/core/pod`, `ValidatePodCreate` and its like).

mod qos;
mod status;
mod update;

pub use crate::registry::gated::{self, Fields};
use qos::qos_class;

use super::pod_spec::{self, Options};
use crate::registry::metadata;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::features::Feature;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Map, Value, json, names, time};

pub struct Pods;

impl Resource for Pods {
    fn set_defaults(&self, object: &mut Value) {
        pod_spec::defaults::pod(object);
        status::agree_on_addresses(object);
    }

    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec", gated::POD_SPEC), ("/status", gated::POD_STATUS)]
    }

    fn prepare_for_create(&self, ctx: &Context, object: &mut Value) {
        if View::root(object).child("spec").child("terminationGracePeriodSeconds").i64() < 0 {
            object["spec"]["terminationGracePeriodSeconds"] = 1.into();
        }
        let class = qos_class(object);
        object["status"] = json!({"phase": "Pending", "qosClass": class});
        if !View::root(object).child("spec").child("schedulingGates").is_empty() {
            object["status"]["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "lastProbeTime": null,
                "lastTransitionTime": time::format_seconds(ctx.now),
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        merge_label_keys(object);
        sync_app_armor(ctx, object);
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, subresource: &str) {
        match subresource {
            "status" => status::prepare(object, old),
            "ephemeralcontainers" => {
                let containers = object.pointer("/spec/ephemeralContainers").cloned();
                keep_all_but(object, old);
                put(&mut object["spec"], "ephemeralContainers", containers);
            }
            "resize" => update::keep_resources_only(object, old),
            _ => {}
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let pod = View::root(object);
        let spec = pod.child("spec");
        validate_whole(&pod, &Options { is_pod: true, ..Options::default() }, &mut errors);
        let ephemeral = spec.child("ephemeralContainers");
        if !ephemeral.is_empty() {
            errors.push(Error::forbidden(ephemeral.path(), "cannot be set on create"));
        }
        let node = spec.child("nodeName");
        if !node.is_empty() && !spec.child("schedulingGates").is_empty() {
            let why = "cannot be set until all schedulingGates have been cleared";
            errors.push(Error::forbidden(node.path(), why));
        }
        let annotations = pod.child("metadata").child("annotations");
        pod_spec::annotations_agree(&annotations, &spec, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        let (new, old) = (View::root(object), View::root(old));
        // A status leaves the spec alone, so that only an annotation can be in need of leniency.
        if subresource == "status" && !pod_spec::has_deletion_cost(&new) {
            status::validate(&new, &old, &Options { is_pod: true, ..Options::default() }, &mut errors);
            return errors;
        }
        let options = Options::of_old(Some(&old), true);
        match subresource {
            "status" => status::validate(&new, &old, &options, &mut errors),
            "ephemeralcontainers" => update::validate_ephemeral(&new, &old, &options, &mut errors),
            "resize" => update::validate_resize(&new, &old, &options, &mut errors),
            _ => update::validate(&new, &old, &options, &mut errors),
        }
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        // People rarely change pods themselves: only new ones are looked at.
        if old.is_some() {
            return Vec::new();
        }
        let mut warnings = Vec::new();
        let wrong = names::dns1123_label(metadata::text(object, "name"), false);
        if !wrong.is_empty() {
            warnings.push(format!(
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
                 recommended: [{}]",
                wrong.join(" ")
            ));
        }
        warnings.extend(pod_spec::for_pod(object));
        warnings
    }

    fn status_warnings(&self, object: &Value) -> Vec<String> {
        let status = View::root(object).child("status");
        let addresses = ["podIPs", "hostIPs"].map(|list| status.child(list));
        let addresses = addresses.iter().flat_map(|list| list.items()).map(|entry| entry.child("ip"));
        addresses.flat_map(|ip| names::ip::warnings_for_ip(ip.path(), ip.str())).collect()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn spec_changed(&self, object: &Value, old: &Value) -> bool {
        object.get("spec") != old.get("spec")
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn is_graceful(&self) -> bool {
        true
    }

    fn grace_period_seconds(&self, object: &Value, asked: Option<i64>) -> Option<i64> {
        let pod = View::root(object);
        let spec = pod.child("spec");
        let period = asked.unwrap_or_else(|| spec.child("terminationGracePeriodSeconds").i64());
        let ended = matches!(pod.child("status").child("phase").str(), "Failed" | "Succeeded");
        Some(match period {
            // Nobody runs it: there is nothing to wait for.
            _ if spec.child("nodeName").is_empty() || ended => 0,
            period if period < 0 => 1,
            period => period,
        })
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let pod = View::root(object);
        let (spec, status) = (pod.child("spec"), pod.child("status"));
        let ip = status.child("podIPs").items().next().map(|ip| ip.child("ip").str().to_owned());
        vec![
            ("spec.nodeName", spec.child("nodeName").str().to_owned()),
            ("spec.restartPolicy", spec.child("restartPolicy").str().to_owned()),
            ("spec.schedulerName", spec.child("schedulerName").str().to_owned()),
            ("spec.serviceAccountName", spec.child("serviceAccountName").str().to_owned()),
            ("spec.hostNetwork", spec.child("hostNetwork").bool().to_string()),
            ("status.phase", status.child("phase").str().to_owned()),
            ("status.podIP", ip.unwrap_or_default()),
            ("status.nominatedNodeName", status.child("nominatedNodeName").str().to_owned()),
        ]
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ]
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        match subresource {
            "status" => Some(&["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"]),
            "ephemeralcontainers" => Some(&[]),
            "resize" => Some(&["metadata", "status"]),
            _ => None,
        }
    }

    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource != "status", whole_first: false }
    }
}

/// Sets a field, or removes it.
fn put(object: &mut Value, field: &str, value: Option<Value>) {
    let Some(map) = object.as_object_mut() else { return };
    match value {
        Some(value) => map.insert(field.to_owned(), value),
        None => map.remove(field),
    };
}

/// Spec, status and the metadata that a subresource may not change are as they were.
fn keep_all_but(object: &mut Value, old: &Value) {
    put(object, "spec", old.get("spec").cloned());
    put(object, "status", old.get("status").cloned());
    metadata::reset_for_status(object, old);
}

/// Annotations and spec, and what templates are spared (upstream: `validatePodMetadataAndSpec`).
fn validate_whole(pod: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let spec = pod.child("spec");
    pod_spec::pod_annotations(&pod.child("metadata").child("annotations"), &spec, options, errors);
    pod_spec::validate(&spec, Some(pod.child("metadata").child("name").str()), options, errors);
    if spec.child("serviceAccountName").is_empty() {
        for source in spec.child("volumes").items().flat_map(|v| v.child("projected").child("sources").items()) {
            let token = source.child("serviceAccountToken");
            if token.exists() {
                let why = "must not be specified when serviceAccountName is not set";
                errors.push(Error::forbidden(token.path(), why));
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec.child(list).items() {
            pod_spec::image_whitespace(&container, errors);
        }
    }
}

/// Turns label keys of affinity and spreading into the selectors they stand for, by the pod's own labels.
fn merge_label_keys(pod: &mut Value) {
    let labels = pod.pointer("/metadata/labels").and_then(Value::as_object).cloned().unwrap_or_default();
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (list, step) in [
            ("preferredDuringSchedulingIgnoredDuringExecution", Some("podAffinityTerm")),
            ("requiredDuringSchedulingIgnoredDuringExecution", None),
        ] {
            let terms = pod.pointer_mut(&format!("/spec/affinity/{kind}/{list}")).and_then(Value::as_array_mut);
            for term in terms.into_iter().flatten() {
                let term = match step {
                    Some(step) => term.get_mut(step),
                    None => Some(term),
                };
                if let Some(term) = term {
                    merge_keys(term, "matchLabelKeys", "In", &labels);
                    merge_keys(term, "mismatchLabelKeys", "NotIn", &labels);
                }
            }
        }
    }
    if !Feature::MatchLabelKeysInPodTopologySpread.enabled()
        || !Feature::MatchLabelKeysInPodTopologySpreadSelectorMerge.enabled()
    {
        return;
    }
    let constraints = pod.pointer_mut("/spec/topologySpreadConstraints").and_then(Value::as_array_mut);
    for constraint in constraints.into_iter().flatten() {
        merge_keys(constraint, "matchLabelKeys", "In", &labels);
    }
}

fn merge_keys(owner: &mut Value, keys: &str, operator: &str, labels: &Map<String, Value>) {
    let keys = owner.get(keys).and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(selector) = owner.get_mut("labelSelector").and_then(Value::as_object_mut) else { return };
    for key in keys.iter().filter_map(Value::as_str) {
        let Some(value) = labels.get(key) else { continue };
        let expressions = selector.entry("matchExpressions").or_insert_with(|| json!([]));
        if let Some(expressions) = expressions.as_array_mut() {
            expressions.push(json!({"key": key, "operator": operator, "values": [value]}));
        }
    }
}

/// Turns AppArmor annotations, which are deprecated, into the fields they stand for.
fn sync_app_armor(ctx: &Context, pod: &mut Value) {
    if pod.pointer("/spec/os/name").and_then(Value::as_str) == Some("windows") {
        return;
    }
    let of_pod = pod.pointer("/spec/securityContext/appArmorProfile").cloned();
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object).cloned().unwrap_or_default();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let containers = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter(|c| c.is_object()) {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
            let key = format!("{}{name}", pod_spec::APP_ARMOR_ANNOTATION);
            let Some(annotation) = annotations.get(&key).and_then(Value::as_str) else { continue };
            let has_own = container.pointer("/securityContext/appArmorProfile").is_some_and(|p| !p.is_null());
            if has_own {
                continue;
            }
            let field = pod_spec::app_armor_of_annotation(annotation).filter(|f| {
                let mut wrong = ErrorList::new();
                pod_spec::app_armor_profile(&View::root(f), &mut wrong);
                wrong.is_empty()
            });
            let differs = field.is_some() && field != of_pod;
            let warn = field.is_none() || differs;
            if let Some(field) = field.filter(|_| differs) {
                if !container.get("securityContext").is_some_and(Value::is_object) {
                    container["securityContext"] = json!({});
                }
                container["securityContext"]["appArmorProfile"] = field;
            }
            if warn {
                let path = format!("metadata.annotations[{key}]");
                ctx.warnings.add(format!("{path}: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
            }
        }
    }
}
