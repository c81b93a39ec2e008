//! What Kubernetes *is*, free of I/O: the catalogue of kinds, the schema table, codecs, patches, field sets and
//! server-side apply, selectors, quantities, names and `metav1.Status`.
//!
//! An object is a [`Value`] tree shaped by its kind's [`schema`]. The tree is the truth: defaults, patches, pruning and
//! codecs work on it by the schema, and strategies and validation read it through [`field::View`].

pub mod apply;
pub mod catalogue;
pub mod codec;
pub mod conversion;
pub mod defaults;
pub mod features;
pub mod field;
pub mod field_set;
pub mod go_regex;
pub mod intstr;
pub mod managed_fields;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod structural;
pub mod taints;
pub mod time;

pub use serde_json::{Map, Value, json};
pub use status::Status;
