//! What is wrong with a definition (upstream: `pkg/apis/apiextensions/validation`).
//!
//! Upstream's internal type says what all versions say alike once for all; errors speak of that place, and come in the order
//! in which that type is looked at.

use super::printed::{self, Shared};
use super::{is_true, names, schema};
use crate::registry::admissionregistration::webhooks;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Value, names as forms};
use std::collections::HashSet;

/// Where the groups that need approval are explained.
const APPROVAL: &str = "https://github.com/kubernetes/enhancements/pull/1111";
const APPROVED: &str = "api-approved.kubernetes.io";

pub(super) fn check(object: &Value) -> ErrorList {
    let mut errors = check_name(object);
    check_all(object, None, &mut errors);
    errors
}

pub(super) fn check_update(object: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    check_all(object, Some(old), &mut errors);
    errors
}

/// Of a status only the names are looked at.
pub(super) fn check_status(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    names::check(&View::root(object).child("status").child("acceptedNames"), &mut errors);
    errors
}

fn check_all(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let root = View::root(object);
    let spec = root.child("spec");
    check_spec(&spec, old, errors);
    if let Some(old) = old {
        let names = spec.child("names");
        let immutable = |field: View<'_>, pointer: &str, errors: &mut ErrorList| {
            if field.value() != old.pointer(pointer) {
                errors.push(Error::invalid(field.path(), &field, "field is immutable"));
            }
        };
        if is_true(old, "Established") {
            immutable(spec.child("scope"), "/spec/scope", errors);
            immutable(names.child("kind"), "/spec/names/kind", errors);
        }
        immutable(spec.child("group"), "/spec/group", errors);
        immutable(names.child("plural"), "/spec/names/plural", errors);
    }
    errors.extend(check_status(object));
    check_stored_versions(object, errors);
    check_approval(&root, old, errors);
    let preserve = spec.child("preserveUnknownFields");
    let preserved = old.and_then(|old| old.pointer("/spec/preserveUnknownFields")) == Some(&Value::Bool(true));
    if preserve.bool() && !preserved {
        let what =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(Error::invalid(preserve.path(), &preserve, what));
    }
}

fn check_name(object: &Value) -> ErrorList {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let wanted = format!("{}.{}", text("/spec/names/plural"), text("/spec/group"));
    let name = text("/metadata/name");
    if name == wanted {
        return ErrorList::new();
    }
    let path = Path::new("metadata").child("name");
    vec![Error::invalid(&path, name, "must be spec.names.plural+\".\"+spec.group")]
}

fn check_stored_versions(object: &Value, errors: &mut ErrorList) {
    let path = Path::new("status").child("storedVersions");
    let list = |pointer: &str| object.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let (stored, versions) = (list("/status/storedVersions"), list("/spec/versions"));
    if stored.is_empty() {
        errors.push(Error::invalid(&path, &Value::Null, "must have at least one stored version"));
        return;
    }
    // Each stored version speaks for one version of its name.
    let mut left = stored.clone();
    for version in &versions {
        let known = left.iter().position(|name| *name == version["name"]);
        known.map(|at| left.remove(at));
        if version["storage"] != true || known.is_some() {
            continue;
        }
        let what = format!("must have the storage version {}", version["name"].as_str().unwrap_or_default());
        errors.push(Error::invalid(&path, &Value::Array(stored.clone()), what));
    }
    for (i, version) in stored.iter().enumerate() {
        if !versions.iter().any(|v| v["name"] == *version) {
            let name = version.as_str().unwrap_or_default();
            let what = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a \
                 storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            errors.push(Error::invalid(&path.index(i), version, what));
        }
    }
}

