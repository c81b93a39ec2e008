//! The CustomResourceDefinition itself: defaults, validation, deletion (upstream: `pkg/registry/customresourcedefinition` and
//! `pkg/apis/apiextensions/validation`).

use super::custom_resource::check_path;
use super::rule_check;
use crate::registry::metadata;
use crate::registry::resource::{DeleteRule, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::structural::{self, Structural};
use coxswain_api::{Map, Value, json, names, time};
use std::collections::HashSet;

/// Keeps a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

pub struct CustomResourceDefinitions;

fn child<'a>(object: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    let map = object.as_object_mut()?;
    let slot = map.entry(name).or_insert_with(|| json!({}));
    if slot.is_null() {
        *slot = json!({});
    }
    slot.as_object_mut()
}

/// Sets or replaces a condition, with the time at which its status changed.
pub fn set_condition(status: &mut Value, kind: &str, state: &str, reason: &str, message: &str, now: &str) {
    let Some(status) = status.as_object_mut() else { return };
    let list = status.entry("conditions").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    let old = list.iter_mut().find(|c| c["type"] == kind);
    let time = match &old {
        Some(old) if old["status"] == state => old["lastTransitionTime"].clone(),
        _ => now.into(),
    };
    let made = json!({"type": kind, "status": state, "lastTransitionTime": time, "reason": reason, "message": message});
    match old {
        Some(old) => *old = made,
        None => list.push(made),
    }
}

pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|c| c["type"] == kind)
}

pub fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|c| c["status"] == "True")
}

/// The version that objects are stored in.
pub fn storage_version(object: &Value) -> Option<&str> {
    let versions = object.pointer("/spec/versions")?.as_array()?;
    versions.iter().find(|v| v["storage"] == true)?.get("name")?.as_str()
}

fn remember_storage_version(object: &mut Value) {
    let Some(version) = storage_version(object).map(str::to_owned) else { return };
    let Some(status) = child(object, "status") else { return };
    let stored = status.entry("storedVersions").or_insert_with(|| json!([]));
    if !stored.is_array() {
        *stored = json!([]);
    }
    if let Some(stored) = stored.as_array_mut()
        && !stored.iter().any(|v| *v == *version)
    {
        stored.push(version.into());
    }
}

impl Resource for CustomResourceDefinitions {
    fn set_defaults(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else { return };
        if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
            let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
            let empty = |names: &Map<String, Value>, field: &str| {
                names.get(field).and_then(Value::as_str).unwrap_or_default().is_empty()
            };
            if empty(names, "singular") && !kind.is_empty() {
                names.insert("singular".into(), kind.to_lowercase().into());
            }
            if empty(names, "listKind") && !kind.is_empty() {
                names.insert("listKind".into(), format!("{kind}List").into());
            }
        }
        let conversion = spec.entry("conversion").or_insert(Value::Null);
        if conversion.is_null() {
            *conversion = json!({"strategy": "None"});
        }
        // A webhook that is a service is asked at the usual port.
        if let Some(service) = conversion.pointer_mut("/webhook/clientConfig/service").and_then(Value::as_object_mut)
            && service.get("port").is_none_or(Value::is_null)
        {
            service.insert("port".into(), 443.into());
        }
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            let status = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []});
            map.insert("status".into(), status);
        }
        remember_storage_version(object);
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, _old: &Value, subresource: &str) {
        if subresource.is_empty() {
            remember_storage_version(object);
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn warnings(&self, _ctx: &Context, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut formats = Vec::new();
        for version in object.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten() {
            if let Some(schema) = version.pointer("/schema/openAPIV3Schema") {
                structural::unrecognized_formats(schema, &mut formats);
            }
        }
        formats.sort();
        formats.dedup();
        formats.iter().map(|f| format!("unrecognized format {}", coxswain_api::field::go_quote(f))).collect()
    }

    fn delete_rule(&self, ctx: &Context, object: &mut Value) -> DeleteRule {
        if metadata::is_deleting(object) {
            return DeleteRule::Usual;
        }
        let now = time::format_seconds(ctx.now);
        metadata::set(object, "deletionTimestamp", now.clone());
        let mut finalizers = metadata::finalizers(object);
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.into());
            metadata::set(object, "finalizers", finalizers);
        }
        if let Some(status) = object.get_mut("status") {
            let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
            set_condition(status, "Terminating", "True", "InstanceDeletionPending", message, &now);
        }
        DeleteRule::Mark
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = validate_name(object);
        errors.extend(validate_spec(object, None));
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" {
            return validate_stored_versions(object);
        }
        let mut errors = validate_spec(object, Some(old));
        if is_true(old, "Established") {
            let path = Path::new("spec");
            for (pointer, at) in
                [("/spec/scope", path.child("scope")), ("/spec/names/kind", path.child("names").child("kind"))]
            {
                if object.pointer(pointer) != old.pointer(pointer) {
                    let value = object.pointer(pointer).unwrap_or(&Value::Null);
                    errors.push(Error::invalid(&at, value, "field is immutable"));
                }
            }
        }
        for (pointer, at) in [
            ("/spec/group", Path::new("spec").child("group")),
            ("/spec/names/plural", Path::new("spec").child("names").child("plural")),
        ] {
            if object.pointer(pointer) != old.pointer(pointer) {
                let value = object.pointer(pointer).unwrap_or(&Value::Null);
                errors.push(Error::invalid(&at, value, "field is immutable"));
            }
        }
        errors
    }
}

