//! A container runtime in memory (upstream: kubemark's fake runtime): pods get addresses and containers "run", but no process exists.
//!
//! It serves tests of scale and machines without containers. A pod's annotations can make its containers end:
//! `hollow.coxswain.dev/exit-after` (a duration such as `5s`) and `hollow.coxswain.dev/exit-code`.

use crate::config::GoDuration;
use crate::cri::v1::{self, ContainerState, PodSandboxState};
use crate::cri::{Result, Runtime, RuntimeError};
use crate::machine::Machine;
use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

pub const EXIT_AFTER: &str = "hollow.coxswain.dev/exit-after";
pub const EXIT_CODE: &str = "hollow.coxswain.dev/exit-code";

/// A machine that is large enough for the most pods a node may have.
pub fn machine() -> Machine {
    Machine {
        cpus: 32,
        memory_bytes: 256 << 30,
        hugepages: vec![(2048, 0), (1 << 20, 0)],
        kernel: "hollow".into(),
        os_image: "hollow".into(),
        machine_id: "hollow".into(),
        system_uuid: "hollow".into(),
        boot_id: "hollow".into(),
        ..Default::default()
    }
}

pub struct HollowRuntime {
    state: Mutex<State>,
}

struct State {
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, Held>,
    /// Images that have been pulled, by name.
    images: BTreeMap<String, String>,
    addresses: Addresses,
}

struct Sandbox {
    config: v1::PodSandboxConfig,
    created_at: i64,
    ready: bool,
    ip: Ipv4Addr,
}

struct Held {
    sandbox: String,
    config: v1::ContainerConfig,
    created_at: i64,
    started_at: i64,
    /// When it ends by itself, or has ended, and how.
    ends: Option<(i64, i32)>,
}

/// Hands out the addresses of a range one after the other, and again from the start when it is used up.
struct Addresses {
    base: u32,
    size: u32,
    next: u32,
}

impl Addresses {
    fn of(base: Ipv4Addr, prefix: u32) -> Self {
        Addresses { base: base.to_bits(), size: 1 << (32 - prefix.clamp(8, 30)), next: 2 }
    }

    fn take(&mut self, taken: impl Fn(Ipv4Addr) -> bool) -> Ipv4Addr {
        for _ in 0..self.size {
            let ip = Ipv4Addr::from_bits(self.base + self.next);
            self.next = if self.next + 2 >= self.size { 2 } else { self.next + 1 };
            if !taken(ip) {
                return ip;
            }
        }
        Ipv4Addr::from_bits(self.base + 1)
    }
}

fn now() -> i64 {
    Timestamp::now().as_nanosecond() as i64
}

fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

fn not_found(what: &str, id: &str) -> RuntimeError {
    RuntimeError::new(tonic::Code::NotFound, format!("an error occurred when try to find {what} {id:?}: not found"))
}

fn no_process<T>() -> Result<T> {
    Err(RuntimeError::new(tonic::Code::Unimplemented, "containers of a hollow node have no processes"))
}

impl Held {
    fn state(&self, now: i64) -> ContainerState {
        match self.ends {
            Some((at, _)) if now >= at => ContainerState::Exited,
            _ if self.started_at > 0 => ContainerState::Running,
            _ => ContainerState::Created,
        }
    }
}

fn selected(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

impl HollowRuntime {
    /// `index` tells hollow nodes apart: each has a range of addresses of its own until the node gets a pod CIDR.
    pub fn new(index: u32) -> Self {
        let base = Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() + (index % (1 << 14)) * 256);
        HollowRuntime {
            state: Mutex::new(State {
                sandboxes: BTreeMap::new(),
                containers: BTreeMap::new(),
                images: BTreeMap::new(),
                addresses: Addresses::of(base, 24),
            }),
        }
    }
}

impl Sandbox {
    fn state(&self) -> i32 {
        (if self.ready { PodSandboxState::Ready } else { PodSandboxState::NotReady }) as i32
    }
}

#[async_trait]
impl Runtime for HollowRuntime {
    fn is_real(&self) -> bool {
        false
    }

