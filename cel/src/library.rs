//! The functions themselves: CEL's own and those of Kubernetes' libraries, with what a call of each costs when it runs
//! (upstream: cel-go `stdlib` and `ext`, `apiserver/pkg/cel/library`).

pub(crate) mod authorizer;
pub(crate) mod convert;
pub(crate) mod format;
pub(crate) mod lists;
pub(crate) mod names;
pub(crate) mod net;
pub(crate) mod numbers;
pub(crate) mod semver;
pub(crate) mod strings;
pub(crate) mod time;
pub(crate) mod url;

use crate::cost::{CHECK_COST, REGEX_FACTOR, STRING_FACTOR, selector_cost_of};
use crate::eval::Error;
use crate::value::{Value, runtime_name};
use coxswain_api::quantity::{self, Quantity as Amount};
use std::sync::Arc;

pub(crate) type Found<'a> = Result<Value<'a>, Error>;

/// Calls a function. `is_member` says that the first argument is what it is called on.
pub(crate) fn call<'a>(name: &str, is_member: bool, args: &[Value<'a>]) -> Found<'a> {
    use Value::*;
    if name.starts_with('_') || matches!(name, "-_" | "!_" | "@in") {
        return numbers::operator(name, args);
    }
    match (name, args) {
        ("size", [value]) => match value {
            Ip(_) | Cidr(_) => Err(Error::no_overload()),
            value => value.size().map(|n| Int(n as i64)).ok_or_else(Error::no_overload),
        },
        ("type", [value]) => Ok(OfType(value.ty())),
        ("dyn", [value]) => Ok(value.clone()),
        ("bool" | "bytes" | "double" | "int" | "string" | "uint" | "duration" | "timestamp", [value]) if !is_member => {
            convert::to(name, value)
        }
        ("optional.of", [value]) => Ok(Value::some(value.clone())),
        ("optional.ofNonZeroValue", [value]) if convert::is_zero(value) => Ok(Optional(None)),
        ("optional.ofNonZeroValue", [value]) => Ok(Value::some(value.clone())),
        ("optional.none", []) => Ok(Optional(None)),
        ("hasValue", [Optional(value)]) => Ok(Bool(value.is_some())),
        ("value", [Optional(value)]) => {
            value.as_deref().cloned().ok_or_else(|| Error::new("optional.none() dereference"))
        }
        ("optional.unwrap" | "unwrapOpt", [list]) => {
            let list = list.elements().ok_or_else(Error::no_overload)?;
            let present = list.iter().filter_map(|v| match v {
                Optional(value) => value.as_deref().cloned(),
                other => Some(other.clone()),
            });
            Ok(Value::list(present.collect()))
        }
        ("url", [Text(text)]) => url::Url::parse(text).map(|u| Url(Arc::new(u))),
        ("isURL", [Text(text)]) => Ok(Bool(url::is_request_uri(text))),
        (name, [Url(url)]) if name.starts_with("get") => url.part(name),
        ("quantity", [Text(text)]) => {
            let parsed = Amount::parse(text).map_err(|e| Error::new(e.to_string()))?;
            Ok(Quantity(Arc::new(parsed)))
        }
        ("isQuantity", [Text(text)]) => Ok(Bool(Amount::parse(text).is_ok())),
        (name, [Quantity(quantity), rest @ ..]) => of_quantity(name, quantity, rest),
        ("semver" | "isSemver", [Text(text), rest @ ..]) => {
            let parsed = match rest {
                [Bool(true)] => semver::Semver::parse_loosely(text),
                _ => semver::Semver::parse(text),
            };
            match name {
                "isSemver" => Ok(Bool(parsed.is_ok())),
                _ => parsed.map(|v| Semver(Arc::new(v))),
            }
        }
        (name, [Semver(version), rest @ ..]) => version.call(name, rest),
        ("ip" | "isIP" | "ip.isCanonical" | "cidr" | "isCIDR", [Text(text)]) => net::read(name, text),
        ("isIP", [Cidr(_)]) => Ok(Bool(true)),
        (name, [Ip(ip)]) => net::of_ip(name, *ip),
        (name, [Cidr(cidr), rest @ ..]) => cidr.call(name, rest),
        ("format.named", [Text(name)]) => Ok(Optional(names::named(name).map(|format| Arc::new(Format(format))))),
        ("validate", [Format(format), Text(text)]) => {
            let errors: Vec<_> = (format.check)(text).into_iter().map(Value::from).collect();
            Ok(if errors.is_empty() { Optional(None) } else { Value::some(Value::list(errors)) })
        }
        ("jsonpatch.escapeKey", [Text(text)]) => Ok(text.replace('~', "~0").replace('/', "~1").into()),
        (name, [Check(check), rest @ ..]) => check.call(name, rest),
        (name, [Decision(decision)]) => decision.call(name),
        (name, [Timestamp(time), rest @ ..]) => time::of_timestamp(name, *time, rest),
        (name, [Duration(nanos)]) => time::of_duration(name, *nanos),
        (name, [Text(text), rest @ ..]) => strings::call(name, text, rest),
        ("sets.contains" | "sets.equivalent" | "sets.intersects", [a, b]) => lists::sets(name, a, b),
        ("lists.range", [Int(n)]) => Ok(Value::list((0..*n).map(Int).collect())),
        (name, [list, rest @ ..]) if list.elements().is_some() => lists::call(name, list, rest),
        (name, []) if name.starts_with("format.") => {
            names::named(&name["format.".len()..]).map(Format).ok_or_else(Error::no_overload)
        }
        _ => Err(no_overload(name, args)),
    }
}

