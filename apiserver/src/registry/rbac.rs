//! Roles and their bindings (upstream: `pkg/registry/rbac` and `pkg/apis/rbac`).
//!
//! That nobody grants more than they hold is checked by [`crate::admission::escalation`].

pub mod bootstrap;

use super::checks::{self, SelectorLeniency};
use super::resource::{MetadataChecks, Resource};
use crate::authorization::rbac::GROUP;
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorKind, ErrorList, Path, View};
use coxswain_api::names;
use serde_json::json;

/// `Role` and `ClusterRole`.
pub struct Role {
    pub namespaced: bool,
}

/// `RoleBinding` and `ClusterRoleBinding`.
pub struct Binding {
    pub namespaced: bool,
}

impl Resource for Role {
    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty(), whole_first: true }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let root = View::root(object);
        let mut errors = ErrorList::new();
        for rule in root.child("rules").items() {
            check_rule(&rule, self.namespaced, &mut errors);
        }
        let aggregation = root.child("aggregationRule");
        if !self.namespaced && aggregation.exists() {
            let selectors = aggregation.child("clusterRoleSelectors");
            if selectors.is_empty() {
                let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
                errors.push(Error::required(selectors.path(), why));
            }
            for selector in selectors.items() {
                checks::label_selector(&selector, SelectorLeniency::default(), &mut errors);
                if coxswain_api::selector::Selector::from_label_selector(selector.value()).is_err() {
                    // Upstream shows the selector that it could not make.
                    errors.push(Error::invalid(selector.path(), &Value::Null, "invalid label selector."));
                }
            }
        }
        errors
    }

    fn validate_name(&self, name: &str, _prefix: bool) -> Vec<String> {
        names::path_segment(name, false)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

impl Resource for Binding {
    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty(), whole_first: true }
    }

    fn set_defaults(&self, object: &mut Value) {
        let role_ref = object.get_mut("roleRef").filter(|r| r.is_object());
        if let Some(role_ref) = role_ref
            && role_ref["apiGroup"].as_str().unwrap_or_default().is_empty()
        {
            role_ref["apiGroup"] = json!(GROUP);
        }
        let subjects = object.get_mut("subjects").and_then(Value::as_array_mut);
        for subject in subjects.into_iter().flatten() {
            let of_rbac = matches!(subject["kind"].as_str(), Some("User" | "Group"));
            if of_rbac && subject["apiGroup"].as_str().unwrap_or_default().is_empty() {
                subject["apiGroup"] = json!(GROUP);
            }
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let root = View::root(object);
        let mut errors = ErrorList::new();
        let role_ref = root.child("roleRef");
        let (group, kind, name) = (role_ref.child("apiGroup"), role_ref.child("kind"), role_ref.child("name"));
        if group.str() != GROUP {
            errors.push(Error::not_supported(group.path(), group.str(), &[GROUP]));
        }
        let kinds: &[&str] = if self.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        if !kinds.contains(&kind.str()) {
            errors.push(Error::not_supported(kind.path(), kind.str(), kinds));
        }
        if name.str().is_empty() {
            errors.push(Error::required(name.path(), ""));
        } else {
            for why in names::path_segment(name.str(), false) {
                errors.push(Error::invalid(name.path(), name.str(), why));
            }
        }
        for subject in root.child("subjects").items() {
            check_subject(&subject, self.namespaced, &mut errors);
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = self.validate(ctx, object);
        if object["roleRef"] != old["roleRef"] {
            let part = |key: &str| object["roleRef"][key].as_str().unwrap_or_default().to_owned();
            // Upstream shows the struct with its Go names.
            let shown = format!(
                "{{\"APIGroup\":{},\"Kind\":{},\"Name\":{}}}",
                json!(part("apiGroup")),
                json!(part("kind")),
                json!(part("name"))
            );
            errors.push(Error {
                kind: ErrorKind::Invalid,
                field: Path::new("roleRef").to_string(),
                bad_value: Some(shown),
                detail: "cannot change roleRef".into(),
            });
        }
        errors
    }

    fn validate_name(&self, name: &str, _prefix: bool) -> Vec<String> {
        names::path_segment(name, false)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

fn check_rule(rule: &View<'_>, namespaced: bool, errors: &mut ErrorList) {
    let (verbs, urls) = (rule.child("verbs"), rule.child("nonResourceURLs"));
    let (groups, resources) = (rule.child("apiGroups"), rule.child("resources"));
    if verbs.is_empty() {
        errors.push(Error::required(verbs.path(), "verbs must contain at least one value"));
    }
    if !urls.is_empty() {
        if namespaced {
            errors.push(Error::invalid(urls.path(), &urls, "namespaced rules cannot apply to non-resource URLs"));
        }
        if !groups.is_empty() || !resources.is_empty() || !rule.child("resourceNames").is_empty() {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(Error::invalid(urls.path(), &urls, why));
        }
        return;
    }
    if groups.is_empty() {
        errors.push(Error::required(groups.path(), "resource rules must supply at least one api group"));
    }
    if resources.is_empty() {
        errors.push(Error::required(resources.path(), "resource rules must supply at least one resource"));
    }
}

fn check_subject(subject: &View<'_>, namespaced: bool, errors: &mut ErrorList) {
    let (kind, name, group) = (subject.child("kind"), subject.child("name"), subject.child("apiGroup"));
    if name.str().is_empty() {
        errors.push(Error::required(name.path(), ""));
    }
    match kind.str() {
        "ServiceAccount" => {
            if !name.str().is_empty() {
                for why in names::dns1123_subdomain(name.str(), false) {
                    errors.push(Error::invalid(name.path(), name.str(), why));
                }
            }
            if !group.str().is_empty() {
                errors.push(Error::not_supported(group.path(), group.str(), &[""]));
            }
            let namespace = subject.child("namespace");
            if !namespaced && namespace.str().is_empty() {
                errors.push(Error::required(namespace.path(), ""));
            }
        }
        "User" | "Group" => {
            if group.str() != GROUP {
                errors.push(Error::not_supported(group.path(), group.str(), &[GROUP]));
            }
        }
        other => errors.push(Error::not_supported(kind.path(), other, &["ServiceAccount", "User", "Group"])),
    }
}
