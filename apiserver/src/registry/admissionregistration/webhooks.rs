//! `validatingwebhookconfigurations` and `mutatingwebhookconfigurations`.

use super::{HOOK_NAMES, check_conditions, check_rule, default, default_scopes};
use crate::admission::cel::Names;
use crate::registry::checks::{self, SelectorLeniency};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, names};
use serde_json::json;

pub struct WebhookConfigurations {
    pub mutating: bool,
}

impl Resource for WebhookConfigurations {
    fn set_defaults(&self, object: &mut Value) {
        for hook in object.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
            default(hook, "failurePolicy", json!("Fail"));
            default(hook, "matchPolicy", json!("Equivalent"));
            default(hook, "namespaceSelector", json!({}));
            default(hook, "objectSelector", json!({}));
            default(hook, "timeoutSeconds", json!(10));
            if self.mutating {
                default(hook, "reinvocationPolicy", json!("Never"));
            }
            if let Some(service) = hook.pointer_mut("/clientConfig/service") {
                default(service, "port", json!(443));
            }
            default_scopes(hook, "rules");
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let mut seen = Vec::new();
        for hook in View::root(object).child("webhooks").items() {
            self.check_hook(&hook, &mut errors);
            check_versions(&hook.child("admissionReviewVersions"), &mut errors);
            let name = hook.child("name");
            if !name.is_empty() && seen.contains(&name.str()) {
                errors.push(Error::duplicate(name.path(), name.str()));
            }
            seen.push(name.str());
        }
        errors
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    /// Upstream checks finalizers of this group by the general rules only.
    fn restricts_finalizers(&self) -> bool {
        false
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: false, whole: false, whole_first: false }
    }
}

impl WebhookConfigurations {
    fn check_hook(&self, hook: &View<'_>, errors: &mut ErrorList) {
        let name = hook.child("name");
        if name.is_empty() {
            errors.push(Error::required(name.path(), ""));
        } else {
            let wrong = names::dns1123_subdomain(name.str(), false);
            if !wrong.is_empty() {
                errors.push(Error::invalid(name.path(), name.str(), wrong.join(",")));
            } else if name.str().split('.').count() < 3 {
                let why = "should be a domain with at least three segments separated by dots";
                errors.push(Error::invalid(name.path(), name.str(), why));
            }
        }
        for rule in hook.child("rules").items() {
            check_rule(&rule, errors);
        }
        for (key, supported) in [("failurePolicy", ["Fail", "Ignore"]), ("matchPolicy", ["Equivalent", "Exact"])] {
            let value = hook.child_named(key);
            if value.exists() {
                checks::supported_value(&value, &supported, errors);
            }
        }
        let side_effects = hook.child("sideEffects");
        match side_effects.opt_str() {
            None => errors.push(Error::required(side_effects.path(), "must specify one of None, NoneOnDryRun")),
            Some(_) => checks::supported_value(&side_effects, &["None", "NoneOnDryRun"], errors),
        }
        let timeout = hook.child("timeoutSeconds");
        if timeout.opt_i64().is_some_and(|seconds| !(1..=30).contains(&seconds)) {
            let why = "the timeout value must be between 1 and 30 seconds";
            errors.push(Error::invalid(timeout.path(), timeout.i64(), why));
        }
        for key in ["namespaceSelector", "objectSelector"] {
            let selector = hook.child_named(key);
            if selector.exists() {
                checks::label_selector(&selector, SelectorLeniency::default(), errors);
            }
        }
        if self.mutating {
            let again = hook.child("reinvocationPolicy");
            if again.exists() {
                checks::supported_value(&again, &["IfNeeded", "Never"], errors);
            }
        }
        check_client(&hook.child("clientConfig"), errors);
        check_conditions(&hook.child("matchConditions"), &Names::of(&HOOK_NAMES), errors);
    }
}

fn check_versions(versions: &View<'_>, errors: &mut ErrorList) {
    if versions.is_empty() {
        errors.push(Error::required(versions.path(), "must specify one of v1, v1beta1"));
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for version in versions.items() {
        if seen.contains(&version.str()) {
            errors.push(Error::invalid(version.path(), version.str(), "duplicate version"));
            continue;
        }
        seen.push(version.str());
        checks::all(&version, names::dns1035_label(version.str(), false), errors);
    }
    if !seen.iter().any(|v| matches!(*v, "v1" | "v1beta1")) {
        errors.push(Error::invalid(versions.path(), versions, "must include at least one of v1, v1beta1"));
    }
}

fn check_client(client: &View<'_>, errors: &mut ErrorList) {
    let (url, service) = (client.child("url"), client.child("service"));
    if url.exists() == service.exists() {
        errors.push(Error::required(client.path(), "exactly one of url or service is required"));
        return;
    }
    if url.exists() { check_url(&url, errors) } else { check_service(&service, errors) }
}

pub(in crate::registry) fn check_url(url: &View<'_>, errors: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let text = url.str();
    let (scheme, rest) = text.split_once(':').filter(|(scheme, _)| is_scheme(scheme)).unwrap_or(("", text));
    if scheme != "https" {
        errors.push(Error::invalid(url.path(), scheme, format!("'https' is the only allowed URL scheme{FORM}")));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    // Without the two slashes everything is a path, and no host.
    let authority = rest.strip_prefix("//").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        errors.push(Error::invalid(url.path(), host, format!("host must be specified{FORM}")));
    }
    for (part, what) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            errors.push(Error::invalid(url.path(), part, what));
        }
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

pub(in crate::registry) fn check_service(service: &View<'_>, errors: &mut ErrorList) {
    // Upstream passes the two in the other order, so that each is reported as the other.
    for (key, reported) in [("namespace", "name"), ("name", "namespace")] {
        if service.child_named(key).is_empty() {
            errors.push(Error::required(service.child_named(reported).path(), ""));
        }
    }
    let port = service.child("port");
    if port.exists() && !(1..=65535).contains(&port.i64()) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(Error::invalid(port.path(), port.i64(), why));
    }
    let path = service.child("path");
    let text = path.str();
    if text.is_empty() || text == "/" {
        return;
    }
    if text == "//" {
        errors.push(Error::invalid(path.path(), text, "segment[0] may not be empty"));
        return;
    }
    if !text.starts_with('/') {
        errors.push(Error::invalid(path.path(), text, "must start with a '/'"));
    }
    // The first letter is taken for the slash, whatever it is.
    let mut letters = text.chars();
    letters.next();
    let inner = letters.as_str();
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    for (index, segment) in inner.split('/').enumerate() {
        if segment.is_empty() {
            errors.push(Error::invalid(path.path(), text, format!("segment[{index}] may not be empty")));
            continue;
        }
        for why in names::dns1123_subdomain(segment, false) {
            errors.push(Error::invalid(path.path(), text, format!("segment[{index}]: {why}")));
        }
    }
}
