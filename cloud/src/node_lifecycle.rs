//! Deletes the nodes whose machines are gone, and marks those whose machines are shut down (upstream:
//! `cloud-provider/controllers/nodelifecycle`).

use coxswain_client::drive::every;
use coxswain_client::objects as requests;
use coxswain_client::{Informer, ObjectKey, Store, errors, events};
use k8s_openapi::api::core::v1::{Node, Taint};

use crate::Context;
use crate::objects::{condition, name, set_taints, taints};
use crate::provider::{Error, Instances};

const SHUTDOWN: &str = "node.cloudprovider.kubernetes.io/shutdown";

pub(crate) async fn run(context: Context) {
    let provider = context.provider.clone();
    let Some(instances) = provider.instances() else { return };
    let nodes: Informer<Node> = context.informers.informer();
    nodes.synced().await;
    let period = context.config.node_monitor_period;
    every(period, &context.shutdown, || monitor(&context, instances, nodes.store())).await;
}

async fn monitor(context: &Context, instances: &dyn Instances, nodes: Store<Node>) {
    for node in nodes.list() {
        if let Err(error) = check(context, instances, &node).await {
            tracing::warn!(node = name(&node), %error, "cannot check the machine of a node");
        }
    }
}

async fn check(context: &Context, instances: &dyn Instances, node: &Node) -> Result<(), Error> {
    let marked = taints(node).iter().any(|taint| taint.key == SHUTDOWN);
    if condition(node, "Ready").is_some_and(|ready| ready.status == "True") {
        if marked {
            let kept: Vec<Taint> = taints(node).iter().filter(|taint| taint.key != SHUTDOWN).cloned().collect();
            set_taints(&context.client, node, &kept).await?;
        }
        return Ok(());
    }
    if !instances.exists(node).await? {
        let about = events::reference(node);
        let message = format!("Deleting node {} because it does not exist in the cloud provider", name(node));
        context.recorder.normal(&about, "DeletingNode", message);
        let deleted = requests::delete::<Node>(&context.client, &ObjectKey::of(node), &Default::default()).await;
        if let Err(error) = errors::ignore_not_found(deleted) {
            let message = format!("Failed deleting node {}: {}", name(node), errors::message(&error));
            context.recorder.warning(&about, "DeletingNodeFailed", message);
            return Err(error.into());
        }
        return Ok(());
    }
    if !marked && instances.is_shut_down(node).await? {
        let mut all = taints(node).to_vec();
        all.push(Taint { key: SHUTDOWN.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() });
        set_taints(&context.client, node, &all).await?;
    }
    Ok(())
}
