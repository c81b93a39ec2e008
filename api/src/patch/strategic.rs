//! Strategic merge patch: a merge patch that knows merge keys (upstream: `apimachinery/pkg/util/strategicpatch`).
//!
//! Directives in the patch: `$patch` (`replace`, `delete`, `merge`), `$retainKeys`, `$setElementOrder/list` and
//! `$deleteFromPrimitiveList/list`. Which lists are merged, and by which key, is said by the schema.

use super::{go_print, json_kind, unprocessable};
use crate::Status;
use crate::field::go_quote;
use crate::schema::{Field, StructRef, Type};
use serde_json::{Map, Value};

type Object = Map<String, Value>;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList";

/// Applies a strategic merge patch to an object of the schema.
pub fn strategic(document: &Value, patch: &Value, schema: &StructRef) -> Result<Value, Status> {
    let patch = match patch {
        Value::Object(patch) => patch.clone(),
        Value::Null => Object::new(),
        _ => {
            let what = json_kind(patch);
            let message = format!("json: cannot unmarshal {what} into Go value of type map[string]interface {{}}");
            return Err(Status::bad_request(message));
        }
    };
    let original = document.as_object().cloned().unwrap_or_default();
    merge_map(original, patch, &Context::Struct(schema)).map(Value::Object).map_err(Problem::into_status)
}

/// What went wrong, by how it is answered.
enum Problem {
    /// The format of a directive is wrong.
    Malformed(&'static str),
    /// Refused without a word.
    Unprocessable,
    /// Anything else, which upstream answers as an internal failure without a reason.
    Other(String),
}

impl Problem {
    fn into_status(self) -> Status {
        match self {
            Problem::Malformed(message) => Status::bad_request(message),
            Problem::Unprocessable => unprocessable(),
            Problem::Other(message) => Status::new(500, "", message),
        }
    }
}

const BAD_PRIMITIVE_LIST: Problem = Problem::Malformed("invalid patch format of primitive list");
const BAD_RETAIN_KEYS: Problem = Problem::Malformed("invalid patch format of retainKeys");
const BAD_SET_ORDER: Problem = Problem::Malformed("invalid patch format of setElementOrder list");

fn no_merge_key(item: &Object, key: &str) -> Problem {
    Problem::Other(format!(
        "map: {} does not contain declared merge key: {key}",
        go_print(&Value::Object(item.clone()))
    ))
}

fn bad_type(expected: &str, actual: &Value) -> Problem {
    Problem::Other(format!("expected a {expected}, but received a {}", go_type(actual)))
}

/// The Go type that a decoded value has.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// The type of the object that is being merged.
enum Context<'a> {
    Struct(&'a StructRef),
    Other(&'a Type),
}

impl<'a> Context<'a> {
    fn of(ty: &'a Type) -> Self {
        match ty {
            Type::Struct(s) => Context::Struct(s),
            other => Context::Other(other),
        }
    }

    fn field(&self, key: &str) -> Result<&'a Field, Problem> {
        match self {
            Context::Struct(s) => s.field(key).ok_or_else(|| {
                let name = s.name.rsplit('.').next().unwrap_or_default();
                Problem::Other(format!(
                    "unable to find api field in struct {name} for the json field {}",
                    go_quote(key)
                ))
            }),
            Context::Other(Type::Any(_)) => Err(Problem::Other(format!(
                "unable to find api field in struct RawExtension for the json field {}",
                go_quote(key)
            ))),
            Context::Other(ty) => {
                let kind = match ty {
                    Type::Map(_) => "map",
                    Type::List(_) => "slice",
                    _ => "string",
                };
                Err(Problem::Other(format!(
                    "merging an object in json but data type is not struct, instead is: {kind}"
                )))
            }
        }
    }

    /// Upstream names the Go kind of the element type in one message.
    fn kind_name(&self) -> &'static str {
        match self {
            Context::Struct(_) | Context::Other(Type::Any(_)) => "struct",
            Context::Other(Type::Map(_)) => "map",
            _ => "string",
        }
    }
}

/// A list field: the type of its elements and how it is merged.
struct ListMeta<'a> {
    element: &'a Type,
    merge: bool,
    merge_key: &'a str,
}

fn list_meta<'a>(context: &Context<'a>, key: &str) -> Result<ListMeta<'a>, Problem> {
    let field = context.field(key)?;
    let element = match &field.ty {
        Type::List(list) => &list.element,
        _ => return Err(Problem::Other(format!("expected slice or array type, but got: {}", context.kind_name()))),
    };
    Ok(ListMeta { element, merge: field.patch.merge, merge_key: field.patch.merge_key.as_deref().unwrap_or_default() })
}

