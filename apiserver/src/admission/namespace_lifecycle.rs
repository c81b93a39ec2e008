//! Nothing is created in a namespace that does not exist or is going away, and some namespaces never go away
//! (upstream: `admission/plugin/namespace/lifecycle`).

use super::{Attributes, Operation, Plugin};
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::Status;
use coxswain_api::status::Cause;
use std::sync::Arc;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle {
    objects: Arc<dyn Objects>,
}

impl NamespaceLifecycle {
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects }
    }
}

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        let of_namespaces = attributes.is_of("", "namespaces");
        if of_namespaces && attributes.operation == Operation::Delete && IMMORTAL.contains(&attributes.name) {
            let why = "this namespace may not be deleted";
            return Err(Status::forbidden("", "namespaces", attributes.name, why));
        }
        // Going on with what is there is always allowed, and so is making a namespace.
        if of_namespaces || attributes.namespace.is_empty() || attributes.operation != Operation::Create {
            return Ok(());
        }
        // Reviews of access to a namespace do not need it.
        if attributes.is_of("authorization.k8s.io", "localsubjectaccessreviews") {
            return Ok(());
        }
        let namespace = attributes.namespace;
        let cached = self.objects.get("", "namespaces", "", namespace);
        let found = match cached {
            Some(found) => Some(found),
            // It may have been made a moment ago.
            None => self.objects.get_consistent("", "namespaces", "", namespace).await?,
        };
        let Some(found) = found else { return Err(Status::not_found("", "namespaces", namespace)) };
        if found["status"]["phase"] != "Terminating" {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = attributes.forbidden(why);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            });
        }
        Err(status)
    }
}
