//! URLs (upstream: `apiserver/pkg/cel/library/urls.go` on Go's `net/url`).

use super::Found;
use crate::eval::Error;
use crate::value::{Key, Value};
use coxswain_api::field::go_quote;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
    fragment: String,
}

/// Why a text is no request URI, in Go's words.
fn refusal(text: &str) -> Option<String> {
    let told = |why: &str| Some(format!("parse {}: {why}", go_quote(text)));
    if text.bytes().any(|b| b < b' ' || b == 0x7f) {
        return told("net/url: invalid control character in URL");
    }
    if text.is_empty() {
        return told("empty url");
    }
    let (scheme, rest) = scheme(text);
    if scheme.is_empty() && text.starts_with(':') {
        return told("missing protocol scheme");
    }
    if !rest.starts_with('/') {
        // What is opaque after a scheme is let through, but not what has no scheme.
        return if scheme.is_empty() { told("invalid URI for request") } else { None };
    }
    let authority = rest.strip_prefix("//").map(|r| r.split(['/', '?', '#']).next().unwrap_or_default());
    let host = authority.map(|a| a.rsplit_once('@').map_or(a, |(_, host)| host)).unwrap_or_default();
    if let Some(bad) = host.chars().find(|c| matches!(c, ' ' | '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}')) {
        return told(&format!("invalid character {} in host name", go_quote(&bad.to_string())));
    }
    let port = host.rsplit_once(':').filter(|_| !host.ends_with(']')).map(|(_, port)| port);
    if let Some(port) = port.filter(|p| !p.bytes().all(|b| b.is_ascii_digit())) {
        return told(&format!("invalid port {} after host", go_quote(&format!(":{port}"))));
    }
    let bytes = rest.as_bytes();
    let escape_at = bytes.iter().enumerate().filter(|(_, b)| **b == b'%').map(|(at, _)| at).find(|at| {
        !(bytes.get(at + 1).is_some_and(u8::is_ascii_hexdigit) && bytes.get(at + 2).is_some_and(u8::is_ascii_hexdigit))
    });
    if let Some(at) = escape_at {
        let end = (at + 3).min(rest.len());
        return told(&format!("invalid URL escape {}", go_quote(rest.get(at..end).unwrap_or("%"))));
    }
    None
}

/// The scheme in lower case, and what follows its colon.
fn scheme(text: &str) -> (String, &str) {
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    match text.split_once(':') {
        Some((scheme, rest))
            if scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(letters) =>
        {
            (scheme.to_ascii_lowercase(), rest)
        }
        _ => (String::new(), text),
    }
}

pub(super) fn is_request_uri(text: &str) -> bool {
    refusal(text).is_none()
}

/// What is wrong with a text as a request URI, for the format `uri`.
pub(super) fn complaints(text: &str) -> Vec<String> {
    refusal(text).into_iter().collect()
}

impl Url {
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        if let Some(why) = refusal(text) {
            return Err(Error::new(format!("URL parse error during conversion from string: {why}")));
        }
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (scheme, rest) = scheme(rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        Ok(Self {
            scheme,
            host: unescaped(host, false),
            path: path.into(),
            query: query.into(),
            fragment: fragment.into(),
        })
    }

    fn port_at(&self) -> Option<usize> {
        let at = self.host.rfind(':')?;
        (!self.host[at..].contains(']')).then_some(at)
    }

    pub(super) fn part<'a>(&self, name: &str) -> Found<'a> {
        Ok(match name {
            "getScheme" => self.scheme.as_str().into(),
            "getHost" => self.host.as_str().into(),
            "getHostname" => {
                let host = self.port_at().map_or(&*self.host, |at| &self.host[..at]);
                host.trim_start_matches('[').trim_end_matches(']').into()
            }
            "getPort" => self.port_at().map_or("", |at| &self.host[at + 1..]).into(),
            "getEscapedPath" => escaped_path(&self.path).into(),
            "getQuery" => {
                let mut made: BTreeMap<Key, Vec<Value<'a>>> = BTreeMap::new();
                for pair in self.query.split('&').filter(|p| !p.is_empty() && !p.contains(';')) {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    let key = Key::Text(unescaped(key, true).into());
                    made.entry(key).or_default().push(unescaped(value, true).into());
                }
                Value::Map(Arc::new(made.into_iter().map(|(k, v)| (k, Value::list(v))).collect()))
            }
            _ => return Err(Error::no_overload()),
        })
    }
}

fn unescaped(text: &str, plus_is_space: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%').and_then(|h| u8::from_str_radix(h, 16).ok());
        match (bytes[at], hex) {
            (_, Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) if plus_is_space => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A path with everything escaped that a path may not hold; what is escaped already stays.
fn escaped_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*[]".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
