//! StorageVersionMigration: a wish that all objects of a resource be written again (upstream:
//! `pkg/registry/storagemigration`, `pkg/apis/storagemigration/validation`).

use super::internal::{STORAGE_MIGRATION_SPEC, dump};
use super::resource::{MetadataChecks, Resource};
use super::{checks, declarative, metadata};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, names};

pub struct StorageVersionMigrations;

impl Resource for StorageVersionMigrations {
    fn reset_for_status(&self, object: &mut Value, old: &Value) {
        metadata::reset_for_status(object, old);
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        check_spec(object)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" {
            return check_status(object, old);
        }
        let mut errors = metadata::validate_for(self, object, false);
        errors.extend(check_spec(object));
        errors.extend(metadata::validate_update(object, old));
        metadata::finalizer_names(object, &mut errors);
        let [new, old] = [object, old].map(|o| View::root(o).child("spec"));
        if !checks::same(new.value(), old.value()) {
            let shown = dump(&new, &STORAGE_MIGRATION_SPEC);
            errors.push(Error::invalid(new.path(), shown, checks::IMMUTABLE));
        }
        errors
    }

    /// The object's own are made among the other checks.
    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: subresource == "status", whole: false, whole_first: false }
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        Some(if subresource.is_empty() { &["status"] } else { &["metadata", "spec"] })
    }
}

fn check_spec(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let target = View::root(object).child("spec").child("resource");
    let (group, resource) = (target.child("group"), target.child("resource"));
    if resource.is_empty() {
        errors.push(Error::required(resource.path(), "resource is required to be set"));
    }
    for (view, check) in
        [(resource, names::dns1035_label as fn(&str, bool) -> Vec<String>), (group, names::dns1123_subdomain)]
    {
        let wrong = check(view.str(), false);
        if !view.is_empty() && !wrong.is_empty() {
            errors.push(Error::invalid(view.path(), view.str(), wrong.join(",")));
        }
    }
    errors
}

fn check_status(object: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let [status, before] = [object, old].map(|o| View::root(o).child("status"));
    let (version, conditions) = (status.child("resourceVersion"), status.child("conditions"));
    if !version.is_empty() && !is_version(version.str()) {
        let why = format!("resource version is not well formed: {}", version.str());
        errors.push(Error::invalid(version.path(), version.str(), why));
    }
    checks::conditions(&conditions, &mut errors);
    let version_before = before.child("resourceVersion");
    if !version_before.is_empty() {
        checks::immutable_text(&version, &version_before, &mut errors);
    }
    let is_true = |status: &View<'_>, kind: &str| {
        let first = status.child("conditions").items().find(|c| c.child("type").str() == kind);
        first.is_some_and(|c| c.child("status").str() == "True")
    };
    let shown = declarative::shown(&conditions, declarative::CONDITION);
    let mut refuse = |why: &str| {
        errors.push(Error { bad_value: Some(shown.clone()), ..Error::invalid(conditions.path(), "", why) });
    };
    if is_true(&status, "Succeeded") && is_true(&status, "Failed") {
        refuse("Both success and failed conditions cannot be true at the same time");
    }
    for (kind, word) in [("Succeeded", "Success"), ("Failed", "Failed")] {
        if is_true(&before, kind) && !is_true(&status, kind) {
            refuse(&format!("{word} condition cannot be set to false once it is true"));
        }
    }
    errors
}

/// A number above zero, without leading zeros.
fn is_version(text: &str) -> bool {
    !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn what_has_ended_stays_ended() {
        let status = |kind: &str, value: &str| {
            json!({"status": {"resourceVersion": "12", "conditions": [{"type": kind, "status": value, "reason": "R",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
        };
        let (done, undone) = (status("Succeeded", "True"), status("Succeeded", "False"));
        assert!(check_status(&done, &undone).is_empty());
        let errors = check_status(&undone, &done);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].detail == "Success condition cannot be set to false once it is true");
        let mut other = done.clone();
        other["status"]["resourceVersion"] = json!("012");
        let errors: Vec<String> = check_status(&other, &done).into_iter().map(|e| e.detail).collect();
        assert_eq!(errors, ["resource version is not well formed: 012", "field is immutable"]);
    }
}
