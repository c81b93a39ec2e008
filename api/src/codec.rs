//! Codecs: bytes to trees and back (upstream: `apimachinery/pkg/runtime/serializer`).
//!
//! A tree in *canonical form* is what upstream's decode and encode round trip leaves of an object:
//! - unknown fields are gone, values have the type that the schema says, quantities, times and durations are canonical text;
//! - a field with `omitempty` is there only if it is not empty (a pointer: if it is set), except that a struct that is no
//!   pointer is always there, as `{}` if need be (`status: {}`, `resources: {}`), as Go writes it;
//! - a field without `omitempty` is always there: `""`, `0`, `false`, and `null` for an unset list, map, pointer or time.
//!
//! Reading a tree through [`crate::field::View`] makes no difference between absent, null and zero. Decoders yield canonical
//! trees; [`canonicalize`] makes one of a tree that code has changed; encoders accept both.

mod canonical;
pub mod cbor;
mod convert;
pub mod gotime;
pub mod json;
#[cfg(test)]
mod laws;
pub mod protobuf;
pub mod yaml;

use serde_json::Value;

pub(crate) use canonical::always_there;
pub use canonical::{canonicalize, zero};
pub use convert::{convert, decode, detect, encode, interpret};

/// A decoded object.
#[derive(Debug)]
pub struct Decoded {
    pub value: Value,
    /// What strict decoding complains of, in upstream's words: `unknown field "spec.foo"`, `duplicate field "kind"`.
    /// Callers decide: refuse (`strict decoding error: ` and these joined by `, `), warn, or ignore.
    pub strict_errors: Vec<String>,
}

/// Why bytes are no such object. The text is upstream's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not of the format at all: upstream says so before it looks at kind and version, as
    /// `couldn't get version/kind; json parse error: …` for JSON.
    #[error("{0}")]
    Syntax(String),
    /// A value does not fit its field: `json: cannot unmarshal string into Go struct field … of type int32`.
    #[error("{0}")]
    Value(String),
}

/// The apiVersion and kind that an object names, each empty if it does not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct TypeMeta {
    pub api_version: String,
    pub kind: String,
}

impl TypeMeta {
    /// Group and version; none if `apiVersion` has more than one slash.
    pub fn group_version(&self) -> Option<(&str, &str)> {
        match self.api_version.split_once('/') {
            None => Some(("", &self.api_version)),
            Some((_, version)) if version.contains('/') => None,
            Some((group, version)) => Some((group, version)),
        }
    }
}

/// The encodings of API objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
    Cbor,
}

impl Format {
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
            Format::Protobuf => "application/vnd.kubernetes.protobuf",
            Format::Cbor => "application/cbor",
        }
    }

    /// By the media type without its parameters.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        [Format::Json, Format::Yaml, Format::Protobuf, Format::Cbor].into_iter().find(|f| f.media_type() == media_type)
    }
}
