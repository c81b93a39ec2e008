//! `discovery.k8s.io` (upstream: `pkg/registry/discovery`, `pkg/apis/discovery`).

pub mod endpoint_slice;
