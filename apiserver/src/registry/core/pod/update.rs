//! What may change in a pod that exists (upstream: `ValidatePodUpdate`, `ValidatePodEphemeralContainersUpdate`,
//! `ValidatePodResize`).

use super::super::pod_spec::{self, MIRROR_ANNOTATION, Options};
use super::{keep_all_but, put, qos, validate_whole};
use crate::registry::checks;
use crate::registry::internal::{NODE_SELECTOR_TERM, NODE_SELECTOR_TERMS, dump};
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::quantity::Quantity;
use coxswain_api::{Value, names};

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
     `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
     `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn owned(view: &View<'_>) -> Value {
    view.value().cloned().unwrap_or_default()
}

/// Annotations that say who runs a pod, or how it is confined, stay as they are.
pub(super) fn annotations(new: &View<'_>, old: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let of = |pod: &View<'_>| owned(&pod.child("metadata").child("annotations"));
    let (new_map, old_map) = (of(new), of(old));
    let path = Path::new("metadata").child("annotations");
    for (key, value) in old_map.as_object().into_iter().flatten() {
        if new_map.get(key) == Some(value) {
            continue;
        }
        if key.starts_with(pod_spec::APP_ARMOR_ANNOTATION) {
            errors.push(Error::forbidden(&path.key(key), "may not remove or update AppArmor annotations"));
        }
        if key == MIRROR_ANNOTATION {
            errors.push(Error::forbidden(&path.key(key), "may not remove or update mirror pod annotation"));
        }
    }
    for (key, _) in new_map.as_object().into_iter().flatten().filter(|(k, _)| old_map.get(*k).is_none()) {
        if key.starts_with(pod_spec::APP_ARMOR_ANNOTATION) {
            errors.push(Error::forbidden(&path.key(key), "may not add AppArmor annotations"));
        }
        if key == MIRROR_ANNOTATION {
            errors.push(Error::forbidden(&path.key(key), "may not add mirror pod annotation"));
        }
    }
    let spec = new.child("spec");
    pod_spec::pod_annotations(&new.child("metadata").child("annotations"), &spec, options, errors);
}

/// A write of the pod itself.
pub(super) fn validate(new: &View<'_>, old: &View<'_>, options: &Options, errors: &mut ErrorList) {
    validate_whole(new, options, errors);
    annotations(new, old, options, errors);
    let (spec, before) = (new.child("spec"), old.child("spec"));
    for list in ["containers", "initContainers"] {
        let (list, old_list) = (spec.child(list), before.child(list));
        if list.len() != old_list.len() {
            errors.push(Error::forbidden(list.path(), "pod updates may not add or remove containers"));
            return;
        }
        for container in list.items() {
            checks::required(&container.child("image"), errors);
            pod_spec::image_whitespace(&container, errors);
        }
    }
    if !deadline(&spec.child("activeDeadlineSeconds"), &before.child("activeDeadlineSeconds"), errors) {
        return;
    }
    added_tolerations(&spec.child("tolerations"), &before.child("tolerations"), options, errors);
    removed_gates(&spec.child("schedulingGates"), &before.child("schedulingGates"), errors);

    // What may change is set back; whatever still differs may not.
    let mut munged = owned(&spec);
    let was = owned(&before);
    if munged == was {
        return;
    }
    for list in ["containers", "initContainers"] {
        let old_items = was.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        let items = munged.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (item, old) in items.zip(old_items) {
            put(item, "image", old.get("image").cloned());
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        put(&mut munged, field, was.get(field).cloned());
    }
    if before.child("terminationGracePeriodSeconds").i64() < 0
        && spec.child("terminationGracePeriodSeconds").opt_i64() == Some(1)
    {
        put(&mut munged, "terminationGracePeriodSeconds", was.get("terminationGracePeriodSeconds").cloned());
    }
    if !before.child("schedulingGates").is_empty() {
        gated(&spec, &before, &mut munged, &was, errors);
    }
    if munged != was {
        errors.push(Error::forbidden(spec.path(), MAY_CHANGE));
    }
}

/// May appear, and may shrink. Says whether there is any sense in going on.
fn deadline(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) -> bool {
    match (new.opt_i64(), old.opt_i64()) {
        (Some(seconds), _) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            errors.push(Error::invalid(new.path(), seconds, names::range_error(0, i32::MAX.into())));
            false
        }
        (Some(seconds), Some(before)) if before < seconds => {
            errors.push(Error::invalid(new.path(), seconds, "must be less than or equal to previous value"));
            false
        }
        (None, Some(_)) => {
            errors.push(Error::invalid(new.path(), new, "must not update from a positive integer to nil value"));
            true
        }
        _ => true,
    }
}

