//! ConfigMap (upstream: `pkg/registry/core/configmap`, `ValidateConfigMap`).

use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Value, names};

/// All values together; the same for secrets.
pub const DATA_BYTES_MAX: usize = 1024 * 1024;

pub struct ConfigMaps;

impl Resource for ConfigMaps {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let root = View::root(object);
        let mut errors = ErrorList::new();
        let (data, binary) = (root.child("data"), root.child("binaryData"));
        let mut bytes = 0;
        for (bag, other, other_name) in [(&data, &binary, "binaryData"), (&binary, &data, "data")] {
            for (key, value) in bag.entries() {
                for why in names::config_map_key(key) {
                    errors.push(Error::invalid(value.path(), key, why));
                }
                if other_name == "binaryData" && other.child_named(key).exists() {
                    errors.push(Error::invalid(value.path(), key, "duplicate of key present in binaryData"));
                }
                bytes += if other_name == "data" { base64_len(value.str()) } else { value.len() };
            }
        }
        if bytes > DATA_BYTES_MAX {
            errors.push(Error::too_long(&Path::new(""), DATA_BYTES_MAX as i64));
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = immutable_errors(object, old, &["data", "binaryData"]);
        errors.extend(self.validate(ctx, object));
        errors
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: true, whole_first: false }
    }
}

/// What `immutable: true` forbids.
pub(super) fn immutable_errors(object: &Value, old: &Value, fields: &[&'static str]) -> ErrorList {
    let (new, old) = (View::root(object), View::root(old));
    let mut errors = ErrorList::new();
    if !old.child("immutable").bool() {
        return errors;
    }
    let why = "field is immutable when `immutable` is set";
    if !new.child("immutable").bool() {
        errors.push(Error::forbidden(&Path::new("immutable"), why));
    }
    for field in fields {
        if new.child(field).value() != old.child(field).value() {
            errors.push(Error::forbidden(&Path::new(field), why));
        }
    }
    errors
}

/// How many bytes a canonical base64 text stands for.
pub(super) fn base64_len(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take(2).filter(|b| *b == b'=').count()
}
