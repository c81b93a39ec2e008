//! ServiceAccount (upstream: `pkg/registry/core/serviceaccount`).

use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::{Value, json};

pub struct ServiceAccounts;

impl Resource for ServiceAccounts {
    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        keep_names_of_secrets(object);
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, _old: &Value, _subresource: &str) {
        keep_names_of_secrets(object);
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: true, whole_first: false }
    }
}

/// References to secrets of the same namespace need nothing but the name.
fn keep_names_of_secrets(object: &mut Value) {
    let secrets = object.get_mut("secrets").and_then(Value::as_array_mut);
    for secret in secrets.into_iter().flatten() {
        *secret = match secret.get("name").and_then(Value::as_str) {
            Some(name) => json!({ "name": name }),
            None => json!({}),
        };
    }
}
