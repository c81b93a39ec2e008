//! The catalogue: every group, version and resource that the server knows (upstream: the scheme and the API groups).
//!
//! The catalogue is the router, the discovery document and the OpenAPI index at once. Built-in resources come from one
//! table; a CustomResourceDefinition adds [`ResourceType`]s at run time, of the same type.

mod table;

use crate::schema::StructRef;
use std::sync::Arc;

pub use table::builtin;

/// Groups in the order in which discovery lists them.
#[derive(Debug)]
pub struct Catalogue {
    pub groups: Vec<Group>,
}

#[derive(Debug)]
pub struct Group {
    /// `""` for the core group.
    pub name: Arc<str>,
    pub preferred_version: Arc<str>,
    /// In the order in which discovery lists them, those included that are not served by default.
    pub versions: Vec<Version>,
}

#[derive(Debug)]
pub struct Version {
    pub group_version: GroupVersion,
    pub served_by_default: bool,
    pub resources: Vec<Arc<ResourceType>>,
}

impl Catalogue {
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|g| &*g.name == name)
    }

    pub fn version(&self, group: &str, version: &str) -> Option<&Version> {
        self.group(group)?.versions.iter().find(|v| &*v.group_version.version == version)
    }

    /// A resource by its plural.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<ResourceType>> {
        self.version(group, version)?.resources.iter().find(|r| &*r.plural == plural)
    }

    /// Every version of every resource, in the order of discovery.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<ResourceType>> {
        self.groups.iter().flat_map(|g| &g.versions).flat_map(|v| &v.resources)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersion {
    pub group: Arc<str>,
    pub version: Arc<str>,
}

impl GroupVersion {
    /// `apps/v1`, or `v1` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// One resource as one version serves it.
#[derive(Debug)]
pub struct ResourceType {
    pub group_version: GroupVersion,
    /// `deployments`.
    pub plural: Arc<str>,
    /// `deployment`.
    pub singular: Arc<str>,
    /// `Deployment`.
    pub kind: Arc<str>,
    /// `DeploymentList`.
    pub list_kind: Arc<str>,
    pub namespaced: bool,
    pub short_names: Vec<Box<str>>,
    pub categories: Vec<Box<str>>,
    /// As discovery lists them, sorted.
    pub verbs: Vec<Box<str>>,
    pub subresources: Vec<SubresourceType>,
    /// The group in which this resource is stored, which differs from its own for `events.k8s.io`.
    pub storage_group: Arc<str>,
    /// The version in which this resource is stored; all versions of one resource name the same.
    pub storage_version: Arc<str>,
    /// Upstream's hash of the storage version in discovery; empty for virtual resources.
    pub storage_version_hash: Box<str>,
    /// Served unless `--runtime-config` says otherwise (upstream serves no alpha and few beta versions by default).
    pub served_by_default: bool,
    pub schema: StructRef,
}

#[derive(Debug)]
pub struct SubresourceType {
    /// `status`, `scale`, `binding`…
    pub name: Box<str>,
    /// The kind of its requests and answers, which may be of another group (`autoscaling/v1` `Scale`).
    pub group_version: GroupVersion,
    pub kind: Box<str>,
    pub verbs: Vec<Box<str>>,
    pub schema: StructRef,
}

impl ResourceType {
    pub fn subresource(&self, name: &str) -> Option<&SubresourceType> {
        self.subresources.iter().find(|s| &*s.name == name)
    }

    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| &**v == verb)
    }
}
