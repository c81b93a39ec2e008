//! The registry: what each resource says of itself, and the one pipeline that serves them all
//! (upstream: `apiserver/pkg/registry/generic` and `pkg/registry`).

pub mod resource;
pub mod table;
