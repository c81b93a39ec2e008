//! `MutatingAdmissionPolicy`: changes that expressions describe, as a configuration to apply or as a JSON patch.

use super::{Common, define_variables};
use crate::admission::cel::{Asked, Variables, conditions_hold};
use crate::admission::matching::{
    AskedType, access_request, converted, is_exempt, namespace_of, request, restored, shown,
};
use crate::admission::{Attributes, Operation, Plugin};
use crate::authorization::Authorization;
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::schema::{ListKind, Type};
use coxswain_api::{Status, Value};
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
            if bound.is_empty() {
                continue;
            }
            let Some(ty) = self.common.matches(&policy["spec"]["matchConstraints"], false, attributes).await? else {
                continue;
            };
            let namespace = namespace_of(attributes, objects).await?;
            for binding in bound {
                if self.common.matches(&binding["spec"]["matchResources"], true, attributes).await?.is_none() {
                    continue;
                }
                let asked = self.common.asked(attributes);
                let result = self.common.params(policy, binding, attributes).and_then(|params| {
                    let mut each = params.iter();
                    each.try_for_each(|param| {
                        mutate(policy, attributes, ty.as_ref(), param.as_deref(), namespace.as_deref(), &asked)
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
    ty: Option<&AskedType>,
    params: Option<&Value>,
    namespace: Option<&Value>,
    asked: &Asked,
) -> Result<(), String> {
    let spec = &policy["spec"];
    for (index, mutation) in spec["mutations"].as_array().into_iter().flatten().enumerate() {
        let about = request(attributes, ty);
        let object = converted(attributes.new_object(), attributes, ty);
        let old = converted(attributes.old, attributes, ty);
        let mut variables = Variables::new();
        variables.set("object", object.as_deref());
        variables.set("oldObject", old.as_deref());
        variables.set("request", Some(&about));
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
        let of = ty.map_or(attributes.resource, |ty| ty);
        let schema = of.subresource(attributes.subresource).map_or(&of.schema, |subresource| &subresource.schema);
        let Some(whole) = attributes.new_object().map(|object| shown(object, attributes, ty)) else { return Ok(()) };
        let changed = if apply {
            let mut atomic = Vec::new();
            find_atomic(&described, &Type::Struct(schema.clone()), &mut String::new(), &mut atomic);
            if !atomic.is_empty() {
                let paths = atomic.join(", ");
                return Err(format!(
                    "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {paths}"
                ));
            }
            coxswain_api::apply::merge(&whole, &described, schema).map_err(|_| "the configuration cannot be merged")?
        } else {
            coxswain_api::patch::json(&whole, &described).map_err(|e| e.message)?
        };
        let changed = coxswain_api::codec::json::decode_tree(&changed, schema).map_err(|e| e.to_string())?.value;
        let changed = restored(changed, attributes, ty);
        if let Some(object) = attributes.object.as_deref_mut() {
            *object = changed;
        }
    }
    Ok(())
}

/// The paths of what would be replaced as a whole: an expression that names some fields of it would drop all others.
fn find_atomic(value: &Value, ty: &Type, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    match (value, ty) {
        (Value::Object(map), Type::Struct(schema)) => {
            if schema.atomic {
                found.push(path.clone());
            }
            for (name, value) in map {
                let Some(field) = schema.field(name) else { continue };
                *path += ".";
                *path += name;
                if field.atomic && value.is_object() {
                    found.push(path.clone());
                }
                find_atomic(value, &field.ty, path, found);
                path.truncate(length);
            }
        }
        (Value::Object(map), Type::Map(of)) => {
            if of.atomic {
                found.push(path.clone());
            }
            for (name, value) in map {
                *path += ".";
                *path += name;
                find_atomic(value, &of.value, path, found);
                path.truncate(length);
            }
        }
        (Value::Array(items), Type::List(list)) => {
            if list.kind == ListKind::Atomic {
                found.push(path.clone());
            }
            for (index, item) in items.iter().enumerate() {
                *path += &format!("[{index}]");
                find_atomic(item, &list.element, path, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
    found.dedup();
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn what_would_be_replaced_as_a_whole_is_found() {
        let ty = coxswain_api::catalogue::builtin().resource("apps", "v1", "deployments").unwrap();
        let found = |value: Value| {
            let mut found = Vec::new();
            find_atomic(&value, &Type::Struct(ty.schema.clone()), &mut String::new(), &mut found);
            found.sort();
            found
        };
        let template = |spec: Value| json!({"metadata": {"labels": {"a": "b"}}, "spec": {"template": {"spec": spec}}});
        assert!(found(template(json!({"containers": [{"name": "c", "ports": [{"containerPort": 1}]}]}))).is_empty());
        assert_eq!(
            found(template(json!({"tolerations": [], "containers": [{"name": "c", "args": ["x"]}]}))),
            [".spec.template.spec.containers[0].args", ".spec.template.spec.tolerations"]
        );
        assert_eq!(found(template(json!({"nodeSelector": {"a": "b"}}))), [".spec.template.spec.nodeSelector"]);
        assert_eq!(found(json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}})), [".spec.selector"]);
    }
}
