//! Pods from files on this node (upstream: `kubelet/config/file.go`, `kubelet/pod/mirror_client.go`). The API server does not decide about
//! them; it holds a mirror of each, so that they can be seen.

use crate::config::GoDuration;
use crate::kubelet::{Kubelet, PodHandle};
use crate::labels::fnv32a;
use crate::pod::{self, PodExt};
use coxswain_client::errors;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const HASH: &str = "kubernetes.io/config.hash";
const SEEN: &str = "kubernetes.io/config.seen";
const SOURCE: &str = "kubernetes.io/config.source";
const MIRROR: &str = "kubernetes.io/config.mirror";
const PERIOD_MIN: Duration = Duration::from_secs(1);

/// Starts the pods that the directory holds, and follows its changes.
pub async fn run(kubelet: Arc<Kubelet>, start: impl Fn(Arc<Pod>) + Send) {
    let settings = &kubelet.config.settings;
    if settings.static_pod_path.is_empty() {
        return;
    }
    let GoDuration(period) = settings.file_check_frequency;
    let mut known: HashMap<String, Arc<Pod>> = HashMap::new();
    loop {
        let found: HashMap<String, Arc<Pod>> = read(Path::new(&settings.static_pod_path), &kubelet.config.node_name)
            .into_iter()
            .map(|p| (p.uid().to_string(), p))
            .collect();
        for (uid, pod) in &known {
            if !found.contains_key(uid) {
                if let Some(handle) = kubelet.handle(uid) {
                    handle.removed();
                }
                delete_mirror(&kubelet, pod).await;
            }
        }
        for (uid, pod) in &found {
            // A pod that replaces one of the same name waits until that one has ended.
            let busy = kubelet.find(pod.namespace(), pod.name()).is_some_and(|h| h.uid != *uid);
            if kubelet.handle(uid).is_none() && !busy {
                start(pod.clone());
            }
        }
        known = found;
        tokio::select! {
            () = tokio::time::sleep(period.max(PERIOD_MIN)) => {}
            () = kubelet.shutdown.cancelled() => return,
        }
    }
}

fn read(path: &Path, node_name: &str) -> Vec<Arc<Pod>> {
    let mut files: Vec<_> = if path.is_dir() {
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).collect()
    } else {
        vec![path.to_path_buf()]
    };
    files.retain(|f| f.is_file() && f.file_name().is_some_and(|n| !n.as_encoded_bytes().starts_with(b".")));
    files.sort();
    let parsed = files.iter().filter_map(|file| {
        match std::fs::read_to_string(file).map_err(|e| e.to_string()).and_then(|text| parse(&text)) {
            Ok(pod) => Some(Arc::new(complete(pod, file, node_name))),
            Err(error) => {
                tracing::warn!(file = %file.display(), error, "not a pod");
                None
            }
        }
    });
    parsed.collect()
}

fn parse(text: &str) -> Result<Pod, String> {
    let pod: Pod = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    if pod.name().is_empty() || pod.spec().containers.is_empty() {
        return Err("a pod needs a name and a container".into());
    }
    Ok(pod)
}

/// What the API server would have filled in, and what makes the pod this node's.
fn complete(mut pod: Pod, file: &Path, node_name: &str) -> Pod {
    let content = serde_json::to_string(&pod).unwrap_or_default();
    if pod.uid().is_empty() {
        // Another content is another pod; the same content on another node, too.
        let seed = format!("{node_name}\n{}\n{content}", file.display());
        let halves = [0u8, 1, 2, 3].map(|salt| fnv32a(format!("{salt}{seed}").as_bytes()));
        pod.metadata.uid = Some(halves.map(|h| format!("{h:08x}")).concat());
    }
    let uid = pod.uid().to_string();
    pod.metadata.name = Some(format!("{}-{node_name}", pod.name()));
    pod.metadata.namespace.get_or_insert_with(|| "default".into());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(HASH.into(), uid);
    annotations.insert(SOURCE.into(), "file".into());
    let seen = std::fs::metadata(file).and_then(|m| m.modified()).ok().and_then(|t| jiff::Timestamp::try_from(t).ok());
    annotations.insert(SEEN.into(), seen.unwrap_or_default().to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node_name.into());
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".into());
    spec.enable_service_links.get_or_insert(true);
    spec.security_context.get_or_insert_default();
    let tolerations = spec.tolerations.get_or_insert_default();
    tolerations.push(k8s_openapi::api::core::v1::Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Default::default()
    });
    spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(complete_container);
    pod.status = Some(PodStatus { phase: Some("Pending".into()), ..Default::default() });
    pod
}

