//! Ingress and IngressClass: how requests from outside reach Services.

use crate::registry::checks;
use crate::registry::defaults::set_default;
use crate::registry::resource::Resource;
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, json, names};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const CONTROLLER_BYTES_MAX: i64 = 250;
const PATH_SEQUENCES: &[&str] = &["//", "/./", "/../", "%2f", "%2F"];
const PATH_SUFFIXES: &[&str] = &["/..", "/."];

pub struct Ingresses;

impl Resource for Ingresses {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (root, mut errors) = (View::root(object), ErrorList::new());
        let annotation = root.child("metadata").child("annotations").path().key(CLASS_ANNOTATION);
        let class = root.child("metadata").child("annotations").child_named(CLASS_ANNOTATION);
        if class.exists() && root.child("spec").child("ingressClassName").exists() {
            errors.push(Error::invalid(&annotation, class.str(), "can not be set when the class field is also set"));
        }
        spec(&root.child("spec"), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, _old: &Value, subresource: &str) -> ErrorList {
        let (root, mut errors) = (View::root(object), ErrorList::new());
        if subresource != "status" {
            spec(&root.child("spec"), &mut errors);
            return errors;
        }
        for ingress in root.child("status").child("loadBalancer").child("ingress").items() {
            let (ip, host) = (ingress.child("ip"), ingress.child("hostname"));
            if !ip.is_empty() {
                errors.extend(names::ip::check_ip(ip.path(), ip.str()));
            }
            if !host.is_empty() {
                checks::dns_subdomain(&host, &mut errors);
                if host.str().parse::<std::net::IpAddr>().is_ok() {
                    let why = "must be a DNS name, not an IP address";
                    errors.push(Error::invalid(host.path(), host.str(), why));
                }
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

fn spec(spec: &View<'_>, errors: &mut ErrorList) {
    let (rules, default) = (spec.child("rules"), spec.child("defaultBackend"));
    if rules.is_empty() && !default.exists() {
        let shown = json!([]);
        let shown = rules.value().unwrap_or(&shown);
        errors.push(Error::invalid(spec.path(), shown, "either `defaultBackend` or `rules` must be specified"));
    }
    if default.exists() {
        backend(&default, errors);
    }
    rules.items().for_each(|r| rule(&r, errors));
    for tls in spec.child("tls").items() {
        for host in tls.child("hosts").items() {
            checks::all(&host, host_name(host.str()), errors);
        }
        let secret = tls.child("secretName");
        if !secret.is_empty() {
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

fn rule(rule: &View<'_>, errors: &mut ErrorList) {
    let host = rule.child("host");
    if !host.is_empty() {
        if host.str().parse::<std::net::IpAddr>().is_ok() {
            errors.push(Error::invalid(host.path(), host.str(), "must be a DNS name, not an IP address"));
        }
        checks::all(&host, host_name(host.str()), errors);
    }
    let http = rule.child("http");
    if !http.exists() {
        return;
    }
    let paths = http.child("paths");
    if paths.is_empty() {
        errors.push(Error::required(paths.path(), ""));
    }
    for entry in paths.items() {
        path(&entry, errors);
        backend(&entry.child("backend"), errors);
    }
}

fn path(entry: &View<'_>, errors: &mut ErrorList) {
    let (kind, path) = (entry.child("pathType"), entry.child("path"));
    if !kind.exists() {
        errors.push(Error::required(kind.path(), "pathType must be specified"));
        return;
    }
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
        checks::all(&name, names::dns1035_label(name.str(), false), errors);
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
        errors.push(Error::required(kind.path(), "kind is required"));
    } else {
        checks::all(&kind, names::path_segment(kind.str(), false), errors);
    }
    if name.is_empty() {
        errors.push(Error::required(name.path(), "name is required"));
    } else {
        checks::all(&name, names::path_segment(name.str(), false), errors);
    }
}

pub struct IngressClasses;

impl Resource for IngressClasses {
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
        checks::immutable(&new.child("controller"), &old.child("controller"), &mut errors);
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