    async fn version(&self) -> Result<v1::VersionResponse> {
        Ok(v1::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "hollow".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn status(&self, _: bool) -> Result<v1::StatusResponse> {
        let condition = |kind: &str| v1::RuntimeCondition { r#type: kind.into(), status: true, ..Default::default() };
        let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
        Ok(v1::StatusResponse { status: Some(v1::RuntimeStatus { conditions }), ..Default::default() })
    }

    async fn runtime_config(&self) -> Result<v1::RuntimeConfigResponse> {
        Ok(v1::RuntimeConfigResponse {
            linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs as i32 }),
        })
    }

    async fn update_runtime_config(&self, pod_cidr: &str) -> Result<()> {
        let first = pod_cidr.split(',').next().unwrap_or_default();
        if let Some((ip, prefix)) = first.split_once('/')
            && let (Ok(ip), Ok(prefix)) = (ip.parse::<Ipv4Addr>(), prefix.parse())
        {
            self.state.lock().addresses = Addresses::of(ip, prefix);
        }
        Ok(())
    }

    async fn run_pod_sandbox(&self, config: v1::PodSandboxConfig, _: &str) -> Result<String> {
        let mut state = self.state.lock();
        let State { sandboxes, addresses, .. } = &mut *state;
        let ip = addresses.take(|ip| sandboxes.values().any(|s| s.ready && s.ip == ip));
        let id = new_id();
        sandboxes.insert(id.clone(), Sandbox { config, created_at: now(), ready: true, ip });
        Ok(id)
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        let at = now();
        for held in state.containers.values_mut().filter(|c| c.sandbox == id) {
            if held.state(at) == ContainerState::Running {
                held.ends = Some((at, 137));
            }
        }
        if let Some(sandbox) = state.sandboxes.get_mut(id) {
            sandbox.ready = false;
        }
        Ok(())
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        state.containers.retain(|_, c| c.sandbox != id);
        state.sandboxes.remove(id);
        Ok(())
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<v1::PodSandboxStatusResponse> {
        let state = self.state.lock();
        let sandbox = state.sandboxes.get(id).ok_or_else(|| not_found("sandbox", id))?;
        let options = sandbox
            .config
            .linux
            .as_ref()
            .and_then(|l| l.security_context.as_ref())
            .and_then(|s| s.namespace_options.clone());
        let host = options.as_ref().is_some_and(|o| o.network == v1::NamespaceMode::Node as i32);
        let status = v1::PodSandboxStatus {
            id: id.into(),
            metadata: sandbox.config.metadata.clone(),
            state: sandbox.state(),
            created_at: sandbox.created_at,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: if host { String::new() } else { sandbox.ip.to_string() },
                additional_ips: Vec::new(),
            }),
            linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options }) }),
            labels: sandbox.config.labels.clone(),
            annotations: HashMap::new(),
            runtime_handler: String::new(),
        };
        Ok(v1::PodSandboxStatusResponse { status: Some(status), ..Default::default() })
    }

    async fn list_pod_sandboxes(&self, filter: Option<v1::PodSandboxFilter>) -> Result<Vec<v1::PodSandbox>> {
        let selector = filter.map(|f| f.label_selector).unwrap_or_default();
        let state = self.state.lock();
        let fitting = state.sandboxes.iter().filter(|(_, s)| selected(&s.config.labels, &selector));
        Ok(fitting
            .map(|(id, s)| v1::PodSandbox {
                id: id.clone(),
                metadata: s.config.metadata.clone(),
                state: s.state(),
                created_at: s.created_at,
                labels: s.config.labels.clone(),
                ..Default::default()
            })
            .collect())
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: v1::ContainerConfig,
        _: v1::PodSandboxConfig,
    ) -> Result<String> {
        let mut state = self.state.lock();
        if !state.sandboxes.contains_key(sandbox) {
            return Err(not_found("sandbox", sandbox));
        }
        let id = new_id();
        let held = Held { sandbox: sandbox.into(), config, created_at: now(), started_at: 0, ends: None };
        state.containers.insert(id.clone(), held);
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        let State { sandboxes, containers, .. } = &mut *state;
        let held = containers.get_mut(id).ok_or_else(|| not_found("container", id))?;
        held.started_at = now();
        let annotations = sandboxes.get(&held.sandbox).map(|s| &s.config.annotations);
        let get = |name: &str| annotations.and_then(|a| a.get(name));
        if let Some(after) = get(EXIT_AFTER).and_then(|text| GoDuration::parse(text)) {
            let code = get(EXIT_CODE).and_then(|c| c.parse().ok()).unwrap_or(0);
            held.ends = Some((held.started_at + after.0.as_nanos() as i64, code));
        }
        Ok(())
    }

    async fn stop_container(&self, id: &str, _: Duration) -> Result<()> {
        let mut state = self.state.lock();
        let at = now();
        if let Some(held) = state.containers.get_mut(id)
            && held.state(at) != ContainerState::Exited
        {
            held.ends = Some((at, 0));
        }
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.state.lock().containers.remove(id);
        Ok(())
    }

    async fn list_containers(&self, filter: Option<v1::ContainerFilter>) -> Result<Vec<v1::Container>> {
        let filter = filter.unwrap_or_default();
        let state = self.state.lock();
        let at = now();
        let fitting = state.containers.iter().filter(|(id, c)| {
            (filter.id.is_empty() || filter.id == **id)
                && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == c.sandbox)
                && selected(&c.config.labels, &filter.label_selector)
        });
        Ok(fitting
            .map(|(id, c)| v1::Container {
                id: id.clone(),
                pod_sandbox_id: c.sandbox.clone(),
                metadata: c.config.metadata.clone(),
                image: c.config.image.clone(),
                image_ref: c.config.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
                state: c.state(at) as i32,
                created_at: c.created_at,
                labels: c.config.labels.clone(),
                ..Default::default()
            })
            .collect())
    }

    async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus> {
        let state = self.state.lock();
        let held = state.containers.get(id).ok_or_else(|| not_found("container", id))?;
        let current = held.state(now());
        let (finished_at, exit_code) = held.ends.filter(|_| current == ContainerState::Exited).unwrap_or_default();
        let reason = match (current, exit_code) {
            (ContainerState::Exited, 0) => "Completed",
            (ContainerState::Exited, _) => "Error",
            _ => "",
        };
        Ok(v1::ContainerStatus {
            id: id.into(),
            metadata: held.config.metadata.clone(),
            state: current as i32,
            created_at: held.created_at,
            started_at: held.started_at,
            finished_at,
            exit_code,
            image: held.config.image.clone(),
            image_ref: held.config.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
            reason: reason.into(),
            labels: held.config.labels.clone(),
            annotations: held.config.annotations.clone(),
            ..Default::default()
        })
    }

    async fn update_container_resources(&self, _: &str, _: v1::LinuxContainerResources) -> Result<()> {
        Ok(())
    }

    async fn reopen_container_log(&self, _: &str) -> Result<()> {
        Ok(())
    }

    /// Probes and hooks that run commands succeed: there is nothing that could fail.
    async fn exec_sync(&self, _: &str, _: &[String], _: Duration) -> Result<v1::ExecSyncResponse> {
        Ok(v1::ExecSyncResponse::default())
    }

    async fn exec(&self, _: v1::ExecRequest) -> Result<String> {
        no_process()
    }

    async fn attach(&self, _: v1::AttachRequest) -> Result<String> {
        no_process()
    }

    async fn port_forward(&self, _: v1::PortForwardRequest) -> Result<String> {
        no_process()
    }

    async fn list_container_stats(&self, _: Option<v1::ContainerStatsFilter>) -> Result<Vec<v1::ContainerStats>> {
        Ok(Vec::new())
    }

    async fn list_pod_sandbox_stats(&self, _: Option<v1::PodSandboxStatsFilter>) -> Result<Vec<v1::PodSandboxStats>> {
        Ok(Vec::new())
    }

    async fn container_events(&self) -> Result<BoxStream<'static, Result<v1::ContainerEventResponse>>> {
        no_process()
    }

    async fn list_images(&self) -> Result<Vec<v1::Image>> {
        let state = self.state.lock();
        Ok(state.images.iter().map(|(name, id)| image(name, id)).collect())
    }

    async fn image_status(&self, name: &str) -> Result<Option<v1::Image>> {
        Ok(self.state.lock().images.get(name).map(|id| image(name, id)))
    }

    async fn pull_image(&self, name: &str, _: Option<v1::AuthConfig>, _: v1::PodSandboxConfig) -> Result<String> {
        let id = format!("sha256:{:064x}", u128::from(crate::labels::fnv32a(name.as_bytes())));
        self.state.lock().images.insert(name.into(), id.clone());
        Ok(id)
    }

    async fn remove_image(&self, id: &str) -> Result<()> {
        self.state.lock().images.retain(|_, known| known != id);
        Ok(())
    }

    async fn image_fs_info(&self) -> Result<v1::ImageFsInfoResponse> {
        Ok(v1::ImageFsInfoResponse::default())
    }
}

