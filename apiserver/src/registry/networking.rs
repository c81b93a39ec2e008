//! The resources of `networking.k8s.io` (upstream: `pkg/registry/networking`, `pkg/apis/networking/validation`).

mod addresses;
mod ingress;
mod network_policy;

pub use addresses::{IpAddresses, ServiceCidrs};
pub use ingress::{IngressClasses, Ingresses};
pub use network_policy::NetworkPolicies;
