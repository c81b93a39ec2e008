//! CSIDriver, CSINode and CSIStorageCapacity: what storage drivers say of themselves.

use crate::registry::checks::{self, SelectorLeniency};
use crate::registry::core::pod_spec::csi_driver_name;
use crate::registry::defaults::{child_mut, set_default};
use crate::registry::internal::{CSI_NODE_DRIVER, dump};
use crate::registry::metadata;
use crate::registry::resource::Resource;
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::quantity::Quantity;
use coxswain_api::{Value, json};
use std::collections::HashSet;

const NODE_ID_BYTES_MAX: usize = 256;
const TOKEN_SECONDS_MIN: i64 = 600;
const UPDATE_PERIOD_SECONDS_MIN: i64 = 10;

pub struct CsiDrivers;

impl Resource for CsiDrivers {
    fn set_defaults(&self, object: &mut Value) {
        let spec = child_mut(object, "spec");
        set_default(spec, "attachRequired", || json!(true));
        set_default(spec, "podInfoOnMount", || json!(false));
        set_default(spec, "storageCapacity", || json!(false));
        set_default(spec, "fsGroupPolicy", || json!("ReadWriteOnceWithFSType"));
        if View::root(spec).child("volumeLifecycleModes").is_empty() {
            spec["volumeLifecycleModes"] = json!(["Persistent"]);
        }
        set_default(spec, "requiresRepublish", || json!(false));
        set_default(spec, "seLinuxMount", || json!(false));
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (root, mut errors) = (View::root(object), ErrorList::new());
        let spec = root.child("spec");
        driver_spec(&spec, &mut errors);
        errors
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        drop_scheduling_prevention(object);
    }

    /// A new driver has no generation; every change of what it says counts one.
    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, _subresource: &str) {
        if old.pointer("/spec/preventPodSchedulingIfMissing").is_none_or(Value::is_null) {
            drop_scheduling_prevention(object);
        }
        if object.get("spec") != old.get("spec") {
            let generation = metadata::number(old, "generation").unwrap_or(0);
            metadata::set(object, "generation", generation + 1);
        }
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let (new, old, mut errors) = (View::root(object), View::root(old), ErrorList::new());
        let (new, old) = (new.child("spec"), old.child("spec"));
        driver_spec(&new, &mut errors);
        let (attach, before) = (new.child("attachRequired"), old.child("attachRequired"));
        if !checks::same(attach.value(), before.value()) {
            // Upstream's path has a letter that the field does not.
            let path = new.path().child("attachedRequired");
            errors.push(Error::invalid(&path, &attach, "field is immutable"));
        }
        checks::immutable(&new.child("volumeLifecycleModes"), &old.child("volumeLifecycleModes"), &mut errors);
        errors
    }

    fn warnings(&self, _ctx: &Context, object: &Value, old: Option<&Value>) -> Vec<String> {
        let spec = View::root(object).child("spec");
        if old.is_some()
            || spec.child("tokenRequests").is_empty()
            || spec.child("serviceAccountTokenInSecrets").exists()
        {
            return Vec::new();
        }
        let text = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent \
                    possible logging of tokens in volume attributes";
        vec![text.into()]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}

/// Belongs to a feature that is off (`VolumeLimitScaling`).
fn drop_scheduling_prevention(driver: &mut Value) {
    if let Some(spec) = driver.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("preventPodSchedulingIfMissing");
    }
}

