//! The Kubernetes API server: HTTP front, authentication, authorization, admission, registry and watch cache.

pub mod admission;
pub mod authentication;
pub mod authorization;
pub mod cache;
pub mod convert;
pub mod encode;
pub mod front;
pub mod list;
pub mod negotiate;
pub mod objects;
pub mod registry;
pub mod request;
pub mod resources;
pub mod respond;
pub mod store;
pub mod watch;
