//! What the status of a claim must satisfy (upstream: `validateResourceClaimStatusUpdate`).

use super::limits::{at_most, each, set};
use super::names::pool_name;
use super::slice::binding_conditions;
use super::validation::{CONFIG_MAX, configuration, known_requests, named_request, named_requests, raw_object};
use crate::registry::checks;
use crate::registry::core::pod_spec::{csi_driver_name, node_selector};
use coxswain_api::field::{BadValue, Error, ErrorList, View, go_quote};
use coxswain_api::names;
use coxswain_api::{Value, json};
use std::collections::HashSet;

const CONSUMERS_MAX: usize = 256;
const DEVICE_DATA_BYTES_MAX: usize = 10 * 1024;
const DEVICE_CONDITIONS_MAX: usize = 8;
const INTERFACE_NAME_BYTES_MAX: usize = 256;
const HARDWARE_ADDRESS_BYTES_MAX: usize = 128;
const INTERFACE_ADDRESSES_MAX: usize = 16;
const RESULTS_MAX: usize = 32;

/// What tells an allocated device, or a share of one, from all others.
#[derive(Clone, PartialEq, Eq, Hash)]
struct DeviceId([String; 4]);

impl DeviceId {
    fn of(device: &View<'_>) -> Self {
        Self(["driver", "pool", "device", "shareID"].map(|field| device.child(field).str().to_owned()))
    }
}

