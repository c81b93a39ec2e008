//! Creates the flow schemas and priority levels that every cluster has (upstream: `pkg/registry/flowcontrol/ensurer`).

use super::ensure_as;
use crate::objects::Objects;
use crate::registry::flowcontrol::bootstrap::{levels, schemas};
use coxswain_api::{Value, json};

const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
const MANAGER: &str = "api-priority-and-fairness-config-producer-v1";

/// Creates what is missing. Objects that an administrator changed stay as they are.
pub(super) async fn ensure(objects: &dyn Objects) -> Result<(), String> {
    let object = |kind: &str, name: &str, spec: Value| {
        json!({
            "kind": kind, "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
            "metadata": {"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}},
            "spec": spec,
        })
    };
    for (name, spec) in levels() {
        ensure_as(objects, MANAGER, LEVELS, &object("PriorityLevelConfiguration", name, spec)).await?;
    }
    for (name, spec) in schemas() {
        ensure_as(objects, MANAGER, SCHEMAS, &object("FlowSchema", name, spec)).await?;
    }
    Ok(())
}
