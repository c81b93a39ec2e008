//! The operators (upstream: cel-go `common/types`, `common/stdlib`). Numbers that overflow are errors.

use super::{Found, lists, no_overload, time};
use crate::eval::Error;
use crate::value::Value;
use std::cmp::Ordering;

pub(super) fn operator<'a>(name: &str, args: &[Value<'a>]) -> Found<'a> {
    match (name, args) {
        ("_==_", [a, b]) => Ok(Value::Bool(a.equals(b))),
        ("_!=_", [a, b]) => Ok(Value::Bool(!a.equals(b))),
        ("_<_", [a, b]) => ordered(a, b, Ordering::is_lt),
        ("_<=_", [a, b]) => ordered(a, b, Ordering::is_le),
        ("_>_", [a, b]) => ordered(a, b, Ordering::is_gt),
        ("_>=_", [a, b]) => ordered(a, b, Ordering::is_ge),
        ("!_", [Value::Bool(b)]) => Ok(Value::Bool(!b)),
        ("-_", [Value::Int(n)]) => n.checked_neg().map(Value::Int).ok_or_else(overflow),
        ("-_", [Value::Double(n)]) => Ok(Value::Double(-n)),
        ("@in", [element, container]) => contains(container, element),
        ("_+_", [a, b]) => add(a, b),
        ("_-_", [a, b]) => subtract(a, b),
        ("_*_" | "_/_" | "_%_", [a, b]) => multiply(name, a, b),
        _ => Err(no_overload(name, args)),
    }
}

fn overflow() -> Error {
    Error::new("integer overflow")
}

fn unsigned_overflow() -> Error {
    Error::new("unsigned integer overflow")
}

/// The order of two values as a condition; numbers that have none are in no order.
fn ordered<'a>(a: &Value<'a>, b: &Value<'a>, holds: fn(Ordering) -> bool) -> Found<'a> {
    Ok(Value::Bool(a.compare(b)?.is_some_and(holds)))
}

fn contains<'a>(container: &Value<'a>, element: &Value<'a>) -> Found<'a> {
    if let Some(list) = container.elements() {
        return Ok(Value::Bool(list.iter().any(|v| v.equals(element))));
    }
    match container {
        Value::Map(_) | Value::Tree(..) => Ok(Value::Bool(container.find(element)?.is_some())),
        _ => Err(Error::no_overload()),
    }
}

fn add<'a>(a: &Value<'a>, b: &Value<'a>) -> Found<'a> {
    use Value::*;
    Ok(match (a, b) {
        (Int(a), Int(b)) => Int(a.checked_add(*b).ok_or_else(overflow)?),
        (Uint(a), Uint(b)) => Uint(a.checked_add(*b).ok_or_else(unsigned_overflow)?),
        (Double(a), Double(b)) => Double(a + b),
        (Text(a), Text(b)) => format!("{}{}", &**a, &**b).into(),
        (Bytes(a), Bytes(b)) => Bytes([&a[..], &b[..]].concat().into()),
        (Duration(a), Duration(b)) => Duration(a.checked_add(*b).ok_or_else(time::duration_overflow)?),
        (Timestamp(t), Duration(d)) | (Duration(d), Timestamp(t)) => Timestamp(time::shifted(*t, *d)?),
        _ => return lists::concatenated(a, b),
    })
}

fn subtract<'a>(a: &Value<'a>, b: &Value<'a>) -> Found<'a> {
    use Value::*;
    Ok(match (a, b) {
        (Int(a), Int(b)) => Int(a.checked_sub(*b).ok_or_else(overflow)?),
        (Uint(a), Uint(b)) => Uint(a.checked_sub(*b).ok_or_else(unsigned_overflow)?),
        (Double(a), Double(b)) => Double(a - b),
        (Duration(a), Duration(b)) => Duration(a.checked_sub(*b).ok_or_else(time::duration_overflow)?),
        (Timestamp(t), Duration(d)) => {
            Timestamp(time::shifted(*t, d.checked_neg().ok_or_else(time::duration_overflow)?)?)
        }
        (Timestamp(a), Timestamp(b)) => {
            let nanos = a.as_nanosecond() - b.as_nanosecond();
            Duration(i64::try_from(nanos).map_err(|_| time::duration_overflow())?)
        }
        _ => return Err(Error::no_overload()),
    })
}

fn multiply<'a>(name: &str, a: &Value<'a>, b: &Value<'a>) -> Found<'a> {
    use Value::*;
    let zero = || Error::new(if name == "_/_" { "division by zero" } else { "modulus by zero" });
    match (name, a, b) {
        ("_*_", Int(a), Int(b)) => a.checked_mul(*b).map(Int).ok_or_else(overflow),
        ("_*_", Uint(a), Uint(b)) => a.checked_mul(*b).map(Uint).ok_or_else(unsigned_overflow),
        ("_*_", Double(a), Double(b)) => Ok(Double(a * b)),
        ("_/_" | "_%_", Int(_), Int(0)) | ("_/_" | "_%_", Uint(_), Uint(0)) => Err(zero()),
        ("_/_", Int(a), Int(b)) => a.checked_div(*b).map(Int).ok_or_else(overflow),
        ("_/_", Uint(a), Uint(b)) => Ok(Uint(a / b)),
        ("_/_", Double(a), Double(b)) => Ok(Double(a / b)),
        ("_%_", Int(a), Int(b)) => a.checked_rem(*b).map(Int).ok_or_else(overflow),
        ("_%_", Uint(a), Uint(b)) => Ok(Uint(a % b)),
        _ => Err(Error::no_overload()),
    }
}