fn validate_name(object: &Value) -> ErrorList {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let wanted = format!("{}.{}", text("/spec/names/plural"), text("/spec/group"));
    let name = text("/metadata/name");
    if name == wanted {
        return ErrorList::new();
    }
    let path = Path::new("metadata").child("name");
    vec![Error::invalid(&path, name, "must be spec.names.plural+\".\"+spec.group")]
}

fn validate_stored_versions(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("status").child("storedVersions");
    let list = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let (stored, versions) = (list("/status/storedVersions"), list("/spec/versions"));
    if stored.is_empty() {
        let value = object.pointer("/status/storedVersions").filter(|v| v.as_array().is_some_and(|a| !a.is_empty()));
        errors.push(Error::invalid(&path, value.unwrap_or(&Value::Null), "must have at least one stored version"));
        return errors;
    }
    for version in versions.iter().filter(|v| v["storage"] == true && !stored.contains(&v["name"])) {
        let what = format!("must have the storage version {}", version["name"].as_str().unwrap_or_default());
        errors.push(Error::invalid(&path, object.pointer("/status/storedVersions").unwrap_or(&Value::Null), what));
    }
    for (i, version) in stored.iter().enumerate() {
        if !versions.iter().any(|v| v["name"] == *version) {
            errors.push(Error::invalid(&path.index(i), version, "must appear in spec.versions"));
        }
    }
    errors
}

fn domain_error(value: &View<'_>, errors: &mut ErrorList) {
    for what in names::dns1123_subdomain(value.str(), false) {
        errors.push(Error::invalid(value.path(), value, what));
    }
}

fn label_error(value: &View<'_>, errors: &mut ErrorList) {
    for what in names::dns1035_label(value.str(), false) {
        errors.push(Error::invalid(value.path(), value, what));
    }
}

