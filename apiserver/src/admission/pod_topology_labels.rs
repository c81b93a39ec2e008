//! A pod that is bound to a node takes over the labels that say in which zone and region the node is
//! (upstream: `plugin/pkg/admission/podtopologylabels`).

use super::{Attributes, Operation, Plugin};
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::Status;
use serde_json::json;
use std::sync::Arc;

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub struct PodTopologyLabels {
    pub objects: Arc<dyn Objects>,
}

#[async_trait]
impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    /// The binding carries the labels to the pod; a pod that is created on a node gets them at once.
    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !attributes.is_of("", "pods") {
            return Ok(());
        }
        let subresource = attributes.subresource;
        let Some(object) = attributes.object.as_deref_mut() else { return Ok(()) };
        let node = match subresource {
            "" => object["spec"]["nodeName"].as_str(),
            "binding" if object["target"]["kind"] == "Node" || object["target"]["kind"].is_null() => {
                object["target"]["name"].as_str()
            }
            _ => None,
        };
        let Some(node) = node.filter(|n| !n.is_empty()).and_then(|n| self.objects.get("", "nodes", "", n)) else {
            return Ok(());
        };
        for label in LABELS {
            let value = &node["metadata"]["labels"][label];
            if value.is_string() {
                if !object["metadata"]["labels"].is_object() {
                    object["metadata"]["labels"] = json!({});
                }
                object["metadata"]["labels"][label] = value.clone();
            }
        }
        Ok(())
    }
}
