//! Lists and sets (upstream: cel-go `ext/lists.go` and `ext/sets.go`, `apiserver/pkg/cel/library/lists.go`).

use super::{Found, convert, no_overload, numbers, strings};
use crate::decl::ListType;
use crate::eval::Error;
use crate::value::{Text, Value};
use std::cmp::Ordering;

/// The element at an index of a list, or the value at a key of a map.
pub(crate) fn at<'a>(container: &Value<'a>, index: &Value<'_>) -> Found<'a> {
    let Some(list) = container.elements() else {
        return container.find(index)?.ok_or_else(|| Error::no_key(index));
    };
    let at = match index {
        Value::Int(n) => *n,
        Value::Uint(n) => i64::try_from(*n).unwrap_or(i64::MAX),
        Value::Double(n) if n.fract() == 0.0 => *n as i64,
        other => {
            return Err(Error::new(format!("unsupported index type '{}' in list", other.type_name())));
        }
    };
    let found = usize::try_from(at).ok().and_then(|at| list.get(at).cloned());
    found.ok_or_else(|| Error::new(format!("index out of bounds: {at}")))
}

/// Two lists, one after the other. Into a set and into a map of its kind the second is merged.
pub(super) fn concatenated<'a>(a: &Value<'a>, b: &Value<'a>) -> Found<'a> {
    let (Some(first), Some(second)) = (a.elements(), b.elements()) else { return Err(Error::no_overload()) };
    let mut made = first.into_owned();
    let same = |x: &Value<'a>, y: &Value<'a>| match a.list_type() {
        ListType::Atomic => false,
        ListType::Set => x.equals(y),
        ListType::Map(keys) => keys.iter().all(|key| {
            let key = Value::Text(Text::Made((&**key).into()));
            match (x.find(&key), y.find(&key)) {
                (Ok(Some(x)), Ok(Some(y))) => x.equals(&y),
                (Ok(None), Ok(None)) => true,
                _ => false,
            }
        }),
    };
    for value in second.iter() {
        match made.iter().position(|old| same(old, value)) {
            Some(at) => made[at] = value.clone(),
            None => made.push(value.clone()),
        }
    }
    Ok(Value::list(made))
}

pub(super) fn sets<'a>(name: &str, a: &Value<'a>, b: &Value<'a>) -> Found<'a> {
    let (Some(a), Some(b)) = (a.elements(), b.elements()) else { return Err(Error::no_overload()) };
    let has = |list: &[Value<'a>], value: &Value<'a>| list.iter().any(|v| v.equals(value));
    Ok(Value::Bool(match name {
        "sets.contains" => b.iter().all(|v| has(&a, v)),
        "sets.equivalent" => b.iter().all(|v| has(&a, v)) && a.iter().all(|v| has(&b, v)),
        _ => b.iter().any(|v| has(&a, v)),
    }))
}

pub(super) fn call<'a>(name: &str, target: &Value<'a>, rest: &[Value<'a>]) -> Found<'a> {
    let list = target.elements().ok_or_else(Error::no_overload)?;
    Ok(match (name, rest) {
        ("isSorted", []) => {
            for pair in list.windows(2) {
                if pair[0].compare(&pair[1])? == Some(Ordering::Greater) {
                    return Ok(Value::Bool(false));
                }
            }
            Value::Bool(true)
        }
        ("min" | "max", []) => {
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let mut values = list.iter();
            let mut best = values.next().ok_or_else(|| Error::new(format!("{name} called on empty list")))?;
            for value in values {
                if value.compare(best)? == Some(wanted) {
                    best = value;
                }
            }
            best.clone()
        }
        ("sum", []) => {
            let mut values = list.iter();
            let Some(first) = values.next() else { return Ok(Value::Int(0)) };
            let mut sum = first.clone();
            for value in values {
                sum = numbers::operator("_+_", &[sum, value.clone()])?;
            }
            sum
        }
        ("indexOf", [value]) => index(list.iter().position(|v| v.equals(value))),
        ("lastIndexOf", [value]) => index(list.iter().rposition(|v| v.equals(value))),
        ("join", separator) => strings::join(&list, separator)?,
        ("slice", [Value::Int(start), Value::Int(end)]) => slice(&list, *start, *end)?,
        ("flatten", []) => Value::list(flattened(&list, 1)),
        ("flatten", [Value::Int(depth)]) => {
            let depth = u32::try_from(*depth).map_err(|_| Error::new("level must be non-negative"))?;
            Value::list(flattened(&list, depth))
        }
        ("distinct", []) => {
            let mut made: Vec<Value<'a>> = Vec::new();
            for value in list.iter() {
                if !made.iter().any(|v| v.equals(value)) {
                    made.push(value.clone());
                }
            }
            Value::list(made)
        }
        ("reverse", []) => Value::list(list.iter().rev().cloned().collect()),
        ("sort", []) => Value::list(sorted(&list, &list)?),
        ("@sortByAssociatedKeys", [keys]) => {
            let keys = keys.elements().ok_or_else(Error::no_overload)?;
            Value::list(sorted(&list, &keys)?)
        }
        ("first", []) => Value::Optional(list.first().cloned().map(Into::into)),
        ("last", []) => Value::Optional(list.last().cloned().map(Into::into)),
        _ => return Err(no_overload(name, std::slice::from_ref(target))),
    })
}

fn index<'a>(at: Option<usize>) -> Value<'a> {
    Value::Int(at.map_or(-1, |at| at as i64))
}

fn slice<'a>(list: &[Value<'a>], start: i64, end: i64) -> Found<'a> {
    let told = |why: String| Err(Error::new(why));
    if start < 0 || end < 0 {
        return told(format!("cannot slice({start}, {end}), negative indexes not supported"));
    }
    if start > end {
        return told(format!("cannot slice({start}, {end}), start index must be less than or equal to end index"));
    }
    if end as usize > list.len() {
        return told(format!("cannot slice({start}, {end}), list is length {}", list.len()));
    }
    Ok(Value::list(list[start as usize..end as usize].to_vec()))
}

fn flattened<'a>(list: &[Value<'a>], depth: u32) -> Vec<Value<'a>> {
    let mut made = Vec::new();
    for value in list {
        match value.elements().filter(|_| depth > 0) {
            Some(inner) => made.extend(flattened(&inner, depth - 1)),
            None => made.push(value.clone()),
        }
    }
    made
}

fn sorted<'a>(list: &[Value<'a>], keys: &[Value<'a>]) -> Result<Vec<Value<'a>>, Error> {
    if list.len() != keys.len() {
        return Err(Error::new("@sortByAssociatedKeys() expected a list of the same size as the associated keys list"));
    }
    for pair in keys.windows(2) {
        pair[0].compare(&pair[1]).map_err(|_| {
            let (a, b) = (convert::shown(&pair[0]), convert::shown(&pair[1]));
            Error::new(format!("list elements must have the same type: {a}, {b}"))
        })?;
    }
    let mut order: Vec<usize> = (0..list.len()).collect();
    order.sort_by(|a, b| keys[*a].compare(&keys[*b]).ok().flatten().unwrap_or(Ordering::Equal));
    Ok(order.into_iter().map(|at| list[at].clone()).collect())
}