/// Whether all versions say the same of a field.
fn is_shared(versions: &[View<'_>], name: &'static str) -> bool {
    let said = |version: &View<'_>| version.child(name).value().cloned();
    versions.windows(2).all(|pair| said(&pair[0]) == said(&pair[1]))
}

fn has_status(subresources: &View<'_>) -> bool {
    subresources.child("status").exists()
}

fn check_spec(spec: &View<'_>, old: Option<&Value>, errors: &mut ErrorList) {
    check_group(&spec.child("group"), errors);
    let scope = spec.child("scope");
    match scope.str() {
        "Cluster" | "Namespaced" => {}
        "" => errors.push(Error::required(scope.path(), "")),
        _ => errors.push(Error::not_supported(scope.path(), &scope, &["Cluster", "Namespaced"])),
    }
    let versions: Vec<View<'_>> = spec.child("versions").items().collect();
    let versions_at = spec.child("versions").path().clone();
    let schema_of = |version: &View<'_>| version.child("schema").child("openAPIV3Schema").value().cloned();
    for (i, version) in versions.iter().enumerate() {
        if schema_of(version).is_none() {
            let at = versions_at.index(i).child("schema").child("openAPIV3Schema");
            errors.push(Error::required(&at, ""));
        }
    }
    let preserve = spec.child("preserveUnknownFields");
    if preserve.bool() && versions.iter().filter_map(schema_of).any(|schema| has_defaults(&schema)) {
        errors.push(Error::invalid(preserve.path(), true, "must be false in order to use defaults in the schema"));
    }
    let shared = Shared {
        schema: is_shared(&versions, "schema"),
        subresources: is_shared(&versions, "subresources"),
        columns: is_shared(&versions, "additionalPrinterColumns"),
        selectable: is_shared(&versions, "selectableFields"),
    };
    let any_status = versions.iter().any(|version| has_status(&version.child("subresources")));
    let old_version = |name: &str| {
        let versions = old?.pointer("/spec/versions")?.as_array()?;
        versions.iter().find(|version| version["name"] == name)
    };
    let part = |version: &View<'_>, at: &Path, what: Part, has_status: bool, errors: &mut ErrorList| {
        let before = old_version(version.child("name").str());
        check_part(version, before, at, what, has_status, errors);
    };
    for (i, version) in versions.iter().enumerate() {
        let at = versions_at.index(i);
        names::check_label(&View::new(version.child("name").value(), at.child("name")), errors);
        check_deprecation(version, &at, errors);
        for (what, is_shared) in Part::each(&shared) {
            if !is_shared {
                let status = has_status(&version.child("subresources"));
                part(version, &at.child(what.of_version()), what, status, errors);
            }
        }
    }
    check_versions(&versions, &versions_at, &shared, errors);
    if let Some(first) = versions.first().filter(|first| !first.child("name").is_empty()) {
        names::check_label(&View::new(first.child("name").value(), spec.path().child("version")), errors);
    }
    names::check_required(&spec.child("names"), errors);
    names::check(&spec.child("names"), errors);
    if let Some(first) = versions.first() {
        for (what, is_shared) in Part::each(&shared) {
            if is_shared {
                part(first, &spec.path().child(what.of_all()), what, any_status, errors);
            }
        }
    }
    let conversion = spec.child("conversion");
    let strategy = conversion.child("strategy");
    if preserve.bool() && conversion.exists() && strategy.str() != "None" {
        errors.push(Error::invalid(strategy.path(), &strategy, "must be None if spec.preserveUnknownFields is true"));
    }
    check_conversion(&conversion, old, errors);
}

/// What versions may say each for itself, or all alike.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Schema,
    Subresources,
    Columns,
    Selectable,
}

impl Part {
    fn each(shared: &Shared) -> [(Self, bool); 4] {
        [
            (Part::Schema, shared.schema),
            (Part::Subresources, shared.subresources),
            (Part::Columns, shared.columns),
            (Part::Selectable, shared.selectable),
        ]
    }

    fn of_version(self) -> &'static str {
        match self {
            Part::Schema => "schema",
            Part::Subresources => "subresources",
            Part::Columns => "additionalPrinterColumns",
            Part::Selectable => "selectableFields",
        }
    }

    fn of_all(self) -> &'static str {
        if self == Part::Schema { "validation" } else { self.of_version() }
    }
}

