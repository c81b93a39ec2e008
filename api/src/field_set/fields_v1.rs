//! The wire form of field sets, `metav1.FieldsV1` (upstream: `structured-merge-diff/fieldpath/serialize*.go`).
//!
//! An element is a key such as `f:spec`, `k:{"name":"c"}`, `v:"x"` or `i:0`; what lies below it is its value; `.` says that
//! the path itself is in the set. An element without anything below it is in the set.

use super::{PathElement, Set};
use serde_json::{Map, Value};

impl Set {
    /// Reads the wire form. Elements of an unknown kind are dropped, as upstream drops them.
    pub fn from_fields_v1(fields: &Value) -> Result<Set, String> {
        match fields {
            Value::Null => Ok(Set::new()),
            Value::Object(map) => read(map).map(|(children, _)| children),
            _ => Err("fieldsV1 is no object".to_owned()),
        }
    }

    /// The wire form.
    pub fn to_fields_v1(&self) -> Value {
        Value::Object(self.write(false))
    }

    fn write(&self, member: bool) -> Map<String, Value> {
        let mut map = Map::new();
        if member && !self.nodes.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for node in &self.nodes {
            map.insert(element_text(&node.element), Value::Object(node.children.write(node.member)));
        }
        map
    }
}

/// What lies below, and whether the path that led here is in the set.
fn read(map: &Map<String, Value>) -> Result<(Set, bool), String> {
    let mut set = Set::new();
    let mut member = false;
    for (key, value) in map {
        if key == "." {
            member = true;
            continue;
        }
        let Some(element) = parse_element(key)? else { continue };
        let (children, is_member) = match value {
            Value::Object(below) => read(below)?,
            _ => (Set::new(), true),
        };
        set.push(element, is_member, children);
    }
    let member = member || set.is_empty();
    Ok((set, member))
}

fn parse_element(text: &str) -> Result<Option<PathElement>, String> {
    if text.len() < 2 {
        return Err("key must be 2 characters long:".to_owned());
    }
    let (kind, rest) = match text.split_once(':') {
        Some((kind, rest)) if kind.len() == 1 => (kind, rest),
        _ => return Err(format!("missing colon: {text}")),
    };
    let json = || serde_json::from_str::<Value>(rest).map_err(|e| e.to_string());
    Ok(match kind {
        "f" => Some(PathElement::field(rest)),
        "v" => Some(PathElement::Value(json()?)),
        "k" => match json()? {
            // The map is sorted, as the fields of a key must be.
            Value::Object(fields) => Some(PathElement::Key(fields.into_iter().map(|(k, v)| (k.into(), v)).collect())),
            _ => return Err(format!("the key {rest} is no object")),
        },
        "i" => Some(PathElement::Index(rest.parse().map_err(|_| format!("the index {rest} is no number"))?)),
        _ => None,
    })
}

fn element_text(element: &PathElement) -> String {
    match element {
        PathElement::Field(name) => format!("f:{name}"),
        PathElement::Key(fields) => {
            let mut out = String::from("k:{");
            for (i, (name, value)) in fields.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&go_json(&Value::from(&**name)));
                out.push(':');
                out.push_str(&go_json(value));
            }
            out.push('}');
            out
        }
        PathElement::Value(value) => format!("v:{}", go_json(value)),
        PathElement::Index(i) => format!("i:{i}"),
    }
}

/// JSON as Go writes it, with the characters escaped that could end an HTML script.
pub(crate) fn go_json(value: &Value) -> String {
    let text = value.to_string();
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}
