//! Who owns which field, as the pipeline asks for it (upstream: `handlers/fieldmanager`).

use coxswain_api::schema::StructRef;
use coxswain_api::{Status, Value};

/// One writer of an object.
pub struct Writer<'a> {
    pub manager: &'a str,
    pub api_version: String,
    pub subresource: &'a str,
    pub now: jiff::Timestamp,
    pub schema: &'a StructRef,
    /// Paths that this writer does not come to own.
    pub reset: &'static [&'static str],
}

pub fn update(_live: Option<&Value>, _object: &mut Value, _writer: &Writer<'_>) {}

pub fn apply(_live: Option<&Value>, config: &Value, _force: bool, _writer: &Writer<'_>) -> Result<Value, Status> {
    Ok(config.clone())
}

/// Translates managed fields between an object and its scale.
pub struct ScaleHandler;

impl ScaleHandler {
    pub fn new(_object: &Value, _api_version: &str) -> Self {
        Self
    }
    pub fn to_subresource(&self, _scale: &mut Value) {}
    pub fn to_parent(&self, _scale: &Value, _object: &mut Value) {}
}