fn added_tolerations(new: &View<'_>, old: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let without_seconds = |toleration: &View<'_>| {
        let mut toleration = owned(toleration);
        put(&mut toleration, "tolerationSeconds", None);
        toleration
    };
    let present: Vec<Value> = new.items().map(|t| without_seconds(&t)).collect();
    if !old.items().all(|t| present.contains(&without_seconds(&t))) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(Error::forbidden(new.path(), why));
        return;
    }
    pod_spec::tolerations(new, options.allow_comparing_tolerations, errors);
}

fn removed_gates(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    for gate in new.items() {
        let name = gate.child("name");
        if !old.items().any(|o| o.child("name").str() == name.str()) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{}'", name.str());
            errors.push(Error::forbidden(name.path(), why));
        }
    }
}

/// A pod that waits at a gate may still be told more narrowly where to run.
fn gated(spec: &View<'_>, before: &View<'_>, munged: &mut Value, was: &Value, errors: &mut ErrorList) {
    let selector = spec.child("nodeSelector");
    if !checks::same(selector.value(), before.child("nodeSelector").value()) {
        let kept = before.child("nodeSelector").entries().all(|(k, v)| selector.child_named(k).value() == v.value());
        if !kept {
            let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errors.push(Error::invalid(selector.path(), &selector, why));
        }
        put(munged, "nodeSelector", was.get("nodeSelector").cloned());
    }
    let affinity = |spec: &Value| spec.pointer("/affinity/nodeAffinity").cloned();
    if affinity(munged) == affinity(was) {
        return;
    }
    narrower_node_affinity(spec, before, errors);
    let old = affinity(was);
    match munged.get_mut("affinity") {
        None => {
            if let Some(old) = old {
                munged["affinity"] = coxswain_api::json!({ "nodeAffinity": old });
            }
        }
        Some(own) => {
            put(own, "nodeAffinity", old);
            let alone = own.as_object().is_some_and(|m| m.is_empty());
            if alone && was.get("affinity").is_none() {
                put(munged, "affinity", None);
            }
        }
    }
}

fn narrower_node_affinity(spec: &View<'_>, before: &View<'_>, errors: &mut ErrorList) {
    fn terms<'a>(spec: &View<'a>) -> View<'a> {
        let affinity = spec.child("affinity").child("nodeAffinity");
        affinity.child("requiredDuringSchedulingIgnoredDuringExecution").child("nodeSelectorTerms")
    }
    let (new, old) = (terms(spec), terms(before));
    if old.is_empty() {
        return;
    }
    if new.len() != old.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.push(Error::invalid(new.path(), dump(&new, &NODE_SELECTOR_TERMS), why));
        return;
    }
    for (new, old) in new.items().zip(old.items()) {
        let mut grows = true;
        let mut old_empty = true;
        for list in ["matchExpressions", "matchFields"] {
            let (new, old) = (owned(&new.child(list)), owned(&old.child(list)));
            let (new, old) = (new.as_array().cloned().unwrap_or_default(), old.as_array().cloned().unwrap_or_default());
            old_empty &= old.is_empty();
            grows &= new.starts_with(&old);
        }
        // An empty term matches nothing; a term that matches something is no narrower.
        let new_empty = new.child("matchExpressions").is_empty() && new.child("matchFields").is_empty();
        if !grows || old_empty && !new_empty {
            let why = "only additions are allowed (no mutations or deletions)";
            errors.push(Error::invalid(new.path(), dump(&new, &NODE_SELECTOR_TERM), why));
        }
    }
}

