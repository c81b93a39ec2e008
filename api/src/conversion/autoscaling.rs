//! `autoscaling/v1` knows one metric, the CPU's utilization; all else of `autoscaling/v2` is kept in annotations.

use crate::codec::json;
use crate::schema;
use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// The fields of a behavior as upstream's internal type names them, in its order.
const SCALING_RULES: [(&str, &str); 4] = [
    ("stabilizationWindowSeconds", "StabilizationWindowSeconds"),
    ("selectPolicy", "SelectPolicy"),
    ("policies", "Policies"),
    ("tolerance", "Tolerance"),
];
const POLICY: [(&str, &str); 3] = [("type", "Type"), ("value", "Value"), ("periodSeconds", "PeriodSeconds")];

fn field<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    value.pointer(path).filter(|v| !v.is_null())
}

fn set(map: &mut Map<String, Value>, name: &str, value: Option<&Value>) {
    if let Some(value) = value {
        map.insert(name.into(), value.clone());
    }
}

fn section<'a>(object: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    object.get_mut(name).and_then(Value::as_object_mut)
}

/// The utilization of the CPU that a metric asks for or reports, if that is what it is.
fn cpu_utilization<'a>(metric: &'a Value, part: &str) -> Option<&'a Value> {
    let is_cpu = metric["type"] == "Resource" && metric["resource"]["name"] == "cpu";
    if is_cpu { field(metric, &format!("/resource/{part}/averageUtilization")) } else { None }
}

pub(super) fn v2_to_v1(object: &mut Value) {
    drop_annotations(object);
    let metrics = object.pointer("/spec/metrics").and_then(Value::as_array).cloned().unwrap_or_default();
    let current = object.pointer("/status/currentMetrics").and_then(Value::as_array).cloned().unwrap_or_default();
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let behavior = field(object, "/spec/behavior").cloned();

    let mut annotations = Vec::new();
    let others: Vec<Value> =
        metrics.iter().filter(|m| cpu_utilization(m, "target").is_none()).map(metric_to_v1).collect();
    if !others.is_empty() {
        annotations.push((METRICS, encode(&others, "autoscaling.v1.MetricSpec")));
    }
    if !current.is_empty() {
        let current: Vec<Value> = current.iter().map(status_to_v1).collect();
        annotations.push((CURRENT_METRICS, encode(&current, "autoscaling.v1.MetricStatus")));
    }
    if let Some(behavior) = &behavior {
        annotations.push((BEHAVIOR, encode_behavior(behavior)));
    }
    if !conditions.is_empty() {
        annotations.push((CONDITIONS, encode(&conditions, "autoscaling.v1.HorizontalPodAutoscalerCondition")));
    }
    if let Some(spec) = section(object, "spec") {
        spec.remove("metrics");
        spec.remove("behavior");
        let utilization = metrics.iter().find_map(|m| cpu_utilization(m, "target"));
        set(spec, "targetCPUUtilizationPercentage", utilization);
    }
    if let Some(status) = section(object, "status") {
        status.remove("currentMetrics");
        status.remove("conditions");
        let utilization = current.iter().find_map(|m| cpu_utilization(m, "current"));
        set(status, "currentCPUUtilizationPercentage", utilization);
    }
    if annotations.is_empty() {
        return;
    }
    if let Some(metadata) = section(object, "metadata") {
        let held = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(held) = held.as_object_mut() {
            held.extend(annotations.into_iter().map(|(key, text)| (key.to_owned(), text.into())));
        }
    }
}

pub(super) fn v1_to_v2(object: &mut Value) {
    let annotation = |key: &str| {
        let held = object.pointer("/metadata/annotations").and_then(|a| a.get(key));
        held.and_then(Value::as_str).map(str::to_owned)
    };
    // What does not parse counts as not there.
    let list = |key: &str, kind: &str| annotation(key).and_then(|text| decode(&text, kind)).unwrap_or_default();
    let others = list(METRICS, "autoscaling.v1.MetricSpec");
    let current = list(CURRENT_METRICS, "autoscaling.v1.MetricStatus");
    let conditions = list(CONDITIONS, "autoscaling.v1.HorizontalPodAutoscalerCondition");
    let behavior = annotation(BEHAVIOR).and_then(|text| decode_behavior(&text));
    drop_annotations(object);

    if let Some(spec) = section(object, "spec") {
        let mut metrics: Vec<Value> = others.iter().map(metric_to_v2).collect();
        if let Some(utilization) = spec.remove("targetCPUUtilizationPercentage").filter(|u| !u.is_null()) {
            metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": utilization}}}));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".into(), metrics.into());
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".into(), behavior);
        }
    }
    if let Some(status) = section(object, "status") {
        let utilization = status.remove("currentCPUUtilizationPercentage").filter(|u| !u.is_null());
        // What was kept says more than the one number.
        let metrics = if current.is_empty() {
            let one =
                |u| json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": u}}});
            utilization.map(one).into_iter().collect()
        } else {
            current.iter().map(status_to_v2).collect::<Vec<_>>()
        };
        if !metrics.is_empty() {
            status.insert("currentMetrics".into(), metrics.into());
        }
        if !conditions.is_empty() {
            status.insert("conditions".into(), conditions.into());
        }
    }
}

