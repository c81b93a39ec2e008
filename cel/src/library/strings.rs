//! Texts and regular expressions (upstream: cel-go `ext/strings.go`, `apiserver/pkg/cel/library/regex.go`). Places in a text are
//! counted in characters.

use super::{Found, format, no_overload};
use crate::eval::Error;
use crate::value::{Text, Value};
use coxswain_api::go_regex;
use parking_lot::Mutex;
use regex::Regex;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// So many compiled regular expressions are kept; beyond it all are forgotten.
const REGEXES_MAX: usize = 1_000;

static REGEXES: LazyLock<Mutex<HashMap<String, Arc<Regex>>>> = LazyLock::new(Mutex::default);

fn regex(source: &str) -> Result<Arc<Regex>, Error> {
    if let Some(known) = REGEXES.lock().get(source) {
        return Ok(known.clone());
    }
    let made = Arc::new(go_regex::compile(source).map_err(Error::new)?);
    let mut known = REGEXES.lock();
    if known.len() >= REGEXES_MAX {
        known.clear();
    }
    known.insert(source.to_owned(), made.clone());
    Ok(made)
}

pub(super) fn call<'a>(name: &str, text: &Text<'a>, rest: &[Value<'a>]) -> Found<'a> {
    use Value::*;
    Ok(match (name, rest) {
        ("contains", [Text(part)]) => Bool(text.contains(&**part)),
        ("startsWith", [Text(part)]) => Bool(text.starts_with(&**part)),
        ("endsWith", [Text(part)]) => Bool(text.ends_with(&**part)),
        ("matches", [Text(source)]) => Bool(regex(source)?.is_match(text)),
        ("find", [Text(source)]) => {
            let regex = illegal(regex(source))?;
            regex.find(text).map_or("", |m| m.as_str()).into()
        }
        ("findAll", [Text(source), limit @ ..]) => {
            let regex = illegal(regex(source))?;
            let limit = match limit {
                [Int(n)] if *n >= 0 => *n as usize,
                _ => usize::MAX,
            };
            Value::list(regex.find_iter(text).take(limit).map(|m| m.as_str().into()).collect())
        }
        ("charAt", [Int(at)]) => {
            let length = text.chars().count() as i64;
            if *at < 0 || *at > length {
                return Err(Error::new(format!("index out of range: {at}")));
            }
            text.chars().nth(*at as usize).map_or_else(std::string::String::new, |c| c.to_string()).into()
        }
        ("indexOf", [Text(part)]) => index_of(text, part, 0)?,
        ("indexOf", [Text(part), Int(from)]) => index_of(text, part, *from)?,
        ("lastIndexOf", [Text(part)]) => last_index_of(text, part, None)?,
        ("lastIndexOf", [Text(part), Int(from)]) => last_index_of(text, part, Some(*from))?,
        ("lowerAscii", []) => text.to_ascii_lowercase().into(),
        ("upperAscii", []) => text.to_ascii_uppercase().into(),
        ("trim", []) => text.trim().into(),
        ("replace", [Text(from), Text(to)]) => text.replace(&**from, to).into(),
        ("replace", [Text(from), Text(to), Int(n)]) => match usize::try_from(*n) {
            Ok(n) => text.replacen(&**from, to, n).into(),
            Err(_) => text.replace(&**from, to).into(),
        },
        ("split", [Text(separator)]) => split(text, separator, -1),
        ("split", [Text(separator), Int(n)]) => split(text, separator, *n),
        ("substring", [Int(start)]) => substring(text, *start, text.chars().count() as i64)?,
        ("substring", [Int(start), Int(end)]) => substring(text, *start, *end)?,
        ("format", [list]) => format::format(text, &list.elements().ok_or_else(Error::no_overload)?)?.into(),
        ("strings.quote", []) => quoted(text).into(),
        _ => {
            let mut args = vec![Text(text.clone())];
            args.extend(rest.iter().cloned());
            return Err(no_overload(name, &args));
        }
    })
}

fn illegal(regex: Result<Arc<Regex>, Error>) -> Result<Arc<Regex>, Error> {
    regex.map_err(|e| Error::new(format!("Illegal regex: {e}")))
}

fn out_of_range<'a>(at: i64) -> Found<'a> {
    Err(Error::new(format!("index out of range: {at}")))
}

fn index_of<'a>(text: &str, part: &str, from: i64) -> Found<'a> {
    let length = text.chars().count() as i64;
    if part.is_empty() {
        return Ok(Value::Int(from));
    }
    if from < 0 {
        return out_of_range(from);
    }
    if from >= length {
        return Ok(Value::Int(-1));
    }
    let start = text.char_indices().nth(from as usize).map_or(text.len(), |(at, _)| at);
    let found = text[start..].find(part).map(|at| from + text[start..start + at].chars().count() as i64);
    Ok(Value::Int(found.unwrap_or(-1)))
}

fn last_index_of<'a>(text: &str, part: &str, from: Option<i64>) -> Found<'a> {
    let length = text.chars().count() as i64;
    if let Some(from) = from
        && (part.is_empty() || from < 0 || from >= length)
    {
        return match from {
            _ if part.is_empty() => Ok(Value::Int(from)),
            0.. => Ok(Value::Int(-1)),
            _ => out_of_range(from),
        };
    }
    // What begins at `from` may reach beyond it.
    let reach = match from {
        Some(from) => {
            let end = from as usize + part.chars().count();
            text.char_indices().nth(end).map_or(text.len(), |(at, _)| at)
        }
        None => text.len(),
    };
    let found = text[..reach].rfind(part).map(|at| text[..at].chars().count() as i64);
    Ok(Value::Int(found.unwrap_or(-1)))
}

fn substring<'a>(text: &str, start: i64, end: i64) -> Found<'a> {
    let length = text.chars().count() as i64;
    if start < 0 || start > length {
        return out_of_range(start);
    }
    if end < 0 || end > length {
        return out_of_range(end);
    }
    if start > end {
        return Err(Error::new(format!("invalid substring range. start: {start}, end: {end}")));
    }
    let part: String = text.chars().skip(start as usize).take((end - start) as usize).collect();
    Ok(part.into())
}

/// As Go's `strings.SplitN`: an empty separator splits between all characters.
fn split<'a>(text: &str, separator: &str, limit: i64) -> Value<'a> {
    if limit == 0 {
        return Value::list(Vec::new());
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<String> = if separator.is_empty() {
        let mut rest = text;
        let mut parts = Vec::new();
        while let Some(c) = rest.chars().next() {
            if parts.len() + 1 == limit {
                parts.push(rest.to_owned());
                break;
            }
            parts.push(c.to_string());
            rest = &rest[c.len_utf8()..];
        }
        parts
    } else {
        text.splitn(limit, separator).map(str::to_owned).collect()
    };
    Value::list(parts.into_iter().map(Value::from).collect())
}

pub(super) fn join<'a>(list: &[Value<'a>], separator: &[Value<'a>]) -> Found<'a> {
    let separator = match separator {
        [] => "",
        [Value::Text(separator)] => separator,
        _ => return Err(Error::no_overload()),
    };
    let parts = list.iter().map(|v| match v {
        Value::Text(text) => Ok(&**text),
        _ => Err(Error::no_overload()),
    });
    Ok(parts.collect::<Result<Vec<_>, _>>()?.join(separator).into())
}

/// A text between double quotes, what cannot be seen escaped.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
