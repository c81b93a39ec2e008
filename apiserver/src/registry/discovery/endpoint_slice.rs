//! EndpointSlice (upstream: `pkg/registry/discovery/endpointslice`, `ValidateEndpointSlice`).

use crate::registry::core::address::non_special_ip;
use crate::registry::metadata::{self, validate_labels};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names::{self, ip};
use coxswain_api::{Value, json};
use std::collections::HashSet;

const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
const TOPOLOGY_MAX: usize = 16;
const HINTS_MAX: usize = 8;

pub struct EndpointSlices;

impl Resource for EndpointSlices {
    fn set_defaults(&self, object: &mut Value) {
        for port in object.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            for (field, default) in [("name", ""), ("protocol", "TCP")] {
                if port.get(field).is_none_or(Value::is_null) {
                    port[field] = json!(default);
                }
            }
        }
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        drop_topology(object);
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, _subresource: &str) {
        let topologies = |v: &Value| -> Vec<Value> {
            let list = v.get("endpoints").and_then(Value::as_array);
            list.into_iter().flatten().map(|e| e.get("deprecatedTopology").cloned().unwrap_or_default()).collect()
        };
        // Labels count too: they tie the slice to its service. What is dropped below counts as well.
        let empty = |v: Option<&Value>| v.is_none_or(|v| v.is_null() || v.as_array().is_some_and(|a| a.is_empty()));
        let differs = |f: &str| object.get(f) != old.get(f) && !(empty(object.get(f)) && empty(old.get(f)));
        let changed = differs("endpoints")
            || differs("ports")
            || differs("addressType")
            || object.pointer("/metadata/labels") != old.pointer("/metadata/labels");
        if changed {
            let generation = metadata::number(old, "generation").unwrap_or(0) + 1;
            metadata::set(object, "generation", generation);
        }
        if topologies(object) != topologies(old) {
            drop_topology(object);
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validate(object, None)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = validate(object, Some(old));
        let kind = View::root(object).child("addressType");
        if kind.str() != View::root(old).child("addressType").str() {
            errors.push(Error::invalid(kind.path(), kind.str(), "field is immutable"));
        }
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        let root = View::root(object);
        let mut list = Vec::new();
        if root.child("addressType").str() == "FQDN" {
            if old.is_none() {
                list.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
            }
        } else {
            for address in root.child("endpoints").items().flat_map(|e| e.child("addresses").items()) {
                list.extend(ip::warnings_for_ip(address.path(), address.str()));
            }
        }
        list
    }

    fn has_generation(&self) -> bool {
        true
    }

    /// Counted in `prepare_for_update`, before anything is dropped.
    fn spec_changed(&self, _object: &Value, _old: &Value) -> bool {
        false
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: false, whole: true, whole_first: false }
    }
}

/// The old form of topology is not written through this version any more.
fn drop_topology(object: &mut Value) {
    for endpoint in object.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(endpoint) = endpoint.as_object_mut() {
            endpoint.remove("deprecatedTopology");
        }
    }
}

/// An address that an update leaves in the slice is not looked at again.
fn validate(object: &Value, old: Option<&Value>) -> ErrorList {
    let root = View::root(object);
    let kept: HashSet<&str> = old.map(|old| addresses(&View::root(old)).collect()).unwrap_or_default();
    let mut errors = ErrorList::new();
    let kind = root.child("addressType");
    if kind.is_empty() {
        errors.push(Error::required(kind.path(), ""));
    } else if !matches!(kind.str(), "IPv4" | "IPv6" | "FQDN") {
        errors.push(Error::not_supported(kind.path(), kind.str(), &["FQDN", "IPv4", "IPv6"]));
    }
    validate_ports(&root.child("ports"), &mut errors);
    let endpoints = root.child("endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(Error::too_many(endpoints.path(), endpoints.len(), ENDPOINTS_MAX as i64));
    } else {
        for endpoint in endpoints.items() {
            validate_endpoint(&endpoint, kind.str(), &kept, &mut errors);
        }
    }
    errors
}

fn addresses<'a>(slice: &View<'a>) -> impl Iterator<Item = &'a str> {
    slice.child("endpoints").items().flat_map(|e| e.child("addresses").items()).map(|a| a.str())
}

