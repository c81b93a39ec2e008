//! The formats of strings that are checked (upstream: `kube-openapi/pkg/validation/strfmt`). Others are ignored.

use crate::go_regex;
use regex::Regex;
use serde_json::Value;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::OnceLock;

/// The formats of texts, without their dashes: upstream takes `date-time` and `datetime` for one.
const TEXTS: [&str; 26] = [
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

/// The format as far as anything is known of it for this type, or nothing.
pub fn supported<'f>(ty: &str, format: &'f str) -> &'f str {
    let known = match ty {
        "" | "string" => is_known(format),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    };
    if known { format } else { "" }
}

/// Whether a format of texts is known.
pub(super) fn is_known(format: &str) -> bool {
    !format.is_empty() && TEXTS.contains(&&*format.replace('-', ""))
}

/// Adds the formats that nothing is known of, in a schema and all within it, in the order in which upstream meets them.
pub fn unrecognized(schema: &Value, found: &mut Vec<String>) {
    let (format, ty) = (schema["format"].as_str().unwrap_or_default(), schema["type"].as_str().unwrap_or_default());
    if !format.is_empty() && supported(ty, format).is_empty() {
        found.push(format.to_owned());
    }
    let mut each = |value: &Value| match value {
        Value::Object(_) => unrecognized(value, found),
        Value::Array(items) => items.iter().for_each(|s| unrecognized(s, found)),
        _ => {}
    };
    for name in ["items", "allOf", "anyOf", "oneOf", "not"] {
        each(&schema[name]);
    }
    schema["properties"].as_object().into_iter().flatten().for_each(|(_, s)| each(s));
    each(&schema["additionalProperties"]);
}

pub(super) fn fits(format: &str, text: &str) -> bool {
    static HOSTNAME: Pattern = Pattern(
        r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$",
        OnceLock::new(),
    );
    static COLOR: Pattern = Pattern(
        r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$",
        OnceLock::new(),
    );
    static BASE64: Pattern = Pattern(
        r"^(?:[A-Za-z0-9+\/]{4})*(?:[A-Za-z0-9+\/]{2}==|[A-Za-z0-9+\/]{3}=|[A-Za-z0-9+\/]{4})$",
        OnceLock::new(),
    );
    static SSN: Pattern = Pattern(r"^\d{3}[- ]?\d{2}[- ]?\d{4}$", OnceLock::new());
    match format.replace('-', "").as_str() {
        "datetime" => date_time(text),
        "date" => is_date(text),
        "duration" => duration(text),
        "byte" => BASE64.fits(text),
        "ipv4" => text.contains('.') && sloppy_ip(text).is_some(),
        "ipv6" => text.contains(':') && text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "email" => email(text),
        "hostname" => HOSTNAME.fits(text) && text.len() <= 255 && text.split('.').all(|label| label.len() <= 63),
        "uri" => uri(text),
        "uuid" => matches(uuid(""), text),
        "uuid3" => matches(uuid("3"), text),
        "uuid4" => matches(uuid("4"), text),
        "uuid5" => matches(uuid("5"), text),
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "creditcard" => credit_card(text),
        "ssn" => text.len() == 11 && SSN.fits(text),
        "hexcolor" => {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && digits.bytes().all(|b| b.is_ascii_hexdigit())
        }
        "rgbcolor" => COLOR.fits(text),
        "k8sshortname" => crate::names::dns1123_label(text, false).is_empty(),
        "k8slongname" => crate::names::dns1123_subdomain(text, false).is_empty(),
        _ => true,
    }
}

