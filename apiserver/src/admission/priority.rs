//! The priority of a pod, or of a group of pods, is the number of its PriorityClass (upstream: `plugin/pkg/admission/priority`).

use super::{Attributes, Operation, Plugin};
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::features::Feature;
use coxswain_api::{Status, Value};
use serde_json::json;
use std::sync::Arc;

const GROUP: &str = "scheduling.k8s.io";

pub struct Priority {
    objects: Arc<dyn Objects>,
}

impl Priority {
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects }
    }

    /// The class that pods without one get. Should two be marked, the lower counts.
    fn default_class(&self) -> Option<Arc<Value>> {
        let classes = self.objects.list(GROUP, "priorityclasses", None);
        classes.into_iter().filter(|c| c["globalDefault"] == true).min_by_key(|c| c["value"].as_i64())
    }

    async fn class(&self, name: &str) -> Result<Option<Arc<Value>>, Status> {
        match self.objects.get(GROUP, "priorityclasses", "", name) {
            Some(class) => Ok(Some(class)),
            None => self.objects.get_consistent(GROUP, "priorityclasses", "", name).await,
        }
    }

    /// The class of a name, or the default one if there is no name.
    async fn class_of(&self, attributes: &Attributes<'_>, name: &str) -> Result<Option<Arc<Value>>, Status> {
        if name.is_empty() {
            return Ok(self.default_class());
        }
        match self.class(name).await? {
            None => Err(attributes.forbidden(format!("no PriorityClass with name {name} was found"))),
            class => Ok(class),
        }
    }

    async fn admit_new_group(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        let Some(spec) = attributes.new_object().and_then(|group| group.get("spec")) else { return Ok(()) };
        let name = spec["priorityClassName"].as_str().unwrap_or_default().to_owned();
        let class = self.class_of(attributes, &name).await?;
        let value = class.as_ref().map_or(0, |class| class["value"].as_i64().unwrap_or_default());
        let given = attributes.new_object().and_then(|group| group.pointer("/spec/priority")).and_then(Value::as_i64);
        if let Some(given) = given.filter(|given| *given != value) {
            return Err(attributes.forbidden(format!(
                "priority set in the pod group ({given}) must match the priority computed ({value}) based on the priority class set in the spec"
            )));
        }
        let Some(group) = attributes.object.as_deref_mut() else { return Ok(()) };
        group["spec"]["priority"] = json!(value);
        if let Some(class) = class {
            group["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
        }
        Ok(())
    }

    async fn admit_new_pod(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        let Some(pod) = attributes.new_object() else { return Ok(()) };
        let spec = &pod["spec"];
        let name = spec["priorityClassName"].as_str().unwrap_or_default().to_owned();
        let class = self.class_of(attributes, &name).await?;
        let (class_name, value, policy) = match &class {
            Some(class) => (
                class["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
                class["value"].as_i64().unwrap_or_default(),
                class["preemptionPolicy"].as_str().map(str::to_owned),
            ),
            None => (String::new(), 0, Some("PreemptLowerPriority".to_owned())),
        };
        if let Some(given) = spec["priority"].as_i64().filter(|given| *given != value) {
            return Err(attributes.forbidden(format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            )));
        }
        if let (Some(policy), Some(given)) = (&policy, spec["preemptionPolicy"].as_str())
            && given != policy
        {
            return Err(attributes.forbidden(format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            )));
        }
        let Some(pod) = attributes.object.as_deref_mut() else { return Ok(()) };
        if !class_name.is_empty() {
            pod["spec"]["priorityClassName"] = json!(class_name);
        }
        pod["spec"]["priority"] = json!(value);
        if let Some(policy) = policy {
            pod["spec"]["preemptionPolicy"] = json!(policy);
        }
        Ok(())
    }
}

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if attributes.is(GROUP, "podgroups")
            && attributes.operation == Operation::Create
            && Feature::WorkloadAwarePreemption.enabled()
        {
            return self.admit_new_group(attributes).await;
        }
        if !attributes.is("", "pods") {
            return Ok(());
        }
        if attributes.operation == Operation::Create {
            return self.admit_new_pod(attributes).await;
        }
        // Writers who do not know these fields must not lose them.
        let Some(old) = attributes.old else { return Ok(()) };
        let Some(pod) = attributes.object.as_deref_mut() else { return Ok(()) };
        for field in ["priority", "preemptionPolicy"] {
            if pod["spec"][field].is_null() && !old["spec"][field].is_null() {
                pod["spec"][field] = old["spec"][field].clone();
            }
        }
        Ok(())
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !attributes.is(GROUP, "priorityclasses") {
            return Ok(());
        }
        let Some(class) = attributes.new_object().filter(|c| c["globalDefault"] == true) else { return Ok(()) };
        let Some(present) = self.default_class() else { return Ok(()) };
        let name = present["metadata"]["name"].as_str().unwrap_or_default();
        if attributes.operation == Operation::Create || present["metadata"]["name"] != class["metadata"]["name"] {
            return Err(attributes
                .forbidden(format!("PriorityClass {name} is already marked as default. Only one default can exist")));
        }
        Ok(())
    }
}
