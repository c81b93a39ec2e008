//! Writes what the provider knows of a machine into its Node: provider id, type, zone, addresses; and takes away the taint that
//! kept pods off until then (upstream: `cloud-provider/controllers/node`).

use std::sync::Arc;

use coxswain_client::drive::{drive, every, feed};
use coxswain_client::objects::{self as requests, PatchKind};
use coxswain_client::{Event, Informer, ObjectKey, Store, WorkQueue, errors, events};
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeStatus};
use serde_json::json;

use crate::Context;
use crate::objects::{name, taints};
use crate::provider::{Error, InstanceMetadata, Instances};

const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
const PROVIDED_NODE_IP: &str = "alpha.kubernetes.io/provided-node-ip";
/// Labels of old and the names they have now, which get the same value.
const LABELS: [(&str, &str); 3] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];

struct State {
    context: Context,
    nodes: Store<Node>,
}

pub(crate) async fn run(context: Context) {
    if context.provider.instances().is_none() {
        return;
    }
    let nodes: Informer<Node> = context.informers.informer();
    nodes.synced().await;
    let queue = WorkQueue::<ObjectKey>::new();
    let state = Arc::new(State { context: context.clone(), nodes: nodes.store() });
    let feeds = feed(&nodes, |event| {
        if !matches!(event, Event::Deleted(_)) {
            queue.add(ObjectKey::of(event.object().as_ref()));
        }
    });
    let reconcile = |state: Arc<State>, key: ObjectKey| async move { state.reconcile(key).await };
    let workers = context.config.concurrent_node_syncs;
    let work = drive("cloud-node", state.clone(), queue.clone(), workers, context.shutdown.clone(), reconcile, feeds);
    let refresh = every(context.config.node_status_update_frequency, &context.shutdown, || state.refresh_addresses());
    tokio::join!(work, refresh);
}

fn is_uninitialized(node: &Node) -> bool {
    taints(node).iter().any(|taint| taint.key == UNINITIALIZED)
}

