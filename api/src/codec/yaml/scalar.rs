//! What a plain scalar means (upstream: `resolve.go` of `yaml/v2`).

use serde_json::{Number, Value};

/// The value of a scalar written without quotes. None if it is a number that JSON cannot say (`.inf`).
pub(super) fn resolve(text: &str) -> Option<Value> {
    let word = match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => {
            return None;
        }
        _ => match number(text) {
            Some(number) => number,
            None => Value::String(text.to_owned()),
        },
    };
    Some(word)
}

fn number(text: &str) -> Option<Value> {
    match text.as_bytes().first()? {
        b'.' => float(text),
        b'+' | b'-' | b'0'..=b'9' => {
            let plain = text.replace('_', "");
            integer(&plain).or_else(|| if is_float(&plain) { float(&plain) } else { None })
        }
        _ => None,
    }
}

/// An integer in Go's notation: decimal, `0x`, `0o`, `0b`, or octal with a leading zero.
fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, &*lower)
    };
    // A second sign is no digit.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    let n = if negative { -magnitude } else { magnitude };
    i64::try_from(n).map(Value::from).or_else(|_| u64::try_from(n).map(Value::from)).ok()
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let whole = digits(rest);
    let mut rest = &rest[whole..];
    if let Some(after) = rest.strip_prefix('.') {
        let fraction = digits(after);
        if whole == 0 && fraction == 0 {
            return false;
        }
        rest = &after[fraction..];
    } else if whole == 0 {
        return false;
    }
    if let Some(after) = rest.strip_prefix(['e', 'E']) {
        let after = after.strip_prefix(['+', '-']).unwrap_or(after);
        return digits(after) > 0 && digits(after) == after.len();
    }
    rest.is_empty()
}

fn float(text: &str) -> Option<Value> {
    let f = text.parse::<f64>().ok().filter(|f| f.is_finite())?;
    Some(crate::codec::json::number_of_float(f))
}

/// Whether a string must be quoted, because it would read as something else. Numbers of base 60 are strings to Go, but not
/// to everyone.
pub(super) fn needs_quotes(text: &str) -> bool {
    !matches!(resolve(text), Some(Value::String(_))) || text == "<<" || is_base_60(text) || is_timestamp(text)
}

/// Whether Go's library would take the text for a time: a date, or a date and a time of day, the latter with an offset
/// after `T` and without after a space. It reads times as text all the same, but others may not.
fn is_timestamp(text: &str) -> bool {
    let b = text.as_bytes();
    if b.len() < 8 || !b[..4].iter().all(u8::is_ascii_digit) {
        return false;
    }
    // Where a separator and one or two digits in range end.
    let part = |at: usize, before: &[u8], low: u32, high: u32| {
        let separated = b.get(at).is_some_and(|c| before.contains(c));
        let digits: Vec<u8> = b.iter().skip(at + 1).take(2).take_while(|c| c.is_ascii_digit()).copied().collect();
        let value = digits.iter().fold(0, |n, c| n * 10 + u32::from(c - b'0'));
        let fits = separated && !digits.is_empty() && (low..=high).contains(&value);
        fits.then_some(at + 1 + digits.len())
    };
    let date = part(4, b"-", 1, 12).and_then(|at| part(at, b"-", 1, 31));
    let Some(date) = date else { return false };
    if date == b.len() {
        return true;
    }
    let time = part(date, b"Tt ", 0, 23).and_then(|at| part(at, b":", 0, 59)).and_then(|at| part(at, b":", 0, 59));
    let Some(at) = time else { return false };
    let spaced = b[date] == b' ';
    let mut rest = &text[at..];
    if let Some(fraction) = rest.strip_prefix('.') {
        rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    let offset = rest.len() == 6
        && rest.starts_with(['+', '-'])
        && rest.as_bytes()[3] == b':'
        && rest[1..].bytes().enumerate().all(|(i, c)| i == 2 || c.is_ascii_digit());
    if spaced { rest.is_empty() } else { rest == "Z" || offset }
}

fn is_base_60(text: &str) -> bool {
    let rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = rest.split(':');
    let first = parts.next().unwrap_or_default();
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let mut sixtieths = parts.peekable();
    if !digits(first) || !first.starts_with(|c: char| c.is_ascii_digit()) || sixtieths.peek().is_none() {
        return false;
    }
    sixtieths.all(|part| {
        let part = part.split('.').next().unwrap_or_default();
        (1..=2).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_digit())
            && part.parse::<u8>().is_ok_and(|n| n < 60)
    })
}

/// A number as the key of a map.
pub(super) fn key_of_number(n: &Number) -> String {
    match (n.as_i64(), n.as_u64(), n.as_f64()) {
        (Some(n), _, _) => n.to_string(),
        (_, Some(n), _) => n.to_string(),
        (_, _, Some(f)) => crate::codec::json::go_float(f),
        _ => String::new(),
    }
}
