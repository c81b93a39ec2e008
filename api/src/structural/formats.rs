//! The formats of strings that are checked (upstream: `kube-openapi/pkg/validation/strfmt`). Others are ignored.

use base64::Engine;
use regex::Regex;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

pub(super) fn fits(format: &str, text: &str) -> bool {
    // Upstream takes `date-time` and `datetime` for one.
    match format.replace('-', "").as_str() {
        "datetime" => date_time(text),
        "date" => text.len() == 10 && jiff::civil::Date::strptime("%Y-%m-%d", text).is_ok(),
        "duration" => duration(text),
        "byte" => base64::prelude::BASE64_STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "email" => email(text),
        "hostname" => hostname(text),
        "uri" => uri(text),
        "uuid" => matches(uuid(""), text),
        "uuid3" => matches(uuid("3"), text),
        "uuid4" => matches(uuid("4"), text),
        "uuid5" => matches(uuid("5"), text),
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && digits.bytes().all(|b| b.is_ascii_hexdigit())
        }
        "k8sshortname" => crate::names::dns1123_label(text, false).is_empty(),
        "k8slongname" => crate::names::dns1123_subdomain(text, false).is_empty(),
        _ => true,
    }
}

/// Adds the formats of strings that nothing is known of, in a schema and all within it.
pub fn unrecognized(schema: &serde_json::Value, found: &mut Vec<String>) {
    const KNOWN: [&str; 26] = [
        "bsonobjectid",
        "byte",
        "cidr",
        "creditcard",
        "date",
        "datetime",
        "duration",
        "email",
        "hexcolor",
        "hostname",
        "ipv4",
        "ipv6",
        "isbn",
        "isbn10",
        "isbn13",
        "k8slongname",
        "k8sshortname",
        "mac",
        "password",
        "rgbcolor",
        "ssn",
        "uri",
        "uuid",
        "uuid3",
        "uuid4",
        "uuid5",
    ];
    let format = schema["format"].as_str().unwrap_or_default();
    if schema["type"] == "string" && !format.is_empty() && !KNOWN.contains(&&*format.replace('-', "")) {
        found.push(format.to_owned());
    }
    match schema {
        serde_json::Value::Object(map) => {
            map.iter().filter(|(key, _)| *key != "default").for_each(|(_, s)| unrecognized(s, found))
        }
        serde_json::Value::Array(items) => items.iter().for_each(|s| unrecognized(s, found)),
        _ => {}
    }
}

fn matches(regex: &Regex, text: &str) -> bool {
    regex.is_match(text)
}

fn uuid(version: &str) -> &'static Regex {
    static ANY: [OnceLock<Regex>; 4] = [const { OnceLock::new() }; 4];
    let (slot, third, fourth) = match version {
        "3" => (1, "3[0-9a-f]{3}", "[0-9a-f]{4}"),
        "4" => (2, "4[0-9a-f]{3}", "[89ab][0-9a-f]{3}"),
        "5" => (3, "5[0-9a-f]{3}", "[89ab][0-9a-f]{3}"),
        _ => (0, "[0-9a-f]{4}", "[0-9a-f]{4}"),
    };
    ANY[slot].get_or_init(|| {
        let pattern = format!("(?i)^[0-9a-f]{{8}}-?[0-9a-f]{{4}}-?{third}-?{fourth}-?[0-9a-f]{{12}}$");
        Regex::new(&pattern).expect("the pattern of a UUID is a regular expression")
    })
}

/// RFC 3339, or without an offset, as upstream's list of layouts has it.
fn date_time(text: &str) -> bool {
    if text.len() < 4 {
        return false;
    }
    let upper = text.to_ascii_uppercase().replacen(' ', "T", 1);
    crate::codec::gotime::parse(&upper, false).is_ok()
        || crate::codec::gotime::parse(&format!("{upper}Z"), false).is_ok()
}

/// Go's durations, and numbers with a word for days and weeks.
fn duration(text: &str) -> bool {
    if crate::time::parse_duration(text).is_some() {
        return true;
    }
    static WORDS: OnceLock<Regex> = OnceLock::new();
    let words = WORDS.get_or_init(|| {
        let units = "(?:ns|nano|us|µs|micro|ms|milli|s|sec|m|min|h|hr|hour|d|day|w|week|wk)s?";
        Regex::new(&format!(r"^(?:\d+\s*{units}\s*)+$")).expect("the pattern of a duration is a regular expression")
    });
    words.is_match(text)
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let max = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    !bits.starts_with('+') && bits.parse::<u8>().is_ok_and(|bits| bits <= max)
}

fn mac(text: &str) -> bool {
    let separator = if text.contains('-') { '-' } else { ':' };
    let groups: Vec<&str> = text.split(separator).collect();
    let hex = |width: usize| groups.iter().all(|g| g.len() == width && g.bytes().all(|b| b.is_ascii_hexdigit()));
    if text.contains('.') {
        let groups: Vec<&str> = text.split('.').collect();
        return matches!(groups.len(), 3 | 4 | 10)
            && groups.iter().all(|g| g.len() == 4 && g.bytes().all(|b| b.is_ascii_hexdigit()));
    }
    matches!(groups.len(), 6 | 8 | 20) && hex(2)
}

fn email(text: &str) -> bool {
    let address = match (text.find('<'), text.strip_suffix('>')) {
        (Some(at), Some(inner)) => &inner[at + 1..],
        _ => text,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let is_atom = |s: &str| {
        !s.is_empty() && s.split('.').all(|part| !part.is_empty() && !part.contains([' ', '<', '>', '@', ',']))
    };
    (is_atom(local) || (local.len() > 2 && local.starts_with('"') && local.ends_with('"'))) && is_atom(domain)
}

fn hostname(text: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    (1..=255).contains(&text.len()) && text.trim_end_matches('.').split('.').all(label)
}

/// An absolute URI, or an absolute path (upstream: `url.ParseRequestURI`).
fn uri(text: &str) -> bool {
    if text.is_empty() || text.chars().any(|c| c.is_ascii_control() || c == ' ') {
        return false;
    }
    let escapes = text
        .match_indices('%')
        .all(|(i, _)| text.get(i + 1..i + 3).is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())));
    if text.starts_with('/') {
        return escapes;
    }
    let Some((scheme, _)) = text.split_once(':') else { return false };
    escapes
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}