fn validate_spec(object: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = View::root(object);
    let spec = root.child("spec");
    let group = spec.child("group");
    if group.is_empty() {
        errors.push(Error::required(group.path(), ""));
    } else {
        let before = errors.len();
        domain_error(&group, &mut errors);
        if errors.len() == before && group.str().split('.').count() < 2 {
            errors.push(Error::invalid(group.path(), &group, "should be a domain with at least one dot"));
        }
    }
    let scope = spec.child("scope");
    match scope.str() {
        "Cluster" | "Namespaced" => {}
        "" => errors.push(Error::required(scope.path(), "")),
        _ => errors.push(Error::not_supported(scope.path(), &scope, &["Cluster", "Namespaced"])),
    }
    if spec.child("preserveUnknownFields").bool() {
        let what =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        let at = spec.child("preserveUnknownFields");
        errors.push(Error::invalid(at.path(), &at, what));
    }
    let versions: Vec<View<'_>> = spec.child("versions").items().collect();
    // One version, or versions that all say the same, are told of as if it were said once for all.
    let said = |version: &View<'_>, name: &'static str| version.child(name).value().cloned();
    let hoisted = |name: &'static str| versions.windows(2).all(|w| said(&w[0], name) == said(&w[1], name));
    for (i, version) in versions.iter().enumerate() {
        let at = spec.child("versions").path().index(i);
        for what in names::dns1035_label(version.child("name").str(), false) {
            errors.push(Error::invalid(&at.child("name"), version.child("name"), what));
        }
        let schema = version.child("schema").child("openAPIV3Schema");
        if !schema.exists() {
            errors.push(Error::required(&at.child("schema").child("openAPIV3Schema"), ""));
        }
        let warning = version.child("deprecationWarning");
        if warning.exists() && !version.child("deprecated").bool() {
            errors.push(Error::invalid(warning.path(), &warning, "can only be set for deprecated versions"));
        }
        let first = i == 0;
        let place = |name: &'static str, top: &'static str| {
            if hoisted(name) { Some(Path::new("spec").child(top)) } else { Some(at.child(name)) }
                .filter(|_| first || !hoisted(name))
        };
        if let Some(path) = place("schema", "validation")
            && let Some(schema) = schema.value()
        {
            // A schema that was accepted before stays accepted.
            let same =
                old.and_then(|o| o.pointer(&format!("/spec/versions/{i}/schema/openAPIV3Schema"))) == Some(schema);
            if !same {
                let path = path.child("openAPIV3Schema");
                let found = structural::check(schema, &path);
                // Rules are looked at only within a schema that is right.
                let rules = if found.is_empty() { rule_check::check(schema, &path) } else { found };
                errors.extend(rules);
            }
        }
        if let Some(path) = place("additionalPrinterColumns", "additionalPrinterColumns") {
            for (n, column) in version.child("additionalPrinterColumns").items().enumerate() {
                validate_column(&column, &path.index(n), &mut errors);
            }
        }
        if let Some(path) = place("subresources", "subresources") {
            validate_scale(&version.child("subresources").child("scale"), &path.child("scale"), &mut errors);
        }
        if let Some(path) = place("selectableFields", "selectableFields") {
            validate_selectable(version, schema.value(), &path, &mut errors);
        }
    }
    validate_versions(&spec, &versions, &mut errors);
    validate_names(&spec, &mut errors);
    validate_conversion(&spec.child("conversion"), &mut errors);
    validate_approval(&root, &mut errors);
    errors.extend(validate_stored_versions(object));
    errors
}

/// The versions as upstream's internal type prints them.
fn printed(versions: &[View<'_>]) -> Value {
    let one = |v: &View<'_>| {
        let or_null = |name: &'static str| v.child(name).value().cloned().unwrap_or(Value::Null);
        format!(
            "{{\"Name\":{},\"Served\":{},\"Storage\":{},\"Deprecated\":{},\"DeprecationWarning\":{},\"Schema\":null,\
             \"Subresources\":null,\"AdditionalPrinterColumns\":null,\"SelectableFields\":null}}",
            json!(v.child("name").str()),
            v.child("served").bool(),
            v.child("storage").bool(),
            v.child("deprecated").bool(),
            or_null("deprecationWarning"),
        )
    };
    Value::String(format!("[{}]", versions.iter().map(one).collect::<Vec<_>>().join(",")))
}

fn validate_versions(spec: &View<'_>, versions: &[View<'_>], errors: &mut ErrorList) {
    let path = spec.child("versions").path().clone();
    let refuse = |detail: &str| {
        let mut error = Error::invalid(&path, "", detail);
        error.bad_value = printed(versions).as_str().map(str::to_owned);
        error
    };
    let mut seen = HashSet::new();
    if versions.iter().any(|v| !seen.insert(v.child("name").str())) {
        errors.push(refuse("must contain unique version names"));
    }
    if versions.iter().filter(|v| v.child("storage").bool()).count() != 1 {
        errors.push(refuse("must have exactly one version marked as storage version"));
    }
    if let Some(first) = versions.first() {
        for what in names::dns1035_label(first.child("name").str(), false) {
            errors.push(Error::invalid(&Path::new("spec").child("version"), first.child("name"), what));
        }
    }
}