/// The error of a call that fits nothing, with the types that were given.
pub(crate) fn no_overload(name: &str, args: &[Value<'_>]) -> Error {
    let types: Vec<String> = args.iter().map(|a| runtime_name(&a.ty()).into_owned()).collect();
    Error::new(format!("no such overload: {name}({})", types.join(", ")))
}

fn of_quantity<'a>(name: &str, amount: &Arc<Amount>, rest: &[Value<'a>]) -> Found<'a> {
    use Value::*;
    let other = match rest {
        [Quantity(other)] => Some((**other).clone()),
        [Int(n)] => Some(Amount::new(*n, quantity::Format::DecimalSi)),
        _ => None,
    };
    let whole = || {
        let floor = amount.value();
        (Amount::new(floor, quantity::Format::DecimalSi) == **amount).then_some(floor)
    };
    Ok(match (name, other) {
        ("sign", None) => Int(i64::from(amount.sign())),
        ("asInteger", None) => Int(whole().ok_or_else(|| Error::new("cannot convert value to integer"))?),
        ("isInteger", None) => Bool(whole().is_some()),
        ("asApproximateFloat", None) => Double(amount.as_f64()),
        ("isGreaterThan", Some(other)) => Bool(**amount > other),
        ("isLessThan", Some(other)) => Bool(**amount < other),
        ("compareTo", Some(other)) => Int((**amount).cmp(&other) as i64),
        ("add" | "sub", Some(other)) => {
            let mut made = (**amount).clone();
            if name == "add" {
                made.add(&other)
            } else {
                made.sub(&other)
            }
            Quantity(Arc::new(made))
        }
        _ => return Err(Error::no_overload()),
    })
}

/// What a call costs, as far as its arguments tell.
pub(crate) fn cost_before(name: &str, args: &[Value<'_>]) -> u64 {
    let size = |at: usize| args.get(at).and_then(Value::size).unwrap_or(1);
    let text = |n: u64| (n as f64 * STRING_FACTOR).ceil() as u64;
    let regex = |n: u64| (n as f64 * REGEX_FACTOR).ceil() as u64;
    let plus_one = |n: u64| text(n.saturating_add(1));
    match name {
        "check" => CHECK_COST,
        "fieldSelector" | "labelSelector" => selector_cost_of(size(1)),
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => args.first().map_or(0, traversal),
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => text(size(0)),
        "ip" if matches!(args.first(), Some(Value::Text(_))) => text(size(0)),
        "replace" | "split" | "ip.isCanonical" => (size(0) as f64 * 2.0 * STRING_FACTOR).ceil() as u64,
        "join" => 0,
        "find" | "findAll" | "matches" => plus_one(size(0)).saturating_mul(regex(size(1))),
        "validate" => match args.first() {
            Some(Value::Format(format)) => plus_one(size(1)).saturating_mul(regex(format.regex_size)),
            _ => 1,
        },
        "containsIP" | "containsCIDR" => {
            let mut cost = text(size(0) * 2);
            if name == "containsCIDR" {
                cost += text(size(0)) + 1;
            }
            if matches!(args.get(1), Some(Value::Text(_))) {
                cost += text(size(1));
            }
            cost
        }
        "startsWith" | "endsWith" => text(size(0)),
        "bytes" | "string" if matches!(args.first(), Some(Value::Text(_) | Value::Bytes(_))) => text(size(0)),
        "@in" => match args.get(1) {
            Some(list) if list.elements().is_some() => size(1),
            _ => 1,
        },
        "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => match args.first() {
            Some(Value::Ip(_) | Value::Cidr(_)) => 1,
            _ => text(size(0).min(size(1))),
        },
        "_+_" if matches!(args.first(), Some(Value::Text(_) | Value::Bytes(_))) => text(size(0) + size(1)),
        "contains" => text(size(0)).saturating_mul(text(size(1))),
        _ => 1,
    }
}

/// What a call costs beyond that, as its result tells.
pub(crate) fn cost_after(name: &str, result: &Value<'_>) -> u64 {
    match name {
        "join" => (result.size().unwrap_or(1) as f64 * 2.0 * STRING_FACTOR).ceil() as u64,
        _ => 0,
    }
}

/// The cost of going through a value once.
fn traversal(value: &Value<'_>) -> u64 {
    match value {
        Value::Text(text) => (text.len() as f64 * STRING_FACTOR) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * STRING_FACTOR) as u64,
        other => {
            if let Some(list) = other.elements() {
                list.iter().map(traversal).sum()
            } else if let Some(entries) = other.entries() {
                entries.iter().map(|(k, v)| traversal(k) + traversal(v)).sum()
            } else {
                1
            }
        }
    }
}
