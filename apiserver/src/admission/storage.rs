//! Claims get a default class, are protected while in use, and grow only where their class allows it
//! (upstream: `plugin/pkg/admission/storage`).

use super::{Attributes, Operation, Plugin};
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::quantity::Quantity;
use coxswain_api::{Status, Value};
use serde_json::json;
use std::sync::Arc;

const GROUP: &str = "storage.k8s.io";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The newest object that one of `annotations` marks as default; of equally old ones the first by name.
pub(super) fn default_class(classes: Vec<Arc<Value>>, annotations: &[&str]) -> Option<Arc<Value>> {
    let marked = |c: &Arc<Value>| annotations.iter().any(|a| c["metadata"]["annotations"][*a] == "true");
    let text = |c: &Value, key: &str| c["metadata"][key].as_str().unwrap_or_default().to_owned();
    let mut found: Vec<_> = classes.into_iter().filter(marked).collect();
    found.sort_by_key(|c| (std::cmp::Reverse(text(c, "creationTimestamp")), text(c, "name")));
    found.into_iter().next()
}

/// `DefaultStorageClass`
pub struct DefaultStorageClass {
    pub objects: Arc<dyn Objects>,
}

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !attributes.is("", "persistentvolumeclaims") {
            return Ok(());
        }
        let Some(claim) = attributes.object.as_deref_mut() else { return Ok(()) };
        // An empty name asks for no class at all.
        if !claim["metadata"]["annotations"][BETA_CLASS].is_null() || !claim["spec"]["storageClassName"].is_null() {
            return Ok(());
        }
        let classes = self.objects.list(GROUP, "storageclasses", None);
        let annotations =
            ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
        if let Some(class) = default_class(classes, &annotations) {
            claim["spec"]["storageClassName"] = class["metadata"]["name"].clone();
        }
        Ok(())
    }
}

/// `StorageObjectInUseProtection`
pub struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        let finalizer = match (attributes.group(), attributes.plural()) {
            ("", "persistentvolumes") => "kubernetes.io/pv-protection",
            ("", "persistentvolumeclaims") => "kubernetes.io/pvc-protection",
            (GROUP, "volumeattributesclasses") => "kubernetes.io/vac-protection",
            _ => return Ok(()),
        };
        let Some(object) = attributes.object.as_deref_mut().filter(|_| attributes.subresource.is_empty()) else {
            return Ok(());
        };
        let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        if !finalizers.iter().any(|f| f == finalizer) {
            finalizers.push(json!(finalizer));
            object["metadata"]["finalizers"] = json!(finalizers);
        }
        Ok(())
    }
}

/// `PersistentVolumeClaimResize`
pub struct PersistentVolumeClaimResize {
    pub objects: Arc<dyn Objects>,
}

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !attributes.is("", "persistentvolumeclaims") {
            return Ok(());
        }
        let (Some(claim), Some(old)) = (attributes.new_object(), attributes.old) else { return Ok(()) };
        let size = |c: &Value| {
            let text = c["spec"]["resources"]["requests"]["storage"].as_str().unwrap_or("0").to_owned();
            Quantity::parse(&text).unwrap_or_default()
        };
        if size(claim) <= size(old) {
            return Ok(());
        }
        if old["status"]["phase"] != "Bound" {
            return Err(attributes.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let class_of = |c: &Value| -> String {
            let beta = c["metadata"]["annotations"][BETA_CLASS].as_str();
            beta.or(c["spec"]["storageClassName"].as_str()).unwrap_or_default().to_owned()
        };
        let name = class_of(claim);
        let class = self.objects.get(GROUP, "storageclasses", "", &name);
        let expandable = class.is_some_and(|c| c["allowVolumeExpansion"] == true);
        if name.is_empty() || name != class_of(old) || !expandable {
            return Err(attributes.forbidden(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            ));
        }
        Ok(())
    }
}
