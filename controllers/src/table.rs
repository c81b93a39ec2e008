//! All controllers, under the names that `--controllers` takes.

use futures::future::BoxFuture;

use crate::Context;

/// One controller. Its task ends when the context's `shutdown` is cancelled.
pub struct Controller {
    pub name: &'static str,
    /// The name it had before v1.28, which is still taken.
    pub alias: &'static str,
    /// Its service account in `kube-system`; the manager's own identity if empty.
    pub identity: &'static str,
    /// The source of its events.
    pub event_source: &'static str,
    /// Whether `*` includes it.
    pub default: bool,
    /// The feature gate without which there is no such controller; empty if there always is.
    pub gate: &'static str,
    pub start: fn(Context) -> BoxFuture<'static, ()>,
}

macro_rules! controller {
    ($name:literal, $alias:literal, $identity:literal, $event_source:literal, $start:path) => {
        controller!($name, $alias, $identity, $event_source, $start, true, "")
    };
    ($name:literal, $alias:literal, $identity:literal, $event_source:literal, $start:path, $default:literal) => {
        controller!($name, $alias, $identity, $event_source, $start, $default, "")
    };
    ($name:literal, $alias:literal, $identity:literal, $event_source:literal, $start:path, $default:literal, $gate:literal) => {
        Controller {
            name: $name,
            alias: $alias,
            identity: $identity,
            event_source: $event_source,
            default: $default,
            gate: $gate,
            start: |context| Box::pin($start(context)),
        }
    };
}

