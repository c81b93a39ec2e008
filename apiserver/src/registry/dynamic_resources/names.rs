//! Names of pools, attributes and capacities (upstream: `validatePoolName`, `validateQualifiedName`).

use crate::registry::core::pod_spec::csi_driver_name;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names;

const POOL_BYTES_MAX: i64 = 253;
const DOMAIN_BYTES_MAX: usize = 63;
const IDENTIFIER_BYTES_MAX: i64 = 32;
/// A longer key is shown without its middle.
const KEY_BYTES_MAX: usize = DOMAIN_BYTES_MAX + 1 + IDENTIFIER_BYTES_MAX as usize;

pub(super) fn pool_name(name: &View<'_>, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.push(Error::required(name.path(), ""));
        return;
    }
    if name.str().len() as i64 > POOL_BYTES_MAX {
        errors.push(Error::too_long(name.path(), POOL_BYTES_MAX));
    }
    for part in name.str().split('/') {
        let wrong = names::dns1123_subdomain(part, false);
        errors.extend(wrong.into_iter().map(|why| Error::invalid(name.path(), part, why)));
    }
}

/// A C identifier, perhaps after a domain. What is wrong with a key is reported at its map.
pub(super) fn qualified_name(name: &str, at: &View<'_>, errors: &mut ErrorList) {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [only] => identifier(only, at, errors),
        [domain, own] => {
            if domain.is_empty() {
                errors.push(Error::invalid(at.path(), "", "the domain must not be empty"));
            } else {
                let domain = Value::from(*domain);
                csi_driver_name(&View::new(Some(&domain), at.path().clone()), errors);
            }
            if own.is_empty() {
                errors.push(Error::invalid(at.path(), "", "the name must not be empty"));
            } else {
                identifier(own, at, errors);
            }
        }
        // Upstream forgot those with more.
        _ => {}
    }
}

/// A name with its domain.
pub(super) fn full_name(name: &View<'_>, errors: &mut ErrorList) {
    qualified_name(name.str(), name, errors);
    if !name.str().contains('/') {
        let why = "a fully qualified name must be a domain and a name separated by a slash";
        errors.push(Error::invalid(name.path(), name.str(), why));
    }
}

fn identifier(name: &str, at: &View<'_>, errors: &mut ErrorList) {
    if name.len() as i64 > IDENTIFIER_BYTES_MAX {
        errors.push(Error::too_long(at.path(), IDENTIFIER_BYTES_MAX));
    }
    let wrong = names::c_identifier(name);
    errors.extend(wrong.into_iter().map(|why| Error::invalid(at.path(), name, why)));
}

/// The entry of a map, whose path shows a long key shortened.
pub(super) fn key<'a>(map: &View<'_>, name: &str, entry: &View<'a>) -> View<'a> {
    if name.len() <= KEY_BYTES_MAX {
        return entry.clone();
    }
    let kept = KEY_BYTES_MAX - "...".len();
    let (start, end) = (name.as_bytes().get(..kept.div_ceil(2)), name.as_bytes().get(name.len() - kept / 2..));
    let [start, end] = [start, end].map(|part| String::from_utf8_lossy(part.unwrap_or_default()).into_owned());
    View::new(entry.value(), map.path().key(&format!("{start}...{end}")))
}
