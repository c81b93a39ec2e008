//! What names and values of labels may look like (upstream: `apimachinery/pkg/util/validation`).

/// Checks a DNS-1123 subdomain. `prefix`: the text is a `generateName`, whose last character may be a dash.
pub fn dns1123_subdomain(_name: &str, _prefix: bool) -> Vec<String> {
    Vec::new()
}
