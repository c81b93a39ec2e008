//! The columns in which a definition wants its objects shown (upstream: `pkg/registry/customresource/tableconvertor`).

use super::json_path::JsonPath;
use crate::registry::resource::Column;
use crate::registry::table;
use coxswain_api::Value;
use coxswain_api::field::{go_float_v, go_json};

pub(super) fn columns(defined: &[Value]) -> Vec<(Column, JsonPath)> {
    let text = |v: &Value, name: &str| v.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = Column {
        name: "Name".into(),
        kind: "string".into(),
        format: "name".into(),
        description: "@meta.v1.ObjectMeta.name".into(),
        priority: 0,
    };
    let of_metadata = |path: &str| JsonPath::parse(path).expect("a path of names");
    let mut columns = vec![(name, of_metadata(".metadata.name"))];
    if defined.is_empty() {
        let age = Column {
            name: "Age".into(),
            kind: "date".into(),
            format: "".into(),
            description: "@meta.v1.ObjectMeta.creationTimestamp".into(),
            priority: 0,
        };
        columns.push((age, of_metadata(".metadata.creationTimestamp")));
    }
    for column in defined {
        let path = text(column, "jsonPath");
        let mut description = text(column, "description");
        if description.is_empty() {
            description = format!("Custom resource definition column (in JSONPath format): {path}");
        }
        let made = Column {
            name: text(column, "name").into(),
            kind: text(column, "type").into(),
            format: text(column, "format").into(),
            description: description.into(),
            priority: column.get("priority").and_then(Value::as_i64).unwrap_or(0) as i32,
        };
        // Upstream shows the columns before one that it cannot read.
        let Some(path) = JsonPath::parse(&path) else { break };
        columns.push((made, path));
    }
    columns
}

/// A value as a column of this type shows it; null if it is of another.
pub(super) fn cell(kind: &str, value: &Value, now: jiff::Timestamp) -> Value {
    match (kind, value) {
        ("integer", Value::Number(n)) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).into(),
        ("number", Value::Number(n)) => {
            n.as_f64().map_or(Value::Null, |f| if n.is_i64() { value.clone() } else { f.into() })
        }
        ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) => table::age_of(text, now).into(),
        ("string", Value::String(_)) => value.clone(),
        ("string", Value::Null) => "<no value>".into(),
        ("string", Value::Array(_) | Value::Object(_)) => go_json(value).into(),
        ("string", other) => printed(other).into(),
        _ => Value::Null,
    }
}

/// A value as Go prints what a field of any type holds.
pub(super) fn printed(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if !number.is_i64() && !number.is_u64() => go_float_v(float),
            _ => number.to_string(),
        },
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(printed).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut members: Vec<(&String, &Value)> = map.iter().collect();
            members.sort_unstable_by_key(|(key, _)| *key);
            let members: Vec<String> = members.into_iter().map(|(k, v)| format!("{k}:{}", printed(v))).collect();
            format!("map[{}]", members.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn texts_are_as_go_prints_them() {
        let check = |value: Value, expected: &str| assert_eq!(printed(&value), expected, "{value}");
        check(json!({"b": [1, "x", null], "a": {"c": true}}), "map[a:map[c:true] b:[1 x <nil>]]");
        check(json!(1.5), "1.5");
        check(json!(2.0), "2");
        check(json!(0.0), "0");
        check(json!(123456.5), "123456.5");
        check(json!(1234567.5), "1.2345675e+06");
        check(json!(0.00001), "1e-05");
        check(json!(12345678), "12345678");
    }

    #[test]
    fn cells_are_of_their_columns_types() {
        let object = json!({
            "metadata": {"name": "o"}, "spec": {"n": 2.7, "s": "x", "none": null, "list": [1, 2]},
            "status": {"conditions": [{"type": "Synced", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        let shown = |kind: &str, path: &str| {
            let made = columns(&[json!({"name": "C", "type": kind, "jsonPath": path})]);
            let (column, path) = made.get(1)?;
            path.find(&object).map(|value| cell(&column.kind, &value, jiff::Timestamp::UNIX_EPOCH))
        };
        assert_eq!(shown("string", ".status.conditions[?(@.type=='Ready')].status"), Some(json!("True")));
        assert_eq!(shown("string", ".spec.list"), Some(json!("[1,2]")));
        assert_eq!(shown("string", ".spec.list[*]"), Some(json!("1")));
        assert_eq!(shown("string", ".spec.none"), Some(json!("<no value>")));
        assert_eq!(shown("integer", ".spec.n"), Some(json!(2)));
        assert_eq!(shown("integer", ".spec.s"), Some(json!(null)));
        assert_eq!(shown("boolean", ".spec.s"), Some(json!(null)));
        // A column that cannot be read ends the list.
        assert_eq!(shown("string", ".spec[x]"), None);
        let cut = columns(&[
            json!({"name": "A", "type": "string", "jsonPath": ".a"}),
            json!({"name": "B", "type": "string", "jsonPath": ".b["}),
            json!({"name": "C", "type": "string", "jsonPath": ".c"}),
        ]);
        assert_eq!(cut.iter().map(|(column, _)| &*column.name).collect::<Vec<_>>(), ["Name", "A"]);
    }
}
