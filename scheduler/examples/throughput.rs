//! How long a decision takes: `throughput NODES PODS [plain|spread|anti|own-spread]`. No server takes part.

use std::sync::Arc;
use std::time::Instant;

use coxswain_client::k8s_openapi::api::core::v1::{Node as ApiNode, Pod};
use coxswain_scheduler::cluster::Cluster;
use coxswain_scheduler::config::Profile as ProfileConfig;
use coxswain_scheduler::cycle::{self, Memory, Outcome};
use coxswain_scheduler::node::Node;
use coxswain_scheduler::pod::PodInfo;
use coxswain_scheduler::profile::Profile;
use coxswain_scheduler::volumes::Volumes;
use coxswain_scheduler::workloads::Workloads;
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let nodes: usize = arguments.first().map_or(Ok(1000), |n| n.parse())?;
    let pods: usize = arguments.get(1).map_or(Ok(1000), |n| n.parse())?;
    let kind = arguments.get(2).map_or("plain", String::as_str);
    let mut cluster = Cluster::new(Workloads::default(), Volumes::default());
    for i in 0..nodes {
        let node: ApiNode = serde_json::from_value(json!({
            "metadata": {"name": format!("node-{i}"), "labels": {
                "kubernetes.io/hostname": format!("node-{i}"), "topology.kubernetes.io/zone": format!("z{}", i % 3)}},
            "status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "250"}},
        }))?;
        cluster.set_node(Arc::new(Node::new(node)));
    }
    let selector = json!({"matchLabels": {"app": "web"}});
    let term = json!({"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"});
    let extra = match kind {
        "spread" => json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}]}),
        "soft" => json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}]}),
        "anti" => json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 100, "podAffinityTerm": term}]}}}),
        "anti-hard" => {
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
        }
        _ => json!({}),
    };
    let profile = Profile::new(&ProfileConfig::default(), 0, &Volumes::default());
    let (mut memory, mut start) = (Memory::default(), 0);
    let (mut placed, begun) = (0, Instant::now());
    let mut spent = std::time::Duration::ZERO;
    for i in 0..pods {
        let mut spec = json!({"containers": [{"name": "c", "image": "web:1",
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}]});
        for (key, value) in extra.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": format!("web-{i}"), "namespace": "default",
            "uid": format!("{i}"), "labels": {"app": "web"}}, "spec": spec}))?;
        let pod = Arc::new(PodInfo::new(pod));
        let at = Instant::now();
        if let Outcome::Fits { node, state } = cycle::schedule(&cluster, &profile, &mut memory, &pod, &mut start) {
            drop(state);
            let name = cluster.at(node).node().name.clone();
            for moved in cluster.place(Arc::new(pod.on_node(&name)), true) {
                memory.moved(&cluster, &moved);
            }
            placed += 1;
        }
        spent += at.elapsed();
    }
    println!(
        "{kind}: {placed} of {pods} pods on {nodes} nodes, {:?} a pod ({:?} in all)",
        spent / pods as u32,
        begun.elapsed()
    );
    Ok(())
}