fn validate_names(spec: &View<'_>, errors: &mut ErrorList) {
    let names_view = spec.child("names");
    label_required(&names_view.child("plural"), errors);
    label_required(&names_view.child("singular"), errors);
    for field in ["kind", "listKind"] {
        let value = names_view.child_named(field);
        if value.is_empty() {
            errors.push(Error::required(value.path(), ""));
            continue;
        }
        for what in names::dns1035_label(&value.str().to_lowercase(), false) {
            let what = format!("may have mixed case, but should otherwise match: {what}");
            errors.push(Error::invalid(value.path(), &value, what));
        }
    }
    let (kind, list_kind) = (names_view.child("kind"), names_view.child("listKind"));
    if !kind.is_empty() && kind.str() == list_kind.str() {
        errors.push(Error::invalid(list_kind.path(), &list_kind, "kind and listKind may not be the same"));
    }
    for list in ["shortNames", "categories"] {
        for name in names_view.child_named(list).items() {
            label_error(&name, errors);
        }
    }
}

fn label_required(value: &View<'_>, errors: &mut ErrorList) {
    if value.is_empty() {
        errors.push(Error::required(value.path(), ""));
    } else {
        label_error(value, errors);
    }
}

fn validate_conversion(conversion: &View<'_>, errors: &mut ErrorList) {
    let path = conversion.path();
    let webhook = conversion.child("webhook");
    let client = webhook.child("clientConfig");
    let client_path = path.child("webhookClientConfig");
    let reviews = webhook.child("conversionReviewVersions");
    let reviews_path = path.child("conversionReviewVersions");
    match conversion.child("strategy").str() {
        "None" => {
            let what = "should not be set when strategy is not set to Webhook";
            if client.exists() {
                errors.push(Error::forbidden(&client_path, what));
            }
            if !reviews.is_empty() {
                errors.push(Error::forbidden(&reviews_path, what));
            }
        }
        "Webhook" => {
            if !client.exists() {
                errors.push(Error::required(&client_path, "required when strategy is set to Webhook"));
            } else if client.child("url").exists() == client.child("service").exists() {
                errors.push(Error::required(&client_path, "exactly one of url or service is required"));
            }
            if reviews.is_empty() {
                errors.push(Error::required(&reviews_path, ""));
            }
        }
        _ => {
            let strategy = conversion.child("strategy");
            errors.push(Error::not_supported(strategy.path(), &strategy, &["None", "Webhook"]));
        }
    }
}

/// Groups of the community need its approval.
fn validate_approval(root: &View<'_>, errors: &mut ErrorList) {
    const KEY: &str = "api-approved.kubernetes.io";
    let group = root.child("spec").child("group").str();
    let protected = |suffix: &str| group == suffix || group.ends_with(&format!(".{suffix}"));
    if !protected("k8s.io") && !protected("kubernetes.io") {
        return;
    }
    let annotations = root.child("metadata").child("annotations");
    let approval = annotations.child_named(KEY);
    let path = annotations.path().key(KEY);
    match approval.str() {
        "" => {
            let what = format!(
                "protected groups must have approval annotation \"{KEY}\", see \
                 https://github.com/kubernetes/enhancements/pull/1111"
            );
            errors.push(Error::required(&path, what));
        }
        text if text.starts_with("unapproved") || text.starts_with("http://") || text.starts_with("https://") => {}
        _ => {
            let what = format!(
                "protected groups must have approval annotation \"{KEY}\" with either a URL or a reason starting with \
                 \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111"
            );
            errors.push(Error::invalid(&path, &approval, what));
        }
    }
}

