//! `MutatingAdmissionPolicy`: changes that expressions describe, as a configuration to apply or as a JSON patch.

use super::{Common, define_variables};
use crate::admission::cel::{Asked, Variables, conditions_hold};
use crate::admission::matching::{access_request, is_exempt, namespace_of, request};
use crate::admission::{Attributes, Operation, Plugin};
use crate::authorization::Authorization;
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::{Status, Value};
use serde_json::json;
use std::sync::Arc;

pub struct MutatingAdmissionPolicy {
    common: Common,
}

impl MutatingAdmissionPolicy {
    pub fn new(objects: Arc<dyn Objects>, authorization: Arc<Authorization>) -> Self {
        Self {
            common: Common::new(objects, authorization, "mutatingadmissionpolicies", "mutatingadmissionpolicybindings"),
        }
    }
}

#[async_trait]
impl Plugin for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        let objects = &self.common.objects;
        let bindings = self.common.bindings.all();
        if bindings.is_empty() || is_exempt(attributes) || attributes.object.is_none() {
            return Ok(());
        }
        for policy in self.common.policies.all().iter() {
            let name = policy["metadata"]["name"].as_str().unwrap_or_default();
            let bound: Vec<_> = bindings.iter().filter(|b| b["spec"]["policyName"] == name).collect();
            if bound.is_empty() || !self.common.matches(&policy["spec"]["matchConstraints"], false, attributes).await? {
                continue;
            }
            let namespace = namespace_of(attributes, objects).await?;
            for binding in bound {
                if !self.common.matches(&binding["spec"]["matchResources"], true, attributes).await? {
                    continue;
                }
                let asked = self.common.asked(attributes);
                let result = self.common.params(policy, binding, attributes).and_then(|params| {
                    let mut each = params.iter();
                    each.try_for_each(|param| {
                        mutate(policy, attributes, param.as_deref(), namespace.as_deref(), &asked)
                    })
                });
                match result {
                    Ok(()) => {}
                    Err(why) if policy["spec"]["failurePolicy"] == "Ignore" => {
                        tracing::debug!(policy = name, %why, "a policy is ignored");
                    }
                    Err(why) => {
                        let binding = binding["metadata"]["name"].as_str().unwrap_or_default();
                        return Err(attributes
                            .forbidden(format!("policy '{name}' with binding '{binding}' denied request: {why}")));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Applies every mutation of a policy, each to what those before it made.
fn mutate(
    policy: &Value,
    attributes: &mut Attributes<'_>,
    params: Option<&Value>,
    namespace: Option<&Value>,
    asked: &Asked,
) -> Result<(), String> {
    let spec = &policy["spec"];
    for (index, mutation) in spec["mutations"].as_array().into_iter().flatten().enumerate() {
        let shown = request(attributes);
        let mut variables = Variables::new();
        variables.set("object", attributes.new_object());
        variables.set("oldObject", attributes.old);
        variables.set("request", Some(&shown));
        variables.set_authorizer(asked, access_request(attributes));
        variables.set("params", params);
        variables.set("namespaceObject", namespace);
        // The conditions are about the request, not about what the policy itself makes of it.
        if index == 0 && !conditions_hold(&spec["matchConditions"], &variables)? {
            return Ok(());
        }
        define_variables(spec, &mut variables);
        let apply = mutation["patchType"] == "ApplyConfiguration";
        let source = if apply { &mutation["applyConfiguration"] } else { &mutation["jsonPatch"] };
        let described = variables.tree(source["expression"].as_str().unwrap_or_default().trim())?;
        drop(variables);
        let schema = match attributes.resource.subresource(attributes.subresource) {
            Some(subresource) => &subresource.schema,
            None => &attributes.resource.schema,
        };
        let Some(object) = attributes.object.as_deref_mut() else { return Ok(()) };
        let mut whole = object.clone();
        if whole["kind"].is_null() {
            whole["apiVersion"] = json!(attributes.resource.group_version.api_version());
            whole["kind"] = json!(&*attributes.resource.kind);
        }
        let changed = if apply {
            coxswain_api::apply::merge(&whole, &described, schema).map_err(|_| "the configuration cannot be merged")?
        } else {
            coxswain_api::patch::json(&whole, &described).map_err(|e| e.message)?
        };
        *object = coxswain_api::codec::json::decode_tree(&changed, schema).map_err(|e| e.to_string())?.value;
    }
    Ok(())
}
