//! What devices, classes and claims must satisfy (upstream: `pkg/apis/resource/validation`).

use crate::admission::cel::{Names, Wanted, check};
use crate::registry::checks::{self, NOT_POSITIVE};
use crate::registry::core::pod_spec::{csi_driver_name, node_selector, only_labels_and_annotations};
use crate::registry::core::quantities::is_extended;
use coxswain_api::field::{BadValue, Error, ErrorList, View, go_value};
use coxswain_api::{Map, Value, names};
use std::collections::HashSet;

const REQUESTS_MAX: usize = 32;
const ALTERNATIVES_MAX: usize = 8;
const SELECTORS_MAX: usize = 32;
const CONSTRAINTS_MAX: usize = 32;
const CONFIG_MAX: usize = 32;
const CONSUMERS_MAX: usize = 256;
const DEVICES_MAX: usize = 128;
const TAINTED_DEVICES_MAX: usize = 64;
const TAINTS_MAX: usize = 16;
const ATTRIBUTES_AND_CAPACITIES_MAX: usize = 32;
const ATTRIBUTE_BYTES_MAX: i64 = 64;
const POOL_BYTES_MAX: i64 = 253;
const DOMAIN_BYTES_MAX: i64 = 63;
const IDENTIFIER_BYTES_MAX: i64 = 32;
const EXPRESSION_BYTES_MAX: i64 = 10 * 1024;
const PARAMETERS_BYTES_MAX: usize = 10 * 1024;
const DEVICE_DATA_BYTES_MAX: usize = 10 * 1024;
const DEVICE_CONDITIONS_MAX: usize = 8;
const INTERFACE_NAME_BYTES_MAX: usize = 256;
const HARDWARE_ADDRESS_BYTES_MAX: usize = 128;
const INTERFACE_ADDRESSES_MAX: usize = 16;
const RESULTS_MAX: usize = 32;
const TAINT_EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

pub(super) fn device_class(object: &Value) -> ErrorList {
    let (spec, mut errors) = (View::root(object).child("spec"), ErrorList::new());
    selectors(&spec.child("selectors"), &mut errors);
    let config = spec.child("config");
    for entry in config.items() {
        configuration(&entry, &mut errors);
    }
    at_most(&config, CONFIG_MAX, &mut errors);
    let name = spec.child("extendedResourceName");
    if name.opt_str().is_some_and(|n| !is_extended(n)) {
        errors.push(Error::invalid(name.path(), name.str(), "must be a valid extended resource name"));
    }
    errors
}

pub(super) fn claim_spec(spec: &View<'_>, errors: &mut ErrorList) {
    let devices = spec.child("devices");
    let known = known_requests(spec);
    set(&devices.child("requests"), REQUESTS_MAX, "name", device_request, errors);
    let constraints = devices.child("constraints");
    for constraint in constraints.items() {
        named_requests(&constraint.child("requests"), &known, errors);
        let (matching, distinct) = (constraint.child("matchAttribute"), constraint.child("distinctAttribute"));
        if matching.exists() {
            full_name(&matching, errors);
        } else if distinct.exists() {
            full_name(&distinct, errors);
        } else {
            let why =
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
            errors.push(Error::required(constraint.path(), why));
        }
    }
    at_most(&constraints, CONSTRAINTS_MAX, errors);
    let config = devices.child("config");
    for entry in config.items() {
        named_requests(&entry.child("requests"), &known, errors);
        configuration(&entry, errors);
    }
    at_most(&config, CONFIG_MAX, errors);
}

/// The names of a claim's requests, and of the alternatives of each.
fn known_requests(spec: &View<'_>) -> HashSet<String> {
    let mut known = HashSet::new();
    for request in spec.child("devices").child("requests").items() {
        let name = request.child("name").str();
        known.insert(name.to_owned());
        known.extend(request.child("firstAvailable").items().map(|sub| format!("{name}/{}", sub.child("name").str())));
    }
    known
}