fn validate_column(column: &View<'_>, path: &Path, errors: &mut ErrorList) {
    let json_path = column.child("jsonPath");
    if column.child("name").is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    let kind = column.child("type");
    match kind.str() {
        "" => errors.push(Error::required(&path.child("type"), "must be one of boolean,date,integer,number,string")),
        "boolean" | "date" | "integer" | "number" | "string" => {}
        _ => {
            let what = "must be one of boolean,date,integer,number,string";
            errors.push(Error::invalid(&path.child("type"), &kind, what));
        }
    }
    let format = column.child("format");
    let formats = ["int32", "int64", "float", "double", "byte", "date", "date-time", "password"];
    if !format.is_empty() && !formats.contains(&format.str()) {
        let what = format!("must be one of {}", "byte,date,date-time,double,float,int32,int64,password");
        errors.push(Error::invalid(&path.child("format"), &format, what));
    }
    let at = path.child("JSONPath");
    if json_path.is_empty() {
        errors.push(Error::required(&at, ""));
    } else {
        errors.extend(check_path(json_path.str(), &at));
    }
}

fn validate_scale(scale: &View<'_>, path: &Path, errors: &mut ErrorList) {
    if !scale.exists() {
        return;
    }
    for (field, prefix, under) in [
        ("specReplicasPath", ".spec.", "should be a json path under .spec"),
        ("statusReplicasPath", ".status.", "should be a json path under .status"),
    ] {
        let value = scale.child_named(field);
        let at = path.child_named(field);
        if value.is_empty() {
            errors.push(Error::required(&at, ""));
        } else if let Some(error) = check_path(value.str(), &at) {
            errors.push(error);
        } else if !value.str().starts_with(prefix) {
            errors.push(Error::invalid(&at, &value, under));
        }
    }
    let selector = scale.child("labelSelectorPath");
    if !selector.is_empty() {
        let at = path.child("labelSelectorPath");
        if let Some(error) = check_path(selector.str(), &at) {
            errors.push(error);
        } else if !selector.str().starts_with(".spec.") && !selector.str().starts_with(".status.") {
            errors.push(Error::invalid(&at, &selector, "should be a json path under either .spec or .status"));
        }
    }
}

/// A version may have so many selectable fields.
const SELECTABLE_FIELDS_MAX: usize = 8;

fn validate_selectable(version: &View<'_>, schema: Option<&Value>, path: &Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    let schema = schema.map(Structural::parse).unwrap_or_default();
    for (i, field) in version.child("selectableFields").items().enumerate() {
        let value = field.child("jsonPath");
        let at = path.index(i).child("jsonPath");
        if value.is_empty() {
            errors.push(Error::required(&at, ""));
            continue;
        }
        let node = match selected(value.str(), &schema) {
            Ok(node) => node,
            Err(why) => {
                errors.push(Error::invalid(&at, &value, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if value.str().trim_start_matches('.').split('.').next() == Some("metadata") {
            errors.push(Error::invalid(&at, &value, "must not point to fields in metadata"));
        }
        if !matches!(&*node.ty, "string" | "integer" | "boolean") {
            errors.push(Error::invalid(&at, &value, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."));
        }
        if !seen.insert(value.str()) {
            errors.push(Error::duplicate(&at, &value));
        }
    }
    if seen.len() > SELECTABLE_FIELDS_MAX {
        errors.push(Error::too_many(path, seen.len(), SELECTABLE_FIELDS_MAX as i64));
    }
}

/// The schema that a path of names, each after its dot, leads to (upstream: `cel.ValidFieldPath` without array notation).
fn selected<'s>(path: &str, schema: &'s Structural) -> Result<&'s Structural, String> {
    let (mut at, mut rest) = (schema, path);
    while let Some(first) = rest.chars().next() {
        if first == '[' {
            return Err("array notation is not allowed".into());
        }
        if first != '.' {
            let end = rest.find(['.', '[', ']']).filter(|end| *end > 0).unwrap_or(rest.len().min(first.len_utf8()));
            let end = if rest.find(['.', '[', ']']).is_none() { rest.len() } else { end };
            return Err(format!("expected [ or . but got: {}", &rest[..end]));
        }
        rest = &rest[1..];
        if rest.is_empty() {
            return Err("unexpected end of JSON path".into());
        }
        // A delimiter where a name should be is taken for the name.
        let end = rest.find(['.', '[', ']']).unwrap_or(rest.len()).max(1);
        let (name, after) = rest.split_at(end);
        at = at.properties.get(name).ok_or("does not refer to a valid field")?;
        rest = after;
    }
    Ok(at)
}
