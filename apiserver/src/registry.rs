//! The registry: what each resource says of itself, and the one pipeline that serves them all
//! (upstream: `apiserver/pkg/registry/generic` and `pkg/registry`).
//!
//! [`builtin`] names the home of every resource that has one; what it does not name behaves as [`resource::Resource`]'s
//! defaults say.

pub mod admissionregistration;
pub mod allocators;
pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod authentication;
pub mod authorization;
pub mod autoscaling;
pub mod batch;
pub mod builtin;
pub mod certificates;
pub mod checks;
pub mod convert;
pub mod coordination;
pub mod core;
pub mod create;
mod declarative;
pub mod decode;
pub mod defaults;
pub mod delete;
pub mod discovery;
pub mod dynamic_resources;
pub mod flowcontrol;
pub mod gated;
pub mod internal;
pub mod managed_fields;
pub mod metadata;
pub mod networking;
pub mod options;
pub mod patch;
pub mod pipeline;
pub mod policy;
pub mod rbac;
pub mod resource;
pub mod runtime_class;
pub mod scale;
pub mod scheduling;
pub mod storage;
pub mod storage_migration;
pub mod storage_version;
pub mod subresources;
pub mod table;
pub mod update;
pub mod workload;