fn complete_container(container: &mut Container) {
    container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".into());
    container.termination_message_policy.get_or_insert_with(|| "File".into());
    let image = crate::images::with_default_tag(container.image.as_deref().unwrap_or_default());
    container
        .image_pull_policy
        .get_or_insert_with(|| if image.ends_with(":latest") { "Always".into() } else { "IfNotPresent".into() });
    if let Some(resources) = &mut container.resources
        && let Some(limits) = resources.limits.clone()
    {
        let requests = resources.requests.get_or_insert_default();
        for (name, quantity) in limits {
            requests.entry(name).or_insert(quantity);
        }
    }
}

/// Shows a static pod's status on its mirror, which is made if it is missing or is another version's.
pub async fn show(kubelet: &Kubelet, handle: &PodHandle, status: &PodStatus) -> Result<(), kube::Error> {
    let pod = handle.pod();
    let api: Api<Pod> = Api::namespaced(kubelet.client.clone(), pod.namespace());
    let hash = |p: &Pod, name: &str| p.metadata.annotations.as_ref().and_then(|a| a.get(name)).cloned();
    // From the informer: a node may ask for no pod that is not there yet.
    let mut mirror = kubelet.api_pods.get(pod.namespace(), pod.name()).map(|m| (*m).clone());
    if let Some(stale) =
        mirror.as_ref().filter(|m| m.metadata.deletion_timestamp.is_some() || hash(m, MIRROR) != hash(&pod, HASH))
    {
        errors::ignore_not_found(delete(&api, stale).await)?;
        mirror = None;
    }
    let mirror = match mirror {
        Some(mirror) => mirror,
        None => match api.create(&PostParams::default(), &mirror_of(kubelet, &pod)).await {
            // Made a moment ago; the informer has not heard of it yet.
            Err(e) if errors::is_already_exists(&e) => api.get(pod.name()).await?,
            result => result?,
        },
    };
    if let Some(patch) = crate::status_manager::patch(mirror.uid(), mirror.status(), status) {
        api.patch_status(mirror.name(), &PatchParams::default(), &Patch::Strategic(patch)).await?;
    }
    Ok(())
}

fn mirror_of(kubelet: &Kubelet, pod: &Pod) -> Pod {
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror.status = None;
    let annotations = mirror.metadata.annotations.get_or_insert_default();
    let hash = annotations.get(HASH).cloned().unwrap_or_default();
    annotations.insert(MIRROR.into(), hash);
    mirror.metadata.owner_references = kubelet.node_object().and_then(|n| n.metadata.uid.clone()).map(|uid| {
        vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: kubelet.config.node_name.clone(),
            uid,
            controller: Some(true),
            ..Default::default()
        }]
    });
    mirror
}

async fn delete(api: &Api<Pod>, mirror: &Pod) -> Result<(), kube::Error> {
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: mirror.metadata.uid.clone(), resource_version: None }),
        ..Default::default()
    };
    api.delete(mirror.name(), &parameters).await.map(drop)
}

/// Removes the mirror of a static pod that is gone.
async fn delete_mirror(kubelet: &Kubelet, pod: &Pod) {
    let api: Api<Pod> = Api::namespaced(kubelet.client.clone(), pod.namespace());
    if let Some(mirror) = kubelet.api_pods.get(pod.namespace(), pod.name())
        && pod::is_mirror(&mirror)
    {
        let _ = delete(&api, &mirror).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_a_pod_of_this_node() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("etcd.yaml");
        let text = |image: &str| {
            format!("metadata: {{name: etcd}}\nspec: {{containers: [{{name: c, image: \"{image}\"}}]}}\n")
        };
        std::fs::write(&file, text("etcd:1")).unwrap();
        let first = read(dir.path(), "n1").remove(0);
        assert_eq!(
            (first.name(), first.namespace(), first.spec().node_name.as_deref()),
            ("etcd-n1", "default", Some("n1"))
        );
        assert!(pod::is_static(&first) && !pod::is_mirror(&first));
        assert_eq!(read(dir.path(), "n1")[0].uid(), first.uid());
        std::fs::write(&file, text("etcd:2")).unwrap();
        assert_ne!(read(dir.path(), "n1")[0].uid(), first.uid());
    }
}
