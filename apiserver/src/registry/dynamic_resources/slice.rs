//! What a slice of a driver's devices must satisfy (upstream: `validateResourceSliceSpec`).

use super::limits::{at_most, set};
use super::names::{key, pool_name, qualified_name};
use crate::registry::checks::{self, IMMUTABLE, NOT_POSITIVE};
use crate::registry::core::pod_spec::{csi_driver_name, node_selector};
use crate::registry::internal::{NODE_SELECTOR_TERMS, dump};
use coxswain_api::Value;
use coxswain_api::field::{BadValue, Error, ErrorList, View};
use coxswain_api::names;
use std::collections::HashSet;

mod capacity;

const DEVICES_MAX: usize = 128;
/// Of devices with taints, counters or lists of attributes, which take more room.
const RICH_DEVICES_MAX: usize = 64;
const COUNTER_SETS_MAX: usize = 8;
const COUNTERS_MAX: usize = 32;
const CONSUMPTIONS_MAX: usize = 2;
const TAINTS_MAX: usize = 16;
const ATTRIBUTES_AND_CAPACITIES_MAX: usize = 32;
const ATTRIBUTE_VALUES_MAX: usize = 48;
const ATTRIBUTE_BYTES_MAX: i64 = 64;
const BINDING_CONDITIONS_MAX: usize = 4;
const KINDS: [&str; 8] = ["int", "bool", "string", "version", "ints", "bools", "strings", "versions"];
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

/// `old` is the slice before an update.
pub(super) fn slice(object: &Value, old: Option<&Value>) -> ErrorList {
    let (spec, mut errors) = (View::root(object).child("spec"), ErrorList::new());
    let before = old.map(|old| View::root(old).child("spec"));
    csi_driver_name(&spec.child("driver"), &mut errors);
    pool(&spec.child("pool"), &mut errors);
    if let Some(before) = &before {
        unchanged(&spec, before, &mut errors);
    }
    place(&spec, &mut errors);
    let (devices, counters) = (spec.child("devices"), spec.child("sharedCounters"));
    if devices.exists() && counters.exists() {
        let why = "only one of `sharedCounters` or `devices` is allowed";
        errors.push(Error::invalid(spec.path(), "", why));
    }
    let rich = |device: View<'_>| {
        !device.child("taints").is_empty()
            || !device.child("consumesCounters").is_empty()
            || device.child("attributes").entries().any(|(_, a)| LISTS.iter().any(|list| a.child(list).exists()))
    };
    let max = if devices.items().any(rich) { RICH_DEVICES_MAX } else { DEVICES_MAX };
    let each_places = spec.child("perDeviceNodeSelection").bool();
    set(&devices, max, "name", &mut errors, |device, errors| {
        let name = device.child("name");
        let before =
            before.as_ref().and_then(|b| b.child("devices").items().find(|d| d.child("name").str() == name.str()));
        validate_device(device, before.as_ref(), each_places, errors);
    });
    set(&counters, COUNTER_SETS_MAX, "name", &mut errors, |set, errors| counter_set(set, "name", errors));
    errors
}

