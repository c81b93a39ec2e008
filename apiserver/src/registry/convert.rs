//! Between the version of a request and the version that is stored. Most requests are in the stored version, and then
//! nothing is copied.

use super::pipeline::Call;
use coxswain_api::{Status, Value};
use std::borrow::Cow;

pub(super) fn to_hub(call: &Call, mut object: Value) -> Result<Value, Status> {
    if !call.served.is_hub() {
        coxswain_api::conversion::convert(&mut object, &call.hub().group_version);
        // As it will be read again.
        if let Some(store) = call.served.store.as_ref().filter(|_| call.served.custom) {
            coxswain_api::defaults::apply(&mut object, &store.hub.schema);
        }
    }
    Ok(object)
}

pub(super) fn from_hub<'a>(call: &Call, object: &'a Value) -> Result<Cow<'a, Value>, Status> {
    if call.served.is_hub() {
        Ok(Cow::Borrowed(object))
    } else {
        crate::convert::from_hub(&call.served, object.clone()).map(Cow::Owned)
    }
}

/// A written object as it will be read again: what its version's conversion does not keep, its writer does not own.
pub(super) fn settle(call: &Call, object: Value) -> Result<Value, Status> {
    if call.served.is_hub() {
        return Ok(object);
    }
    crate::convert::from_hub(&call.served, to_hub(call, object)?)
}
