//! What names, labels and other short texts may look like, and upstream's sentences for what is wrong with them
//! (upstream: `apimachinery/pkg/util/validation`, `apimachinery/pkg/api/validate/content` and `apiserver/pkg/storage/names`).
//!
//! Every check returns the sentences that describe what is wrong: none if the text is good. The texts quote the regular
//! expression that upstream uses; the checks themselves are plain scans.

pub use ip::{ParsedIp, parse_cidr_sloppy, parse_ip_sloppy};

pub mod ip;

const DNS1123_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const UNDERSCORE_SUBDOMAIN: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// `must be no more than 63 characters`.
pub fn max_len_error(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// `must be between 1 and 65535, inclusive`.
pub fn range_error(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// The sentence of a text that does not match, with examples of texts that do.
pub fn regex_error(message: &str, regex: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{regex}')");
    }
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{regex}')", examples.join(" or "))
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Begins and ends with `edge`, and has only `inner` between.
fn framed(text: &str, edge: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    match bytes {
        [] => false,
        [one] => edge(*one),
        [first, middle @ .., last] => edge(*first) && edge(*last) && middle.iter().all(|&b| inner(b)),
    }
}

fn is_label(text: &str) -> bool {
    framed(text, lower_alnum, |b| lower_alnum(b) || b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

/// A `generateName` may end in a dash: upstream checks it with that dash replaced by a letter.
fn masked(name: &str, prefix: bool) -> std::borrow::Cow<'_, str> {
    match (prefix, name.strip_suffix('-')) {
        (true, Some(rest)) => format!("{rest}a").into(),
        _ => name.into(),
    }
}

/// Checks a DNS-1123 subdomain. `prefix`: the text is a `generateName`, whose last character may be a dash.
pub fn dns1123_subdomain(name: &str, prefix: bool) -> Vec<String> {
    let name = masked(name, prefix);
    let mut errors = Vec::new();
    if name.len() > 253 {
        errors.push(max_len_error(253));
    }
    if !is_subdomain(&name) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
             and must start and end with an alphanumeric character",
            DNS1123_SUBDOMAIN,
            &["example.com"],
        ));
    }
    errors
}

/// Checks a DNS-1123 subdomain whose letters may be of either case.
pub fn dns1123_subdomain_caseless(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 253 {
        errors.push(max_len_error(253));
    }
    if !is_subdomain(&name.to_ascii_lowercase()) {
        errors.push(regex_error(
            "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', \
             and must start and end with an alphanumeric character",
            DNS1123_SUBDOMAIN,
            &["Example.com"],
        ));
    }
    errors
}

/// Checks a DNS-1123 subdomain whose labels may hold underscores (search domains of a pod's DNS).
pub fn dns1123_subdomain_with_underscore(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 253 {
        errors.push(max_len_error(253));
    }
    let good = name.split('.').all(|label| {
        let label = label.strip_prefix('_').unwrap_or(label);
        framed(label, lower_alnum, |b| lower_alnum(b) || b == b'-' || b == b'_')
    });
    if !good {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', \
             and must start and end with an alphanumeric character",
            UNDERSCORE_SUBDOMAIN,
            &["example.com"],
        ));
    }
    errors
}

/// Checks a DNS-1123 label.
pub fn dns1123_label(name: &str, prefix: bool) -> Vec<String> {
    let name = masked(name, prefix);
    let mut errors = Vec::new();
    if name.len() > 63 {
        errors.push(max_len_error(63));
    }
    if !is_label(&name) {
        if is_subdomain(&name) {
            errors.push("must not contain dots".to_owned());
        } else {
            errors.push(regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
                 and must start and end with an alphanumeric character",
                DNS1123_LABEL,
                &["my-name", "123-abc"],
            ));
        }
    }
    errors
}

/// Checks a DNS-1035 label: like a DNS-1123 label, but beginning with a letter.
pub fn dns1035_label(name: &str, prefix: bool) -> Vec<String> {
    let name = masked(name, prefix);
    let mut errors = Vec::new();
    if name.len() > 63 {
        errors.push(max_len_error(63));
    }
    if !is_label(&name) || !name.as_bytes()[0].is_ascii_lowercase() {
        errors.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', \
             start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// Checks a host name such as `*.example.com`.
pub fn wildcard_dns1123_subdomain(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 253 {
        errors.push(max_len_error(253));
    }
    if !name.strip_prefix("*.").is_some_and(is_subdomain) {
        errors.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, \
             which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{DNS1123_SUBDOMAIN}"),
            &["*.example.com"],
        ));
    }
    errors
}

