//! CRI over gRPC on a unix socket (upstream: `cri-client/pkg/remote_runtime.go` and `remote_image.go`).
//!
//! The channel connects when it is first used and again whenever the runtime has been restarted.

use super::v1::*;
use super::{Result, Runtime, RuntimeError};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::time::Duration;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// Lists of a node with hundreds of containers are larger than gRPC's usual limit (upstream: `maxMsgSize`).
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// For calls that may take long by nature upstream waits without limit; a dead runtime closes the connection.
const NO_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

pub struct CriClient {
    runtime: Channel,
    images: Channel,
    timeout: Duration,
}

impl CriClient {
    /// Endpoints are `unix:///path` or a bare path. Without an image endpoint the runtime serves images too.
    pub fn new(runtime_endpoint: &str, image_endpoint: &str, timeout: Duration) -> Result<Self> {
        let runtime = channel(runtime_endpoint)?;
        let images = if image_endpoint.is_empty() { runtime.clone() } else { channel(image_endpoint)? };
        Ok(CriClient { runtime, images, timeout })
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.call_within(path, request, self.timeout).await
    }

    async fn call_within<Q, A>(&self, path: &'static str, request: Q, timeout: Duration) -> Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let channel = if path.starts_with("/runtime.v1.ImageService/") { &self.images } else { &self.runtime };
        let mut grpc = Grpc::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let unavailable = |e: &dyn std::fmt::Display| {
            RuntimeError::new(tonic::Code::Unavailable, format!("container runtime is not reachable: {e}"))
        };
        let work = async {
            grpc.ready().await.map_err(|e| unavailable(&e))?;
            let path = http::uri::PathAndQuery::from_static(path);
            let answer = grpc.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await?;
            Ok(answer.into_inner())
        };
        match tokio::time::timeout(timeout, work).await {
            Ok(answer) => answer,
            Err(_) => Err(RuntimeError::new(tonic::Code::DeadlineExceeded, "context deadline exceeded")),
        }
    }
}

fn channel(endpoint: &str) -> Result<Channel> {
    let path = endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    let endpoint = Endpoint::from_shared(format!("unix://{path}"))
        .map_err(|e| RuntimeError::new(tonic::Code::InvalidArgument, format!("bad runtime endpoint {path:?}: {e}")))?;
    Ok(endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy())
}

/// The path of a call of the runtime service, or of the image service.
macro_rules! rpc {
    ($method:literal) => {
        concat!("/runtime.v1.RuntimeService/", $method)
    };
    (image $method:literal) => {
        concat!("/runtime.v1.ImageService/", $method)
    };
}

#[async_trait]
impl Runtime for CriClient {
    async fn version(&self) -> Result<VersionResponse> {
        self.call(rpc!("Version"), VersionRequest { version: "v1".into() }).await
    }

    async fn status(&self, verbose: bool) -> Result<StatusResponse> {
        self.call(rpc!("Status"), StatusRequest { verbose }).await
    }

    async fn runtime_config(&self) -> Result<RuntimeConfigResponse> {
        self.call(rpc!("RuntimeConfig"), RuntimeConfigRequest {}).await
    }

    async fn update_runtime_config(&self, pod_cidr: &str) -> Result<()> {
        let network_config = Some(NetworkConfig { pod_cidr: pod_cidr.into() });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        self.call::<_, UpdateRuntimeConfigResponse>(rpc!("UpdateRuntimeConfig"), request).await.map(drop)
    }

