//! Semantic versions (upstream: `apiserver/pkg/cel/library/semverlib.go` on `blang/semver`).

use super::Found;
use crate::eval::Error;
use crate::value::Value;
use coxswain_api::field::go_quote;
use std::cmp::Ordering;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    /// What precedes the release, in its parts.
    before: Vec<Part>,
}

/// Numbers come before words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Word(String),
}

impl Semver {
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::new("Version string empty"));
        }
        let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
        let (rest, before) = rest.split_once('-').map_or((rest, None), |(rest, before)| (rest, Some(before)));
        let parts: Vec<&str> = rest.splitn(3, '.').collect();
        let [major, minor, patch] = parts[..] else { return Err(Error::new("No Major.Minor.Patch elements found")) };
        let number = |what: &str, text: &str| {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Error::new(format!("Invalid character(s) found in {what} number {}", go_quote(text))));
            }
            if text.len() > 1 && text.starts_with('0') {
                let why = format!("{} number must not contain leading zeroes {}", capital(what), go_quote(text));
                return Err(Error::new(why));
            }
            text.parse()
                .map_err(|_| Error::new(format!("strconv.ParseUint: parsing {}: value out of range", go_quote(text))))
        };
        let numbers = [number("major", major)?, number("minor", minor)?, number("patch", patch)?];
        let clean = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let mut made = Vec::new();
        for part in before.into_iter().flat_map(|b| b.split('.')) {
            if part.is_empty() {
                return Err(Error::new("Prerelease is empty"));
            }
            if part.bytes().all(|b| b.is_ascii_digit()) {
                if part.len() > 1 && part.starts_with('0') {
                    let why = format!("Numeric PreRelease version must not contain leading zeroes {}", go_quote(part));
                    return Err(Error::new(why));
                }
                made.push(Part::Number(part.parse().unwrap_or(u64::MAX)));
            } else if clean(part) {
                made.push(Part::Word(part.to_owned()));
            } else {
                return Err(Error::new(format!("Invalid character(s) found in prerelease {}", go_quote(part))));
            }
        }
        for part in build.into_iter().flat_map(|b| b.split('.')) {
            if part.is_empty() {
                return Err(Error::new("Build meta data is empty"));
            }
            if !clean(part) {
                return Err(Error::new(format!("Invalid character(s) found in build meta data {}", go_quote(part))));
            }
        }
        Ok(Self { numbers, before: made })
    }

    /// Also without minor and patch, with a `v` before it and with leading zeros.
    pub(super) fn parse_loosely(text: &str) -> Result<Self, Error> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let (core, tail) = text.split_at(text.find(['-', '+']).unwrap_or(text.len()));
        let mut parts: Vec<String> = core
            .splitn(3, '.')
            .map(|p| match p.trim_start_matches('0') {
                "" if !p.is_empty() => "0".to_owned(),
                short => short.to_owned(),
            })
            .collect();
        if parts.len() < 3 && !tail.is_empty() {
            return Err(Error::new("Short version cannot contain PreRelease/Build meta data"));
        }
        while parts.len() < 3 {
            parts.push("0".into());
        }
        Self::parse(&format!("{}{tail}", parts.join(".")))
    }

    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.before.is_empty(), other.before.is_empty()) {
            (true, true) => Ordering::Equal,
            // A release comes after what precedes it.
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => self.before.cmp(&other.before),
        })
    }

    pub(super) fn call<'a>(&self, name: &str, rest: &[Value<'a>]) -> Found<'a> {
        Ok(match (name, rest) {
            ("major", []) => Value::Int(self.numbers[0] as i64),
            ("minor", []) => Value::Int(self.numbers[1] as i64),
            ("patch", []) => Value::Int(self.numbers[2] as i64),
            ("isGreaterThan", [Value::Semver(other)]) => Value::Bool(self.compare(other).is_gt()),
            ("isLessThan", [Value::Semver(other)]) => Value::Bool(self.compare(other).is_lt()),
            ("compareTo", [Value::Semver(other)]) => Value::Int(self.compare(other) as i64),
            _ => return Err(Error::no_overload()),
        })
    }
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}
