//! `string.format` (upstream: cel-go `ext/formatting_v2.go`).

use super::{convert, time};
use crate::eval::Error;
use crate::value::Value;

/// The largest precision that may be asked for.
const PRECISION_MAX: usize = 100;

pub(super) fn format(template: &str, args: &[Value<'_>]) -> Result<String, Error> {
    let mut out = String::with_capacity(template.len());
    let mut chars = template.chars().peekable();
    let mut next = 0;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            let number = digits.parse::<usize>();
            let number = number.map_err(|_| Error::new("error while parsing precision specifier: not a number"))?;
            if number > PRECISION_MAX {
                return Err(Error::new(format!("precision specifier exceeds maximum of {PRECISION_MAX}")));
            }
            precision = Some(number);
        }
        let clause = chars.next().ok_or_else(|| Error::new("unexpected end of string"))?;
        let Some(value) = args.get(next) else {
            return Err(Error::new(format!("index {next} out of range")));
        };
        next += 1;
        out.push_str(&one(clause, precision, value)?);
    }
    Ok(out)
}

fn one(clause: char, precision: Option<usize>, value: &Value<'_>) -> Result<String, Error> {
    use Value::*;
    let unfit = |what: &str| {
        let name = value.type_name();
        Err(Error::new(format!("error during formatting: {what} clause can only be used on numbers, was given {name}")))
    };
    Ok(match (clause, value) {
        ('s', value) => text(value)?,
        ('d', Int(_) | Uint(_)) => convert::shown(value),
        ('d', Double(n)) if !n.is_finite() => special(*n),
        ('d', _) => return unfit("decimal"),
        ('f', Int(n)) => format!("{:.*}", precision.unwrap_or(6), *n as f64),
        ('f', Uint(n)) => format!("{:.*}", precision.unwrap_or(6), *n as f64),
        ('f' | 'e', Double(n)) if !n.is_finite() => special(*n),
        ('f', Double(n)) => format!("{:.*}", precision.unwrap_or(6), n),
        ('f', _) => return unfit("fixed-point"),
        ('e', Int(n)) => scientific(*n as f64, precision),
        ('e', Uint(n)) => scientific(*n as f64, precision),
        ('e', Double(n)) => scientific(*n, precision),
        ('e', _) => return unfit("scientific"),
        ('b', Int(n)) => signed(*n, |n| format!("{n:b}")),
        ('b', Uint(n)) => format!("{n:b}"),
        ('b', Bool(b)) => u8::from(*b).to_string(),
        ('b', _) => return unfit("binary"),
        ('x', Int(n)) => signed(*n, |n| format!("{n:x}")),
        ('x', Uint(n)) => format!("{n:x}"),
        ('X', Int(n)) => signed(*n, |n| format!("{n:X}")),
        ('X', Uint(n)) => format!("{n:X}"),
        ('x' | 'X', Text(_) | Bytes(_)) => {
            let bytes: &[u8] = match value {
                Text(text) => text.as_bytes(),
                Bytes(bytes) => bytes,
                _ => &[],
            };
            let hex = bytes.iter().map(|b| if clause == 'x' { format!("{b:02x}") } else { format!("{b:02X}") });
            hex.collect()
        }
        ('x' | 'X', _) => return unfit("hex"),
        ('o', Int(n)) => signed(*n, |n| format!("{n:o}")),
        ('o', Uint(n)) => format!("{n:o}"),
        ('o', _) => return unfit("octal"),
        (other, _) => return Err(Error::new(format!("unrecognized formatting clause \"{other}\""))),
    })
}

fn signed(n: i64, digits: impl Fn(u64) -> String) -> String {
    format!("{}{}", if n < 0 { "-" } else { "" }, digits(n.unsigned_abs()))
}

fn special(n: f64) -> String {
    if n.is_nan() {
        "NaN"
    } else if n > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
    .into()
}

/// With a sign and at least two digits in the exponent, as Go has it.
fn scientific(n: f64, precision: Option<usize>) -> String {
    let plain = format!("{:.*e}", precision.unwrap_or(6), n);
    let Some((mantissa, exponent)) = plain.split_once('e') else { return plain };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// Any value as a text; the entries of maps in the order of their keys.
fn text(value: &Value<'_>) -> Result<String, Error> {
    Ok(match value {
        Value::Double(n) if !n.is_finite() => special(*n),
        Value::Duration(n) => time::seconds_text(*n),
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::OfType(ty) => crate::value::runtime_name(ty).into_owned(),
        other => {
            if let Some(list) = other.elements() {
                let parts: Vec<String> = list.iter().map(text).collect::<Result<_, _>>()?;
                return Ok(format!("[{}]", parts.join(", ")));
            }
            if let Some(entries) = other.entries() {
                let part = |(k, v): &(Value<'_>, Value<'_>)| Ok(format!("{}: {}", text(k)?, text(v)?));
                let mut parts: Vec<String> = entries.iter().map(part).collect::<Result<_, Error>>()?;
                parts.sort();
                return Ok(format!("{{{}}}", parts.join(", ")));
            }
            if matches!(other, Value::Optional(_) | Value::Url(_) | Value::Semver(_) | Value::Check(_)) {
                let name = other.type_name();
                let why = "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, \
                           durations, and timestamps";
                return Err(Error::new(format!("error during formatting: {why}, was given {name}")));
            }
            convert::shown(other)
        }
    })
}
