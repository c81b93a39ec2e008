//! Names and amounts of resources (upstream: `pkg/apis/core/helper`, `ValidateResourceQuantityValue`).

use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::names;
use coxswain_api::quantity::Quantity;

const CONTAINER_RESOURCES: &[&str] = &["cpu", "memory", "ephemeral-storage"];
const STANDARD_RESOURCES: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
];
const INTEGER_RESOURCES: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const QUOTA_RESOURCES: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];

pub fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_quota_huge_page(name: &str) -> bool {
    is_huge_page(name) || name.starts_with("requests.hugepages-")
}

/// Whether a name without a domain, or of the `kubernetes.io` domain.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// A resource that is not Kubernetes' own, counted in whole units (upstream: `IsExtendedResourceName`).
pub fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether the sum of limits may be more than there is.
pub fn overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// Whether quotas count this resource by one of the known names.
pub fn is_standard_quota_resource(name: &str) -> bool {
    QUOTA_RESOURCES.contains(&name) || is_quota_huge_page(name)
}

pub fn validate_resource_name(name: &str, path: &Path, errors: &mut ErrorList) -> bool {
    let wrong = names::qualified_name(name);
    if !wrong.is_empty() {
        errors.extend(wrong.into_iter().map(|why| Error::invalid(path, name, why)));
        return false;
    }
    if !name.contains('/') && !STANDARD_RESOURCES.contains(&name) && !is_quota_huge_page(name) {
        errors.push(Error::invalid(path, name, "must be a standard resource type or fully qualified"));
        return false;
    }
    true
}

pub fn validate_container_resource_name(name: &str, path: &Path, errors: &mut ErrorList) {
    validate_resource_name(name, path, errors);
    if !name.contains('/') {
        if !CONTAINER_RESOURCES.contains(&name) && !is_huge_page(name) {
            errors.push(Error::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.push(Error::invalid(path, name, "doesn't follow extended resource name standard"));
    }
}

pub fn validate_quota_resource_name(name: &str, path: &Path, errors: &mut ErrorList) {
    validate_resource_name(name, path, errors);
    if !name.contains('/') && !is_standard_quota_resource(name) {
        errors.push(Error::invalid(path, name, "must be a standard resource for quota"));
    }
}

/// Not negative, and whole where the resource is counted.
pub fn validate_quantity(name: &str, value: &View<'_>, errors: &mut ErrorList) {
    let Ok(quantity) = Quantity::parse(value.str()) else { return };
    if quantity.sign() < 0 {
        errors.push(Error::invalid(value.path(), value.str(), "must be greater than or equal to 0"));
    }
    let counted = INTEGER_RESOURCES.contains(&name) || is_extended(name);
    if counted && quantity.milli_value() % 1000 != 0 {
        errors.push(Error::invalid(value.path(), value.str(), "must be an integer"));
    }
}
