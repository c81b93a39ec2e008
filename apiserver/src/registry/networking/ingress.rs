//! Ingress and IngressClass: how requests from outside reach Services.

use crate::registry::checks;
use crate::registry::defaults::set_default;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Value, json, names};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const CONTROLLER_BYTES_MAX: i64 = 250;
const PATH_SEQUENCES: &[&str] = &["//", "/./", "/../", "%2f", "%2F"];
const PATH_SUFFIXES: &[&str] = &["/..", "/."];

pub struct Ingresses;

impl Resource for Ingresses {
    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty(), whole_first: false }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (root, mut errors) = (View::root(object), ErrorList::new());
        spec(&root.child("spec"), Leniency::default(), &mut errors);
        let annotation = root.child("metadata").child("annotations").child_named(CLASS_ANNOTATION);
        let class = root.child("spec").child("ingressClassName");
        if annotation.exists() && class.exists() && annotation.str() != class.str() {
            // Upstream names the annotation as a field, and leaves the metadata out.
            let path = Path::new("annotations").child(CLASS_ANNOTATION);
            let why = "must match `ingressClassName` when both are specified";
            errors.push(Error::invalid(&path, annotation.str(), why));
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        if subresource != "status" {
            let leniency = Leniency::of(&View::root(old).child("spec"));
            spec(&View::root(object).child("spec"), leniency, &mut errors);
            return errors;
        }
        let entries = |of| View::root(of).child("status").child("loadBalancer").child("ingress");
        let before = entries(old);
        let known: Vec<View<'_>> = before.items().map(|i| i.child("ip")).collect();
        let known: Vec<&str> = known.iter().map(View::str).collect();
        for ingress in entries(object).items() {
            let (ip, host) = (ingress.child("ip"), ingress.child("hostname"));
            if !ip.is_empty() {
                errors.extend(names::ip::check_ip_legacy(ip.path(), ip.str(), true, &known));
            }
            if !host.is_empty() {
                checks::dns_subdomain(&host, &mut errors);
                not_an_address(&host, &mut errors);
            }
        }
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        let class = View::root(object).child("metadata").child("annotations").child_named(CLASS_ANNOTATION);
        if old.is_some() || !class.exists() {
            return Vec::new();
        }
        vec![format!("annotation \"{CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead")]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// What an older Ingress had wrong, and its update may keep.
#[derive(Clone, Copy, Default)]
struct Leniency {
    secret_names: bool,
    wildcard_rules: bool,
}

impl Leniency {
    fn of(spec: &View<'_>) -> Leniency {
        let wrong_secret = |tls: View<'_>| {
            let name = tls.child("secretName");
            !name.is_empty() && !names::dns1123_subdomain(name.str(), false).is_empty()
        };
        let wrong_rule = |r: View<'_>| {
            let mut errors = ErrorList::new();
            http(&r.child("http"), &mut errors);
            r.child("host").str().contains('*') && !errors.is_empty()
        };
        Leniency {
            secret_names: spec.child("tls").items().any(wrong_secret),
            wildcard_rules: spec.child("rules").items().any(wrong_rule),
        }
    }
}

fn spec(spec: &View<'_>, leniency: Leniency, errors: &mut ErrorList) {
    let (rules, default) = (spec.child("rules"), spec.child("defaultBackend"));
    if rules.is_empty() && !default.exists() {
        errors.push(Error::invalid(spec.path(), &rules, "either `defaultBackend` or `rules` must be specified"));
    }
    if default.exists() {
        backend(&default, errors);
    }
    rules.items().for_each(|r| rule(&r, leniency, errors));
    for tls in spec.child("tls").items() {
        for host in tls.child("hosts").items() {
            checks::all(&host, host_name(host.str()), errors);
        }
        let secret = tls.child("secretName");
        if !secret.is_empty() && !leniency.secret_names {
            checks::dns_subdomain(&secret, errors);
        }
    }
    let class = spec.child("ingressClassName");
    if class.exists() {
        checks::dns_subdomain(&class, errors);
    }
}

