//! What a place that clusters run in can do for them, the counterpart of `k8s.io/cloud-provider`'s `Interface`.
//!
//! A provider offers the parts that it has; a controller whose part is missing ends at once. Calls may take long and may be
//! repeated: each says what must be true afterwards, not what to do.

use std::time::Duration;

use async_trait::async_trait;
use coxswain_client::{Client, Informers, kube};
use k8s_openapi::api::core::v1::{LoadBalancerStatus, Node, NodeAddress, Service};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else does this; the caller leaves it alone.
    #[error("implemented by alternate to cloud provider")]
    ImplementedElsewhere,
    /// Not yet, but worth trying again after this time.
    #[error("{message}")]
    Retry { message: String, after: Duration },
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Other(String),
}

#[async_trait]
pub trait Provider: Send + Sync {
    /// The name that provider ids begin with.
    fn name(&self) -> &str;

    /// Called once before anything else, when this process leads.
    async fn initialize(&self, client: &Client, informers: &Informers);

    fn load_balancer(&self) -> Option<&dyn LoadBalancer> {
        None
    }

    fn instances(&self) -> Option<&dyn Instances> {
        None
    }

    fn routes(&self) -> Option<&dyn Routes> {
        None
    }
}

/// Load balancers of Services (upstream: `LoadBalancer`).
#[async_trait]
pub trait LoadBalancer: Send + Sync {
    /// The status of the Service's load balancer, or none if it has none. Changes nothing.
    async fn get(&self, cluster: &str, service: &Service) -> Result<Option<LoadBalancerStatus>, Error>;

    /// Makes the Service's load balancer be there and lead to these nodes.
    async fn ensure(&self, cluster: &str, service: &Service, nodes: &[&Node]) -> Result<LoadBalancerStatus, Error>;

    /// Makes an existing load balancer lead to these nodes.
    async fn update(&self, cluster: &str, service: &Service, nodes: &[&Node]) -> Result<(), Error>;

    /// Succeeds if there is no load balancer afterwards, whether or not there was one.
    async fn ensure_deleted(&self, cluster: &str, service: &Service) -> Result<(), Error>;
}

/// What the place knows of the machine behind a node; zones included (upstream: `InstanceMetadata`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstanceMetadata {
    pub provider_id: String,
    pub instance_type: String,
    pub addresses: Vec<NodeAddress>,
    pub zone: String,
    pub region: String,
    pub additional_labels: Vec<(String, String)>,
}

/// The machines (upstream: `InstancesV2`).
#[async_trait]
pub trait Instances: Send + Sync {
    /// Whether the node's machine exists, running or not. A node whose machine does not is deleted.
    async fn exists(&self, node: &Node) -> Result<bool, Error>;

    /// Whether the node's machine is shut down.
    async fn is_shut_down(&self, node: &Node) -> Result<bool, Error>;

    /// None if the provider will know only later.
    async fn metadata(&self, node: &Node) -> Result<Option<InstanceMetadata>, Error>;
}

/// A way to the pods of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub name: String,
    pub target_node: String,
    pub destination_cidr: String,
    /// A route whose target is gone.
    pub blackhole: bool,
}

/// Routes to the pods of nodes (upstream: `Routes`).
#[async_trait]
pub trait Routes: Send + Sync {
    async fn list(&self, cluster: &str) -> Result<Vec<Route>, Error>;

    /// `hint` distinguishes the routes of nodes that follow each other under one name.
    async fn create(&self, cluster: &str, hint: &str, route: &Route, addresses: &[NodeAddress]) -> Result<(), Error>;

    async fn delete(&self, cluster: &str, route: &Route) -> Result<(), Error>;
}