/// Every entry by itself, then their number, then that the field `key` tells them apart.
fn set(list: &View<'_>, max: usize, key: &'static str, check: fn(&View<'_>, &mut ErrorList), errors: &mut ErrorList) {
    list.items().for_each(|entry| check(&entry, errors));
    at_most(list, max, errors);
    let mut seen = HashSet::new();
    for entry in list.items() {
        let name = entry.child(key).str();
        if !seen.insert(name) {
            errors.push(Error::duplicate(entry.path(), name));
        }
    }
}

/// An attribute of a constraint names its domain.
fn full_name(name: &View<'_>, errors: &mut ErrorList) {
    qualified_name(name.str(), name, errors);
    if !name.is_empty() && !name.str().contains('/') {
        errors.push(Error::invalid(name.path(), name.str(), "must include a domain"));
    }
}

fn named_requests(named: &View<'_>, known: &HashSet<String>, errors: &mut ErrorList) {
    named.items().for_each(|name| named_request(&name, known, errors));
    at_most(named, REQUESTS_MAX, errors);
    let mut seen = HashSet::new();
    for name in named.items() {
        if !seen.insert(name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        }
    }
}

fn named_request(name: &View<'_>, known: &HashSet<String>, errors: &mut ErrorList) {
    let segments: Vec<&str> = name.str().split('/').collect();
    if segments.len() <= 2 {
        for segment in segments {
            let wrong = names::dns1123_label(segment, false);
            errors.extend(wrong.into_iter().map(|why| Error::invalid(name.path(), segment, why)));
        }
    }
    if !known.contains(name.str()) {
        let why =
            "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
        errors.push(Error::invalid(name.path(), name.str(), why));
    }
}

fn device_request(request: &View<'_>, errors: &mut ErrorList) {
    checks::dns_label(&request.child("name"), errors);
    let (exactly, alternatives) = (request.child("exactly"), request.child("firstAvailable"));
    set(&alternatives, ALTERNATIVES_MAX, "name", alternative, errors);
    if exactly.exists() {
        asked(&exactly, errors);
    }
    match (exactly.exists(), !alternatives.is_empty()) {
        (false, false) => {
            errors.push(Error::required(request.path(), "exactly one of `exactly` or `firstAvailable` is required"));
        }
        (true, true) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.push(Error::invalid(request.path(), &Value::Null, why));
        }
        _ => {}
    }
}

fn alternative(request: &View<'_>, errors: &mut ErrorList) {
    checks::dns_label(&request.child("name"), errors);
    asked(request, errors);
}

/// The class, the selectors and the number of a request.
fn asked(request: &View<'_>, errors: &mut ErrorList) {
    let class = request.child("deviceClassName");
    if class.is_empty() {
        errors.push(Error::required(class.path(), ""));
    } else {
        checks::dns_subdomain(&class, errors);
    }
    selectors(&request.child("selectors"), errors);
    let (mode, count) = (request.child("allocationMode"), request.child("count"));
    match mode.str() {
        "All" if count.i64() != 0 => {
            errors.push(Error::invalid(
                count.path(),
                count.i64(),
                "must not be specified when allocationMode is 'All'",
            ));
        }
        "ExactCount" if count.i64() <= 0 => errors.push(Error::invalid(count.path(), count.i64(), NOT_POSITIVE)),
        "All" | "ExactCount" => {}
        other => errors.push(Error::not_supported(mode.path(), other, &["All", "ExactCount"])),
    }
    request.child("tolerations").items().for_each(|t| toleration(&t, errors));
}

fn toleration(toleration: &View<'_>, errors: &mut ErrorList) {
    let (key, operator) = (toleration.child("key"), toleration.child("operator"));
    let (value, effect) = (toleration.child("value"), toleration.child("effect"));
    if !key.is_empty() {
        checks::qualified_name(&key, errors);
    }
    match operator.str() {
        "Exists" if !value.is_empty() => {
            errors.push(Error::invalid(value.path(), value.str(), "must be empty for operator `Exists`"));
        }
        "Exists" => {}
        "Equal" => checks::all(&value, names::label_value(value.str()), errors),
        _ => checks::one_of(&operator, &["Equal", "Exists"], errors),
    }
    if !effect.is_empty() {
        checks::supported_value(&effect, &TAINT_EFFECTS, errors);
    }
}

fn selectors(selectors: &View<'_>, errors: &mut ErrorList) {
    for selector in selectors.items() {
        let cel = selector.child("cel");
        if !cel.exists() {
            errors.push(Error::required(cel.path(), ""));
            continue;
        }
        let expression = cel.child("expression");
        if expression.str().len() as i64 > EXPRESSION_BYTES_MAX {
            errors.push(Error::too_long(expression.path(), EXPRESSION_BYTES_MAX));
            continue;
        }
        let wrong = if expression.is_empty() { Some(NO_EXPRESSION.to_owned()) } else { compile(expression.str()) };
        errors.extend(wrong.map(|why| Error::invalid(expression.path(), expression.str(), why)));
    }
    at_most(selectors, SELECTORS_MAX, errors);
}

