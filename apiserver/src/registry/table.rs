//! Tables: what kubectl prints (upstream: `pkg/printers`).

use super::resource::Column;
use coxswain_api::Value;

impl Column {
    /// The columns of a resource that has none of its own.
    pub fn name_and_age() -> Vec<Column> {
        Vec::new()
    }
}

/// The cells for [`Column::name_and_age`].
pub fn name_and_age(_object: &Value, _now: jiff::Timestamp) -> Vec<Value> {
    Vec::new()
}
