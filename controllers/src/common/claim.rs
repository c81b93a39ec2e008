//! Adopting and releasing, the counterpart of `ControllerRefManager`: an object that matches an owner's selector and has no
//! controller is taken over, one that no longer matches is let go.

use coxswain_client::informer::Object;
use coxswain_client::kube;
use coxswain_client::objects::{self, PatchKind};
use coxswain_client::{Client, ObjectKey, errors};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde_json::json;

use super::{owners, selector};

/// What to do with one object.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    Keep,
    Adopt,
    Release,
    Ignore,
}

/// Decides for an owner with this UID and selector. An owner about to go adopts and releases nothing.
pub fn decide(owner: &ObjectMeta, wanted: Option<&LabelSelector>, object: &ObjectMeta) -> Claim {
    let matches = selector::matches(wanted, object.labels.as_ref());
    match owners::controller_of(object) {
        Some(controller) if controller.uid != owners::uid(owner) => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if owners::is_deleting(owner) => Claim::Ignore,
        Some(_) => Claim::Release,
        None if !matches || owners::is_deleting(owner) || owners::is_deleting(object) => Claim::Ignore,
        None if owners::namespace(owner) != owners::namespace(object) => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// Checks with the server that the owner is still the one that was read, and not about to go, before it adopts anything.
pub async fn may_adopt<O: Object>(client: &Client, owner: &O) -> Result<bool, kube::Error> {
    let fresh = errors::ignore_not_found(objects::get::<O>(client, &ObjectKey::of(owner)).await)?;
    Ok(fresh.is_some_and(|fresh| fresh.meta().uid == owner.meta().uid && !owners::is_deleting(fresh.meta())))
}

/// Makes the owner the object's controller. `false` if the object is gone.
pub async fn adopt<O: Object, K: Object>(
    client: &Client,
    owner: &O,
    object: &ObjectMeta,
    finalizer: Option<&str>,
) -> Result<bool, kube::Error> {
    let mut metadata = json!({"ownerReferences": [owners::controller_reference(owner)], "uid": object.uid});
    if let Some(finalizer) = finalizer {
        metadata["finalizers"] = json!([finalizer]);
    }
    patch_metadata::<K>(client, object, metadata).await
}

/// Takes the owner's reference, and the finalizer if one is given, from the object. `false` if the object is gone.
pub async fn release<K: Object>(
    client: &Client,
    owner_uid: &str,
    object: &ObjectMeta,
    finalizer: Option<&str>,
) -> Result<bool, kube::Error> {
    let mut metadata = json!({"ownerReferences": [{"$patch": "delete", "uid": owner_uid}], "uid": object.uid});
    if let Some(finalizer) = finalizer {
        metadata["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
    }
    patch_metadata::<K>(client, object, metadata).await
}

async fn patch_metadata<K: Object>(
    client: &Client,
    object: &ObjectMeta,
    metadata: serde_json::Value,
) -> Result<bool, kube::Error> {
    let patch = json!({"metadata": metadata});
    match objects::patch::<K>(client, &ObjectKey::of_meta(object), "", PatchKind::Strategic, &patch).await {
        Ok(_) => Ok(true),
        // Gone, or another object of the same name: both mean that there is nothing left to do.
        Err(error) if errors::is_not_found(&error) || errors::is_invalid(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