const NO_EXPRESSION: &str = "compilation failed: ERROR: <input>:1:0: Syntax error: mismatched input '<EOF>' expecting \
                             {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, \
                             STRING, BYTES, IDENTIFIER}";

fn compile(expression: &str) -> Option<String> {
    check(expression, Wanted::BoolOrUnknown, &Names::of(&["device"])).err()
}

/// Parameters for a driver.
fn configuration(entry: &View<'_>, errors: &mut ErrorList) {
    let opaque = entry.child("opaque");
    if !opaque.exists() {
        errors.push(Error::required(opaque.path(), ""));
        return;
    }
    csi_driver_name(&opaque.child("driver"), errors);
    raw_object(&opaque.child("parameters"), PARAMETERS_BYTES_MAX, errors);
}

/// An object of any shape, up to a size.
fn raw_object(object: &View<'_>, max: usize, errors: &mut ErrorList) {
    match object.value() {
        None => errors.push(Error::required(object.path(), "")),
        Some(value) if value.to_string().len() > max => errors.push(Error::too_long(object.path(), max as i64)),
        Some(Value::Object(_)) => {}
        Some(_) => errors.push(Error::invalid(object.path(), "<value omitted>", "must be a valid JSON object")),
    }
}

pub(super) fn template_spec(spec: &View<'_>, errors: &mut ErrorList) {
    only_labels_and_annotations(&spec.child("metadata"), errors);
    claim_spec(&spec.child("spec"), errors);
}

pub(super) fn unchanged_claim(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    if !checks::same(new.value(), old.value()) {
        errors.push(Error::invalid(new.path(), ClaimSpec(new), checks::IMMUTABLE));
    }
}

/// The spec of a claim as upstream's message shows it: every field of the internal structs, in their order.
struct ClaimSpec<'a, 'b>(&'a View<'b>);

