//! The provider for machines that nobody else manages: load balancer addresses come from a configured [`pool`], machines are
//! those of an inventory (or all nodes, without one), and routes are the nodes' own business.
//!
//! Who owns what: the addresses that Services have are in the Services' status, from where they are read again at every
//! start. [`ANNOTATION`] on a Service tells the nodes that its addresses are theirs to answer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::OnceLock;

use async_trait::async_trait;
use coxswain_client::objects::{self as requests, PatchKind};
use coxswain_client::{Client, Informers, ObjectKey, Store};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, Node, NodeAddress, Service};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;

use crate::objects::name;
use crate::provider::{Error, InstanceMetadata, Instances, LoadBalancer, Provider, Route, Routes};
use crate::service::wants_load_balancer;

pub mod pool;

use pool::Pool;

/// On a Service: one of the nodes answers for its load balancer's addresses.
pub const ANNOTATION: &str = "coxswain.dev/load-balancer-announced-by";
const NAME: &str = "bare-metal";

/// What `--cloud-config` holds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Ranges of addresses for load balancers: `192.0.2.10-192.0.2.20`, `192.0.2.0/28`, `192.0.2.7`.
    #[serde(default)]
    pub load_balancer_addresses: Vec<String>,
    /// The machines. If there are any here, a node whose machine is not among them does not exist.
    #[serde(default)]
    pub machines: Vec<Machine>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machine {
    /// The node's name.
    pub name: String,
    #[serde(default)]
    pub provider_id: String,
    #[serde(default)]
    pub instance_type: String,
    #[serde(default)]
    pub zone: String,
    #[serde(default)]
    pub region: String,
    #[serde(default)]
    pub internal_addresses: Vec<IpAddr>,
    #[serde(default)]
    pub external_addresses: Vec<IpAddr>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub shut_down: bool,
}

pub struct BareMetal {
    machines: BTreeMap<String, Machine>,
    has_pool: bool,
    pool: Mutex<Pool>,
    cluster: OnceLock<Cluster>,
}

struct Cluster {
    client: Client,
    nodes: Store<Node>,
}

impl Settings {
    /// Reads the file that `--cloud-config` names.
    pub fn parse(yaml: &str) -> Result<Self, String> {
        serde_yaml_ng::from_str(yaml).map_err(|error| error.to_string())
    }
}

impl BareMetal {
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let pool = Pool::parse(&settings.load_balancer_addresses)?;
        Ok(Self {
            machines: settings.machines.iter().map(|machine| (machine.name.clone(), machine.clone())).collect(),
            has_pool: !settings.load_balancer_addresses.is_empty(),
            pool: Mutex::new(pool),
            cluster: OnceLock::new(),
        })
    }
}

fn uid(service: &Service) -> &str {
    service.metadata.uid.as_deref().unwrap_or_default()
}

/// The addresses in a Service's status.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    ingress.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

fn status(addresses: &[IpAddr]) -> LoadBalancerStatus {
    let ingress = addresses.iter().map(|address| LoadBalancerIngress {
        ip: Some(address.to_string()),
        ip_mode: Some("VIP".to_owned()),
        ..LoadBalancerIngress::default()
    });
    LoadBalancerStatus { ingress: Some(ingress.collect()) }
}

#[async_trait]
impl Provider for BareMetal {
    fn name(&self) -> &str {
        NAME
    }

    async fn initialize(&self, client: &Client, informers: &Informers) {
        let (nodes, services) = (informers.informer::<Node>(), informers.informer::<Service>());
        tokio::join!(nodes.synced(), services.synced());
        let mut services: Vec<_> = services.store().list();
        // Of two Services with one address the older one keeps it.
        services.sort_by_key(|service| service.metadata.creation_timestamp.clone());
        let mut pool = self.pool.lock();
        for service in services.iter().filter(|service| wants_load_balancer(service)) {
            pool.keep(uid(service), &addresses(service));
        }
        let _ = self.cluster.set(Cluster { client: client.clone(), nodes: nodes.store() });
    }

    fn load_balancer(&self) -> Option<&dyn LoadBalancer> {
        self.has_pool.then_some(self as &dyn LoadBalancer)
    }

    fn instances(&self) -> Option<&dyn Instances> {
        Some(self)
    }

    fn routes(&self) -> Option<&dyn Routes> {
        Some(self)
    }
}

#[async_trait]
impl LoadBalancer for BareMetal {
    async fn get(&self, _cluster: &str, service: &Service) -> Result<Option<LoadBalancerStatus>, Error> {
        Ok(self.pool.lock().held_by(uid(service)).map(|addresses| status(&addresses)))
    }

    async fn ensure(&self, _cluster: &str, service: &Service, _nodes: &[&Node]) -> Result<LoadBalancerStatus, Error> {
        let spec = service.spec.clone().unwrap_or_default();
        let families = spec.ip_families.unwrap_or_else(|| vec!["IPv4".to_owned()]);
        let wanted = spec.load_balancer_ip.filter(|ip| !ip.is_empty());
        let taken = self.pool.lock().take(uid(service), &families, wanted.as_deref()).map_err(Error::Other)?;
        let annotated = service.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(ANNOTATION));
        if let Some(cluster) = self.cluster.get().filter(|_| !annotated) {
            let patch = json!({"metadata": {"annotations": {ANNOTATION: NAME}}});
            let key = ObjectKey::of(service);
            requests::patch::<Service>(&cluster.client, &key, "status", PatchKind::Strategic, &patch).await?;
        }
        Ok(status(&taken))
    }

    /// Every node leads to the Service by itself.
    async fn update(&self, _cluster: &str, _service: &Service, _nodes: &[&Node]) -> Result<(), Error> {
        Ok(())
    }

    async fn ensure_deleted(&self, _cluster: &str, service: &Service) -> Result<(), Error> {
        self.pool.lock().give_back(uid(service));
        Ok(())
    }
}

