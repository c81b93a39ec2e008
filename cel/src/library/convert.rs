//! Conversions between types (upstream: cel-go `ConvertToType`).

use super::{Found, time};
use crate::eval::Error;
use crate::value::{Text, Value};
use coxswain_api::field::go_float_v;

pub(crate) fn to<'a>(name: &str, value: &Value<'a>) -> Found<'a> {
    use Value::*;
    let unfit = || Error::new(format!("type conversion error from 'string' to '{}'", runtime_name_of(name)));
    Ok(match (name, value) {
        ("bool", Bool(b)) => Bool(*b),
        ("bool", Text(text)) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Bool(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Bool(false),
            _ => return Err(unfit()),
        },
        ("bytes", Bytes(_)) | ("string", Text(_)) | ("duration", Duration(_)) | ("timestamp", Timestamp(_)) => {
            value.clone()
        }
        ("bytes", Text(text)) => Bytes(text.as_bytes().into()),
        ("double", Double(n)) => Double(*n),
        ("double", Int(n)) => Double(*n as f64),
        ("double", Uint(n)) => Double(*n as f64),
        ("double", Text(text)) => Double(text.parse().map_err(|_| unfit())?),
        ("int", Int(n)) => Int(*n),
        ("int", Uint(n)) => Int(i64::try_from(*n).map_err(|_| overflow())?),
        ("int", Double(n)) if n.is_nan() || *n <= i64::MIN as f64 || *n >= i64::MAX as f64 => return Err(overflow()),
        ("int", Double(n)) => Int(*n as i64),
        ("int", Duration(n)) => Int(*n),
        ("int", Timestamp(t)) => Int(t.as_second()),
        ("int", Text(text)) => Int(text.parse().map_err(|_| unfit())?),
        ("uint", Uint(n)) => Uint(*n),
        ("uint", Int(n)) => Uint(u64::try_from(*n).map_err(|_| unsigned_overflow())?),
        ("uint", Double(n)) if n.is_nan() || *n < 0.0 || *n >= u64::MAX as f64 => return Err(unsigned_overflow()),
        ("uint", Double(n)) => Uint(*n as u64),
        ("uint", Text(text)) => Uint(text.parse().map_err(|_| unfit())?),
        ("duration", Int(n)) => Duration(*n),
        ("duration", Text(text)) => Duration(time::parse_duration(text).ok_or_else(unfit)?),
        ("timestamp", Int(n)) => {
            let out = |_| Error::new("timestamp overflow");
            Timestamp(jiff::Timestamp::from_second(*n).map_err(out)?)
        }
        ("timestamp", Text(text)) => Timestamp(time::parse_timestamp(text).ok_or_else(unfit)?),
        ("string", Bytes(bytes)) => {
            let text = std::str::from_utf8(bytes);
            text.map_err(|_| Error::new("invalid UTF-8 in bytes, cannot convert to string"))?.into()
        }
        ("string", Bool(_) | Int(_) | Uint(_) | Double(_) | Duration(_) | Timestamp(_) | Ip(_) | Cidr(_)) => {
            shown(value).into()
        }
        _ => {
            let (from, to) = (value.type_name(), name);
            return Err(Error::new(format!("type conversion error from '{from}' to '{to}'")));
        }
    })
}

fn overflow() -> Error {
    Error::new("integer overflow")
}

fn unsigned_overflow() -> Error {
    Error::new("unsigned integer overflow")
}

/// The type that a conversion makes, as it is called when an expression runs.
fn runtime_name_of(conversion: &str) -> &str {
    match conversion {
        "duration" => "google.protobuf.Duration",
        "timestamp" => "google.protobuf.Timestamp",
        other => other,
    }
}

/// A scalar as a text.
pub(crate) fn shown(value: &Value<'_>) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Uint(n) => n.to_string(),
        Value::Double(n) if n.is_infinite() => if *n > 0.0 { "+Inf" } else { "-Inf" }.into(),
        Value::Double(n) => go_float_v(*n),
        Value::Text(Text::Lent(text)) => (*text).to_owned(),
        Value::Text(Text::Made(text)) => text.to_string(),
        Value::Duration(nanos) => time::seconds_text(*nanos),
        Value::Timestamp(time) => time.to_string(),
        Value::Ip(ip) => ip.to_string(),
        Value::Cidr(cidr) => cidr.to_string(),
        Value::Quantity(quantity) => quantity.to_string(),
        other => other.type_name().into_owned(),
    }
}

/// Whether a value is what its type begins with.
pub(super) fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null | Value::Optional(None) => true,
        Value::Bool(b) => !b,
        Value::Int(n) => *n == 0,
        Value::Uint(n) => *n == 0,
        Value::Double(n) => *n == 0.0,
        Value::Duration(n) => *n == 0,
        Value::Text(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) | Value::Tree(..) => value.size() == Some(0),
        _ => false,
    }
}