/// A write of the ephemeral containers: they may be added, and that is all.
pub(super) fn validate_ephemeral(new: &View<'_>, old: &View<'_>, options: &Options, errors: &mut ErrorList) {
    validate_whole(new, options, errors);
    annotations(new, old, options, errors);
    if old.child("metadata").child("annotations").child_named(MIRROR_ANNOTATION).exists() {
        *errors = vec![Error::forbidden(&Path::new(""), "static pods do not support ephemeral containers")];
        return;
    }
    let list = new.child("spec").child("ephemeralContainers");
    for before in old.child("spec").child("ephemeralContainers").items() {
        let name = before.child("name").str();
        let quoted = coxswain_api::field::go_quote(name);
        match list.items().find(|c| c.child("name").str() == name) {
            None => {
                let why = format!("existing ephemeral containers {quoted} may not be removed\n");
                errors.push(Error::forbidden(list.path(), why));
            }
            Some(now) if now.value() != before.value() => {
                let why = format!("existing ephemeral containers {quoted} may not be changed");
                errors.push(Error::forbidden(list.path(), why));
            }
            Some(_) => {}
        }
    }
}

/// Everything but resources and resize policies is as it was. Where containers come or go, validation will say so.
pub(super) fn keep_resources_only(object: &mut Value, old: &Value) {
    let names = |pod: &Value, list: &str| -> Vec<Value> {
        let items = pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
        items.into_iter().flatten().map(|c| c.get("name").cloned().unwrap_or_default()).collect()
    };
    let lists = ["containers", "initContainers"];
    if lists.iter().any(|list| names(object, list).len() != names(old, list).len()) {
        return;
    }
    let given = object.get("spec").cloned().unwrap_or_default();
    let renamed: Vec<bool> = lists.iter().map(|list| names(object, list) != names(old, list)).collect();
    keep_all_but(object, old);
    put(&mut object["spec"], "resources", given.get("resources").cloned());
    for (list, renamed) in lists.into_iter().zip(renamed) {
        let items = given.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        if renamed {
            put(&mut object["spec"], list, given.get(list).cloned());
            continue;
        }
        let own = object["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (own, new) in own.zip(items) {
            put(own, "resources", new.get("resources").cloned());
            put(own, "resizePolicy", new.get("resizePolicy").cloned());
        }
    }
}

/// A write of the resources: CPU and memory of containers that run may change.
pub(super) fn validate_resize(new: &View<'_>, old: &View<'_>, options: &Options, errors: &mut ErrorList) {
    validate_whole(new, options, errors);
    let (spec, before) = (new.child("spec"), old.child("spec"));
    let alone = |why: &str| vec![Error::forbidden(&Path::new(""), why)];
    if old.child("metadata").child("annotations").child_named(MIRROR_ANNOTATION).exists() {
        *errors = alone("static pods cannot be resized");
        return;
    }
    if before.child("os").child("name").str() == "windows" {
        *errors = alone("windows pods cannot be resized");
        return;
    }
    if qos::qos_class(&owned(old)) != qos::compute(&owned(new)) {
        let class = new.child("status").child("qosClass").str();
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(Error::invalid(spec.path(), class, why));
    }
    let running =
        old.child("status").child("containerStatuses").items().find(|s| s.child("state").child("running").exists());
    if running.is_some_and(|s| !s.child("resources").exists()) {
        errors.push(Error::forbidden(spec.path(), "Pod running on node without support for resize"));
    }
    let mut munged = owned(&spec);
    let was = owned(&before);
    pod_level_resize(&spec, &before, &mut munged, &was, errors);
    if !same_containers(&spec, &before, errors) {
        return;
    }
    for list in ["initContainers", "containers"] {
        for (new, old) in spec.child(list).items().zip(before.child(list).items()) {
            nothing_removed("resource", &new.child("resources"), &old.child("resources"), errors);
        }
    }
    for list in ["containers", "initContainers"] {
        let old_items = was.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        let items = munged.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (i, (item, old)) in items.zip(old_items).enumerate() {
            let changed = *item != old;
            restore_cpu_and_memory(item, &old);
            if list == "containers" {
                if *item != old {
                    errors.push(Error::forbidden(spec.path(), "only cpu and memory resources are mutable"));
                }
                continue;
            }
            let at = spec.child(list).path().index(i);
            if *item != old {
                let why = "only cpu and memory resources for init or sidecar containers are mutable";
                errors.push(Error::forbidden(&at, why));
            }
            if changed && old.get("restartPolicy").and_then(Value::as_str) != Some("Always") {
                let policies = old.get("resizePolicy").and_then(Value::as_array).into_iter().flatten();
                for _ in policies.filter(|p| p["restartPolicy"] == "RestartContainer") {
                    let why = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
                    errors.push(Error::forbidden(&at, why));
                }
            }
        }
    }
    if errors.is_empty() && munged != was {
        errors.push(Error::forbidden(spec.path(), "only cpu and memory resources are mutable"));
    }
}

