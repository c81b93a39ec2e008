//! A cluster of two nodes, one of which is cut off and comes back. The commands that do so are in `CUT_NODE_B` and
//! `HEAL_NODE_B`; `NODE_B` names the node.

use crate::harness::Sandbox;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;

const SPREAD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: spread}
spec:
  replicas: 4
  selector: {matchLabels: {app: spread}}
  template:
    metadata: {labels: {app: spread}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: spread}}}
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers:
      - name: app
        image: coxswain.test/app:1
        readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: spread}
spec: {selector: {app: spread}, ports: [{port: 80, targetPort: 8080}]}
"#;

fn shell(variable: &str) -> Result<()> {
    let command = std::env::var(variable).with_context(|| format!("{variable} is not set"))?;
    let status = std::process::Command::new("sh").args(["-c", &command]).status()?;
    ensure!(status.success(), "{command} ended with {status}");
    Ok(())
}

/// The nodes on which ready pods run.
async fn nodes_of(s: &Sandbox<'_>) -> Result<(usize, BTreeSet<String>)> {
    let ready = s.ready_pods("app=spread").await?;
    let pods = s.get(&["pods", "-l", "app=spread"]).await?;
    let items = pods["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of_ready = |p: &&Value| ready.iter().any(|r| p["metadata"]["name"] == r.as_str());
    let nodes = items.iter().filter(of_ready).filter_map(|p| p["spec"]["nodeName"].as_str()).map(str::to_owned);
    Ok((ready.len(), nodes.collect()))
}

pub async fn services_reach_pods_on_both_nodes(s: &Sandbox<'_>) -> Result<()> {
    s.apply(SPREAD).await?;
    s.kubectl(&["rollout", "status", "deployment/spread", "--timeout=90s"]).await?;
    let (_, nodes) = nodes_of(s).await?;
    ensure!(nodes.len() == 2, "pods run on {nodes:?} only");
    let pods: BTreeSet<String> = s.ready_pods("app=spread").await?.into_iter().collect();
    // From a pod of each node, every pod of both must answer.
    for pod in &pods {
        let answers = s.kubectl(&["exec", pod, "--", "/app", "get", "http://spread/hostname", "--count=60"]).await?;
        let seen: BTreeSet<String> = answers.lines().map(str::to_owned).collect();
        ensure!(seen == pods, "from {pod}, {seen:?} answered, not each of {pods:?}");
        let logs = s.kubectl(&["logs", pod]).await?;
        ensure!(logs.contains("serving version 1"), "the log of {pod} is {logs:?}");
    }
    Ok(())
}

pub async fn the_pods_of_a_lost_node_are_replaced(s: &Sandbox<'_>) -> Result<()> {
    let lost = std::env::var("NODE_B").unwrap_or_else(|_| "node-b".into());
    s.apply(SPREAD).await?;
    s.kubectl(&["rollout", "status", "deployment/spread", "--timeout=90s"]).await?;
    shell("CUT_NODE_B")?;
    let outcome = async {
        s.eventually("the lost node to show as not ready", 90, || async {
            let shown = s.cluster_kubectl(&["get", "node", &lost]).await?;
            Ok(shown.contains("NotReady").then_some(()))
        })
        .await?;
        s.eventually("four ready pods on the other node", 90, || async {
            let (count, nodes) = nodes_of(s).await?;
            Ok((count == 4 && !nodes.contains(&lost)).then_some(()))
        })
        .await
    }
    .await;
    shell("HEAL_NODE_B")?;
    outcome?;
    s.eventually("the node to come back", 90, || async {
        let shown = s.cluster_kubectl(&["get", "node", &lost]).await?;
        Ok((!shown.contains("NotReady") && shown.contains("Ready")).then_some(()))
    })
    .await?;
    s.eventually("the pods of the lost node to be gone", 90, || async {
        let pods = s.get(&["pods", "-l", "app=spread"]).await?;
        Ok((pods["items"].as_array().map(Vec::len) == Some(4)).then_some(()))
    })
    .await
}