impl State {
    fn instances(&self) -> Result<&dyn Instances, Error> {
        self.context
            .provider
            .instances()
            .ok_or_else(|| Error::Other("cloud provider does not support instances".into()))
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<(), Error> {
        let Some(node) = self.nodes.get_key(&key) else { return Ok(()) };
        if !is_uninitialized(&node) {
            return self.reconcile_labels(&node).await;
        }
        let Some(mut metadata) = self.instances()?.metadata(&node).await? else { return Ok(()) };
        let known = node.spec.as_ref().and_then(|spec| spec.provider_id.clone()).unwrap_or_default();
        if metadata.provider_id.is_empty() {
            if known.is_empty() {
                return Err(Error::Other(format!(
                    "cloud provider does not set node provider ID for node {}",
                    key.name
                )));
            }
            metadata.provider_id = known;
        }
        let addresses = preferred_first(&node, metadata.addresses.clone())?;
        let initialized = initialize(&node, &metadata);
        let written = requests::update(&self.context.client, &initialized).await?;
        self.write_addresses(&written, addresses).await?;
        self.context.recorder.normal(&events::reference(node.as_ref()), "Synced", "Node synced successfully");
        Ok(())
    }

    async fn reconcile_labels(&self, node: &Node) -> Result<(), Error> {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let stale: serde_json::Map<_, _> = LABELS
            .iter()
            .filter_map(|(old, new)| labels.get(*old).filter(|value| labels.get(*new) != Some(value)).map(|v| (new, v)))
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        if stale.is_empty() {
            return Ok(());
        }
        let patch = json!({"metadata": {"labels": stale}});
        let patched =
            requests::patch::<Node>(&self.context.client, &ObjectKey::of(node), "", PatchKind::Strategic, &patch).await;
        errors::ignore_not_found(patched)?;
        Ok(())
    }

    /// A machine's addresses may change while it runs.
    async fn refresh_addresses(&self) {
        for node in self.nodes.list() {
            if is_uninitialized(&node) {
                continue;
            }
            if let Err(error) = self.refresh_one(&node).await {
                tracing::warn!(node = name(&node), %error, "cannot update the addresses of a node");
            }
        }
    }

    async fn refresh_one(&self, node: &Node) -> Result<(), Error> {
        let Some(metadata) = self.instances()?.metadata(node).await? else { return Ok(()) };
        self.write_addresses(node, preferred_first(node, metadata.addresses)?).await
    }

    async fn write_addresses(&self, node: &Node, mut addresses: Vec<NodeAddress>) -> Result<(), Error> {
        if addresses.is_empty() {
            return Ok(());
        }
        let present = node.status.as_ref().and_then(|status| status.addresses.clone()).unwrap_or_default();
        if !addresses.iter().any(|address| address.type_ == "Hostname") {
            addresses.extend(present.iter().filter(|address| address.type_ == "Hostname").cloned());
        }
        let same = |a: &NodeAddress, b: &NodeAddress| a.type_ == b.type_ && a.address == b.address;
        if present.len() == addresses.len() && addresses.iter().all(|a| present.iter().any(|b| same(a, b))) {
            return Ok(());
        }
        let status = NodeStatus { addresses: Some(addresses), ..node.status.clone().unwrap_or_default() };
        let updated = Node { status: Some(status), ..node.clone() };
        errors::ignore_not_found(requests::update_status(&self.context.client, &updated).await)?;
        Ok(())
    }
}

/// The node with everything that the provider knows, and without the taint.
fn initialize(node: &Node, metadata: &InstanceMetadata) -> Node {
    let mut node = node.clone();
    let spec = node.spec.get_or_insert_default();
    if spec.provider_id.as_ref().is_none_or(String::is_empty) {
        spec.provider_id = Some(metadata.provider_id.clone());
    }
    let mut taints = spec.taints.take().unwrap_or_default();
    taints.retain(|taint| taint.key != UNINITIALIZED);
    spec.taints = Some(taints).filter(|taints| !taints.is_empty());
    let labels = node.metadata.labels.get_or_insert_default();
    for ((old, new), value) in LABELS.iter().zip([&metadata.zone, &metadata.region, &metadata.instance_type]) {
        if !value.is_empty() {
            labels.insert((*old).to_owned(), value.clone());
            labels.insert((*new).to_owned(), value.clone());
        }
    }
    for (key, value) in &metadata.additional_labels {
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        let reserved =
            ["kubernetes.io", "k8s.io"].iter().any(|own| domain == *own || domain.ends_with(&format!(".{own}")));
        if !reserved {
            labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    node
}

/// The address that the kubelet was started with goes first, and stands alone among those of its type.
fn preferred_first(node: &Node, addresses: Vec<NodeAddress>) -> Result<Vec<NodeAddress>, Error> {
    let provided = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(PROVIDED_NODE_IP));
    let Some(provided) = provided.filter(|_| !addresses.is_empty()) else { return Ok(addresses) };
    let Some(first) = addresses.iter().find(|address| address.address == *provided && address.type_ != "Hostname")
    else {
        return Err(Error::Other(format!(
            "failed to get node address from cloud provider that matches ip: {provided}"
        )));
    };
    let mut ordered = vec![first.clone()];
    ordered.extend(addresses.iter().filter(|address| address.type_ != first.type_).cloned());
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(json: serde_json::Value) -> Node {
        serde_json::from_value(json).unwrap()
    }

    fn address(kind: &str, address: &str) -> NodeAddress {
        NodeAddress { type_: kind.to_owned(), address: address.to_owned() }
    }

    #[test]
    fn a_node_is_initialized_once_with_all_that_is_known() {
        let fresh = node(json!({"metadata": {"name": "n", "labels": {"own": "1"}}, "spec": {"taints": [
            {"key": UNINITIALIZED, "value": "true", "effect": "NoSchedule"}, {"key": "other", "effect": "NoSchedule"}]}}));
        assert!(is_uninitialized(&fresh));
        let metadata = InstanceMetadata {
            provider_id: "bare-metal://n".into(),
            zone: "z1".into(),
            additional_labels: vec![
                ("own".into(), "2".into()),
                ("x.k8s.io/y".into(), "3".into()),
                ("rack".into(), "4".into()),
            ],
            ..InstanceMetadata::default()
        };
        let done = initialize(&fresh, &metadata);
        assert!(!is_uninitialized(&done));
        assert_eq!(taints(&done).len(), 1);
        assert_eq!(
            serde_json::to_value(&done.metadata.labels).unwrap(),
            json!({"own": "1", "rack": "4", "failure-domain.beta.kubernetes.io/zone": "z1", "topology.kubernetes.io/zone": "z1"})
        );
        assert_eq!(done.spec.unwrap().provider_id.as_deref(), Some("bare-metal://n"));
    }

    #[test]
    fn the_address_that_the_kubelet_uses_goes_first() {
        let known = vec![
            address("InternalIP", "10.0.0.1"),
            address("InternalIP", "10.0.0.2"),
            address("ExternalIP", "1.2.3.4"),
        ];
        let with = |ip: &str| node(json!({"metadata": {"annotations": {PROVIDED_NODE_IP: ip}}}));
        let ordered = preferred_first(&with("10.0.0.2"), known.clone()).unwrap();
        assert_eq!(ordered, [address("InternalIP", "10.0.0.2"), address("ExternalIP", "1.2.3.4")]);
        assert!(preferred_first(&with("10.9.9.9"), known.clone()).is_err());
        assert_eq!(preferred_first(&node(json!({})), known.clone()).unwrap(), known);
    }
}