fn image(name: &str, id: &str) -> v1::Image {
    v1::Image {
        id: id.into(),
        repo_tags: vec![name.into()],
        uid: Some(v1::Int64Value { value: 65534 }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn containers_end_as_annotated() {
        let runtime = HollowRuntime::new(0);
        let annotations =
            [(EXIT_AFTER.to_string(), "1ms".to_string()), (EXIT_CODE.to_string(), "3".to_string())].into();
        let config = v1::PodSandboxConfig { annotations, ..Default::default() };
        let sandbox = runtime.run_pod_sandbox(config, "").await.unwrap();
        let id = runtime.create_container(&sandbox, Default::default(), Default::default()).await.unwrap();
        runtime.start_container(&id).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        let status = runtime.container_status(&id).await.unwrap();
        assert_eq!((status.state, status.exit_code), (ContainerState::Exited as i32, 3));
    }

    #[tokio::test]
    async fn pods_get_addresses_of_their_node() {
        let runtime = HollowRuntime::new(1);
        let ip = async |runtime: &HollowRuntime| {
            let id = runtime.run_pod_sandbox(Default::default(), "").await.unwrap();
            runtime.pod_sandbox_status(&id).await.unwrap().status.unwrap().network.unwrap().ip
        };
        assert_eq!(ip(&runtime).await, "100.64.1.2");
        runtime.update_runtime_config("10.1.2.0/24").await.unwrap();
        assert_eq!(ip(&runtime).await, "10.1.2.2");
    }
}
