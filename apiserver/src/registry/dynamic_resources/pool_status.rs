//! ResourcePoolStatusRequest: a question about the devices of a driver's pools, answered once (upstream:
//! `pkg/registry/resource/resourcepoolstatusrequest` and the rules that `resource/v1alpha3` declares).

use crate::registry::declarative::{CONDITION, Field, in_bytes};
use crate::registry::internal::{POOL_STATUS_REQUEST_STATUS, dump};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::registry::{checks, metadata};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList};
use coxswain_api::{Value, names};

const LIMIT_MAX: i64 = 1000;
const POOLS_MAX: usize = 1000;
const CONDITIONS_MAX: usize = 10;
const POOL_BYTES_MAX: i64 = 253;
const VALIDATION_ERROR_BYTES_MAX: i64 = 256;

pub struct ResourcePoolStatusRequests;

impl Resource for ResourcePoolStatusRequests {
    fn reset_for_status(&self, object: &mut Value, old: &Value) {
        metadata::reset_for_status(object, old);
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        check(object, None)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        if subresource == "status" {
            let root = Field::root(object, Some(old));
            let status = root.child("status");
            if old.get("status").is_none_or(Value::is_null) {
                checks::conditions(&status.view().child("conditions"), &mut errors);
            } else if status.changed() {
                let shown = dump(status.view(), &POOL_STATUS_REQUEST_STATUS);
                errors.push(Error::invalid(status.view().path(), shown, checks::IMMUTABLE));
            }
        }
        errors.extend(check(object, Some(old)));
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        Some(if subresource.is_empty() { &["status"] } else { &["metadata", "spec"] })
    }
}

fn check(object: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Field::root(object, old);
    if let Some(spec) = root.changed_child("spec")
        && spec.immutable(&mut errors)
    {
        spec.child("driver").required_text(names::dns1123_subdomain_caseless, &mut errors);
        let pool = spec.child("poolName");
        if pool.exists() {
            check_pool_name(&pool, &mut errors);
        }
        let limit = spec.child("limit");
        if limit.exists() {
            limit.maximum(LIMIT_MAX, &mut errors);
            limit.minimum(1, &mut errors);
        } else {
            errors.push(Error::required(limit.view().path(), ""));
        }
    }
    if let Some(status) = root.changed_child("status").filter(Field::exists) {
        check_status(&status, &mut errors);
    }
    errors
}

fn check_status(status: &Field<'_>, errors: &mut ErrorList) {
    if let Some(count) = status.changed_child("poolCount") {
        if count.exists() {
            count.minimum(0, errors);
        } else {
            errors.push(Error::required(count.view().path(), ""));
        }
    }
    if let Some(pools) = status.changed_child("pools")
        && pools.max_items(POOLS_MAX, errors)
    {
        pools.items(None).iter().for_each(|pool| check_pool(pool, errors));
    }
    if let Some(conditions) = status.changed_child("conditions")
        && conditions.max_items(CONDITIONS_MAX, errors)
    {
        conditions.unique("type", CONDITION, errors);
    }
}

fn check_pool(pool: &Field<'_>, errors: &mut ErrorList) {
    pool.child("driver").required_text(names::dns1123_subdomain_caseless, errors);
    let name = pool.child("poolName");
    if name.view().is_empty() {
        errors.push(Error::required(name.view().path(), ""));
    } else {
        check_pool_name(&name, errors);
    }
    let generation = pool.child("generation");
    if generation.view().i64() == 0 {
        errors.push(Error::required(generation.view().path(), ""));
    } else {
        generation.minimum(0, errors);
    }
    pool.child("resourceSliceCount").optional_minimum(1, errors);
    for field in ["totalDevices", "allocatedDevices", "availableDevices", "unavailableDevices"] {
        pool.child(field).optional_minimum(0, errors);
    }
    pool.child("nodeName").optional_text(|text| names::dns1123_subdomain(text, false), errors);
    let wrong = pool.child("validationError");
    if wrong.view().len() as i64 > VALIDATION_ERROR_BYTES_MAX {
        errors.push(Error::too_long(wrong.view().path(), VALIDATION_ERROR_BYTES_MAX));
    }
}

/// Subdomains between slashes. An empty one is shown with the whole name, another one by itself.
fn check_pool_name(name: &Field<'_>, errors: &mut ErrorList) {
    let (path, text) = (name.view().path(), name.view().str());
    if text.len() as i64 > POOL_BYTES_MAX {
        errors.push(Error::too_long(path, POOL_BYTES_MAX));
    }
    for (i, segment) in text.split('/').enumerate() {
        if segment.is_empty() {
            errors.push(Error::invalid(path, text, format!("segment {i}: must not be empty")));
            continue;
        }
        let wrong = names::dns1123_subdomain(segment, false);
        errors.extend(
            wrong.into_iter().map(|why| Error::invalid(path, segment, format!("segment {i}: {}", in_bytes(why)))),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    fn lines(errors: ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_question_has_a_driver_and_a_limit_and_does_not_change() {
        let good = json!({"spec": {"driver": "D.example.com", "limit": 5}});
        assert_eq!(lines(check(&good, None)), [""; 0]);
        let other = json!({"spec": {"driver": "", "poolName": "a//b", "limit": 1001}});
        assert_eq!(
            lines(check(&other, None)),
            [
                "spec.driver: Required value",
                "spec.poolName: Invalid value: \"a//b\": segment 1: must not be empty",
                "spec.limit: Invalid value: 1001: must be less than or equal to 1000",
            ]
        );
        assert_eq!(lines(check(&other, Some(&good))), ["spec: Invalid value: null: field is immutable"]);
    }

    #[test]
    fn an_answer_counts_its_pools() {
        let spec = json!({"driver": "d", "limit": 5});
        let old = json!({"spec": spec});
        let new = json!({"spec": spec, "status": {"pools": [{"driver": "d", "poolName": "p", "generation": 1, "totalDevices": -1}]}});
        assert_eq!(
            lines(check(&new, Some(&old))),
            [
                "status.poolCount: Required value",
                "status.pools[0].totalDevices: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }
}