/// The name behind `$directive/name`.
fn directive_target<'a>(key: &'a str, directive: &str) -> Option<&'a str> {
    key.strip_prefix(directive)?.strip_prefix('/')
}

fn merge_map(mut original: Object, mut patch: Object, context: &Context<'_>) -> Result<Object, Problem> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Object::new()),
            _ => Err(Problem::Other(format!(
                "unknown patch type: {} in map: {}",
                go_print(directive),
                go_print(&Value::Object(patch.clone()))
            ))),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, context)?;

    for (key, value) in patch {
        let deletes_from_list = key.starts_with(DELETE_FROM_LIST);
        let key = match deletes_from_list {
            true => directive_target(&key, DELETE_FROM_LIST).ok_or(BAD_PRIMITIVE_LIST)?.to_owned(),
            false => key,
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.remove(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                let field = context.field(&key)?;
                if field.patch.replace {
                    Some(Value::Object(new))
                } else {
                    Some(Value::Object(merge_map(old, new, &Context::of(&field.ty))?))
                }
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                let meta = list_meta(context, &key)?;
                if meta.merge || deletes_from_list {
                    Some(Value::Array(merge_list(old, new, &meta, deletes_from_list)?))
                } else {
                    Some(Value::Array(new))
                }
            }
            // Deleting from what is no list leaves it as it is.
            (old, _) if deletes_from_list => old,
            (_, new @ (Value::Object(_) | Value::Array(_))) => without_directives(without_nulls(new)),
            (_, new) => Some(new),
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

/// `$retainKeys`: whatever the patch does not name goes away (unions).
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Problem> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(BAD_RETAIN_KEYS) };
    let retained = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    for (key, value) in patch.iter() {
        let directive = key.starts_with(DELETE_FROM_LIST) || key.starts_with(SET_ORDER);
        if !value.is_null() && !directive && !retained(key) {
            return Err(BAD_RETAIN_KEYS);
        }
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

/// Merges the lists for which the patch gives an order, and takes them out of the patch.
fn set_element_orders(original: &mut Object, patch: &mut Object, context: &Context<'_>) -> Result<(), Problem> {
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let order = match patch.remove(&directive) {
            Some(Value::Array(order)) => order,
            other => return Err(bad_type("[]interface {}", &other.unwrap_or_default())),
        };
        let key = directive_target(&directive, SET_ORDER).ok_or(BAD_SET_ORDER)?;
        let as_list = |value: Option<&Value>| match value {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items.clone())),
            Some(other) => Err(bad_type("[]interface {}", other)),
        };
        let old = as_list(original.get(key))?;
        let new = as_list(patch.get(key))?;
        let meta = list_meta(context, key)?;
        check_order(new.as_deref().unwrap_or_default(), &order, meta.merge_key)?;

        let merged = match (&old, &new) {
            (Some(old), None) => old.clone(),
            (None, Some(new)) => match without_directives(Value::Array(new.clone())) {
                Some(Value::Array(new)) => new,
                _ => continue,
            },
            (Some(old), Some(new)) if meta.merge => merge_list(old.clone(), new.clone(), &meta, false)?,
            (Some(_), Some(new)) => new.clone(),
            (None, None) => continue,
        };
        let server_order = old.unwrap_or_default();
        let is_map = element_is_map(&[&server_order, new.as_deref().unwrap_or_default()])?;
        let (patched, server_only) = partition(merged, &order, meta.merge_key)?;
        let list = normalize_order(patched, server_only, &order, &server_order, meta.merge_key, is_map)?;
        original.insert(key.to_owned(), Value::Array(list));
        patch.remove(key);
    }
    Ok(())
}

/// The items of the patch must come in the order that the patch itself asks for.
fn check_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<(), Problem> {
    if order.is_empty() || patch.is_empty() {
        return Ok(());
    }
    let mut items = Vec::with_capacity(patch.len());
    for item in patch {
        if !merge_key.is_empty() {
            let Value::Object(map) = item else { return Err(bad_type("map[string]interface {}", item)) };
            if map.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                continue;
            }
        }
        items.push(item);
    }
    let (mut i, mut j) = (0, 0);
    while i < items.len() && j < order.len() {
        if items[i].as_object().is_some_and(|m| m.contains_key(DIRECTIVE)) {
            i += 1;
            continue;
        }
        if same_key(items[i], &order[j], merge_key)? {
            i += 1;
        }
        j += 1;
    }
    if i < items.len() && j >= order.len() {
        return Err(Problem::Other(format!(
            "The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n",
            go_print(&Value::Array(patch.to_vec())),
            go_print(&Value::Array(order.to_vec()))
        )));
    }
    Ok(())
}

