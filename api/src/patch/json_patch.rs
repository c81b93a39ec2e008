//! RFC 6902 as upstream's library (`evanphx/json-patch` v4) understands it.
//!
//! Its deviations are part of the API: indices may count from the end, and a missing value equals null in a `test`. What
//! exactly went wrong is never told to a client, so the errors here are for tests and logs.

use serde_json::Value;

/// What all `copy` operations of one patch may add up to, in bytes of JSON.
const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

pub(super) fn apply(document: &Value, operations: &[Value]) -> Result<Value, String> {
    let mut document = document.clone();
    let mut copied = 0;
    for operation in operations {
        let text = |name| operation.get(name).and_then(Value::as_str);
        let path = text("path").ok_or("an operation has no path")?;
        let value = || operation.get("value").cloned().unwrap_or(Value::Null);
        match text("op").unwrap_or_default() {
            "add" => add(&mut document, path, value())?,
            "remove" => {
                remove(&mut document, path)?;
            }
            "replace" => replace(&mut document, path, value())?,
            "move" => {
                let from = text("from").ok_or("a move does not say from where")?;
                let moved = remove(&mut document, from)?;
                add(&mut document, path, moved)?;
            }
            "copy" => {
                let from = text("from").ok_or("a copy does not say from where")?;
                let value = get(&document, from)?.cloned().ok_or_else(|| format!("there is nothing at {from}"))?;
                copied += value.to_string().len();
                if copied > MAX_COPIED_BYTES {
                    return Err(format!("copies add up to more than {MAX_COPIED_BYTES} bytes"));
                }
                add(&mut document, path, value)?;
            }
            "test" => {
                let found = if path.is_empty() { Some(&document) } else { get(&document, path)? };
                if found.unwrap_or(&Value::Null) != &value() {
                    return Err(format!("testing value {path} failed"));
                }
            }
            other => return Err(format!("there is no operation {other:?}")),
        }
    }
    Ok(document)
}

fn unescape(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

/// The parts that lead to the container, and the last part.
fn split(path: &str) -> Result<(Vec<String>, String), String> {
    let mut parts = path.split('/');
    parts.next();
    let mut parts: Vec<String> = parts.map(unescape).collect();
    let last = parts.pop().ok_or_else(|| format!("{path:?} is no path"))?;
    Ok((parts, last))
}

/// An index into a list; negative ones count from the end.
fn index(part: &str, len: usize) -> Option<usize> {
    let i: i64 = part.parse().ok()?;
    let i = if i < 0 { i + len as i64 } else { i };
    usize::try_from(i).ok()
}

fn step<'a>(at: &'a Value, part: &str) -> Option<&'a Value> {
    match at {
        Value::Object(map) => map.get(part),
        Value::Array(items) => items.get(index(part, items.len())?),
        _ => None,
    }
}

fn get<'a>(document: &'a Value, path: &str) -> Result<Option<&'a Value>, String> {
    let (parents, last) = split(path)?;
    let mut at = document;
    for part in &parents {
        at = step(at, part).ok_or_else(|| format!("{path} leads nowhere"))?;
    }
    match at {
        Value::Array(items) => {
            let i = index(&last, items.len()).filter(|&i| i < items.len());
            Ok(Some(&items[i.ok_or_else(|| format!("{path} is out of bounds"))?]))
        }
        Value::Object(map) => Ok(map.get(&last)),
        _ => Err(format!("{path} leads into a scalar")),
    }
}

fn container<'a>(document: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), String> {
    let (parents, last) = split(path)?;
    let mut at = document;
    for part in &parents {
        let next = match at {
            Value::Object(map) => map.get_mut(part),
            Value::Array(items) => index(part, items.len()).and_then(|i| items.get_mut(i)),
            _ => None,
        };
        at = next.ok_or_else(|| format!("{path} leads nowhere"))?;
    }
    Ok((at, last))
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), String> {
    match container(document, path)? {
        (Value::Object(map), key) => {
            map.insert(key, value);
        }
        (Value::Array(items), part) if part == "-" => items.push(value),
        (Value::Array(items), part) => {
            // A negative index counts in the list as it will be.
            let i = index(&part, items.len() + 1).filter(|&i| i <= items.len());
            items.insert(i.ok_or_else(|| format!("{path} is out of bounds"))?, value);
        }
        _ => return Err(format!("{path} leads into a scalar")),
    }
    Ok(())
}

fn remove(document: &mut Value, path: &str) -> Result<Value, String> {
    match container(document, path)? {
        (Value::Object(map), key) => map.remove(&key).ok_or_else(|| format!("there is nothing at {path}")),
        (Value::Array(items), part) => {
            let i = index(&part, items.len()).filter(|&i| i < items.len());
            Ok(items.remove(i.ok_or_else(|| format!("{path} is out of bounds"))?))
        }
        _ => Err(format!("{path} leads into a scalar")),
    }
}

fn replace(document: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return Err("the whole document cannot become a scalar".to_owned());
        }
        *document = value;
        return Ok(());
    }
    match container(document, path)? {
        (Value::Object(map), key) => {
            // As upstream's library, which only asks that there is something to put it into.
            map.insert(key, value);
        }
        (Value::Array(items), part) => {
            let i = index(&part, items.len()).filter(|&i| i < items.len());
            items[i.ok_or_else(|| format!("{path} is out of bounds"))?] = value;
        }
        _ => return Err(format!("{path} leads into a scalar")),
    }
    Ok(())
}
