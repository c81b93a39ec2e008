//! The Kubernetes API server: HTTP front, authentication, authorization, admission, registry and watch cache.

pub mod admission;
pub mod authentication;
pub mod authorization;
pub mod cache;
pub mod objects;
pub mod registry;
pub mod request;
pub mod resources;
pub mod store;