impl BadValue for ClaimSpec<'_, '_> {
    fn text(&self) -> String {
        let devices = self.0.child("devices");
        let requests: Vec<String> = devices
            .child("requests")
            .items()
            .map(|request| {
                let exactly = request.child("exactly");
                let fields = [
                    "deviceClassName",
                    "selectors",
                    "allocationMode",
                    "count",
                    "adminAccess",
                    "tolerations",
                    "capacity",
                ];
                let exactly = if exactly.exists() { go_struct(&exactly, &fields) } else { "null".into() };
                let alternatives = go_value(&capitalized(request.child("firstAvailable").value()));
                let name = go_value(&request.child("name").str().into());
                format!(r#"{{"Name":{name},"Exactly":{exactly},"FirstAvailable":{alternatives}}}"#)
            })
            .collect();
        let requests = if requests.is_empty() { "null".to_owned() } else { format!("[{}]", requests.join(",")) };
        let [constraints, config] =
            ["constraints", "config"].map(|name| go_value(&capitalized(devices.child(name).value())));
        format!(r#"{{"Devices":{{"Requests":{requests},"Constraints":{constraints},"Config":{config}}}}}"#)
    }
}

fn go_struct(object: &View<'_>, fields: &[&'static str]) -> String {
    let shown: Vec<String> = fields
        .iter()
        .map(|name| format!(r#""{}":{}"#, capital(name), go_value(&capitalized(object.child(name).value()))))
        .collect();
    format!("{{{}}}", shown.join(","))
}

fn capital(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// The names of fields as Go spells them.
fn capitalized(value: Option<&Value>) -> Value {
    match value {
        None => Value::Null,
        Some(Value::Array(items)) => items.iter().map(|item| capitalized(Some(item))).collect(),
        Some(Value::Object(fields)) => {
            Value::Object(fields.iter().map(|(k, v)| (capital(k), capitalized(Some(v)))).collect::<Map<_, _>>())
        }
        Some(other) => other.clone(),
    }
}

pub(super) fn claim_status(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    let (status, before) = (new.child("status"), old.child("status"));
    let (consumers, allocation) = (status.child("reservedFor"), status.child("allocation"));
    set(&consumers, CONSUMERS_MAX, "uid", consumer, errors);
    status.child("devices").items().for_each(|device| device_status(&device, errors));
    if !allocation.exists() && !consumers.is_empty() {
        errors.push(Error::forbidden(consumers.path(), "may not be specified when `allocated` is not set"));
    }
    let former: HashSet<&str> = before.child("reservedFor").items().map(|c| c.child("uid").str()).collect();
    let deleting = !new.child("metadata").child("deletionTimestamp").is_empty();
    let now: Vec<&str> = consumers.items().map(|c| c.child("uid").str()).collect();
    if deleting && allocation.exists() && now.iter().any(|uid| !former.contains(uid)) {
        errors.push(Error::forbidden(
            consumers.path(),
            "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
        ));
    }
    if allocation.exists() && before.child("allocation").exists() {
        checks::immutable(&allocation, &before.child("allocation"), errors);
    } else if allocation.exists() {
        new_allocation(&allocation, &known_requests(&new.child("spec")), errors);
    }
}

fn consumer(consumer: &View<'_>, errors: &mut ErrorList) {
    for name in ["resource", "name", "uid"] {
        checks::required(&consumer.child(name), errors);
    }
}

fn new_allocation(allocation: &View<'_>, known: &HashSet<String>, errors: &mut ErrorList) {
    let devices = allocation.child("devices");
    let (results, config) = (devices.child("results"), devices.child("config"));
    for result in results.items() {
        named_request(&result.child("request"), known, errors);
        csi_driver_name(&result.child("driver"), errors);
        pool_name(&result.child("pool"), errors);
        checks::dns_label(&result.child("device"), errors);
    }
    at_most(&results, RESULTS_MAX, errors);
    for entry in config.items() {
        checks::one_of(&entry.child("source"), &["FromClaim", "FromClass"], errors);
        named_requests(&entry.child("requests"), known, errors);
        configuration(&entry, errors);
    }
    at_most(&config, 2 * CONFIG_MAX, errors);
    let selector = allocation.child("nodeSelector");
    if selector.exists() {
        node_selector(&selector, false, errors);
    }
}

/// What a driver says of an allocated device.
fn device_status(device: &View<'_>, errors: &mut ErrorList) {
    csi_driver_name(&device.child("driver"), errors);
    pool_name(&device.child("pool"), errors);
    checks::dns_label(&device.child("device"), errors);
    at_most(&device.child("conditions"), DEVICE_CONDITIONS_MAX, errors);
    let data = device.child("data");
    if data.exists() {
        raw_object(&data, DEVICE_DATA_BYTES_MAX, errors);
    }
    let network = device.child("networkData");
    for (field, max) in [("interfaceName", INTERFACE_NAME_BYTES_MAX), ("hardwareAddress", HARDWARE_ADDRESS_BYTES_MAX)] {
        let text = network.child(field);
        if text.len() > max {
            errors.push(Error::too_long(text.path(), max as i64));
        }
    }
    let addresses = network.child("ips");
    for address in addresses.items() {
        errors.extend(names::ip::check_interface_address(address.path(), address.str()));
    }
    at_most(&addresses, INTERFACE_ADDRESSES_MAX, errors);
    let mut seen = HashSet::new();
    for address in addresses.items() {
        if !seen.insert(address.str()) {
            errors.push(Error::duplicate(address.path(), address.str()));
        }
    }
}

pub(super) fn slice(object: &Value) -> ErrorList {
    let (spec, mut errors) = (View::root(object).child("spec"), ErrorList::new());
    csi_driver_name(&spec.child("driver"), &mut errors);
    pool(&spec.child("pool"), &mut errors);
    place(&spec, &mut errors);
    let devices = spec.child("devices");
    let tainted = devices.items().any(|d| !d.child("taints").is_empty() || !d.child("consumesCounters").is_empty());
    at_most(&devices, if tainted { TAINTED_DEVICES_MAX } else { DEVICES_MAX }, &mut errors);
    if devices.len() <= DEVICES_MAX {
        let mut seen = HashSet::new();
        for device in devices.items() {
            let name = device.child("name").str();
            if seen.insert(name) {
                validate_device(&device, &mut errors);
            } else {
                errors.push(Error::duplicate(device.path(), name));
            }
        }
    }
    errors
}

fn pool(pool: &View<'_>, errors: &mut ErrorList) {
    let (count, generation) = (pool.child("resourceSliceCount"), pool.child("generation"));
    pool_name(&pool.child("name"), errors);
    if count.i64() <= 0 {
        errors.push(Error::invalid(count.path(), count.i64(), NOT_POSITIVE));
    }
    if generation.i64() < 0 {
        errors.push(Error::invalid(generation.path(), generation.i64(), "must be greater than or equal to zero"));
    }
}

fn pool_name(name: &View<'_>, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.push(Error::required(name.path(), ""));
        return;
    }
    if name.str().len() as i64 > POOL_BYTES_MAX {
        errors.push(Error::too_long(name.path(), POOL_BYTES_MAX));
    }
    for part in name.str().split('/') {
        let wrong = names::dns1123_subdomain(part, false);
        errors.extend(wrong.into_iter().map(|why| Error::invalid(name.path(), part, why)));
    }
}

/// Where the devices are: said in exactly one way.
fn place(spec: &View<'_>, errors: &mut ErrorList) {
    let node = spec.child("nodeName");
    if node.exists() {
        if node.is_empty() {
            errors.push(Error::invalid(node.path(), "", "must be either unset or set to a non-empty string"));
        } else {
            checks::dns_subdomain(&node, errors);
        }
    }
    let ways = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    for name in ["allNodes", "perDeviceNodeSelection"] {
        let flag = spec.child(name);
        if flag.opt_bool() == Some(false) {
            errors.push(Error::invalid(flag.path(), false, "must be either unset or set to true"));
        }
    }
    let given: Vec<String> =
        ways.iter().filter(|name| spec.child(name).exists()).map(|name| format!("`{name}`")).collect();
    let all = ways.map(|name| format!("`{name}`")).join(", ");
    match given.len() {
        0 => errors.push(Error::required(spec.path(), format!("exactly one of {all} is required"))),
        1 => {}
        _ => {
            let why = format!("exactly one of {all} is required, but multiple fields are set");
            errors.push(Error::invalid(spec.path(), format!("{{{}}}", given.join(", ")), why));
        }
    }
}

fn validate_device(device: &View<'_>, errors: &mut ErrorList) {
    checks::dns_label(&device.child("name"), errors);
    let (attributes, capacity) = (device.child("attributes"), device.child("capacity"));
    let count = attributes.len() + capacity.len();
    if count > ATTRIBUTES_AND_CAPACITIES_MAX {
        let why =
            format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_AND_CAPACITIES_MAX}");
        errors.push(Error::invalid(device.path(), count as i64, why));
    }
    for (name, attribute) in attributes.entries() {
        qualified_name(name, &attributes, errors);
        validate_attribute(&attribute, errors);
    }
    for (name, _) in capacity.entries() {
        qualified_name(name, &capacity, errors);
    }
    at_most(&device.child("taints"), TAINTS_MAX, errors);
    for taint in device.child("taints").items() {
        let (key, value, effect) = (taint.child("key"), taint.child("value"), taint.child("effect"));
        checks::qualified_name(&key, errors);
        if !value.is_empty() {
            checks::all(&value, names::label_value(value.str()), errors);
        }
        checks::one_of(&effect, &TAINT_EFFECTS, errors);
    }
}

/// A C identifier, perhaps after a domain. What is wrong with a key is reported at its map.
fn qualified_name(name: &str, at: &View<'_>, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.push(Error::required(at.path(), "name required"));
        return;
    }
    let (domain, identifier) = name.split_once('/').map_or((None, name), |(d, i)| (Some(d), i));
    if let Some(domain) = domain {
        if domain.is_empty() {
            errors.push(Error::required(at.path(), "the domain must not be empty"));
        } else {
            if domain.len() as i64 > DOMAIN_BYTES_MAX {
                errors.push(Error::too_long(at.path(), DOMAIN_BYTES_MAX));
            }
            let wrong = names::dns1123_subdomain(domain, false);
            errors.extend(wrong.into_iter().map(|why| Error::invalid(at.path(), domain, why)));
        }
        if identifier.is_empty() {
            errors.push(Error::required(at.path(), "the name must not be empty"));
            return;
        }
    }
    if identifier.len() as i64 > IDENTIFIER_BYTES_MAX {
        errors.push(Error::too_long(at.path(), IDENTIFIER_BYTES_MAX));
    }
    let wrong = names::c_identifier(identifier);
    errors.extend(wrong.into_iter().map(|why| Error::invalid(at.path(), identifier, why)));
}

const KINDS: [&str; 8] = ["int", "bool", "string", "version", "ints", "bools", "strings", "versions"];

fn validate_attribute(attribute: &View<'_>, errors: &mut ErrorList) {
    match KINDS.iter().filter(|kind| attribute.child(kind).exists()).count() {
        1 => {}
        0 => return errors.push(Error::invalid(attribute.path(), "", "exactly one value must be specified")),
        _ => {
            return errors.push(Error::invalid(
                attribute.path(),
                Attribute(attribute),
                "exactly one value must be specified",
            ));
        }
    }
    for text in [attribute.child("string"), attribute.child("version")] {
        if text.str().len() as i64 > ATTRIBUTE_BYTES_MAX {
            errors.push(Error::too_long(text.path(), ATTRIBUTE_BYTES_MAX));
        }
    }
    let version = attribute.child("version");
    if version.exists() && !is_semantic_version(version.str()) {
        let why = "must be a string compatible with semver.org spec 2.0.0";
        errors.push(Error::invalid(version.path(), version.str(), why));
    }
}

/// An attribute as upstream's message shows it.
struct Attribute<'a, 'b>(&'a View<'b>);

impl BadValue for Attribute<'_, '_> {
    fn text(&self) -> String {
        let shown: Vec<String> = KINDS
            .iter()
            .map(|kind| {
                let (one, many) = kind.strip_suffix('s').map_or((*kind, ""), |one| (one, "s"));
                format!(r#""{}Value{many}":{}"#, capital(one), self.0.child(kind).text())
            })
            .collect();
        format!("{{{}}}", shown.join(","))
    }
}

/// `major.minor.patch`, perhaps with a pre-release and a build.
fn is_semantic_version(text: &str) -> bool {
    let number = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part.len() == 1 || !part.starts_with('0'))
    };
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, release) = rest.split_once('-').map_or((rest, None), |(core, release)| (core, Some(release)));
    let numeric = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    core.split('.').count() == 3
        && core.split('.').all(number)
        && build.is_none_or(|b| b.split('.').all(word))
        && release.is_none_or(|r| r.split('.').all(|part| if numeric(part) { number(part) } else { word(part) }))
}

