//! Patches and server-side apply: none panics, and what is applied twice changes nothing the second time.

use crate::source::Source;
use coxswain_api::codec::{Format, decode, json};
use coxswain_api::managed_fields::{self, SingleVersion, Write, entries_of, validate_entries};
use coxswain_api::schema::StructRef;
use coxswain_api::{Map, Value, patch};
use jiff::Timestamp;
use serde_json::json;

/// Kinds that are patched with lists of every sort in them.
const KINDS: [&str; 6] = ["Pod", "Deployment", "Service", "Node", "ServiceAccount", "FlowSchema"];

/// A kind and a canonical object of it.
fn subject(source: &mut Source<'_>) -> Option<(&'static str, &'static str, &'static StructRef, Value)> {
    let wanted = KINDS[source.below(KINDS.len())];
    let (api_version, kind, schema) = crate::source::KINDS.iter().rfind(|(_, k, _)| k == wanted)?;
    let tree = source.object(api_version, kind, schema);
    let value = json::decode_tree(&tree, schema).ok()?.value;
    Some((api_version, kind, schema, value))
}

/// A path into a tree, or beside it.
fn pointer(source: &mut Source<'_>, document: &Value) -> String {
    let mut at = document;
    let mut path = String::new();
    for _ in 0..source.below(7) {
        let step = match at {
            Value::Object(map) if !map.is_empty() && !source.rarely() => {
                map.keys().nth(source.below(map.len())).cloned().unwrap_or_default()
            }
            Value::Array(items) if !items.is_empty() && !source.rarely() => source.below(items.len()).to_string(),
            Value::Array(_) => ["-", "0", "-1", "99", "01"][source.below(5)].to_owned(),
            _ => source.word().as_str().unwrap_or_default().to_owned(),
        };
        path.push('/');
        path.push_str(&step.replace('~', "~0").replace('/', "~1"));
        at = match at {
            Value::Object(map) => map.get(&step).unwrap_or(&Value::Null),
            Value::Array(items) => step.parse().ok().and_then(|i: usize| items.get(i)).unwrap_or(&Value::Null),
            _ => &Value::Null,
        };
    }
    path
}

pub(crate) fn json_patch(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let document = source.any(0);
    let operations: Vec<Value> = (0..source.below(6))
        .map(|_| {
            let op = ["add", "remove", "replace", "move", "copy", "test"][source.below(6)];
            let mut operation = json!({"op": op, "path": pointer(&mut source, &document)});
            if matches!(op, "move" | "copy") {
                operation["from"] = pointer(&mut source, &document).into();
            } else if !source.rarely() {
                operation["value"] = source.any(4);
            }
            operation
        })
        .collect();
    let all_tests = operations.iter().all(|o| o["op"] == "test");
    if let Ok(patched) = patch::json(&document, &Value::Array(operations)) {
        assert!(!all_tests || patched == document, "a test has changed the document");
        let whole = json!([{"op": "replace", "path": "", "value": document}]);
        let _ = patch::json(&patched, &whole);
    }
}

/// Patches as people write them, of text that is mutated.
pub(crate) fn json_patch_text(bytes: &[u8]) {
    let at = bytes.iter().position(|b| *b == b'|').unwrap_or(bytes.len());
    let (document, rest) = bytes.split_at(at);
    let (Ok(document), Ok(patch)) =
        (json::decode_any(document), json::decode_any(rest.strip_prefix(b"|").unwrap_or(rest)))
    else {
        return;
    };
    let _ = patch::json(&document.value, &patch.value);
    let _ = patch::merge(&document.value, &patch.value);
}

pub(crate) fn merge_patch(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let (document, change) = (source.any(0), source.any(0));
    let Ok(once) = patch::merge(&document, &change) else { return };
    if change.is_object() {
        assert_eq!(patch::merge(&once, &change).expect("it was taken once"), once, "{change} twice on {document}");
    }
}

