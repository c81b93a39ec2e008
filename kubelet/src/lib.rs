//! The kubelet: runs on every node the pods that are bound to it (upstream: `cmd/kubelet` and `pkg/kubelet`).
//!
//! [`run`] is the whole of it. Each pod has one worker ([`pod_worker`]), a task that brings the runtime from what it holds to what the
//! pod's spec says, one step after the other: [`runtime_status`] looks, [`actions`] plans, the worker acts, [`status`] tells. Workers of
//! different pods know nothing of each other. What survives a restart is in the runtime's labels and in the pods' directories only.

pub mod actions;
pub mod admission;
pub mod allocation;
pub mod backoff;
pub mod cgroups;
pub mod config;
pub mod container_config;
pub mod cri;
pub mod environment;
pub mod events;
pub mod eviction;
pub mod garbage;
pub mod hollow;
pub mod hooks;
pub mod host_files;
pub mod http_client;
pub mod images;
pub mod kubelet;
pub mod labels;
pub mod logs;
pub mod machine;
pub mod node;
pub mod objects;
pub mod pleg;
pub mod pod;
pub mod pod_worker;
pub mod probes;
pub mod resources;
pub mod runtime_status;
pub mod sandbox;
pub mod server;
pub mod static_pods;
pub mod status;
pub mod status_manager;
pub mod volumes;

pub use config::{Config, KubeletConfiguration};
pub use cri::Runtime;
pub use cri::client::CriClient;
pub use hollow::HollowRuntime;
pub use kubelet::{Error, run};

/// The message of a failed API call as it stands in events: the server's words where there are any.
pub(crate) fn api_message(error: &kube::Error) -> String {
    coxswain_client::errors::message(error)
}
