//! A new node is not ready until its conditions say so (upstream: `plugin/pkg/admission/nodetaint`).

use super::{Attributes, Operation, Plugin};
use async_trait::async_trait;
use coxswain_api::Status;
use serde_json::json;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !attributes.is("", "nodes") {
            return Ok(());
        }
        let Some(node) = attributes.object.as_deref_mut() else { return Ok(()) };
        let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        if taints.iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule") {
            return Ok(());
        }
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        node["spec"]["taints"] = json!(taints);
        Ok(())
    }
}
