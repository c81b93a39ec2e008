//! Admission: what may change or refuse a write after it was decoded and before it is stored
//! (upstream: `apiserver/pkg/admission` and `plugin/pkg/admission`).
//!
//! The order in [`PLUGINS`] is the order of execution: first every `admit`, then, after validation, every `validate`.

use crate::authentication::ConfigError;
use crate::authorization::Authorization;
use crate::objects::Objects;
use crate::request::Context;
use async_trait::async_trait;
use coxswain_api::catalogue::ResourceType;
use coxswain_api::{Status, Value};
use std::sync::Arc;

pub(crate) mod cel;
pub mod certificates;
pub mod default_ingress_class;
pub mod default_toleration_seconds;
pub mod escalation;
pub mod limit_ranger;
mod matching;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod pod_group;
pub mod pod_resize;
pub mod pod_resources;
pub mod pod_security;
pub mod pod_topology_labels;
pub mod policy;
pub mod priority;
pub mod resource_quota;
pub mod runtime_class;
pub mod service_account;
pub mod storage;
pub mod taint_nodes_by_condition;
pub mod webhook;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// A write as admission sees it (upstream: `admission.Attributes`). Objects are in the version of the request.
pub struct Attributes<'a> {
    pub ctx: &'a Context,
    pub operation: Operation,
    pub resource: &'a ResourceType,
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Empty on create with `generateName`.
    pub name: &'a str,
    /// The new object; none on delete. For connect, the options (such as `PodExecOptions`).
    pub object: Option<&'a mut Value>,
    /// The stored object; none on create.
    pub old: Option<&'a Value>,
    /// `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions`.
    pub options: &'a Value,
}

impl Attributes<'_> {
    pub fn group(&self) -> &str {
        &self.resource.group_version.group
    }

    pub fn plural(&self) -> &str {
        &self.resource.plural
    }

    /// Whether this is about the object itself of one resource, not about a subresource.
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.subresource.is_empty() && self.is_of(group, resource)
    }

    /// Whether this is about one resource or any of its subresources.
    pub fn is_of(&self, group: &str, resource: &str) -> bool {
        self.group() == group && self.plural() == resource
    }

    pub fn new_object(&self) -> Option<&Value> {
        self.object.as_deref()
    }

    /// The refusal of this write (upstream: `admission.NewForbidden`).
    pub fn forbidden(&self, why: impl AsRef<str>) -> Status {
        let mut name = self.name.to_owned();
        if name.is_empty()
            && let Some(meta) = self.new_object().map(|o| &o["metadata"])
        {
            name = meta["name"].as_str().unwrap_or_default().to_owned();
            if name.is_empty() {
                // The name is made later; upstream shows what is known of it.
                name = meta["generateName"].as_str().unwrap_or_default().to_owned();
            }
        }
        if name.is_empty() {
            name = "Unknown".into();
        }
        Status::forbidden(self.group(), self.plural(), &name, why.as_ref())
    }
}

/// One admission plugin.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// Upstream's name, as `--enable-admission-plugins` takes it.
    fn name(&self) -> &'static str;

    fn handles(&self, operation: Operation) -> bool;

    /// May change `attributes.object`, and may refuse.
    async fn admit(&self, _attributes: &mut Attributes<'_>) -> Result<(), Status> {
        Ok(())
    }

    /// May only refuse.
    async fn validate(&self, _attributes: &Attributes<'_>) -> Result<(), Status> {
        Ok(())
    }
}

/// The flags of admission.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `--enable-admission-plugins`, beside those on by default.
    pub enable: Vec<String>,
    /// `--disable-admission-plugins`
    pub disable: Vec<String>,
    /// `--default-not-ready-toleration-seconds`; 300 if not given.
    pub not_ready_toleration_seconds: Option<i64>,
    /// `--default-unreachable-toleration-seconds`; 300 if not given.
    pub unreachable_toleration_seconds: Option<i64>,
}

/// What plugins are made from.
pub struct Parts<'a> {
    pub config: &'a Config,
    pub objects: Arc<dyn Objects>,
    pub authorization: Arc<Authorization>,
}