/// A slice stays one driver's, of one pool, on one node.
fn unchanged(spec: &View<'_>, before: &View<'_>, errors: &mut ErrorList) {
    let [pool, old_pool] = [spec, before].map(|of| of.child("pool").child("name"));
    checks::immutable_text(&pool, &old_pool, errors);
    checks::immutable_text(&spec.child("driver"), &before.child("driver"), errors);
    let (node, before) = (spec.child("nodeName"), before.child("nodeName"));
    if node.value() != before.value() {
        errors.push(Error::invalid(node.path(), &node, IMMUTABLE));
    }
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

/// Where the devices are: said in exactly one way.
fn place(spec: &View<'_>, errors: &mut ErrorList) {
    const WAYS: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let given = places(spec, "must be either unset or set to a non-empty string", errors);
    let terms = spec.child("nodeSelector").child("nodeSelectorTerms");
    // Selectors of several slices are merged, which takes one term each.
    if spec.child("nodeSelector").exists() && terms.len() != 1 {
        let why = "must have exactly one node selector term";
        let at = errors.iter().rposition(|e| e.field.starts_with("spec.nodeSelector")).map_or(errors.len(), |i| i + 1);
        errors.insert(at, Error::invalid(terms.path(), dump(&terms, &NODE_SELECTOR_TERMS), why));
    }
    match given.as_slice() {
        [] => errors.push(Error::required(spec.path(), WAYS)),
        [_] => {}
        many => {
            let why = format!("{WAYS}, but multiple fields are set");
            errors.push(Error::invalid(spec.path(), format!("{{{}}}", many.join(", ")), why));
        }
    }
}

/// The ways in which a slice or a device says where it is, each of which is checked.
fn places(of: &View<'_>, empty: &str, errors: &mut ErrorList) -> Vec<String> {
    let mut given = Vec::new();
    let (node, selector) = (of.child("nodeName"), of.child("nodeSelector"));
    if node.exists() && node.is_empty() {
        errors.push(Error::invalid(node.path(), "", empty));
    } else if node.exists() {
        given.push("`nodeName`".to_owned());
        checks::dns_subdomain(&node, errors);
    }
    if selector.exists() {
        given.push("`nodeSelector`".to_owned());
        node_selector(&selector, false, errors);
    }
    for name in ["allNodes", "perDeviceNodeSelection"] {
        let flag = of.child(name);
        match flag.opt_bool() {
            Some(true) => given.push(format!("`{name}`")),
            Some(false) => errors.push(Error::invalid(flag.path(), false, "must be either unset or set to true")),
            None => {}
        }
    }
    given
}

/// A set of counters, or what a device takes of one.
fn counter_set(set: &View<'_>, name: &'static str, errors: &mut ErrorList) {
    let (name, counters) = (set.child(name), set.child("counters"));
    if name.is_empty() {
        errors.push(Error::required(name.path(), ""));
    } else {
        checks::dns_label(&name, errors);
    }
    if counters.is_empty() {
        errors.push(Error::required(counters.path(), ""));
    } else if at_most(&counters, COUNTERS_MAX, errors) {
        for (name, _) in counters.entries() {
            let wrong = names::dns1123_label(name, false);
            errors.extend(wrong.into_iter().map(|why| Error::invalid(counters.path(), name, why)));
        }
    }
}

fn validate_device(device: &View<'_>, old: Option<&View<'_>>, places_itself: bool, errors: &mut ErrorList) {
    checks::dns_label(&device.child("name"), errors);
    let (attributes, capacities) = (device.child("attributes"), device.child("capacity"));
    let count = attributes.len() + capacities.len();
    if count > ATTRIBUTES_AND_CAPACITIES_MAX {
        let why =
            format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_AND_CAPACITIES_MAX}");
        errors.push(Error::invalid(device.path(), count as i64, why));
    }
    let values: usize =
        attributes.entries().map(|(_, a)| LISTS.iter().map(|l| a.child(l).len()).sum::<usize>().max(1)).sum();
    if values > ATTRIBUTE_VALUES_MAX {
        let why = format!("the total number of attribute values must not exceed {ATTRIBUTE_VALUES_MAX}");
        errors.push(Error::invalid(device.path(), values as i64, why));
    }
    for (name, attribute) in attributes.entries() {
        qualified_name(name, &attributes, errors);
        validate_attribute(&key(&attributes, name, &attribute), errors);
    }
    let shared = device.child("allowMultipleAllocations").bool();
    for (name, amount) in capacities.entries() {
        qualified_name(name, &capacities, errors);
        let amount = key(&capacities, name, &amount);
        let policy = amount.child("requestPolicy");
        if policy.exists() && shared {
            capacity::request_policy(&amount.child("value"), &policy, errors);
        } else if policy.exists() {
            errors.push(Error::forbidden(policy.path(), "allowMultipleAllocations must be true"));
        }
    }
    let taints = device.child("taints");
    // What is as before is not looked at again.
    let same = old.is_some_and(|old| checks::same(taints.value(), old.child("taints").value()));
    if !same && at_most(&taints, TAINTS_MAX, errors) {
        taints.items().for_each(|taint| validate_taint(&taint, errors));
    }
    let consumed = device.child("consumesCounters");
    set(&consumed, CONSUMPTIONS_MAX, "counterSet", errors, |set, errors| counter_set(set, "counterSet", errors));
    device_place(device, places_itself, errors);
    binding_conditions(device, errors);
}

fn device_place(device: &View<'_>, places_itself: bool, errors: &mut ErrorList) {
    if !places_itself {
        if ["nodeName", "nodeSelector", "allNodes"].iter().any(|field| device.child(field).exists()) {
            let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in \
                       the ResourceSlice spec";
            errors.push(Error::invalid(device.path(), &Value::Null, why));
        }
        return;
    }
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is \
                       set to true in the ResourceSlice spec";
    match places(device, "must not be empty", errors).as_slice() {
        [] => errors.push(Error::required(device.path(), ONE)),
        [_] => {}
        many => errors.push(Error::invalid(device.path(), format!("{{{}}}", many.join(", ")), ONE)),
    }
}

fn validate_taint(taint: &View<'_>, errors: &mut ErrorList) {
    let (key, value, effect) = (taint.child("key"), taint.child("value"), taint.child("effect"));
    checks::qualified_name(&key, errors);
    if !value.is_empty() {
        checks::all(&value, names::label_value(value.str()), errors);
    }
    checks::one_of(&effect, &super::validation::TAINT_EFFECTS, errors);
}