fn check_part(
    version: &View<'_>,
    before: Option<&Value>,
    at: &Path,
    what: Part,
    has_status: bool,
    errors: &mut ErrorList,
) {
    let found = version.child(what.of_version());
    let is_same = before.and_then(|before| before.get(what.of_version())) == found.value();
    let openapi = version.child("schema").child("openAPIV3Schema");
    match what {
        Part::Schema => {
            if let Some(schema) = openapi.value() {
                schema::check(schema, at, has_status, before.is_some() && is_same, errors);
            }
        }
        Part::Subresources => schema::check_scale(&found, at, errors),
        Part::Columns => schema::check_columns(&found, at, errors),
        Part::Selectable => {
            if found.is_empty() {
                return;
            }
            match openapi.value() {
                Some(schema) => schema::check_selectable(&found, schema, at, before.is_some() && is_same, errors),
                None => {
                    let why = "may only be set when `version.schema.openAPIV3Schema` is not included";
                    errors.push(Error::invalid(at, "", why));
                }
            }
        }
    }
}

fn has_defaults(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => {
            map.iter().any(|(name, found)| name == "default" && !found.is_null() || has_defaults(found))
        }
        Value::Array(items) => items.iter().any(has_defaults),
        _ => false,
    }
}

fn check_group(group: &View<'_>, errors: &mut ErrorList) {
    if group.is_empty() {
        errors.push(Error::required(group.path(), ""));
        return;
    }
    let wrong = forms::dns1123_subdomain(group.str(), false);
    if !wrong.is_empty() {
        errors.push(Error::invalid(group.path(), group, wrong.join(",")));
    } else if !group.str().contains('.') {
        errors.push(Error::invalid(group.path(), group, "should be a domain with at least one dot"));
    }
}

fn check_deprecation(version: &View<'_>, at: &Path, errors: &mut ErrorList) {
    const LENGTH_MAX: usize = 256;
    let warning = version.child("deprecationWarning");
    if !warning.exists() {
        return;
    }
    let mut refuse = |why: String| errors.push(Error::invalid(&at.child("deprecationWarning"), &warning, why));
    if !version.child("deprecated").bool() {
        refuse("can only be set for deprecated versions".into());
        return;
    }
    let text = warning.str();
    if text.len() > LENGTH_MAX {
        refuse(format!("must be <= {LENGTH_MAX} characters long"));
    }
    if text.is_empty() {
        refuse("must not be an empty string".into());
    }
    // Of spaces only the plain one is printable.
    let unprintable = |c: char| c.is_control() || c != ' ' && c.is_whitespace();
    if let Some(index) = text.find(unprintable) {
        let what = "must only contain printable UTF-8 characters; non-printable character found at index";
        refuse(format!("{what} {index}"));
    }
}