/// Name, former name, service account, event source, entry, whether it is on by default, feature gate.
#[rustfmt::skip]
pub const CONTROLLERS: &[Controller] = &[
    controller!("deployment-controller", "deployment", "deployment-controller", "deployment-controller", crate::deployment::run),
    controller!("replicaset-controller", "replicaset", "replicaset-controller", "replicaset-controller", crate::replicaset::run),
    controller!("serviceaccount-token-controller", "serviceaccount-token", "", "serviceaccount-token-controller", crate::serviceaccount::run_tokens),
    controller!("endpoints-controller", "endpoint", "endpoint-controller", "endpoint-controller", crate::endpoints::run),
    controller!("endpointslice-controller", "endpointslice", "endpointslice-controller", "endpoint-slice-controller", crate::endpointslice::run),
    controller!("endpointslice-mirroring-controller", "endpointslicemirroring", "endpointslicemirroring-controller", "endpoint-slice-mirroring-controller", crate::endpointslice::mirroring::run),
    controller!("daemonset-controller", "daemonset", "daemon-set-controller", "daemonset-controller", crate::daemonset::run),
    controller!("job-controller", "job", "job-controller", "job-controller", crate::job::run),
    controller!("statefulset-controller", "statefulset", "statefulset-controller", "statefulset-controller", crate::statefulset::run),
    controller!("cronjob-controller", "cronjob", "cronjob-controller", "cronjob-controller", crate::cronjob::run),
    controller!("node-ipam-controller", "nodeipam", "node-controller", "cidrAllocator", crate::nodeipam::run),
    controller!("node-lifecycle-controller", "nodelifecycle", "node-controller", "node-controller", crate::nodelifecycle::run),
    controller!("taint-eviction-controller", "taint-eviction", "node-controller", "taint-eviction-controller", crate::nodelifecycle::tainteviction::run),
    controller!("pod-garbage-collector-controller", "podgc", "pod-garbage-collector", "pod-garbage-collector-controller", crate::podgc::run),
    controller!("disruption-controller", "disruption", "disruption-controller", "controllermanager", crate::disruption::run),
    controller!("resourcequota-controller", "resourcequota", "resourcequota-controller", "resourcequota-controller", crate::resourcequota::run),
    controller!("clusterrole-aggregation-controller", "clusterrole-aggregation", "clusterrole-aggregation-controller", "clusterrole-aggregation-controller", crate::clusterroleaggregation::run),
    controller!("ttl-controller", "ttl", "ttl-controller", "ttl-controller", crate::ttl::run),
    controller!("ttl-after-finished-controller", "ttl-after-finished", "ttl-after-finished-controller", "ttl-after-finished-controller", crate::ttlafterfinished::run),
    controller!("persistentvolume-binder-controller", "persistentvolume-binder", "persistent-volume-binder", "persistentvolume-controller", crate::volume::binder::run),
    controller!("persistentvolumeclaim-protection-controller", "pvc-protection", "pvc-protection-controller", "pvc-protection-controller", crate::volume::protection::run_claims),
    controller!("persistentvolume-protection-controller", "pv-protection", "pv-protection-controller", "pv-protection-controller", crate::volume::protection::run_volumes),
    controller!("podgroup-protection-controller", "", "podgroup-protection-controller", "podgroup-protection-controller", crate::podgroupprotection::run, true, "GenericWorkload"),
    controller!("ephemeral-volume-controller", "ephemeral-volume", "ephemeral-volume-controller", "ephemeral_volume", crate::volume::ephemeral::run),
    controller!("horizontal-pod-autoscaler-controller", "horizontalpodautoscaling", "horizontal-pod-autoscaler", "horizontal-pod-autoscaler", crate::podautoscaler::run),
    controller!("certificatesigningrequest-signing-controller", "csrsigning", "certificate-controller", "certificate-controller", crate::certificates::run_signer),
    controller!("certificatesigningrequest-approving-controller", "csrapproving", "certificate-controller", "certificate-controller", crate::certificates::run_approver),
    controller!("certificatesigningrequest-cleaner-controller", "csrcleaner", "certificate-controller", "certificate-controller", crate::certificates::run_cleaner),
    controller!("service-cidr-controller", "", "service-cidrs-controller", "service-cidrs-controller", crate::servicecidrs::run),
    controller!("namespace-controller", "namespace", "namespace-controller", "namespace-controller", crate::namespace::run),
    controller!("serviceaccount-controller", "serviceaccount", "service-account-controller", "service-account-controller", crate::serviceaccount::run),
    controller!("root-ca-certificate-publisher-controller", "root-ca-cert-publisher", "root-ca-cert-publisher", "root-ca-cert-publisher", crate::serviceaccount::run_root_ca_publisher),
    controller!("garbage-collector-controller", "garbagecollector", "generic-garbage-collector", "garbage-collector-controller", crate::garbagecollector::run),
    controller!("replicationcontroller-controller", "replicationcontroller", "replication-controller", "replication-controller", crate::replicaset::run_replication_controllers),
    controller!("bootstrap-signer-controller", "bootstrapsigner", "bootstrap-signer", "bootstrap-signer-controller", crate::bootstrap::run_signer, false),
    controller!("token-cleaner-controller", "tokencleaner", "token-cleaner", "token-cleaner-controller", crate::bootstrap::run_cleaner, false),
];

/// Controllers of upstream that have nothing to do here: their names are accepted.
#[rustfmt::skip]
const WITHOUT_EFFECT: &[&str] = &[
    "service-lb-controller", "service", "node-route-controller", "route", "cloud-node-lifecycle-controller", "cloud-node-lifecycle",
    "persistentvolume-expander-controller", "persistentvolume-expander", "storage-version-migrator-controller",
    "storageversion-garbage-collector-controller", "storage-version-gc", "resourceclaim-controller", "resource-claim-controller",
    "legacy-serviceaccount-token-cleaner-controller", "legacy-service-account-token-cleaner", "validatingadmissionpolicy-status-controller",
    "kube-apiserver-serving-clustertrustbundle-publisher-controller", "selinux-warning-controller",
    "volumeattributesclass-protection-controller", "device-taint-eviction-controller", "podcertificaterequest-cleaner-controller",
];

pub fn is_named(controller: &Controller, name: &str) -> bool {
    controller.name == name || (!name.is_empty() && controller.alias == name)
}

pub fn is_known(name: &str) -> bool {
    CONTROLLERS.iter().any(|controller| is_named(controller, name)) || WITHOUT_EFFECT.contains(&name)
}
