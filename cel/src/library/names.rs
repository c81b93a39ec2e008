//! The formats of names that expressions can check (upstream: `apiserver/pkg/cel/library/format.go`).

use super::{time, url};
use base64::Engine as _;
use coxswain_api::names;

/// A format: its name, what is wrong with a text, and how long upstream takes its regular expression to be.
#[derive(Debug)]
pub struct NameFormat {
    name: &'static str,
    pub(crate) check: fn(&str) -> Vec<String>,
    pub(crate) regex_size: u64,
}

static FORMATS: [NameFormat; 13] = [
    NameFormat { name: "dns1123Label", check: |s| names::dns1123_label(s, false), regex_size: 30 },
    NameFormat { name: "dns1123Subdomain", check: |s| names::dns1123_subdomain(s, false), regex_size: 60 },
    NameFormat { name: "dns1035Label", check: |s| names::dns1035_label(s, false), regex_size: 30 },
    NameFormat { name: "qualifiedName", check: names::qualified_name, regex_size: 60 },
    NameFormat { name: "dns1123LabelPrefix", check: |s| names::dns1123_label(s, true), regex_size: 30 },
    NameFormat { name: "dns1123SubdomainPrefix", check: |s| names::dns1123_subdomain(s, true), regex_size: 60 },
    NameFormat { name: "dns1035LabelPrefix", check: |s| names::dns1035_label(s, true), regex_size: 30 },
    NameFormat { name: "labelValue", check: names::label_value, regex_size: 40 },
    NameFormat { name: "uri", check: url::complaints, regex_size: 1103 },
    NameFormat { name: "uuid", check: |s| told(is_uuid(s), "does not match the UUID format"), regex_size: 78 },
    NameFormat { name: "byte", check: |s| told(is_base64(s), "invalid base64"), regex_size: 84 },
    NameFormat { name: "date", check: |s| told(is_date(s), "invalid date"), regex_size: 156 },
    NameFormat {
        name: "datetime",
        check: |s| told(time::parse_timestamp(s).is_some(), "invalid datetime"),
        regex_size: 156,
    },
];

pub(crate) fn named(name: &str) -> Option<&'static NameFormat> {
    FORMATS.iter().find(|f| f.name == name)
}

/// The names of all formats, each of which is a function too.
pub(crate) fn all() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().map(|f| f.name)
}

fn told(is_right: bool, why: &str) -> Vec<String> {
    if is_right { Vec::new() } else { vec![why.to_owned()] }
}

fn is_uuid(text: &str) -> bool {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit)
}

fn is_base64(text: &str) -> bool {
    !text.is_empty() && base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}
