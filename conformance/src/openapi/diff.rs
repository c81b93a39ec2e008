//! The comparison of two documents: both are brought into a form in which order means something wherever it is left, then
//! every difference is one line that begins with where it is.

use serde_json::{Map, Value};

/// Lists that are sets.
const SETS: [&str; 6] = ["required", "enum", "consumes", "produces", "schemes", "tags"];

/// What counts.
#[derive(Default)]
pub(super) struct Rules<'a> {
    pub descriptions: bool,
    pub without_enums: bool,
    pub without_media: &'a [String],
    /// Paths and definitions by how they begin.
    pub skip: &'a [String],
}

pub(super) fn documents(name: &str, ours: &Value, theirs: &Value, rules: &Rules<'_>, found: &mut Vec<String>) {
    let [mut ours, mut theirs] = [ours, theirs].map(|document| {
        let mut comparable = Form { root: document, rules }.of(document, "");
        // Which build it was is not what is compared.
        if let Some(info) = comparable.get_mut("info").and_then(Value::as_object_mut) {
            info.remove("version");
        }
        comparable
    });
    for document in [&mut ours, &mut theirs] {
        for pointer in ["/paths", "/definitions", "/components/schemas"] {
            if let Some(map) = document.pointer_mut(pointer).and_then(Value::as_object_mut) {
                map.retain(|key, _| !rules.skip.iter().any(|s| key.starts_with(s.as_str())));
            }
        }
    }
    compare(&mut vec![name.to_owned()], &ours, &theirs, found);
}

struct Form<'a> {
    root: &'a Value,
    rules: &'a Rules<'a>,
}

impl Form<'_> {
    fn of(&self, value: &Value, key: &str) -> Value {
        match value {
            Value::Object(map) => {
                let mut out = Map::new();
                for (name, inner) in map {
                    let left_out = match name.as_str() {
                        // A property may be called `description`.
                        "description" => inner.is_string() && !self.rules.descriptions,
                        "enum" => inner.is_array() && self.rules.without_enums,
                        _ => key == "content" && self.is_left_out(name),
                    };
                    if !left_out {
                        let inner = if key == "properties" { self.of(inner, "") } else { self.of(inner, name) };
                        out.insert(name.clone(), inner);
                    }
                }
                Value::Object(out)
            }
            Value::Array(items) if key == "parameters" => {
                let named = items.iter().map(|parameter| {
                    let parameter = self.resolved(parameter);
                    let text = |name: &str| parameter[name].as_str().unwrap_or_default().to_owned();
                    (format!("{}/{}", text("in"), text("name")), self.of(parameter, ""))
                });
                Value::Object(named.collect())
            }
            Value::Array(items) => {
                let kept = items.iter().filter(|i| {
                    !(matches!(key, "consumes" | "produces") && i.as_str().is_some_and(|media| self.is_left_out(media)))
                });
                let mut items: Vec<Value> = kept.map(|i| self.of(i, "")).collect();
                if SETS.contains(&key) {
                    items.sort_by_key(Value::to_string);
                }
                Value::Array(items)
            }
            other => other.clone(),
        }
    }

    fn is_left_out(&self, media: &str) -> bool {
        self.rules.without_media.iter().any(|text| media.contains(text.as_str()))
    }

    /// Parameters that many operations share are kept apart in version 2.
    fn resolved<'a>(&'a self, parameter: &'a Value) -> &'a Value {
        let reference = parameter.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
        reference.and_then(|r| self.root.pointer(r)).unwrap_or(parameter)
    }
}

fn compare(path: &mut Vec<String>, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in b {
                path.push(key.clone());
                match a.get(key) {
                    Some(own) => compare(path, own, value, found),
                    // What parameters are shared, and by what names, is nobody's concern.
                    None if is_shared(path) => {}
                    None => found.push(format!("{}: missing {}", path.join(" "), short(value))),
                }
                path.pop();
            }
            for (key, value) in a.iter().filter(|(key, _)| !b.contains_key(*key)) {
                path.push(key.clone());
                if !is_shared(path) {
                    found.push(format!("{}: only here {}", path.join(" "), short(value)));
                }
                path.pop();
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (own, value)) in a.iter().zip(b).enumerate() {
                path.push(i.to_string());
                compare(path, own, value, found);
                path.pop();
            }
        }
        _ if ours == theirs => {}
        _ => found.push(format!("{}: {} instead of {}", path.join(" "), short(ours), short(theirs))),
    }
}

fn is_shared(path: &[String]) -> bool {
    path.len() >= 2 && path[1] == "parameters"
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(160) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(ours: Value, theirs: Value) -> Vec<String> {
        let mut found = Vec::new();
        documents("v2", &ours, &theirs, &Rules::default(), &mut found);
        found
    }

    #[test]
    fn order_and_prose_make_no_difference() {
        let ours = json!({"parameters": {"p": {"in": "query", "name": "a", "description": "x"}},
            "paths": {"/a": {"get": {"parameters": [{"$ref": "#/parameters/p"}, {"in": "path", "name": "b"}], "tags": ["x", "y"]}}}});
        let theirs = json!({"paths": {"/a": {"get": {"tags": ["y", "x"],
            "parameters": [{"in": "path", "name": "b"}, {"in": "query", "name": "a", "description": "y"}]}}}});
        assert_eq!(found(ours, theirs), Vec::<String>::new());
    }

    #[test]
    fn every_difference_is_told_with_its_place() {
        let ours = json!({"definitions": {"A": {"type": "object", "properties": {"description": {"type": "string"}}}}});
        let theirs = json!({"definitions": {"A": {"type": "array", "required": ["a"], "properties": {}}, "B": {}}});
        assert_eq!(
            found(ours, theirs),
            [
                r#"v2 definitions A properties description: only here {"type":"string"}"#,
                r#"v2 definitions A required: missing ["a"]"#,
                r#"v2 definitions A type: "object" instead of "array""#,
                "v2 definitions B: missing {}",
            ]
        );
    }
}
