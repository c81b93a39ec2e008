//! Pods stay five minutes on a node that is not ready or cannot be reached, unless they say otherwise
//! (upstream: `plugin/pkg/admission/defaulttolerationseconds`).

use super::{Attributes, Operation, Parts, Plugin};
use async_trait::async_trait;
use coxswain_api::{Status, Value};
use serde_json::json;

const DEFAULT_SECONDS: i64 = 300;

pub struct DefaultTolerationSeconds {
    /// Taint and how long it is tolerated.
    tolerated: [(&'static str, i64); 2],
}

impl DefaultTolerationSeconds {
    pub fn new(parts: &Parts<'_>) -> Self {
        let not_ready = parts.config.not_ready_toleration_seconds.unwrap_or(DEFAULT_SECONDS);
        let unreachable = parts.config.unreachable_toleration_seconds.unwrap_or(DEFAULT_SECONDS);
        Self {
            tolerated: [("node.kubernetes.io/not-ready", not_ready), ("node.kubernetes.io/unreachable", unreachable)],
        }
    }
}

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !attributes.is("", "pods") {
            return Ok(());
        }
        let Some(pod) = attributes.object.as_deref_mut() else { return Ok(()) };
        let given: Vec<Value> = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        let text = |v: &'_ Value| v.as_str().unwrap_or_default().to_owned();
        let mut all = given.clone();
        for (taint, seconds) in self.tolerated {
            let covers = |t: &Value| {
                let (key, effect) = (text(&t["key"]), text(&t["effect"]));
                (key.is_empty() || key == taint) && (effect.is_empty() || effect == "NoExecute")
            };
            if !given.iter().any(covers) {
                all.push(
                    json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}),
                );
            }
        }
        if all.len() != given.len() {
            pod["spec"]["tolerations"] = json!(all);
        }
        Ok(())
    }
}
