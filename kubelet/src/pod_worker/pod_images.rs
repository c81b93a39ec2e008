//! What the containers of a pod share of images: pull secrets, and the images of its volumes (upstream: `getPullSecretsForPod`,
//! `getImageVolumes`).

use super::Worker;
use crate::cri::v1;
use crate::images::{StartError, Wish};
use crate::pod::PodExt;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Default)]
pub(super) struct PodImages {
    pub(super) secrets: Vec<Arc<Secret>>,
    /// By the names of volumes: what the runtime knows their images by, or why they are not there.
    volumes: HashMap<String, Result<String, StartError>>,
}

impl PodImages {
    /// What the runtime knows the images by that a container mounts, or what keeps them away.
    pub(super) fn of(&self, container: &Container) -> Result<HashMap<String, String>, Vec<StartError>> {
        let (mut found, mut failed) = (HashMap::new(), Vec::new());
        for mount in container.volume_mounts.iter().flatten() {
            match self.volumes.get(&mount.name) {
                None => {}
                Some(Ok(image)) => {
                    found.insert(mount.name.clone(), image.clone());
                }
                Some(Err(error)) => failed.push(error.clone()),
            }
        }
        if failed.is_empty() { Ok(found) } else { Err(failed) }
    }
}

impl Worker {
    /// What the pod's containers share of images: pull secrets, and the images of volumes, which come before those of containers.
    pub(super) async fn pod_images(&self, pod: &Pod, sandbox: &v1::PodSandboxConfig) -> PodImages {
        let kubelet = &self.kubelet;
        let mut images = PodImages::default();
        let mut missing = Vec::new();
        for reference in pod.spec().image_pull_secrets.iter().flatten().filter(|r| !r.name.is_empty()) {
            match kubelet.lookup().secret(pod.namespace(), &reference.name).await {
                Ok(Some(secret)) => images.secrets.push(secret),
                _ => missing.push(reference.name.as_str()),
            }
        }
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            kubelet.events.pod(pod, None, "Warning", "FailedToRetrieveImagePullSecret", message);
        }
        for volume in pod.spec().volumes.iter().flatten() {
            let Some(source) = &volume.image else { continue };
            let wish = Wish {
                pod,
                field: None,
                requested: source.reference.as_deref().unwrap_or_default(),
                policy: source.pull_policy.as_deref().unwrap_or("IfNotPresent"),
                sandbox,
                secrets: &images.secrets,
            };
            let result = kubelet.images.ensure(&wish).await;
            images.volumes.insert(volume.name.clone(), result);
        }
        images
    }
}