fn same_key(left: &Value, right: &Value, merge_key: &str) -> Result<bool, Problem> {
    if merge_key.is_empty() {
        return Ok(left == right);
    }
    Ok(key_of(left, merge_key)? == key_of(right, merge_key)?)
}

fn key_of<'a>(item: &'a Value, merge_key: &str) -> Result<&'a Value, Problem> {
    let Value::Object(map) = item else { return Err(bad_type("map[string]interface {}", item)) };
    map.get(merge_key).ok_or_else(|| no_merge_key(map, merge_key))
}

fn merge_list(old: Vec<Value>, new: Vec<Value>, meta: &ListMeta<'_>, delete: bool) -> Result<Vec<Value>, Problem> {
    if old.is_empty() && new.is_empty() {
        return Ok(old);
    }
    let is_map = element_is_map(&[&old, &new])?;
    if !is_map {
        if delete {
            return Ok(old.into_iter().filter(|item| !new.contains(item)).collect());
        }
        let mut merged: Vec<Value> = Vec::with_capacity(old.len() + new.len());
        for item in old.iter().chain(&new) {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        let (patched, server_only) = if meta.merge_key.is_empty() {
            merged.into_iter().partition(|item| new.contains(item))
        } else {
            partition(merged, &new, meta.merge_key)?
        };
        return normalize_order(patched, server_only, &new, &old, meta.merge_key, false);
    }
    if meta.merge_key.is_empty() {
        let kind = Context::of(meta.element).kind_name();
        return Err(Problem::Other(format!("cannot merge lists without merge key for {kind}")));
    }
    let (old, new) = special_elements(old, new, meta.merge_key)?;
    let mut merged = old.clone();
    for item in &new {
        let Value::Object(map) = item else { return Err(bad_type("map[string]interface {}", item)) };
        let key = key_of(item, meta.merge_key)?;
        match find(&merged, meta.merge_key, key)? {
            Some(i) => {
                let Value::Object(present) = std::mem::take(&mut merged[i]) else { continue };
                merged[i] = Value::Object(merge_map(present, map.clone(), &Context::of(meta.element))?);
            }
            None => merged.push(item.clone()),
        }
    }
    let (patched, server_only) = partition(merged, &new, meta.merge_key)?;
    normalize_order(patched, server_only, &new, &old, meta.merge_key, true)
}

/// Obeys the elements that are directives; gives what is left of the list and of the patch.
fn special_elements(old: Vec<Value>, new: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>), Problem> {
    let (mut old, mut plain, mut replace) = (old, Vec::new(), false);
    for item in new {
        let Value::Object(map) = &item else { return Err(bad_type("map[string]interface {}", &item)) };
        match map.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
            None => plain.push(item),
            Some("delete") => {
                let value = map.get(key).ok_or_else(|| no_merge_key(map, key))?;
                while let Some(i) = find(&old, key, value)? {
                    old.remove(i);
                }
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(Problem::Other("merging lists cannot yet be specified in the patch".to_owned()));
            }
            Some(_) => {
                return Err(Problem::Other(format!(
                    "unknown patch type: {} in map: {}",
                    go_print(&map[DIRECTIVE]),
                    go_print(&item)
                )));
            }
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (old, plain) })
}

fn find(items: &[Value], key: &str, value: &Value) -> Result<Option<usize>, Problem> {
    for (i, item) in items.iter().enumerate() {
        let Value::Object(map) = item else {
            return Err(Problem::Other(format!("value for key {i} is not a map")));
        };
        if map.get(key) == Some(value) {
            return Ok(Some(i));
        }
    }
    Ok(None)
}

/// Whether the elements are objects. Mixed elements and lists of lists are refused.
fn element_is_map(lists: &[&[Value]]) -> Result<bool, Problem> {
    let mut first: Option<&Value> = None;
    for item in lists.iter().flat_map(|l| l.iter()) {
        match first {
            None if item.is_array() => return Err(Problem::Unprocessable),
            None => first = Some(item),
            Some(f) if go_type(f) != go_type(item) => {
                let all: Vec<Value> = lists.iter().map(|l| Value::Array(l.to_vec())).collect();
                let all = go_print(&Value::Array(all));
                return Err(Problem::Other(format!("list element types are not identical: {all}")));
            }
            Some(_) => {}
        }
    }
    match first {
        Some(item) => Ok(item.is_object()),
        None => Err(Problem::Other("no elements in any of the given slices".to_owned())),
    }
}

