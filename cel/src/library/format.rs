//! `string.format` (upstream: cel-go `ext/formatting.go`, whose numbers are those of a printer for English readers).

use super::{convert, time};
use crate::eval::Error;
use crate::value::Value;
use coxswain_api::field::go_quote;

/// As many digits follow the point if it is not said how many.
const PRECISION: usize = 6;
/// The largest precision that may be asked for; a template cannot make a text grow without bound.
const PRECISION_MAX: usize = 1000;

/// One clause of a template, such as `%.2f`.
pub(crate) struct Clause {
    pub letter: char,
    pub precision: Option<usize>,
}

/// Takes a template apart. `literal` is given what stands between clauses, `clause` each clause with its number.
pub(crate) fn parse(
    template: &str,
    count: usize,
    literal: &mut dyn FnMut(char),
    clause: &mut dyn FnMut(usize, Clause) -> Result<(), Error>,
) -> Result<usize, Error> {
    let mut chars = template.chars().peekable();
    let mut next = 0;
    while let Some(c) = chars.next() {
        if c != '%' || chars.next_if_eq(&'%').is_some() {
            literal(c);
            continue;
        }
        if next >= count && chars.peek().is_some() {
            return Err(Error::new(format!("index {next} out of range")));
        }
        let unparsed = |why: &str| Error::new(format!("could not parse formatting clause: {why}"));
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            if chars.peek().is_none() {
                return Err(unparsed("error while parsing precision: could not find end of precision specifier"));
            }
            let number = digits.parse().ok().filter(|n| *n <= PRECISION_MAX).ok_or_else(|| {
                let why =
                    "error while parsing precision: error while converting precision to integer: strconv.Atoi: parsing";
                unparsed(&format!("{why} {}: invalid syntax", go_quote(&digits)))
            });
            precision = Some(number?);
        }
        let letter = chars.next().ok_or_else(|| Error::new("unexpected end of string"))?;
        if !"sdfebxXo".contains(letter) {
            return Err(unparsed(&format!("unrecognized formatting clause \"{letter}\"")));
        }
        clause(next, Clause { letter, precision })?;
        next += 1;
    }
    Ok(next)
}

/// What a clause has against a value of a type, by its name.
pub(crate) fn unfit(letter: char, name: &str) -> Error {
    let what = match letter {
        'd' => "decimal clause can only be used on integers",
        'f' => "fixed-point clause can only be used on doubles",
        'e' => "scientific clause can only be used on doubles",
        'b' => "only integers and bools can be formatted as binary",
        'x' | 'X' => "only integers, byte buffers, and strings can be formatted as hex",
        'o' => "octal clause can only be used on integers",
        _ => {
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and \
             timestamps"
        }
    };
    Error::new(format!("error during formatting: {what}, was given {name}"))
}

pub(super) fn format(template: &str, args: &[Value<'_>]) -> Result<String, Error> {
    let out = std::cell::RefCell::new(String::with_capacity(template.len()));
    parse(template, args.len(), &mut |c| out.borrow_mut().push(c), &mut |at, clause| {
        let made = one(&clause, &args[at])?;
        out.borrow_mut().push_str(&made);
        Ok(())
    })?;
    Ok(out.into_inner())
}

fn one(clause: &Clause, value: &Value<'_>) -> Result<String, Error> {
    use Value::*;
    let precision = clause.precision.unwrap_or(PRECISION);
    Ok(match (clause.letter, value) {
        ('s', value) => text(value)?,
        ('d', Int(_) | Uint(_)) => convert::shown(value),
        ('f' | 'e', Text(text)) if matches!(&**text, "NaN" | "Infinity" | "-Infinity") => match &**text {
            "NaN" => special(f64::NAN),
            "Infinity" => special(f64::INFINITY),
            _ => special(f64::NEG_INFINITY),
        },
        ('f' | 'e', Double(n)) if !n.is_finite() => special(*n),
        ('f', Double(n)) => grouped(&format!("{n:.precision$}")),
        // Upstream takes the precision of this clause for a width.
        ('e', Double(n)) => scientific(*n),
        ('b', Int(n)) => signed(*n, |n| format!("{n:b}")),
        ('b', Uint(n)) => format!("{n:b}"),
        ('b', Bool(b)) => u8::from(*b).to_string(),
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
            let hex = bytes.iter().map(|b| if clause.letter == 'x' { format!("{b:02x}") } else { format!("{b:02X}") });
            hex.collect()
        }
        ('o', Int(n)) => signed(*n, |n| format!("{n:o}")),
        ('o', Uint(n)) => format!("{n:o}"),
        (letter, value) => return Err(unfit(letter, &value.type_name())),
    })
}