impl BadValue for DeviceId {
    fn text(&self) -> String {
        let [driver, pool, device, share] = self.0.each_ref().map(|text| json!(text));
        format!(r#"{{"Driver":{driver},"Pool":{pool},"Device":{device},"ShareID":{share}}}"#)
    }
}

fn allocated(status: &View<'_>) -> HashSet<DeviceId> {
    status.child("allocation").child("devices").child("results").items().map(|result| DeviceId::of(&result)).collect()
}

/// What is said of devices goes with their allocation (upstream: `dropDeallocatedStatusDevices`).
pub(super) fn drop_deallocated(claim: &mut Value, old: &Value) {
    let (now, before) = [&*claim, old].map(|o| allocated(&View::root(o).child("status"))).into();
    let gone: HashSet<DeviceId> = HashSet::difference(&before, &now).cloned().collect();
    let Some(status) = claim.get_mut("status").and_then(Value::as_object_mut) else { return };
    if let Some(Value::Array(devices)) = status.get_mut("devices") {
        devices.retain(|device| !gone.contains(&DeviceId::of(&View::root(device))));
        if devices.is_empty() {
            status.remove("devices");
        }
    }
}

pub(super) fn claim_status(new: &View<'_>, old: &View<'_>, errors: &mut ErrorList) {
    let (status, before) = (new.child("status"), old.child("status"));
    let (consumers, allocation) = (status.child("reservedFor"), status.child("allocation"));
    set(&consumers, CONSUMERS_MAX, "uid", errors, consumer);
    let (devices, allocated) = (status.child("devices"), allocated(&status));
    devices.items().for_each(|device| device_status(&device, &allocated, errors));
    let mut seen = HashSet::new();
    for device in devices.items() {
        let id = DeviceId::of(&device);
        if !seen.insert(id.clone()) {
            errors.push(Error::duplicate(device.path(), id));
        }
    }
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
    each(&results, RESULTS_MAX, errors, |result, errors| {
        named_request(&result.child("request"), known, errors);
        csi_driver_name(&result.child("driver"), errors);
        pool_name(&result.child("pool"), errors);
        checks::dns_label(&result.child("device"), errors);
        binding_conditions(result, errors);
        share(&result.child("shareID"), errors);
    });
    // Those of the claim and those of the class.
    each(&config, 2 * CONFIG_MAX, errors, |entry, errors| {
        checks::one_of(&entry.child("source"), &["FromClaim", "FromClass"], errors);
        named_requests(&entry.child("requests"), known, errors);
        configuration(entry, errors);
    });
    let selector = allocation.child("nodeSelector");
    if selector.exists() {
        node_selector(&selector, false, errors);
    }
}

/// What a driver says of an allocated device.
fn device_status(device: &View<'_>, allocated: &HashSet<DeviceId>, errors: &mut ErrorList) {
    csi_driver_name(&device.child("driver"), errors);
    pool_name(&device.child("pool"), errors);
    checks::dns_label(&device.child("device"), errors);
    share(&device.child("shareID"), errors);
    let id = DeviceId::of(device);
    if !allocated.contains(&id) {
        errors.push(Error::invalid(device.path(), id, "must be an allocated device in the claim"));
    }
    at_most(&device.child("conditions"), DEVICE_CONDITIONS_MAX, errors);
    checks::conditions(&device.child("conditions"), errors);
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
    if !at_most(&addresses, INTERFACE_ADDRESSES_MAX, errors) {
        return;
    }
    for address in addresses.items() {
        errors.extend(names::ip::check_interface_address(address.path(), address.str()));
    }
    let mut seen = HashSet::new();
    for address in addresses.items() {
        if !seen.insert(address.str()) {
            errors.push(Error::duplicate(address.path(), address.str()));
        }
    }
}

/// The name of a share is a UUID in its plain form.
fn share(share: &View<'_>, errors: &mut ErrorList) {
    let Some(text) = share.opt_str() else { return };
    if let Some(why) = uuid_error(text) {
        errors.push(Error::invalid(share.path(), text, format!("error validating uid: {why}")));
    } else if text.len() != 36 || text.bytes().any(|b| b.is_ascii_uppercase()) {
        let why = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal \
                   characters";
        errors.push(Error::invalid(share.path(), text, why));
    }
}

/// What the usual reader of UUIDs has against a text; it takes several forms of them.
fn uuid_error(text: &str) -> Option<String> {
    let plain = match text.len() {
        36 => text,
        45 => match text.get(..9) {
            Some(prefix) if prefix.eq_ignore_ascii_case("urn:uuid:") => &text[9..],
            prefix => return Some(format!("invalid urn prefix: {}", go_quote(prefix.unwrap_or_default()))),
        },
        38 => match text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(inner) => inner,
            None => return Some("invalid bracketed UUID format".to_owned()),
        },
        32 => {
            let good = text.bytes().all(|b| b.is_ascii_hexdigit());
            return (!good).then(|| "invalid UUID format".to_owned());
        }
        other => return Some(format!("invalid UUID length: {other}")),
    };
    let good = plain.bytes().enumerate().all(|(i, b)| match i {
        8 | 13 | 18 | 23 => b == b'-',
        _ => b.is_ascii_hexdigit(),
    });
    (!good).then(|| "invalid UUID format".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_devices_is_said_of_allocated_ones() {
        let device = |name: &str| json!({"driver": "d.example.org", "pool": "p", "device": name});
        let allocation = |names: &[&str]| {
            let results = names.iter().map(|name| {
                let mut result = device(name);
                result["request"] = "r".into();
                result
            });
            json!({"devices": {"results": results.collect::<Vec<_>>()}})
        };
        let claim = |status: Value| json!({"spec": {"devices": {"requests": [{"name": "r"}]}}, "status": status});
        let old = claim(json!({"allocation": allocation(&["a"]), "devices": [device("a")]}));
        let new = claim(json!({"allocation": allocation(&["a"]), "devices": [device("a"), device("b"), device("a")]}));
        let mut errors = ErrorList::new();
        claim_status(&View::root(&new), &View::root(&old), &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let shown = |name| format!(r#"{{"Driver":"d.example.org","Pool":"p","Device":"{name}","ShareID":""}}"#);
        assert_eq!(
            texts,
            [
                format!("status.devices[1]: Invalid value: {}: must be an allocated device in the claim", shown("b")),
                format!("status.devices[2]: Duplicate value: {}", shown("a")),
            ]
        );
        let mut freed = claim(json!({"devices": [device("a")]}));
        drop_deallocated(&mut freed, &old);
        assert_eq!(freed, claim(json!({})));
    }

    #[test]
    fn shares_are_named_by_plain_uuids() {
        for (text, wrong) in [
            ("01234567-89ab-cdef-0123-456789abcdef", None),
            ("{01234567-89ab-cdef-0123-456789abcdef}", None),
            ("urn:uuid:01234567-89ab-cdef-0123-456789abcdef", None),
            ("01234567-89ab-cdef-0123_456789abcdef", Some("invalid UUID format")),
            ("abc", Some("invalid UUID length: 3")),
        ] {
            assert_eq!(uuid_error(text).as_deref(), wrong, "{text}");
        }
    }
}
