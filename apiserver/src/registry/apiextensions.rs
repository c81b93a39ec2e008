//! CustomResourceDefinitions and the resources they define (upstream: `apiextensions-apiserver`).
//!
//! A definition is an ordinary object with [`definition::CustomResourceDefinitions`] as its home. Once its names are
//! accepted, [`crate::server::custom`] serves what it defines: each version is a [`custom_resource::CustomResource`], an
//! implementation of the same interface that built-in kinds have.

pub mod custom_resource;
pub mod definition;
pub mod json_path;
mod printer_columns;
mod rule_check;
mod rules;
