//! Endpoints (upstream: `pkg/registry/core/endpoint`, `pkg/api/v1/endpoints`).

use super::address::non_special_ip;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names::{self, ip::check_ip_legacy};

pub struct Endpoints;

impl Resource for Endpoints {
    fn set_defaults(&self, object: &mut Value) {
        let subsets = object.get_mut("subsets").and_then(Value::as_array_mut);
        for port in subsets.into_iter().flatten().filter_map(|s| s.get_mut("ports")?.as_array_mut()).flatten() {
            if port.get("protocol").and_then(Value::as_str).unwrap_or_default().is_empty() {
                port["protocol"] = "TCP".into();
            }
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validate(object, None)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        validate(object, Some(old))
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: true, whole_first: false }
    }
}

fn validate(object: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let old_ips: Vec<&str> = old.map(addresses_of).unwrap_or_default();
    for subset in View::root(object).child("subsets").items() {
        let ready = subset.child("addresses");
        let not_ready = subset.child("notReadyAddresses");
        if ready.is_empty() && not_ready.is_empty() {
            errors.push(Error::required(subset.path(), "must specify `addresses` or `notReadyAddresses`"));
        }
        for address in ready.items().chain(not_ready.items()) {
            validate_address(&address, &old_ips, &mut errors);
        }
        let ports = subset.child("ports");
        for port in ports.items() {
            validate_port(&port, ports.len() > 1, &mut errors);
        }
    }
    errors
}

fn addresses_of(object: &Value) -> Vec<&str> {
    let subsets = View::root(object).child("subsets");
    let mut all = Vec::new();
    for subset in subsets.items() {
        for list in ["addresses", "notReadyAddresses"] {
            all.extend(subset.child(list).items().map(|a| a.child("ip").str()));
        }
    }
    all
}

fn validate_address(address: &View<'_>, old_ips: &[&str], errors: &mut ErrorList) {
    let ip = address.child("ip");
    errors.extend(check_ip_legacy(ip.path(), ip.str(), true, old_ips));
    let hostname = address.child("hostname");
    if !hostname.is_empty() {
        for why in names::dns1123_label(hostname.str(), false) {
            errors.push(Error::invalid(hostname.path(), hostname.str(), why));
        }
    }
    let node = address.child("nodeName");
    if let Some(name) = node.opt_str() {
        for why in names::dns1123_subdomain(name, false) {
            errors.push(Error::invalid(node.path(), name, why));
        }
    }
    non_special_ip(&ip, errors);
}

fn validate_port(port: &View<'_>, named: bool, errors: &mut ErrorList) {
    let name = port.child("name");
    if named && name.is_empty() {
        errors.push(Error::required(name.path(), ""));
    } else if !name.is_empty() {
        for why in names::dns1123_label(name.str(), false) {
            errors.push(Error::invalid(name.path(), name.str(), why));
        }
    }
    let number = port.child("port");
    for why in names::port_number(number.i64()) {
        errors.push(Error::invalid(number.path(), number.i64(), why));
    }
    let protocol = port.child("protocol");
    if protocol.is_empty() {
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