/// The resources of the pod as a whole, of which CPU and memory may change; in `munged` they are set back.
fn pod_level_resize(spec: &View<'_>, before: &View<'_>, munged: &mut Value, was: &Value, errors: &mut ErrorList) {
    let (new, old) = (spec.child("resources"), before.child("resources"));
    let given = |r: &View<'_>| !r.child("requests").is_empty() || !r.child("limits").is_empty();
    if !given(&new) && !given(&old) {
        return;
    }
    if !new.exists() {
        errors.push(Error::forbidden(new.path(), "pod-level resources cannot be removed"));
        return;
    }
    nothing_removed("pod-level resource", &new, &old, errors);
    restore_cpu_and_memory(munged, was);
    let empty = |list: &str| munged["resources"].get(list).is_none_or(|l| l.as_object().is_none_or(|m| m.is_empty()));
    if !old.exists() && empty("requests") && empty("limits") && empty("claims") {
        put(munged, "resources", None);
    }
    if munged.get("resources") != was.get("resources") {
        errors.push(Error::forbidden(spec.path(), "only cpu and memory resources are mutable at pod-level"));
    }
}

/// Whether the containers are the same, in the same order; if not, it is said.
fn same_containers(spec: &View<'_>, before: &View<'_>, errors: &mut ErrorList) -> bool {
    let found = errors.len();
    for list in ["containers", "initContainers"] {
        let (new, old) = (spec.child(list), before.child(list));
        if new.len() != old.len() {
            errors.push(Error::forbidden(new.path(), format!("{list} may not be added or removed on resize")));
            continue;
        }
        for (new, old) in new.items().zip(old.items()).map(|(n, o)| (n.child("name"), o.child("name"))) {
            if new.str() != old.str() {
                errors.push(Error::forbidden(new.path(), format!("{list} may not be renamed or reordered on resize")));
            }
        }
    }
    errors.len() == found
}

fn nothing_removed(what: &str, new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    for list in ["requests", "limits"] {
        let (new, old) = (new.child(list), old.child(list));
        if old.len() > new.len() || old.entries().any(|(name, _)| !new.child_named(name).exists()) {
            errors.push(Error::forbidden(new.path(), format!("{what} {list} cannot be removed")));
        }
    }
}

/// Gives `owner` the old CPU and memory, so that what else differs shows.
fn restore_cpu_and_memory(owner: &mut Value, old: &Value) {
    for list in ["limits", "requests"] {
        let path = format!("/resources/{list}");
        let was = old.pointer(&path).and_then(Value::as_object).cloned();
        let Some(resources) = owner.get_mut("resources").filter(|r| r.is_object()) else { continue };
        let Some(was) = was else {
            // Where there was nothing, upstream forgets what is new: only CPU and memory can have been added.
            let added = resources.get(list).and_then(Value::as_object);
            if added.is_none_or(|m| m.keys().all(|k| k == "cpu" || k == "memory")) {
                put(resources, list, None);
            }
            continue;
        };
        let mut now = resources.get(list).and_then(Value::as_object).cloned().unwrap_or_default();
        for name in ["cpu", "memory"] {
            match was.get(name) {
                Some(amount) => now.insert(name.to_owned(), amount.clone()),
                None => now.remove(name),
            };
        }
        // Equal amounts may be written in different ways.
        for (name, amount) in &mut now {
            let parse = |v: Option<&Value>| v.and_then(Value::as_str).and_then(|t| Quantity::parse(t).ok());
            if let Some(old) = was.get(name)
                && parse(Some(old)) == parse(Some(amount))
            {
                *amount = old.clone();
            }
        }
        put(resources, list, Some(now.into()));
    }
}
