//! The homes of the built-in resources: one line each, sorted by group and resource.
//!
//! A resource without code of its own is [`Plain`]: a few yes-or-no facts, everything else is the pipeline's.

use super::resource::{MetadataChecks, Resource};
use super::{admissionregistration, apiextensions, apps, autoscaling, batch, certificates, coordination, core, discovery, flowcontrol, networking, policy, rbac, runtime_class, scheduling, storage};
use coxswain_api::catalogue::ResourceType;
use coxswain_api::names;
use std::sync::Arc;

/// Group, resource, home.
type Line = (&'static str, &'static str, fn() -> Arc<dyn Resource>);

macro_rules! home {
    ($e:expr) => {
        || Arc::new($e)
    };
}

#[rustfmt::skip]
static HOMES: &[Line] = &[
    ("", "configmaps", home!(core::config_map::ConfigMaps)),
    ("", "endpoints", home!(core::endpoints::Endpoints)),
    ("", "events", home!(core::event::Events)),
    ("", "limitranges", home!(core::limit_range::LimitRanges)),
    ("", "namespaces", home!(core::namespace::Namespaces)),
    ("", "nodes", home!(core::node::Nodes)),
    ("", "persistentvolumeclaims", home!(core::persistent_volume_claim::PersistentVolumeClaims)),
    ("", "persistentvolumes", home!(core::persistent_volume::PersistentVolumes)),
    ("", "pods", home!(core::pod::Pods)),
    ("", "podtemplates", home!(core::pod_template::PodTemplates)),
    ("", "replicationcontrollers", home!(core::replication_controller::ReplicationControllers)),
    ("", "resourcequotas", home!(core::resource_quota::ResourceQuotas)),
    ("", "secrets", home!(core::secret::Secrets)),
    ("", "serviceaccounts", home!(core::service_account::ServiceAccounts)),
    ("", "services", home!(core::service::Services)),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicies", home!(admissionregistration::policies::Policies { mutating: true })),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicybindings", home!(admissionregistration::policies::Bindings { mutating: true })),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", home!(admissionregistration::webhooks::WebhookConfigurations { mutating: true })),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", home!(admissionregistration::policies::Policies { mutating: false })),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", home!(admissionregistration::policies::Bindings { mutating: false })),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", home!(admissionregistration::webhooks::WebhookConfigurations { mutating: false })),
    ("apiextensions.k8s.io", "customresourcedefinitions", home!(apiextensions::definition::CustomResourceDefinitions)),
    ("apiregistration.k8s.io", "apiservices", home!(super::apiregistration::ApiServices)),
    ("apps", "controllerrevisions", home!(apps::controller_revision::ControllerRevisions)),
    ("apps", "daemonsets", home!(apps::daemon_set::DaemonSets)),
    ("apps", "deployments", home!(apps::deployment::Deployments)),
    ("apps", "replicasets", home!(apps::replica_set::ReplicaSets)),
    ("apps", "statefulsets", home!(apps::stateful_set::StatefulSets)),
    ("autoscaling", "horizontalpodautoscalers", home!(autoscaling::HorizontalPodAutoscalers)),
    ("batch", "cronjobs", home!(batch::cron_job::CronJobs)),
    ("batch", "jobs", home!(batch::job::Jobs)),
    ("certificates.k8s.io", "certificatesigningrequests", home!(certificates::CertificateSigningRequests)),
    ("coordination.k8s.io", "leases", home!(coordination::lease::Leases)),
    ("discovery.k8s.io", "endpointslices", home!(discovery::endpoint_slice::EndpointSlices)),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", home!(flowcontrol::FlowSchemas)),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", home!(flowcontrol::PriorityLevelConfigurations)),
    ("networking.k8s.io", "ingressclasses", home!(networking::IngressClasses)),
    ("networking.k8s.io", "ingresses", home!(networking::Ingresses)),
    ("networking.k8s.io", "ipaddresses", home!(networking::IpAddresses)),
    ("networking.k8s.io", "networkpolicies", home!(networking::NetworkPolicies)),
    ("networking.k8s.io", "servicecidrs", home!(networking::ServiceCidrs)),
    ("node.k8s.io", "runtimeclasses", home!(runtime_class::RuntimeClasses)),
    ("policy", "poddisruptionbudgets", home!(policy::PodDisruptionBudgets)),
    ("rbac.authorization.k8s.io", "clusterrolebindings", home!(rbac::Binding { namespaced: false })),
    ("rbac.authorization.k8s.io", "clusterroles", home!(rbac::Role { namespaced: false })),
    ("rbac.authorization.k8s.io", "rolebindings", home!(rbac::Binding { namespaced: true })),
    ("rbac.authorization.k8s.io", "roles", home!(rbac::Role { namespaced: true })),
    ("resource.k8s.io", "deviceclasses", home!(PLAIN.generation().returns_object())),
    ("resource.k8s.io", "resourceclaims", home!(PLAIN.returns_object())),
    ("resource.k8s.io", "resourceclaimtemplates", home!(PLAIN.returns_object())),
    ("resource.k8s.io", "resourceslices", home!(PLAIN.generation().returns_object().created_on_update())),
    ("scheduling.k8s.io", "priorityclasses", home!(scheduling::PriorityClasses)),
    ("storage.k8s.io", "csidrivers", home!(storage::CsiDrivers)),
    ("storage.k8s.io", "csinodes", home!(storage::CsiNodes)),
    ("storage.k8s.io", "csistoragecapacities", home!(storage::CsiStorageCapacities)),
    ("storage.k8s.io", "storageclasses", home!(storage::StorageClasses)),
    ("storage.k8s.io", "volumeattachments", home!(storage::VolumeAttachments)),
    ("storage.k8s.io", "volumeattributesclasses", home!(storage::VolumeAttributesClasses)),
];