fn signed(n: i64, digits: impl Fn(u64) -> String) -> String {
    format!("{}{}", if n < 0 { "-" } else { "" }, digits(n.unsigned_abs()))
}

fn special(n: f64) -> String {
    if n.is_nan() {
        "NaN"
    } else if n > 0.0 {
        "∞"
    } else {
        "-∞"
    }
    .into()
}

/// A number with commas between its thousands.
fn grouped(plain: &str) -> String {
    let (sign, digits) = plain.strip_prefix('-').map_or(("", plain), |digits| ("-", digits));
    let (whole, fraction) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut out = sign.to_owned();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out + fraction
}

/// A number such as `1.500000×10⁰²`.
fn scientific(n: f64) -> String {
    const RAISED: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let plain = format!("{n:.PRECISION$e}");
    let Some((mantissa, exponent)) = plain.split_once('e') else { return plain };
    let (sign, digits) = exponent.strip_prefix('-').map_or(("", exponent), |digits| ("⁻", digits));
    let raised: String = format!("{digits:0>2}").bytes().map(|b| RAISED[usize::from(b - b'0')]).collect();
    format!("{mantissa}×10{sign}{raised}")
}

/// Any value as a text; the entries of maps in the order of their keys.
fn text(value: &Value<'_>) -> Result<String, Error> {
    Ok(match value {
        Value::Duration(n) => time::seconds_text(*n),
        Value::Bytes(bytes) => {
            let text = std::str::from_utf8(bytes);
            text.map_err(|_| Error::new("error during formatting: could not convert argument to string"))?.to_owned()
        }
        Value::OfType(ty) => crate::value::runtime_name(ty).into_owned(),
        other => {
            if let Some(list) = other.elements() {
                let parts: Vec<String> = list.iter().map(within).collect::<Result<_, _>>()?;
                return Ok(format!("[{}]", parts.join(", ")));
            }
            if let Some(entries) = other.entries() {
                let part = |(k, v): &(Value<'_>, Value<'_>)| Ok((within(k)?, within(v)?));
                let mut parts: Vec<(String, String)> = entries.iter().map(part).collect::<Result<_, Error>>()?;
                parts.sort();
                let parts: Vec<String> = parts.into_iter().map(|(k, v)| format!("{k}:{v}")).collect();
                return Ok(format!("{{{}}}", parts.join(", ")));
            }
            match other {
                Value::Null
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Uint(_)
                | Value::Double(_)
                | Value::Text(_)
                | Value::Timestamp(_) => convert::shown(other),
                other => return Err(unfit('s', &other.type_name())),
            }
        }
    })
}

/// A value within a list or a map, as it would be written in an expression.
fn within(value: &Value<'_>) -> Result<String, Error> {
    let plain = text(value)?;
    Ok(match value {
        Value::Text(_) => go_quote(&plain),
        Value::Bytes(_) => format!("b{}", go_quote(&plain)),
        Value::Timestamp(_) => format!("timestamp({})", go_quote(&plain)),
        Value::Duration(_) => format!("duration({})", go_quote(&plain)),
        Value::Double(n) if !n.is_finite() => go_quote(&plain),
        Value::Double(n) => format!("{n:.PRECISION$}"),
        _ => plain,
    })
}