/// Adds directives to a patch here and there.
fn with_directives(source: &mut Source<'_>, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (_, inner) in map.iter_mut() {
                with_directives(source, inner);
            }
            let keys: Vec<String> = map.keys().cloned().collect();
            match source.byte() {
                240..=243 => {
                    drop(map.insert("$patch".into(), ["replace", "delete", "merge", "dance"][source.below(4)].into()))
                }
                244..=246 => drop(map.insert("$retainKeys".into(), keys.into())),
                247..=249 if !keys.is_empty() => {
                    let key = &keys[source.below(keys.len())];
                    let of: Value = (0..source.below(3)).map(|_| source.word()).collect();
                    map.insert(format!("$deleteFromPrimitiveList/{key}"), of);
                }
                250..=252 if !keys.is_empty() => {
                    let key = &keys[source.below(keys.len())];
                    let order: Value = match &map[key] {
                        Value::Array(items) => items.iter().rev().cloned().collect(),
                        _ => json!([{"name": "a"}, "b"]),
                    };
                    map.insert(format!("$setElementOrder/{key}"), order);
                }
                _ => {}
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| with_directives(source, item)),
        _ => {}
    }
}

pub(crate) fn strategic_merge_patch(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let Some((_, _, schema, document)) = subject(&mut source) else { return };
    let mut change = source.of_struct(schema, 0);
    let Ok(plain) = patch::strategic(&document, &change, schema) else { return };
    // Where keys are missing or come twice, elements are appended each time, as upstream does.
    let _ = patch::strategic(&plain, &change, schema);
    if let Ok(decoded) = json::decode_tree(&plain, schema) {
        let _ = patch::strategic(&decoded.value, &change, schema);
    }
    assert_eq!(
        patch::strategic(&document, &Value::Object(Map::new()), schema).expect("an empty patch is a patch"),
        document,
        "an empty patch changes something"
    );
    with_directives(&mut source, &mut change);
    if let Ok(patched) = patch::strategic(&document, &change, schema) {
        let _ = json::decode_tree(&patched, schema);
    }
}

fn write<'a>(manager: &'a str, api_version: &'a str, kind: &'a str, schema: &'a StructRef) -> Write<'a> {
    let now = Timestamp::from_second(1_000_000_000).expect("a time of this age");
    Write { schema, api_version, kind, manager, subresource: "", reset: None, versions: &SingleVersion, now }
}

/// As the pipeline does it: what is merged is decoded before it is stored.
fn settled(object: Value, schema: &StructRef) -> Option<Value> {
    let mut text = Vec::new();
    json::encode_value(&object, &mut text);
    decode(&text, Format::Json, schema).ok().map(|d| d.value)
}

pub(crate) fn server_side_apply(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let Some((api_version, kind, schema, mut first)) = subject(&mut source) else { return };
    let mut second = source.of_struct(schema, 0);
    second["apiVersion"] = api_version.into();
    second["kind"] = kind.into();
    managed_fields::set_entries(&mut first, None);
    managed_fields::set_entries(&mut second, None);
    let (a, b) = (write("a", api_version, kind, schema), write("b", api_version, kind, schema));
    let Ok(applied) = managed_fields::apply(&a, None, &first, false) else { return };
    let Some(live) = settled(applied.object, schema) else { return };
    check_entries(&live);
    let again = managed_fields::apply(&a, Some(&live), &first, false).expect("what was applied can be applied again");
    assert_eq!(settled(again.object, schema).as_ref(), Some(&live), "an apply changes something the second time");
    // Another manager: without force it may conflict, by force it may not.
    let quietly = managed_fields::apply(&b, Some(&live), &second, false);
    let Ok(forced) = managed_fields::apply(&b, Some(&live), &second, true) else {
        assert!(quietly.is_err(), "force fails where asking succeeds");
        return;
    };
    let Some(both) = settled(forced.object, schema) else { return };
    check_entries(&both);
    if let Ok(again) = managed_fields::apply(&b, Some(&both), &second, false) {
        assert_eq!(settled(again.object, schema).as_ref(), Some(&both), "an apply changes something the second time");
    }
    // An update that takes everything away again.
    let mut updated = live.clone();
    managed_fields::set_entries(&mut updated, entries_of(&both).cloned());
    managed_fields::update(&write("c", api_version, kind, schema), Some(&both), &mut updated);
    check_entries(&updated);
}

fn check_entries(object: &Value) {
    if let Some(entries) = entries_of(object) {
        assert_eq!(validate_entries(entries), Ok(()), "{entries}");
    }
}
