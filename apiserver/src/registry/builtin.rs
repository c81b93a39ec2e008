//! The homes of the built-in resources: one line each, sorted by group and resource.
//!
//! A resource that is not named here is [`Plain`]: everything is the pipeline's.

use super::resource::Resource;
use super::{
    admissionregistration, apiextensions, apps, autoscaling, batch, certificates, coordination, core, discovery,
    dynamic_resources, flowcontrol, networking, policy, rbac, runtime_class, scheduling, storage,
};
use coxswain_api::catalogue::ResourceType;
use std::sync::{Arc, LazyLock};

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
    ("certificates.k8s.io", "clustertrustbundles", home!(certificates::trust_bundle::ClusterTrustBundles)),
    ("certificates.k8s.io", "podcertificaterequests", home!(certificates::pod_request::PodCertificateRequests)),
    ("coordination.k8s.io", "leasecandidates", home!(coordination::lease_candidate::LeaseCandidates)),
    ("coordination.k8s.io", "leases", home!(coordination::lease::Leases)),
    ("discovery.k8s.io", "endpointslices", home!(discovery::endpoint_slice::EndpointSlices)),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", home!(flowcontrol::FlowSchemas)),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", home!(flowcontrol::PriorityLevelConfigurations)),
    ("internal.apiserver.k8s.io", "storageversions", home!(super::storage_version::StorageVersions)),
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
    ("resource.k8s.io", "deviceclasses", home!(dynamic_resources::DeviceClasses)),
    ("resource.k8s.io", "devicetaintrules", home!(dynamic_resources::taint_rule::DeviceTaintRules)),
    ("resource.k8s.io", "resourceclaims", home!(dynamic_resources::ResourceClaims)),
    ("resource.k8s.io", "resourceclaimtemplates", home!(dynamic_resources::ResourceClaimTemplates)),
    ("resource.k8s.io", "resourcepoolstatusrequests", home!(dynamic_resources::pool_status::ResourcePoolStatusRequests)),
    ("resource.k8s.io", "resourceslices", home!(dynamic_resources::ResourceSlices)),
    ("scheduling.k8s.io", "podgroups", home!(scheduling::pod_group::PodGroups)),
    ("scheduling.k8s.io", "priorityclasses", home!(scheduling::PriorityClasses)),
    ("scheduling.k8s.io", "workloads", home!(scheduling::workload::Workloads)),
    ("storage.k8s.io", "csidrivers", home!(storage::CsiDrivers)),
    ("storage.k8s.io", "csinodes", home!(storage::CsiNodes)),
    ("storage.k8s.io", "csistoragecapacities", home!(storage::CsiStorageCapacities)),
    ("storage.k8s.io", "storageclasses", home!(storage::StorageClasses)),
    ("storage.k8s.io", "volumeattachments", home!(storage::VolumeAttachments)),
    ("storage.k8s.io", "volumeattributesclasses", home!(storage::VolumeAttributesClasses)),
    ("storagemigration.k8s.io", "storageversionmigrations", home!(super::storage_migration::StorageVersionMigrations)),
];

/// The home of a built-in resource.
pub fn strategy(group: &str, resource: &str) -> Arc<dyn Resource> {
    match HOMES.binary_search_by(|(g, r, _)| (*g, *r).cmp(&(group, resource))) {
        Ok(at) => (HOMES[at].2)(),
        Err(_) => Arc::new(Plain),
    }
}

/// Versions of kinds that will go: group, version, kind, since which minor version they are deprecated, and what is there instead.
/// They are served for three minor versions more.
#[rustfmt::skip]
static GOING: &[(&str, &str, &str, u32, &str)] = &[
    ("admissionregistration.k8s.io", "v1alpha1", "MutatingAdmissionPolicy", 35, ""),
    ("admissionregistration.k8s.io", "v1alpha1", "MutatingAdmissionPolicyBinding", 35, ""),
    ("certificates.k8s.io", "v1alpha1", "ClusterTrustBundle", 34, ""),
    ("coordination.k8s.io", "v1alpha2", "LeaseCandidate", 35, ""),
    ("coordination.k8s.io", "v1beta1", "LeaseCandidate", 36, ""),
    ("networking.k8s.io", "v1beta1", "IPAddress", 34, ""),
    ("networking.k8s.io", "v1beta1", "ServiceCIDR", 34, ""),
    ("resource.k8s.io", "v1alpha3", "DeviceTaintRule", 36, ""),
    ("resource.k8s.io", "v1beta1", "DeviceClass", 35, ""),
    ("resource.k8s.io", "v1beta1", "ResourceClaim", 35, ""),
    ("resource.k8s.io", "v1beta1", "ResourceClaimTemplate", 35, ""),
    ("resource.k8s.io", "v1beta1", "ResourceSlice", 35, ""),
    ("resource.k8s.io", "v1beta2", "DeviceClass", 36, ""),
    ("resource.k8s.io", "v1beta2", "ResourceClaim", 36, ""),
    ("resource.k8s.io", "v1beta2", "ResourceClaimTemplate", 36, ""),
    ("resource.k8s.io", "v1beta2", "ResourceSlice", 36, ""),
    ("storage.k8s.io", "v1beta1", "VolumeAttributesClass", 34, "; use storage.k8s.io/v1 VolumeAttributesClass"),
];

/// The warning that every request for a deprecated kind earns, whatever comes of it.
pub fn deprecation(ty: &ResourceType) -> Option<&'static str> {
    const SERVED_MINORS_MORE: u32 = 3;
    static SAID: LazyLock<Vec<String>> = LazyLock::new(|| {
        let said = GOING.iter().map(|(group, version, kind, since, instead)| {
            let gone = since + SERVED_MINORS_MORE;
            format!("{group}/{version} {kind} is deprecated in v1.{since}+, unavailable in v1.{gone}+{instead}")
        });
        said.collect()
    });
    let (group, version) = (&*ty.group_version.group, &*ty.group_version.version);
    match (group, &*ty.plural) {
        ("", "endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        // Asked for every request, most of which are for versions that stay.
        _ if !version.contains("alpha") && !version.contains("beta") => None,
        _ => {
            let at = GOING.iter().position(|(g, v, kind, ..)| (*g, *v, *kind) == (group, version, &*ty.kind))?;
            Some(&SAID[at])
        }
    }
}

/// A resource of which nothing is known.
pub struct Plain;

impl Resource for Plain {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_homes_are_sorted_and_named_once() {
        assert!(HOMES.windows(2).all(|w| (w[0].0, w[0].1) < (w[1].0, w[1].1)));
    }
}