type Make = fn(&Parts<'_>) -> Arc<dyn Plugin>;

/// Every plugin in the order of execution: its name, whether it is on unless disabled, and how it is made.
#[rustfmt::skip]
static PLUGINS: &[(&str, bool, Make)] = &[
    ("NamespaceLifecycle", true, |p| Arc::new(namespace_lifecycle::NamespaceLifecycle::new(p.objects.clone()))),
    ("LimitRanger", true, |p| Arc::new(limit_ranger::LimitRanger { objects: p.objects.clone() })),
    ("ServiceAccount", true, |p| Arc::new(service_account::ServiceAccount::new(p.objects.clone()))),
    ("NodeRestriction", false, |p| Arc::new(node_restriction::NodeRestriction { objects: p.objects.clone(), authorization: p.authorization.clone() })),
    ("TaintNodesByCondition", true, |_| Arc::new(taint_nodes_by_condition::TaintNodesByCondition)),
    ("PodSecurity", true, |p| Arc::new(pod_security::PodSecurity { objects: p.objects.clone() })),
    ("Priority", true, |p| Arc::new(priority::Priority::new(p.objects.clone()))),
    ("DefaultTolerationSeconds", true, |p| Arc::new(default_toleration_seconds::DefaultTolerationSeconds::new(p))),
    ("DefaultStorageClass", true, |p| Arc::new(storage::DefaultStorageClass { objects: p.objects.clone() })),
    ("StorageObjectInUseProtection", true, |_| Arc::new(storage::StorageObjectInUseProtection)),
    ("PodGroupProtection", true, |_| Arc::new(pod_group::PodGroupProtection)),
    ("PersistentVolumeClaimResize", true, |p| Arc::new(storage::PersistentVolumeClaimResize { objects: p.objects.clone() })),
    ("RuntimeClass", true, |p| Arc::new(runtime_class::RuntimeClass { objects: p.objects.clone() })),
    ("CertificateApproval", true, |p| Arc::new(certificates::CertificateApproval { authorization: p.authorization.clone() })),
    ("CertificateSigning", true, |p| Arc::new(certificates::CertificateSigning { authorization: p.authorization.clone() })),
    ("ClusterTrustBundleAttest", true, |p| Arc::new(certificates::ClusterTrustBundleAttest { authorization: p.authorization.clone() })),
    ("CertificateSubjectRestriction", true, |_| Arc::new(certificates::CertificateSubjectRestriction)),
    ("DefaultIngressClass", true, |p| Arc::new(default_ingress_class::DefaultIngressClass { objects: p.objects.clone() })),
    ("PodTopologyLabels", true, |p| Arc::new(pod_topology_labels::PodTopologyLabels { objects: p.objects.clone() })),
    ("PodGroupWorkloadExists", true, |p| Arc::new(pod_group::PodGroupWorkloadExists { objects: p.objects.clone() })),
    ("NodeDeclaredFeatureValidator", true, |p| Arc::new(pod_resize::NodeDeclaredFeatureValidator { objects: p.objects.clone() })),
    ("PodResizeValidator", true, |p| Arc::new(pod_resize::PodResizeValidator { objects: p.objects.clone() })),
    ("MutatingAdmissionPolicy", true, |p| Arc::new(policy::MutatingAdmissionPolicy::new(p.objects.clone(), p.authorization.clone()))),
    ("MutatingAdmissionWebhook", true, |p| Arc::new(webhook::MutatingAdmissionWebhook::new(p.objects.clone(), p.authorization.clone()))),
    ("ValidatingAdmissionPolicy", true, |p| Arc::new(policy::ValidatingAdmissionPolicy::new(p.objects.clone(), p.authorization.clone()))),
    ("ValidatingAdmissionWebhook", true, |p| Arc::new(webhook::ValidatingAdmissionWebhook::new(p.objects.clone(), p.authorization.clone()))),
    ("ResourceQuota", true, |p| Arc::new(resource_quota::ResourceQuota::new(p.objects.clone()))),
];

/// Names that upstream knows and that change nothing here: deprecated ones, and those guarded by features that are off.
const ACCEPTED: &[&str] = &["AlwaysAdmit"];

/// The plugins of a server, in order.
pub fn chain(
    config: &Config,
    objects: Arc<dyn Objects>,
    authorization: Arc<Authorization>,
) -> Result<Vec<Arc<dyn Plugin>>, ConfigError> {
    for name in config.enable.iter().chain(&config.disable) {
        if !PLUGINS.iter().any(|(known, ..)| known == name) && !ACCEPTED.contains(&name.as_str()) {
            let message = format!("admission-control plugin {} is unknown", coxswain_api::field::go_quote(name));
            return Err(ConfigError::Other(message));
        }
    }
    if let Some(name) = config.enable.iter().find(|name| config.disable.contains(name)) {
        return Err(ConfigError::Other(format!(
            "{name} in enable-admission-plugins and disable-admission-plugins overlapped"
        )));
    }
    let parts = Parts { config, objects, authorization };
    let named = |list: &[String], name: &str| list.iter().any(|n| n == name);
    let enabled =
        PLUGINS.iter().filter(|(name, on, _)| (*on || named(&config.enable, name)) && !named(&config.disable, name));
    let mut plugins: Vec<Arc<dyn Plugin>> = enabled.map(|(_, _, make)| make(&parts)).collect();
    plugins.push(Arc::new(escalation::Escalation::new(&parts)));
    Ok(plugins)
}
