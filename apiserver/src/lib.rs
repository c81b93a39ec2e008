//! The Kubernetes API server: HTTP front, authentication, authorization, admission, registry and watch cache.

pub mod admission;
pub mod authentication;
pub mod authorization;
pub mod cache;
pub mod connect;
pub mod convert;
pub mod discovery;
pub mod encode;
pub mod flow_control;
pub mod front;
pub mod health;
pub mod list;
pub mod metrics;
pub mod negotiate;
pub mod objects;
pub mod openapi;
pub mod registry;
pub mod request;
pub mod resources;
pub mod respond;
pub mod server;
pub mod store;
pub mod version;
pub mod watch;
