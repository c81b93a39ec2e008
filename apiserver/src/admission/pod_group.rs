//! Groups of pods are kept while pods need them, and are made of templates that exist (upstream:
//! `plugin/pkg/admission/scheduling/podgroupprotection` and `plugin/pkg/admission/podgroup`).

use super::{Attributes, Operation, Plugin};
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::features::Feature;
use coxswain_api::field::go_quote;
use coxswain_api::{Status, Value, json};
use std::sync::Arc;

const GROUP: &str = "scheduling.k8s.io";
/// A controller takes it away when no pod that may still run is of the group.
const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

/// `PodGroupProtection`
pub struct PodGroupProtection;

#[async_trait]
impl Plugin for PodGroupProtection {
    fn name(&self) -> &'static str {
        "PodGroupProtection"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create && Feature::GenericWorkload.enabled()
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !attributes.is(GROUP, "podgroups") {
            return Ok(());
        }
        let Some(group) = attributes.object.as_deref_mut() else { return Ok(()) };
        let finalizers = &mut group["metadata"]["finalizers"];
        match finalizers.as_array_mut() {
            Some(list) if list.iter().any(|f| f == FINALIZER) => {}
            Some(list) => list.push(json!(FINALIZER)),
            None => *finalizers = json!([FINALIZER]),
        }
        Ok(())
    }
}

/// `PodGroupWorkloadExists`
pub struct PodGroupWorkloadExists {
    pub objects: Arc<dyn Objects>,
}

#[async_trait]
impl Plugin for PodGroupWorkloadExists {
    fn name(&self) -> &'static str {
        "PodGroupWorkloadExists"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create && Feature::GenericWorkload.enabled()
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !attributes.is(GROUP, "podgroups") {
            return Ok(());
        }
        let template = attributes.new_object().and_then(|group| group.pointer("/spec/podGroupTemplateRef/workload"));
        let Some(template) = template.filter(|t| !t.is_null()) else { return Ok(()) };
        let text = |field: &str| template[field].as_str().unwrap_or_default();
        let (workload_name, template_name) = (text("workloadName"), text("podGroupTemplateName"));
        let workload = match self.objects.get(GROUP, "workloads", attributes.namespace, workload_name) {
            Some(workload) => Some(workload),
            // The cache may lag behind whoever made both.
            None => self.objects.get_consistent(GROUP, "workloads", attributes.namespace, workload_name).await?,
        };
        let quoted = go_quote(workload_name);
        let refuse = |why: String| Err(attributes.forbidden(format!("PodGroup rejected: {why}")));
        let Some(workload) = workload else { return refuse(format!("Workload {quoted} not found")) };
        if !workload["metadata"]["deletionTimestamp"].is_null() {
            return refuse(format!("Workload {quoted} is being deleted"));
        }
        let templates = workload.pointer("/spec/podGroupTemplates").and_then(Value::as_array);
        if templates.into_iter().flatten().any(|t| t["name"] == template_name) {
            return Ok(());
        }
        refuse(format!("PodGroupTemplate {} not found in Workload {quoted}", go_quote(template_name)))
    }
}