fn drop_annotations(object: &mut Value) {
    let Some(metadata) = section(object, "metadata") else { return };
    if let Some(held) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR].iter().for_each(|key| drop(held.remove(*key)));
        if held.is_empty() {
            metadata.remove("annotations");
        }
    }
}

fn encode(items: &[Value], kind: &str) -> String {
    let mut out = vec![b'['];
    if let Some(schema) = schema::builtin().short(kind) {
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            json::encode(item, schema, &mut out);
        }
    }
    out.push(b']');
    String::from_utf8(out).unwrap_or_default()
}

fn decode(text: &str, kind: &str) -> Option<Vec<Value>> {
    let schema = schema::builtin().short(kind)?;
    let items = json::decode_any(text.as_bytes()).ok()?.value;
    items.as_array()?.iter().map(|item| json::decode_tree(item, schema).ok().map(|d| d.value)).collect()
}

/// The name of a metric's own section: `ContainerResource` is `containerResource`.
fn section_name(metric: &Value) -> String {
    let kind = metric["type"].as_str().unwrap_or_default();
    let mut chars = kind.chars();
    chars.next().map_or_else(String::new, |c| c.to_lowercase().chain(chars).collect())
}

fn metric_to_v1(metric: &Value) -> Value {
    let name = section_name(metric);
    let from = &metric[&name];
    let mut to = Map::new();
    let mut take = |as_name: &str, path: &str| set(&mut to, as_name, field(from, path));
    match &*name {
        "object" => {
            take("target", "/describedObject");
            take("metricName", "/metric/name");
            take("selector", "/metric/selector");
            take("targetValue", "/target/value");
            take("averageValue", "/target/averageValue");
        }
        "pods" => {
            take("metricName", "/metric/name");
            take("selector", "/metric/selector");
            take("targetAverageValue", "/target/averageValue");
        }
        "external" => {
            take("metricName", "/metric/name");
            take("metricSelector", "/metric/selector");
            take("targetValue", "/target/value");
            take("targetAverageValue", "/target/averageValue");
        }
        _ => {
            take("name", "/name");
            take("container", "/container");
            take("targetAverageUtilization", "/target/averageUtilization");
            take("targetAverageValue", "/target/averageValue");
        }
    }
    json!({"type": metric["type"], name: to})
}

fn metric_to_v2(metric: &Value) -> Value {
    let name = section_name(metric);
    let from = &metric[&name];
    let mut to = Map::new();
    let mut target = Map::new();
    let mut described = Map::new();
    let average = field(from, "/averageValue").or_else(|| field(from, "/targetAverageValue"));
    let kind = match &*name {
        "object" => {
            set(&mut to, "describedObject", field(from, "/target"));
            set(&mut described, "selector", field(from, "/selector"));
            set(&mut target, "value", field(from, "/targetValue"));
            if average.is_some() { "AverageValue" } else { "Value" }
        }
        "pods" => {
            set(&mut described, "selector", field(from, "/selector"));
            "AverageValue"
        }
        "external" => {
            set(&mut described, "selector", field(from, "/metricSelector"));
            set(&mut target, "value", field(from, "/targetValue"));
            if field(from, "/targetValue").is_some() { "Value" } else { "AverageValue" }
        }
        _ => {
            set(&mut to, "name", field(from, "/name"));
            set(&mut to, "container", field(from, "/container"));
            set(&mut target, "averageUtilization", field(from, "/targetAverageUtilization"));
            if field(from, "/targetAverageUtilization").is_some() { "Utilization" } else { "AverageValue" }
        }
    };
    set(&mut target, "averageValue", average);
    target.insert("type".into(), kind.into());
    to.insert("target".into(), target.into());
    if matches!(&*name, "object" | "pods" | "external") {
        set(&mut described, "name", field(from, "/metricName"));
        to.insert("metric".into(), described.into());
    }
    json!({"type": metric["type"], name: to})
}