fn is_label_key_name(name: &str) -> bool {
    framed(name, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Checks a label key, annotation key or other qualified name: `name` or `prefix/name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    const MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    const EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let mut parts = text.split('/');
    let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if third.is_some() {
        errors.push(format!(
            "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
            regex_error(MESSAGE, LABEL_KEY, EXAMPLES)
        ));
        return errors;
    }
    let name = match second {
        None => first,
        Some(name) => {
            if first.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(dns1123_subdomain(first, false).into_iter().map(|e| format!("prefix part {e}")));
            }
            name
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push("name part must be no more than 63 bytes".to_owned());
    }
    if !is_label_key_name(name) {
        errors.push(format!("name part {}", regex_error(MESSAGE, LABEL_KEY, EXAMPLES)));
    }
    errors
}

/// Checks the value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push("must be no more than 63 bytes".to_owned());
    }
    if !text.is_empty() && !is_label_key_name(text) {
        errors.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
             and must start and end with an alphanumeric character",
            &format!("({LABEL_KEY})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// Checks a C identifier (`[A-Za-z_][A-Za-z0-9_]*`).
pub fn c_identifier(text: &str) -> Vec<String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = text.bytes().next().is_some_and(|b| word(b) && !b.is_ascii_digit()) && text.bytes().all(word);
    if good {
        return Vec::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

fn parent_directory(text: &str) -> Option<String> {
    match text {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

fn is_key_char(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')
}

/// Checks the name of an environment variable by the strict rule.
pub fn env_var_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let good = text.bytes().next().is_some_and(|b| !b.is_ascii_digit()) && text.bytes().all(is_key_char);
    if !good {
        errors.push(regex_error(
            "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', \
             and must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        ));
    }
    errors.extend(parent_directory(text));
    errors
}

/// Checks the name of an environment variable by the relaxed rule, which is the one in force.
pub fn relaxed_env_var_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.is_empty() {
        errors.push("environment variable name must be non-empty".to_owned());
    }
    if !text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        errors.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    errors
}

/// Checks a key of a ConfigMap or Secret.
pub fn config_map_key(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 253 {
        errors.push(max_len_error(253));
    }
    if text.is_empty() || !text.bytes().all(is_key_char) {
        errors.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    errors.extend(parent_directory(text));
    errors
}

/// Checks the name of a port of a container or service.
pub fn port_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 15 {
        errors.push(max_len_error(15));
    }
    if text.is_empty() || !text.bytes().all(|b| lower_alnum(b) || b == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// Checks a port number.
pub fn port_number(port: i64) -> Vec<String> {
    in_range(port, 1, 65535)
}

pub fn in_range(value: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&value) { Vec::new() } else { vec![range_error(low, high)] }
}

/// Checks the number of a user or group.
pub fn user_id(id: i64) -> Vec<String> {
    in_range(id, 0, i32::MAX.into())
}

/// Checks a percentage such as `25%`.
pub fn percent(text: &str) -> Vec<String> {
    let good = text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if good {
        return Vec::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// Checks the name of an HTTP header.
pub fn http_header_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// Checks a name that only has to fit into a URL path (RBAC). `prefix`: as in [`dns1123_subdomain`].
pub fn path_segment(name: &str, prefix: bool) -> Vec<String> {
    if !prefix && (name == "." || name == "..") {
        return vec![format!("may not be '{name}'")];
    }
    let illegal = ["/", "%"].into_iter().filter(|c| name.contains(c));
    illegal.map(|c| format!("may not contain '{c}'")).collect()
}

/// Why an object of this name cannot be asked for, in the words of a client of upstream's (`rest.Request.Name`).
pub fn unaddressable(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("resource name may not be empty".into());
    }
    let reasons = path_segment(name, false);
    (!reasons.is_empty())
        .then(|| format!("invalid resource name {}: [{}]", crate::field::go_quote(name), reasons.join(" ")))
}

/// How many random characters follow a `generateName`.
pub const RANDOM_SUFFIX_LEN: usize = 5;
/// No vowels and no digits that look like them: a suffix never spells a word.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The name that a `generateName` and randomness make; the prefix is cut so that the whole has at most 63 characters.
pub fn generate(prefix: &str, random: [u8; RANDOM_SUFFIX_LEN]) -> String {
    let mut end = prefix.len().min(63 - RANDOM_SUFFIX_LEN);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = prefix[..end].to_owned();
    name.extend(random.iter().map(|r| SUFFIX_ALPHABET[usize::from(*r) % SUFFIX_ALPHABET.len()] as char));
    name
}

/// A text (such as a decimal hash) in the alphabet of generated names, so that it spells no word (upstream:
/// `rand.SafeEncodeString`).
pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|b| SUFFIX_ALPHABET[usize::from(b) % SUFFIX_ALPHABET.len()] as char).collect()
}

/// FNV-1a with 32 bits, the hash behind pod template hashes.
pub fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_with_upstreams_words() {
        assert!(dns1123_subdomain("a.b-c.0", false).is_empty());
        assert!(dns1123_subdomain("web-", true).is_empty());
        assert_eq!(
            dns1123_subdomain("Web", false),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
              and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(dns1123_label("a.b", false), ["must not contain dots"]);
        assert_eq!(qualified_name("/x"), ["prefix part must be non-empty"],);
        assert_eq!(qualified_name("a/b/c").len(), 1);
        assert_eq!(qualified_name("").len(), 2);
        assert!(label_value("").is_empty() && !label_value("-a").is_empty());
        assert_eq!(regex_error("m", "r", &["a", "b"]), "m (e.g. 'a',  or 'b', regex used for validation is 'r')");
        assert_eq!(port_name("").len(), 2);
        assert!(relaxed_env_var_name("a b").is_empty() && !relaxed_env_var_name("a=b").is_empty());
    }

    #[test]
    fn a_generated_name_is_never_longer_than_a_label() {
        let name = generate(&"x".repeat(100), [0, 1, 2, 3, 255]);
        assert_eq!(name.len(), 63);
        assert!(name.ends_with("xbcdfq"), "{name}");
    }
}