fn host_name(host: &str) -> Vec<String> {
    if host.contains('*') { names::wildcard_dns1123_subdomain(host) } else { names::dns1123_subdomain(host, false) }
}

fn not_an_address(host: &View<'_>, errors: &mut ErrorList) {
    if names::ip::parse_ip_sloppy(host.str()).is_some() {
        errors.push(Error::invalid(host.path(), host.str(), "must be a DNS name, not an IP address"));
    }
}

fn rule(rule: &View<'_>, leniency: Leniency, errors: &mut ErrorList) {
    let host = rule.child("host");
    if !host.is_empty() {
        not_an_address(&host, errors);
        checks::all(&host, host_name(host.str()), errors);
    }
    if !leniency.wildcard_rules || !host.str().contains('*') {
        http(&rule.child("http"), errors);
    }
}

fn http(http: &View<'_>, errors: &mut ErrorList) {
    if !http.exists() {
        return;
    }
    let paths = http.child("paths");
    if paths.is_empty() {
        errors.push(Error::required(paths.path(), ""));
    }
    for entry in paths.items() {
        if !entry.child("pathType").exists() {
            errors.push(Error::required(entry.child("pathType").path(), "pathType must be specified"));
            continue;
        }
        path(&entry, errors);
        backend(&entry.child("backend"), errors);
    }
}

fn path(entry: &View<'_>, errors: &mut ErrorList) {
    let (kind, path) = (entry.child("pathType"), entry.child("path"));
    let text = path.str();
    match kind.str() {
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                errors.push(Error::invalid(path.path(), text, "must be an absolute path"));
            }
            if text.is_empty() {
                return;
            }
            for sequence in PATH_SEQUENCES.iter().filter(|s| text.contains(**s)) {
                errors.push(Error::invalid(path.path(), text, format!("must not contain '{sequence}'")));
            }
            for suffix in PATH_SUFFIXES.iter().filter(|s| text.ends_with(**s)) {
                errors.push(Error::invalid(path.path(), text, format!("cannot end with '{suffix}'")));
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                errors.push(Error::invalid(path.path(), text, "must be an absolute path"));
            }
        }
        other => {
            errors.push(Error::not_supported(kind.path(), other, &["Exact", "ImplementationSpecific", "Prefix"]));
        }
    }
}

fn backend(backend: &View<'_>, errors: &mut ErrorList) {
    let (resource, service) = (backend.child("resource"), backend.child("service"));
    match (resource.exists(), service.exists()) {
        (true, true) => {
            errors.push(Error::invalid(backend.path(), "", "cannot set both resource and service backends"))
        }
        (true, false) => typed_reference(&resource, errors),
        (false, true) => service_backend(backend, &service, errors),
        (false, false) => errors.push(Error::invalid(backend.path(), "", "resource or service backend is required")),
    }
}

fn service_backend(backend: &View<'_>, service: &View<'_>, errors: &mut ErrorList) {
    let name = service.child("name");
    if name.is_empty() {
        errors.push(Error::required(name.path(), ""));
    } else {
        checks::all(&name, names::dns1123_label(name.str(), false), errors);
    }
    let port = service.child("port");
    let (by_name, number) = (port.child("name"), port.child("number"));
    match (!by_name.is_empty(), number.i64() != 0) {
        (true, true) => errors.push(Error::invalid(backend.path(), "", "cannot set both port name & port number")),
        (true, false) => checks::all(&by_name, names::port_name(by_name.str()), errors),
        (false, true) => {
            for why in names::port_number(number.i64()) {
                errors.push(Error::invalid(number.path(), number.i64(), why));
            }
        }
        (false, false) => errors.push(Error::required(backend.path(), "port name or number is required")),
    }
}