/// Splits into what `by` names and what it does not.
fn partition(items: Vec<Value>, by: &[Value], merge_key: &str) -> Result<(Vec<Value>, Vec<Value>), Problem> {
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in items {
        let found = if merge_key.is_empty() {
            by.contains(&item)
        } else {
            let key = key_of(&item, merge_key)?;
            find(by, merge_key, key)?.is_some()
        };
        if found { named.push(item) } else { others.push(item) }
    }
    Ok((named, others))
}

fn position(order: &[Value], item: &Value, merge_key: &str, is_map: bool) -> Option<usize> {
    if !is_map {
        return order.iter().position(|o| o == item);
    }
    let key = |v: &Value| v.get(merge_key).cloned().unwrap_or_default();
    let wanted = key(item);
    order.iter().position(|o| key(o) == wanted)
}

fn sort_by_order(items: &mut [Value], order: &[Value], merge_key: &str, is_map: bool) -> Result<(), Problem> {
    if is_map {
        for item in items.iter().chain(order) {
            key_of(item, merge_key)?;
        }
    }
    items.sort_by_key(|item| position(order, item, merge_key, is_map).unwrap_or(usize::MAX));
    Ok(())
}

/// The patch's items in the patch's order, the others in the server's order, interleaved by the server's order.
fn normalize_order(
    mut patched: Vec<Value>,
    mut server_only: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: &str,
    is_map: bool,
) -> Result<Vec<Value>, Problem> {
    sort_by_order(&mut patched, patch_order, merge_key, is_map)?;
    sort_by_order(&mut server_only, server_order, merge_key, is_map)?;
    let mut out = Vec::with_capacity(patched.len() + server_only.len());
    let (mut left, mut right) = (server_only.into_iter().peekable(), patched.into_iter().peekable());
    loop {
        let take_left = match (left.peek(), right.peek()) {
            (None, None) => return Ok(out),
            (None, Some(_)) => false,
            (Some(_), None) => true,
            (Some(l), Some(r)) => {
                let at = |item| position(server_order, item, merge_key, is_map);
                matches!((at(l), at(r)), (Some(l), Some(r)) if l < r)
            }
        };
        out.extend(if take_left { left.next() } else { right.next() });
    }
}

/// A value that is new: nulls in objects have nothing to delete.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect::<Object>().into()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// A value that is new: objects that are directives vanish, whole.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            let kept = map.into_iter().filter_map(|(k, v)| Some((k, without_directives(v)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(items.into_iter().filter_map(without_directives).collect()),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;
    use serde_json::json;

    fn patched(document: Value, patch: Value) -> Result<Value, String> {
        let pod = builtin().short("core.v1.Pod").unwrap();
        strategic(&document, &patch, pod).map_err(|s| format!("{} {}", s.code, s.message))
    }

    #[test]
    fn lists_merge_by_key_and_keep_the_order_asked_for() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}], "nodeSelector": {"x": "1", "y": "2"}}});
        let patch = json!({"spec": {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "a"}],
            "containers": [{"name": "c", "image": "2"}, {"name": "a", "image": "2"}, {"name": "b", "$patch": "delete"}],
            "nodeSelector": {"x": null, "z": "3"},
        }});
        assert_eq!(
            patched(pod, patch).unwrap(),
            json!({"spec": {"containers": [{"name": "c", "image": "2"}, {"name": "a", "image": "2"}], "nodeSelector": {"y": "2", "z": "3"}}})
        );
    }

    #[test]
    fn directives_replace_delete_and_retain() {
        let pod = || json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1"}}, "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [{"key": "k"}]}});
        let patch = json!({
            "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"], "labels": {"$patch": "replace", "y": "2"}},
            "spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}], "tolerations": []},
        });
        assert_eq!(
            patched(pod(), patch).unwrap(),
            json!({"metadata": {"finalizers": ["c", "b"], "labels": {"y": "2"}}, "spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}], "tolerations": []}})
        );
        let error = |patch| patched(pod(), patch).unwrap_err();
        assert_eq!(error(json!({"$patch": "explode"})), "500 unknown patch type: explode in map: map[$patch:explode]");
        assert_eq!(
            error(json!({"spec": {"volumes": [{"emptyDir": null}]}})),
            "500 map: map[emptyDir:<nil>] does not contain declared merge key: name"
        );
    }
}