fn check_versions(versions: &[View<'_>], path: &Path, shared: &Shared, errors: &mut ErrorList) {
    let mut refuse = |detail: &str| {
        let shown = printed::versions(versions, shared);
        errors.push(Error { bad_value: Some(shown), ..Error::invalid(path, "", detail) });
    };
    let mut seen = HashSet::new();
    if versions.iter().any(|v| !seen.insert(v.child("name").str())) {
        refuse("must contain unique version names");
    }
    if versions.iter().filter(|v| v.child("storage").bool()).count() != 1 {
        refuse("must have exactly one version marked as storage version");
    }
}

fn check_conversion(conversion: &View<'_>, old: Option<&Value>, errors: &mut ErrorList) {
    if !conversion.exists() {
        return;
    }
    let path = conversion.path();
    let webhook = conversion.child("webhook");
    let client = webhook.child("clientConfig");
    let client_at = path.child("webhookClientConfig");
    let reviews = webhook.child("conversionReviewVersions");
    let reviews_at = path.child("conversionReviewVersions");
    let strategy = conversion.child("strategy");
    match strategy.str() {
        "" => errors.push(Error::required(strategy.path(), "")),
        "None" | "Webhook" => {}
        _ => errors.push(Error::not_supported(strategy.path(), &strategy, &["None", "Webhook"])),
    }
    if strategy.str() != "Webhook" {
        let what = "should not be set when strategy is not set to Webhook";
        if client.exists() {
            errors.push(Error::forbidden(&client_at, what));
        }
        if !reviews.is_empty() {
            errors.push(Error::forbidden(&reviews_at, what));
        }
        return;
    }
    let (url, service) = (client.child("url"), client.child("service"));
    if !client.exists() {
        errors.push(Error::required(&client_at, "required when strategy is set to Webhook"));
    } else if url.exists() == service.exists() {
        errors.push(Error::required(&client_at, "exactly one of url or service is required"));
    } else if url.exists() {
        webhooks::check_url(&View::new(url.value(), client_at.child("url")), errors);
    } else {
        webhooks::check_service(&View::new(service.value(), client_at.child("service")), errors);
    }
    let old_reviews = old.and_then(|old| old.pointer("/spec/conversion/webhook/conversionReviewVersions"));
    let was_recognized = old_reviews
        .and_then(Value::as_array)
        .is_none_or(|old| old.is_empty() || old.iter().filter_map(Value::as_str).any(is_review_version));
    check_review_versions(&View::new(reviews.value(), reviews_at), was_recognized, errors);
}

fn is_review_version(version: &str) -> bool {
    matches!(version, "v1" | "v1beta1")
}

fn check_review_versions(versions: &View<'_>, must_be_recognized: bool, errors: &mut ErrorList) {
    if versions.is_empty() {
        errors.push(Error::required(versions.path(), ""));
        return;
    }
    let mut seen = HashSet::new();
    for version in versions.items() {
        if !seen.insert(version.str().to_owned()) {
            errors.push(Error::invalid(version.path(), version.str(), "duplicate version"));
            continue;
        }
        for why in forms::dns1035_label(version.str(), false) {
            errors.push(Error::invalid(version.path(), version.str(), why));
        }
    }
    if must_be_recognized && !seen.iter().any(|version| is_review_version(version)) {
        errors.push(Error::invalid(versions.path(), versions, "must include at least one of v1, v1beta1"));
    }
}

/// What an annotation says of the approval of a group.
#[derive(PartialEq, Eq)]
enum Approval {
    Missing,
    Bypassed,
    Approved,
    Invalid,
}

fn approval(annotation: &str) -> Approval {
    let is_url = annotation.split_once("://").is_some_and(|(scheme, rest)| {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        !scheme.is_empty() && !host.is_empty() && !annotation.contains(char::is_whitespace)
    });
    match annotation {
        "" => Approval::Missing,
        text if text.starts_with("unapproved") => Approval::Bypassed,
        _ if is_url => Approval::Approved,
        _ => Approval::Invalid,
    }
}

/// Groups of the community need its approval. What they have of it may stay as it is.
fn check_approval(root: &View<'_>, old: Option<&Value>, errors: &mut ErrorList) {
    let group = root.child("spec").child("group").str();
    let protected = |suffix: &str| group == suffix || group.ends_with(&format!(".{suffix}"));
    if !protected("k8s.io") && !protected("kubernetes.io") {
        return;
    }
    let annotations = root.child("metadata").child("annotations");
    let found = annotations.child_named(APPROVED);
    let path = annotations.path().key(APPROVED);
    let state = approval(found.str());
    let before = |old: &Value| approval(old["metadata"]["annotations"][APPROVED].as_str().unwrap_or_default());
    if old.is_some_and(|old| before(old) == state) {
        return;
    }
    let what = format!("protected groups must have approval annotation \"{APPROVED}\"");
    match state {
        Approval::Missing => errors.push(Error::required(&path, format!("{what}, see {APPROVAL}"))),
        Approval::Bypassed | Approval::Approved => {}
        Approval::Invalid => {
            let why = format!("{what} with either a URL or a reason starting with \"unapproved\", see {APPROVAL}");
            errors.push(Error::invalid(&path, &found, why));
        }
    }
}
