//! An ingress without class gets the one marked as default (upstream: `plugin/pkg/admission/network/defaultingressclass`).

use super::{Attributes, Operation, Plugin, storage};
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::Status;
use std::sync::Arc;

const GROUP: &str = "networking.k8s.io";

pub struct DefaultIngressClass {
    pub objects: Arc<dyn Objects>,
}

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !attributes.is(GROUP, "ingresses") {
            return Ok(());
        }
        let Some(ingress) = attributes.object.as_deref_mut() else { return Ok(()) };
        let annotated = !ingress["metadata"]["annotations"]["kubernetes.io/ingress.class"].is_null();
        if annotated || !ingress["spec"]["ingressClassName"].is_null() {
            return Ok(());
        }
        let classes = self.objects.list(GROUP, "ingressclasses", None);
        if let Some(class) = storage::default_class(classes, &["ingressclass.kubernetes.io/is-default-class"]) {
            ingress["spec"]["ingressClassName"] = class["metadata"]["name"].clone();
        }
        Ok(())
    }
}
