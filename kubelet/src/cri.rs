//! The container runtime as the kubelet sees it (upstream: `cri-api/pkg/apis` and `cri-client`).
//!
//! [`Runtime`] is CRI version 1, one method a call. It has two implementations: [`client::CriClient`] speaks gRPC to containerd or
//! CRI-O over a unix socket, and [`crate::hollow::HollowRuntime`] keeps containers in memory. Everything above is the same for both.

pub mod client;
pub mod v1;

use async_trait::async_trait;
use futures::stream::BoxStream;
use std::fmt;
use std::time::Duration;

/// A failed call. Prints as Go's gRPC errors do, because the text ends up in events and container statuses.
#[derive(Clone, Debug)]
pub struct RuntimeError {
    pub code: tonic::Code,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, RuntimeError>;

impl RuntimeError {
    pub fn new(code: tonic::Code, message: impl Into<String>) -> Self {
        RuntimeError { code, message: message.into() }
    }

    pub fn is_not_found(&self) -> bool {
        self.code == tonic::Code::NotFound
    }

    pub fn is_unimplemented(&self) -> bool {
        self.code == tonic::Code::Unimplemented
    }
}

impl fmt::Display for RuntimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = match self.code {
            tonic::Code::Ok => "OK".to_string(),
            tonic::Code::Cancelled => "Canceled".to_string(),
            other => format!("{other:?}"),
        };
        write!(f, "rpc error: code = {code} desc = {}", self.message)
    }
}

impl std::error::Error for RuntimeError {}

impl From<tonic::Status> for RuntimeError {
    fn from(status: tonic::Status) -> Self {
        RuntimeError { code: status.code(), message: status.message().to_string() }
    }
}

/// What a container runtime must do. Every call may fail with `Unavailable` while the runtime restarts; callers retry on their next sync.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Whether containers are processes on this machine, so that volumes, cgroups, log files and host files are worth making.
    fn is_real(&self) -> bool {
        true
    }

    async fn version(&self) -> Result<v1::VersionResponse>;
    async fn status(&self, verbose: bool) -> Result<v1::StatusResponse>;
    async fn runtime_config(&self) -> Result<v1::RuntimeConfigResponse>;
    async fn update_runtime_config(&self, pod_cidr: &str) -> Result<()>;

    async fn run_pod_sandbox(&self, config: v1::PodSandboxConfig, handler: &str) -> Result<String>;
    /// Idempotent. Returns once the sandbox's containers are dead and its network is gone.
    async fn stop_pod_sandbox(&self, id: &str) -> Result<()>;
    async fn remove_pod_sandbox(&self, id: &str) -> Result<()>;
    async fn pod_sandbox_status(&self, id: &str) -> Result<v1::PodSandboxStatusResponse>;
    async fn list_pod_sandboxes(&self, filter: Option<v1::PodSandboxFilter>) -> Result<Vec<v1::PodSandbox>>;

    async fn create_container(
        &self,
        sandbox: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String>;
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends the stop signal, waits `grace`, then kills. Idempotent.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()>;
    async fn remove_container(&self, id: &str) -> Result<()>;
    async fn list_containers(&self, filter: Option<v1::ContainerFilter>) -> Result<Vec<v1::Container>>;
    async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus>;
    async fn update_container_resources(&self, id: &str, resources: v1::LinuxContainerResources) -> Result<()>;
    async fn reopen_container_log(&self, id: &str) -> Result<()>;

    async fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<v1::ExecSyncResponse>;
    async fn exec(&self, request: v1::ExecRequest) -> Result<String>;
    async fn attach(&self, request: v1::AttachRequest) -> Result<String>;
    async fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String>;

    async fn list_container_stats(&self, filter: Option<v1::ContainerStatsFilter>) -> Result<Vec<v1::ContainerStats>>;
    async fn list_pod_sandbox_stats(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>>;
    /// A stream of container events, or `Unimplemented` where the runtime has none.
    async fn container_events(&self) -> Result<BoxStream<'static, Result<v1::ContainerEventResponse>>>;

    async fn list_images(&self) -> Result<Vec<v1::Image>>;
    async fn image_status(&self, image: &str) -> Result<Option<v1::Image>>;
    async fn pull_image(
        &self,
        image: &str,
        auth: Option<v1::AuthConfig>,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String>;
    async fn remove_image(&self, image: &str) -> Result<()>;
    async fn image_fs_info(&self) -> Result<v1::ImageFsInfoResponse>;
}

impl v1::Signal {
    /// The name as the API has it, such as `SIGTERM` or `SIGRTMIN+1`.
    pub fn posix_name(self) -> String {
        format!("{self:?}").to_uppercase().replace("PLUS", "+").replace("MINUS", "-")
    }

    pub fn from_posix_name(name: &str) -> Option<Self> {
        (0..).map_while(|number| v1::Signal::try_from(number).ok()).find(|signal| signal.posix_name() == name)
    }
}