/// An expression that is compiled when it is first asked.
struct Pattern(&'static str, OnceLock<Regex>);

impl Pattern {
    fn fits(&self, text: &str) -> bool {
        self.1
            .get_or_init(|| go_regex::compile(self.0).expect("the pattern of a format is an expression"))
            .is_match(text)
    }
}

/// The digits of a number that may be written in groups.
fn ungrouped(text: &str) -> Vec<u8> {
    text.bytes().filter(|b| !matches!(b, b'-' | b' ' | b'\t' | b'\n' | b'\r' | 0x0c)).collect()
}

fn isbn10(text: &str) -> bool {
    let digits = ungrouped(text);
    let (Some((last, first)), 10) = (digits.split_last(), digits.len()) else { return false };
    if !first.iter().all(u8::is_ascii_digit) || !(last.is_ascii_digit() || *last == b'X') {
        return false;
    }
    let last = if *last == b'X' { 10 } else { u32::from(last - b'0') };
    let sum: u32 = (1..).zip(first).map(|(i, digit)| i * u32::from(digit - b'0')).sum();
    (sum + 10 * last).is_multiple_of(11)
}

fn isbn13(text: &str) -> bool {
    let digits = ungrouped(text);
    if digits.len() != 13 || !digits.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let weighted = digits.iter().enumerate().map(|(i, digit)| [1, 3][i % 2] * u32::from(digit - b'0'));
    weighted.sum::<u32>().is_multiple_of(10)
}

fn credit_card(text: &str) -> bool {
    static NUMBERS: Pattern = Pattern(
        r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})$",
        OnceLock::new(),
    );
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(i, digit)| match (i % 2, u32::from(digit - b'0')) {
            (1, digit) if digit > 4 => digit * 2 - 9,
            (1, digit) => digit * 2,
            (_, digit) => digit,
        })
        .sum();
    NUMBERS.fits(&digits) && sum.is_multiple_of(10)
}

/// An address whose numbers may begin with zeros, as Go once read them.
fn sloppy_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse().ok();
    }
    let parts: Vec<&str> = text.split('.').collect();
    let plain: Option<Vec<String>> = parts
        .iter()
        .map(|part| {
            let digits = part.trim_start_matches('0');
            let digits = if digits.is_empty() && !part.is_empty() { "0" } else { digits };
            digits.parse::<u8>().ok().filter(|_| !part.starts_with('+')).map(|n| n.to_string())
        })
        .collect();
    plain?.join(".").parse().ok()
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

fn is_date(text: &str) -> bool {
    text.len() == 10 && jiff::civil::Date::strptime("%Y-%m-%d", text).is_ok()
}

/// RFC 3339, with letters of either case. An hour is at most 23, and a second at most 59.
fn date_time(text: &str) -> bool {
    static TIME: Pattern =
        Pattern(r"^([0-9]{2}):([0-9]{2}):([0-9]{2})(.[0-9]+)?(z|([+-][0-9]{2}:[0-9]{2}))$", OnceLock::new());
    let lower = text.to_lowercase();
    let mut parts = lower.split('t');
    let (Some(date), Some(time)) = (parts.next(), parts.next()) else { return false };
    is_date(date) && TIME.fits(time) && &time[..2] <= "23" && &time[3..5] <= "59" && &time[6..8] <= "59"
}

/// Go's durations, and numbers with a word for the unit, of which the first letters count.
fn duration(text: &str) -> bool {
    if crate::time::parse_duration(text).is_some() {
        return true;
    }
    const SHORT: [&str; 14] = ["ns", "us", "µs", "ms", "s", "m", "h", "hr", "d", "w", "wk", "nano", "micro", "milli"];
    const LONG: [&str; 8] = ["nano", "micro", "milli", "sec", "min", "hour", "day", "week"];
    static PARTS: OnceLock<Regex> = OnceLock::new();
    let parts = PARTS.get_or_init(|| {
        go_regex::compile(r"(\d+)\s*([A-Za-zµ]+)").expect("the pattern of a duration is an expression")
    });
    let mut found = false;
    for part in parts.captures_iter(text) {
        if part[1].parse::<i64>().is_err() {
            return false;
        }
        let unit = part[2].to_lowercase();
        found |= SHORT.contains(&&*unit) || LONG.iter().any(|word| unit.starts_with(word));
    }
    found
}

fn cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let max = match sloppy_ip(address) {
        Some(IpAddr::V4(_)) => 32,
        Some(IpAddr::V6(_)) => 128,
        None => return false,
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
    let Some((scheme, after)) = text.split_once(':') else { return false };
    let authority = after.strip_prefix("//").map_or("", |after| after.split(['/', '?']).next().unwrap_or_default());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port = host.rsplit_once(':').filter(|(before, _)| !before.starts_with('[') || before.ends_with(']'));
    escapes
        && port.is_none_or(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}