fn at_most(list: &View<'_>, max: usize, errors: &mut ErrorList) {
    if list.len() > max {
        errors.push(Error::too_many(list.path(), list.len(), max as i64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn versions_are_semantic() {
        for good in ["1.2.3", "0.0.0", "1.0.0-alpha.1", "1.0.0-0a", "1.0.0+build.5", "10.20.30-rc-1+x"] {
            assert!(is_semantic_version(good), "{good}");
        }
        for bad in ["", "one", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3+", "v1.2.3"] {
            assert!(!is_semantic_version(bad), "{bad}");
        }
    }

    #[test]
    fn claims_name_their_requests() {
        let claim = json!({"devices": {
            "requests": [
                {"name": "a", "firstAvailable": [
                    {"name": "x", "deviceClassName": "c", "allocationMode": "ExactCount", "count": 1},
                    {"name": "x", "deviceClassName": "c", "allocationMode": "All"},
                ]},
                {"name": "a", "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1, "tolerations": [
                    {"operator": "Exists", "value": "v", "effect": "Soon"},
                ]}},
            ],
            "constraints": [{"requests": ["a/x", "a/y"], "matchAttribute": "example.org/n"}],
            "config": [{"requests": ["a"], "opaque": {"driver": "d.example.org", "parameters": "text"}}],
        }});
        let mut errors = ErrorList::new();
        claim_spec(&View::root(&claim), &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "devices.requests[0].firstAvailable[1]: Duplicate value: \"x\"",
                "devices.requests[1].exactly.tolerations[0].value: Invalid value: \"v\": must be empty for operator `Exists`",
                "devices.requests[1].exactly.tolerations[0].effect: Unsupported value: \"Soon\": supported values: \"NoExecute\", \"NoSchedule\", \"None\"",
                "devices.requests[1]: Duplicate value: \"a\"",
                "devices.constraints[0].requests[1]: Invalid value: \"a/y\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
                "devices.config[0].opaque.parameters: Invalid value: \"<value omitted>\": must be a valid JSON object",
            ]
        );
    }
}