    async fn run_pod_sandbox(&self, config: PodSandboxConfig, handler: &str) -> Result<String> {
        // Making a sandbox waits for the network plugin, hence twice the usual time, as upstream gives it.
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: handler.into() };
        let answer: RunPodSandboxResponse = self.call_within(rpc!("RunPodSandbox"), request, self.timeout * 2).await?;
        Ok(answer.pod_sandbox_id)
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.call::<_, StopPodSandboxResponse>(rpc!("StopPodSandbox"), request).await.map(drop)
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.call::<_, RemovePodSandboxResponse>(rpc!("RemovePodSandbox"), request).await.map(drop)
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatusResponse> {
        self.call(rpc!("PodSandboxStatus"), PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false }).await
    }

    async fn list_pod_sandboxes(&self, filter: Option<PodSandboxFilter>) -> Result<Vec<PodSandbox>> {
        let answer: ListPodSandboxResponse =
            self.call(rpc!("ListPodSandbox"), ListPodSandboxRequest { filter }).await?;
        Ok(answer.items)
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer: CreateContainerResponse = self.call(rpc!("CreateContainer"), request).await?;
        Ok(answer.container_id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: id.into() };
        self.call::<_, StartContainerResponse>(rpc!("StartContainer"), request).await.map(drop)
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let request = StopContainerRequest { container_id: id.into(), timeout: grace.as_secs() as i64 };
        self.call_within::<_, StopContainerResponse>(rpc!("StopContainer"), request, self.timeout + grace)
            .await
            .map(drop)
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: id.into() };
        self.call::<_, RemoveContainerResponse>(rpc!("RemoveContainer"), request).await.map(drop)
    }

    async fn list_containers(&self, filter: Option<ContainerFilter>) -> Result<Vec<Container>> {
        let answer: ListContainersResponse =
            self.call(rpc!("ListContainers"), ListContainersRequest { filter }).await?;
        Ok(answer.containers)
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer: ContainerStatusResponse = self.call(rpc!("ContainerStatus"), request).await?;
        answer.status.ok_or_else(|| RuntimeError::new(tonic::Code::Internal, "container status is not set"))
    }

    async fn update_container_resources(&self, id: &str, resources: LinuxContainerResources) -> Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(resources),
            annotations: Default::default(),
        };
        self.call::<_, UpdateContainerResourcesResponse>(rpc!("UpdateContainerResources"), request).await.map(drop)
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let request = ReopenContainerLogRequest { container_id: id.into() };
        self.call::<_, ReopenContainerLogResponse>(rpc!("ReopenContainerLog"), request).await.map(drop)
    }

    async fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecSyncResponse> {
        // A timeout of zero means none. The runtime enforces the limit; ours is only a guard against a runtime that hangs.
        let guard = if timeout.is_zero() { NO_TIMEOUT } else { timeout + self.timeout };
        let request =
            ExecSyncRequest { container_id: id.into(), cmd: command.to_vec(), timeout: timeout.as_secs() as i64 };
        self.call_within(rpc!("ExecSync"), request, guard).await
    }

    async fn exec(&self, request: ExecRequest) -> Result<String> {
        Ok(self.call::<_, ExecResponse>(rpc!("Exec"), request).await?.url)
    }

    async fn attach(&self, request: AttachRequest) -> Result<String> {
        Ok(self.call::<_, AttachResponse>(rpc!("Attach"), request).await?.url)
    }

    async fn port_forward(&self, request: PortForwardRequest) -> Result<String> {
        Ok(self.call::<_, PortForwardResponse>(rpc!("PortForward"), request).await?.url)
    }

    async fn list_container_stats(&self, filter: Option<ContainerStatsFilter>) -> Result<Vec<ContainerStats>> {
        let answer: ListContainerStatsResponse =
            self.call(rpc!("ListContainerStats"), ListContainerStatsRequest { filter }).await?;
        Ok(answer.stats)
    }

    async fn list_pod_sandbox_stats(&self, filter: Option<PodSandboxStatsFilter>) -> Result<Vec<PodSandboxStats>> {
        let answer: ListPodSandboxStatsResponse =
            self.call(rpc!("ListPodSandboxStats"), ListPodSandboxStatsRequest { filter }).await?;
        Ok(answer.stats)
    }

    async fn container_events(&self) -> Result<BoxStream<'static, Result<ContainerEventResponse>>> {
        let mut grpc = Grpc::new(self.runtime.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(|e| RuntimeError::new(tonic::Code::Unavailable, e.to_string()))?;
        let path = http::uri::PathAndQuery::from_static(rpc!("GetContainerEvents"));
        let codec = ProstCodec::<GetEventsRequest, ContainerEventResponse>::default();
        let stream = grpc.server_streaming(tonic::Request::new(GetEventsRequest {}), path, codec).await?.into_inner();
        Ok(stream.map(|event| event.map_err(RuntimeError::from)).boxed())
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        let answer: ListImagesResponse =
            self.call(rpc!(image "ListImages"), ListImagesRequest { filter: None }).await?;
        Ok(answer.images)
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let request = ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        let answer: ImageStatusResponse = self.call(rpc!(image "ImageStatus"), request).await?;
        Ok(answer.image)
    }

    async fn pull_image(
        &self,
        image: &str,
        auth: Option<AuthConfig>,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String> {
        let request = PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config: Some(sandbox_config) };
        let answer: PullImageResponse = self.call_within(rpc!(image "PullImage"), request, NO_TIMEOUT).await?;
        Ok(answer.image_ref)
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        let request = RemoveImageRequest { image: Some(image_spec(image)) };
        self.call::<_, RemoveImageResponse>(rpc!(image "RemoveImage"), request).await.map(drop)
    }

    async fn image_fs_info(&self) -> Result<ImageFsInfoResponse> {
        self.call(rpc!(image "ImageFsInfo"), ImageFsInfoRequest {}).await
    }
}

fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), user_specified_image: image.into(), ..Default::default() }
}
