//! Node (upstream: `pkg/registry/core/node`, `ValidateNode`).

use super::quantities::validate_quantity;
use crate::registry::checks::NOT_POSITIVE;
use crate::registry::gated::{self, Fields};
use crate::registry::internal::{NODE_ADDRESS, dump};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View, go_quote};
use coxswain_api::names::{self, ip};
use coxswain_api::{Value, json};

pub struct Nodes;

const FEATURE_BYTES_MAX: usize = 253;

impl Resource for Nodes {
    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty(), whole_first: true }
    }

    fn set_defaults(&self, object: &mut Value) {
        let is_empty = |v: Option<&Value>| v.is_none_or(|v| v.is_null() || v.as_object().is_some_and(|m| m.is_empty()));
        if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
            && is_empty(status.get("allocatable"))
            && !is_empty(status.get("capacity"))
        {
            let capacity = status["capacity"].clone();
            status.insert("allocatable".into(), capacity);
        }
        // One network is written in two places; the single one is for old readers.
        let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
        let single = spec.get("podCIDR").and_then(Value::as_str).unwrap_or_default().to_owned();
        let first = spec.get("podCIDRs").and_then(|l| l.get(0)).and_then(Value::as_str).unwrap_or_default().to_owned();
        match (single.is_empty(), first.is_empty()) {
            (false, _) if single != first => spec.insert("podCIDRs".into(), json!([single])),
            (true, false) => spec.insert("podCIDR".into(), first.into()),
            _ => None,
        };
    }

    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[("/status", gated::NODE_STATUS)]
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        drop_dynamic_config(object);
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, _subresource: &str) {
        if old.pointer("/spec/configSource").is_none() {
            drop_dynamic_config(object);
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let root = View::root(object);
        let mut errors = ErrorList::new();
        validate_taints(&root, &mut errors);
        validate_resources(&root, &mut errors);
        let swap = root.child("status").child("nodeInfo").child("swap").child("capacity");
        if swap.opt_i64().is_some_and(|bytes| bytes <= 0) {
            // Upstream reports it as if it were metadata.
            let path = Path::new("metadata").child("nodeSwapStatus").child("capacity");
            errors.push(Error::invalid(&path, swap.i64(), NOT_POSITIVE));
        }
        validate_features(&root, &mut errors);
        let cidrs = root.child("spec").child("podCIDRs");
        for cidr in cidrs.items() {
            errors.extend(ip::check_cidr_legacy(cidr.path(), cidr.str(), true, &[]));
        }
        if cidrs.len() > 1 {
            if let Some((i, bad)) = cidrs.items().enumerate().find(|(_, c)| ip::parse_cidr_sloppy(c.str()).is_none()) {
                let why = format!(
                    "invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR[{i}]: <nil> (invalid CIDR \
                     address: {})",
                    bad.str()
                );
                errors.push(Error::internal(cidrs.path(), why));
            }
            let six = cidrs.items().filter(|c| c.str().contains(':')).count();
            if six != 1 || cidrs.len() > 2 {
                let why = "may specify no more than one CIDR for each IP family";
                errors.push(Error::invalid(cidrs.path(), &cidrs, why));
            }
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let (new, before) = (View::root(object), View::root(old));
        let mut errors = if subresource.is_empty() { self.validate(ctx, object) } else { ErrorList::new() };
        validate_resources(&new, &mut errors);
        validate_features(&new, &mut errors);
        let mut seen: Vec<&Value> = Vec::new();
        for address in new.child("status").child("addresses").items() {
            let Some(value) = address.value() else { continue };
            if seen.contains(&value) {
                errors.push(Error::duplicate(address.path(), dump(&address, &NODE_ADDRESS)));
            }
            seen.push(value);
        }
        let (spec, old_spec) = (new.child("spec"), before.child("spec"));
        let (cidrs, old_cidrs) = (spec.child("podCIDRs"), old_spec.child("podCIDRs"));
        if !old_cidrs.is_empty() {
            let why = "node updates may not change podCIDR except from \"\" to valid";
            if cidrs.len() != old_cidrs.len() {
                errors.push(Error::forbidden(cidrs.path(), why));
            } else {
                for (a, b) in cidrs.items().zip(old_cidrs.items()) {
                    if a.str() != b.str() {
                        errors.push(Error::forbidden(cidrs.path(), why));
                    }
                }
            }
        }
        let (provider, old_provider) = (spec.child("providerID"), old_spec.child("providerID"));
        if !old_provider.is_empty() && provider.str() != old_provider.str() {
            let why = "node updates may not change providerID except from \"\" to valid";
            errors.push(Error::forbidden(provider.path(), why));
        }
        validate_taints(&new, &mut errors);
        let external = spec.child("externalID");
        if external.str() != old_spec.child("externalID").str() {
            errors.push(Error::forbidden(external.path(), "may not be updated"));
        }
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let spec = View::root(object).child("spec");
        let mut list = Vec::new();
        if !spec.child("externalID").is_empty() {
            list.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
        }
        for cidr in spec.child("podCIDRs").items() {
            list.extend(ip::warnings_for_cidr(cidr.path(), cidr.str()));
        }
        list
    }

    fn keeps_status_on_create(&self) -> bool {
        true
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let unschedulable = View::root(object).child("spec").child("unschedulable").bool();
        vec![("spec.unschedulable", unschedulable.to_string())]
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }
}

/// Configuration of kubelets through their nodes is gone.
fn drop_dynamic_config(object: &mut Value) {
    for (part, field) in [("spec", "configSource"), ("status", "config")] {
        if let Some(part) = object.get_mut(part).and_then(Value::as_object_mut) {
            part.remove(field);
        }
    }
}

fn validate_resources(root: &View<'_>, errors: &mut ErrorList) {
    for list in ["capacity", "allocatable"] {
        let amounts = root.child("status").child(list);
        for (name, amount) in amounts.entries() {
            let path = amounts.path().child_named(name);
            validate_quantity(name, &View::new(amount.value(), path), errors);
        }
    }
}

/// What a node says it can do: names in order, each once (upstream: `validateNodeDeclaredFeatures`).
fn validate_features(root: &View<'_>, errors: &mut ErrorList) {
    let mut last: Option<&str> = None;
    for feature in root.child("status").child("declaredFeatures").items() {
        let name = feature.str();
        match last {
            Some(last) if last == name => errors.push(Error::duplicate(feature.path(), name)),
            Some(last) if last > name => {
                errors.push(Error::invalid(feature.path(), name, "list must be sorted alphabetically"));
            }
            _ => {}
        }
        last = Some(name);
        let why = if name.len() > FEATURE_BYTES_MAX {
            format!("must be no more than {FEATURE_BYTES_MAX} characters")
        } else if !is_feature_name(name) {
            "must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or \
             MyFeature/mySubFeature), and contain only alphanumeric characters and slashes"
                .to_owned()
        } else {
            continue;
        };
        errors.push(Error::invalid(feature.path(), name, format!("invalid feature name {}: {why}", go_quote(name))));
    }
}

fn is_feature_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.split('/').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
        })
}