fn validate_endpoint(endpoint: &View<'_>, kind: &str, kept: &HashSet<&str>, errors: &mut ErrorList) {
    let addresses = endpoint.child("addresses");
    if addresses.is_empty() {
        errors.push(Error::required(addresses.path(), "must contain at least 1 address"));
    } else if addresses.len() > ADDRESSES_MAX {
        errors.push(Error::too_many(addresses.path(), addresses.len(), ADDRESSES_MAX as i64));
    }
    for address in addresses.items().filter(|a| !kept.contains(a.str())) {
        let text = address.str();
        match kind {
            "IPv4" | "IPv6" => {
                let wrong = ip::check_ip_legacy(address.path(), text, kind == "IPv4", &[]);
                if !wrong.is_empty() {
                    errors.extend(wrong);
                    continue;
                }
                if (kind == "IPv6") != text.contains(':') {
                    errors.push(Error::invalid(addresses.path(), text, format!("must be an {kind} address")));
                }
                non_special_ip(&address, errors);
            }
            "FQDN" => errors.extend(full_name(&address)),
            _ => {}
        }
    }
    let node = endpoint.child("nodeName");
    if let Some(name) = node.opt_str() {
        for why in names::dns1123_subdomain(name, false) {
            errors.push(Error::invalid(node.path(), name, why));
        }
    }
    let topology = endpoint.child("deprecatedTopology");
    if topology.len() > TOPOLOGY_MAX {
        errors.push(Error::too_many(topology.path(), topology.len(), TOPOLOGY_MAX as i64));
    }
    validate_labels(&topology, errors);
    let hostname = endpoint.child("hostname");
    if let Some(name) = hostname.opt_str() {
        for why in names::dns1123_label(name, false) {
            errors.push(Error::invalid(hostname.path(), name, why));
        }
    }
    let hints = endpoint.child("hints");
    for field in ["forZones", "forNodes"] {
        let list = hints.child(field);
        if list.len() > HINTS_MAX {
            errors.push(Error::too_many(list.path(), list.len(), HINTS_MAX as i64));
            return;
        }
        let mut seen: Vec<&str> = Vec::new();
        for hint in list.items() {
            let name = hint.child("name");
            if seen.contains(&name.str()) {
                errors.push(Error::duplicate(name.path(), name.str()));
            }
            seen.push(name.str());
            let wrong = match field {
                "forZones" => names::label_value(name.str()),
                _ => names::dns1123_subdomain(name.str(), false),
            };
            for why in wrong {
                errors.push(Error::invalid(name.path(), name.str(), why));
            }
        }
    }
}

/// A name with its domain, which may end in a dot (upstream: `IsFullyQualifiedDomainName`).
fn full_name(address: &View<'_>) -> Option<Error> {
    let name = address.str();
    if name.is_empty() {
        return Some(Error::required(address.path(), ""));
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let wrong = names::dns1123_subdomain(name, false);
    if !wrong.is_empty() {
        return Some(Error::invalid(address.path(), name, wrong.join(",")));
    }
    if !name.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        return Some(Error::invalid(address.path(), name, why));
    }
    name.split('.').find_map(|label| {
        let wrong = names::dns1123_label(label, false);
        (!wrong.is_empty()).then(|| Error::invalid(address.path(), label, wrong.join(",")))
    })
}

fn validate_ports(ports: &View<'_>, errors: &mut ErrorList) {
    if ports.len() > PORTS_MAX {
        errors.push(Error::too_many(ports.path(), ports.len(), PORTS_MAX as i64));
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for port in ports.items() {
        let name = port.child("name");
        if !name.is_empty() {
            for why in names::dns1123_label(name.str(), false) {
                errors.push(Error::invalid(name.path(), name.str(), why));
            }
        }
        if seen.contains(&name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        }
        seen.push(name.str());
        let protocol = port.child("protocol");
        if !protocol.exists() {
            errors.push(Error::required(protocol.path(), ""));
        } else if !matches!(protocol.str(), "TCP" | "UDP" | "SCTP") {
            errors.push(Error::not_supported(protocol.path(), protocol.str(), &["SCTP", "TCP", "UDP"]));
        }
        let app = port.child("appProtocol");
        if let Some(text) = app.opt_str() {
            for why in names::qualified_name(text) {
                errors.push(Error::invalid(app.path(), text, why));
            }
        }
    }
}
