//! A pod takes over the overhead and the scheduling constraints of its RuntimeClass
//! (upstream: `plugin/pkg/admission/runtimeclass`).

use super::{Attributes, Operation, Plugin};
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::{Status, Value};
use serde_json::json;
use std::sync::Arc;

const GROUP: &str = "node.k8s.io";
const OVERHEAD_DIFFERS: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

pub struct RuntimeClass {
    pub objects: Arc<dyn Objects>,
}

impl RuntimeClass {
    async fn class(&self, attributes: &Attributes<'_>) -> Result<Option<Arc<Value>>, Status> {
        let name = attributes.new_object().and_then(|p| p["spec"]["runtimeClassName"].as_str());
        let Some(name) = name else { return Ok(None) };
        if let Some(class) = self.objects.get(GROUP, "runtimeclasses", "", name) {
            return Ok(Some(class));
        }
        if let Some(why) = coxswain_api::names::unaddressable(name) {
            return Err(Status { details: None, ..Status::new(500, "", why) });
        }
        match self.objects.get_consistent(GROUP, "runtimeclasses", "", name).await? {
            Some(class) => Ok(Some(class)),
            None => {
                let quoted = coxswain_api::field::go_quote(name);
                let why = format!("pod rejected: RuntimeClass {quoted} not found");
                Err(attributes.forbidden(why))
            }
        }
    }
}

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !attributes.is("", "pods") {
            return Ok(());
        }
        let Some(class) = self.class(attributes).await? else { return Ok(()) };
        let mut refusal = None;
        if let Some(pod) = attributes.object.as_deref_mut() {
            refusal = take_over(&mut pod["spec"], &class);
        }
        refusal.map_or(Ok(()), |why| Err(attributes.forbidden(why)))
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !attributes.is("", "pods") {
            return Ok(());
        }
        let class = self.class(attributes).await?;
        let Some(pod) = attributes.new_object() else { return Ok(()) };
        let own = &pod["spec"]["overhead"];
        match class.filter(|c| c["overhead"].is_object()) {
            Some(class) if !same_amounts(&class["overhead"]["podFixed"], own) => {
                Err(attributes.forbidden(OVERHEAD_DIFFERS))
            }
            Some(_) => Ok(()),
            None if own.is_object() => Err(attributes
                .forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")),
            None => Ok(()),
        }
    }
}

/// Changes the pod; returns why it cannot.
fn take_over(spec: &mut Value, class: &Value) -> Option<String> {
    let fixed = &class["overhead"]["podFixed"];
    if class["overhead"].is_object() {
        if !spec["overhead"].is_null() && !same_amounts(fixed, &spec["overhead"]) {
            return Some(OVERHEAD_DIFFERS.into());
        }
        if fixed.is_object() {
            spec["overhead"] = fixed.clone();
        }
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let own = &mut spec["nodeSelector"];
        if !own.is_object() {
            *own = json!({});
        }
        if let Some(given) = own[key].as_str().filter(|given| value.as_str() != Some(given)) {
            let wanted = value.as_str().unwrap_or_default();
            return Some(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {given}"
            ));
        }
        own[key] = value.clone();
    }
    let tolerations = class["scheduling"]["tolerations"].as_array().cloned().unwrap_or_default();
    if !tolerations.is_empty() {
        let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
        all.extend(tolerations.into_iter().filter(|t| !spec["tolerations"].as_array().is_some_and(|l| l.contains(t))));
        spec["tolerations"] = json!(all);
    }
    None
}

/// Equal quantities may be written differently.
fn same_amounts(a: &Value, b: &Value) -> bool {
    let amounts = |v: &Value| -> Vec<(String, Option<String>)> {
        let entries = v.as_object().into_iter().flatten();
        entries
            .map(|(k, q)| (k.clone(), coxswain_api::quantity::Quantity::canonical(q.as_str().unwrap_or_default()).ok()))
            .collect()
    };
    amounts(a) == amounts(b)
}