fn driver_spec(spec: &View<'_>, errors: &mut ErrorList) {
    for name in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        let field = spec.child(name);
        if !field.exists() {
            errors.push(Error::required(field.path(), ""));
        }
    }
    let policy = spec.child("fsGroupPolicy");
    if !policy.exists() {
        errors.push(Error::required(policy.path(), ""));
    } else {
        checks::supported_value(&policy, &["File", "None", "ReadWriteOnceWithFSType"], errors);
    }
    let mut audiences = HashSet::new();
    for request in spec.child("tokenRequests").items() {
        let audience = request.child("audience");
        if !audiences.insert(audience.str()) {
            errors.push(Error::duplicate(audience.path(), audience.str()));
            continue;
        }
        let expiry = request.child("expirationSeconds");
        if let Some(seconds) = expiry.opt_i64() {
            if seconds < TOKEN_SECONDS_MIN {
                errors.push(Error::invalid(expiry.path(), seconds, "may not specify a duration less than 10 minutes"));
            }
            if seconds > 1 << 32 {
                errors.push(Error::invalid(
                    expiry.path(),
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                ));
            }
        }
    }
    let modes = spec.child("volumeLifecycleModes");
    for mode in modes.items() {
        // Upstream names the list, not the element.
        if !["Persistent", "Ephemeral"].contains(&mode.str()) {
            errors.push(Error::not_supported(modes.path(), mode.str(), &["Persistent", "Ephemeral"]));
        }
    }
    let in_secrets = spec.child("serviceAccountTokenInSecrets");
    if in_secrets.exists() && spec.child("tokenRequests").is_empty() {
        let why = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        errors.push(Error::invalid(in_secrets.path(), in_secrets.bool(), why));
    }
    let period = spec.child("nodeAllocatableUpdatePeriodSeconds");
    if period.opt_i64().is_some_and(|s| s < UPDATE_PERIOD_SECONDS_MIN) {
        errors.push(Error::invalid(period.path(), period.i64(), "must be greater than or equal to 10 seconds"));
    }
}

pub struct CsiNodes;

impl Resource for CsiNodes {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (root, mut errors) = (View::root(object), ErrorList::new());
        node_drivers(&root.child("spec").child("drivers"), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let (new, old, mut errors) = (View::root(object), View::root(old), ErrorList::new());
        let (new, old) = (new.child("spec").child("drivers"), old.child("spec").child("drivers"));
        // Upstream's strategy and its check of the update both look at the whole.
        node_drivers(&new, &mut errors);
        node_drivers(&new, &mut errors);
        // A driver may come and go; while it is there, only how much it can take may change.
        for before in old.items() {
            for driver in new.items().filter(|d| d.child("name").str() == before.child("name").str()) {
                let changed = |f: &&'static str| !checks::same(driver.child(f).value(), before.child(f).value());
                if ["nodeID", "topologyKeys"].iter().any(changed) {
                    errors.push(Error::invalid(new.path(), dump(&driver, &CSI_NODE_DRIVER), checks::IMMUTABLE));
                }
            }
        }
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}

fn node_drivers(drivers: &View<'_>, errors: &mut ErrorList) {
    let mut names = HashSet::new();
    for driver in drivers.items() {
        let (name, id) = (driver.child("name"), driver.child("nodeID"));
        csi_driver_name(&name, errors);
        if id.is_empty() {
            errors.push(Error::required(id.path(), ""));
        } else if id.len() > NODE_ID_BYTES_MAX {
            errors.push(Error::invalid(id.path(), id.str(), format!("must be {NODE_ID_BYTES_MAX} characters or less")));
        }
        let count = driver.child("allocatable").child("count");
        checks::nonnegative(&count, errors);
        if !names.insert(name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        }
        // Upstream reports topology keys at the driver.
        let mut keys = HashSet::new();
        for key in driver.child("topologyKeys").items() {
            if key.is_empty() {
                errors.push(Error::required(driver.path(), ""));
            }
            if !keys.insert(key.str()) {
                errors.push(Error::duplicate(driver.path(), key.str()));
            }
            for why in coxswain_api::names::qualified_name(key.str()) {
                errors.push(Error::invalid(driver.path(), key.str(), why));
            }
        }
    }
}

pub struct CsiStorageCapacities;

impl Resource for CsiStorageCapacities {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (root, mut errors) = (View::root(object), ErrorList::new());
        checks::label_selector(&root.child("nodeTopology"), SelectorLeniency::default(), &mut errors);
        checks::dns_subdomain(&root.child("storageClassName"), &mut errors);
        let capacity = root.child("capacity");
        if Quantity::parse(capacity.str()).is_ok_and(|q| q.sign() < 0) {
            errors.push(Error::invalid(capacity.path(), capacity.str(), checks::NEGATIVE));
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = self.validate(ctx, object);
        let (new, old) = (View::root(object), View::root(old));
        for name in ["nodeTopology", "storageClassName"] {
            if !checks::same(new.child(name).value(), old.child(name).value()) {
                errors.push(Error::invalid(&Path::new(name), new.child(name), checks::IMMUTABLE));
            }
        }
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}
