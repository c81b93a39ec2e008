//! StatefulSet (upstream: `pkg/registry/apps/statefulset`, `ValidateStatefulSet`).

use crate::registry::core::pod_spec::{self, Options};
use crate::registry::gated::{self, Fields};
use crate::registry::resource::Resource;
use crate::registry::{checks, workload};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, json, names};

pub struct StatefulSets;

const ROLLING_UPDATE: &[(&str, &str)] = &[("Partition", "partition"), ("MaxUnavailable", "maxUnavailable")];

/// What a change may touch.
const MUTABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

/// What an update does not check again.
#[derive(Default)]
struct Spared {
    /// The name of the service and the claims, which cannot be changed.
    fixed: bool,
    /// The template, where the older spec was wrong somewhere.
    template: bool,
}

impl Resource for StatefulSets {
    fn set_defaults(&self, object: &mut Value) {
        let spec = workload::map_at(object, "spec");
        workload::default_to(spec, "podManagementPolicy", "OrderedReady");
        let strategy = workload::map_at(spec, "updateStrategy");
        if strategy.get("type").and_then(Value::as_str).unwrap_or_default().is_empty() {
            strategy["type"] = "RollingUpdate".into();
            workload::map_at(strategy, "rollingUpdate");
        }
        if strategy["type"] == "RollingUpdate"
            && let Some(rolling) = strategy.get_mut("rollingUpdate").filter(|r| r.is_object())
        {
            workload::default_absent(rolling, "partition", 0);
        }
        let policy = workload::map_at(spec, "persistentVolumeClaimRetentionPolicy");
        workload::default_to(policy, "whenDeleted", "Retain");
        workload::default_to(policy, "whenScaled", "Retain");
        workload::default_absent(spec, "replicas", 1);
        workload::default_absent(spec, "revisionHistoryLimit", 10);
        workload::default_template(spec);
        let claims = spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut);
        for claim in claims.into_iter().flatten().filter(|c| c.is_object()) {
            // Whatever was given.
            claim["apiVersion"] = "v1".into();
            claim["kind"] = "PersistentVolumeClaim".into();
            workload::default_absent(workload::map_at(claim, "spec"), "volumeMode", "Filesystem");
            workload::default_to(workload::map_at(claim, "status"), "phase", "Pending");
            let spec = &mut claim["spec"];
            for list in ["requests", "limits"] {
                if let Some(amounts) = spec.get_mut("resources").and_then(|r| r.get_mut(list)) {
                    pod_spec::defaults::round_up(amounts);
                }
            }
        }
    }

    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/spec/template/spec", gated::POD_SPEC), ("/spec", gated::STATEFUL_SET_SPEC)]
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::dns1123_label(name, prefix)
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = View::root(object).child("spec");
        validate_spec(&spec, &workload::options_of(None), &Spared::default(), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        let (new, before) = (View::root(object), View::root(old));
        if subresource == "status" {
            validate_status(&new.child("status"), &before.child("status"), &mut errors);
            return errors;
        }
        let options = workload::options_of(Some(old));
        let (spec, was) = (new.child("spec"), before.child("spec"));
        let mut wrong = ErrorList::new();
        validate_spec(&was, &options, &Spared { fixed: true, template: false }, &mut wrong);
        let spared = Spared { fixed: true, template: !wrong.is_empty() };
        validate_spec(&spec, &options, &spared, &mut errors);
        let rest = |spec: &View<'_>| {
            let mut map = spec.value().and_then(Value::as_object).cloned().unwrap_or_default();
            MUTABLE.iter().for_each(|field| {
                map.remove(*field);
            });
            map
        };
        if rest(&spec) != rest(&was) {
            let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                       'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                       'minReadySeconds' are forbidden";
            errors.push(Error::forbidden(spec.path(), why));
        }
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = workload::warnings(object, old, false);
        let root = View::root(object);
        let spec = root.child("spec");
        for claim in spec.child("volumeClaimTemplates").items() {
            // The path is upstream's, with the step that it leaves out and the one that it has on update only.
            let path = if old.is_some() { claim.path().child("Spec") } else { claim.path().clone() };
            pod_spec::claim_warnings(&View::new(claim.child("spec").value(), path), &mut warnings);
        }
        if spec.child("revisionHistoryLimit").i64() < 0 {
            warnings.push(
                "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
                    .into(),
            );
        }
        warnings
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn validate_spec(spec: &View<'_>, options: &Options, spared: &Spared, errors: &mut ErrorList) {
    let policy = spec.child("podManagementPolicy");
    match policy.str() {
        "" => errors.push(Error::required(policy.path(), "")),
        "OrderedReady" | "Parallel" => {}
        other => errors.push(Error::invalid(policy.path(), other, "must be 'OrderedReady' or 'Parallel'")),
    }
    validate_strategy(&spec.child("updateStrategy"), errors);
    let retention = spec.child("persistentVolumeClaimRetentionPolicy");
    if retention.exists() {
        for field in ["whenDeleted", "whenScaled"] {
            checks::supported_value(&retention.child(field), &["Retain", "Delete"], errors);
        }
    }
    if !spared.fixed {
        for claim in spec.child("volumeClaimTemplates").items() {
            pod_spec::persistent_volume_claim_spec(&claim.child("spec"), Default::default(), errors);
        }
    }
    workload::nonnegative(spec, &["replicas", "minReadySeconds"], errors);
    let start = spec.child("ordinals").child("start");
    checks::nonnegative(&start, errors);
    let service = spec.child("serviceName");
    if !service.is_empty() && !spared.fixed {
        checks::dns_label(&service, errors);
    }

    let selector = spec.child("selector");
    workload::required_selector(&selector, "empty selector is invalid for statefulset", errors);
    let template = spec.child("template");
    match workload::selector_of(&selector) {
        Err(_) => errors.push(Error::invalid(selector.path(), &selector, "")),
        Ok(selector) => {
            workload::matches_template(&selector, &template, errors);
            if !spared.template {
                validate_pods(spec, options, errors);
            }
            pod_spec::template_metadata(&template, options, errors);
        }
    }
    workload::runs_forever(&template, "StatefulSet", errors);
}

