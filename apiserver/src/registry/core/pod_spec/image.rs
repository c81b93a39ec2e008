//! References to images, as far as their tags decide how they are pulled (upstream: `ParseImageName` on the grammar of
//! `distribution/reference`).

use regex::Regex;
use std::sync::LazyLock;

const DEFAULT_DOMAIN: &str = "docker.io";
const NAME_BYTES_MAX: usize = 255;

/// Domain, path, tag and digest, after the default domain was put in.
static REFERENCE: LazyLock<Regex> = LazyLock::new(|| {
    let label = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
    let host = format!(r"(?:{label}(?:\.{label})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?");
    let part = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*";
    let tag = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}";
    let digest = "[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}";
    let whole = format!("^(?<name>{host}/{part}(?:/{part})*)(?::(?<tag>{tag}))?(?:@(?<digest>{digest}))?$");
    Regex::new(&whole).expect("the grammar is a regular expression")
});

/// The tag of a reference; one with a digest alone has none, one with neither has `latest`. None if it cannot be read.
pub fn tag(image: &str) -> Option<String> {
    // An identifier of an image is no name of one.
    if image.len() == 64 && image.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    // What comes before the first slash is a host if it looks like one.
    let (domain, rest) = match image.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, image),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
    let library = if domain == DEFAULT_DOMAIN && !rest.contains('/') { "library/" } else { "" };
    let whole = format!("{domain}/{library}{rest}");
    let found = REFERENCE.captures(&whole)?;
    if found["name"].len() > NAME_BYTES_MAX || found.name("digest").is_some_and(|d| !is_digest(d.as_str())) {
        return None;
    }
    match (found.name("tag"), found.name("digest")) {
        (Some(tag), _) => Some(tag.as_str().to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_owned()),
    }
}

/// Digests are of known algorithms, whose lengths are known, and in lower case.
fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::tag;

    #[test]
    fn the_tag_decides_how_images_are_pulled() {
        let digest = format!("app@sha256:{}", "a".repeat(64));
        for (image, expected) in [
            ("nginx", Some("latest")),
            ("a/b/c_d__e--f", Some("latest")),
            ("registry.example:5000/app", Some("latest")),
            ("registry.example:5000/app:1", Some("1")),
            ("[2001:db8::1]:5000/app", Some("latest")),
            ("Host/app", Some("latest")),
            (digest.as_str(), None),
            ("app@sha256:abc", None),
            ("App", None),
            ("/abs", None),
            ("a//b", None),
            ("-1", None),
            ("a..b", None),
            ("", None),
        ] {
            assert_eq!(tag(image).as_deref(), expected, "{image}");
        }
        assert_eq!(tag(&"a".repeat(64)), None, "an identifier");
        assert_eq!(tag(&"b".repeat(254)), None, "with the default domain it is too long");
    }
}
