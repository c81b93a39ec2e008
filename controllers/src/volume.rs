//! The controllers of storage: binding claims to volumes, protecting both while they are used, and the claims of ephemeral
//! volumes. The counterpart of `pkg/controller/volume`.

pub mod binder;
pub mod ephemeral;
pub mod protection;