fn status_to_v1(metric: &Value) -> Value {
    let name = section_name(metric);
    let from = &metric[&name];
    let mut to = Map::new();
    let mut take = |as_name: &str, path: &str| set(&mut to, as_name, field(from, path));
    match &*name {
        "object" => {
            take("target", "/describedObject");
            take("metricName", "/metric/name");
            take("selector", "/metric/selector");
            take("currentValue", "/current/value");
            take("averageValue", "/current/averageValue");
        }
        "pods" => {
            take("metricName", "/metric/name");
            take("selector", "/metric/selector");
            take("currentAverageValue", "/current/averageValue");
        }
        "external" => {
            take("metricName", "/metric/name");
            take("metricSelector", "/metric/selector");
            take("currentValue", "/current/value");
            take("currentAverageValue", "/current/averageValue");
        }
        _ => {
            take("name", "/name");
            take("container", "/container");
            take("currentAverageUtilization", "/current/averageUtilization");
            take("currentAverageValue", "/current/averageValue");
        }
    }
    json!({"type": metric["type"], name: to})
}

fn status_to_v2(metric: &Value) -> Value {
    let name = section_name(metric);
    let from = &metric[&name];
    let mut to = Map::new();
    let mut current = Map::new();
    let mut described = Map::new();
    set(&mut current, "averageValue", field(from, "/averageValue").or_else(|| field(from, "/currentAverageValue")));
    set(&mut current, "averageUtilization", field(from, "/currentAverageUtilization"));
    set(&mut current, "value", field(from, "/currentValue"));
    to.insert("current".into(), current.into());
    match &*name {
        "object" | "pods" | "external" => {
            set(&mut to, "describedObject", field(from, "/target"));
            set(&mut described, "name", field(from, "/metricName"));
            set(&mut described, "selector", field(from, "/selector").or_else(|| field(from, "/metricSelector")));
            to.insert("metric".into(), described.into());
        }
        _ => {
            set(&mut to, "name", field(from, "/name"));
            set(&mut to, "container", field(from, "/container"));
        }
    }
    json!({"type": metric["type"], name: to})
}

/// Upstream writes its internal type, which has Go's names, in Go's order, with null for what is not there.
fn encode_behavior(behavior: &Value) -> String {
    let object = |members: Vec<(&str, String)>| {
        let members: Vec<String> = members.iter().map(|(name, text)| format!("\"{name}\":{text}")).collect();
        format!("{{{}}}", members.join(","))
    };
    let rules = |rules: &Value| {
        if rules.is_null() {
            return "null".to_owned();
        }
        let member = |(name, go_name): &(&'static str, &'static str)| {
            let text = match (*name, rules.get(*name)) {
                ("policies", Some(Value::Array(policies))) => {
                    let one = |p: &Value| object(POLICY.iter().map(|(n, go)| (*go, p[*n].to_string())).collect());
                    format!("[{}]", policies.iter().map(one).collect::<Vec<_>>().join(","))
                }
                (_, value) => value.map_or_else(|| "null".to_owned(), Value::to_string),
            };
            (*go_name, text)
        };
        object(SCALING_RULES.iter().map(member).collect())
    };
    object(vec![("ScaleUp", rules(&behavior["scaleUp"])), ("ScaleDown", rules(&behavior["scaleDown"]))])
}

fn decode_behavior(text: &str) -> Option<Value> {
    let read = json::decode_any(text.as_bytes()).ok()?.value;
    // Go's decoder takes names in any case.
    let get = |object: &Value, name: &str| {
        let map = object.as_object()?;
        map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone()).filter(|v| !v.is_null())
    };
    let rules = |rules: Value| {
        let mut out = Map::new();
        for (name, _) in SCALING_RULES {
            let Some(mut value) = get(&rules, name) else { continue };
            if let Value::Array(policies) = &mut value {
                for policy in policies {
                    let members = POLICY.iter().filter_map(|(n, _)| get(policy, n).map(|v| ((*n).to_owned(), v)));
                    *policy = members.collect::<Map<_, _>>().into();
                }
            }
            out.insert(name.into(), value);
        }
        Value::Object(out)
    };
    let mut out = Map::new();
    for name in ["scaleUp", "scaleDown"] {
        if let Some(found) = get(&read, name) {
            out.insert(name.into(), rules(found));
        }
    }
    read.is_object().then_some(Value::Object(out))
}
