//! Has the provider make a route to the pods of each node, and says on the node whether there is one (upstream:
//! `cloud-provider/controllers/route`).

use std::sync::Arc;

use coxswain_client::drive::every;
use coxswain_client::objects::{self as requests, PatchKind};
use coxswain_client::{Informer, ObjectKey, Store, errors, events};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::Context;
use crate::objects::{condition, name};
use crate::provider::{Error, Route, Routes};

pub(crate) async fn run(context: Context) {
    let provider = context.provider.clone();
    let config = &context.config;
    let Some(routes) = provider.routes() else { return };
    if !config.allocate_node_cidrs || !config.configure_cloud_routes || config.cluster_cidrs.is_empty() {
        return;
    }
    let nodes: Informer<Node> = context.informers.informer();
    nodes.synced().await;
    let round = || async {
        if let Err(error) = reconcile(&context, routes, &nodes.store()).await {
            tracing::warn!(%error, "cannot bring the routes up to date");
        }
    };
    every(config.route_reconciliation_period, &context.shutdown, round).await;
}

fn pod_cidrs(node: &Node) -> &[String] {
    node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default()
}

/// The routes that are to go, and for each node those that are missing.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    delete: Vec<Route>,
    create: Vec<Route>,
}

fn plan(nodes: &[Arc<Node>], routes: &[Route], cluster: &[IpNet]) -> Plan {
    let mut plan = Plan::default();
    let wanted = |target: &str, cidr: &str| {
        nodes.iter().any(|node| name(node) == target && pod_cidrs(node).iter().any(|own| own == cidr))
    };
    for route in routes {
        let Ok(range) = route.destination_cidr.parse::<IpNet>() else { continue };
        let ours = cluster.iter().any(|own| own.contains(&range.network()) || own.contains(&range.broadcast()));
        if ours && (route.blackhole || !wanted(&route.target_node, &route.destination_cidr)) {
            plan.delete.push(route.clone());
        }
    }
    for node in nodes {
        for cidr in pod_cidrs(node) {
            if !routes.iter().any(|route| route.target_node == name(node) && route.destination_cidr == *cidr) {
                plan.create.push(Route {
                    name: String::new(),
                    target_node: name(node).to_owned(),
                    destination_cidr: cidr.clone(),
                    blackhole: false,
                });
            }
        }
    }
    plan
}

async fn reconcile(context: &Context, routes: &dyn Routes, nodes: &Store<Node>) -> Result<(), Error> {
    let cluster = &context.config.cluster_name;
    let present = routes.list(cluster).await.map_err(|e| Error::Other(format!("error listing routes: {e}")))?;
    let nodes = nodes.list();
    let plan = plan(&nodes, &present, &context.config.cluster_cidrs);
    for route in &plan.delete {
        if let Err(error) = routes.delete(cluster, route).await {
            tracing::warn!(route = route.destination_cidr, %error, "cannot delete a route");
        }
    }
    for node in &nodes {
        let mut complete = !pod_cidrs(node).is_empty();
        for route in plan.create.iter().filter(|route| route.target_node == name(node)) {
            let hint = node.metadata.uid.as_deref().unwrap_or_default();
            let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
            let started = std::time::Instant::now();
            if let Err(error) = routes.create(cluster, hint, route, addresses).await {
                complete = false;
                let message = format!(
                    "Could not create route {hint} {} for node {} after {:?}: {error}",
                    route.destination_cidr,
                    name(node),
                    started.elapsed()
                );
                context.recorder.warning(&events::reference(node.as_ref()), "FailedToCreateRoute", message);
            }
        }
        if let Err(error) = set_network_condition(context, node, complete).await {
            tracing::warn!(node = name(node), %error, "cannot say on a node whether it has a route");
        }
    }
    Ok(())
}

async fn set_network_condition(context: &Context, node: &Node, created: bool) -> Result<(), Error> {
    let (status, reason, message) = if created {
        ("False", "RouteCreated", "RouteController created a route")
    } else {
        ("True", "NoRouteCreated", "RouteController failed to create a route")
    };
    let present = condition(node, "NetworkUnavailable");
    if present.is_some_and(|present| present.status == status && present.reason.as_deref() == Some(reason)) {
        return Ok(());
    }
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH).to_string();
    let patch = json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": status, "reason": reason,
        "message": message, "lastTransitionTime": now, "lastHeartbeatTime": now}]}});
    let key = ObjectKey::of(node);
    let patched = requests::patch::<Node>(&context.client, &key, "status", PatchKind::Strategic, &patch).await;
    errors::ignore_not_found(patched)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_follow_the_nodes_and_foreign_ones_stay() {
        let node = |name: &str, cidr: &str| {
            Arc::new(
                serde_json::from_value::<Node>(json!({"metadata": {"name": name}, "spec": {"podCIDRs": [cidr]}}))
                    .unwrap(),
            )
        };
        let route = |node: &str, cidr: &str, blackhole: bool| Route {
            name: String::new(),
            target_node: node.to_owned(),
            destination_cidr: cidr.to_owned(),
            blackhole,
        };
        let nodes = [node("a", "10.1.0.0/24"), node("b", "10.1.1.0/24")];
        let present = [
            route("a", "10.1.0.0/24", false),
            route("gone", "10.1.2.0/24", false),
            route("gone", "192.168.0.0/24", false),
            route("b", "10.1.3.0/24", true),
        ];
        let plan = plan(&nodes, &present, &["10.1.0.0/16".parse().unwrap()]);
        assert_eq!(plan.delete, [present[1].clone(), present[3].clone()]);
        assert_eq!(plan.create, [route("b", "10.1.1.0/24", false)]);
    }
}
