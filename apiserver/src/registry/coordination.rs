//! `coordination.k8s.io` (upstream: `pkg/registry/coordination`, `pkg/apis/coordination`).

pub mod lease;
pub mod lease_candidate;
