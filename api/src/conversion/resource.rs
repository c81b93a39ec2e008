//! Devices and requests of `resource.k8s.io/v1beta1`, which nests the one and flattens the other where later versions do not.

use serde_json::{Map, Value};

/// What later versions have within `exactly`.
const EXACTLY: [&str; 7] =
    ["deviceClassName", "selectors", "allocationMode", "count", "adminAccess", "tolerations", "capacity"];

pub(super) fn from_v1beta1(kind: &str) -> Option<fn(&mut Value)> {
    match kind {
        "ResourceClaim" => Some(|o| requests(o, "/spec/devices/requests", nest_request)),
        "ResourceClaimTemplate" => Some(|o| requests(o, "/spec/spec/devices/requests", nest_request)),
        "ResourceSlice" => Some(|o| requests(o, "/spec/devices", flatten_device)),
        _ => None,
    }
}

pub(super) fn to_v1beta1(kind: &str) -> Option<fn(&mut Value)> {
    match kind {
        "ResourceClaim" => Some(|o| requests(o, "/spec/devices/requests", flatten_request)),
        "ResourceClaimTemplate" => Some(|o| requests(o, "/spec/spec/devices/requests", flatten_request)),
        "ResourceSlice" => Some(|o| requests(o, "/spec/devices", nest_device)),
        _ => None,
    }
}

fn requests(object: &mut Value, path: &str, change: fn(&mut Map<String, Value>)) {
    let items = object.pointer_mut(path).and_then(Value::as_array_mut).into_iter().flatten();
    items.filter_map(Value::as_object_mut).for_each(change);
}

fn nest_request(request: &mut Map<String, Value>) {
    let exactly: Map<String, Value> =
        EXACTLY.iter().filter_map(|name| request.remove(*name).map(|v| ((*name).to_owned(), v))).collect();
    let is_said = |v: &Value| !(v.is_null() || v.as_str() == Some(""));
    if exactly.values().any(is_said) {
        request.insert("exactly".into(), exactly.into());
    }
}

fn flatten_request(request: &mut Map<String, Value>) {
    if let Some(Value::Object(exactly)) = request.remove("exactly") {
        request.extend(exactly);
    }
}

fn flatten_device(device: &mut Map<String, Value>) {
    if let Some(Value::Object(basic)) = device.remove("basic") {
        device.extend(basic);
    }
}

fn nest_device(device: &mut Map<String, Value>) {
    let name = device.remove("name");
    let basic = std::mem::take(device);
    device.extend(name.map(|name| ("name".to_owned(), name)));
    device.insert("basic".into(), basic.into());
}