#[async_trait]
impl Instances for BareMetal {
    async fn exists(&self, node: &Node) -> Result<bool, Error> {
        Ok(self.machines.is_empty() || self.machines.contains_key(name(node)))
    }

    async fn is_shut_down(&self, node: &Node) -> Result<bool, Error> {
        Ok(self.machines.get(name(node)).is_some_and(|machine| machine.shut_down))
    }

    async fn metadata(&self, node: &Node) -> Result<Option<InstanceMetadata>, Error> {
        let machine = self.machines.get(name(node)).cloned().unwrap_or_default();
        let provider_id =
            if machine.provider_id.is_empty() { format!("{NAME}://{}", name(node)) } else { machine.provider_id };
        let address = |kind: &str, ip: &IpAddr| NodeAddress { type_: kind.to_owned(), address: ip.to_string() };
        let mut addresses: Vec<NodeAddress> =
            machine.internal_addresses.iter().map(|ip| address("InternalIP", ip)).collect();
        addresses.extend(machine.external_addresses.iter().map(|ip| address("ExternalIP", ip)));
        if addresses.is_empty() {
            // Nobody knows better than the machine itself.
            let own = node.status.as_ref().and_then(|status| status.addresses.clone());
            addresses = own.unwrap_or_default();
        }
        if addresses.is_empty() {
            let provided =
                node.metadata.annotations.as_ref().and_then(|a| a.get("alpha.kubernetes.io/provided-node-ip"));
            let ips = provided.iter().flat_map(|ips| ips.split(',')).filter_map(|ip| ip.trim().parse::<IpAddr>().ok());
            addresses = ips.map(|ip| address("InternalIP", &ip)).collect();
        }
        Ok(Some(InstanceMetadata {
            provider_id,
            instance_type: machine.instance_type,
            addresses,
            zone: machine.zone,
            region: machine.region,
            additional_labels: machine.labels.into_iter().collect(),
        }))
    }
}

/// Each node makes the routes to the others by itself, from their pod ranges and addresses. So there is a route to every node
/// that says both, and there can be none to another.
#[async_trait]
impl Routes for BareMetal {
    async fn list(&self, _cluster: &str) -> Result<Vec<Route>, Error> {
        let nodes = self.cluster.get().map(|cluster| cluster.nodes.list()).unwrap_or_default();
        let reachable = nodes.iter().filter(|node| {
            let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
            addresses.into_iter().flatten().any(|address| address.type_ == "InternalIP")
        });
        let routes = reachable.flat_map(|node| {
            let ranges = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref());
            ranges.into_iter().flatten().map(|range| Route {
                name: format!("{} via {}", range, name(node)),
                target_node: name(node).to_owned(),
                destination_cidr: range.clone(),
                blackhole: false,
            })
        });
        Ok(routes.collect())
    }

    async fn create(&self, _: &str, _hint: &str, route: &Route, addresses: &[NodeAddress]) -> Result<(), Error> {
        if addresses.iter().any(|address| address.type_ == "InternalIP") {
            return Ok(());
        }
        Err(Error::Other(format!("node {} has no internal address", route.target_node)))
    }

    async fn delete(&self, _cluster: &str, _route: &Route) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(uid: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"name": uid, "namespace": "n", "uid": uid},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"]}}))
        .unwrap()
    }

    #[tokio::test]
    async fn an_address_is_a_services_until_it_is_gone() {
        let settings = Settings { load_balancer_addresses: vec!["192.0.2.1".into()], ..Settings::default() };
        let provider = BareMetal::new(&settings).unwrap();
        let balancer = provider.load_balancer().unwrap();
        let (one, two) = (service("one"), service("two"));
        assert!(balancer.get("c", &one).await.unwrap().is_none());
        let first = balancer.ensure("c", &one, &[]).await.unwrap();
        assert_eq!(balancer.ensure("c", &one, &[]).await.unwrap(), first);
        assert!(balancer.ensure("c", &two, &[]).await.is_err());
        balancer.ensure_deleted("c", &one).await.unwrap();
        assert_eq!(balancer.ensure("c", &two, &[]).await.unwrap(), first);
    }

    #[tokio::test]
    async fn an_inventory_says_which_machines_exist() {
        let settings = Settings::parse(
            "loadBalancerAddresses: [192.0.2.0/30]\nmachines:\n- {name: a, zone: z1, externalAddresses: [198.51.100.1]}\n",
        )
        .unwrap();
        let provider = BareMetal::new(&settings).unwrap();
        let node = |name: &str| serde_json::from_value::<Node>(json!({"metadata": {"name": name}})).unwrap();
        assert!(provider.exists(&node("a")).await.unwrap());
        assert!(!provider.exists(&node("b")).await.unwrap());
        let known = provider.metadata(&node("a")).await.unwrap().unwrap();
        assert_eq!((known.provider_id.as_str(), known.zone.as_str()), ("bare-metal://a", "z1"));
        assert!(Settings::parse("nosuch: 1").is_err());
    }
}