/// The template with the volumes that the claims become, and without the names that the controller gives.
fn validate_pods(spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let template = spec.child("template");
    let Some(mut whole) = template.value().cloned() else {
        return pod_spec::validate_template(&template, options, errors);
    };
    let pod = workload::map_at(&mut whole, "spec");
    if let Some(pod) = pod.as_object_mut() {
        pod.remove("subdomain");
        pod.remove("hostname");
    }
    let claims = spec.child("volumeClaimTemplates");
    if !claims.is_empty() {
        let mut volumes: Vec<Value> = Vec::new();
        let mut taken = Vec::new();
        for claim in claims.items() {
            let name = claim.child("metadata").child("name").str().to_owned();
            // Of several claims of one name one counts.
            if taken.contains(&name) {
                continue;
            }
            volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
            taken.push(name);
        }
        // A claim takes the place of a volume of the same name.
        let own = pod.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
        let name = |v: &Value| v.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        volumes.extend(own.into_iter().filter(|v| !taken.contains(&name(v))));
        pod["volumes"] = volumes.into();
    }
    pod_spec::validate_template(&View::new(Some(&whole), template.path().clone()), options, errors);
}

fn validate_strategy(strategy: &View<'_>, errors: &mut ErrorList) {
    let rolling = strategy.child("rollingUpdate");
    match strategy.child("type").str() {
        "" => errors.push(Error::required(strategy.path(), "")),
        "OnDelete" => {
            if rolling.exists() {
                let shown = workload::rolling_dump(&rolling, ROLLING_UPDATE);
                let why = "only allowed for updateStrategy 'RollingUpdate'";
                errors.push(Error::invalid(rolling.path(), shown, why));
            }
        }
        "RollingUpdate" => {
            checks::nonnegative(&rolling.child("partition"), errors);
            let limit = rolling.child("maxUnavailable");
            if limit.exists() {
                checks::int_or_percent(&limit, errors);
                if checks::int_or_percent_value(&limit) == 0 {
                    errors.push(Error::invalid(limit.path(), &limit, "cannot be 0"));
                }
                checks::at_most_100_percent(&limit, errors);
            }
        }
        _ => {
            let shown = workload::strategy_dump(strategy, ROLLING_UPDATE);
            errors.push(Error::invalid(strategy.path(), shown, "must be 'RollingUpdate' or 'OnDelete'"));
        }
    }
}

fn validate_status(status: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    const COUNTS: &[&str] = &[
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ];
    workload::nonnegative(status, COUNTS, errors);
    let parts = &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    workload::within_replicas(status, parts, errors);
    workload::available_are_ready(status, "cannot be greater than status.readyReplicas", errors);
    checks::not_decremented(&status.child("collisionCount"), &old.child("collisionCount"), errors);
}
