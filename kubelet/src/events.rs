//! Events of the kubelet about pods, their containers and the node.

use crate::pod::PodExt;
use coxswain_client::events::EventRecorder;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};

#[derive(Clone)]
pub struct Events {
    recorder: EventRecorder,
    node_name: String,
}

impl Events {
    pub fn new(recorder: EventRecorder, node_name: &str) -> Self {
        Events { recorder, node_name: node_name.to_string() }
    }

    /// `field` is a container's path within the pod, such as `spec.containers{web}`.
    pub fn pod(&self, pod: &Pod, field: Option<&str>, kind: &str, reason: &str, message: impl Into<String>) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace().into()),
            name: Some(pod.name().into()),
            uid: Some(pod.uid().into()),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: field.map(str::to_string),
        };
        self.recorder.event(&about, kind, reason, message);
    }

    /// Upstream refers to nodes by name in place of the uid.
    pub fn node(&self, kind: &str, reason: &str, message: impl Into<String>) {
        let about = ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.node_name.clone()),
            uid: Some(self.node_name.clone()),
            ..Default::default()
        };
        self.recorder.event(&about, kind, reason, message);
    }
}