/// The home of a built-in resource.
pub fn strategy(group: &str, resource: &str) -> Arc<dyn Resource> {
    match HOMES.binary_search_by(|(g, r, _)| (*g, *r).cmp(&(group, resource))) {
        Ok(at) => (HOMES[at].2)(),
        Err(_) => Arc::new(PLAIN),
    }
}

/// The warning that every request for a deprecated kind earns, whatever comes of it.
pub fn deprecation(ty: &ResourceType) -> Option<&'static str> {
    match (&*ty.group_version.group, &*ty.plural) {
        ("", "endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        _ => None,
    }
}

/// A resource of which nothing but a few facts is known.
#[derive(Clone, Copy)]
pub struct Plain {
    generation: bool,
    create_on_update: bool,
    unconditional_update: bool,
    returns_deleted: bool,
    repeats: bool,
    name: fn(&str, bool) -> Vec<String>,
}

/// What most resources are like.
pub const PLAIN: Plain = Plain {
    generation: false,
    create_on_update: false,
    unconditional_update: true,
    returns_deleted: false,
    repeats: true,
    name: names::dns1123_subdomain,
};

impl Plain {
    const fn generation(mut self) -> Self {
        self.generation = true;
        self
    }

    const fn created_on_update(mut self) -> Self {
        self.create_on_update = true;
        self
    }

    /// An update must name the version it changes.
    const fn versioned(mut self) -> Self {
        self.unconditional_update = false;
        self
    }

    const fn returns_object(mut self) -> Self {
        self.returns_deleted = true;
        self
    }

    const fn checks_once(mut self) -> Self {
        self.repeats = false;
        self
    }
}

impl Resource for Plain {
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        (self.name)(name, prefix)
    }

    fn has_generation(&self) -> bool {
        self.generation
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn allow_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn returns_deleted_object(&self) -> bool {
        self.returns_deleted
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: self.repeats, whole: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_homes_are_sorted_and_named_once() {
        assert!(HOMES.windows(2).all(|w| (w[0].0, w[0].1) < (w[1].0, w[1].1)));
    }
}