/// A `TypedLocalObjectReference` of a backend or of a class's parameters.
fn typed_reference(reference: &View<'_>, errors: &mut ErrorList) {
    let (group, kind, name) = (reference.child("apiGroup"), reference.child("kind"), reference.child("name"));
    if group.exists() {
        checks::dns_subdomain(&group, errors);
    }
    if kind.is_empty() {
        errors.push(Error::required(kind.path(), ""));
    } else {
        checks::all(&kind, names::path_segment(kind.str(), false), errors);
    }
    if name.is_empty() {
        errors.push(Error::required(name.path(), ""));
    } else {
        checks::all(&name, names::path_segment(name.str(), false), errors);
    }
}

pub struct IngressClasses;

impl Resource for IngressClasses {
    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty(), whole_first: false }
    }

    fn set_defaults(&self, object: &mut Value) {
        let parameters = object.get_mut("spec").and_then(|s| s.get_mut("parameters"));
        if let Some(parameters) = parameters.filter(|p| p.is_object()) {
            set_default(parameters, "scope", || json!("Cluster"));
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (spec, mut errors) = (View::root(object).child("spec"), ErrorList::new());
        let controller = spec.child("controller");
        if controller.len() as i64 > CONTROLLER_BYTES_MAX {
            errors.push(Error::too_long(controller.path(), CONTROLLER_BYTES_MAX));
        }
        checks::domain_prefixed_path(&controller, &mut errors);
        let parameters = spec.child("parameters");
        if parameters.exists() {
            class_parameters(&parameters, &mut errors);
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let (new, old) = (View::root(object).child("spec"), View::root(old).child("spec"));
        let mut errors = ErrorList::new();
        checks::immutable_text(&new.child("controller"), &old.child("controller"), &mut errors);
        errors.extend(self.validate(ctx, object));
        errors
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn class_parameters(parameters: &View<'_>, errors: &mut ErrorList) {
    typed_reference(parameters, errors);
    let (scope, namespace) = (parameters.child("scope"), parameters.child("namespace"));
    if !scope.exists() {
        errors.push(Error::required(scope.path(), ""));
        return;
    }
    checks::supported_value(&scope, &["Cluster", "Namespace"], errors);
    match scope.str() {
        "Namespace" if !namespace.exists() => {
            errors.push(Error::required(namespace.path(), "`parameters.scope` is set to 'Namespace'"));
        }
        "Namespace" => checks::dns_label(&namespace, errors),
        "Cluster" if namespace.exists() => {
            errors.push(Error::forbidden(namespace.path(), "`parameters.scope` is set to 'Cluster'"));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut errors = ErrorList::new();
        let leniency = old.map(|old| Leniency::of(&View::root(old))).unwrap_or_default();
        spec(&View::root(object), leniency, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn updates_may_keep_what_was_wrong() {
        let path = |name: &str| json!({"path": "/", "pathType": "Prefix", "backend": {"service": {"name": name, "port": {"number": 80}}}});
        let secret = json!({"rules": [{"host": "a.example"}], "tls": [{"secretName": "Not_Good"}]});
        assert_eq!(errors(&secret, None).len(), 1);
        assert!(errors(&secret, Some(&secret)).is_empty());
        let wildcard = json!({"rules": [{"host": "*.example", "http": {"paths": []}}]});
        assert_eq!(errors(&wildcard, None), ["rules[0].http.paths: Required value"]);
        assert!(errors(&wildcard, Some(&wildcard)).is_empty());
        // Services may have names that begin with a digit.
        assert!(errors(&json!({"rules": [{"http": {"paths": [path("1a")]}}]}), None).is_empty());
        let bare = json!({"rules": [{"http": {"paths": [{"path": "/", "backend": {}}]}}]});
        assert_eq!(
            errors(&bare, None),
            ["rules[0].http.paths[0].pathType: Required value: pathType must be specified"]
        );
    }
}