/// What must become true of a device before a pod is bound to its node, and what must not: both are named, or neither
/// (upstream: `validateDeviceBindingParameters`).
pub(super) fn binding_conditions(device: &View<'_>, errors: &mut ErrorList) {
    let (wanted, failures) = (device.child("bindingConditions"), device.child("bindingFailureConditions"));
    for list in [&wanted, &failures] {
        if at_most(list, BINDING_CONDITIONS_MAX, errors) {
            list.items().for_each(|name| checks::qualified_name(&name, errors));
        }
    }
    let all: HashSet<&str> = wanted.items().map(|name| name.str()).collect();
    for (list, is_failure) in [(&wanted, false), (&failures, true)] {
        let mut seen = HashSet::new();
        for name in list.items() {
            if !seen.insert(name.str()) {
                errors.push(Error::duplicate(name.path(), name.str()));
            }
            if is_failure && all.contains(name.str()) {
                let why = "bindingFailureConditions must not overlap with bindingConditions";
                errors.push(Error::invalid(name.path(), name.str(), why));
            }
        }
    }
    if wanted.is_empty() && !failures.is_empty() {
        let why = "bindingConditions are required to use bindingFailureConditions";
        errors.push(Error::invalid(wanted.path(), &wanted, why));
    }
    if failures.is_empty() && !wanted.is_empty() {
        let why = "bindingFailureConditions are required to use bindingConditions";
        errors.push(Error::invalid(failures.path(), &failures, why));
    }
}

fn validate_attribute(attribute: &View<'_>, errors: &mut ErrorList) {
    let text_errors = |text: &View<'_>, is_version: bool, errors: &mut ErrorList| {
        if is_version && !is_semantic_version(text.str()) {
            let why = "must be a string compatible with semver.org spec 2.0.0";
            errors.push(Error::invalid(text.path(), text.str(), why));
        }
        if text.str().len() as i64 > ATTRIBUTE_BYTES_MAX {
            errors.push(Error::too_long(text.path(), ATTRIBUTE_BYTES_MAX));
        }
    };
    for (field, is_version) in [("string", false), ("version", true)] {
        let text = attribute.child(field);
        if text.exists() {
            text_errors(&text, is_version, errors);
        }
    }
    for field in LISTS {
        let list = attribute.child(field);
        if list.exists() && list.is_empty() {
            errors.push(Error::invalid(list.path(), &list, "must not be empty if specified"));
        }
        if matches!(field, "strings" | "versions") {
            list.items().for_each(|text| text_errors(&text, field == "versions", errors));
        }
    }
    const ONE: &str = "exactly one value must be specified";
    match KINDS.iter().filter(|kind| attribute.child(kind).exists()).count() {
        1 => {}
        0 => errors.push(Error::invalid(attribute.path(), "", ONE)),
        _ => errors.push(Error::invalid(attribute.path(), Attribute(attribute), ONE)),
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
                format!(r#""{}Value{many}":{}"#, super::validation::capital(one), self.0.child(kind).text())
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

    fn wrong(spec: Value, old: Option<Value>) -> Vec<String> {
        let (new, old) = (json!({ "spec": spec }), old.map(|old| json!({ "spec": old })));
        slice(&new, old.as_ref()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn slices_say_where_their_devices_are() {
        let with = |more: Value| {
            let mut spec = json!({"driver": "d.example.org", "pool": {"name": "p", "resourceSliceCount": 1}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        for (more, expected) in [
            (json!({"allNodes": true}), &[][..]),
            (
                json!({"nodeName": "n", "allNodes": true}),
                &[
                    "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set",
                ],
            ),
            (
                json!({"nodeSelector": {}}),
                &[
                    "spec.nodeSelector.nodeSelectorTerms: Required value: must have at least one node selector term",
                    "spec.nodeSelector.nodeSelectorTerms: Invalid value: null: must have exactly one node selector term",
                ],
            ),
            (
                json!({"allNodes": true, "devices": [{"name": "a", "allNodes": true}], "sharedCounters": [{"name": "c"}]}),
                &[
                    "spec: Invalid value: \"\": only one of `sharedCounters` or `devices` is allowed",
                    "spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
                    "spec.sharedCounters[0].counters: Required value",
                ],
            ),
            (
                json!({"perDeviceNodeSelection": true, "devices": [{"name": "a", "bindingConditions": ["x", "x"]}]}),
                &[
                    "spec.devices[0]: Required value: exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
                    "spec.devices[0].bindingConditions[1]: Duplicate value: \"x\"",
                    "spec.devices[0].bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use bindingConditions",
                ],
            ),
        ] {
            assert_eq!(wrong(with(more.clone()), None), expected, "{more}");
        }
        // A taint that was there may stay wrong.
        let tainted = with(json!({"allNodes": true, "devices": [{"name": "a", "taints": [{"key": "k"}]}]}));
        assert_eq!(wrong(tainted.clone(), None), ["spec.devices[0].taints[0].effect: Required value"]);
        assert!(wrong(tainted.clone(), Some(tainted)).is_empty());
    }
}