/// Upstream reports taints under `metadata`, where they once were.
fn validate_taints(root: &View<'_>, errors: &mut ErrorList) {
    let taints = root.child("spec").child("taints");
    let path = Path::new("metadata").child("taints");
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, taint) in taints.items().enumerate() {
        let path = path.index(i);
        let key = taint.child("key").str();
        for why in names::qualified_name(key) {
            errors.push(Error::invalid(&path.child("key"), key, why));
        }
        let value = taint.child("value").str();
        let wrong = names::label_value(value);
        if !wrong.is_empty() {
            errors.push(Error::invalid(&path.child("value"), value, wrong.join(";")));
        }
        let effect = taint.child("effect").str();
        match effect {
            "" => errors.push(Error::required(&path.child("effect"), "")),
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            other => {
                let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
                errors.push(Error::not_supported(&path.child("effect"), other, &known));
            }
        }
        if seen.contains(&(effect, key)) {
            let mut error = Error::duplicate(&path, "");
            // Upstream shows the Go struct.
            error.bad_value = Some(format!(
                r#"{{"Key":{},"Value":{},"Effect":{},"TimeAdded":{}}}"#,
                json!(key),
                json!(value),
                json!(effect),
                taint.child("timeAdded").value().unwrap_or(&Value::Null)
            ));
            error.detail = "taints must be unique by key and effect pair".into();
            errors.push(error);
            continue;
        }
        seen.push((effect, key));
    }
}
