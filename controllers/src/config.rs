//! What the controllers can be told, the counterpart of `KubeControllerManagerConfiguration`.

use std::time::Duration;

use coxswain_client::leader::LeaderElection;

use crate::Error;
use crate::table::{self, Controller};

#[derive(Clone, Debug)]
pub struct Config {
    /// `--controllers`: names to enable, `-NAME` to disable, `*` for all that are on by default.
    pub controllers: Vec<String>,
    pub leader_election: Option<LeaderElection>,
    /// Multiplies the number of workers of the busy controllers; 1 is upstream's default.
    pub concurrency: usize,
    /// PEM of the authority that pods trust, published to every namespace.
    pub root_ca: Option<Vec<u8>>,
    /// PEM of the key that signs the tokens of service account secrets.
    pub service_account_key: Option<Vec<u8>>,
    pub service_account_issuer: String,
    /// PEM certificate and key that sign certificates.
    pub cluster_signing: Option<(Vec<u8>, Vec<u8>)>,
    pub cluster_signing_duration: Duration,
    pub node_monitor_grace_period: Duration,
    pub node_monitor_period: Duration,
    pub node_startup_grace_period: Duration,
    /// Evictions a second, in a healthy zone, and in a large one that is partly disrupted.
    pub node_eviction_rate: f32,
    pub secondary_node_eviction_rate: f32,
    pub large_cluster_size_threshold: usize,
    pub unhealthy_zone_threshold: f32,
    pub allocate_node_cidrs: bool,
    pub cluster_cidrs: Vec<ipnet::IpNet>,
    pub node_cidr_mask_size_ipv4: u8,
    pub node_cidr_mask_size_ipv6: u8,
    pub terminated_pod_gc_threshold: usize,
    pub hpa: HorizontalPodAutoscaling,
    pub resource_quota_sync_period: Duration,
    pub endpoints_per_slice_max: usize,
}

/// Times of the horizontal pod autoscaler.
#[derive(Clone, Debug)]
pub struct HorizontalPodAutoscaling {
    pub sync_period: Duration,
    pub downscale_stabilization: Duration,
    pub tolerance: f64,
    pub cpu_initialization_period: Duration,
    pub initial_readiness_delay: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controllers: vec!["*".to_owned()],
            leader_election: None,
            concurrency: 1,
            root_ca: None,
            service_account_key: None,
            service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            cluster_signing: None,
            cluster_signing_duration: Duration::from_secs(365 * 24 * 3600),
            node_monitor_grace_period: Duration::from_secs(50),
            node_monitor_period: Duration::from_secs(5),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            large_cluster_size_threshold: 50,
            unhealthy_zone_threshold: 0.55,
            allocate_node_cidrs: false,
            cluster_cidrs: Vec::new(),
            node_cidr_mask_size_ipv4: 24,
            node_cidr_mask_size_ipv6: 64,
            terminated_pod_gc_threshold: 12_500,
            hpa: HorizontalPodAutoscaling {
                sync_period: Duration::from_secs(15),
                downscale_stabilization: Duration::from_secs(300),
                tolerance: 0.1,
                cpu_initialization_period: Duration::from_secs(300),
                initial_readiness_delay: Duration::from_secs(30),
            },
            resource_quota_sync_period: Duration::from_secs(300),
            endpoints_per_slice_max: 100,
        }
    }
}

impl Config {
    /// Whether a controller is to run: the first pattern about it decides, then whether it is on by default.
    pub fn enables(&self, controller: &Controller) -> bool {
        if !controller.gate.is_empty() && !coxswain_api::features::is_open(controller.gate) {
            return false;
        }
        let mut star = false;
        for pattern in &self.controllers {
            match pattern.strip_prefix('-') {
                None if pattern == "*" => star = true,
                None if table::is_named(controller, pattern) => return true,
                Some(name) if table::is_named(controller, name) => return false,
                _ => {}
            }
        }
        star && controller.default
    }

    /// Rejects names of controllers that upstream does not have either.
    pub fn check_names(&self) -> Result<(), Error> {
        for pattern in &self.controllers {
            let name = pattern.strip_prefix('-').unwrap_or(pattern);
            if name != "*" && !table::is_known(name) {
                return Err(Error::UnknownController(name.to_owned()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_enable_and_disable_by_new_and_old_names() {
        let config = |patterns: &[&str]| Config {
            controllers: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
            ..Config::default()
        };
        let find = |name: &str| table::CONTROLLERS.iter().find(|controller| controller.name == name).unwrap();
        let replicaset = find("replicaset-controller");
        assert!(config(&["*"]).enables(replicaset));
        assert!(!config(&["*", "-replicaset"]).enables(replicaset));
        assert!(config(&["replicaset-controller"]).enables(replicaset));
        assert!(!config(&["deployment-controller"]).enables(replicaset));
        assert!(config(&["nosuch"]).check_names().is_err());
        assert!(config(&["-cloud-node-lifecycle-controller", "*"]).check_names().is_ok());
    }
}
